"""A :class:`~leanconv.runtime.plan.Plan` as compact JSON, and back.

Fields that have their default are left out. A value is ``[height, width, channels]``, with its offset as a fourth
number where it has one; of bytes it is ``[height, width, channels, offset or null, scale, zero]``.
Reading trusts nothing: types, names, counts and numbers are checked; whether the plan makes sense is
:func:`leanconv.runtime.checking.check`'s question.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from leanconv.errors import Error
from leanconv.runtime.plan import Picture, Plan, Quant, Step, Value, Window

__all__ = ["LARGEST", "STEPS", "VALUES", "from_json", "parse", "shown", "to_json"]

LARGEST = 2**31 - 1
"""The largest whole number in a plan, and the most floats that a map or the arena of one image may have."""

STEPS = 100_000
"""The most steps of a plan, those inside blocks counted."""

VALUES = 2 * STEPS
"""The most values of a plan."""

_DEPTH, _NODES = 16, 2**22
_NO_STEP = Step("", (), 0)
_STEP = {"op", "inputs", "output", "act", "tensors", "window", "groups", "count_padding", "parts", "layer"}
_PLAN = {"values", "steps", "input", "output", "memory", "classes", "picture", "about"}


def to_json(plan: Plan) -> str:
    """The plan as text.

    Raises:
        Error: a field is not of the type that the plan's documentation says.
    """
    made: dict[str, Any] = {
        "values": [_value_out(value) for value in plan.values],
        "steps": [_step_out(step) for step in plan.steps],
        "input": plan.input,
        "output": plan.output,
        "memory": plan.memory,
    }
    if plan.classes:
        made["classes"] = plan.classes
    if plan.picture is not None:
        made["picture"] = {key: getattr(plan.picture, key) for key in ("side", "mode", "mean", "std")}
    if plan.about:
        made["about"] = dict(plan.about)
    try:
        return json.dumps(made, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Error(f"plan: its fields must be plain numbers and words, got {error}") from None


def from_json(text: str) -> Plan:
    """The plan that :func:`to_json` wrote.

    Raises:
        Error: no JSON, an unknown or missing key, a wrong type, a number out of range, too many of something.
    """
    data = _keys(parse(text, "plan"), "plan", _PLAN, {"values", "steps", "input", "output", "memory"})
    steps = _list(data["steps"], "plan: steps", STEPS)
    seen = [0]
    return Plan(
        values=tuple(_value(item) for item in _list(data["values"], "plan: values", VALUES)),
        steps=tuple(_step(item, f"step {i}", seen) for i, item in enumerate(steps)),
        input=_whole(data["input"], "plan: input"),
        output=_whole(data["output"], "plan: output"),
        memory=_whole(data["memory"], "plan: memory"),
        classes=tuple(
            _word(item, "plan: classes") for item in _list(data.get("classes", []), "plan: classes", LARGEST)
        ),
        picture=_picture(data["picture"]) if "picture" in data else None,
        about=_words(data.get("about", {}), "plan: about"),
    )


def parse(text: str | bytes, what: str) -> Any:
    """JSON that a stranger wrote: bounded in depth and count, no key twice, no NaN.

    Args:
        text: UTF-8.
        what: begins the messages.

    Raises:
        Error: it is none, or out of bounds.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    # Brackets and commas outside of strings tell how deep and how many, before anything is built. 91 is [, 123 {.
    bare = np.frombuffer(re.sub(rb'"(?:[^"\\]++|\\.)*+"', b"", raw, flags=re.DOTALL), np.uint8)
    opened = (bare == 91) | (bare == 123)
    closed = (bare == 93) | (bare == 125)
    depth = int(np.cumsum(opened.view(np.int8) - closed.view(np.int8), dtype=np.int64).max(initial=0))
    if depth > _DEPTH:
        raise Error(f"{what}: JSON must be at most {_DEPTH} levels deep, got {depth}")
    nodes = int(np.count_nonzero(opened)) + int(np.count_nonzero(bare == 44))
    if nodes > _NODES:
        raise Error(f"{what}: JSON must have at most {_NODES} entries, got {nodes}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise Error(f"{what}: each key must stand once, got {shown(twice)} again")
        return found

    def constant(name: str) -> NoReturn:
        raise Error(f"{what}: numbers must be finite, got {name}")

    try:
        return json.loads(raw.decode(), object_pairs_hook=once, parse_constant=constant)
    except Error:
        raise
    except (ValueError, RecursionError) as error:  # no UTF-8 is a ValueError too
        raise Error(f"{what}: must be JSON in UTF-8, got {str(error).splitlines()[0][:80]}") from None


def shown(value: Any) -> str:
    """A stranger's value, for a message: one line, at most 60 characters."""
    try:
        text = repr(value)
    except Exception:  # an int of thousands of digits
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _value_out(value: Value) -> list[Any]:
    if value.quant is not None:
        return [*value.shape, value.offset, value.quant.scale, value.quant.zero]
    return [*value.shape] if value.offset is None else [*value.shape, value.offset]


def _step_out(step: Step) -> dict[str, Any]:
    made: dict[str, Any] = {"op": step.op, "inputs": step.inputs, "output": step.output}
    for key in ("act", "groups", "count_padding", "layer"):
        value = getattr(step, key)
        if value != getattr(_NO_STEP, key):
            made[key] = value
    if step.tensors:
        made["tensors"] = dict(step.tensors)
    if step.window != _NO_STEP.window:
        made["window"] = {
            key: getattr(step.window, key)
            for key in ("size", "stride", "padding", "dilation")
            if getattr(step.window, key) != getattr(_NO_STEP.window, key)
        }
    if step.parts:
        made["parts"] = [_step_out(part) for part in step.parts]
    return made


def _step(item: Any, what: str, seen: list[int], inner: bool = False) -> Step:
    seen[0] += 1
    if seen[0] > STEPS:
        raise Error(f"plan: there must be at most {STEPS} steps with the parts of blocks, got more")
    data = _keys(item, what, _STEP, {"op", "inputs", "output"})
    if inner and "parts" in data:
        raise Error(f"{what}: a part must not have parts of its own, got {len(_list(data['parts'], what, STEPS))}")
    count = data.get("count_padding", True)
    if not isinstance(count, bool):
        raise Error(f"{what}: count_padding must be true or false, got {shown(count)}")
    parts = _list(data.get("parts", []), f"{what}: parts", STEPS)
    return Step(
        op=_word(data["op"], f"{what}: op"),
        inputs=_wholes(data["inputs"], f"{what}: inputs"),
        output=_whole(data["output"], f"{what}: output"),
        act=_word(data.get("act", "none"), f"{what}: act"),
        tensors=_words(data.get("tensors", {}), f"{what}: tensors"),
        window=_window(data["window"], f"{what}: window") if "window" in data else Window(),
        groups=_whole(data.get("groups", 1), f"{what}: groups"),
        count_padding=count,
        parts=tuple(_step(part, f"{what}, part {i}", seen, True) for i, part in enumerate(parts)),
        layer=_word(data.get("layer", ""), f"{what}: layer"),
    )


def _window(item: Any, what: str) -> Window:
    data = _keys(item, what, {"size", "stride", "padding", "dilation"}, set())
    given: dict[str, Any] = {key: _wholes(data[key], f"{what}: {key}", 4 if key == "padding" else 2) for key in data}
    return Window(**given)


def _value(item: Any) -> Value:
    what = "plan: a value"
    if not isinstance(item, list) or len(item) not in (3, 4, 6):
        raise Error(
            f"{what} must be height, width, channels; offset; scale and zero: 3, 4 or 6 entries, got {shown(item)}"
        )
    offset = item[3] if len(item) > 3 else None
    if offset is not None or len(item) == 4:
        offset = _whole(offset, what)
    quant = Quant(_real(item[4], what), _whole(item[5], what)) if len(item) == 6 else None
    return Value(_wholes(item[:3], what), offset, quant)


def _picture(item: Any) -> Picture:
    keys = {"side", "mode", "mean", "std"}
    data = _keys(item, "plan: picture", keys, keys)
    mean, std = (
        tuple(_real(x, f"plan: picture: {key}") for x in _list(data[key], f"plan: picture: {key}", 4))
        for key in ("mean", "std")
    )
    return Picture(_whole(data["side"], "plan: picture: side"), _word(data["mode"], "plan: picture: mode"), mean, std)


def _keys(item: Any, what: str, known: set[str], needed: set[str]) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise Error(f"{what}: must be a JSON object, got {shown(item)}")
    for key in item:
        if key not in known:
            raise Error(f"{what}: keys must be of {', '.join(sorted(known))}, got {shown(key)}")
    for key in needed:
        if key not in item:
            raise Error(f"{what}: must have {key}, got {', '.join(sorted(item)) or 'nothing'}")
    return item


def _list(item: Any, what: str, most: int) -> list[Any]:
    if not isinstance(item, list) or len(item) > most:
        raise Error(f"{what}: must be a list of at most {most}, got {_got(item)}")
    return item


def _wholes(item: Any, what: str, count: int | None = None) -> tuple[Any, ...]:
    numbers = tuple(_whole(x, what) for x in _list(item, what, STEPS))
    if count is not None and len(numbers) != count:
        raise Error(f"{what}: must be {count} numbers, got {len(numbers)}")
    return numbers


def _whole(item: Any, what: str) -> int:
    if type(item) is not int or not 0 <= item <= LARGEST:
        raise Error(f"{what}: must be a whole number from 0 to 2^31 - 1, got {shown(item)}")
    return item


def _real(item: Any, what: str) -> float:
    if type(item) not in (int, float) or not abs(item) < 1e30 or not math.isfinite(item):
        raise Error(f"{what}: must be a number, got {shown(item)}")
    return float(item)


def _word(item: Any, what: str) -> str:
    # Half a surrogate pair can stand in JSON, and cannot be printed.
    if not isinstance(item, str) or (not item.isascii() and item != item.encode(errors="ignore").decode()):
        raise Error(f"{what}: must be text, got {shown(item)}")
    return item


def _words(item: Any, what: str) -> Mapping[str, str]:
    if not isinstance(item, dict):
        raise Error(f"{what}: must be a JSON object, got {shown(item)}")
    return {_word(key, what): _word(value, f"{what}: {shown(key)}") for key, value in item.items()}


def _got(item: Any) -> str:
    return f"{len(item)}" if isinstance(item, list) else shown(item)
