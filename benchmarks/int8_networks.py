"""The networks whose int8 files benchmarks/int8_accuracy.py measures, for images of 32 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from leanconv.deploy.quantisation.equalisation import links
from leanconv.deploy.quantisation.weights import spread
from leanconv.runtime.plan import Plan, Step

__all__ = ["mobilenet_v2", "unequal"]


def mobilenet_v2(num_classes: int = 10, in_chans: int = 3, width: float = 0.5, act: str = "relu6") -> nn.Module:
    """Expansion, depthwise, projection, with residual sums, as MobileNetV2 and EfficientNet-Lite have them."""
    kind = {"relu6": nn.ReLU6, "relu": nn.ReLU, "hardswish": nn.Hardswish}[act]
    channels = int(32 * width)
    layers = _unit(in_chans, channels, 3, kind)
    for expand, out, count, stride in ((1, 16, 1, 1), (4, 32, 2, 2), (4, 64, 3, 2), (4, 128, 2, 2)):
        for i in range(count):
            layers.append(_Inverted(channels, int(out * width), expand, stride if i == 0 else 1, kind))
            channels = int(out * width)
    layers += _unit(channels, 256, 1, kind)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, num_classes))


class _Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, expand: int, stride: int, kind: type[nn.Module]) -> None:
        super().__init__()
        wide = inputs * expand
        layers = _unit(inputs, wide, 1, kind) if expand > 1 else []
        layers += _unit(wide, wide, 3, kind, groups=wide, stride=stride)
        self.body = nn.Sequential(*layers, *_unit(wide, outputs, 1, None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H', W')."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def _unit(
    inputs: int, outputs: int, size: int, kind: type[nn.Module] | None, groups: int = 1, stride: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *([] if kind is None else [kind()])]


def unequal(plan: Plan, tensors: Mapping[str, Any], powers: int, seed: int = 0) -> tuple[Plan, dict[str, Any]]:
    """The same function with channels of very unequal sizes; relu6 is taken for relu, which alone lets them be.

    Channels between two layers are multiplied by 2^e, e drawn from -powers to powers, and what reads them divides.
    """
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
