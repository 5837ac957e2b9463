"""Which steps may read and make bytes, and of which type their tensors are."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from leanconv.errors import Error
from leanconv.runtime.plan import BOUNDED, Quant, Step, Value

__all__ = ["TYPES", "Types", "check_kinds", "check_quant"]

TYPES: Mapping[str, tuple[str, int]] = {"F32": ("<f4", 4), "I32": ("<i4", 4), "I8": ("|i1", 1)}
"""Types that tensors of a file have, in its words -> numpy's, and bytes of a number."""

Types = Mapping[str, str]
"""Name of a tensor -> one of :data:`TYPES`."""

_WEIGHTED = ("conv", "depthwise", "linear")
_INTEGERS = {"weight": "I8", "bias": "I32", "scale": "F32"}
_FLOAT_ONLY = ("affine", "softmax")
_EITHER = (*_WEIGHTED, "mean", "avg_pool")  # these make floats of bytes too


def check_quant(quant: Quant, number: int, ends: bool) -> None:
    """Refuse what no byte can mean.

    Args:
        quant: of value ``number``.
        number: for the message.
        ends: whether the value is the network's input or output, which are floats.

    Raises:
        Error: it is; or scale is not a float32 from 1e-30 to 1e30, or zero not from 0 to 255.
    """
    if ends:
        raise Error(f"plan: input and output must be float32, got bytes of value {number}")
    if not 1e-30 <= quant.scale <= 1e30 or struct.unpack("f", struct.pack("f", quant.scale))[0] != quant.scale:
        raise Error(f"plan: a scale must be a float32 from 1e-30 to 1e30, got {quant.scale!r} of value {number}")
    if not 0 <= quant.zero <= 255:
        raise Error(f"plan: a zero must be a byte, 0 to 255, got {quant.zero} of value {number}")


def check_kinds(step: Step, values: Sequence[Value], types: Types | None, inside: bool = False) -> None:
    """Refuse a step that reads or makes bytes where it cannot, or has tensors of another type.

    Args:
        step: the step, or a part of a block.
        values: of the plan.
        types: of all tensors; None: all are float32.
        inside: a part of a block that is not its last: bytes make bytes.

    Raises:
        Error: what does not hold.
    """
    quants = [values[number].quant for number in step.inputs]
    made = values[step.output].quant
    first = quants[0]
    for role, name in step.tensors.items():
        wanted = _INTEGERS[role] if first is not None else "F32"
        got = "F32" if types is None else types[name]
        if got != wanted:
            raise Error(f"{role} must be of type {wanted} here, got {got}")
    if ("scale" in step.tensors) != (first is not None and step.op in _WEIGHTED):
        raise Error(f"scale must be there exactly where weights meet bytes, got {', '.join(sorted(step.tensors))}")
    if step.op in ("quantize", "dequantize"):
        if (first is None, made is None) != ((True, False) if step.op == "quantize" else (False, True)):
            raise Error("it must stand between floats and bytes, got an input and an output of one kind")
        return
    if first is None:
        if made is not None or any(quants):
            raise Error("its inputs and output must all be floats or all be bytes, got a float first input")
        return
    if step.op in _FLOAT_ONLY:
        raise Error("its input must be float32, got bytes")
    if made is None and (inside or step.op not in _EITHER):
        raise Error("its output must be bytes as its input is, got float32")
    if step.op == "max_pool" and made != first:
        raise Error(f"its output must have the scale and zero of its input, {first}, got {made}")
    if step.op == "max_pool" and step.act not in BOUNDED:
        raise Error(f"its act must be one of {', '.join(BOUNDED)} on bytes, got {step.act}")
    others = made is None and step.op in ("conv", "linear")  # a second input is of the output's kind
    for quant in quants[1:]:
        if (quant is None) != others:
            raise Error(f"its other inputs must be {'float32' if others else 'bytes'}, got the other kind")
