"""Measurements: time, outputs, moments, the gap; and no trace left in the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from leanconv import measure
from leanconv.data import DataSet, Split
from leanconv.errors import Error


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 16, 3)
    )


def images(n: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


Measurement = Callable[[nn.Module], object]
ALL: dict[str, Measurement] = {
    "latency": lambda m: measure.latency(m, images(), runs=2, warmup=1),
    "compare_latency": lambda m: measure.compare_latency({"a": (m, images()), "b": (m, images())}, runs=2, warmup=0),
    "compare_training": lambda m: measure.compare_training({"a": (m, images()), "b": (m, images())}, runs=2, warmup=0),
    "output_difference": lambda m: measure.output_difference(m, net(), images()),
    "moments": lambda m: measure.moments(m, [images()]),
    "moments in training": lambda m: measure.moments(m, [images()], training=True),
    "score": lambda m: measure.score(m, tiny(), "train"),
    "gap": lambda m: measure.gap(m, tiny()),
}


def tiny() -> DataSet:
    g = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (20, 3, 6, 6), dtype=torch.uint8, generator=g)
    y = torch.arange(20) % 3
    splits = {"train": Split(x, y), "val": Split(x[:7], y[:7]), "test": Split(x[7:], y[7:])}
    return DataSet.build(splits, ("a", "b", "c"), "made up")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("training", [True, False])
def test_no_measurement_leaves_a_trace(name: str, training: bool) -> None:
    model = net().train(training)
    model[1].eval()
    flags = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    ALL[name](model)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)


@given(n=st.integers(1, 12), level=st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_the_medians_interval_is_the_narrowest_that_covers(n: int, level: float) -> None:
    """Enumerates which of n values lie below the median: 2^n equal cases."""
    values = [float(i) for i in range(n)]
    median, low, high = measure.median_interval(values, level)
    assert median == (n - 1) / 2
    k = int(low) + 1
    assert high == n - k

    def covered(k: int) -> float:
        cases = sum(1 for below in range(n + 1) for _ in combinations(range(n), below) if k <= below <= n - k)
        return cases / 2**n

    if covered(1) < level:
        assert k == 1
    else:
        assert covered(k) >= level
        assert k + 1 > n - k or covered(k + 1) < level


def test_the_medians_interval_has_the_published_ranks() -> None:
    """Conover, table A3 based: n = 6: 1 and 6; n = 10: 2 and 9; n = 20: 6 and 15; n = 30: 10 and 21; at 95 %."""
    for n, rank in ((6, 1), (10, 2), (20, 6), (30, 10)):
        _, low, high = measure.median_interval([float(i) for i in range(1, n + 1)])
        assert (low, high) == (rank, n + 1 - rank)
    with pytest.raises(Error, match="median: needs a value"):
        measure.median_interval([])
    with pytest.raises(Error, match=r"level=1\.5"):
        measure.median_interval([1.0], 1.5)


def test_latency_says_under_what_it_holds() -> None:
    x = images(7).to(memory_format=torch.channels_last)
    found = measure.latency(net(), x, runs=7, warmup=0, threads=1)
    assert 0 < found.low <= found.median <= found.high
    assert (found.runs, found.threads, found.batch, found.dtype) == (7, 1, 7, "float32")
    assert (found.memory_format, found.device, found.level) == ("channels_last", "cpu", 0.95)
    assert found.per_image == found.median / 7
    assert "batch 7, 1 threads, float32, channels_last, cpu" in str(found)
    double = measure.latency(net().double(), images().double(), runs=1, warmup=0)
    assert (double.dtype, double.memory_format) == ("float64", "contiguous")


class Counted(nn.Module):
    def __init__(self, name: str, log: list[tuple[str, bool, bool]]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def forward(self, x: Tensor) -> Tensor:
        self.log.append((self.name, self.training, torch.is_grad_enabled()))
        return x


def test_contenders_take_turns_in_eval_mode_without_gradients() -> None:
    log: list[tuple[str, bool, bool]] = []
    contenders = {name: (Counted(name, log), images()) for name in "abc"}
    found = measure.compare_latency(contenders, runs=3, warmup=1)
    assert "".join(name for name, _, _ in log) == "abcbcacababc"
    assert not any(training or grad for _, training, grad in log)
    assert {name: len(times) for name, times in found.rounds.items()} == {"a": 3, "b": 3, "c": 3}


def test_steps_of_training_take_turns_too_with_gradients() -> None:
    log: list[tuple[str, bool, bool]] = []
    contenders = {name: (nn.Sequential(nn.Conv2d(3, 3, 1), Counted(name, log)), images()) for name in "ab"}
    found = measure.compare_training(contenders, runs=3, warmup=1)
    # Each copy has a log of its own, so only what the originals see is here: nothing.
    assert log == []
    assert {name: len(times) for name, times in found.rounds.items()} == {"a": 3, "b": 3}
    assert all(p.grad is None for model, _ in contenders.values() for p in model.parameters())
    with pytest.raises(Error, match="at least one contender"):
        measure.compare_training({})


def test_the_ratio_is_taken_round_by_round() -> None:
    made = measure.Comparison({}, {"a": (1.0, 20.0, 3.0), "b": (2.0, 40.0, 6.0)})
    assert made.ratio("a", "b").value == 0.5
    assert (made.ratio("b", "a").low, made.ratio("b", "a").high) == (2.0, 2.0)
    with pytest.raises(Error, match="names must be among a, b, got 'c'"):
        made.ratio("a", "c")


def test_a_slower_network_is_measured_as_slower() -> None:
    fast, slow = nn.Linear(8, 8), nn.Sequential(*[nn.Linear(300, 300) for _ in range(20)])
    found = measure.compare_latency({"fast": (fast, torch.zeros(1, 8)), "slow": (slow, torch.zeros(64, 300))}, runs=9)
    assert found.ratio("slow", "fast").low > 1


@pytest.mark.parametrize(
    ("options", "got"), [({"runs": 0}, "runs=0"), ({"warmup": -1}, "warmup=-1"), ({"threads": 0}, "threads=0")]
)
def test_latency_refuses(options: dict[str, int], got: str) -> None:
    with pytest.raises(Error, match=f"latency: .* got {got}"):
        measure.latency(net(), images(), **options)
    with pytest.raises(Error, match="at least one contender"):
        measure.compare_latency({})


def test_output_difference_against_plain_arithmetic() -> None:
    a, b = nn.Linear(4, 3), nn.Linear(4, 3)
    x = torch.randn(6, 4)
    found = measure.output_difference(a, b, x)
    left, right = a(x).detach().double(), b(x).detach().double()
    assert found.max == (left - right).abs().max().item()
    assert found.mean == pytest.approx((left - right).abs().mean().item(), rel=1e-12)
    assert found.relative == found.max / left.abs().max().item()
    assert measure.output_difference(a, a, x) == measure.OutputDifference(0.0, 0.0, found.scale)


class Several(nn.Module):
    def __init__(self, add: float) -> None:
        super().__init__()
        self.add = add

    def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
        return {"a": x, "b": [y + self.add, 3]}


def test_output_difference_takes_several_outputs_together() -> None:
    x = (torch.zeros(2, 3), torch.ones(4))
    found = measure.output_difference(Several(0.0), Several(0.5), x)
    assert (found.max, found.mean, found.scale) == (0.5, 0.5 * 4 / 10, 1.0)


def test_output_difference_of_what_is_not_finite() -> None:
    class Const(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(x, self.value)

    x = torch.zeros(2)
    assert measure.output_difference(Const(math.inf), Const(math.inf), x).max == 0
    assert measure.output_difference(Const(math.inf), Const(1.0), x).max == math.inf
    assert math.isnan(measure.output_difference(Const(math.nan), Const(1.0), x).max)
    assert measure.output_difference(Const(0.0), Const(1.0), x).relative == math.inf
    assert measure.output_difference(Const(0.0), Const(0.0), x).relative == 0
    with pytest.raises(Error, match=r"same shapes, got \[\(2,\)\] and \[\(2, 1\)\]"):
        measure.output_difference(Const(0.0), nn.Unflatten(0, (2, 1)), x)


def plain_moments(x: Tensor) -> tuple[float, float, float, float]:
    values = x.double().reshape(-1).tolist()
    n = len(values)
    mean = math.fsum(values) / n
    m2, m3, m4 = (math.fsum((v - mean) ** k for v in values) / n for k in (2, 3, 4))
    return mean, m2, m3 / m2**1.5, m4 / m2**2 - 3


@pytest.mark.source("S25")
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    shape=st.sampled_from([(3,), (3, 4), (3, 2, 2), (1, 3, 2, 2)]),
    offset=st.sampled_from([0.0, 5.0, -1e4]),
    seed=st.integers(0, 1000),
)
def test_moments_against_plain_sums(sizes: list[int], shape: tuple[int, ...], offset: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, *shape, generator=g, dtype=torch.float64).exp() + offset for n in sizes]
    (found,) = measure.moments(nn.Sequential(nn.Identity()), parts).values()
    whole = torch.cat(parts)
    assert found.count == whole.numel()
    tolerance = 1e-9 * max(1.0, abs(offset))
    if whole.numel() > 1:
        got = (found.mean, found.variance, found.skew, found.kurtosis)
        assert got == pytest.approx(plain_moments(whole), rel=tolerance, abs=tolerance)
    for c in range(whole.shape[1]):
        channel = whole[:, c]
        assert found.channel_mean[c] == pytest.approx(channel.mean().item(), rel=1e-12)
        assert found.channel_variance[c] == pytest.approx(
            channel.var(unbiased=False).item(), rel=tolerance, abs=tolerance
        )


def test_moments_of_a_constant_have_no_shape() -> None:
    (found,) = measure.moments(nn.Sequential(nn.Identity()), [torch.ones(3, 2)]).values()
    assert (found.mean, found.variance) == (1.0, 0.0)
    assert math.isnan(found.skew)
    assert math.isnan(found.kurtosis)


@pytest.mark.source("S25")
def test_in_training_batch_norm_gives_mean_0_and_variance_1_but_not_a_normal_shape() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    skewed = images(64).exp() * 5 + 3
    found = measure.moments(model, [skewed], training=True)
    assert found["1"].mean == pytest.approx(0, abs=1e-6)
    assert found["1"].variance == pytest.approx(1, abs=1e-3)
    assert abs(found["0"].mean) > 0.1
    assert measure.moments(model, [skewed])["1"].variance > 2  # eval mode: running statistics of a fresh layer
    uneven = measure.moments(nn.Sequential(nn.BatchNorm2d(3)), [skewed], training=True)["0"]
    assert uneven.skew > 1
    assert uneven.kurtosis > 1


def test_moments_of_chosen_layers_in_order_of_execution() -> None:
    model = net()
    assert list(measure.moments(model, [images()])) == ["0", "1", "2", "3", "4", "5"]
    assert list(measure.moments(model, [images()], layers=["5", "1"])) == ["1", "5"]
    with pytest.raises(Error, match="layers must be modules of the network, got '9'"):
        measure.moments(model, [images()], layers=["9"])
    with pytest.raises(Error, match="at least one batch must be given"):
        measure.moments(model, [])


def test_hooks_are_removed_where_the_network_fails() -> None:
    model = net()
    with pytest.raises(RuntimeError):
        measure.moments(model, [torch.zeros(1, 2, 6, 6)])
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.source("S11")
def test_shift_of_a_scaled_and_moved_output_is_known() -> None:
    class Affine(nn.Module):
        def __init__(self, scale: float, move: float) -> None:
            super().__init__()
            self.scale, self.move = scale, move

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale + self.move

    x = images(50).double()
    before = measure.moments(nn.Sequential(Affine(1, 0)), [x])
    after = measure.moments(nn.Sequential(Affine(1, 2)), [x])
    variance = x.var((0, 2, 3), unbiased=False)
    found = measure.shift(before, after)["0"]
    assert found.mean == pytest.approx((4 / variance).mean().sqrt().item(), rel=1e-9)
    assert found.variance == pytest.approx(1, rel=1e-9)
    for scale in (3.0, 1 / 3):
        moved = measure.moments(nn.Sequential(Affine(scale, 0)), [x])
        assert measure.shift(before, moved)["0"].variance == pytest.approx(9, rel=1e-9)
    assert measure.shift(before, before)["0"] == measure.Shift(0.0, 1.0)
    dead = measure.moments(nn.Sequential(Affine(0, 1)), [x])
    assert math.isnan(measure.shift(before, dead)["0"].variance)


def test_shift_needs_the_same_layers() -> None:
    a = measure.moments(net(), [images()])
    with pytest.raises(Error, match="same layers, got a difference at '5'"):
        measure.shift(a, {path: found for path, found in a.items() if path != "5"})


@pytest.mark.source("S1")
def test_score_and_gap_are_counted_in_eval_mode_on_plain_images() -> None:
    model, data = net(), tiny()
    found = measure.gap(model, data, size=3)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
    with torch.no_grad():
        logits = net().eval()((data.train.images / 255 - mean) / std)
    right = (logits.argmax(1) == data.train.labels).sum().item()
    loss = nn.functional.cross_entropy(logits, data.train.labels).item()
    assert (found.train.correct, found.train.total) == (right, 20)
    assert found.train.loss == pytest.approx(loss, rel=1e-5)
    assert found.held_out.total == 7
    assert found.difference.value == pytest.approx(right / 20 - found.held_out.accuracy)
    assert measure.gap(model, data, "test").held_out.total == 13
    with pytest.raises(Error, match="split must be one of train, val, test, got 'none'"):
        measure.gap(model, data, "none")
