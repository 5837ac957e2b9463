"""MobileNetV1 and its dense twin."""

from __future__ import annotations

import copy

import torch
from torch import nn

from leanconv.errors import Error
from leanconv.models.blocks import ConvNormAct, ImageClassifier, check_options, initialise, separable_block
from leanconv.techniques.separable import SeparableConv2d, dense_fresh

__all__ = ["dense_twin", "mobilenet_v1", "small"]

# (output channels at width 1, stride) of each block; the five equal ones are what `shallow` leaves out.
_FIRST = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2))
_FIVE = ((512, 1),) * 5
_LAST = ((1024, 2), (1024, 1))


def mobilenet_v1(
    width: float = 1.0,
    shallow: bool = False,
    num_classes: int = 1000,
    in_chans: int = 3,
    separable: bool = True,
    stem_stride: int = 2,
) -> ImageClassifier:
    """MobileNetV1 (Howard et al. 2017, table 1), for images of any size.

    At width 1 on 224 x 224: 568.7 million MACs with the classifier, 4.21 million parameters without batch norm's (4.23
    with). The paper prints the last depthwise layer as stride 2; its counts hold for stride 1, which is used here.

    Args:
        width: alpha; every layer's channels are multiplied by it (the paper has 1, 0.75, 0.5, 0.25).
        shallow: leave out the five 14 x 14 x 512 blocks.
        num_classes: outputs.
        in_chans: channels of the image.
        separable: False gives the dense twin: each block one dense 3x3 convolution with norm and ReLU.
        stem_stride: 2 as in the paper; 1 for small images.

    Shape: (N, in_chans, H, W) -> (N, num_classes).

    Raises:
        Error: an option out of range.
    """
    check_options("mobilenet_v1", num_classes=num_classes, in_chans=in_chans, stem_stride=stem_stride)
    rows = _FIRST + (() if shallow else _FIVE) + _LAST
    return _network("mobilenet_v1", rows, 32, width, (num_classes, in_chans, stem_stride), separable)


def small(
    width: float = 1.0, num_classes: int = 10, in_chans: int = 3, separable: bool = True, stem_stride: int = 1
) -> ImageClassifier:
    """A MobileNet for images of 28 to 96 pixels: a stem and six blocks, 32 to 256 channels, 8 times smaller maps.

    Args:
        width: every layer's channels are multiplied by it.
        num_classes: outputs.
        in_chans: channels of the image: 1 grey, 3 colour.
        separable: False gives the dense twin.
        stem_stride: 1; 2 for images above 64 pixels.

    Shape: (N, in_chans, H, W) -> (N, num_classes).

    Raises:
        Error: an option out of range.
    """
    check_options("small", num_classes=num_classes, in_chans=in_chans, stem_stride=stem_stride)
    rows = ((64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
    return _network("small", rows, 32, width, (num_classes, in_chans, stem_stride), separable)


def _network(
    name: str,
    rows: tuple[tuple[int, int], ...],
    stem: int,
    width: float,
    ends: tuple[int, int, int],
    separable: bool,
) -> ImageClassifier:
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 16:
        raise Error(f"{name}: width must satisfy 0 < width <= 16, got width={width!r}")
    num_classes, in_chans, stem_stride = ends
    channels = _scaled(stem, width)
    blocks: list[nn.Module] = []
    make = separable_block if separable else _dense_block
    features = nn.Sequential()
    features.add_module("stem", ConvNormAct(in_chans, channels, stride=stem_stride))
    for out, stride in rows:
        blocks.append(make(channels, _scaled(out, width), stride))
        channels = _scaled(out, width)
    features.add_module("blocks", nn.Sequential(*blocks))
    model = ImageClassifier(name, in_chans, features, nn.Linear(channels, num_classes))
    initialise(model)
    return model


def _scaled(channels: int, width: float) -> int:
    return max(1, int(channels * width + 0.5))


def _dense_block(in_channels: int, out_channels: int, stride: int) -> ConvNormAct:
    return ConvNormAct(in_channels, out_channels, stride=stride)


def dense_twin(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy in which every separable layer is one dense convolution of the same kernel, stride and channels.

    What follows the separable layer (norm, activation) follows the dense one; what stood between is gone. The dense
    weights are fresh, the others are copied. The twin is what the arithmetic of separable layers is compared with.

    Args:
        model: a network with ``SeparableConv2d`` layers: ours are built of them unless told otherwise.
        seed: for the fresh weights.

    Raises:
        Error: the network has no separable layer, so it has no twin.
    """
    paths = [path for path, module in model.named_modules() if isinstance(module, SeparableConv2d)]
    if not paths:
        raise Error(f"dense_twin: the network must have SeparableConv2d layers, got none in {type(model).__name__}")
    twin = copy.deepcopy(model)
    for number, path in enumerate(paths):
        layer = twin.get_submodule(path)
        if isinstance(layer, SeparableConv2d):
            dense = dense_fresh(layer, seed + number)
            dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if not path:
                return dense
            twin.set_submodule(path, dense)
    return twin
