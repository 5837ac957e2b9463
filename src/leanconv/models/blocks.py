"""What our networks are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.techniques.batchnorm import BatchNorm2d
from leanconv.techniques.separable import DepthwiseConv2d, SeparableConv2d

__all__ = ["ConvNormAct", "ImageClassifier", "check_options", "initialise", "separable_block"]


class ConvNormAct(nn.Sequential):
    """Dense convolution, batch norm, ReLU: (N, Cin, H, W) -> (N, Cout, H', W') with zeros around the image.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel_size: odd; padding is half of it.
        stride: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = BatchNorm2d(out_channels)
        self.act = nn.ReLU()


def separable_block(in_channels: int, out_channels: int, stride: int = 1) -> SeparableConv2d:
    """MobileNet's block: depthwise 3x3, norm, ReLU, pointwise, norm, ReLU."""
    return SeparableConv2d(
        in_channels, out_channels, 3, stride, 1, bias=False, norm_layer=BatchNorm2d, act_layer=nn.ReLU
    )


class ImageClassifier(nn.Module):
    """A network for images: features, mean over positions, classifier.

    Args:
        name: for error messages.
        in_chans: channels of the image.
        features: (N, in_chans, H, W) -> (N, C, H', W').
        classifier: (N, C) -> (N, num_classes).
        least: the smallest image side.
        grid: the mean is taken in each of grid x grid parts of the map, and the classifier sees (N, C * grid^2).

    Shape: (N, in_chans, H, W) -> (N, num_classes). Everything runs channels_last.

    Raises:
        Error: an input of another shape.
    """

    def __init__(
        self, name: str, in_chans: int, features: nn.Module, classifier: nn.Module, least: int = 1, grid: int = 1
    ) -> None:
        super().__init__()
        self.name, self.in_chans, self.least = name, in_chans, least
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.flatten = nn.Flatten()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_classes)."""
        if x.dim() != 4 or x.shape[1] != self.in_chans or min(x.shape[2:]) < self.least:
            sides = f" with H and W at least {self.least}" if self.least > 1 else ""
            raise Error(f"{self.name}: the input must be (N, {self.in_chans}, H, W){sides}, got {tuple(x.shape)}")
        if not x.is_contiguous(memory_format=torch.channels_last):  # once, at the border
            x = x.contiguous(memory_format=torch.channels_last)
        y: Tensor = self.classifier(self.flatten(self.pool(self.features(x))))
        return y


def initialise(model: nn.Module) -> None:
    """Draw the weights of convolutions so that a ReLU network keeps the scale of its maps (He et al. 2015).

    Variance 2 / fan-in; 1 / fan-in for a depthwise convolution without an activation behind it; biases 0. The last
    linear layer keeps torch's. Convolutions become channels_last.
    """
    for module in model.modules():
        bare = isinstance(module, SeparableConv2d) and not module.between()
        for child in module.children():
            if isinstance(child, nn.Conv2d):
                linear = bare and isinstance(child, DepthwiseConv2d)
                nn.init.kaiming_normal_(child.weight, nonlinearity="linear" if linear else "relu")
                if child.bias is not None:
                    nn.init.zeros_(child.bias)
                child.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def check_options(subject: str, **options: Any) -> None:
    """Refuse counts that are no integers >= 1.

    Raises:
        Error: one sentence with the option's name and value.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Error(f"{subject}: {name} must be an integer >= 1, got {name}={value!r}")
