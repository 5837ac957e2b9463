"""The native code on a 64-bit Arm processor, emulated: it compiles, and writes what it writes here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR, LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
# Sums of a few thousand float32 or bfloat16 numbers that were rounded in another order.
CLOSE = 1e-4


def built(folder: Path, *options: str) -> Path:
    quiet = {"check": True, "capture_output": True}
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(folder), "-DLEANCONV_CASES=ON", *options], **quiet)
    subprocess.run(["cmake", "--build", str(folder)], **quiet)
    return folder / "leanconv_cases"


def sizes(command: list[str]) -> dict[tuple[int, int], tuple[str, float]]:
    """(instruction set, line within it) -> case and the sum of what it wrote."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[tuple[int, int], tuple[str, float]] = {}
    counts: dict[int, int] = {}
    for line in done.stdout.splitlines()[:-1]:
        case, size = line.rsplit("\t", 1)
        isa, name = case.split(" ", 1)
        number = counts[int(isa)] = counts.get(int(isa), -1) + 1
        found[int(isa), number] = name, float(size)
    return found


@pytest.mark.slow
def test_arm_writes_what_this_processor_writes(tmp_path):
    missing = [tool for tool in ("cmake", "c++", COMPILER, EMULATOR) if not shutil.which(tool)]
    if missing or not os.path.isdir(LIBRARIES):
        pytest.skip(f"{', '.join(missing) or LIBRARIES} not at hand")
    here = sizes([str(built(tmp_path / "here")), "--sizes"])
    cross = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}"]
    program = built(tmp_path / "arm", *cross)
    there = sizes([EMULATOR, "-L", LIBRARIES, str(program), "--sizes"])
    assert {isa for isa, _ in there} == {0, 1}  # scalar and neon
    for (isa, number), (name, size) in there.items():
        wanted, other = here[0, number]
        assert name == wanted
        assert size == pytest.approx(other, rel=CLOSE, abs=1e-3), (isa, name)
