"""One recorded execution, step by step, as a draft; or everything that stands in the way, at once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from leanconv.deploy.translation import convolutions, elementwise, pooling, shaping
from leanconv.deploy.translation.calls import Call, Ref, Rule, Unsupported
from leanconv.deploy.translation.draft import Draft
from leanconv.deploy.translation.layout import Shape, letters, of_map, reshaped, sizes
from leanconv.errors import Error
from leanconv.graph import Given, Graph, Step, record
from leanconv.techniques.batchnorm import BatchNorm1d, BatchNorm2d
from leanconv.techniques.separable import DepthwiseConv1d, DepthwiseConv2d

__all__ = ["drafted"]

RULES: Mapping[str, tuple[Rule, str]] = {
    **convolutions.RULES,
    **pooling.RULES,
    **elementwise.RULES,
    **shaping.RULES,
}
OURS = (BatchNorm1d, BatchNorm2d, DepthwiseConv1d, DepthwiseConv2d)
"""Layers that are read as a whole, since they may run native code; all others are seen as functions."""


def _whole(module: nn.Module) -> bool:
    return type(module) in OURS and not module._forward_hooks and not module._forward_pre_hooks


def drafted(model: nn.Module, example: Tensor) -> tuple[Draft, tuple[str, ...]]:
    """The draft of a network, and what each of its output's dimensions is behind the batch.

    Args:
        model: in eval mode.
        example: (N, C, H, W), (N, C, L) or (N, C); of its shape alone is made use.

    Raises:
        Error: the network does not run on the example; it has several outputs, or one that is no map; operations that
            no plan has, all of them named.
    """
    if example.dim() not in (2, 3, 4):
        raise Error(f"export: the input must be (N, C, H, W), (N, C, L) or (N, C), got {tuple(example.shape)}")
    two = example[:1].expand(2, *example.shape[1:]).contiguous()
    graph = record(model, two, _whole)
    if len(graph.outputs) != 1:
        raise Error(f"export: the network must give one tensor, got {len(graph.outputs)}")
    return _Reading(graph, two).draft()


class _Reading:
    """Goes through the steps that the output needs."""

    def __init__(self, graph: Graph, example: Tensor) -> None:
        self.graph, self.batch = graph, example.shape[0]
        channels, *sides = example.shape[1:]
        shape: Shape = (sides[0] if len(sides) == 2 else 1, sides[-1] if sides else 1, channels)
        self._draft = Draft([shape], [])
        order = {2: "c", 3: "cw", 4: "chw"}[example.dim()]
        self.refs: dict[int, Ref | None] = {graph.inputs[0]: Ref(0, of_map(shape, order))}
        self.missing: dict[str, list[str]] = {}

    def draft(self) -> tuple[Draft, tuple[str, ...]]:
        output = self.graph.outputs[0]
        needed = self._needed(output)
        for step in self.graph.steps:
            if step.index in needed:
                self._step(step)
        found = self.refs.get(output)
        if found is None and not self.missing:
            self._lacks("a tensor that is changed in part, or made of weights alone", "the output")
        if self.missing:
            raise Error(_told(self.missing))
        assert found is not None
        found = self._ordered(found)
        order = letters(found.layout, self._draft.shapes[found.value])
        self._draft.output = found.value
        self._draft.swept()
        return self._draft, order

    def _needed(self, output: int) -> set[int]:
        needed: set[int] = set()
        waiting = [output]
        while waiting:
            step = self.graph.producer(waiting.pop())
            if step is not None and step.index not in needed:
                needed.add(step.index)
                waiting += step.inputs
        return needed

    def _ordered(self, ref: Ref) -> Ref:
        """The output with its channels in order, where only they are not."""
        names = letters(ref.layout, self._draft.shapes[ref.value])
        odd = [place for place, name in enumerate(names) if "?" in name]
        with contextlib.suppress(Unsupported):
            return Call(self._draft, "output", "", {}, ()).channelled(ref, odd[0]) if odd else ref
        raise Error(
            "export: the network's output must be a map or a vector, got parts of one in an order of their own; "
            "--format onnx writes this network"
        )

    def _lacks(self, what: str, layer: str) -> None:
        places = self.missing.setdefault(what, [])
        if layer not in places:
            places.append(layer)

    def _step(self, step: Step) -> None:
        layer = step.path or "the network itself"
        if any(value in self.refs and self.refs[value] is None for value in step.inputs):
            self.refs.update(dict.fromkeys(step.outputs))
            if _kind(step) not in RULES:  # else what it reads is missing, and that has been told
                self._lacks(_kind(step), layer)
            return
        found: tuple[Ref | None, ...]
        try:
            found = self._translated(step)
        except Unsupported as reason:
            self._lacks(str(reason), layer)
            found = tuple(self._instead(step, value) for value in step.outputs)
        for value, ref in zip(step.outputs, found, strict=True):
            self.refs[value] = ref

    def _translated(self, step: Step) -> tuple[Ref | None, ...]:
        kind = _kind(step)
        rule, signature = RULES.get(kind, (None, ""))
        if rule is None:
            raise Unsupported(kind)
        outputs = [self.graph.shape(value) for value in step.outputs]
        if any(not shape or shape[0] != self.batch for shape in outputs):
            raise Unsupported(f"{kind} that mixes the batch with other dimensions")
        shapes = tuple(shape[1:] for shape in outputs)
        arguments = self._arguments(step, signature)
        made = rule(Call(self._draft, kind, step.path, arguments, shapes, step.module))
        refs = made if isinstance(made, tuple) else (made,)
        for ref, shape in zip(refs, shapes, strict=False):
            if sizes(ref.layout) != shape:
                raise Unsupported(f"{kind} to {'x'.join(map(str, shape))}")
        # Other views of what was overwritten.
        rest = [self._seen_again(refs[0], shape) for shape in shapes[len(refs) :]]
        return (*refs, *rest)

    def _instead(self, step: Step, value: int) -> Ref | None:
        """What a step that is missing may have made, so that those behind it are looked at too."""
        shape = self.graph.shape(value)
        given = [ref for v in step.inputs if (ref := self.refs.get(v)) and self.graph.shape(v) == shape]
        if given:
            return given[0]
        if len(shape) == 4 and shape[0] == self.batch:
            height, width, channels = shape[2], shape[3], shape[1]
            return Ref(self._draft.value((height, width, channels)), of_map((height, width, channels), "chw"))
        return None

    def _seen_again(self, ref: Ref, shape: tuple[int, ...]) -> Ref | None:
        layout = reshaped(ref.layout, shape)
        return None if layout is None else Ref(ref.value, layout)

    def _arguments(self, step: Step, signature: str) -> dict[str, Any]:
        if step.module is not None:
            return {"input": self._ref(step.inputs[0])}
        *names, last = signature.split()
        loose = last == "*"  # any more arguments: what came out tells all
        names += [] if loose else [last]
        found: dict[str, Any] = {}
        for key, value in {**step.arguments, **step.tensors}.items():
            value = tree_map(lambda v: self._given(v) if isinstance(v, Given) else v, value)
            name = names[int(key)] if key.isdigit() and int(key) < len(names) else key
            name = {"x": "input", "axis": "dim", "self": "input"}.get(name, name)
            if name not in names and not loose and value is not None and value is not False:
                raise Unsupported(f"{_kind(step)} with {name}={value}")
            found[name] = value
        return found

    def _given(self, given: Given) -> Any:
        return given.tensor if given.value is None else self._ref(given.value)

    def _ref(self, value: int) -> Ref:
        found = self.refs.get(value)
        if found is None:
            raise Unsupported("a tensor that is changed in part, or made of weights alone")
        return found


def _kind(step: Step) -> str:
    return step.kind.strip("_") if step.module is None else step.kind


def _told(missing: Mapping[str, list[str]]) -> str:
    """One sentence with everything that is missing and where."""
    parts = []
    for what, places in missing.items():
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        parts.append(f"{what} ({', '.join(places[:3])}{more})")
    return (
        "export: a .lean file must consist of operations that the runtime has, got "
        + ", ".join(parts)
        + "; --format onnx writes this network"
    )
