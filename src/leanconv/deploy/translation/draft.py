"""The network while it is translated: nodes that make maps, with their numbers at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leanconv.deploy.translation.layout import Shape
from leanconv.runtime.plan import Window

__all__ = ["POINT", "Array", "Draft", "Node", "slid"]

Array = NDArray[np.float32]
POINT = Window()
"""One position at a time."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operation: a :class:`leanconv.runtime.plan.Step` with its tensors, or one of two that no plan has.

    ``pad`` puts zeros around a map, or cuts off where ``window.padding`` is negative; ``select`` makes channel k of
    channel ``index[k]``, or zeros where that is -1.
    """

    op: str
    inputs: tuple[int, ...]
    output: int
    act: str = "none"
    arrays: Mapping[str, Array] = field(default_factory=dict)
    window: Window = POINT
    groups: int = 1
    count_padding: bool = True
    parts: tuple[Node, ...] = ()
    layer: str = ""
    index: tuple[int, ...] = ()


@dataclass
class Draft:
    """Nodes in order, and the shapes (height, width, channels) of the values that they make."""

    shapes: list[Shape]
    nodes: list[Node]
    input: int = 0
    output: int = 0
    _readers: dict[int, list[Node]] | None = None
    _producers: dict[int, Node] | None = None

    def value(self, shape: Shape) -> int:
        """A new value."""
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def add(self, node: Node) -> int:
        """Append a node; its output."""
        self.nodes.append(node)
        self._changed()
        return node.output

    def _changed(self) -> None:
        self._readers = self._producers = None

    def readers(self, value: int) -> list[Node]:
        """The nodes that read a value, one entry per reading; the network's output has one more reader."""
        if self._readers is None:
            self._readers = {}
            for node in self.nodes:
                for read in node.inputs:
                    self._readers.setdefault(read, []).append(node)
            self._readers.setdefault(self.output, []).append(Node("output", (self.output,), -1))
        return self._readers.get(value, [])

    def only_reader(self, value: int) -> Node | None:
        """The one node that reads a value, once; None where there are several, or the network gives it out."""
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 else None

    def producer(self, value: int) -> Node | None:
        """The node that makes a value; None: it is the network's input."""
        if self._producers is None:
            self._producers = {node.output: node for node in self.nodes}
        return self._producers.get(value)

    def has(self, node: Node) -> bool:
        """Whether a node is still part of the draft."""
        return self.producer(node.output) is node

    def swept(self) -> None:
        """Drop what nothing needs."""
        needed, kept = {self.output}, []
        for node in reversed(self.nodes):
            if node.output in needed:
                needed.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self._changed()

    def exchange(self, old: Node, *new: Node) -> None:
        """Put nodes in another's place; none: take it out."""
        place = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[place : place + 1] = new
        self._changed()


def slid(shape: Shape, window: Window) -> tuple[int, int]:
    """Height and width of what a window gives when it goes over a map."""
    top, left, bottom, right = window.padding
    height, width = (
        (size + pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            shape[:2], (top + bottom, left + right), window.dilation, window.size, window.stride, strict=True
        )
    )
    return height, width
