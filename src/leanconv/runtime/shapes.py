"""The shape that a step's output has, from those of its inputs and tensors; refuses what does not fit together.

The one place that knows the arithmetic of shapes: files are checked with it, and whoever makes a plan can ask it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from leanconv.errors import Error
from leanconv.runtime.encoding import LARGEST, shown
from leanconv.runtime.plan import ACTIVATIONS, OPS, Step, Window, roles

__all__ = ["Shape", "output_shape"]

Shape = tuple[int, int, int]
"""Height, width, channels."""

_Tensors = Mapping[str, Sequence[int]]
_WINDOWED = ("conv", "depthwise", "max_pool", "avg_pool")
_ADDS = ("conv", "linear")
_WIDEST = 2**16
_PARTS = (("depthwise", "conv"), ("conv", "depthwise", "conv"))


def output_shape(step: Step, inputs: Sequence[Shape], tensors: _Tensors) -> Shape:
    """The shape of a step's output.

    Args:
        step: the step; of a block, ``inputs`` are those of the block.
        inputs: shapes of its inputs, in order.
        tensors: name -> shape, of those tensors at least that the step names.

    Raises:
        Error: the step is not one that :data:`leanconv.runtime.plan.OPS` describes: an unknown operation or
            activation, a tensor of another shape, inputs that do not fit, a field that this operation does not have.
    """
    if step.op not in OPS:
        raise Error(f"op must be one of {', '.join(OPS)}, got {shown(step.op)}")
    if step.act not in ACTIVATIONS:
        raise Error(f"act must be one of {', '.join(ACTIVATIONS)}, got {shown(step.act)}")
    wanted = roles(step.op, quantized="scale" in step.tensors)
    if set(step.tensors) != set(wanted):
        raise Error(f"tensors must be {_names(wanted)}, got {_names(sorted(step.tensors))}")
    for name in step.tensors.values():
        if name not in tensors:
            raise Error(f"every tensor must stand in the file, got the name {shown(name)}")
    _only_its_own(step)
    if step.op == "block":
        shape = _block(step, tuple(inputs), tensors)
    else:
        own = {role: tuple(tensors[name]) for role, name in step.tensors.items()}
        shape = _RULES[step.op](step, tuple(inputs), own)
    if any(size < 1 for size in shape) or shape[0] * shape[1] * shape[2] > LARGEST:
        raise Error(f"its output must have 1 to 2^31 - 1 numbers, got {_by(shape)}")
    if "scale" in step.tensors:
        _must("scale", tensors[step.tensors["scale"]], shape[2:], "(out)")
    if len(inputs) > 1 and step.op in _ADDS and tuple(inputs[1]) != shape:
        raise Error(f"its second input must have the shape of its output, {_by(shape)}, got {_by(inputs[1])}")
    return shape


def _only_its_own(step: Step) -> None:
    """Fields that an operation does not have must say nothing."""
    if step.groups != 1 and step.op != "conv":
        raise Error(f"groups must be 1 of anything but conv, got {step.groups}")
    if step.window != Window() and step.op not in _WINDOWED:
        raise Error(f"a window must be given to {', '.join(_WINDOWED)} alone, got {step.window}")
    if not step.count_padding and step.op != "avg_pool":
        raise Error("count_padding must be given to avg_pool alone, got false")
    if step.parts and step.op != "block":
        raise Error(f"parts must be given to block alone, got {len(step.parts)}")
    if step.act != "none" and step.op in ("softmax", "block", "quantize", "dequantize"):
        raise Error(f"act must be none, got {step.act}")


def _count(inputs: Sequence[Shape], least: int, most: int | None = None) -> None:
    if len(inputs) < least or (most is not None and len(inputs) > most):
        told = f"{least}" if most == least else f"{least} to {most}" if most else f"at least {least}"
        raise Error(f"it must have {told} inputs, got {len(inputs)}")


def _must(role: str, got: Sequence[int], wanted: Sequence[int], words: str) -> None:
    if tuple(got) != tuple(wanted):
        raise Error(f"{role} must have the shape {words} = {_by(wanted)}, got {_by(got)}")


def _rank(role: str, got: Sequence[int], words: str) -> None:
    if len(got) != words.count(",") + 1 or any(size < 1 for size in got):
        raise Error(f"{role} must have the shape {words}, got {_by(got)}")


def _swept(size: Shape, window: Window) -> tuple[int, int]:
    """Height and width of what a window finds."""
    top, left, below, right = window.padding
    numbers = (*window.size, *window.stride, *window.dilation, *window.padding)
    if max(numbers) > _WIDEST:
        raise Error(f"the numbers of its window must be at most {_WIDEST}, got {window}")
    if (size[0] + top + below) * (size[1] + left + right) * size[2] > LARGEST:
        raise Error(f"its padded input must have at most 2^31 - 1 numbers, got {_by(size)} and {window}")
    found = []
    for n, (before, after), kernel, stride, dilation in zip(
        size[:2], ((top, below), (left, right)), window.size, window.stride, window.dilation, strict=True
    ):
        if min(kernel, stride, dilation) < 1 or min(before, after) < 0:
            raise Error(f"size, stride and dilation must be at least 1 and padding at least 0, got {window}")
        room = n + before + after - dilation * (kernel - 1) - 1
        if room < 0:
            raise Error(f"its window must fit into the padded input, {_by(size)}, got {window}")
        found.append(room // stride + 1)
    return found[0], found[1]


def _conv(step: Step, inputs: Sequence[Shape], tensors: _Tensors) -> Shape:
    _count(inputs, 1, 2)
    weight, channels = tensors["weight"], inputs[0][2]
    _rank("weight", weight, "(out, kh, kw, in / groups)")
    if step.groups < 1 or channels % step.groups or weight[0] % step.groups:
        raise Error(f"groups must divide its channels, {channels} and {weight[0]}, got {step.groups}")
    wanted = (weight[0], *step.window.size, channels // step.groups)
    _must("weight", weight, wanted, "(out, kh, kw, in / groups)")
    _must("bias", tensors["bias"], (weight[0],), "(out)")
    return (*_swept(inputs[0], step.window), weight[0])


def _depthwise(step: Step, inputs: Sequence[Shape], tensors: _Tensors) -> Shape:
    _count(inputs, 1, 1)
    weight, channels = tensors["weight"], inputs[0][2]
    _rank("weight", weight, "(kh, kw, C m)")
    if weight[2] % channels:
        raise Error(f"weight must have a multiple of {channels} channels, got {weight[2]}")
    _must("weight", weight, (*step.window.size, weight[2]), "(kh, kw, C m)")
    _must("bias", tensors["bias"], (weight[2],), "(C m)")
    return (*_swept(inputs[0], step.window), weight[2])


def _linear(step: Step, inputs: Sequence[Shape], tensors: _Tensors) -> Shape:
    _count(inputs, 1, 2)
    height, width, channels = inputs[0]
    weight = tensors["weight"]
    _rank("weight", weight, "(out, H W C)")
    _must("weight", weight, (weight[0], height * width * channels), "(out, H W C)")
    _must("bias", tensors["bias"], (weight[0],), "(out)")
    return (1, 1, weight[0])


def _affine(step: Step, inputs: Sequence[Shape], tensors: _Tensors) -> Shape:
    _count(inputs, 1, 1)
    for role in ("weight", "bias"):
        _must(role, tensors[role], inputs[0][2:], "(C)")
    return inputs[0]


def _pool(step: Step, inputs: Sequence[Shape], tensors: _Tensors) -> Shape:
    _count(inputs, 1, 1)
    window = step.window
    if step.op == "avg_pool" and window.dilation != (1, 1):
        raise Error(f"dilation must be 1, got {window.dilation}")
    shape = (*_swept(inputs[0], window), inputs[0][2])
    height, width = (d * (k - 1) + 1 for d, k in zip(window.dilation, window.size, strict=True))
    # So that no window of undilated pooling lies in the padding as a whole.
    if max(window.padding[0::2]) >= height or max(window.padding[1::2]) >= width:
        raise Error(f"padding must be smaller than the window, {height} x {width}, got {window.padding}")
    return shape


def _mean(step: Step, inputs: Sequence[Shape], tensors: _Tensors) -> Shape:
    _count(inputs, 1, 1)
    return (1, 1, inputs[0][2])


def _pair(step: Step, inputs: Sequence[Shape], tensors: _Tensors) -> Shape:
    _count(inputs, 2, 2)
    for big, small in (inputs, inputs[::-1]):
        height, width, channels = big
        if small in (big, (1, 1, channels), (height, width, 1), (1, 1, 1)):
            return big
    raise Error(
        f"its inputs must have one shape, or one of them must spread, got {_by(inputs[0])} and {_by(inputs[1])}"
    )


def _concat(step: Step, inputs: Sequence[Shape], tensors: _Tensors) -> Shape:
    _count(inputs, 1)
    for shape in inputs[1:]:
        if shape[:2] != inputs[0][:2]:
            raise Error(f"its inputs must have one height and width, got {_by(inputs[0])} and {_by(shape)}")
    return (*inputs[0][:2], sum(shape[2] for shape in inputs))


def _same(step: Step, inputs: Sequence[Shape], tensors: _Tensors) -> Shape:
    _count(inputs, 1, 1)
    return inputs[0]


def _block(step: Step, inputs: Sequence[Shape], tensors: _Tensors) -> Shape:
    _count(inputs, 1, 2)
    ops = tuple(part.op for part in step.parts)
    if ops not in _PARTS:
        raise Error(f"parts must be depthwise, conv or conv, depthwise, conv, got {shown(ops)}")
    shape = inputs[0]
    for i, part in enumerate(step.parts):
        if part.op == "conv" and (part.groups != 1 or part.window != Window()):
            raise Error(f"a conv of its parts must be 1x1 of stride 1, without padding and groups, got part {i}")
        last = part is step.parts[-1]
        try:
            shape = output_shape(part, (shape, *inputs[1:]) if last else (shape,), tensors)
        except Error as error:
            raise Error(f"part {i} ({part.op}): {error}") from None
    return shape


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[:8])) or "a single number"


def _names(names: Sequence[str]) -> str:
    return shown(", ".join(names))[1:-1] if names else "none"


_RULES: Mapping[str, Callable[[Step, Sequence[Shape], _Tensors], Shape]] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "linear": _linear,
    "affine": _affine,
    "max_pool": _pool,
    "avg_pool": _pool,
    "mean": _mean,
    "add": _pair,
    "multiply": _pair,
    "concat": _concat,
    "activation": _same,
    "softmax": _same,
    "quantize": _same,
    "dequantize": _same,
}
