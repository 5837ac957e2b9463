"""The NEON path, cross-compiled and run under an emulator: the bits of the torch twin. Correctness only, no speed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from leanconv.kernels.philox import twin_exact, twin_mask

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
KEY, SAMPLE = 2**63 + 12345, 2**32 - 1
SHAPES = [(rows, elements) for rows in (1, 3) for elements in (1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 129, 4097)]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    missing = [tool for tool in (COMPILER, EMULATOR, "cmake") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not at hand")
    build = tmp_path_factory.mktemp("neon")
    cross = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}"]
    quiet = {"check": True, "capture_output": True}
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), *cross], **quiet)
    subprocess.run(["cmake", "--build", str(build)], **quiet)
    found, main = build / "print_mask", ROOT / "tests" / "native" / "print_mask.cc"
    subprocess.run(
        [COMPILER, str(main), str(build / "libleanconv.so"), f"-Wl,-rpath,{build}", "-o", str(found)], **quiet
    )
    return str(found)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["scalar", "neon"])
def test_the_bits_of_the_twin(program: str, isa: str) -> None:
    calls, expected = [], []
    key = torch.tensor([KEY - 2**64, SAMPLE])
    for rows, elements in SHAPES:
        for op, twin, limit in (("mask", twin_mask, 40000), ("exact", twin_exact, elements // 2)):
            calls += [op, isa, str(KEY), str(SAMPLE), str(rows), str(elements), str(limit)]
            expected.append("".join(str(int(kept)) for kept in twin(key, rows, elements, limit, False).flatten()))
    emulator = [EMULATOR, "-L", "/usr/aarch64-linux-gnu", program]
    done = subprocess.run([*emulator, *calls], check=True, capture_output=True, text=True)
    assert done.stdout.split() == expected
