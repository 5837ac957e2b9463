"""The layers: what they compute, in every shape, dtype and place that torch offers."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leanconv import Error
from leanconv.techniques.dropout import (
    DropBlock2d,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    StochasticDepth,
    dropout_reference,
    keyed,
)
from leanconv_tests import close

LAYERS = [
    pytest.param(lambda **k: Dropout(0.4, **k), (6, 5, 4, 3), id="Dropout"),
    pytest.param(lambda **k: Dropout(0.4, **k), (6, 11), id="Dropout-features"),
    pytest.param(lambda **k: Dropout1d(0.4, **k), (6, 5, 4), id="Dropout1d"),
    pytest.param(lambda **k: Dropout2d(0.4, **k), (6, 5, 4, 3), id="Dropout2d"),
    pytest.param(lambda **k: Dropout3d(0.4, **k), (6, 5, 4, 3, 2), id="Dropout3d"),
    pytest.param(lambda **k: DropBlock2d(0.3, 2, **k), (6, 3, 5, 4), id="DropBlock2d"),
    pytest.param(lambda mask="sample": StochasticDepth(0.4, _MODE[mask]), (6, 3, 2), id="StochasticDepth"),
]
_MODE = {"sample": "row", "batch": "batch"}
UNITS = LAYERS[:5]


def _input(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def _mask(layer: nn.Module, shape: tuple[int, ...], step: int = 0, offset: int = 0) -> Tensor:
    with keyed(3, step, offset):
        layer.train()(torch.ones(shape))
    mask: Tensor = layer.last_mask
    return mask


@pytest.mark.source("S3")
@pytest.mark.parametrize("mask", ["sample", "batch"])
@pytest.mark.parametrize(("make", "shape"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_output_and_gradient_are_mask_times_scale(make, shape, mask, dtype) -> None:
    layer, x = make(mask=mask).train(), _input(shape, dtype).requires_grad_()
    with keyed(0, 0):
        y = layer(x)
    keep = layer.last_mask
    scale = torch.as_tensor(layer._scale(shape, keep), dtype=torch.float64)
    assert keep.dtype == torch.bool
    assert not keep.all()
    ref = torch.zeros(shape, dtype=torch.float64)
    for i in itertools.product(*map(range, shape)):
        kept, s = keep.expand(shape)[i], scale.expand(shape)[i]
        ref[i] = x.detach()[i].double() * s if kept else 0.0
    torchs = x.detach() * keep * scale.to(dtype)
    close(y.detach(), torchs, ref)
    close(dropout_reference(x.detach(), keep, scale.to(dtype)), torchs, ref)
    g = _input(shape, dtype).flip(0)
    y.backward(g)
    close(x.grad, g * keep * scale.to(dtype), torch.where(keep, g.double() * scale, 0.0))
    assert (y[~keep.expand(shape)] == 0).all()
    assert (x.grad[~keep.expand(shape)] == 0).all()


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_gradcheck(make, shape) -> None:
    layer, x = make().train(), _input(shape, torch.float64).requires_grad_()

    def run(x: Tensor) -> Tensor:
        with keyed(0, 0):
            y: Tensor = layer(x)
        return y

    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(run, x)


@pytest.mark.source("S2")
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_a_batch_mask_is_one_for_all_samples_and_another_in_each_step(make, shape) -> None:
    layer = make(mask="batch")
    first, second = (_mask(layer, shape, step) for step in range(2))
    assert first.shape[0] == second.shape[0] == 1
    masks = {tuple(_mask(layer, shape, step).flatten().tolist()) for step in range(20)}
    assert len(masks) > 1 if isinstance(layer, StochasticDepth) else len(masks) > 8
    y = layer(torch.ones(shape))
    assert all(torch.equal(y[i] != 0, y[0] != 0) for i in range(shape[0]))


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_a_sample_mask_differs_between_samples(make, shape) -> None:
    mask = _mask(make(), shape)
    assert mask.shape[0] == shape[0]
    assert len({tuple(row.flatten().tolist()) for row in mask}) > 1


def test_channel_forms_stop_whole_channels() -> None:
    for layer, shape in ((Dropout1d(), (4, 9, 5)), (Dropout2d(), (4, 9, 5, 3)), (Dropout3d(), (4, 9, 5, 3, 2))):
        y = layer(torch.ones(shape)).flatten(2)
        assert torch.equal(y, y[..., :1].expand_as(y))
        assert (y == 0).any()
        assert (y != 0).any()


def test_one_sample_without_a_batch() -> None:
    for layer, shape in (
        (Dropout(), (9,)),
        (Dropout1d(), (9, 5)),
        (Dropout2d(), (9, 5, 3)),
        (Dropout3d(), (9, 5, 3, 2)),
    ):
        batched = _mask(layer, (1, *shape))
        assert torch.equal(_mask(layer, shape), batched[0])
        assert layer(torch.ones(shape)).shape == shape
    block = DropBlock2d(0.3, 2)
    assert torch.equal(_mask(block, (4, 6, 6)), _mask(block, (1, 4, 6, 6))[0])


@pytest.mark.parametrize("mask", ["sample", "batch"])
@pytest.mark.parametrize(("make", "shape"), UNITS)
@settings(deadline=None, max_examples=8)
@given(p=st.floats(0.01, 0.99))
def test_exact_counts(make, shape, mask, p) -> None:
    layer = make(mask=mask, count="exact")
    layer.p = p
    mask = _mask(layer, shape)
    units = mask[0].numel()
    stopped = max(0, min(round(p * units), units - 1))
    assert ((~mask).flatten(1).sum(1) == stopped).all()
    with keyed(3, 0):
        y = layer(torch.ones(shape))
    assert y[y != 0].unique().tolist() == pytest.approx([units / (units - stopped)])


@pytest.mark.source("S2")
@pytest.mark.parametrize("mask", ["sample", "batch"])
@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_never_all_units_stop(make, shape, mask) -> None:
    for count in ("bernoulli", "exact"):
        layer = make(mask=mask, count=count)
        layer.p = 0.999
        for step in range(10):
            assert _mask(layer, shape, step).flatten(1).any(1).all()


def test_a_single_unit_is_always_kept_and_not_scaled() -> None:
    for layer in (Dropout(0.9), Dropout(0.9, "batch", "exact"), Dropout2d(0.9)):
        x = torch.randn((5, 1) if type(layer) is Dropout else (5, 1, 3, 3))
        assert torch.equal(layer(x), x)


def test_a_block_that_is_the_whole_map_leaves_it_whole() -> None:
    layer, x = DropBlock2d(0.9, 7), torch.randn(50, 1, 4, 4)
    assert torch.equal(layer(x), x)
    layer, x = DropBlock2d(0.9, 7), torch.randn(400, 2, 4, 4)  # both channels at once: 0.9 * 0.9
    kept = layer(x).flatten(1).count_nonzero(1)
    assert set(kept.tolist()) == {16, 32}


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_no_samples_or_no_elements(make, shape) -> None:
    for empty in ((0, *shape[1:]), (shape[0], 0, *shape[2:])):
        x = torch.zeros(empty, requires_grad=True)
        for mask in ("sample", "batch"):
            y = make(mask=mask)(x)
            assert y.shape == empty
            y.sum().backward()


def test_an_empty_share_of_a_batch_leaves_the_next_layers_masks_alone() -> None:
    """A rank without samples still makes its draw, so that all ranks agree on the next batch mask."""
    first, second = Dropout(0.5), Dropout(0.5, "batch")
    masks = []
    for samples in (0, 4):
        with keyed(1, 1):
            second(first(torch.ones(samples, 20)))
        masks.append(second.last_mask)
    assert torch.equal(*masks)


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_eval_is_the_identity(make, shape) -> None:
    layer, x = make(), _input(shape)
    layer(x)
    before = torch.get_rng_state()
    assert layer.eval()(x) is x
    assert layer.last_mask is None
    assert torch.equal(before, torch.get_rng_state())
    layer.train()
    assert layer.last_mask is None


@pytest.mark.parametrize("layer", [Dropout(0.0), Dropout2d(0), DropBlock2d(0.0), StochasticDepth(0.0)])
def test_p_zero_is_the_identity(layer) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert layer(x) is x
    assert layer.last_mask is None


def test_tiny_p() -> None:
    """Below half a step of the 16-bit threshold nothing stops and nothing is scaled; just above, one in 65,536."""
    x = torch.ones(4, 65536)
    assert torch.equal(Dropout(1e-6)(x), x)
    y = Dropout(1.2e-5)(x)
    assert y.max().item() == pytest.approx(65536 / 65535, abs=1e-7)
    assert 0 <= (y == 0).sum() <= 20


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_memory_format_is_kept_and_changes_no_mask(make, shape) -> None:
    if len(shape) < 4:
        return
    x, layer = _input(shape), make()
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    outputs = []
    for memory_format in (torch.contiguous_format, last):
        with keyed(0, 0):
            y = layer(x.contiguous(memory_format=memory_format))
        assert y.is_contiguous(memory_format=memory_format)
        outputs.append(y)
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_no_state_and_copies_without_a_mask(make, shape) -> None:
    layer = make()
    layer(_input(shape))
    assert layer.last_mask is not None
    assert not layer.state_dict()
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(stream, weights_only=False)):
        assert twin.last_mask is None
        assert repr(twin) == repr(layer)
        assert torch.equal(_mask(twin, shape), _mask(layer, shape))


def test_a_mask_made_in_inference_mode_can_be_copied() -> None:
    layer = Dropout(0.5)
    with torch.inference_mode():
        y = layer(torch.ones(3, 8))
    assert torch.equal(y != 0, layer.last_mask)
    copy.deepcopy(layer)


def test_backward_keeps_one_byte_an_element() -> None:
    saved: list[Tensor] = []
    x = torch.randn(8, 64, 4, 4, requires_grad=True)
    for layer in (Dropout(0.5), Dropout(0.5, "batch"), Dropout2d(0.5)):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            layer(x)
        assert sum(t.numel() * t.element_size() for t in saved) <= x.numel()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_recomputes_the_same_mask(reentrant: bool) -> None:
    layer = nn.Sequential(nn.Linear(16, 16), Dropout(0.5), nn.Linear(16, 16), Dropout(0.5, "batch"))
    x = torch.randn(4, 16)
    results = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(7)
        y = run(leaf)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own use of torch.jit
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_compiled_in_one_graph_with_the_same_masks(make, shape, backend) -> None:
    torch._dynamo.reset()
    layer, x = make(), _input(shape)
    compiled_layer = copy.deepcopy(layer)
    compiled = torch.compile(compiled_layer, fullgraph=True, backend=backend)
    for step in range(3):
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        with keyed(0, step):
            layer(leaves[0]).square().sum().backward()
        with keyed(0, step), torch._dynamo.config.patch(error_on_recompile=step > 0):
            compiled(leaves[1]).square().sum().backward()
        assert torch.equal(layer.last_mask, compiled_layer.last_mask)
        torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-6, atol=0)
    assert torch.equal(compiled.eval()(x), x)


def test_compiled_networks_draw_anew_in_each_call() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(nn.Sequential(Dropout(0.5), Dropout(0.5)), fullgraph=True, backend="aot_eager")
    x = torch.ones(4, 64)
    assert not torch.equal(compiled(x), compiled(x))


def test_exports_as_nothing_in_eval() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Dropout2d(0.5), nn.Flatten(), Dropout(0.5)).eval()
    x = torch.randn(2, 3, 5, 5)
    exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x), model(x))
    assert not any("leanconv" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_dtype_and_the_mask_alone(dtype) -> None:
    layer, linear, x = Dropout(0.5), nn.Linear(16, 16), torch.randn(4, 16)
    with torch.autocast("cpu", dtype), keyed(0, 0):
        y = layer(linear(x))
    assert y.dtype == dtype
    with keyed(0, 0):
        layer(linear(x))
    assert torch.equal(y != 0, layer.last_mask)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, at the first jvp
def test_forward_mode_differentiation() -> None:
    layer, x = Dropout(0.5), torch.randn(4, 16)
    with keyed(0, 0):
        _, tangent = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    assert torch.allclose(tangent, layer.last_mask * layer._scale((4, 16), layer.last_mask))


BAD = [
    (lambda: Dropout(1.0), "Dropout: p must satisfy 0 <= p < 1, got p=1.0"),
    (lambda: Dropout(1.5), "Dropout: p must satisfy 0 <= p < 1, got p=1.5"),
    (lambda: Dropout(float("nan")), "Dropout: p must satisfy 0 <= p < 1, got p=nan"),
    (lambda: Dropout(True), "Dropout: p must satisfy 0 <= p < 1, got p=True"),
    (lambda: Dropout("0.5"), "Dropout: p must satisfy 0 <= p < 1, got p='0.5'"),
    (lambda: Dropout2d(-0.1), "Dropout2d: p must satisfy 0 <= p < 1, got p=-0.1"),
    (lambda: Dropout(0.5, "row"), "Dropout: mask must be 'sample' or 'batch', got mask='row'"),
    (lambda: Dropout(0.5, "batch", "poisson"), "Dropout: count must be 'bernoulli' or 'exact', got count='poisson'"),
    (lambda: DropBlock2d(0.1, 0), "DropBlock2d: block_size must be an int of at least 1, got block_size=0"),
    (lambda: DropBlock2d(0.1, 2.0), "DropBlock2d: block_size must be an int of at least 1, got block_size=2.0"),
    (lambda: DropBlock2d(0.1, 7, None), "DropBlock2d: mask must be 'sample' or 'batch', got mask=None"),
    (lambda: StochasticDepth(1), "StochasticDepth: p must satisfy 0 <= p < 1, got p=1"),
    (lambda: StochasticDepth(0.5, "sample"), "StochasticDepth: mode must be 'row' or 'batch', got mode='sample'"),
    (
        lambda: Dropout()(torch.ones(3, dtype=torch.int64)),
        "Dropout: the input must be of a floating dtype, got torch.int64",
    ),
    (lambda: Dropout()(torch.tensor(1.0)), "Dropout: the input must have at least one dimension, got a scalar"),
    (lambda: StochasticDepth(0.5)(torch.tensor(1.0)), "StochasticDepth: the input must have at least one dimension"),
    (
        lambda: Dropout2d()(torch.ones(3, 4)),
        "Dropout2d: the input must have 3 (one sample) or 4 dimensions, got shape (3, 4)",
    ),
    (
        lambda: DropBlock2d()(torch.ones(3, 4)),
        "DropBlock2d: the input must be (N, C, H, W) or (C, H, W), got shape (3, 4)",
    ),
]


@pytest.mark.parametrize(("bad", "sentence"), BAD, ids=[s.split(" must")[0] + str(i) for i, (_, s) in enumerate(BAD)])
def test_bad_input_is_one_sentence(bad, sentence) -> None:
    with pytest.raises(Error) as caught:
        bad()
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("height", "width", "side"), [(8, 8, 3), (9, 5, 4), (6, 11, 1), (4, 4, 7), (10, 7, 2)])
def test_dropblock_stops_whole_blocks_at_the_papers_rate(height: int, width: int, side: int) -> None:
    layer = DropBlock2d(0.2, side)
    b = min(side, height, width)
    assert layer.gamma(height, width) == pytest.approx(
        0.2 / b**2 * (height * width) / ((height - b + 1) * (width - b + 1)), rel=1e-12
    )
    stopped = ~_mask(layer, (40, 16, height, width))
    covered = torch.zeros_like(stopped)
    for i in range(height - b + 1):
        for j in range(width - b + 1):
            whole = stopped[..., i : i + b, j : j + b].flatten(2).all(2)
            covered[..., i : i + b, j : j + b] |= whole[..., None, None]
    assert torch.equal(covered, stopped), "a stopped position belongs to a whole block"
    rows, columns = height - b + 1, width - b + 1
    q = round(layer.gamma(height, width) * 65536) / 65536
    expected = sum(
        1 - (1 - q) ** (min(i + 1, b, rows, height - i) * min(j + 1, b, columns, width - j))
        for i in range(height)
        for j in range(width)
    ) / (height * width)
    assert stopped.float().mean().item() == pytest.approx(expected, abs=0.02)


def test_dropblock_scales_each_sample_by_its_own_count() -> None:
    layer, x = DropBlock2d(0.3, 3), torch.ones(8, 4, 9, 9)
    y = layer(x)
    assert torch.allclose(y.mean((1, 2, 3)), torch.ones(8), atol=1e-6)
    assert torch.equal(y != 0, layer.last_mask)


def test_stochastic_depth_drops_whole_branches() -> None:
    row, batch = StochasticDepth(0.5), StochasticDepth(0.5, "batch")
    x = torch.ones(200, 3, 2)
    kept = (row(x) != 0).flatten(1)
    assert torch.equal(kept.all(1), kept.any(1))
    assert 60 < kept.all(1).sum() < 140
    whole = [bool((batch(x) != 0).all()) for _ in range(40)]
    assert any(whole)
    assert not all(whole)
