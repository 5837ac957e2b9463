"""Records: shares with intervals, JSON that is never half written, the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv import results
from leanconv.errors import Error
from leanconv.results import Epoch, Run, Score, difference, wilson
from leanconv.runtime.threads import _quota

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_intervals(correct: int, total: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(total=st.integers(1, 5000), share=st.floats(0, 1), level=st.floats(0.01, 0.999))
@settings(max_examples=100, deadline=None)
def test_wilson_holds_the_bounds_of_a_score_test(total: int, share: float, level: float) -> None:
    """At each bound q, (p - q)^2 = z^2 q (1 - q) / n; mirrored counts give mirrored intervals."""
    from statistics import NormalDist

    correct = round(share * total)
    low, high = wilson(correct, total, level)
    p, z = correct / total, NormalDist().inv_cdf((1 + level) / 2)
    assert 0 <= low <= p <= high <= 1
    for q in (low, high):
        assert (p - q) ** 2 == pytest.approx(z * z * q * (1 - q) / total, abs=1e-9)
    assert wilson(total - correct, total, level) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ((1, 0), "correct=1, total=0"),
        ((-1, 4), "correct=-1, total=4"),
        ((5, 4), "correct=5"),
        ((1, 4, 1.0), "level=1.0"),
    ],
)
def test_wilson_refuses(arguments: tuple[int, int], got: str) -> None:
    with pytest.raises(Error, match="wilson: ") as caught:
        wilson(*arguments)
    assert got in str(caught.value)


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
@pytest.mark.source("S1")
def test_the_gaps_interval_is_newcombes(a: tuple[int, int], b: tuple[int, int], low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, 873-890, table II, method 10."""
    found = difference(Score(*a), Score(*b))
    assert found.value == pytest.approx(a[0] / a[1] - b[0] / b[1], abs=1e-15)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_a_score_tells_itself() -> None:
    assert str(Score(81, 263)) == "30.8% (25.5% to 36.6%)"
    with pytest.raises(Error):
        Score(3, 2)


def epoch(**changed: object) -> Epoch:
    values: dict[str, object] = {
        "epoch": 1, "step": 71, "lr": 0.05, "loss": 1.5, "penalty": 0.01,
        "train": Score(90, 100, 0.3), "val": Score(8, 10), "seconds": 2.0,
    }  # fmt: skip
    return Epoch(**(values | changed))  # type: ignore[arg-type]


def run(**changed: object) -> Run:
    values: dict[str, object] = {
        "name": "exp", "status": "done", "recipe": {"model": {"name": "plain"}}, "digest": "ab",
        "data": {"mean": [0.5]}, "environment": {},
        "train": Score(90, 100), "val": Score(8, 10), "test": Score(70, 100, 0.9), "params": 5,
        "notes": ["one"],
    }  # fmt: skip
    return Run(**(values | changed))  # type: ignore[arg-type]


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    results.write_run(tmp_path, run())
    assert results.read_run(tmp_path) == run()
    assert json.loads((tmp_path / "run.json").read_text())["format_version"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    assert run().gap == difference(Score(90, 100), Score(70, 100))
    assert run(test=None).gap == difference(Score(90, 100), Score(8, 10))
    assert run(train=None).gap is None


def test_metrics_are_appended_and_come_back(tmp_path: Path) -> None:
    assert results.read_metrics(tmp_path) == []
    rows = [epoch(epoch=i, extra={"penalty by": {"l2": 0.1 * i}}) for i in range(1, 4)]
    for row in rows:
        results.append_metrics(tmp_path, row)
    assert results.read_metrics(tmp_path) == rows
    assert rows[0].gap == difference(Score(90, 100), Score(8, 10))


def test_a_diverged_run_is_still_json(tmp_path: Path) -> None:
    for value in (float("inf"), float("-inf"), float("nan")):
        results.append_metrics(tmp_path, epoch(loss=value, extra={"norm": value}))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    for line in lines:
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    losses = [row.loss for row in results.read_metrics(tmp_path)]
    assert losses[:2] == [float("inf"), float("-inf")]
    assert losses[2] != losses[2]


def test_half_a_line_is_passed_over_and_cut_by_the_next(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    results.append_metrics(tmp_path, epoch(epoch=1))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: len(whole) // 2])
    assert results.read_metrics(tmp_path) == [epoch(epoch=1)]
    results.append_metrics(tmp_path, epoch(epoch=2))
    assert results.read_metrics(tmp_path) == [epoch(epoch=1), epoch(epoch=2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops\n", "line 2: must be JSON, got "),
        (b"[1]\n", "line 2: must be a JSON object, got list"),
        (b'{"format_version": 9}\n', "line 2: format_version must be 1, got 9"),
        (b'{"format_version": 1}\n', "line 2: epoch must be there, got none"),
        (b"\n", "line 2: must be JSON, got "),
        (b"\xff\xfe\n", "line 2: must be JSON, got "),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    results.append_metrics(tmp_path, epoch())
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(line)
    with pytest.raises(Error) as caught:
        results.read_metrics(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be JSON, got "),
        ('{"format_version": 1', "must be JSON, got "),
        ("[" * 100_000, "must be JSON, got "),
        ("[]", "must be a JSON object, got list"),
        ("{}", "format_version must be 1, got None"),
        ('{"format_version": 1, "name": 3}', "name must be str, got 3"),
        ('{"format_version": 1, "name": "x"}', "status must be there, got none"),
    ],
)
def test_a_damaged_record_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(Error) as caught:
        results.read_run(tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "run.json"))


def test_wrong_types_are_named(tmp_path: Path) -> None:
    results.write_run(tmp_path, run())
    values = json.loads((tmp_path / "run.json").read_text())
    for key, value in (("epochs", 1.5), ("epochs", True), ("params", "many"), ("test", [1]), ("notes", {})):
        (tmp_path / "run.json").write_text(json.dumps(values | {key: value}))
        with pytest.raises(Error, match=f"{key} must be "):
            results.read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(values | {"later": 1}))
    assert results.read_run(tmp_path) == run()


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(Error, match="must be a readable file, got No such file"):
        results.read_run(tmp_path)
    with pytest.raises(Error, match="must be writable, got No such file"):
        results.write_run(tmp_path / "none", run())
    with pytest.raises(Error, match="must be writable, got No such file"):
        results.append_metrics(tmp_path / "none", epoch())


def test_values_must_be_plain_and_the_old_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    results.write_json(file, {"a": 1})
    with pytest.raises(Error, match=r"x.json: values must be plain, got .*object"):
        results.write_json(file, {"a": object()})
    assert results.read_json(file) == {"a": 1}
    with pytest.raises(Error, match=r"y.jsonl: values must be plain"):
        results.append_line(tmp_path / "y.jsonl", {"a": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@given(values=st.dictionaries(st.text().filter(lambda key: key != "format_version"), PLAIN, max_size=4))
@settings(max_examples=50, deadline=None)
def test_plain_values_survive(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    folder = tmp_path_factory.mktemp("x")
    results.write_json(folder / "x.json", values)
    results.append_line(folder / "x.jsonl", values)
    assert results.read_json(folder / "x.json") == values
    assert results.read_lines(folder / "x.jsonl") == [values]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from leanconv import results
from leanconv.errors import Error
results.write_json("x.json", {"a": 1})
results.append_line("x.jsonl", {"a": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write, name in ((results.write_json, "x.json"), (results.append_line, "x.jsonl")):
    try:
        write(name, {"a": "b" * 100_000})
        sys.exit("written")
    except Error as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == "x.json: must be writable, got File too large\nx.jsonl: must be writable, got File too large\n"
    )
    assert results.read_json(tmp_path / "x.json") == {"a": 1}
    assert results.read_lines(tmp_path / "x.jsonl") == [{"a": 1}]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.jsonl"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    results.write_json(tmp_path / "x.json", {})
    (tmp_path / "y").touch()
    assert (tmp_path / "x.json").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_the_machine_is_told_without_torch() -> None:
    told = "print(json.dumps(results.environment())); sys.exit('torch' in sys.modules)"
    code = f"import sys, json; from leanconv import results; {told}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["cpu"]
    assert 1 <= found["usable_cores"] <= found["cores"]
    assert found["versions"]["torch"].startswith("2.")
    assert "no-such-package" not in results.environment(["no-such-package"])["versions"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_control_group(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _quota(tmp_path) == expected
