"""What moves no number, or only picks channels: views, transpositions, slices, concatenation, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.deploy.translation.calls import Call, Ref, Rule, Unsupported
from leanconv.deploy.translation.draft import slid
from leanconv.deploy.translation.layout import Dim, letters, permuted, reshaped, restrided, sizes
from leanconv.runtime.plan import Window

__all__ = ["RULES"]

_CASTS = ("half", "bfloat16", "double", "int", "long")


def _as_it_is(call: Call) -> Ref:
    dtype = [a for a in call.arguments.values() if isinstance(a, torch.dtype) and a != torch.float32]
    if dtype or call.kind in _CASTS:
        raise Unsupported(f"{call.kind} to another type of number")
    return call.ref()


def _reshape(call: Call) -> Ref:
    """Views of every kind: what counts is the shape that came out."""
    ref = call.ref()
    layout = reshaped(ref.layout, call.outputs[0])
    if layout is None:
        raise Unsupported(f"{call.kind} that takes a map apart")
    return Ref(ref.value, layout)


def _permute(call: Call) -> Ref:
    ref = call.ref()
    rank = len(ref.layout) + 1
    given = call.get("dims")
    if not isinstance(given, Sequence):  # x.permute(0, 2, 3, 1)
        given = [given, *(call.get(str(place)) for place in range(2, rank + 1))]
    order = [int(d) % rank for d in given]
    return _ordered(call, ref, order)


def _transpose(call: Call) -> Ref:
    ref = call.ref()
    rank = len(ref.layout) + 1
    order = list(range(rank))
    a, b = int(call.get("dim0")) % rank, int(call.get("dim1")) % rank
    order[a], order[b] = order[b], order[a]
    return _ordered(call, ref, order)


def _ordered(call: Call, ref: Ref, order: list[int]) -> Ref:
    if order[0] != 0:
        raise Unsupported(f"{call.kind} of the batch")
    return Ref(ref.value, permuted(ref.layout, [place - 1 for place in order[1:]]))


def _expand(call: Call) -> Ref:
    ref, target = call.ref(), call.outputs[0]
    missing = len(target) - len(ref.layout)
    if missing:
        raise Unsupported(f"{call.kind} to more dimensions")
    dims: list[Dim] = []
    for dim, size, wanted in zip(ref.layout, sizes(ref.layout), target, strict=True):
        dims.append(((wanted, 0),) if size == 1 and wanted > 1 else dim)
    return Ref(ref.value, tuple(dims))


def _chosen(call: Call, ref: Ref, place: int, index: Sequence[int]) -> Ref:
    """Channels by number; -1 is a channel of zeros."""
    ref = call.channelled(ref, place)
    height, width, channels = call.shape(ref)
    if list(index) == list(range(channels)):
        return ref
    value = call.node("select", (ref.value,), (height, width, len(index)), index=tuple(index))
    return Ref(value, restrided(ref.layout, place, channels, len(index)))


def _split(call: Call) -> tuple[Ref, ...]:
    """chunk, split, unsafe_split: channels that follow each other."""
    ref = call.ref()
    place = int(call.get("dim", 0)) % (len(ref.layout) + 1) - 1
    if place < 0:
        raise Unsupported(f"{call.kind} of the batch")
    parts, start = [], 0
    for shape in call.outputs:
        parts.append(_chosen(call, ref, place, range(start, start + shape[place])))
        start += shape[place]
    return tuple(parts)


def _narrow(call: Call) -> Ref:
    ref = call.ref()
    place = int(call.get("dim")) % (len(ref.layout) + 1) - 1
    start = int(call.get("start")) % max(1, sizes(ref.layout)[place])
    return _chosen(call, ref, place, range(start, start + int(call.get("length"))))


def _item(call: Call) -> Ref:
    """``x[...]``: whole dimensions, new ones, channels, every n-th row and column, and what leaves dimensions of 1."""
    ref, index = call.ref(), call.get("index")
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(entry, Ref | Tensor | list) for entry in entries):
        raise Unsupported("indexing with a tensor")
    total = len(ref.layout) + 1
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        named = sum(entry is not None and entry is not Ellipsis for entry in entries)
        entries[at : at + 1] = [slice(None)] * (total - named)
    place, whole = 0, (call.outputs[0])
    for entry in entries:
        if entry is None:
            continue
        ref = _entry(call, ref, place, entry)
        place += 1
    layout = reshaped(ref.layout, whole)
    if layout is None:
        raise Unsupported(f"the slice {index!r}")
    return Ref(ref.value, layout)


def _entry(call: Call, ref: Ref, place: int, entry: Any) -> Ref:
    """One dimension cut; an integer leaves a dimension of size 1 for the reshape that follows."""
    if entry == slice(None):
        return ref
    if place == 0:
        raise Unsupported("a slice of the batch")
    size = sizes(ref.layout)[place - 1]
    index = [range(size)[entry]] if isinstance(entry, int) else list(range(size)[entry])
    if index == list(range(size)):
        return ref
    names = call.names(ref)
    if names[place - 1] in ("h", "w"):
        return _rows(call, ref, index, down=names[place - 1] == "h")
    return _chosen(call, ref, place - 1, index)


def _rows(call: Call, ref: Ref, index: list[int], down: bool) -> Ref:
    """Rows or columns at equal distances: those before and behind are cut off, those between skipped."""
    ref, order = call.mapped(ref)
    shape = call.shape(ref)
    size, step = shape[0 if down else 1], index[1] - index[0] if len(index) > 1 else 1
    # The last ones may stand where they are: a window that skips does not come there.
    behind = size - 1 - index[-1]
    before, after = -index[0], -(behind if step == 1 or behind >= step else 0)
    padding = (before, 0, after, 0) if down else (0, before, 0, after)
    steps = [("pad", Window(padding=padding)), ("max_pool", Window(stride=(step, 1) if down else (1, step)))]
    value = ref.value
    for op, window in steps:
        if window != Window():
            shape = (*slid(shape, window), shape[2])
            value = call.node(op, (value,), shape, window=window)
    return call.made(value, order)


def _index_select(call: Call) -> Ref:
    ref, index = call.ref(), call.constant("index")
    place = int(call.get("dim")) % (len(ref.layout) + 1) - 1
    if place < 0 or index is None:
        raise Unsupported(f"{call.kind} of the batch")
    return _chosen(call, ref, place, [int(i) for i in index])


def _shuffle(call: Call) -> Ref:
    """Channel i of group j becomes channel j of group i."""
    ref, groups = call.channelled(call.ref()), int(call.get("groups"))
    each = call.shape(ref)[2] // groups
    return _chosen(call, ref, 0, [j * each + i for i in range(each) for j in range(groups)])


def _cat(call: Call) -> Ref:
    parts = call.get("tensors")
    rank = len(call.outputs[0]) + 1
    place = int(call.get("dim", 0)) % rank - 1
    refs = [part for part in parts if isinstance(part, Ref)]
    zeros = [part for part in parts if not isinstance(part, Ref)]
    if place < 0 or any(bool(part.any()) for part in zeros):
        raise Unsupported(f"{call.kind} of the batch" if place < 0 else f"{call.kind} with a constant")
    if zeros:
        return _with_zeros(call, parts, place)
    refs = [call.channelled(ref, place) for ref in refs]
    first = call.shape(refs[0])
    names = {
        letters(ref.layout, call.shape(ref))[:place] + letters(ref.layout, call.shape(ref))[place + 1 :] for ref in refs
    }
    if len(names) > 1 or any(call.shape(ref)[:2] != first[:2] for ref in refs):
        raise Unsupported(f"{call.kind} of maps that lie differently")
    channels = sum(call.shape(ref)[2] for ref in refs)
    value = call.node("concat", tuple(ref.value for ref in refs), (*first[:2], channels))
    return Ref(value, restrided(refs[0].layout, place, first[2], channels))


def _with_zeros(call: Call, parts: Sequence[Any], place: int) -> Ref:
    """One map, with channels of zeros around."""
    refs = [part for part in parts if isinstance(part, Ref)]
    if len(refs) > 1:
        raise Unsupported(f"{call.kind} with a constant")
    index: list[int] = []
    for part in parts:
        count = sizes(part.layout)[place] if isinstance(part, Ref) else part.shape[place + 1]
        index += range(count) if isinstance(part, Ref) else [-1] * count
    return _chosen(call, refs[0], place, index)


def _pad(call: Call) -> Ref:
    ref, pads = call.ref(), [int(p) for p in call.get("pad")]
    mode, value = call.get("mode", "constant"), call.get("value")
    if not any(pads):
        return ref
    if mode != "constant" or value not in (None, 0, 0.0):
        raise Unsupported(f"padding with {mode if mode != 'constant' else value} instead of zeros")
    ref, order = call.mapped(ref)
    amounts = dict.fromkeys("hwc", (0, 0))
    for letter, before, after in zip(reversed(order), pads[::2], pads[1::2], strict=False):
        amounts[letter] = (before, after)
    if len(pads) > 2 * len(order):
        raise Unsupported("padding of the batch")
    (top, bottom), (left, right), (first, last) = (amounts[letter] for letter in "hwc")
    shape = call.shape(ref)
    if first or last:
        kept = range(max(0, -first), shape[2] + min(0, last))
        ref = _chosen(call, ref, 0, [-1] * first + list(kept) + [-1] * last)
        shape = call.shape(ref)
    if not (top or left or bottom or right):
        return ref
    window = Window(padding=(top, left, bottom, right))
    return call.made(call.node("pad", (ref.value,), (*slid(shape, window), shape[2]), window=window), order)


_COPIES = ("contiguous", "clone", "detach", "to", "float", "alias", "view_as", "requires_grad", "type_as", *_CASTS)
_SAME, _VIEW = (_as_it_is, "input *"), (_reshape, "input *")
_SPLIT, _CAT = (_split, "input sections dim *"), (_cat, "tensors dim")
_TURN = (_transpose, "input dim0 dim1")
RULES: dict[str, tuple[Rule, str]] = {
    **dict.fromkeys(_COPIES, _SAME),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "reshape_as"), _VIEW),
    "permute": (_permute, "input dims *"),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _TURN),
    "expand": (_expand, "input *"),
    "expand_as": (_expand, "input *"),
    "chunk": _SPLIT,
    "split": _SPLIT,
    "narrow": (_narrow, "input dim start length"),
    "index_select": (_index_select, "input dim index"),
    "channel_shuffle": (_shuffle, "input groups"),
    "getitem": (_item, "input index"),
    "cat": _CAT,
    "concat": _CAT,
    "concatenate": _CAT,
    "pad": (_pad, "input pad mode value"),
}
