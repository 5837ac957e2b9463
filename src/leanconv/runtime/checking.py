"""Whether a plan holds together: shapes, order, and places in the arena."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

from leanconv.errors import Error
from leanconv.runtime.encoding import LARGEST, STEPS, VALUES, shown
from leanconv.runtime.kinds import Types, check_kinds, check_quant
from leanconv.runtime.plan import Picture, Plan, Step, Value
from leanconv.runtime.shapes import Shape, output_shape

__all__ = ["check", "lifetimes"]

_ALIGNED = 16


def check(plan: Plan, tensors: Mapping[str, Sequence[int]], types: Types | None = None) -> None:
    """Refuse a plan that cannot be run as it stands.

    What is checked: every step's output has the shape that follows from its inputs and tensors; every value is made
    once, and before it is read; values that live at the same time do not overlap in the arena, stand at multiples of
    16 floats and within ``memory``; every tensor is read by a step; steps that read or make bytes may do so, and
    have tensors of the right types (:mod:`leanconv.runtime.kinds`); classes and picture fit output and input.

    Args:
        plan: the plan.
        tensors: name -> shape, of every tensor there is.
        types: name -> type of number (:data:`leanconv.runtime.kinds.TYPES`); None: all are float32.

    Raises:
        Error: the first thing that does not hold, with the step.
    """
    if not 1 <= sum(1 + len(step.parts) for step in plan.steps) <= STEPS or len(plan.values) > VALUES:
        raise Error(f"plan: there must be 1 to {STEPS} steps and at most {VALUES} values, got {len(plan.steps)} steps")
    for number, value in enumerate(plan.values):
        _value(number, value, plan)
    _inside(plan.input, plan, "the plan's input")
    _inside(plan.output, plan, "the plan's output")
    made = {plan.input}
    read: set[str] = set()
    for i, step in enumerate(plan.steps):
        try:
            _step(plan, step, made, tensors, types)
        except Error as error:
            raise Error(f"step {i} ({shown(step.layer or step.op)[1:-1]}): {error}") from None
        read.update(name for part in (step, *step.parts) for name in part.tensors.values())
    if len(made) != len(plan.values):
        left = next(number for number in range(len(plan.values)) if number not in made)
        raise Error(f"plan: each value must be made by a step, got value {left} that none makes")
    if plan.output == plan.input:
        raise Error(f"plan: the output must be made by a step, got the input, value {plan.output}")
    for name in tensors:
        if name not in read:
            raise Error(f"plan: each tensor must be read by a step, got {shown(name)} that none reads")
    _places(plan)
    _meaning(plan)


def lifetimes(steps: Sequence[Step], input: int) -> dict[int, tuple[int, int]]:
    """From which step to which each value must stand in memory, the first that makes it and the last that reads it.

    The input lives from step -1. What is made and read within a block does not live at all and is left out.
    """
    found = {input: (-1, -1)}
    for i, step in enumerate(steps):
        for number in step.inputs:
            found[number] = (found[number][0], i)
        found[step.output] = (i, i)
    return found


def _value(number: int, value: Value, plan: Plan) -> None:
    if len(value.shape) != 3 or any(size < 1 for size in value.shape) or math.prod(value.shape) > LARGEST:
        raise Error(f"plan: a value must have 1 to 2^31 - 1 numbers, got {shown(value.shape)} of value {number}")
    ends = number in (plan.input, plan.output)
    if value.quant is not None:
        check_quant(value.quant, number, ends)
    if value.offset is None:
        return
    if ends:
        raise Error(
            f"plan: input and output must have no place in the arena, got offset {value.offset} of value {number}"
        )
    if value.offset % _ALIGNED or not 0 <= value.offset <= plan.memory - value.floats:
        raise Error(
            f"plan: a value must stand at a multiple of {_ALIGNED} within the arena of {plan.memory} floats, "
            f"got offset {value.offset} of value {number}, {value.floats} floats"
        )


def _inside(number: int, plan: Plan, what: str) -> None:
    if not 0 <= number < len(plan.values):
        raise Error(f"{what} must be one of the {len(plan.values)} values, got {number}")


def _step(plan: Plan, step: Step, made: set[int], tensors: Mapping[str, Sequence[int]], types: Types | None) -> None:
    for number in step.inputs:
        _readable(plan, number, made)
    shape = output_shape(step, [plan.values[number].shape for number in step.inputs], tensors)
    if step.op == "block":
        _parts(plan, step, made, tensors, types)
    _make(plan, step.output, shape, made, placed=step.output != plan.output)
    if step.op != "block":
        check_kinds(step, plan.values, types)


def _parts(plan: Plan, step: Step, made: set[int], tensors: Mapping[str, Sequence[int]], types: Types | None) -> None:
    """What lies between the parts: each reads the one before, and the last makes the block's output."""
    before, shape = step.inputs[0], plan.values[step.inputs[0]].shape
    for i, part in enumerate(step.parts):
        last = part is step.parts[-1]
        wanted = (before, *step.inputs[1:]) if last else (before,)
        if part.inputs != wanted:
            raise Error(f"part {i} must read values {wanted}, got {shown(part.inputs)}")
        if last:
            if part.output != step.output:
                raise Error(f"the last part must make the block's output, {step.output}, got {part.output}")
            check_kinds(part, plan.values, types)
            return
        shape = output_shape(part, [shape], tensors)
        _make(plan, part.output, shape, made, placed=False)
        check_kinds(part, plan.values, types, inside=True)
        if part.output == plan.output:
            raise Error(f"the plan's output must not lie inside a block, got value {part.output}")
        before = part.output


def _readable(plan: Plan, number: int, made: set[int]) -> None:
    if number not in made:
        raise Error(f"a value must be made before it is read, got value {number}")
    if plan.values[number].offset is None and number not in (plan.input, plan.output):
        raise Error(f"a value inside a block must not be read outside, got value {number}")


def _make(plan: Plan, number: int, shape: Shape, made: set[int], placed: bool) -> None:
    _inside(number, plan, "its output")
    if number in made:
        raise Error(f"a value must be made once, got value {number} again")
    if plan.values[number].shape != shape:
        raise Error(f"its output must have the shape {shown(shape)}, got {shown(plan.values[number].shape)}")
    if placed != (plan.values[number].offset is not None):
        rule = "a place in the arena" if placed else "no place in the arena"
        raise Error(f"its output must have {rule}, got offset {plan.values[number].offset} of value {number}")
    made.add(number)


def _places(plan: Plan) -> None:
    """No two values that live at the same time overlap: step by step, those alive sorted by where they stand."""
    if not 0 <= plan.memory <= LARGEST:
        raise Error(f"plan: memory must be from 0 to 2^31 - 1 floats, got {plan.memory}")
    ends: dict[int, list[int]] = {}
    for number, (_, last) in lifetimes(plan.steps, plan.input).items():
        if plan.values[number].offset is not None:
            ends.setdefault(last, []).append(number)
    alive: list[tuple[int, int, int]] = []  # offset, end, value
    for i, step in enumerate(plan.steps):
        value = plan.values[step.output]
        if value.offset is not None:
            entry = (value.offset, value.offset + value.floats, step.output)
            at = bisect_left(alive, entry)
            for other in alive[max(at - 1, 0) : at + 1]:
                if other[0] < entry[1] and entry[0] < other[1]:
                    raise Error(f"step {i}: values that live at once must not overlap, got {other[2]} and {entry[2]}")
            insort(alive, entry)
        for number in ends.get(i, ()):
            gone = plan.values[number]
            assert gone.offset is not None
            del alive[bisect_left(alive, (gone.offset, gone.offset + gone.floats, number))]


def _meaning(plan: Plan) -> None:
    """Classes and picture."""
    channels = plan.values[plan.output].shape[2]
    if plan.classes and len(plan.classes) != channels:
        raise Error(f"plan: there must be a class per channel of the output, {channels}, got {len(plan.classes)}")
    if plan.picture is not None:
        _picture(plan.picture, plan.values[plan.input].shape)


def _picture(picture: Picture, shape: Shape) -> None:
    channels = {"RGB": 3, "L": 1}.get(picture.mode)
    if channels is None:
        raise Error(f"picture: mode must be RGB or L, got {shown(picture.mode)}")
    if shape != (picture.side, picture.side, channels):
        raise Error(f"picture: the network's input must be {picture.side} x {picture.side} {picture.mode}, got {shape}")
    for name, numbers in (("mean", picture.mean), ("std", picture.std)):
        if len(numbers) != channels or not all(map(math.isfinite, numbers)):
            raise Error(f"picture: {name} must be {channels} numbers, got {shown(numbers)}")
    if min(picture.std) < 1e-20:
        raise Error(f"picture: std must be above 0, got {shown(picture.std)}")
