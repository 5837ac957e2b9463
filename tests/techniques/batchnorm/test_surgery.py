"""Batch norms into a network, out of it, and into its convolutions."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.contract import Context, Edit, Refusal
from leanconv.graph import record
from leanconv.rewrite import rewrite
from leanconv.techniques import batchnorm
from leanconv.techniques.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, Options
from leanconv_tests import close

NORMS = {
    1: (BatchNorm1d, nn.BatchNorm1d),
    2: (BatchNorm2d, nn.BatchNorm2d),
    3: (BatchNorm3d, nn.BatchNorm3d),
}


class Net(nn.Module):
    """Parts and a forward of them, to write down one situation each."""

    def __init__(self, forward: Callable[["Net", Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def image(n: int = 4, c: int = 3, size: int = 8) -> Tensor:
    return torch.randn(n, c, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def context(model: nn.Module, x: Tensor, batches: list[Tensor] | None = None) -> Context:
    return Context(model, record(model, x), batches)


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """In float64, with statistics and parameters away from their start, in eval."""
    model = model.double().train()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    for _ in range(3):
        model(x)
    return model.eval()


def edits(proposals: list[Edit | Refusal]) -> list[Edit]:
    return [p for p in proposals if isinstance(p, Edit)]


def reasons(proposals: list[Edit | Refusal]) -> str:
    return "; ".join(f"{p.path}: {p.why}" for p in proposals if isinstance(p, Refusal))


def check_fold(model: nn.Module, x: Tensor, count: int = 1) -> nn.Module:
    proposals = batchnorm.fold(context(model, x))
    assert len(edits(proposals)) == count, reasons(proposals)
    folded = rewrite(model, proposals).model
    want, got = model(x), folded(x)
    assert (got - want).abs().max() <= 1e-10 * want.abs().max()
    assert not any(isinstance(m, batchnorm.LAYERS) for m in folded.modules()) or count == 0
    return folded


# --- apply -----------------------------------------------------------------------------------------------------------


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.MaxPool2d(2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(24, 8),
        nn.ReLU(),
        nn.Linear(8, 2),
    ).double()


@pytest.mark.source("S10")
def test_it_stands_before_the_activation() -> None:
    model = plain()
    result = rewrite(model, batchnorm.apply(context(model, image()), Options(init="fresh")))
    kinds = [s.kind for s in record(result.model, image()).steps]
    assert kinds == [
        *("Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "MaxPool2d", "SiLU", "Flatten"),
        *("Linear", "BatchNorm1d", "ReLU", "Linear"),
    ]
    assert result.model[0][0].bias is None, "the bias is cancelled, so it is dropped"
    assert model[0].bias is not None, "not in the user's network"
    assert result.keys["0.0.weight"] == "0.weight"
    assert not edits(batchnorm.apply(context(result.model, image()), Options(init="fresh")))


@pytest.mark.source("S9a")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_keep_keeps_the_outputs(dtype: torch.dtype) -> None:
    model, x = plain().to(dtype).eval(), image().to(dtype)
    proposals = batchnorm.apply(context(model, x, [x, 3 * x + 1]), Options(init="keep"))
    assert {e.claim for e in edits(proposals)} == {"exact"}
    got, want = rewrite(model, proposals).model(x), model(x)
    close(got, want, copy.deepcopy(model).double()(x.double()))
    if dtype == torch.float64:
        assert torch.allclose(got, want, rtol=1e-10)


def test_keep_without_batches_is_refused() -> None:
    proposals = batchnorm.apply(context(plain(), image()), Options(init="keep"))
    assert not edits(proposals)
    assert "0: init='keep' calibrates on batches: give some" in reasons(proposals)


def test_functional_activations_and_other_dimensions() -> None:
    cases = [
        (nn.Conv1d(3, 4, 3), torch.randn(4, 3, 9), BatchNorm1d),
        (nn.Conv3d(3, 4, 3), torch.randn(2, 3, 5, 5, 5), BatchNorm3d),
        (nn.ConvTranspose2d(3, 4, 3), torch.randn(2, 3, 5, 5), BatchNorm2d),
    ]
    for conv, x, kind in cases:
        model = Net(lambda m, x: F.relu_(m.conv(x)), conv=conv)
        result = rewrite(model, batchnorm.apply(context(model, x), Options(init="fresh", eps=1e-3, momentum=0.2)))
        norm = result.model.conv[1]
        assert isinstance(norm, kind)
        assert (norm.eps, norm.momentum) == (1e-3, 0.2)


REFUSED = {
    "called twice": (lambda m, x: F.relu(m.conv(F.relu(m.conv(x)))), "conv is called 2 times"),
    "a sum before it": (lambda m, x: F.relu(m.conv(x) + x), "the step before it is add, not a convolution or Linear"),
    "used elsewhere": (lambda m, x: (lambda y: F.relu(y) + y)(m.conv(x)), "the output is used more than once"),
    "a gate": (lambda m, x: x * torch.sigmoid(m.conv(x)), "it is a gate: its output multiplies"),
    "weight read": (lambda m, x: F.relu(m.conv(x)) * m.conv.weight.sum(), "conv.weight is read by a function too"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_apply_refuses_with_a_reason(case: str) -> None:
    forward, reason = REFUSED[case]
    proposals = batchnorm.apply(
        context(Net(forward, conv=nn.Conv2d(3, 3, 3, padding=1).double()), image()), Options(init="fresh")
    )
    assert not edits(proposals)
    assert reason in reasons(proposals)


def test_linear_over_sequences_is_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.GELU())
    proposals = batchnorm.apply(context(model, torch.randn(2, 7, 5)), Options(init="fresh"))
    assert "whose channels are not in dimension 1" in reasons(proposals)


def test_without_a_graph_it_says_so() -> None:
    for proposals in (
        batchnorm.apply(Context(plain()), Options()),
        batchnorm.fold(Context(nn.Sequential(BatchNorm2d(3)))),
    ):
        assert "give an example input" in reasons(proposals)


def test_ties_survive() -> None:
    conv, twin = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    twin.weight = conv.weight
    model = nn.Sequential(conv, nn.ReLU(), nn.Sigmoid(), twin).double()
    proposals = batchnorm.apply(context(model, image()), Options(init="fresh"))
    assert len(edits(proposals)) == 1, reasons(proposals)
    result = rewrite(model, proposals)
    assert result.model[0][0].weight is result.model[3].weight


# --- remove ----------------------------------------------------------------------------------------------------------


def test_remove_keeps_the_activation_inside() -> None:
    x = image()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4, activation="relu"), nn.BatchNorm2d(4)).double().eval()
    removed = rewrite(model, batchnorm.remove(context(model, x))).model
    assert [type(m) for m in removed] == [nn.Conv2d, nn.ReLU, nn.Identity]
    assert torch.equal(removed(x), F.relu(model[0](x)))


def test_remove_a_norm_under_two_paths() -> None:
    norm = BatchNorm2d(3)
    model = Net(lambda m, x: m.b(m.a(x)), a=norm, b=norm).double()
    removed = rewrite(model, batchnorm.remove(context(model, image()))).model
    assert torch.equal(removed(image()), image())


# --- fold ------------------------------------------------------------------------------------------------------------


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
    "network input": (lambda m, x: m.conv(m.norm(x)), _parts, "it normalises the network's input"),
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
