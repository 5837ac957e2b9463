"""What a ``.lean`` file says: the values of a network, the steps that make them, and where in memory they stand.

Plain dataclasses. Values are maps of one image, (height, width, channels), channels last; a vector of C numbers is
(1, 1, C). A batch of N images has N such maps one after another. Their numbers are float32, or where a value has a
:class:`Quant` unsigned bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ACTIVATIONS", "BOUNDED", "OPS", "Picture", "Plan", "Quant", "Step", "Value", "Window", "roles"]

ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "silu", "sigmoid", "hardsigmoid")
"""What a step can do to its result; the place in this tuple is the number that native code knows it by."""

BOUNDED = ("none", "relu", "relu6")
"""Activations that only bound a number."""

OPS: Mapping[str, tuple[str, ...]] = {
    "conv": ("weight", "bias"),
    "depthwise": ("weight", "bias"),
    "linear": ("weight", "bias"),
    "affine": ("weight", "bias"),
    "max_pool": (),
    "avg_pool": (),
    "mean": (),
    "add": (),
    "multiply": (),
    "concat": (),
    "activation": (),
    "softmax": (),
    "block": (),
    "quantize": (),
    "dequantize": (),
}
"""Operation -> the tensors that it has. In all of them y passes ``act`` at the end.

conv: weight (out, kh, kw, in / groups), bias (out). With a second input, of the output's shape, that is added before
    the activation: y = act(W x + b + x2).
depthwise: weight (kh, kw, C m), bias (C m); output channel c m + k comes from input channel c.
linear: weight (out, H W C) over the map in the order of memory, bias (out); y is (1, 1, out). A second input is added
    as in conv.
affine: y = weight x + bias, per channel.
max_pool, avg_pool: over the window; padding is minus infinity, or not counted unless ``count_padding``.
mean: over height and width; y is (1, 1, C).
add, multiply: of two values; one of them may be (1, 1, C) or (H, W, 1) or (1, 1, 1) and is then spread.
concat: channels of all inputs, in order.
activation: ``act`` alone.
softmax: over channels, ``act`` is none.
block: ``parts``, each of which reads what the one before made and nothing else (but the last, whose second input may be
    any value); what lies between them is never in memory as a whole. Parts are conv (1x1, groups 1, stride 1) and
    depthwise: depthwise, conv; or conv, depthwise, conv.
quantize, dequantize: from float32 to bytes, and back.

A conv, depthwise or linear whose first input is of bytes has a third tensor, ``scale`` (out), its ``weight`` is int8
and its ``bias`` int32; :mod:`leanconv.runtime.integers` says what it computes.
"""


def roles(op: str, quantized: bool) -> tuple[str, ...]:
    """The tensors of an operation, in :data:`OPS`' words.

    Args:
        op: one of :data:`OPS`.
        quantized: whether its first input is of bytes.
    """
    return (*OPS[op], "scale") if quantized and op in ("conv", "depthwise", "linear") else OPS[op]


@dataclass(frozen=True)
class Window:
    """How a convolution or pooling goes over a map.

    Attributes:
        size, stride, dilation: (height, width).
        padding: rows above, columns left, rows below, columns right.
    """

    size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        op: one of :data:`OPS`.
        inputs: numbers of the values that are read.
        output: number of the value that is made.
        act: one of :data:`ACTIVATIONS`.
        tensors: role (``weight``, ``bias``) -> name of the tensor in the file.
        window: of convolutions and pooling.
        groups: of conv.
        count_padding: of avg_pool.
        parts: of block.
        layer: the layer of the network that this was, for tables and messages.
    """

    op: str
    inputs: tuple[int, ...]
    output: int
    act: str = "none"
    tensors: Mapping[str, str] = field(default_factory=dict)
    window: Window = Window()
    groups: int = 1
    count_padding: bool = True
    parts: tuple[Step, ...] = ()
    layer: str = ""


@dataclass(frozen=True)
class Quant:
    """What an unsigned byte q stands for: scale (q - zero).

    Attributes:
        scale: above 0.
        zero: 0 to 255, the byte of 0.
    """

    scale: float
    zero: int


@dataclass(frozen=True)
class Value:
    """A map of one image.

    Attributes:
        shape: (height, width, channels).
        offset: where it stands in the arena of a batch of N images: ``N * offset`` floats from the start, a multiple of
            16. None: the network's input and output, which lie in the caller's memory, and what a block has inside.
        quant: None: float32. The network's input and output are.
    """

    shape: tuple[int, int, int]
    offset: int | None = None
    quant: Quant | None = None

    @property
    def floats(self) -> int:
        """The memory of one image's map, in units of four bytes."""
        count = self.shape[0] * self.shape[1] * self.shape[2]
        return count if self.quant is None else -(-count // 4)


@dataclass(frozen=True)
class Picture:
    """How an image becomes the network's input.

    The middle square of the image is resized to ``side`` pixels (Pillow, bilinear, antialiased), converted to ``mode``,
    and each channel is (v / 255 - mean) / std.

    Attributes:
        side: pixels.
        mode: ``RGB`` or ``L``.
        mean, std: one number per channel.
    """

    side: int
    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """A network.

    Attributes:
        values: by number.
        steps: in order.
        input, output: numbers of values.
        memory: floats of the arena per image.
        classes: names of the output's channels; empty where they have none.
        picture: None where the network is not known to read images.
        about: what it was made from: free text by key.
    """

    values: tuple[Value, ...]
    steps: tuple[Step, ...]
    input: int
    output: int
    memory: int
    classes: tuple[str, ...] = ()
    picture: Picture | None = None
    about: Mapping[str, str] = field(default_factory=dict)
