"""Channels of one size, and what stays in float so that the accuracy does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from int8_plans import noise, unequal
from lean_nets import drawn, maps, mobilenet_v2, translated
from lean_plans import Builder
from leanconv.deploy.quantisation import quantising
from leanconv.deploy.quantisation.choosing import fewest, ranked
from leanconv.deploy.quantisation.equalisation import HEADROOMS, MARGIN, equalised, links
from leanconv.deploy.quantisation.observing import observe
from leanconv.deploy.quantisation.options import Int8
from leanconv.deploy.quantisation.quantising import quantise
from leanconv.deploy.quantisation.samples import Images, Samples
from leanconv.errors import Error
from leanconv.runtime.plan import Plan, Window
from leanconv.runtime.reference import Reference

# --- equalisation ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(("relu", "none", "relu6")), st.sampled_from(("none", "mean", "max", "avg"))
)
def test_equalising_leaves_the_function(seed: int, act: str, between: str) -> None:
    random = np.random.default_rng(seed)
    builder = Builder((6, 6, 3), seed)
    wide = builder.conv(0, 8, act=act)
    x = builder.depthwise(wide, Window((3, 3), padding=(1, 1, 1, 1)), 2, act)
    window = Window((2, 2), (2, 2))
    if between != "none":
        x = builder.add({"mean": "mean", "max": "max_pool", "avg": "avg_pool"}[between], x,
                        **({} if between == "mean" else {"window": window}))  # fmt: skip
    grouped = builder.conv(x, 8, groups=4, act=act)
    builder.linear(builder.conv(grouped, 6, act=act), 5)
    plan, tensors = builder.plan(), builder.tensors
    for step in plan.steps:  # channels of very different sizes
        if step.op in ("conv", "depthwise"):
            weight = tensors[step.tensors["weight"]]
            sizes = (2.0 ** random.integers(-3, 3, weight.shape[-1 if step.op == "depthwise" else 0])).astype(
                np.float32
            )
            weight *= sizes if step.op == "depthwise" else sizes.reshape(-1, 1, 1, 1)
            tensors[step.tensors["bias"]] *= sizes
    batch = noise(plan, 16, seed)
    before = copy.deepcopy(tensors)
    seen = observe(plan, tensors, [batch])
    assert len(links(plan)) == 4
    made, count = equalised(plan, tensors, seen)
    assert count >= 1
    assert all(np.array_equal(tensors[name], before[name]) for name in tensors)  # a copy
    right = Reference(plan, tensors, np.float64).run(batch)
    assert np.allclose(Reference(plan, made, np.float64).run(batch), right, rtol=1e-4, atol=1e-5 * np.abs(right).max())
    if act != "relu6":  # on any input; behind relu6 where nothing clips that did not before
        other = 10 * noise(plan, 4, seed + 1)
        right = Reference(plan, tensors, np.float64).run(other)
        assert np.allclose(
            Reference(plan, made, np.float64).run(other), right, rtol=1e-4, atol=1e-5 * np.abs(right).max()
        )
    # What a depthwise layer reads has channels of one size.
    before_, after = (observe(plan, t, [batch])[wide].channels.largest for t in (tensors, made))
    even = after >= 0.99 / HEADROOMS[0] * after.max()
    if act != "relu6":
        assert (even | (before_ < before_.max() / 512)).all()


def test_relu6_bounds_the_factors() -> None:
    builder = Builder((6, 6, 3))
    wide = builder.conv(0, 4, act="relu6")
    builder.conv(builder.depthwise(wide, Window(), act="relu6"), 2)
    plan, tensors = builder.plan(), builder.tensors
    first = plan.steps[0].tensors
    tensors[first["weight"]] *= np.array([100, 1e-3, 0.1, 0], np.float32).reshape(-1, 1, 1, 1)
    tensors[first["bias"]][:] = 0, 0, 1, 0
    batch = noise(plan, 16)
    seen = observe(plan, tensors, [batch])
    assert seen[wide].channels.largest[0] == 6
    made, _ = equalised(plan, tensors, seen)
    assert np.array_equal(made[first["weight"]][0], tensors[first["weight"]][0])  # it clips: as it was
    after = observe(plan, made, [batch])[wide].channels.largest
    assert after.max() <= 6
    assert 3.9 < after[2] <= 6 / MARGIN * 1.0001
    assert np.allclose(Reference(plan, made).run(batch), Reference(plan, tensors).run(batch), atol=1e-4)


def test_what_may_not_be_scaled() -> None:
    builder = Builder((6, 6, 3))
    twice = builder.conv(0, 4, act="relu")  # two readers
    summed = builder.conv(twice, 4, twice, act="relu")  # a sum
    swish = builder.conv(summed, 4, act="silu")  # not by factors
    builder.linear(builder.conv(swish, 4), 3)
    assert [(link.first.op, link.second.op) for link in links(builder.plan())] == [("conv", "linear")]


def test_channels_of_random_sizes_are_given_back() -> None:
    found = translated(drawn(mobilenet_v2()), 2, 3, 32, 32)
    x = maps(torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    samples = Samples(Images(x, None, None), Images(x, None, None), "noise")
    ratios = {}
    for powers in (0, 4):
        plan, tensors = unequal(found.plan, found.tensors, powers)
        for on in (True, False):
            ratios[powers, on] = quantise(plan, tensors, samples, Int8(equalise=on)).after.ratio
    assert ratios[4, False] < ratios[0, False] - 3
    assert ratios[4, True] > ratios[0, False] - 2


def test_equalising_must_lower_the_noise_of_images_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    found = translated(drawn(mobilenet_v2()), 2, 3, 32, 32)
    images = Images(maps(torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))), None, None)
    plan, tensors = unequal(found.plan, found.tensors, 4)
    samples = Samples(images, images, "noise")
    assert quantise(plan, tensors, samples, Int8()).links > 0
    monkeypatch.setattr(quantising, "GAIN", 100)
    assert quantise(plan, tensors, samples, Int8()).links == 0


# --- choosing --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 60))
def test_the_fewest_layers_stay_in_float(count: int, needed: int) -> None:
    asked: list[int] = []

    def holds(kept: Any) -> bool:
        asked.append(len(kept))
        return len(kept) >= needed

    if needed >= count:
        with pytest.raises(Error):
            fewest(range(count), holds)
    else:
        assert fewest(range(count), holds) == needed
    assert len(asked) == len(set(asked)) <= 13
    assert max(asked) < count


def test_the_dearest_layers_come_first() -> None:
    assert ranked([3, 5, 8, 9], {3: 1.0, 5: 7.0, 8: 1.0, 9: 2.0}.__getitem__) == {5: 7.0, 9: 2.0, 3: 1.0, 8: 1.0}
    with pytest.raises(Error):
        fewest([4], lambda kept: True)


class Outlier(nn.Module):
    """A network whose one layer no byte can hold: a huge constant channel beside the one that answers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        with torch.no_grad():
            self.second.weight[0].zero_()
            self.second.bias[0] = 300
            self.third.weight[:, 0] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.third(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))
        return y


def outlier() -> tuple[Plan, Any, Samples]:
    torch.manual_seed(0)
    network, images = Outlier().eval(), torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.third.weight.mul_(50)
        network.third.bias.sub_(network(images).mean(0))
    found = translated(network, 2, 3, 8, 8)
    x = maps(images)
    labels = Reference(found.plan, found.tensors).run(x).reshape(200, -1).argmax(1)
    return found.plan, found.tensors, Samples(Images(x[:50], None, None), Images(x[50:], labels[50:], None), "noise")


def test_layers_stay_in_float_until_the_bound_holds() -> None:
    plan, tensors, samples = outlier()
    how = Int8(rule="minmax", equalise=False, max_drop=100)
    free = quantise(plan, tensors, samples, how)
    assert free.after.lost > 20
    assert not free.lowered.kept
    bound = quantise(plan, tensors, samples, Int8(rule="minmax", equalise=False, max_drop=6))
    assert bound.after.lost <= 6
    kept = [row for row in bound.layers if row.kept]
    assert any(row.kept == "to keep the accuracy" for row in kept)
    assert len(kept) < len(bound.layers)
    assert all(row.alone is not None for row in bound.layers if row.op in ("conv", "linear"))
    with_ = quantise(plan, tensors, samples, Int8(rule="minmax", max_drop=6))
    assert not with_.lowered.kept  # equalised, all of it can be bytes
    assert with_.links >= 1


def test_a_bound_that_cannot_be_held() -> None:
    plan, tensors, samples = outlier()
    with pytest.raises(Error, match=r"at most 0 points may be lost \(--max-drop\), got .* the file was not kept"):
        quantise(plan, tensors, samples, Int8(rule="minmax", equalise=False, max_drop=0))


@settings(deadline=None)
@given(st.integers(2, 50), st.integers(1, 60))
def test_images_held_back_are_others(count: int, some: int) -> None:
    whole = Images(np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1), np.arange(count), None)
    rest, held = whole.parted(some)
    if count < 4:
        assert len(rest) == len(held) == count
    else:
        assert len(held) == min(some, count // 4)
        assert sorted([*rest.maps.flat, *held.maps.flat]) == list(range(count))
        assert held.labels is not None
        assert np.array_equal(held.labels, held.maps.reshape(-1))
