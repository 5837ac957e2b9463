"""``.lean`` files: what is written is read, and what is wrong with one is told in a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lean_files import at, damaged, opened, pack, sealed
from lean_plans import Builder, Tensors, mobilenet, plans
from leanconv.errors import Error
from leanconv.runtime import encoding
from leanconv.runtime.encoding import from_json, to_json
from leanconv.runtime.file import read, write
from leanconv.runtime.plan import Picture, Plan, Step, Value, Window

_Any = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def small() -> tuple[Plan, Tensors]:
    builder = Builder((6, 6, 3))
    x = builder.conv(0, 4, act="relu")
    x = builder.block(x, 4, Window((3, 3), padding=(1, 1, 1, 1)), residual=x)
    builder.linear(builder.add("mean", x), 2)
    return builder.plan(classes=("cat", "猫"), picture=Picture(6, "RGB", (0.5,) * 3, (0.25,) * 3)), builder.tensors


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("file") / "m.lean"
    write(path, *small())
    return path.read_bytes()


@_Any
@given(plans())
def test_what_is_written_is_read(tmp_path: Path, made: tuple[Plan, Tensors]) -> None:
    plan, tensors = made
    write(tmp_path / "m.lean", plan, tensors)
    again, found = read(tmp_path / "m.lean", verify=True)
    assert again == plan
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == np.float32 and not found[name].flags.writeable for name in tensors)


@_Any
@given(plans())
def test_plans_go_through_json(tmp_path: Path, made: tuple[Plan, Tensors]) -> None:
    assert from_json(to_json(made[0])) == made[0]


def test_the_safetensors_package_opens_it(tmp_path: Path) -> None:
    plan, tensors = small()
    write(tmp_path / "m.lean", plan, tensors)
    with safe_open(tmp_path / "m.lean", "numpy") as file:
        assert set(file.keys()) == set(tensors)
        assert all(np.array_equal(file.get_tensor(name), tensors[name]) for name in tensors)
        assert file.metadata()["format"] == "leanconv"
        assert from_json(file.metadata()["plan"]) == plan


def test_tensors_begin_on_cache_lines_where_their_sizes_allow(tmp_path: Path) -> None:
    write(tmp_path / "m.lean", *mobilenet(0.25, 32, 10))
    head, _ = opened((tmp_path / "m.lean").read_bytes())
    length = int.from_bytes((tmp_path / "m.lean").read_bytes()[:8], "little")
    assert (8 + length) % 64 == 0
    offsets = [e["data_offsets"] for name, e in head.items() if name != "__metadata__"]
    assert sum(begin % 64 != 0 for begin, _ in offsets) <= 1 + sum((end - begin) % 64 != 0 for begin, end in offsets)


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "m.lean"
    write(path, *small())
    before = path.read_bytes()
    again, found = read(path)
    code = (
        "import resource, signal, sys; from leanconv import Error; from leanconv.runtime.file import read, write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); held = read(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write(sys.argv[1], *held)\n"
        "except Error as error: print(error)"
    )
    words = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("m.lean: must be writable, got File too large\n"), done
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.lean"]
    plan = replace(again, about={"made": "anew"})
    kept = {name: tensor.copy() for name, tensor in found.items()}
    write(path, plan, found)  # from the mapped file onto itself
    assert read(path, verify=True)[0] == plan
    assert all(np.array_equal(found[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("change", "told"),
    {
        "float64": (
            lambda p, t: (p, {**t, "t0": t["t0"].astype(np.float64)}),
            "must be float32, int32 or int8, got float64 of 't0'",
        ),
        "too many": (lambda p, t: (p, {**t, "more": t["t0"]}), "must be read by a step, got 'more' that none reads"),
        "too few": (lambda p, t: (p, {k: v for k, v in t.items() if k != "t1"}), "got the name 't1'"),
        "a number of numpy's": (lambda p, t: (replace(p, memory=np.int64(p.memory)), t), "plain numbers and words"),
        "half a pair": (lambda p, t: (replace(p, about={"a": "\ud800"}), t), "half a surrogate pair"),
        "NaN": (lambda p, t: (replace(p, picture=replace(p.picture, mean=(np.nan,) * 3)), t), "must be 3 numbers"),
        "classes": (lambda p, t: (replace(p, classes=("a",)), t), "a class per channel of the output, 2, got 1"),
    }.values(),
)  # fmt: skip
def test_what_cannot_be_read_again_is_not_written(
    tmp_path: Path, change: Callable[[Any, Tensors], tuple[Plan, Tensors]], told: str
) -> None:
    with pytest.raises(Error, match=told) as raised:
        write(tmp_path / "m.lean", *change(*small()))
    assert str(raised.value).startswith("m.lean: ")
    assert not os.listdir(tmp_path)


def test_no_file_at_all(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for name, told in {
        "none": "must be a file that exists, got nothing",
        ".": "must be a file that exists, got no file",
        "pipe": "must be a file that exists, got no file",
        "empty": "must be a .lean file, got an empty one",
        "a\0b": "must be a file that exists, got nothing",
    }.items():
        with pytest.raises(Error, match=told):
            read(tmp_path / name)


def _tensor(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda head: head["t0"].update(fields)


def _meta(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda head: head["__metadata__"].update(fields)


DEEP = "[" * 10_000 + "]" * 10_000
HEADERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "dtype": (_tensor(dtype="I64"), "tensor 't0': dtype must be F32, I32, I8, got 'I64'"),
    "key": (_tensor(more=1), "must have dtype, shape and data_offsets"),
    "negative": (_tensor(shape=[-4, 3]), "shape must be whole numbers"),
    "true": (_tensor(shape=[True, 3]), "shape must be whole numbers"),
    "huge": (_tensor(shape=[2**40, 2**40]), "2\\^31 - 1 numbers, got"),
    "huge offsets": (_tensor(data_offsets=[2**61, 2**61 + 48]), "its tensors must follow one another"),
    "zero": (_tensor(shape=[0, 3]), "sizes from 1"),
    "rank": (_tensor(shape=[1] * 9), "at most 8 sizes"),
    "bytes": (_tensor(shape=[4, 1, 1, 2]), "data_offsets must span 32 bytes from a multiple of 4, got"),
    "overlap": (lambda h: h["t1"].update(data_offsets=[0, 16]), "its tensors must follow one another"),
    "order": (_tensor(data_offsets=[48, 0]), "data_offsets must span 48 bytes"),
    "no tensor": (lambda h: h.update(t0=5), "must have dtype, shape and data_offsets, got 5"),
    "format": (_meta(format="pt"), "format 'leanconv', got 'pt'"),
    "version": (_meta(format_version="3"), "format_version must be '1' or '2', got '3'"),
    "number": (_meta(format_version=1), "format_version must be '1' or '2', got 1"),
    "metadata": (_meta(more="x"), "its metadata must be the texts"),
    "no plan": (lambda h: h["__metadata__"].pop("plan"), "its metadata must be the texts"),
    "plan is none": (_meta(plan=None), "its metadata must be the texts"),
    "no metadata": (lambda h: h.pop("__metadata__"), "header without __metadata__"),
    "plan no JSON": (_meta(plan="{"), "plan: must be JSON in UTF-8"),
    "plan a list": (_meta(plan="[]"), "plan: must be a JSON object, got"),
    "deep": (_meta(plan=DEEP), "plan: JSON must be at most 16 levels deep, got 10000"),
    "NaN": (_meta(plan='{"input": NaN}'), "plan: numbers must be finite, got NaN"),
    "twice": (_meta(plan='{"input": 1, "input": 1}'), "plan: each key must stand once, got 'input' again"),
    "digits": (_meta(plan="9" * 5000), "plan: must be JSON in UTF-8, got Exceeds the limit"),
}


@pytest.mark.parametrize(("change", "told"), HEADERS.values(), ids=HEADERS)
def test_headers_that_do_not_hold(
    tmp_path: Path, content: bytes, change: Callable[[dict[str, Any]], Any], told: str
) -> None:
    head, body = opened(content)
    change(head)
    (tmp_path / "m.lean").write_bytes(pack(sealed(head), body))
    with pytest.raises(Error, match=told) as raised:
        read(tmp_path / "m.lean")
    assert str(raised.value).startswith("m.lean: ")
    assert "\n" not in str(raised.value)


RAW: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "seven bytes": (lambda c: c[:7], "must be a .lean file"),
    "length": (lambda c: (2**63).to_bytes(8, "little") + c[8:], "got .* bytes with 9223372036854775808"),
    "half": (lambda c: c[: len(c) // 2], "must be a .lean file|must fill the file"),
    "cut": (lambda c: c[:-1], "its tensors must fill the file, .*: the file is cut or damaged"),
    "longer": (lambda c: c + b"\0", "its tensors must fill the file"),
    "no UTF-8": (lambda c: c[:8] + b"\xff" + c[9:], "header: must be JSON in UTF-8"),
    "deep": (lambda c: pack_raw(DEEP.encode()), "header: JSON must be at most 16 levels deep"),
    "a list": (lambda c: pack_raw(b"[]"), "header without __metadata__"),
    "other": (lambda c: pack_raw(b'{"__metadata__":{"format":"pt"}}'), "format 'leanconv', got 'pt'"),
    "a name": (lambda c: c.replace(b'"t0"', b'"u0"', 1), "its header must be as it was written"),
}


def pack_raw(head: bytes) -> bytes:
    return len(head).to_bytes(8, "little") + head


@pytest.mark.parametrize(("change", "told"), RAW.values(), ids=RAW)
def test_bytes_that_do_not_hold(tmp_path: Path, content: bytes, change: Callable[[bytes], bytes], told: str) -> None:
    (tmp_path / "m.lean").write_bytes(change(content))
    with pytest.raises(Error, match=told):
        read(tmp_path / "m.lean")


def test_a_weight_that_changed_is_found_on_request(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.lean").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    read(tmp_path / "m.lean")
    with pytest.raises(Error, match=r"m\.lean: its tensors must be as they were written, .* the file is damaged"):
        read(tmp_path / "m.lean", verify=True)


EDITS = st.tuples(
    st.sampled_from(("bit", "change", "insert", "delete", "cut")),
    st.floats(0, 1),
    st.booleans(),
    st.binary(min_size=1, max_size=4),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EDITS, min_size=1, max_size=3))
def test_damage_is_found_whatever_it_is(tmp_path: Path, content: bytes, edits: list[Any]) -> None:
    """Bytes changed, put in, left out: an error, or (spaces in the header) the same network."""
    (tmp_path / "m.lean").write_bytes(damaged(content, edits))
    told = ""
    try:
        plan, tensors = read(tmp_path / "m.lean", verify=True)
    except Error as error:
        told = str(error)
    if told:
        assert "\n" not in told
        return
    wanted, weights = small()
    assert plan == wanted
    assert all(np.array_equal(tensors[name], weights[name]) for name in weights)


def _steps(*changes: tuple[tuple[Any, ...], Any]) -> Callable[[dict[str, Any]], None]:
    def change(plan: dict[str, Any]) -> None:
        for path, value in changes:
            at(plan, path[:-1])[path[-1]] = value

    return change


PLANS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "op": (_steps((("steps", 0, "op"), "exec")), r"step 0 \(exec\): op must be one of"),
    "act": (_steps((("steps", 0, "act"), "tanh")), "act must be one of .*, got 'tanh'"),
    "key": (_steps((("steps", 0, "code"), "1")), "step 0: keys must be of .*, got 'code'"),
    "float": (_steps((("steps", 0, "inputs"), [0.0])), "step 0: inputs: must be a whole number"),
    "true": (_steps((("steps", 0, "output"), True)), "step 0: output: must be a whole number"),
    "negative": (_steps((("memory",), -16)), "plan: memory: must be a whole number from 0 to"),
    "later": (_steps((("steps", 0, "inputs"), [2])), "must be made before it is read, got value 2"),
    "far": (_steps((("steps", 0, "output"), 99)), "its output must be one of the 6 values, got 99"),
    "twice": (_steps((("steps", 1, "output"), 1), (("steps", 1, "parts", 1, "output"), 1)), "be made once"),
    "nothing": (_steps((("steps",), [])), "there must be 1 to 100000 steps"),
    "shape": (_steps((("values", 1), [6, 6, 5, 0])), r"its output must have the shape \(6, 6, 4\), got \(6, 6, 5\)"),
    "zero": (_steps((("values", 1), [6, 0, 4, 0])), "a value must have 1 to"),
    "vast": (_steps((("values", 1), [2**30, 2**30, 4, 0])), "a value must have 1 to"),
    "flat": (_steps((("values", 1), [6, 6])), "a value must be"),
    "offset": (_steps((("values", 1, 3), 8)), "must stand at a multiple of 16 within the arena"),
    "outside": (_steps((("values", 1, 3), 2**30)), "must stand at a multiple of 16 within the arena"),
    "overlap": (_steps((("values", 1, 3), 0), (("values", 3, 3), 16)), "values that live at once must not overlap"),
    "no place": (_steps((("values", 1), [6, 6, 4])), "its output must have a place in the arena"),
    "input placed": (_steps((("values", 0), [6, 6, 3, 0])), "input and output must have no place"),
    "inner placed": (_steps((("values", 2), [6, 6, 4, 0])), "its output must have no place in the arena"),
    "input": (_steps((("input",), 77)), "the plan's input must be one of the 6 values"),
    "spare": (lambda p: p["values"].append([1, 1, 1, 0]), "each value must be made by a step, got value 6"),
    "stride": (_steps((("steps", 0, "window"), {"stride": [0, 1]})), "stride and dilation must be at least 1"),
    "wide": (_steps((("steps", 0, "window"), {"stride": [2**30, 1]})), "numbers of its window must be at most 65536"),
    "padding": (_steps((("steps", 0, "window"), {"padding": [65536] * 4})), "its padded input must have at most"),
    "kernel": (_steps((("steps", 0, "window"), {"size": [3, 3]})), "weight must have the shape"),
    "two": (_steps((("steps", 0, "window"), {"size": [3]})), "size: must be 2 numbers, got 1"),
    "groups": (_steps((("steps", 0, "groups"), 0)), "groups must divide its channels"),
    "tensor": (_steps((("steps", 0, "tensors"), {"weight": "t0", "bias": "gone"})), "must stand in the file"),
    "role": (_steps((("steps", 0, "tensors"), {"weight": "t0"})), "tensors must be weight, bias, got weight"),
    "swapped": (_steps((("steps", 0, "tensors"), {"weight": "t1", "bias": "t0"})), "weight must have the shape"),
    "parts": (lambda p: p["steps"][1]["parts"].pop(), "parts must be depthwise, conv or"),
    "part of a part": (_steps((("steps", 1, "parts", 0, "parts"), [])), "a part must not have parts"),
    "part reads": (_steps((("steps", 1, "parts", 1, "inputs"), [1, 1])), r"part 1 must read values \(2, 1\)"),
    "part makes": (_steps((("steps", 1, "parts", 1, "output"), 4)), "the last part must make the block's output"),
    "window": (_steps((("steps", 2, "window"), {"size": [2, 2]})), "a window must be given to"),
    "count": (_steps((("steps", 0, "count_padding"), False)), "count_padding must be given to avg_pool alone"),
    "classes": (_steps((("classes",), ["a"])), "a class per channel of the output, 2, got 1"),
    "no text": (_steps((("classes",), [1, 2])), "plan: classes: must be text, got 1"),
    "surrogate": (_steps((("classes",), ["\ud800", "b"])), "plan: classes: must be text"),
    "mode": (_steps((("picture", "mode"), "CMYK")), "picture: mode must be RGB or L"),
    "side": (_steps((("picture", "side"), 7)), "the network's input must be 7 x 7 RGB"),
    "std": (_steps((("picture", "std"), [0, 1, 1])), "std must be above 0"),
    "infinite": (_steps((("picture", "mean"), [1e300, 1, 1])), "mean: must be a number, got"),
    "missing": (lambda p: p.pop("memory"), "plan: must have memory"),
    "about": (_steps((("about",), {"a": 1})), "plan: about: 'a': must be text"),
    "output inside": (_steps((("output",), 2)), "the plan's output must not lie inside a block|no place"),
    "output is input": (_steps((("output",), 0)), "a place in the arena|got the input"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "told"), PLANS.values(), ids=PLANS)
def test_plans_that_do_not_hold(
    tmp_path: Path, content: bytes, change: Callable[[dict[str, Any]], Any], told: str
) -> None:
    head, body = opened(content)
    plan = json.loads(head["__metadata__"]["plan"])
    change(plan)
    head["__metadata__"]["plan"] = json.dumps(plan)
    (tmp_path / "m.lean").write_bytes(pack(sealed(head), body))
    with pytest.raises(Error, match=told) as raised:
        read(tmp_path / "m.lean")
    assert str(raised.value).startswith("m.lean: ")
    assert "\n" not in str(raised.value)


def test_absurd_counts_are_refused_without_building_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "STEPS", 10)
    monkeypatch.setattr(encoding, "_NODES", 1000)
    with pytest.raises(Error, match="plan: JSON must have at most 1000 entries, got 2001"):
        from_json("[" + "0," * 2000 + "0]")
    step = {"op": "activation", "inputs": [0], "output": 1}
    plan = {"values": [[1, 1, 1]] * 2, "steps": [step] * 11, "input": 0, "output": 1, "memory": 0}
    with pytest.raises(Error, match="plan: steps: must be a list of at most 10, got 11"):
        from_json(json.dumps(plan))
    parts = {**step, "op": "block", "parts": [step] * 4}
    with pytest.raises(Error, match="there must be at most 10 steps with the parts of blocks"):
        from_json(json.dumps({**plan, "steps": [parts] * 3}))


def test_the_largest_plans_are_checked_in_time(tmp_path: Path) -> None:
    """5,000 steps whose values all live to the end."""
    n = 5_000
    values = [Value((1, 1, 16)), *(Value((1, 1, 16), 16 * i) for i in range(n)), Value((1, 1, 16 * n))]
    steps = [Step("activation", (max(0, i - 1),), i + 1) for i in range(n)]
    steps.append(Step("concat", tuple(range(1, n + 1)), n + 1))
    plan = Plan(tuple(values), tuple(steps), 0, n + 1, 16 * n)
    write(tmp_path / "m.lean", plan, {})
    assert read(tmp_path / "m.lean")[0] == plan
