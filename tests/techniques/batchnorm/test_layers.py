"""The layers against a plain float64 reference, torch and table 2-1."""

import copy
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leanconv import _native
from leanconv.errors import Error
from leanconv.techniques.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, algorithm1
from leanconv_tests import close

PAIRS = {
    2: (BatchNorm1d, nn.BatchNorm1d),
    3: (BatchNorm1d, nn.BatchNorm1d),
    4: (BatchNorm2d, nn.BatchNorm2d),
    5: (BatchNorm3d, nn.BatchNorm3d),
}
SHAPES = [(6, 3), (4, 3, 5), (4, 1, 3, 4), (3, 5, 1, 7), (3, 5, 7, 1), (2, 600, 2, 2), (2, 3, 2, 3, 4), (2, 2, 1, 1, 3)]


def reference(x: Tensor, gamma: Tensor, beta: Tensor, dy: Tensor, eps: float = 1e-5) -> tuple[Tensor, ...]:
    """Channel by channel in float64: y and the gradients of x, gamma and beta, as the paper's section 3 writes them."""
    x, gamma, beta, dy = (t.double() for t in (x, gamma, beta, dy))
    y, dx, dgamma, dbeta = torch.empty_like(x), torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(beta)
    for c in range(x.shape[1]):
        v, g = x[:, c], dy[:, c]
        m = v.numel()
        mu = v.sum() / m
        var = ((v - mu) ** 2).sum() / m
        x_hat = (v - mu) / math.sqrt(var + eps)
        y[:, c] = gamma[c] * x_hat + beta[c]
        dx_hat = g * gamma[c]
        dvar = (dx_hat * (v - mu)).sum() * -0.5 * (var + eps) ** -1.5
        dmu = -dx_hat.sum() / math.sqrt(var + eps) + dvar * (-2 * (v - mu)).sum() / m
        dx[:, c] = dx_hat / math.sqrt(var + eps) + dvar * 2 * (v - mu) / m + dmu / m
        dgamma[c], dbeta[c] = (g * x_hat).sum(), g.sum()
    return y, dx, dgamma, dbeta


def pair(shape: tuple[int, ...], **options: object) -> tuple[nn.Module, nn.Module]:
    kinds = PAIRS[len(shape)]
    ours, torchs = (kind(shape[1], **options) for kind in kinds)
    for layer in (ours, torchs):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            layer.weight.copy_(torch.rand(shape[1], generator=generator) + 0.5)
            layer.bias.copy_(torch.randn(shape[1], generator=generator))
    return ours, torchs


def run(layer: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    return y.detach(), *torch.autograd.grad(y, (x, layer.weight, layer.bias), dy)


def compare(shape: tuple[int, ...], mean: float = 0.0, channels_last: bool = False, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) + mean
    dy = torch.randn(shape, generator=generator)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    ours, torchs = pair(shape)
    (y, dx, *sums), (y2, dx2, *sums2) = run(ours, x, dy), run(torchs, x, dy)
    ref_y, ref_dx, *ref_sums = reference(x, ours.weight, ours.bias, dy)
    close(y, y2, ref_y)
    close(dx, dx2, ref_dx)
    # A sum that happens to be near zero is measured against the size that such sums have.
    size = math.sqrt(x.numel() / x.shape[1])
    for a, b, r in zip(sums, sums2, ref_sums, strict=True):
        close(*(torch.cat([t, t.new_tensor([size])]) for t in (a, b, r)))
    ref_mean = torch.stack([x[:, c].double().mean() for c in range(shape[1])])
    ref_var = torch.stack([x[:, c].double().var(correction=1) for c in range(shape[1])])
    means = (ours.running_mean, torchs.running_mean, 0.1 * ref_mean)
    variances = (ours.running_var, torchs.running_var, 0.9 + 0.1 * ref_var)
    close(*(torch.cat(both) for both in zip(means, variances, strict=True)))
    close(*variances)
    assert ours.num_batches_tracked == torchs.num_batches_tracked == 1


@pytest.mark.source("S8")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_backward_and_running_statistics(shape: tuple[int, ...], channels_last: bool) -> None:
    compare(shape, channels_last=channels_last)


@pytest.mark.source("S8")
@settings(deadline=None, max_examples=30)
@given(
    st.tuples(st.integers(2, 5), st.integers(1, 9)),
    st.lists(st.integers(1, 6), max_size=3),
    st.sampled_from([0.0, 3.0, 100.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_shape(start: tuple[int, int], rest: list[int], mean: float, last: bool, seed: int) -> None:
    # With two or three values per channel dx is a difference of equal terms: only rounding is left to compare.
    assume(start[0] * math.prod(rest) >= 8)
    compare((*start, *rest), mean, last, seed)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("native", ["0", "1"] if _native.available() else ["0"])
def test_a_mean_of_10_000_keeps_its_digits(channels_last: bool, native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANCONV_NATIVE", native)  # left to leanconv, a map as small as this is torch's
    compare((8, 4, 28, 28), 1e4, channels_last)
    x = torch.randn(8, 4, 28, 28, generator=torch.Generator().manual_seed(0)) + 1e4
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    want = reference(x, torch.ones(4), torch.zeros(4), torch.zeros_like(x))[0]
    assert (BatchNorm2d(4)(x).double() - want).abs().max() < 1e-5, "one pass with E[x^2] - E[x]^2 is off by 1 and more"


@pytest.mark.source("S8")
def test_algorithm1_is_the_table_and_what_the_layers_compute() -> None:
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    gamma, beta = torch.rand(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    want = reference(x, gamma, beta, torch.zeros_like(x))[0]
    assert torch.allclose(algorithm1(x, gamma, beta, 1e-5), want, rtol=1e-12)
    layer = BatchNorm2d(4, dtype=torch.float64)
    assert torch.equal(layer.weight, torch.ones(4, dtype=torch.float64)), "step 1: gamma = 1"
    assert torch.equal(layer.bias, torch.zeros(4, dtype=torch.float64)), "step 1: beta = 0"
    assert torch.allclose(layer(x), algorithm1(x), rtol=1e-12)


def test_algorithm1_says_what_does_not_fit() -> None:
    with pytest.raises(Error, match=r"^algorithm1: x must be a batch .* got shape \(3,\)$"):
        algorithm1(torch.randn(3))
    with pytest.raises(Error, match=r"^algorithm1: gamma must have one value per channel \(4,\), got \(3,\)$"):
        algorithm1(torch.randn(2, 4), torch.ones(3))


@pytest.mark.source("S25")
def test_two_moments_are_fixed_and_the_shape_passes_through() -> None:
    x = torch.rand(64, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) ** 3 * 7 + 4
    y = BatchNorm2d(3, eps=0.0, dtype=torch.float64)(x).detach()

    def moment(t: Tensor, power: int) -> Tensor:
        centred = t - t.mean((0, 2, 3), keepdim=True)
        return (centred**power).mean((0, 2, 3)) / (centred**2).mean((0, 2, 3)) ** (power / 2)

    assert torch.allclose(y.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-13)
    assert torch.allclose((y**2).mean((0, 2, 3)), torch.ones(3, dtype=torch.float64), rtol=1e-12)
    for power in (3, 4):
        assert torch.allclose(moment(x, power), moment(y, power), rtol=1e-10), "skew and kurtosis are not changed"
    assert moment(y, 3).min() > 0.5, "so the output is no normal distribution"


@pytest.mark.source("S9a")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gamma_and_beta_restore_the_original_scale(dtype: torch.dtype) -> None:
    x = (torch.randn(16, 5, 6, 6, dtype=torch.float64) * 3 + 7).to(dtype)
    ours, torchs = BatchNorm2d(5, dtype=dtype), nn.BatchNorm2d(5, dtype=dtype)
    z = x.double()
    for layer in (ours, torchs):
        with torch.no_grad():
            layer.weight.copy_((z.var((0, 2, 3), correction=0) + layer.eps).sqrt())
            layer.bias.copy_(z.mean((0, 2, 3)))
    close(ours(x), torchs(x), z)
    if dtype == torch.float64:
        assert torch.allclose(ours(x), x, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("half_layer", [False, True])
def test_half_precision_takes_its_statistics_in_float32(dtype: torch.dtype, half_layer: bool) -> None:
    x = (torch.randn(8, 6, 10, 10, generator=torch.Generator().manual_seed(3)) + 20).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    dy = torch.randn_like(x)
    ours, torchs = pair(x.shape)
    if half_layer:
        ours, torchs = ours.to(dtype), torchs.to(dtype)
    ref = reference(x, ours.weight, ours.bias, dy)
    for a, b, r in zip(run(ours, x, dy), run(torchs, x, dy), ref, strict=True):
        close(a, b, r)
    assert ours(x).dtype == dtype


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 4), (2, 3, 2, 3), (2, 2, 2, 1, 2)], ids=str)
def test_first_and_second_gradients(shape: tuple[int, ...], train: bool) -> None:
    layer = PAIRS[len(shape)][0](shape[1], dtype=torch.float64).train(train)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gamma, beta = (torch.randn(shape[1], dtype=torch.float64, requires_grad=True) for _ in range(2))

    def function(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        layer.__dict__["_parameters"] = {"weight": gamma, "bias": beta}
        y: Tensor = layer(x)
        return y

    assert torch.autograd.gradcheck(function, (x, gamma, beta))
    assert torch.autograd.gradgradcheck(function, (x, gamma, beta))


def test_second_gradients_in_half_precision_do_not_forget_the_input() -> None:
    x = torch.randn(16, 3).bfloat16().requires_grad_()
    (dx,) = torch.autograd.grad((BatchNorm1d(3)(x).float() ** 3).sum(), x, create_graph=True)
    z = x.detach().double().requires_grad_()
    (dz,) = torch.autograd.grad((algorithm1(z) ** 3).sum(), z, create_graph=True)
    (ddx,), (ddz,) = torch.autograd.grad(dx.float().square().sum(), x), torch.autograd.grad(dz.square().sum(), z)
    assert (ddx.double() - ddz).abs().max() < 0.1 * ddz.abs().max()


@pytest.mark.parametrize("wanted", ["x", "gamma", "beta"])
@pytest.mark.parametrize("train", [True, False])
def test_only_the_gradient_that_is_asked_for(wanted: str, train: bool) -> None:
    x, dy = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    ours, torchs = (layer.train(train) for layer in pair(x.shape))
    got = []
    for layer in (ours, torchs):
        leaves = {"x": x.clone(), "gamma": layer.weight, "beta": layer.bias}
        for name, leaf in leaves.items():
            leaf.requires_grad_(name == wanted)
        got += torch.autograd.grad(layer(leaves["x"]), leaves[wanted], dy)
    assert torch.allclose(got[0], got[1], atol=1e-5)


@pytest.mark.parametrize("momentum", [0.3, 0.0, 1.0, None])
def test_running_statistics_are_torchs(momentum: float | None) -> None:
    ours, torchs = BatchNorm2d(3, momentum=momentum), nn.BatchNorm2d(3, momentum=momentum)
    for i in range(4):
        x = torch.randn(5, 3, 4, 4) * (i + 1) + i
        ours(x), torchs(x)
    assert torch.allclose(ours.running_mean, torchs.running_mean, rtol=1e-5)
    assert torch.allclose(ours.running_var, torchs.running_var, rtol=1e-5)
    assert torch.allclose(ours.eval()(x), torchs.eval()(x), atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_state_dict_loads_both_ways(affine: bool, tracks: bool) -> None:
    options = {"affine": affine, "track_running_stats": tracks}
    ours, torchs = BatchNorm2d(3, **options), nn.BatchNorm2d(3, **options)
    assert [(k, v.shape, v.dtype) for k, v in ours.state_dict().items()] == [
        (k, v.shape, v.dtype) for k, v in torchs.state_dict().items()
    ]
    x = torch.randn(5, 3, 4, 4)
    torchs(x)
    ours.load_state_dict(torchs.state_dict())
    torchs.load_state_dict(ours.state_dict())
    assert torch.allclose(ours.eval()(x), torchs.eval()(x), atol=1e-5)
    assert torch.allclose(ours.train()(x), torchs.train()(x), atol=1e-5)


def test_an_old_checkpoint_without_a_batch_count_loads() -> None:
    state = {k: v for k, v in nn.BatchNorm1d(3).state_dict().items() if k != "num_batches_tracked"}
    BatchNorm1d(3).load_state_dict(state)


def test_channels_last_stays_and_so_do_other_strides() -> None:
    x = torch.randn(4, 6, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = BatchNorm2d(6)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.is_contiguous(memory_format=torch.channels_last)
    odd = torch.randn(5, 6, 4, 5).transpose(0, 2)[:, :, ::2]
    assert torch.allclose(BatchNorm2d(6)(odd), nn.BatchNorm2d(6)(odd), atol=1e-5)
    volume = torch.randn(2, 6, 3, 4, 5).to(memory_format=torch.channels_last_3d)
    assert BatchNorm3d(6)(volume).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    ("activation", "module"),
    [
        ("relu", nn.ReLU()),
        ("relu6", nn.ReLU6()),
        ("hardswish", nn.Hardswish()),
        ("silu", nn.SiLU()),
        (torch.tanh, nn.Tanh()),
    ],
)
def test_activation(activation: object, module: nn.Module) -> None:
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    ours, torchs = BatchNorm2d(3, activation=activation), nn.Sequential(nn.BatchNorm2d(3), module)
    got = torch.autograd.grad(ours(x).square().sum(), x)[0]
    want = torch.autograd.grad(torchs(x).square().sum(), x)[0]
    assert torch.allclose(ours(x), torchs(x), atol=1e-5)
    assert torch.allclose(got, want, atol=1e-4)


def test_one_value_per_channel() -> None:
    one = torch.full((1, 3, 1, 1), 2.0)
    with pytest.raises(Error, match=r"^BatchNorm2d: training needs more than one value per channel, got shape"):
        BatchNorm2d(3)(one)
    layer = BatchNorm2d(3, on_single="running")
    layer(torch.randn(4, 3, 2, 2))
    before = copy.deepcopy(layer.state_dict())
    y = layer(one)
    assert torch.allclose(y, copy.deepcopy(layer).eval()(one))
    assert all(torch.equal(v, layer.state_dict()[k]) for k, v in before.items())
    assert BatchNorm2d(3).eval()(one).shape == one.shape


def test_an_empty_batch_leaves_everything_alone() -> None:
    layer = BatchNorm2d(3)
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.running_var, torch.ones(3))


def test_checkpointing_counts_a_batch_once() -> None:
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    once, twice = BatchNorm2d(3), BatchNorm2d(3)
    want = torch.autograd.grad(once(x).square().sum(), x)[0]
    got = torch.autograd.grad(checkpoint(twice, x, use_reentrant=False).square().sum(), x)[0]
    assert torch.allclose(got, want)
    assert torch.equal(once.running_mean, twice.running_mean)
    assert twice.num_batches_tracked == 1


def test_eval_backward_survives_a_later_training_step() -> None:
    layer = BatchNorm2d(3).eval()
    x = torch.randn(4, 3, 5, 5).bfloat16().requires_grad_()
    y = layer(x)
    layer.train()(x.detach())
    y.sum().backward()
    assert x.grad is not None


def test_autocast_inference_mode_and_function_transforms() -> None:
    layer, other = BatchNorm2d(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32
        assert torch.allclose(layer(x), other(x), atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(layer(x), other(x), atol=1e-5)
    got = torch.func.grad(lambda x: layer.eval()(x).square().sum())(x)
    want = torch.func.grad(lambda x: other.eval()(x).square().sum())(x)
    assert torch.allclose(got, want, rtol=0.1, atol=0.1)
    free = BatchNorm2d(3, track_running_stats=False)
    each = torch.func.vmap(free)(x.unsqueeze(1).expand(-1, 2, -1, -1, -1))
    assert torch.allclose(each[0, 0], algorithm1(x[:1])[0], atol=1e-5)


def test_deepcopy_and_repr() -> None:
    layer = BatchNorm2d(3, activation="relu")
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(x), twin(x))
    assert "activation='relu'" in repr(layer)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_features": 0}, "num_features must be an integer >= 1, got num_features=0"),
        ({"eps": -1e-5}, "eps must be a finite number >= 0, got eps=-1e-05"),
        ({"eps": float("nan")}, "eps must be a finite number >= 0, got eps=nan"),
        ({"momentum": 1.5}, "momentum must satisfy 0 <= momentum <= 1 or be None, got momentum=1.5"),
        ({"on_single": "skip"}, "on_single must be 'raise' or 'running', got on_single='skip'"),
        ({"activation": "swish"}, "activation must be one of .*, a function or None, got activation='swish'"),
        ({"activation": nn.ReLU()}, r"activation must be one of .*, got activation=ReLU\(\)"),
        ({"on_single": "running", "track_running_stats": False}, "on_single='running' needs running statistics"),
    ],
)
def test_bad_arguments(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(Error, match=f"^BatchNorm2d: {sentence}"):
        BatchNorm2d(**({"num_features": 3} | options))


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(2, 3), r"input must be 4-D, got shape \(2, 3\)"),
        (torch.zeros(2, 4, 5, 5), r"input must have 3 channels in dimension 1, got shape \(2, 4, 5, 5\)"),
        (torch.zeros(2, 3, 5, 5, dtype=torch.long), "input must be of a floating point dtype, got torch.int64"),
    ],
)
def test_bad_inputs(x: Tensor, sentence: str) -> None:
    with pytest.raises(Error, match=f"^BatchNorm2d: {sentence}$"):
        BatchNorm2d(3)(x)


@pytest.mark.slow
def test_torch_compile() -> None:
    layer = BatchNorm2d(3, activation="relu")
    other = copy.deepcopy(layer)
    fast = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    got, want = fast(x), other(x)
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.allclose(
        torch.autograd.grad(got.square().sum(), x)[0], torch.autograd.grad(want.square().sum(), x)[0], atol=1e-4
    )
    assert torch.allclose(layer.running_var, other.running_var)
    exported = torch.export.export(other.eval(), (x.detach(),)).module()
    assert torch.allclose(exported(x.detach()), other(x.detach()), atol=1e-5)
