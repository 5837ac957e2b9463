"""The networks whose int8 files benchmarks/int8_accuracy.py measures, for images of 32 pixels."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["mobilenet_v2"]


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
