"""Networks that a .lean file can hold, as others write them, and what tests ask of a translation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv import surgery
from leanconv.deploy.translation import Translated, as_torch, translate
from leanconv.graph import evaluating
from leanconv.runtime import Engine
from leanconv.runtime.checking import check
from leanconv.runtime.reference import Reference


class Function(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers(x))


class Residual(nn.Module):
    """y = act(x + body(x)), the shortcut with a layer of its own where one is given."""

    def __init__(self, body: nn.Module, act: nn.Module | None = None, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.act, self.shortcut = body, act, shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) + (x if self.shortcut is None else self.shortcut(x))
        return y if self.act is None else self.act(y)


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.second(F.relu(self.first(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(gate)


def norm_conv(inputs: int, outputs: int, size: int, act: type[nn.Module] | None, **more: Any) -> list[nn.Module]:
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **more)
    return [conv, nn.BatchNorm2d(outputs), *([] if act is None else [act()])]


def inverted(inputs: int, wide: int, outputs: int, act: type[nn.Module], stride: int = 1, squeeze: bool = False,
             size: int = 3) -> nn.Module:  # fmt: skip
    """The block of MobileNetV2 and V3."""
    layers = norm_conv(inputs, wide, 1, act) if wide != inputs else []
    layers += norm_conv(wide, wide, size, act, groups=wide, stride=stride)
    layers += [Squeeze(wide)] if squeeze else []
    body = nn.Sequential(*layers, *norm_conv(wide, outputs, 1, None))
    return Residual(body) if stride == 1 and inputs == outputs else body


def mobilenet_v2() -> nn.Module:
    return nn.Sequential(
        *norm_conv(3, 8, 3, nn.ReLU6, stride=2),
        inverted(8, 8, 8, nn.ReLU6),
        inverted(8, 24, 12, nn.ReLU6, stride=2),
        inverted(12, 36, 12, nn.ReLU6),
        *norm_conv(12, 32, 1, nn.ReLU6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 5),
    )  # fmt: skip


def mobilenet_v3() -> nn.Module:
    return nn.Sequential(
        *norm_conv(3, 8, 3, nn.Hardswish, stride=2),
        inverted(8, 16, 8, nn.ReLU, squeeze=True),
        inverted(8, 20, 12, nn.Hardswish, stride=2, squeeze=True, size=5),
        inverted(12, 24, 12, nn.Hardswish),
        *norm_conv(12, 32, 1, nn.Hardswish),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 16), nn.Hardswish(), nn.Linear(16, 5),
    )  # fmt: skip


def basic(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """The block of ResNet-18."""
    body = [*norm_conv(inputs, outputs, 3, nn.ReLU, stride=stride), *norm_conv(outputs, outputs, 3, None)]
    shortcut = None if stride == 1 else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    return Residual(nn.Sequential(*body), nn.ReLU(inplace=True), shortcut)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        basic(8, 8), basic(8, 8), basic(8, 16, 2), basic(16, 16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


@torch.no_grad()
def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with statistics and factors of batch norms that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            for name, low in (("running_mean", -0.3), ("running_var", 0.5), ("weight", 0.6), ("bias", -0.2)):
                tensor = getattr(module, name)
                if tensor is not None:
                    tensor.copy_(low + 0.8 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def maps(x: Tensor) -> np.ndarray[Any, Any]:
    """(N, C), (N, C, L) or (N, C, H, W) as (N, H, W, C)."""
    shape = (x.shape[0], x.shape[1], *(1,) * (4 - x.dim()), *x.shape[2:])
    return x.reshape(shape).permute(0, 2, 3, 1).numpy()


def translated(model: nn.Module, *shape: int, fold: bool = True) -> Translated:
    """The plan of a network, which runs in float64 as torch does, and in the engine nearly so; folded in float32.

    The shape is that of a batch.
    """
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    model.eval()
    if fold:
        model, _ = surgery.fold(model, example=x[:1], latency=False, check=False)
    found = translate(model, x[:1])
    check(found.plan, {name: tensor.shape for name, tensor in found.tensors.items()})
    with evaluating(model):
        want = model.double()(x.double())
    model.float()
    got = Reference(found.plan, found.tensors, np.float64).run(maps(x.double()))
    with Engine(found.plan, found.tensors, 1) as engine:
        near = engine.run(np.ascontiguousarray(maps(x)))
    assert np.abs(near - got).max() <= 1e-4 * max(1.0, np.abs(got).max())
    got, wanted = as_torch(got.transpose(0, 3, 1, 2), found.order), want.numpy()
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 2e-6 * max(1.0, np.abs(wanted).max())
    return found


def told(found: Translated) -> list[str]:
    """The steps, as ``conv+relu``; of blocks their parts."""
    return [f"block({' '.join(map(_word, step.parts))})" if step.parts else _word(step) for step in found.plan.steps]


def _word(step: Any) -> str:
    return step.op + ("+" + step.act if step.act != "none" else "") + ("+sum" if _sums(step) else "")


def _sums(step: Any) -> bool:
    return step.op in ("conv", "linear") and len(step.inputs) > 1
