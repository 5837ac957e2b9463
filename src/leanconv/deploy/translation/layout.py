"""How the dimensions of a torch tensor lie in a map (height, width, channels).

A network may flatten, transpose and reshape a map without moving anything. Each dimension behind the batch is a row of
(size, stride) pairs, outermost first: where its index points in the memory of the map. Pairs of size 1 are left out, so
a dimension of size 1 is empty; stride 0 is a dimension that is spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["Dim", "Layout", "Shape", "letters", "of_map", "offsets", "permuted", "reshaped", "restrided", "sizes"]

Dim = tuple[tuple[int, int], ...]
Layout = tuple[Dim, ...]
Shape = tuple[int, int, int]


def of_map(shape: Shape, order: str) -> Layout:
    """The layout of a whole map whose dimensions come in this order, such as ``chw`` or ``cw``."""
    height, width, channels = shape
    dims = {"h": (height, width * channels), "w": (width, channels), "c": (channels, 1)}
    return tuple((dims[letter],) if dims[letter][0] > 1 else () for letter in order)


def sizes(layout: Layout) -> tuple[int, ...]:
    """Sizes of the dimensions behind the batch."""
    return tuple(prod(size for size, _ in dim) for dim in layout)


def letters(layout: Layout, shape: Shape) -> tuple[str, ...]:
    """What each dimension is: ``c``, ``h``, ``w``, several of them (``hw``), or nothing where it has size 1.

    A dimension that is only part of an axis, has one in another order or is spread, has ``?`` in its name.
    """
    height, width, channels = shape
    axes = {"h": (height, width * channels), "w": (width, channels), "c": (channels, 1)}
    names = []
    for dim in layout:
        name = ""
        cut = [piece for pair in dim for piece in _cut(pair, (width * channels, channels))]
        for size, stride in cut:
            whole = [letter for letter, axis in axes.items() if axis == (size, stride)]
            name += whole[0] if whole else "?"
        names.append(name)
    return tuple(names)


def _cut(pair: tuple[int, int], bounds: Sequence[int]) -> list[tuple[int, int]]:
    """A pair that goes over the border of an axis as one pair per axis."""
    pieces, (size, stride) = [], pair
    for bound in bounds:
        if 0 < stride < bound < stride * size and bound % stride == 0 and size % (bound // stride) == 0:
            inner = bound // stride
            pieces.append((size // inner, bound))
            size = inner
    return [*pieces, (size, stride)]


def reshaped(layout: Layout, target: Sequence[int]) -> Layout | None:
    """The layout after a reshape to these sizes; None where a dimension would have to be cut unevenly."""
    rest = [pair for dim in layout for pair in dim]
    dims: list[Dim] = []
    for wanted in target:
        dim: list[tuple[int, int]] = []
        while wanted > 1:
            if not rest:
                return None
            size, stride = rest.pop(0)
            if wanted % size == 0:
                taken, wanted = size, wanted // size
            elif size % wanted == 0:
                taken, inner = wanted, size // wanted
                rest.insert(0, (inner, stride))
                stride, wanted = stride * inner, 1
            else:
                return None
            dim.append((taken, stride))
        dims.append(joined(dim))
    return None if rest else tuple(dims)


def joined(pairs: Sequence[tuple[int, int]]) -> Dim:
    """Neighbours that lie one within the other as one pair."""
    dim: list[tuple[int, int]] = []
    for size, stride in pairs:
        if dim and dim[-1][1] == size * stride:
            dim[-1] = (dim[-1][0] * size, stride)
        else:
            dim.append((size, stride))
    return tuple(dim)


def permuted(layout: Layout, order: Sequence[int]) -> Layout:
    """Dimensions in another order."""
    return tuple(layout[place] for place in order)


def restrided(layout: Layout, place: int, channels: int, new: int) -> Layout:
    """The layout of a map with other channels, which are all of dimension ``place``."""
    dims = [tuple((size, stride // channels * new) for size, stride in dim) for dim in layout]
    dims[place] = ((new, 1),) if new > 1 else ()
    return tuple(dims)


def offsets(dim: Dim) -> NDArray[np.int64]:
    """Where each index of a dimension points, in order."""
    found = np.zeros(1, dtype=np.int64)
    for size, stride in dim:
        found = (found[:, None] + np.arange(size) * stride).reshape(-1)
    return found
