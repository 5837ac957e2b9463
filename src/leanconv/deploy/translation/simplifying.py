"""Rewrites of a draft that leave what it computes: formulas, factors into weights, padding into windows, channels.

Each rule looks at one node and says whether it changed the draft; :func:`simplify` goes on until none does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from leanconv.deploy.translation.draft import Draft, Node
from leanconv.runtime.plan import Window

__all__ = ["simplify"]

WEIGHTED = ("conv", "depthwise", "linear")
POSITIVE = ("relu", "relu6", "sigmoid", "hardsigmoid")
SIXTH = 1 / 6


def simplify(draft: Draft) -> None:
    """Apply every rule until nothing changes, then write what is left of ``pad`` and ``select`` as convolutions."""
    for rules in (FIRST, THEN):
        changed = True
        while changed:
            changed = False
            for rule in rules:
                for node in list(draft.nodes):
                    changed = (draft.has(node) and rule(draft, node)) or changed
            draft.swept()
    for node in list(draft.nodes):
        if node.op in ("pad", "select"):
            draft.exchange(node, _lowered(draft, node))


def _alone(draft: Draft, node: Node, op: str) -> Node | None:
    """The one reader of what a node makes, if it is an ``op`` and reads it once."""
    reader = draft.only_reader(node.output)
    return reader if reader is not None and reader.op == op else None


def _is_affine(node: Node | None, weight: float, bias: float) -> bool:
    if node is None or node.op != "affine":
        return False
    return bool((node.arrays["weight"] == np.float32(weight)).all() and (node.arrays["bias"] == np.float32(bias)).all())


def _of(draft: Draft, node: Node, op: str, act: str = "none") -> Node | None:
    """What made the first input of a node, if it is an ``op`` with this activation."""
    made = draft.producer(node.inputs[0])
    return made if made is not None and made.op == op and made.act == act else None


# --- formulas that networks write out --------------------------------------------------------------------------------


def _hard_sigmoid(draft: Draft, node: Node) -> bool:
    """relu6(x + 3) / 6."""
    if not _is_affine(node, SIXTH, 0):
        return False
    clipped = _of(draft, node, "activation", "relu6")
    shifted = None if clipped is None else _of(draft, clipped, "affine")
    if shifted is None or not _is_affine(shifted, 1, 3):
        return False
    new = replace(node, op="activation", act="hardsigmoid", inputs=shifted.inputs, arrays={})
    draft.exchange(node, new)
    return True


def _swish(draft: Draft, node: Node) -> bool:
    """x sigmoid(x), x hardsigmoid(x)."""
    if node.op != "multiply":
        return False
    for x, gate in (node.inputs, node.inputs[::-1]):
        made = draft.producer(gate)
        if made is not None and made.op == "activation" and made.inputs == (x,):
            act = {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(made.act)
            if act is not None:
                draft.exchange(node, replace(node, op="activation", act=act, inputs=(x,)))
                return True
    return False


def _hard_swish(draft: Draft, node: Node) -> bool:
    """x relu6(x + 3) / 6, the division last."""
    product = _of(draft, node, "multiply") if _is_affine(node, SIXTH, 0) else None
    if product is None:
        return False
    for x, gate in (product.inputs, product.inputs[::-1]):
        clipped = draft.producer(gate)
        if clipped is None or clipped.act != "relu6" or clipped.op != "activation":
            continue
        shifted = draft.producer(clipped.inputs[0])
        if shifted is not None and _is_affine(shifted, 1, 3) and shifted.inputs == (x,):
            draft.exchange(node, replace(node, op="activation", act="hardswish", inputs=(x,), arrays={}))
            return True
    return False


# --- factors and shifts per channel ----------------------------------------------------------------------------------


def _affine_back(draft: Draft, node: Node) -> bool:
    """An affine map goes into the weights of what alone feeds it: W' = a W, b' = a b + c."""
    if node.op not in (*WEIGHTED, "affine") or node.act != "none" or len(node.inputs) > 1:
        return False
    after = _alone(draft, node, "affine")
    if after is None or after.act != "none":
        return False
    scale, shift = (after.arrays[name].astype(np.float64) for name in ("weight", "bias"))
    weight, bias = (node.arrays[name].astype(np.float64) for name in ("weight", "bias"))
    spread = scale.reshape(-1, *(1,) * (weight.ndim - 1)) if node.op in ("conv", "linear") else scale
    arrays = {"weight": (weight * spread).astype(np.float32), "bias": (bias * scale + shift).astype(np.float32)}
    draft.exchange(node, replace(node, arrays=arrays, output=after.output))
    draft.exchange(after)
    return True


def _affine_forward(draft: Draft, node: Node) -> bool:
    """Or into what alone reads it, where no zeros stand around: W' = W a, b' = b + W c."""
    if node.op != "affine" or node.act != "none":
        return False
    conv = _alone(draft, node, "conv") or _alone(draft, node, "linear")
    if conv is None or any(conv.window.padding) or conv.inputs[0] != node.output:
        return False
    weight, bias = (conv.arrays[name].astype(np.float64) for name in ("weight", "bias"))
    group = weight.shape[0] // conv.groups
    vectors = []
    for name in ("weight", "bias"):  # one per weight: inputs of an output's own group, each position of the map
        vector = node.arrays[name].astype(np.float64)
        if conv.op == "linear":
            vectors.append(np.tile(vector, weight.shape[1] // vector.size)[None])
        else:
            vectors.append(np.repeat(vector.reshape(conv.groups, -1), group, 0)[:, None, None, :])
    scale, shift = vectors
    bias = bias + (weight * shift).reshape(weight.shape[0], -1).sum(1)
    arrays = {"weight": (weight * scale).astype(np.float32), "bias": bias.astype(np.float32)}
    draft.exchange(conv, replace(conv, arrays=arrays, inputs=(node.inputs[0], *conv.inputs[1:])))
    return True


def _affine_apart(draft: Draft, node: Node) -> bool:
    """An affine map of a concatenation goes to its parts, where each is made by a layer that can take it in."""
    if node.op != "concat" or node.act != "none" or len(set(node.inputs)) < len(node.inputs):
        return False
    after = _alone(draft, node, "affine")
    made = [draft.producer(value) for value in node.inputs]
    fits = all(
        m is not None and m.op in WEIGHTED and m.act == "none" and len(m.inputs) == 1 and draft.only_reader(m.output)
        for m in made
    )
    if after is None or after.act != "none" or not fits:
        return False
    ends = np.cumsum([draft.shapes[value][2] for value in node.inputs])[:-1]
    pieces = [np.split(after.arrays[name], ends) for name in ("weight", "bias")]
    new: list[Node] = []
    for value, weight, bias in zip(node.inputs, *pieces, strict=True):
        output = draft.value(draft.shapes[value])
        new.append(replace(after, inputs=(value,), output=output, arrays={"weight": weight, "bias": bias}))
    draft.exchange(node, *new, replace(node, inputs=tuple(n.output for n in new), output=after.output))
    draft.exchange(after)
    return True


# --- padding ---------------------------------------------------------------------------------------------------------


def _pad_forward(draft: Draft, node: Node) -> bool:
    """Padding becomes part of the windows that read it."""
    if node.op != "pad" or min(node.window.padding) < 0:
        return False
    made = draft.producer(node.inputs[0])
    positive = made is not None and made.act in POSITIVE
    for reader in draft.readers(node.output):
        old = reader.window.padding
        pools = _touches(draft, node, reader) if reader.op in ("avg_pool", "max_pool") else False
        fits = {
            "conv": True,
            "depthwise": True,
            "pad": min(old) >= 0,
            "avg_pool": pools and (reader.count_padding or not any(old)),
            "max_pool": pools and positive and not any(old),
        }.get(reader.op, False)
        if fits:
            top, left, bottom, right = (a + b for a, b in zip(old, node.window.padding, strict=True))
            window = replace(reader.window, padding=(top, left, bottom, right))
            draft.exchange(reader, replace(reader, window=window, inputs=node.inputs, count_padding=True))
            return True
    return False


def _touches(draft: Draft, pad: Node, pool: Node) -> bool:
    """Whether every window holds something of the map itself, so that its maximum needs no zero."""
    reach = [d * (k - 1) + 1 for d, k in zip(pool.window.dilation, pool.window.size, strict=True)]
    pads = [a + b for a, b in zip(pad.window.padding, pool.window.padding, strict=True)]
    if max(pads[0::2]) >= reach[0] or max(pads[1::2]) >= reach[1]:
        return False  # no pooling has such a padding
    height, width, _ = draft.shapes[pad.inputs[0]]
    window, made = pool.window, draft.shapes[pool.output]
    for axis, size in enumerate((height, width)):
        before = pads[axis]
        taps = np.arange(window.size[axis]) * window.dilation[axis]
        starts = np.arange(made[axis]) * window.stride[axis] - before
        places = starts[:, None] + taps[None]
        if not ((places >= 0) & (places < size)).any(1).all():
            return False
    return True


# --- channels that are picked ----------------------------------------------------------------------------------------


def _select_back(draft: Draft, node: Node) -> bool:
    """Picking channels of what a convolution alone makes for it is picking its filters; activations let it pass."""
    if node.op != "select":
        return False
    made = draft.producer(node.inputs[0])
    if made is None or len(made.inputs) > 1 or not _shared_out(draft, made):
        return False
    index, shape = np.array(node.index), draft.shapes[node.output]
    if made.op == "activation" and (min(node.index) >= 0 or made.act in ("relu", "relu6", "hardswish", "silu")):
        inner = draft.value((*draft.shapes[made.inputs[0]][:2], shape[2]))
        first, then = (
            replace(node, inputs=made.inputs, output=inner),
            replace(made, inputs=(inner,), output=node.output),
        )
        draft.exchange(node, first, then)
        return True
    if made.act != "none" or made.op not in ("conv", "linear", "select") or made.groups > 1:
        return False
    if made.op == "select":
        picked = [made.index[i] if i >= 0 else -1 for i in node.index]
        draft.exchange(node, replace(node, inputs=made.inputs, index=tuple(picked)))
        return True
    arrays = {}
    for name, a in made.arrays.items():
        arrays[name] = np.ascontiguousarray(a[np.maximum(index, 0)])
        arrays[name][index < 0] = 0
    draft.exchange(node, replace(made, arrays=arrays, output=node.output))
    return True


def _shared_out(draft: Draft, made: Node) -> bool:
    """Whether nothing but picks read a value, together no more than it has: each may then have its own part made."""
    readers = draft.readers(made.output)
    picked = sum(len(reader.index) for reader in readers)
    return all(r.op == "select" for r in readers) and (len(readers) == 1 or picked <= draft.shapes[made.output][2])


def _select_forward(draft: Draft, node: Node) -> bool:
    """A dense convolution that reads reordered channels can read them where they are."""
    if node.op != "select" or sorted(node.index) != list(range(draft.shapes[node.inputs[0]][2])):
        return False
    for conv in draft.readers(node.output):
        if conv.op == "conv" and conv.groups == 1 and len(conv.inputs) == 1:
            weight = np.empty_like(conv.arrays["weight"])
            weight[..., np.array(node.index)] = conv.arrays["weight"]
            draft.exchange(conv, replace(conv, inputs=node.inputs, arrays={**conv.arrays, "weight": weight}))
            return True
    return False


def _lowered(draft: Draft, node: Node) -> Node:
    """Padding as a depthwise convolution of one tap, picking as a pointwise one: both copy numbers exactly."""
    channels = draft.shapes[node.inputs[0]][2]
    if node.op == "pad":
        top, left, bottom, right = (max(0, -p) for p in node.window.padding)  # what is cut off
        weight = np.zeros((top + bottom + 1, left + right + 1, channels), np.float32)
        weight[top, left] = 1
        top, left, bottom, right = (max(0, p) for p in node.window.padding)
        window = Window((weight.shape[0], weight.shape[1]), padding=(top, left, bottom, right))
        arrays = {"weight": weight, "bias": np.zeros(channels, np.float32)}
        return replace(node, op="depthwise", window=window, arrays=arrays)
    weight = np.zeros((len(node.index), 1, 1, channels), np.float32)
    for k, channel in enumerate(node.index):
        if channel >= 0:
            weight[k, 0, 0, channel] = 1
    arrays = {"weight": weight, "bias": np.zeros(len(node.index), np.float32)}
    return replace(node, op="conv", arrays=arrays, window=Window(), index=())


Change = Callable[[Draft, Node], bool]
# Formulas are read before their factors go into weights.
FIRST: tuple[Change, ...] = (_hard_sigmoid, _swish, _hard_swish)
THEN: tuple[Change, ...] = (_affine_back, _affine_forward, _affine_apart, _pad_forward, _select_back, _select_forward)
