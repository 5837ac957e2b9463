"""The closed form against what an execution counts."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leanconv.accounting import layer_cost
from leanconv.contract import Cost
from leanconv.errors import Error
from leanconv.techniques import separable

SEPARABLE = {1: separable.SeparableConv1d, 2: separable.SeparableConv2d, 3: separable.SeparableConv3d}


def test_by_hand() -> None:
    layer = separable.SeparableConv2d(3, 4, 3, padding=1)
    dw, pw = 3 * 9, 3 * 4 + 4
    read = (2 * 3 * 25 + 2 * 3 * 25 + dw) + (2 * 3 * 25 + 2 * 4 * 25 + pw)
    assert separable.cost(layer, (2, 3, 5, 5)) == Cost(dw + pw, 2 * 25 * (3 * 9 + 3 * 4), 4 * read)


@settings(deadline=None, max_examples=30)
@given(
    dims=st.integers(1, 3),
    channels=st.integers(1, 4),
    m=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same", "valid"]),
    where=st.sampled_from(["both", "between", "after"]),
    parts=st.sampled_from([(None, None), (None, nn.ReLU), ("norm", nn.ReLU)]),
)
def test_agrees_with_the_execution(
    dims: int,
    channels: int,
    m: int,
    kernel: int,
    stride: int,
    dilation: int,
    padding: Any,
    where: str,
    parts: tuple[Any, Any],
) -> None:
    stride = 1 if padding == "same" else stride
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims] if parts[0] else None
    layer = SEPARABLE[dims](
        channels, 5, kernel, stride, padding, dilation, depth_multiplier=m,
        norm_layer=norm, act_layer=parts[1], where=where,
    )  # fmt: skip
    shape = (2, channels, *[9, 8, 8][:dims])
    assert separable.cost(layer, shape) == layer_cost(layer, shape)
    for half in (layer.conv_dw, layer.conv_pw):
        fits = (2, half.in_channels, *shape[2:])
        assert separable.cost(half, fits) == layer_cost(half, fits)


def test_what_is_not_its_own_is_refused() -> None:
    with pytest.raises(Error, match="must be one of the technique's, got Linear"):
        separable.cost(nn.Linear(2, 2), (1, 2))
    with pytest.raises(Error, match="the shape must fit DepthwiseConv2d"):
        separable.cost(separable.DepthwiseConv2d(3, 3), (1, 4, 5, 5))


def test_float64_layers_are_counted_as_float32() -> None:
    layer = separable.DepthwiseConv2d(3, 3, dtype=torch.float64)
    assert separable.cost(layer, (1, 3, 5, 5)) == layer_cost(layer, (1, 3, 5, 5))
