"""Networks that ask for more than the machine has are refused before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import pytest

from lean_plans import Builder, mobilenet
from leanconv.errors import Error
from leanconv.runtime import file, limits, load
from leanconv.runtime.plan import Window
from leanconv.runtime.threads import control_group
from leanconv.runtime.work import macs


def test_arithmetic_is_multiply_adds_and_a_little() -> None:
    plan, _ = mobilenet(0.25, 64, 10)
    assert macs(plan) < limits.arithmetic(plan) < 1.2 * macs(plan)


def test_a_network_of_hours_is_refused(tmp_path: Path) -> None:
    builder = Builder((2048, 2048, 64))
    x = 0
    for _ in range(5):
        x = builder.add("max_pool", x, window=Window((1023, 1023), padding=(511, 511, 511, 511)))
    file.write(tmp_path / "m.lean", builder.plan(), {})
    with pytest.raises(Error, match=r"^m.lean: an image must take at most 1e\+13 operations, got 1.4e\+15"):
        load(tmp_path / "m.lean")


def test_maps_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = mobilenet(0.25, 64, 10)
    file.write(tmp_path / "m.lean", *made)
    load(tmp_path / "m.lean").close()
    monkeypatch.setattr(limits, "memory", lambda: made[0].memory * 4)
    with pytest.raises(Error, match=r"^m.lean: its maps must fit into this machine's memory"):
        load(tmp_path / "m.lean")
    load(tmp_path / "m.lean", limits=False).close()
    monkeypatch.setattr(limits, "memory", lambda: None)
    load(tmp_path / "m.lean").close()


def test_the_machine_has_memory() -> None:
    found = limits.memory()
    assert found is None or found > 2**26


def test_control_groups_of_both_versions(tmp_path: Path) -> None:
    assert control_group("memory.max", "memory/limit", root=tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "limit").write_text("5\n")
    assert control_group("memory.max", "memory/limit", root=tmp_path) == ["5"]
    (tmp_path / "memory.max").write_text("max\n")
    assert control_group("memory.max", "memory/limit", root=tmp_path) == ["max"]
