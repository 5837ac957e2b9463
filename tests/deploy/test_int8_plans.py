"""Plans of bytes made of float plans: what is kept, that they hold together, and channels of one size."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lean_nets import basic, drawn, maps, mobilenet_v2, mobilenet_v3, resnet, translated
from lean_plans import Builder, plans
from leanconv.deploy.quantisation import quantising
from leanconv.deploy.quantisation.choosing import fewest, ranked
from leanconv.deploy.quantisation.equalisation import HEADROOM, MARGIN, equalised, links
from leanconv.deploy.quantisation.lowering import Lowered, lower, pointed, shared, units
from leanconv.deploy.quantisation.measuring import noises
from leanconv.deploy.quantisation.observing import observe, watched
from leanconv.deploy.quantisation.options import Int8
from leanconv.deploy.quantisation.quantising import calibrated, quantise
from leanconv.deploy.quantisation.rules import quant, within
from leanconv.deploy.quantisation.samples import Images, Samples
from leanconv.deploy.quantisation.weights import spread
from leanconv.errors import Error
from leanconv.runtime.checking import check
from leanconv.runtime.plan import Plan, Quant, Step, Window
from leanconv.runtime.reference import Reference

TYPES = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32", np.dtype(np.int8): "I8"}


def holds_together(plan: Plan, tensors: Any) -> None:
    types = {name: TYPES[values.dtype] for name, values in tensors.items()}
    check(plan, {name: values.shape for name, values in tensors.items()}, types)


def noise(plan: Plan, count: int = 6, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, *plan.values[plan.input].shape)).astype(np.float32)


def lowered(plan: Plan, tensors: Any, x: Any, kept: Any = ()) -> tuple[Plan, Any, Lowered]:
    plan, tensors = pointed(plan, tensors)
    seen = observe(plan, tensors, [x])
    quants = {number: quant(*within("minmax", one.counted, 99)) for number, one in seen.items()}
    made = lower(plan, tensors, quants, kept)
    holds_together(made.plan, made.tensors)
    return plan, tensors, made


# --- plans -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(plans(), st.data())
def test_any_plan_holds_together_in_bytes_and_answers_nearly(built: tuple[Plan, Any], data: st.DataObject) -> None:
    plan, tensors = built
    x = noise(plan)
    kept = data.draw(st.sets(st.sampled_from(range(len(plan.steps)))))
    plan, tensors, made = lowered(plan, tensors, x, kept)
    assert kept <= set(made.kept)
    assert made.left == len(plan.steps) - len(made.kept)
    y, wanted = Reference(made.plan, made.tensors).run(x), Reference(plan, tensors).run(x)
    assert y.shape == wanted.shape
    assert y.dtype == np.float32
    assert np.isfinite(y).all()
    if len(made.kept) == len(plan.steps):
        assert np.array_equal(y, wanted)
        assert not any(value.quant for value in made.plan.values)
    for step in made.plan.steps:  # nothing is taken into bytes and back for nothing
        if step.op == "dequantize":
            maker = next((s for s in made.plan.steps if s.output == step.inputs[0]), None)
            assert maker is None or maker.op != "quantize"


@pytest.mark.parametrize("network", [mobilenet_v2, mobilenet_v3, resnet])
def test_networks_in_bytes(network: Any) -> None:
    found = translated(drawn(network()), 2, 3, 32, 32)
    x = maps(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    plan, tensors, made = lowered(found.plan, found.tensors, x)
    assert not made.kept
    ops = [step.op for step in made.plan.steps]
    assert ops.count("quantize") == 1  # the input's
    assert "dequantize" not in ops  # the last layer makes floats by itself
    assert made.plan.memory <= 0.5 * plan.memory
    y, wanted = Reference(made.plan, made.tensors).run(x), Reference(plan, tensors).run(x)
    assert np.abs(y - wanted).max() < 0.03 * np.abs(wanted).max()


def test_what_stays_in_float_and_what_goes_with_it() -> None:
    builder = Builder((8, 8, 3))
    first = builder.conv(0, 4, act="relu")
    pooled = builder.add("max_pool", first, window=Window((2, 2), (2, 2)))
    second = builder.conv(pooled, 6, act="relu")
    builder.add("softmax", builder.linear(builder.add("mean", second), 5))
    plan, tensors = builder.plan(), builder.tensors
    x = noise(plan)
    _, _, made = lowered(plan, tensors, x, {0, 2})
    assert made.kept == {
        0: "to keep the accuracy",
        1: "between layers in float",
        2: "to keep the accuracy",
        5: "softmax",
    }
    assert [step.op for step in made.plan.steps] == [
        "conv",
        "max_pool",
        "conv",
        "quantize",
        "mean",
        "linear",
        "softmax",
    ]
    _, _, made = lowered(plan, tensors, x, {2})
    assert [step.op for step in made.plan.steps] == [
        *("quantize", "conv", "max_pool", "dequantize", "conv", "quantize", "mean", "linear", "softmax"),
    ]
    _, _, made = lowered(plan, tensors, x, {4})
    assert [step.op for step in made.plan.steps][-3:] == ["mean", "linear", "softmax"]
    assert made.plan.values[made.plan.steps[-3].output].quant is None  # the mean makes floats by itself


def test_affine_maps_and_unbounded_pooling_have_another_form() -> None:
    builder = Builder((6, 6, 3))
    x = builder.add("max_pool", builder.affine(0, "relu"), window=Window((2, 2), (2, 2)), act="hardswish")
    builder.conv(x, 4)
    plan, tensors = builder.plan(), builder.tensors
    again, named = pointed(plan, tensors)
    assert [step.op for step in again.steps] == ["depthwise", "max_pool", "activation", "conv"]
    batch = noise(plan)
    assert np.allclose(Reference(again, named).run(batch), Reference(plan, tensors).run(batch), atol=1e-6)


def test_a_residual_sum_that_ends_the_network_is_in_floats() -> None:
    found = translated(drawn(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), basic(8, 8))), 2, 3, 8, 8)
    x = maps(torch.rand(4, 3, 8, 8))
    plan, tensors, made = lowered(found.plan, found.tensors, x)
    last = made.plan.steps[-1]
    assert last.op == "conv"
    assert len(last.inputs) == 2
    assert made.plan.values[last.inputs[1]].quant is None
    y = Reference(made.plan, made.tensors).run(x)
    wanted = Reference(plan, tensors).run(x)
    assert np.abs(y - wanted).max() < 0.03 * np.abs(wanted).max()


def test_concatenated_maps_share_bytes_that_are_nearly_as_fine() -> None:
    builder = Builder((4, 4, 3))
    a, b, c = builder.conv(0, 4), builder.conv(0, 4), builder.conv(0, 4)
    builder.add("mean", builder.add("concat", a, b, c))
    builder.conv(c, 2)
    whole = builder.steps[3].output
    plan = builder.plan() if builder.steps[-1].op == "mean" else None
    assert plan is None  # two ends: looked at by hand
    builder.steps.pop()
    builder.values.pop()
    plan = builder.plan()
    quants = {n: Quant(1.0, 9) for n in range(len(plan.values))} | {
        a: Quant(0.9, 3),
        b: Quant(0.1, 3),
        c: Quant(2.0, 1),
    }
    found = shared(plan, quants)
    assert (found[a], found[b], found[c]) == (quants[whole], quants[b], quants[whole])


def test_a_layer_whose_sums_leave_32_bits_stays_in_float() -> None:
    builder = Builder((8, 8, 1100))
    builder.linear(builder.add("activation", 0, act="relu"), 2)
    plan, tensors = builder.plan(), builder.tensors
    name = plan.steps[-1].tensors["weight"]
    tensors[name] = np.ones_like(tensors[name])
    _, _, made = lowered(plan, tensors, noise(plan, 2))
    assert "32 bits" in made.kept[1]


def test_a_dead_layer_does_not_spoil_the_scales() -> None:
    builder = Builder((4, 4, 2))
    builder.conv(builder.conv(0, 3, act="relu"), 3)
    plan, tensors = builder.plan(), builder.tensors
    tensors[plan.steps[0].tensors["bias"]] = np.full(3, -100, np.float32)
    x = noise(plan)
    plan, tensors, made = lowered(plan, tensors, x)
    assert np.allclose(Reference(made.plan, made.tensors).run(x), Reference(plan, tensors).run(x), atol=1e-3)


# --- observing -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(plans())
def test_every_value_is_looked_at(built: tuple[Plan, Any]) -> None:
    plan, tensors = built
    x, held = noise(plan), dict[int, Any]()
    watched(plan, tensors, x, held.__setitem__)
    assert sorted(held) == list(range(len(plan.values)))
    assert np.array_equal(held[plan.output], Reference(plan, tensors).run(x))
    seen = observe(plan, tensors, [x[:2], x[2:]])
    for number, one in seen.items():
        flat = held[number].reshape(-1, held[number].shape[-1]).astype(np.float64)
        assert np.allclose((one.counted.low, one.counted.high), (flat.min(), flat.max()), rtol=1e-4, atol=1e-6)
        assert np.allclose(one.channels.largest, np.abs(flat).max(0), rtol=1e-4, atol=1e-6)
        assert np.allclose(one.channels.mean, flat.mean(0), rtol=1e-3, atol=1e-5)
        assert np.allclose(one.channels.square, np.square(flat).mean(0), rtol=1e-3, atol=1e-5)


def test_numbers_that_are_not_finite_are_told() -> None:
    builder = Builder((4, 4, 2))
    builder.conv(0, 3)
    plan = builder.plan()
    builder.tensors[plan.steps[0].tensors["bias"]][0] = np.inf
    with pytest.raises(Error, match="must be finite on the images, got others in conv"):
        observe(plan, builder.tensors, [noise(plan)])


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
    even = after >= 0.99 / HEADROOM * after.max()
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


def unequal(plan: Plan, tensors: Any, powers: int, seed: int = 0) -> tuple[Plan, dict[str, Any]]:
    """The same function, relu6 taken for relu, with channels between layers multiplied by random powers of two."""
    random = np.random.default_rng(seed)

    def plain(step: Step) -> Step:
        return replace(step, act=step.act.replace("relu6", "relu"), parts=tuple(map(plain, step.parts)))

    plan, made = replace(plan, steps=tuple(map(plain, plan.steps))), dict(tensors)
    for link in links(plan):
        first, second = link.first.tensors, link.second.tensors
        bias, weight = made[first["bias"]], made[first["weight"]]
        f = (2.0 ** random.integers(-powers, powers + 1, len(bias))).astype(np.float32)
        made[first["weight"]] = weight * (
            f if link.first.op == "depthwise" else f.reshape(-1, *(1,) * (weight.ndim - 1))
        )
        made[first["bias"]] = bias * f
        made[second["weight"]] = made[second["weight"]] / spread(link.second, f, made[second["weight"]])
    return plan, made


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


# --- choosing --------------------------------------------------------------------------------------------------------


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


def test_signal_to_noise_layer_by_layer() -> None:
    found = translated(drawn(mobilenet_v2()), 2, 3, 32, 32)
    x = maps(torch.rand(4, 3, 32, 32))
    images = Images(x, None, None)
    ready = calibrated(found.plan, found.tensors, images, Int8())[-1]
    made = lower(ready.plan, ready.tensors, ready.quants, (), ready.biases)
    told = noises(ready.plan, ready.tensors, made, images)
    assert sorted(told) == list(range(len(found.plan.values)))
    assert all(20 < ratio <= 200 for ratio in told.values())
    everything = lower(ready.plan, ready.tensors, ready.quants, range(len(found.plan.steps)))
    assert set(noises(ready.plan, ready.tensors, everything, images).values()) == {200.0}


def test_units_are_what_rounds() -> None:
    found = translated(drawn(mobilenet_v2()), 2, 3, 32, 32)
    ops = [found.plan.steps[i].op for i in units(found.plan)]
    assert set(ops) == {"conv", "block", "linear"}


def test_biases_of_layers_in_float_are_as_they_were() -> None:
    found = translated(drawn(mobilenet_v2()), 2, 3, 32, 32)
    ready = calibrated(found.plan, found.tensors, Images(maps(torch.rand(4, 3, 32, 32)), None, None), Int8())[-1]
    bias = ready.plan.steps[0].tensors["bias"]
    assert not np.array_equal(ready.biases[ready.plan.steps[0].output], ready.tensors[bias])
    made = lower(ready.plan, ready.tensors, ready.quants, {0}, ready.biases)
    assert np.array_equal(made.tensors[made.plan.steps[0].tensors["bias"]], ready.tensors[bias])


def test_equalising_must_lower_the_noise_of_images_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    found = translated(drawn(mobilenet_v2()), 2, 3, 32, 32)
    images = Images(maps(torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))), None, None)
    plan, tensors = unequal(found.plan, found.tensors, 4)
    samples = Samples(images, images, "noise")
    assert quantise(plan, tensors, samples, Int8()).links > 0
    monkeypatch.setattr(quantising, "GAIN", 100)
    assert quantise(plan, tensors, samples, Int8()).links == 0


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
