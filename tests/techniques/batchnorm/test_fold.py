"""Batch norms into the layers before and after them."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchnorm_nets import Net, context, edits, image, reasons, settled
from leanconv.rewrite import rewrite
from leanconv.techniques import batchnorm, dropout, separable
from leanconv.techniques.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from leanconv_tests import close

NORMS = {
    1: (BatchNorm1d, nn.BatchNorm1d),
    2: (BatchNorm2d, nn.BatchNorm2d),
    3: (BatchNorm3d, nn.BatchNorm3d),
}


def check_fold(model: nn.Module, x: Tensor, count: int = 1) -> nn.Module:
    proposals = batchnorm.fold(context(model, x))
    assert len(edits(proposals)) == count, reasons(proposals)
    folded = rewrite(model, proposals).model
    want, got = model(x), folded(x)
    assert (got - want).abs().max() <= 1e-10 * want.abs().max()
    assert not any(isinstance(m, batchnorm.LAYERS) for m in folded.modules()) or count == 0
    return folded


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("ours", [True, False])
def test_fold_every_convolution(dims: int, groups: int, transposed: bool, bias: bool, ours: bool) -> None:
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    norm = NORMS[dims][0 if ours else 1]
    x = torch.randn(3, 4, *[5] * dims, dtype=torch.float64)
    check_fold(settled(nn.Sequential(kind(4, 8, 3, stride=2, groups=groups, bias=bias), norm(8), nn.ReLU()), x), x)


def test_fold_linear_reflect_padding_and_no_affine() -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    check_fold(settled(nn.Sequential(nn.Linear(4, 6), BatchNorm1d(6)), x), x)
    x = image()
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    check_fold(settled(nn.Sequential(conv, BatchNorm2d(4, affine=False)), x), x)


@pytest.mark.parametrize("activation", ["relu6", torch.tanh])
def test_fold_keeps_the_activation(activation: object) -> None:
    x = image()
    folded = check_fold(settled(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4, activation=activation)), x), x)
    assert not isinstance(folded[1], nn.Identity)


def test_fold_in_float32_holds_the_error_rule() -> None:
    x = image()
    model = settled(nn.Sequential(nn.Conv2d(3, 8, 3), BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), BatchNorm2d(8)), x)
    single = copy.deepcopy(model).float()
    folded = rewrite(single, batchnorm.fold(context(single, x.float()))).model
    close(folded(x.float()), single(x.float()), copy.deepcopy(single).double()(x))


def test_fold_does_not_flip_the_users_training_mode() -> None:
    x = image()
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4)), x).train()
    before = copy.deepcopy(model.state_dict())
    (edit,) = batchnorm.fold(context(model, x))
    assert model[0].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in edit.put.values())


class Standardised(nn.Conv2d):
    """A convolution whose weight is not what it convolves with."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Louder(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _hooked() -> nn.Module:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    conv.register_forward_hook(lambda m, args, y: y + 1)
    return conv


def _tied() -> dict[str, nn.Module]:
    conv, other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    other.weight = conv.weight
    return {"conv": conv, "other": other, "norm": BatchNorm2d(3)}


def _shifted() -> nn.Module:
    norm = BatchNorm2d(3)
    nn.init.ones_(norm.bias)
    return norm


def _parts(conv: nn.Module | None = None, norm: nn.Module | None = None) -> dict[str, nn.Module]:
    return {"conv": conv or nn.Conv2d(3, 3, 3, padding=1), "norm": norm or BatchNorm2d(3)}


CHAIN = lambda m, x: m.norm(m.conv(x))  # noqa: E731
UNFIT = {
    "pytorch#197539: convolution called twice": (
        lambda m, x: m.norm(m.conv(m.conv(x))),
        _parts,
        "conv is called 2 times",
    ),
    "batch norm called twice": (lambda m, x: m.norm(F.relu(m.norm(m.conv(x)))), _parts, "it is called 2 times"),
    "two consumers": (
        lambda m, x: (lambda y: m.norm(y) + y)(m.conv(x)),
        _parts,
        "conv is used elsewhere too, or returned",
    ),
    "model output": (
        lambda m, x: (lambda y: (m.norm(y), y))(m.conv(x)),
        _parts,
        "conv is used elsewhere too, or returned",
    ),
    "in-place on the way": (lambda m, x: m.norm(m.conv(x).add_(1)), _parts, "the step before it is add_"),
    "weight read elsewhere": (lambda m, x: m.norm(m.conv(x)) + m.conv.weight.sum(), _parts, "conv.weight is shared"),
    "tied weight": (lambda m, x: m.other(m.norm(m.conv(x))), _tied, "conv.weight is shared"),
    "hook": (CHAIN, lambda: _parts(_hooked()), "conv has hooks or parametrizations"),
    "weight norm": (
        CHAIN,
        lambda: _parts(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1))),
        "conv has hooks or parametrizations",
    ),
    "a forward of its own": (CHAIN, lambda: _parts(Standardised(3, 3, 3)), "does more than its convolution or product"),
    "a norm's forward of its own": (CHAIN, lambda: _parts(norm=Louder(3)), "Louder has a forward of its own"),
    "no running statistics": (
        CHAIN,
        lambda: _parts(norm=BatchNorm2d(3, track_running_stats=False)),
        "it has no running statistics",
    ),
    "network input": (
        lambda m, x: m.conv(m.norm(x)),
        lambda: _parts(norm=_shifted()),
        "it normalises the network's input; forward: the zero padding",
    ),
    "not run": (lambda m, x: m.conv(x), _parts, "it did not run on the example"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_fold_refuses_with_the_reason(case: str) -> None:
    forward, parts, reason = UNFIT[case]
    model = Net(forward, **parts()).double().eval()
    proposals = batchnorm.fold(context(model, image()))
    assert not edits(proposals)
    assert reason in reasons(proposals)


def test_fold_refuses_linear_over_sequences() -> None:
    model = nn.Sequential(nn.Linear(6, 6), BatchNorm1d(6)).eval()
    proposals = batchnorm.fold(context(model, torch.randn(2, 6, 6)))
    assert "are not those of the batch norm" in reasons(proposals), "dimension 1 is the sequence, of the same length"


def test_fold_lists_both_paths_of_a_module() -> None:
    conv, norm = nn.Conv2d(3, 3, 3), BatchNorm2d(3)
    model = Net(lambda m, x: m.norm(m.conv(x)), conv=conv, norm=norm, again=conv, norm_again=norm)
    model = settled(model, image())
    folded = check_fold(model, image())
    assert folded.conv is folded.again
    assert folded.norm is folded.norm_again


def test_a_second_fold_takes_the_second_norm() -> None:
    x = image()
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4), BatchNorm2d(4)), x)
    once = rewrite(model, batchnorm.fold(context(model, x))).model
    assert [type(m) for m in once] == [nn.Conv2d, nn.Identity, BatchNorm2d]
    assert torch.allclose(once(x), model(x), rtol=1e-10)


# --- forward, into the layer that reads it ---------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding_mode", ["none", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_fold_forward_into_every_convolution(dims: int, groups: int, padding_mode: str, bias: bool) -> None:
    mode = {"padding": 0} if padding_mode == "none" else {"padding": 2, "padding_mode": padding_mode}
    conv = getattr(nn, f"Conv{dims}d")(4, 8, 3, stride=2, groups=groups, bias=bias, **mode)
    x = torch.randn(3, 4, *[7] * dims, dtype=torch.float64)
    check_fold(settled(nn.Sequential(NORMS[dims][groups % 2](4), conv, nn.ReLU()), x), x)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_fold_forward_into_a_transposed_convolution_of_one_tap(groups: int) -> None:
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    check_fold(settled(nn.Sequential(BatchNorm2d(4), nn.ConvTranspose2d(4, 8, 1, groups=groups)), x), x)


BORDERS = {
    "zero padding": nn.Conv2d(3, 4, 3, padding=1),
    "same padding": nn.Conv2d(3, 4, 3, padding="same"),
    "one tap, padded": nn.Conv2d(3, 4, 1, padding=1),
    "transposed": nn.ConvTranspose2d(3, 4, 3),
    "transposed, cropped": nn.ConvTranspose2d(3, 4, 3, padding=1),
    "transposed, stride": nn.ConvTranspose2d(3, 4, 1, stride=2),
    "transposed, kernel = stride": nn.ConvTranspose2d(3, 4, 2, stride=2),
    "transposed, output padding": nn.ConvTranspose2d(3, 4, 1, dilation=2, output_padding=1),
}


@pytest.mark.parametrize("case", BORDERS)
def test_fold_forward_at_a_border_only_without_a_shift(case: str) -> None:
    x = image()
    model = settled(nn.Sequential(BatchNorm2d(3), copy.deepcopy(BORDERS[case]), nn.ReLU()), x)
    proposals = batchnorm.fold(context(model, x))
    assert not edits(proposals)
    assert "see" in reasons(proposals)
    nn.init.zeros_(model[0].bias)
    nn.init.zeros_(model[0].running_mean)
    folded = check_fold(model, x)
    assert torch.equal(folded[1].bias, model[1].bias)


def test_same_padding_of_one_tap_pads_nothing() -> None:
    x = image()
    check_fold(settled(nn.Sequential(BatchNorm2d(3), nn.Conv2d(3, 4, 1, padding="same")), x), x)


def test_fold_forward_past_what_is_nothing_in_eval() -> None:
    x = image()
    between = (nn.Identity(), nn.Dropout(0.3), dropout.Dropout2d(0.2))
    check_fold(settled(nn.Sequential(nn.ReLU(), BatchNorm2d(3), *between, nn.Conv2d(3, 4, 3)), x), x)
    check_fold(settled(nn.Sequential(nn.Conv2d(3, 4, 3), *between, BatchNorm2d(4), nn.ReLU()), x), x)
    for training, count in ((False, 1), (True, 0)):
        model = Net(lambda m, x, t=training: m.norm(F.dropout(m.conv(x), 0.5, t)), **_parts()).double().eval()
        assert len(edits(batchnorm.fold(context(model, x)))) == count, "noise that eval has too does not commute"


@pytest.mark.parametrize("size", [1, 4])
def test_fold_forward_through_flatten_into_a_linear(size: int) -> None:
    x = image(size=size)
    head = nn.Linear(3 * size * size, 5)
    check_fold(settled(nn.Sequential(nn.ReLU(), BatchNorm2d(3), nn.Dropout(), nn.Flatten(), head), x), x)
    model = Net(lambda m, x: m.head(m.norm(x).reshape(len(x), -1)), norm=nn.BatchNorm2d(3), head=copy.deepcopy(head))
    check_fold(settled(model, x), x)
    features = torch.randn(6, 4, dtype=torch.float64)
    check_fold(settled(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False)), features), features)


def test_other_reshapes_are_no_flatten() -> None:
    x = image(n=3, size=3)
    forwards = {
        "channels last": lambda m, x: m.head(m.norm(x).movedim(1, -1).flatten(1)),
        "over the batch": lambda m, x: m.head(m.norm(x).transpose(0, 1).reshape(3, -1)),
    }
    for forward in forwards.values():
        model = settled(Net(forward, norm=BatchNorm2d(3), head=nn.Linear(27, 2)), x)
        assert not edits(batchnorm.fold(context(model, x)))


def test_a_layer_between_two_batch_norms_takes_both_in_one_edit() -> None:
    x = image()
    conv = nn.Conv2d(3, 4, 3, bias=False)
    model = settled(nn.Sequential(nn.ReLU(), BatchNorm2d(3), conv, nn.BatchNorm2d(4), nn.ReLU()), x)
    check_fold(model, x)
    (edit,) = batchnorm.fold(context(model, x))
    assert edit.why == "3 folded into 2; 1 folded forward into 2"


NOT_FORWARD = {
    "read twice": (lambda m, x: m.conv(y := m.norm(x)) + y, "its output is used more than once, or returned"),
    "returned": (lambda m, x: (y := m.norm(x), m.conv(y)), "its output is used more than once, or returned"),
    "read twice by one": (lambda m, x: m.conv(y := m.norm(x)) * m.other(y), "used more than once"),
    "a sum": (lambda m, x: m.conv(m.norm(x) + x), "the step after it is add, not a convolution or Linear"),
    "called twice": (lambda m, x: m.conv(m.conv(m.norm(x))), "conv is called 2 times"),
    "weight read": (lambda m, x: m.conv(m.norm(x)) * m.conv.weight.sum(), "conv.weight is shared"),
}


@pytest.mark.parametrize("case", NOT_FORWARD)
def test_fold_forward_refuses_with_the_reason(case: str) -> None:
    forward, reason = NOT_FORWARD[case]
    model = Net(forward, conv=nn.Conv2d(3, 3, 1), other=nn.Conv2d(3, 3, 1), norm=BatchNorm2d(3)).double().eval()
    proposals = batchnorm.fold(context(model, image()))
    assert not edits(proposals)
    assert f"it normalises the network's input; forward: {reason}" in reasons(proposals) or reason in reasons(proposals)


def test_a_batch_norm_with_an_activation_does_not_go_forward() -> None:
    model = nn.Sequential(BatchNorm2d(3, activation="relu"), nn.Conv2d(3, 3, 1)).double().eval()
    assert "forward: an activation stands inside it" in reasons(batchnorm.fold(context(model, image())))


# --- statistics that are no numbers, or hardly any -------------------------------------------------------------------

BAD = {
    "nan": ("running_var", float("nan"), 1e-5, "running variance of 1 of 4 channels is NaN, negative or infinite"),
    "negative": ("running_var", -1e-6, 1e-5, "running variance of 1 of 4 channels is NaN, negative or infinite"),
    "infinite": ("running_var", float("inf"), 1e-5, "running variance of 1 of 4 channels is NaN, negative or infinite"),
    "zero": ("running_var", 0.0, 0.0, r"1 / sqrt(variance + eps) of 1 of 4 channels is not finite (eps=0.0)"),
    "mean": ("running_mean", float("nan"), 1e-5, "mean, gamma or beta of 1 of 4 channels is NaN or infinite"),
    "gamma": ("weight", float("inf"), 1e-5, "mean, gamma or beta of 1 of 4 channels is NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD)
def test_fold_refuses_statistics_that_are_no_numbers(case: str) -> None:
    name, value, eps, reason = BAD[case]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=eps)).eval()
    with torch.no_grad():
        getattr(model[1], name)[2] = value
    proposals = batchnorm.fold(context(model, image().float()))
    assert not edits(proposals)
    assert reason in reasons(proposals)


def test_a_variance_of_zero_folds_with_eps() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4)).double().eval()
    model[1].running_var.zero_()
    check_fold(model, image())


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("flush", [False, True])
def test_denormal_variances_fold_right(flush: bool, eps: float) -> None:
    """Published weights have them (5.6e-45); a processor that flushes them to zero must not change the weights."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, eps=eps)).eval()
    model[1].running_var[:2] = torch.tensor([5.6e-45, 1e-40])
    variance = [4 * 2.0**-149, 71362 * 2.0**-149, 1.0, 1.0]
    scale = torch.tensor([(v + eps) ** -0.5 for v in variance], dtype=torch.float64)
    graph = context(model, image().float())
    try:
        torch.set_flush_denormal(flush)
        (edit,) = batchnorm.fold(graph)
    finally:
        torch.set_flush_denormal(False)
    assert edit.why == "1 folded into 0 (2 of 4 running variances are denormal)"
    want = (model[0].weight.double() * scale.view(-1, 1, 1, 1)).float()
    assert torch.equal(edit.put["0"].weight, want)


# --- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", [torch.float32, None])
def test_half_precision_is_folded_in_float64_and_approximate(half: torch.dtype, norm: torch.dtype | None) -> None:
    x = image()
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), x).float()
    model[0].to(half)
    model[1].to(norm or half)
    (edit,) = batchnorm.fold(context(model, x.to(half)))
    assert edit.claim == "approximate"
    assert edit.why == f"1 folded into 0; its weights rounded to {str(half)[6:]} once more"
    exact = batchnorm.folded(copy.deepcopy(model[0]).double(), model[1])
    assert torch.equal(edit.put["0"].weight, exact.weight.to(half))
    assert torch.equal(edit.put["0"].bias, exact.bias.to(half))


def test_half_precision_is_exact_where_no_digit_is_lost() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0)).to(torch.bfloat16).eval()
    model[1].running_var.fill_(4)
    (edit,) = batchnorm.fold(context(model, image().to(torch.bfloat16)))
    assert edit.claim == "exact"
    assert torch.equal(edit.put["0"].weight, model[0].weight / 2)


def test_weights_that_overflow_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).half().eval()
    model[1].weight.data.fill_(6e4)
    model[1].running_var.fill_(1e-3)
    proposals = batchnorm.fold(context(model, image().half()))
    assert reasons(proposals) == "1: the folded weights of 0 are not finite in float16"


# --- more that others get wrong --------------------------------------------------------------------------------------


def test_flags_stay_with_each_module() -> None:
    """A frozen backbone in eval inside a network that trains."""
    x = image()
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), x)
    model.train()
    model[1].eval()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    before = [m.training for m in model.modules()]
    folded = rewrite(model, batchnorm.fold(context(model, x))).model
    assert [m.training for m in folded.modules()] == before == [m.training for m in model.modules()]
    assert [p.requires_grad for p in folded.parameters()] == [False, True, True, True]


@pytest.mark.parametrize("ours", [True, False])
def test_a_frozen_batch_norm_folds(ours: bool) -> None:
    x = image()
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), NORMS[2][0 if ours else 1](4)), x)
    batchnorm.freeze(model)
    check_fold(model, x)
    model[1].register_forward_hook(lambda m, args, y: 2 * y)
    assert "it has hooks or parametrizations" in reasons(batchnorm.fold(context(model, x)))


def test_synchronised_batch_norms_fold() -> None:
    x = image()
    check_fold(settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)), x), x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var)


def test_the_function_batch_norm_is_left_alone_and_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Functional())
    assert reasons(batchnorm.fold(context(model, image().float()))).startswith("1: Functional calls the function")
    model = Net(lambda m, x: F.batch_norm(m.conv(x), m.norm.running_mean, m.norm.running_var), **_parts())
    told = reasons(batchnorm.fold(context(model, image().float())))
    assert "norm: it did not run on the example" in told
    assert "it calls the function batch_norm" in told


class Weights(nn.Conv2d):
    """Standardises its weights with the function batch_norm, which is no batch norm of features."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.view(1, 4, -1), None, None, training=True).view_as(self.weight)
        return F.conv2d(x, weight, self.bias)


def test_standardised_weights_are_no_batch_norm() -> None:
    x = image()
    assert not batchnorm.fold(context(nn.Sequential(Weights(3, 4, 3)).double(), x))
    model = settled(nn.Sequential(Weights(3, 4, 3), BatchNorm2d(4)), x)
    assert "0 (Weights) does more than its convolution" in reasons(batchnorm.fold(context(model, x)))


class Masked(nn.Conv2d):
    """Convolves with part of its weights, as networks with random connections do."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.register_buffer("mask", (torch.arange(108) % 3 > 0).view(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.mul(self.mask), self.bias)


class NoBias(nn.Conv2d):
    """Knows no bias: what a fold puts there is never added."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)


class Padding(nn.Conv2d):
    """Pads by itself, on some sizes (as TensorFlow's "same")."""

    def forward(self, x: Tensor) -> Tensor:
        more = -x.shape[-1] % 2
        return F.conv2d(F.pad(x, (0, more, 0, more)), self.weight, self.bias, self.stride)


def test_a_forward_of_its_own_is_tried() -> None:
    x = image(size=8)
    check_fold(settled(nn.Sequential(Masked(), BatchNorm2d(4)), x), x)
    model = settled(nn.Sequential(NoBias(3, 4, 3, bias=False), BatchNorm2d(4)), x)
    assert "0 (NoBias) does more than its convolution" in reasons(batchnorm.fold(context(model, x)))
    check_fold(settled(nn.Sequential(Padding(3, 4, 2, stride=2), BatchNorm2d(4)), x), x)
    model = settled(nn.Sequential(BatchNorm2d(3), Padding(3, 4, 2, stride=2)), x)
    assert "Padding may pad in a forward of its own" in reasons(batchnorm.fold(context(model, x)))
    check_fold(settled(nn.Sequential(BatchNorm2d(3), Padding(3, 4, 1, stride=2)), x), x)


class Octave(nn.Conv2d):
    """Gives two tensors, and its second call in a network takes two."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = F.conv2d(x, self.weight, self.bias) + (0 if y is None else y)
        return z[:, :2], z[:, 2:]


class Tuple(nn.Conv2d):
    """Called alone, as a trial does, it gives no tensor but a tuple."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, None]:
        y = F.conv2d(x, self.weight, self.bias)
        return y if x.shape[0] > 2 else (y, None)


def test_layers_of_several_tensors_are_refused() -> None:
    x = image()
    model = Net(lambda m, x: m.norm(m.conv(x)[0]), conv=Octave(3, 4, 3), norm=BatchNorm2d(2)).double().eval()
    assert "does not map one tensor to one" in reasons(batchnorm.fold(context(model, x)))
    single = Net(lambda m, x: m.norm(m.conv(x)), conv=Tuple(3, 4, 3), norm=BatchNorm2d(4)).double().eval()
    assert "conv (Tuple) does more than its convolution" in reasons(batchnorm.fold(context(single, x)))
    model = Net(
        lambda m, x: F.relu(m.conv(x, output_size=[17, 17])), conv=nn.ConvTranspose2d(3, 4, 3, stride=2)
    ).double()
    proposals = batchnorm.apply(context(model, x[..., :8]), batchnorm.Options(init="fresh"))
    assert "conv takes or gives more than one tensor" in reasons(proposals)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_separable_layers_of_ours_fold(multiplier: int) -> None:
    x = image()
    layer = separable.SeparableConv2d(3, 5, 5, depth_multiplier=multiplier)
    check_fold(settled(nn.Sequential(layer, BatchNorm2d(5), nn.ReLU()), x), x)
    depthwise = separable.DepthwiseConv2d(3, 5, depth_multiplier=multiplier)
    norms = (BatchNorm2d(3), BatchNorm2d(3 * multiplier))
    check_fold(settled(nn.Sequential(norms[0], depthwise, norms[1], nn.ReLU()), x), x)
