"""From a torch network to a plan and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from leanconv.deploy.translation.draft import Array, Draft, Node
from leanconv.deploy.translation.fusing import fuse
from leanconv.deploy.translation.recorded import drafted
from leanconv.deploy.translation.simplifying import simplify
from leanconv.errors import Error
from leanconv.runtime.memory import place
from leanconv.runtime.plan import Plan, Step, Value

__all__ = ["Translated", "as_torch", "translate"]


@dataclass(frozen=True)
class Translated:
    """A plan and its tensors.

    Attributes:
        plan: with places in memory; classes, picture and about are for the caller to fill in.
        tensors: by name, float32.
        order: what each dimension of torch's output is behind the batch: ``c``, ``h``, ``w``, several, or empty.
    """

    plan: Plan
    tensors: Mapping[str, Array]
    order: tuple[str, ...]


def translate(model: nn.Module, example: Tensor) -> Translated:
    """The plan of a network whose batch norms are folded as far as they can be.

    Args:
        model: in eval mode, float32.
        example: one input, (N, C, H, W), (N, C, L) or (N, C).

    Raises:
        Error: as of :func:`drafted`; nothing is left to run.
    """
    draft, order = drafted(model, example)
    simplify(draft)
    fuse(draft)
    if draft.output == draft.input:
        raise Error("export: the network must compute something, got one that gives its input back")
    return _assembled(draft, order)


def as_torch(y: NDArray[Any], order: tuple[str, ...]) -> NDArray[Any]:
    """Outputs of a plan in the order and number of dimensions of torch's output.

    Args:
        y: (N, K) or (N, C, H, W).
        order: of :class:`Translated`.
    """
    maps = y.reshape(*y.shape, *(1,) * (4 - y.ndim))
    letters = [letter for dim in order for letter in dim]
    rest = [letter for letter in "chw" if letter not in letters]
    size = dict(zip("chw", maps.shape[1:], strict=True))
    turned = maps.transpose(0, *("chw".index(letter) + 1 for letter in letters + rest))
    return turned.reshape(len(y), *(prod(size[letter] for letter in dim) for dim in order))


def _assembled(draft: Draft, order: tuple[str, ...]) -> Translated:
    names = _Names()
    number = {draft.input: 0}
    values = [Value(draft.shapes[draft.input])]
    inside: set[int] = set()

    def step(node: Node) -> Step:
        parts = tuple(step(part) for part in node.parts)
        inside.update(number[part.output] for part in node.parts[:-1])
        if node.output not in number:
            number[node.output] = len(values)
            values.append(Value(draft.shapes[node.output]))
        tensors = {role: names.of(node.layer, role, a) for role, a in node.arrays.items()}
        inputs = tuple(number[value] for value in node.inputs)
        return Step(
            node.op, inputs, number[node.output], node.act, tensors, node.window, node.groups, node.count_padding,
            parts, node.layer,
        )  # fmt: skip

    steps = tuple(step(node) for node in draft.nodes)
    placed, memory = place(tuple(values), steps, 0, number[draft.output])
    return Translated(Plan(placed, steps, 0, number[draft.output], memory), names.tensors, order)


class _Names:
    """Names of tensors in the file; equal tensors of one layer stand in it once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}

    def of(self, layer: str, role: str, values: Array) -> str:
        base, turn = f"{layer or 'network'}.{role}", 1
        name = base
        while name in self.tensors and not np.array_equal(self.tensors[name], values):
            turn += 1
            name = f"{base}.{turn}"
        self.tensors[name] = np.ascontiguousarray(values, dtype=np.float32)
        return name
