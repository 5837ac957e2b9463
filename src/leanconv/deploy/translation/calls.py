"""What a rule of translation is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanconv.deploy.translation.draft import Array, Draft, Node
from leanconv.deploy.translation.layout import Layout, Shape, letters, of_map, offsets, restrided, sizes

__all__ = ["Call", "Ref", "Rule", "Unsupported", "array"]


class Unsupported(Exception):
    """A plan has no such operation; the text says what is missing, such as ``gelu``."""


@dataclass(frozen=True)
class Ref:
    """A recorded tensor: a value of the draft, and how the tensor's dimensions behind the batch lie in it."""

    value: int
    layout: Layout


@dataclass
class Call:
    """A recorded step, its arguments by name: refs, tensors that no step made, and plain values.

    Attributes:
        draft: takes the nodes.
        kind: the operation.
        layer: where it ran.
        arguments: by the names of the rule's signature.
        outputs: shapes of what was made, without the batch.
        module: of a step that is one.
    """

    draft: Draft
    kind: str
    layer: str
    arguments: Mapping[str, Any]
    outputs: tuple[tuple[int, ...], ...]
    module: Any = None
    padded: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """An argument; the default where it was not given."""
        return self.arguments.get(name, default)

    def ref(self, name: str = "input") -> Ref:
        """An argument that must be a recorded tensor."""
        found = self.get(name)
        if not isinstance(found, Ref):
            raise Unsupported(f"{self.kind} of what is computed from weights alone")
        return found

    def constant(self, name: str) -> Tensor | None:
        """An argument that must be a weight, or is None."""
        found = self.get(name)
        if isinstance(found, Ref):
            raise Unsupported(f"{self.kind} with a computed {name}")
        return None if found is None else found

    def shape(self, ref: Ref) -> Shape:
        """Height, width and channels."""
        return self.draft.shapes[ref.value]

    def names(self, ref: Ref) -> tuple[str, ...]:
        """What each dimension is; see :func:`letters`."""
        return letters(ref.layout, self.shape(ref))

    def node(self, op: str, inputs: tuple[int, ...], shape: Shape, **more: Any) -> int:
        """Append a node; the number of what it makes."""
        return self.draft.add(Node(op, inputs, self.draft.value(shape), layer=self.layer, **more))

    def like(self, ref: Ref, op: str, **more: Any) -> Ref:
        """A node that gives a map of the same shape, lying the same way."""
        return Ref(self.node(op, (ref.value,), self.shape(ref), **more), ref.layout)

    def channelled(self, ref: Ref, place: int = 0) -> Ref:
        """The tensor with dimension ``place`` being all channels in order; they are put in order where they are not."""
        shape, dim = self.shape(ref), ref.layout[place]
        names = self.names(ref)
        others = "".join(names[:place] + names[place + 1 :])
        if "?" in others or "c" in others or sizes(ref.layout)[place] != shape[2]:
            raise Unsupported(f"{self.kind} over a dimension that is not the channels")
        if names[place] in ("c", "") and (names[place] == "c" or shape[2] == 1):
            return ref
        index = offsets(dim)
        if index.size != shape[2] or index.max() >= shape[2]:
            raise Unsupported(f"{self.kind} over a dimension that is not the channels")
        value = self.node("select", (ref.value,), shape, index=tuple(map(int, index)))
        return Ref(value, restrided(ref.layout, place, shape[2], shape[2]))

    def mapped(self, ref: Ref) -> tuple[Ref, str]:
        """The tensor as (C, H, W) or (C, L), and the order of its dimensions: ``chw``, ``cw`` or ``ch``.

        Raises:
            Unsupported: its dimensions lie otherwise.
        """
        ref = self.channelled(ref)
        height, width, _ = self.shape(ref)
        names = self.names(ref)[1:]
        if len(names) == 2 and names[0] in ("h", "") and names[1] in ("w", ""):
            return ref, "chw"
        if len(names) == 1 and names[0] in ("w", "") and height == 1:
            return ref, "cw"
        if len(names) == 1 and names[0] == "h" and width == 1:
            return ref, "ch"
        raise Unsupported(f"{self.kind} of a map whose dimensions were exchanged")

    def made(self, value: int, order: str) -> Ref:
        """The map that a node gave, as a tensor with dimensions in this order."""
        return Ref(value, of_map(self.draft.shapes[value], order))


Rule = Callable[[Call], Ref | tuple[Ref, ...]]
"""Appends nodes for a call; gives what the recorded tensors became."""


def array(tensor: Tensor) -> Array:
    """As numpy float32, in its own memory."""
    found: Array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return np.ascontiguousarray(found)
