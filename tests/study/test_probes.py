"""What a study measures beside the trainings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from leanconv import data, recipe
from leanconv.data import DataSet, Split
from leanconv.errors import Error
from leanconv.models.plain import plain
from leanconv.nn import Dropout
from leanconv.results import Epoch, Score
from leanconv.study import probes
from leanconv.training.watching import steadiness

SMALL = recipe.override(recipe.load("demo"), batch=32, **{"model.options.width": 4})


def small(n: int = 160) -> DataSet:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    images = torch.randint(0, 80, (n, 1, 28, 28), generator=generator, dtype=torch.uint8)
    for label in range(4):
        images[labels == label, :, 7 * label : 7 * label + 7] += 150
    split = Split(images, labels)
    return DataSet.build({"train": split, "val": split, "test": split}, ("a", "b", "c", "d"), "made")


@pytest.fixture
def deterministic() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.source("S12")
def test_a_huge_rate_is_unstable_and_a_small_one_is_not() -> None:
    images, plain = small(), recipe.only(SMALL, [])
    assert probes.stable(plain, images, 0.01, steps=40)
    assert not probes.stable(plain, images, 1e6, steps=40)


def test_stability_is_a_function_of_the_recipe() -> None:
    images = small()
    state = torch.random.get_rng_state()
    found = [probes.stable(SMALL, images, 2.0, steps=12) for _ in range(2)]
    assert found[0] == found[1]
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("limit", [-12, -10, -9, -5, -4, 0, 3, 5, 6, 9])
@pytest.mark.parametrize("lr", [1e-9, 2**-10, 0.05, 64, 1e9])
def test_the_grid_is_searched_from_any_start(monkeypatch: pytest.MonkeyPatch, limit: int, lr: float) -> None:
    monkeypatch.setattr(probes, "stable", lambda recipe, images, rate, steps: rate <= 2.0**limit)
    found = probes.largest_stable_rate(recipe.override(SMALL, lr=lr), small(), 1)
    assert found.rate == (None if limit < probes.LOWEST else 2.0 ** min(limit, probes.HIGHEST))
    assert found.bounded == (limit >= probes.HIGHEST)
    assert all(held == (rate <= 2.0**limit) for rate, held in found.tried.items())


@pytest.mark.source("S5")
@pytest.mark.usefixtures("deterministic")
def test_averaging_sub_networks_is_measured_beside_one_and_beside_scaling() -> None:
    images = small()
    model = nn.Sequential(nn.Flatten(), Dropout(0.5), nn.Linear(784, 4))
    with torch.no_grad():
        model[2].weight.zero_()
        for label in range(4):
            model[2].weight.view(4, 28, 28)[label, 7 * label : 7 * label + 7] = 0.02
    found = probes.ensemble(model, images, samples=8)
    assert found.scaled == 1.0
    assert found.single <= found.average
    assert found.samples == 8
    assert model.training
    with pytest.raises(Error):
        probes.ensemble(nn.Sequential(nn.Flatten(), nn.Linear(784, 4)), images)


@pytest.mark.source("S23")
def test_memorised_counts_wrong_labels_that_come_back() -> None:
    clean = small()
    labels = clean.train.labels.clone()
    labels[:40] = (labels[:40] + 1) % 4
    noisy = replace(clean, train=Split(clean.train.images, labels))

    class Says(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Ten of the wrong labels by heart, else another class."""
            place = int(x.shape[0])
            answers = (labels[:place] + 2) % 4
            answers[:10] = labels[:10]
            return torch.nn.functional.one_hot(answers, 4).float()

    assert probes.memorised(Says(), noisy, clean) == 10 / 40
    with pytest.raises(Error, match="some training labels must be wrong"):
        probes.memorised(Says(), clean, clean)
    with pytest.raises(Error, match="one size, got 160 and 80"):
        probes.memorised(Says(), clean, small(80))


def epoch(number: int, accuracy: float, means: tuple[float, float] = (0, 0), **rows: object) -> Epoch:
    layers = [
        {"path": f"l{i}", "kind": "Conv2d", "weight_norm": 3.0 + i, "grad_norm": 10.0**-i, "pre": {"mean": m, "std": 2}}
        for i, m in enumerate(means)
    ]
    layers.append({"path": "norm", "kind": "BatchNorm2d", "weight_norm": 100.0, "grad_norm": None})
    score = Score(round(1000 * accuracy), 1000)
    return Epoch(number, 10 * number, 0.1, 1.0, 0.0, score, score, 1.0, {"layers": layers})


@pytest.mark.source("S11")
def test_shifts_are_in_standard_deviations_by_depth() -> None:
    rows = [epoch(1, 0.1, (0, 0)), epoch(2, 0.2, (1, 4)), epoch(3, 0.3, (1, 0))]
    assert probes.shifts(rows) == [0.25, 2.0]
    assert probes.shifts(rows[:1]) == []
    assert probes.shifts([]) == []


@pytest.mark.source("S12")
def test_gradients_first_against_last() -> None:
    assert math.isclose(probes.gradients([epoch(1, 0.1)]), 1.0)
    assert math.isnan(probes.gradients([]))


@pytest.mark.source("S16")
def test_weight_norm_is_of_weights_not_of_norms() -> None:
    assert math.isclose(probes.weight_norm(epoch(1, 0.1)), 5.0)


def test_steps_to_reach_an_accuracy() -> None:
    steps, values = [10, 20, 30, 40], [0.2, 0.4, 0.3, 0.8]
    assert probes.to_reach(steps, values, 0.1) == 10
    assert probes.to_reach(steps, values, 0.3) == pytest.approx(15)
    assert probes.to_reach(steps, values, 0.4) == pytest.approx(20)
    assert probes.to_reach(steps, values, 0.55) == pytest.approx(35)
    assert probes.to_reach(steps, values, 0.9) is None
    assert probes.to_reach([], [], 0.1) is None


@pytest.mark.source("S12")
def test_steadiness_of_losses() -> None:
    assert steadiness([]) == {"roughness": 0.0, "spikes": 0}
    assert steadiness([1.0] * 9) == {"roughness": 0.0, "spikes": 0}
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).mul(0.1).add(2).tolist()
    assert steadiness(noise)["roughness"] == pytest.approx(0.1, rel=0.02)
    assert steadiness([1.0] * 10 + [1.6] + [1.0] * 5)["spikes"] == 1
    assert steadiness([9.0, 1.0, 1.0, 1.0, 1.0, 1.4, 1.0])["spikes"] == 0


def test_the_set_is_normalised_as_trained() -> None:
    images = small()
    assert data.normalise(images.train.images, images.mean, images.std).mean().abs() < 1e-3


@pytest.mark.source("S19")
def test_convolutions_hold_what_the_formula_says() -> None:
    options = {"width": 4, "rows": [[1, 1], [2, 2], [4, 1]], "in_chans": 3}
    dense, lean = (probes.convolutions(plain(separable=separable, **options)) for separable in (False, True))
    assert dense == [{"in": 3, "params": 3 * 4 * 9 + 4}, {"in": 4, "params": 4 * 8 * 9 + 8},
                     {"in": 8, "params": 8 * 16 * 9 + 16}]  # fmt: skip
    assert [row["in"] for row in lean] == [3, 4, 8]
    assert lean[0] == dense[0]
    assert lean[1]["params"] == 4 * 9 + 4 * 8 + 8
    assert lean[2]["params"] == 8 * 9 + 8 * 16 + 16
