"""Plans of bytes made of float plans: what is kept, and that they hold together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from int8_plans import lowered, noise
from lean_nets import basic, drawn, maps, mobilenet_v2, mobilenet_v3, resnet, translated
from lean_plans import Builder, plans
from leanconv.deploy.quantisation.lowering import lower, pointed, shared, units
from leanconv.deploy.quantisation.measuring import noises
from leanconv.deploy.quantisation.observing import observe, watched
from leanconv.deploy.quantisation.options import Int8
from leanconv.deploy.quantisation.quantising import calibrated
from leanconv.deploy.quantisation.samples import Images
from leanconv.errors import Error
from leanconv.runtime.plan import Plan, Quant, Window
from leanconv.runtime.reference import Reference

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
