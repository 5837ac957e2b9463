"""A residual network for small images, in which each technique is a switch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.models.blocks import ImageClassifier, check_options, initialise
from leanconv.models.plain import probability
from leanconv.techniques.batchnorm import BatchNorm2d
from leanconv.techniques.dropout import Dropout
from leanconv.techniques.separable import SeparableConv2d

__all__ = ["ResidualBlock", "residual"]

# (channels as a multiple of the width, residual blocks) of each stage; every stage halves the map.
_STAGES: tuple[Sequence[int], ...] = ((2, 1), (4, 2))


class ResidualBlock(nn.Module):
    """y = ReLU(x + f(x)), f two 3x3 convolutions with a ReLU between them: (N, C, H, W) -> (N, C, H, W).

    Args:
        channels: C.
        batchnorm: a batch norm after each convolution, the second one starting at gamma = 0, so that the block starts
            as the identity (Goyal et al. 2017, arXiv 1706.02677); it stands in for the biases.
        separable: both convolutions are separable.

    Source: He et al. 2016, arXiv 1512.03385.
    """

    def __init__(self, channels: int, batchnorm: bool, separable: bool) -> None:
        super().__init__()
        self.first = _layer(channels, channels, 1, batchnorm, separable)
        self.second = _layer(channels, channels, 1, batchnorm, separable)[:-1]
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y: Tensor = self.act(x + self.second(self.first(x)))
        return y


def residual(
    dropout: float | bool = False,
    batchnorm: bool = True,
    separable: bool | int = False,
    num_classes: int = 10,
    in_chans: int = 3,
    width: int = 32,
    stages: Sequence[Sequence[int]] = _STAGES,
) -> ImageClassifier:
    """A 3x3 convolution, stages of a halving 3x3 convolution and residual blocks, mean over positions, a linear layer.

    Few layers work at full resolution, where a map costs most memory traffic for its arithmetic; the width grows as the
    maps shrink.

    Args:
        dropout: the probability to drop a unit before the linear layer; True is 0.5, False leaves dropout out.
        batchnorm: batch norm after each convolution; it stands in for their biases.
        separable: every convolution but the first is separable; a number leaves so many stages dense.
        num_classes: outputs.
        in_chans: channels of the image: 1 grey, 3 colour.
        width: channels of the first convolution.
        stages: of each stage, channels as a multiple of the width, and how many residual blocks.

    Shape: (N, in_chans, H, W) -> (N, num_classes), for images of 28 to 96 pixels.

    Raises:
        Error: an option out of range.

    Source: He et al. 2016, arXiv 1512.03385; S28.
    """
    check_options("residual", num_classes=num_classes, in_chans=in_chans, width=width)
    if not isinstance(separable, int) or separable < 0:
        raise Error(f"residual: separable must be a bool or a number of stages >= 0, got separable={separable!r}")
    dense = (0 if separable else len(stages)) if isinstance(separable, bool) else separable
    layers: list[nn.Module] = [*_layer(in_chans, width, 1, batchnorm, False)]
    channels = width
    for number, (times, blocks) in enumerate(_pairs(stages)):
        lean = number >= dense
        layers += _layer(channels, width * times, 2, batchnorm, lean)
        channels = width * times
        layers += [ResidualBlock(channels, batchnorm, lean) for _ in range(blocks)]
    p = probability("residual", dropout)
    head = nn.Sequential(*([Dropout(p)] if p else []), nn.Linear(channels, num_classes))
    model = ImageClassifier("residual", in_chans, nn.Sequential(*layers), head)
    initialise(model)
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            for norm in block.second.children():
                if isinstance(norm, BatchNorm2d) and norm.weight is not None:
                    nn.init.zeros_(norm.weight)
    return model


def _pairs(stages: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    rows = isinstance(stages, Sequence) and not isinstance(stages, str) and len(stages) > 0
    if not rows or any(not isinstance(r, Sequence) or len(r) != 2 for r in stages):
        raise Error(f"residual: stages must be pairs (multiple of the width, blocks), got stages={stages!r}")
    for times, blocks in stages:
        check_options("residual", stages=times)
        check_options("residual", stages=blocks + 1 if isinstance(blocks, int) else blocks)
    return stages


def _layer(inputs: int, outputs: int, stride: int, batchnorm: bool, separable: bool) -> nn.Sequential:
    make = SeparableConv2d if separable else nn.Conv2d
    convolution: nn.Module = make(inputs, outputs, 3, stride, 1, bias=not batchnorm)
    return nn.Sequential(convolution, *([BatchNorm2d(outputs)] if batchnorm else []), nn.ReLU())
