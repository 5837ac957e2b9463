from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dropout_networks import NETWORKS, network
from leanconv.errors import Error
from leanconv.graph import record
from leanconv.kernels.keys import keyed
from leanconv.techniques.dropout import compact
from leanconv.techniques.dropout.groups import find
from leanconv.techniques.dropout.layers import DropBlock2d, Dropout, Dropout2d
from leanconv.techniques.dropout.masking import Masking
from leanconv.techniques.dropout.skip import skip
from leanconv.techniques.dropout.strict import strict
from leanconv_tests import close

pytestmark = pytest.mark.source("S3")

WHOLE_UNITS = [name for name in NETWORKS if name not in ("parts", "two_in_one")]


def one_step(model: nn.Module, x: Tensor, seed: int, step: int = 0) -> dict[str, Tensor]:
    """Output, gradients (the input's too), running statistics and masks of one training forward and backward."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    with keyed(seed, step):
        y = model(x)
        y.square().sum().backward()
    found = {"output": y.detach(), "input": x.grad}
    found |= {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    found |= {n: b.clone() for n, b in model.named_buffers() if b.ndim}
    return found


def masks(model: nn.Module) -> dict[str, Tensor]:
    return {n: m.last_mask.reshape(-1) for n, m in model.named_modules() if isinstance(m, Dropout)}


def trio(name: str, seed: int) -> tuple[nn.Module, nn.Module, nn.Module, Tensor]:
    """The network, its masked form in float32 and in float64 (test_strict compares that with a plain sub-network)."""
    model, x = network(name, seed)
    twins = copy.deepcopy(model), copy.deepcopy(model).double()
    for twin in twins:
        Masking(find(record(twin, x.to(next(twin.parameters()).dtype)))[0])
    return model, *twins, x


def same(ours: dict[str, Tensor], torchs: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    """The error rule, entry by entry; gradients are measured against the largest of all, so that one which is zero
    in exact arithmetic (a bias before a batch norm) does not set its own rounding as the scale."""
    assert ours.keys() == reference.keys()
    scale = max(g.abs().max() for k, g in reference.items() if k.startswith("grad"))
    for key in ours:
        unit = [t.new_full((1,), float(scale)) for t in (ours[key], torchs[key], reference[key])]
        parts = [ours[key], torchs[key], reference[key]]
        if key.startswith("grad"):
            parts = [torch.cat([p.reshape(-1), u]) for p, u in zip(parts, unit, strict=True)]
        close(*parts)


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(NETWORKS)), seed=st.integers(0, 10_000), always=st.booleans())
def test_outputs_gradients_and_statistics_are_those_of_the_masked_network(name: str, seed: int, always: bool) -> None:
    model, masked, reference, x = trio(name, seed)
    handle = skip(model, x, always=always)
    assert bool(handle.groups) is (name in WHOLE_UNITS)
    for step in range(2):
        results = [one_step(net, x.to(next(net.parameters()).dtype), seed, step) for net in (model, masked, reference)]
        same(*results)
        assert all(torch.equal(m, masks(masked)[n]) for n, m in masks(model).items())


@pytest.mark.parametrize("name", WHOLE_UNITS)
def test_in_float64_the_difference_is_rounding_alone(name: str) -> None:
    model, x = network(name)
    model, x = model.double(), x.double()
    masked = copy.deepcopy(model)
    Masking(find(record(masked, x))[0])
    skip(model, x, always=True)
    ours, theirs = one_step(model, x, 0), one_step(masked, x, 0)
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-9, atol=1e-12)


def plain(w: dict[str, Tensor], x: Tensor, keep: Tensor, scale: float) -> Tensor:
    """Linear, ReLU, dropout, Linear as loops over the kept hidden units."""
    y = w["3.bias"].expand(len(x), -1)
    for j in keep.nonzero().flatten().tolist():
        hidden = torch.relu(x @ w["0.weight"][j] + w["0.bias"][j]) * scale
        y = y + hidden[:, None] * w["3.weight"][:, j]
    return y


@pytest.mark.parametrize("spread", [1, 10**9])
def test_two_linear_layers_against_loops_over_kept_units(spread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "_SPREAD_FROM", spread)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), Dropout(0.5, "batch", "exact"), nn.Linear(12, 3))
    x = torch.randn(7, 5)
    skip(model, x, always=True)
    ours = one_step(model, x, 1)
    results = []
    for dtype in (torch.float32, torch.float64):
        w = {n: p.detach().to(dtype).requires_grad_() for n, p in model.named_parameters()}
        given = x.to(dtype).requires_grad_()
        y = plain(w, given, masks(model)["2"], 2.0)
        gradients = torch.autograd.grad(y.square().sum(), [given, *w.values()])
        results.append(dict(zip(["output", "input", *(f"grad {n}" for n in w)], [y.detach(), *gradients], strict=True)))
    for key, value in ours.items():
        close(value, results[0][key], results[1][key])


def work(model: nn.Module, x: Tensor) -> int:
    """Floating point operations of products and convolutions in one forward."""
    with FlopCounterMode(display=False) as counter, keyed(0, 0):
        model(x)
    return counter.get_total_flops()


def test_stopped_units_are_not_computed() -> None:
    """Three of six channels leave: half of the first product, a quarter of nothing else; counted, not timed."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), Dropout2d(0.5, "batch", "exact"),
        nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 10, 1), nn.ReLU(), Dropout2d(0.4, "batch", "exact"),
        nn.Flatten(), nn.Linear(10 * 64, 5),
    )  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    maps = 2 * 64
    per_layer = {"0": 3 * 9 * 6 * maps, "4": 9 * 6 * maps, "5": 6 * 10 * maps, "9": 2 * 640 * 5}
    assert work(model, x) == 2 * sum(per_layer.values())
    skip(model, x, always=True)
    kept = {"0": 1 / 2, "4": 1 / 2, "5": 1 / 2 * 6 / 10, "9": 6 / 10}
    assert work(model, x) == 2 * sum(per_layer[k] * kept[k] for k in kept)


def test_by_default_small_products_are_masked_and_large_ones_skip() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), Dropout(0.5, "batch", "exact"), nn.Linear(16, 4))
    skip(model, torch.randn(2, 8))
    full = 2 * (8 * 16 + 16 * 4)
    for count in (1, 10_000):
        assert work(model, torch.randn(count, 8)) == count * full // (2 if compact.pays(count) else 1)
    assert not compact.pays(1)
    assert compact.pays(10_000)


def test_a_consumer_with_few_rows_gets_zeros_while_its_producer_skips() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), Dropout2d(0.5, "batch", "exact"), nn.Flatten(), nn.Linear(6 * 64, 5)
    )
    masked, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    skip(model, x)
    assert work(model, x) == 2 * (3 * 9 * 6 * 128 // 2 + 2 * 6 * 64 * 5)
    reference = one_step(copy.deepcopy(masked).double(), x.double(), 0)
    same(one_step(model, x, 0), one_step(masked, x, 0), reference)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_placing_undoes_selecting_and_keeps_the_memory_format(form: torch.memory_format) -> None:
    x, index = torch.randn(2, 3, 4, 5).contiguous(memory_format=form), torch.tensor([0, 2, 5])
    full = compact.place(x, index, 1, 6)
    assert full.is_contiguous(memory_format=form)
    assert torch.equal(full.index_select(1, index), x)
    assert not full[:, [1, 3, 4]].any()


# --- what skips, what does not ---------------------------------------------------------------------------------------


class Crossed(nn.Module):
    """Another dropout draws between the producer and its own dropout."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 8), nn.Linear(4, 4), between
        self.drop, self.head, self.tail = Dropout(0.5, "batch"), nn.Linear(8, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x)
        other = self.between(self.b(x))
        return self.head(self.drop(hidden)) + self.tail(other)


@pytest.mark.parametrize("between", [Dropout(0.5, "batch"), Dropout(0.5), nn.Dropout(0.5), nn.RReLU()], ids=repr)
def test_a_group_with_another_draw_inside_is_left_masked(between: nn.Module) -> None:
    torch.manual_seed(0)
    model, x = Crossed(between), torch.randn(3, 4)
    twin = copy.deepcopy(model)
    handle = skip(model, x, always=True)
    assert handle.explain()["drop"].startswith("left masked: no other random numbers may be drawn")
    assert "between" in handle.explain()["drop"]
    ours, theirs = one_step(model, x, 0), one_step(twin, x, 0)
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key])


def test_explain_names_what_skips_and_why_the_rest_does_not() -> None:
    model, x = network("flattened")
    assert skip(model, x).explain() == {"2": "skips from 0 to 5", "7": "skips from 5 to 8"}
    assert "on parts of them" in skip(*network("parts")).explain()["4"]
    sample = nn.Sequential(
        nn.Linear(4, 4), Dropout(0.5), nn.Linear(4, 4), nn.ReLU(), Dropout(0.1, "batch"), nn.Linear(4, 1)
    )
    told = skip(sample, torch.ones(2, 4)).explain()
    assert told == {"1": "left as it is: mask must be 'batch', got mask='sample'", "4": "skips from 2 to 5"}
    block = nn.Sequential(nn.Conv2d(3, 4, 1), DropBlock2d(0.1), nn.Conv2d(4, 1, 1))
    assert skip(block, torch.ones(1, 3, 8, 8)).explain()["1"].startswith("left as it is: only Dropout and")


def test_a_size_written_into_a_view_is_left_masked() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop, self.head = nn.Conv2d(3, 4, 3), Dropout2d(0.5, "batch"), nn.Linear(144, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(self.conv(x)).view(len(x), 144))

    model, x = Net(), torch.randn(2, 3, 8, 8)
    assert "must not be written into a reshape" in skip(model, x, always=True).explain()["drop"]
    one_step(model, x, 0)


def test_a_draw_that_only_training_makes_is_an_error() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x) if self.training else x + 0

    model = nn.Sequential(nn.Linear(4, 8), Noise(), Dropout(0.5, "batch"), nn.Linear(8, 2))
    skip(model, torch.ones(2, 4), always=True)
    with pytest.raises(Error, match="skip: no random numbers may be drawn between 0 and 2"):
        model(torch.ones(2, 4))


def test_two_dropouts_can_leave_nothing() -> None:
    """The layers never stop all units each, together they can: then the step is computed masked, with these masks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), Dropout(0.5, "batch"), nn.Tanh(), Dropout(0.5, "batch"), nn.Linear(2, 2))
    x, twin = torch.randn(4, 3), copy.deepcopy(model)
    skip(model, x, always=True)
    nothing = 0
    for seed in range(30):
        ours, theirs = one_step(model, x, seed), one_step(twin, x, seed)
        nothing += not (masks(model)["1"] & masks(model)["3"]).any()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key])
    assert nothing > 0


# --- with others -----------------------------------------------------------------------------------------------------


@pytest.mark.source("S4")
@pytest.mark.parametrize("first", ["strict", "skip"])
@pytest.mark.parametrize("name", NETWORKS)
def test_with_strict_on_the_same_network_in_either_order(name: str, first: str) -> None:
    model, x = network(name)
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(net.parameters(), 1e-3, 0.9, weight_decay=0.1) for net in (model, twin)]
    if first == "skip":
        skip(model, x, always=True)
    handles = [strict(net, optimizer, x) for net, optimizer in zip((model, twin), optimizers, strict=True)]
    if first == "strict":
        skip(model, x, always=True)
    for step in range(4):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        for net, optimizer in zip((model, twin), optimizers, strict=True):
            one_step(net, x, 0, step)
            optimizer.step()
        ours, theirs = (handle.stopped() for handle in handles)
        assert ours.keys() == theirs.keys()
        for n, mask in ours.items():
            assert torch.equal(mask, theirs[n])
            stopped = mask.expand(before[n].shape)
            assert torch.equal(model.get_parameter(n)[stopped], before[n][stopped])
    for key, value in model.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(value, twin.state_dict()[key], rtol=1e-4, atol=1e-5)


def test_evaluation_is_untouched_and_close_puts_everything_back() -> None:
    model, x = network("depthwise")
    plain_model = copy.deepcopy(model)
    with skip(model, x, always=True):
        assert torch.equal(model.eval()(x), plain_model.eval()(x))
        with pytest.raises(Error, match="skip once at a time, got 0 that skips already"):
            skip(model, x)
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    ours, theirs = one_step(model.train(), x, 0), one_step(plain_model.train(), x, 0)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_compute_with_their_own_parameters(twin_of: Callable[[nn.Module], nn.Module]) -> None:
    model, x = network("depthwise")
    skip(model, x, always=True)
    with keyed(0, 0):
        model(x)
    twin = twin_of(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert twin(x).abs().sum() > 0
    assert skip(twin_of(twin), x).groups


def test_parameters_keep_their_names_order_and_identity() -> None:
    model, x = network("depthwise")
    before = {n: id(p) for n, p in model.named_parameters()}
    keys = list(model.state_dict())
    skip(model, x, always=True)
    one_step(model, x, 0)
    assert {n: id(p) for n, p in model.named_parameters()} == before
    assert next(iter(model.named_parameters()))[0] == "0.weight"
    assert list(model.state_dict()) == keys


def test_an_error_in_a_forward_leaves_layers_whole() -> None:
    model, x = network("depthwise")
    skip(model, x, always=True)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    with pytest.raises((RuntimeError, Error)):
        model(torch.randn(2, 3, 2, 2))  # too small for the 3x3 filters
    assert {n: p.shape for n, p in model.named_parameters()} == shapes
    assert (model[2].groups, model[2].in_channels, model[2].out_channels, model[1].num_features) == (6, 6, 6, 6)
    one_step(model, x, 0)


def test_under_autocast() -> None:
    model, x = network("mlp")
    skip(model, x, always=True)
    with torch.autocast("cpu", torch.bfloat16), keyed(0, 0):
        y = model(x)
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_frozen_layers_get_no_gradient() -> None:
    model, x = network("mlp")
    model[0].requires_grad_(False)
    skip(model, x, always=True)
    model(x).sum().backward()
    assert model[0].weight.grad is None
    assert model[3].weight.grad is not None


# --- the product -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1, 10**9])
@pytest.mark.parametrize("which", ["rows", "columns", "both", "neither"])
def test_the_gradient_of_the_compact_product(which: str, spread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "_SPREAD_FROM", spread)
    rows = torch.tensor([0, 2, 3]) if which in ("rows", "both") else None
    columns = torch.tensor([1, 4]) if which in ("columns", "both") else None
    x, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((6, 5), (4, 5), (4,)))
    given = x if columns is None else x[:, columns].detach().requires_grad_()
    y = compact.linear(given, weight, bias, rows, columns)
    for i in range(y.shape[0]):
        for k, row in enumerate(range(4) if rows is None else rows.tolist()):
            at = range(5) if columns is None else columns.tolist()
            expected = sum(given[i, j] * weight[row, c] for j, c in enumerate(at)) + bias[row]
            torch.testing.assert_close(y[i, k], expected)
    assert torch.autograd.gradcheck(lambda *t: compact.linear(*t, rows, columns), (given, weight, bias))
