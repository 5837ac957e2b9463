"""Steps that become one: activations, residual sums, depthwise and pointwise convolutions in a row."""

from __future__ import annotations

from dataclasses import replace

from leanconv.deploy.translation.draft import Draft, Node
from leanconv.runtime.plan import Window

__all__ = ["fuse"]


def fuse(draft: Draft) -> None:
    """Fuse where the value between has one reader: first activations, then sums, their activations, then blocks."""
    _activations(draft)
    _sums(draft)
    _activations(draft)
    _blocks(draft)
    draft.swept()


def _activations(draft: Draft) -> None:
    """An activation into the step that alone feeds it."""
    for node in list(draft.nodes):
        reader = draft.only_reader(node.output) if draft.has(node) else None
        if reader is not None and reader.op == "activation" and node.act == "none" and node.op != "softmax":
            draft.exchange(reader)
            draft.exchange(node, replace(node, act=reader.act, output=reader.output))


def _sums(draft: Draft) -> None:
    """A sum with what a convolution makes for it alone: y = act(W x + b + x2), where the sum stood."""
    for node in list(draft.nodes):
        if node.op != "add" or draft.shapes[node.inputs[0]] != draft.shapes[node.inputs[1]]:
            continue
        order = {made.output: place for place, made in enumerate(draft.nodes)}
        # The later of the two has its input still at hand.
        for value in sorted(node.inputs, key=lambda v: -order.get(v, -1)):
            made = draft.producer(value)
            if made is None or made.op not in ("conv", "linear") or made.act != "none" or len(made.inputs) > 1:
                continue
            if draft.only_reader(value) is not node:
                continue
            other = node.inputs[1] if node.inputs[0] == value else node.inputs[0]
            new = replace(made, inputs=(made.inputs[0], other), output=node.output, act=node.act)
            draft.exchange(made)
            draft.exchange(node, new)
            break


def _blocks(draft: Draft) -> None:
    """Expansion, depthwise, projection; or depthwise and pointwise; in the order of the network."""
    used: set[int] = set()
    for node in list(draft.nodes):
        if node.output in used:
            continue
        parts = _parts(draft, node)
        if parts is None:
            continue
        used.update(part.output for part in parts)
        last = parts[-1]
        block = Node("block", (node.inputs[0], *last.inputs[1:]), last.output, parts=parts, layer=node.layer)
        for part in parts[:-1]:
            draft.exchange(part)
        draft.exchange(last, block)


def _parts(draft: Draft, node: Node) -> tuple[Node, ...] | None:
    parts = [node]
    if _pointwise(node) and len(node.inputs) == 1:
        reader = draft.only_reader(node.output)
        if reader is None:
            return None
        parts.append(reader)
    if parts[-1].op != "depthwise":
        return None
    last = draft.only_reader(parts[-1].output)
    if last is None or not _pointwise(last) or last.inputs[0] != parts[-1].output:
        return None
    return (*parts, last)


def _pointwise(node: Node) -> bool:
    return node.op == "conv" and node.groups == 1 and node.window == Window()
