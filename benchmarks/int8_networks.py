"""The networks whose int8 files benchmarks/int8_accuracy.py measures, for images of 32 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["mobilenet_v2", "spread"]


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


@torch.no_grad()
def spread(model: nn.Module, powers: int, seed: int = 0) -> int:
    """Multiply channels before a ReLU by random powers of two and divide what reads them: the function stays.

    Of every run of norm, ReLU, convolution in an nn.Sequential; channel c by 2^e, e drawn from -powers to powers.

    Args:
        model: in which such runs are.
        powers: the largest exponent.
        seed: of the exponents.

    Returns:
        How many places were changed.
    """
    generator = torch.Generator().manual_seed(seed)
    changed = 0
    for chain in [list(module) for module in model.modules() if isinstance(module, nn.Sequential)]:
        for norm, between, conv in zip(chain, chain[1:], chain[2:], strict=False):
            if isinstance(norm, nn.BatchNorm2d) and isinstance(between, nn.ReLU) and isinstance(conv, nn.Conv2d):
                factors = 2.0 ** torch.randint(-powers, powers + 1, norm.weight.shape, generator=generator)
                norm.weight.mul_(factors)
                norm.bias.mul_(factors)
                conv.weight.div_(factors.view(-1, 1, 1, 1) if conv.groups > 1 else factors.view(1, -1, 1, 1))
                changed += 1
    return changed
