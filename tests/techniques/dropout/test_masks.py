"""The masks as random numbers: rates, independence, means, and keys that hold over micro-batches and ranks."""

from math import sqrt

import pytest
import torch
from torch import Tensor

from leanconv.techniques.dropout import DropBlock2d, Dropout, Dropout1d, Dropout2d, StochasticDepth, keyed


@pytest.fixture(autouse=True, params=["0", None], ids=["torch", "native"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param is None:
        monkeypatch.delenv("LEANCONV_NATIVE", raising=False)
    else:
        monkeypatch.setenv("LEANCONV_NATIVE", request.param)


def _mask(layer, shape: tuple[int, ...], step: int = 0, offset: int = 0, seed: int = 11) -> Tensor:
    with keyed(seed, step, offset):
        layer(torch.ones(shape))
    mask: Tensor = layer.last_mask
    return mask


def _share(mask: Tensor, p: float) -> float:
    """How many standard deviations the kept share is away from 1 - p."""
    n = mask.numel()
    return abs(mask.double().mean().item() - (1 - p)) / sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("mask", ["sample", "batch"])
def test_rate_is_within_binomial_bounds(p: float, mask: str) -> None:
    assert _share(_mask(Dropout(p, mask), (100, 1000) if mask == "sample" else (2, 100_000)), p) < 4
    assert _share(_mask(Dropout2d(p, mask), (100, 1000, 1, 1) if mask == "sample" else (2, 100_000, 1, 1)), p) < 4


def test_rate_of_every_unit_and_every_sample() -> None:
    mask = _mask(Dropout(0.3), (400, 400)).double()
    sigma = sqrt(0.3 * 0.7 / 400)
    assert (mask.mean(0) - 0.7).abs().max() < 5 * sigma
    assert (mask.mean(1) - 0.7).abs().max() < 5 * sigma


def _correlation(a: Tensor, b: Tensor) -> float:
    """Correlation in units of its standard deviation under independence, 1 / sqrt(n)."""
    a, b = a.double().flatten(), b.double().flatten()
    return abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) * sqrt(a.numel())


def test_samples_steps_seeds_layers_and_neighbours_are_independent() -> None:
    layer, shape = Dropout(0.4), (64, 512)
    mask = _mask(layer, shape)
    assert _correlation(mask[1:], mask[:-1]) < 4
    assert _correlation(mask[:, 1:], mask[:, :-1]) < 4
    for other in (_mask(layer, shape, step=1), _mask(layer, shape, seed=12)):
        assert _correlation(mask, other) < 4
    first, second = Dropout(0.4), Dropout(0.4)
    with keyed(11, 0):
        second(first(torch.ones(shape)))
    assert torch.equal(first.last_mask, mask)
    assert _correlation(first.last_mask, second.last_mask) < 4


def test_pairs_of_units_stop_as_often_as_independence_says() -> None:
    mask = (~_mask(Dropout(0.5), (20_000, 6))).double()
    pairs = mask.T @ mask / len(mask)
    off = pairs[~torch.eye(6, dtype=torch.bool)]
    assert (off - 0.25).abs().max() < 5 * sqrt(0.25 * 0.75 / len(mask))


@pytest.mark.parametrize("count", ["bernoulli", "exact"])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("units", [2, 3, 8, 64])
def test_the_mean_is_preserved(count: str, p: float, units: int) -> None:
    """For few units too, where the rule that never all stop is felt: each unit's mean is 1."""
    layer = Dropout(p, count=count)
    with keyed(5, 0):
        y = layer(torch.ones(40_000, units, dtype=torch.float64))
    sigma = y.std().item() / sqrt(len(y)) if y.std() > 0 else 0.0
    assert (y.mean(0) - 1).abs().max() <= 5 * sigma + 1e-12


@pytest.mark.parametrize("layer", [StochasticDepth(0.3), StochasticDepth(0.97), DropBlock2d(0.2, 2)])
def test_the_mean_of_branches_and_blocks_is_preserved(layer) -> None:
    with keyed(5, 1):
        y = layer(torch.ones(20_000, 2, 4, 4, dtype=torch.float64)).mean((1, 2, 3))
    assert abs(y.mean().item() - 1) <= 5 * y.std().item() / sqrt(len(y)) + 1e-12


def test_every_subset_of_an_exact_count_is_equally_likely() -> None:
    mask = ~_mask(Dropout(0.5, count="exact"), (30_000, 4))
    codes = (mask.long() * torch.tensor([1, 2, 4, 8])).sum(1).bincount(minlength=16)
    seen = codes[codes > 0]
    assert len(seen) == 6
    assert (seen - 5000).abs().max() < 5 * sqrt(5000)


LAYERS = [
    (Dropout(0.4), (12, 9)),
    (Dropout(0.4), (12, 3, 4, 5)),
    (Dropout(0.4, count="exact"), (12, 9)),
    (Dropout1d(0.4), (12, 9, 3)),
    (Dropout2d(0.4, count="exact"), (12, 9, 3, 2)),
    (DropBlock2d(0.3, 2), (12, 3, 6, 6)),
    (StochasticDepth(0.4), (12, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_micro_batches_see_slices_of_the_whole_batchs_mask(layer, shape) -> None:
    whole = _mask(layer, shape)
    parts = [_mask(layer, (size, *shape[1:]), offset=start) for start, size in ((0, 5), (5, 1), (6, 6))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    "layer", [Dropout(0.4, "batch"), Dropout2d(0.4, "batch", "exact"), StochasticDepth(0.4, "batch")]
)
def test_batch_masks_are_equal_over_micro_batches(layer) -> None:
    masks = [_mask(layer, (size, 9, 2, 2), offset=offset) for offset, size in ((0, 5), (5, 1), (100, 6))]
    assert all(torch.equal(m, masks[0]) for m in masks)


def test_without_a_context_the_users_seed_decides() -> None:
    layer = Dropout(0.5)
    torch.manual_seed(0)
    first = layer(torch.ones(4, 100))
    second = layer(torch.ones(4, 100))
    torch.manual_seed(0)
    assert torch.equal(layer(torch.ones(4, 100)), first)
    assert not torch.equal(first, second)


def test_one_draw_a_forward() -> None:
    """The key is all that a forward takes from the generator, whatever its size."""
    states = []
    for shape in ((1, 3), (50, 200)):
        torch.manual_seed(0)
        Dropout(0.5)(torch.ones(shape))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
