"""The native library: loader, environment, damaged files, and what its objects may contain."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leanconv import _native
from leanconv._native import structures
from leanconv.errors import Error

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """The same in a run with LEANCONV_NATIVE=0 or a forced instruction set: this file sets what it needs."""
    monkeypatch.delenv("LEANCONV_NATIVE", raising=False)
    monkeypatch.delenv("LEANCONV_ISA", raising=False)


@pytest.fixture
def library():
    found = _native.load()
    if found is None:
        pytest.skip("there is no native library")
    return found


@pytest.fixture
def fresh():
    """Loader state of its own: what the test breaks stays in the test."""
    _native._select.cache_clear()
    yield
    _native._select.cache_clear()


def test_no_torch_is_imported():
    code = "import sys, leanconv._native as n; n.load(); print(n.explain()); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("native code: ")


def test_off_is_read_at_call_time(monkeypatch):
    monkeypatch.setenv("LEANCONV_NATIVE", "0")
    assert (_native.load(), _native.available(), _native.isa()) == (None, False, None)
    assert _native.explain() == "native code: off, LEANCONV_NATIVE=0"
    monkeypatch.setenv("LEANCONV_NATIVE", "yes")
    with pytest.raises(Error, match=r"^LEANCONV_NATIVE: must be 0 or 1 or unset, got 'yes'$"):
        _native.load()


def test_each_instruction_set_can_be_forced(library, monkeypatch):
    assert library.isas[0] == "scalar"
    for name in library.isas:
        monkeypatch.setenv("LEANCONV_ISA", name)
        assert _native.isa() == name
        assert f"instruction set {name} (LEANCONV_ISA asks for it)" in _native.explain()
    monkeypatch.delenv("LEANCONV_ISA")
    assert _native.isa() == library.isas[-1]


def test_an_instruction_set_that_cannot_be_is_an_error(library, monkeypatch):
    monkeypatch.setenv("LEANCONV_ISA", "mmx")
    with pytest.raises(Error, match=r"^LEANCONV_ISA: must be one of scalar, avx2, avx512, neon, got 'mmx'$"):
        _native.load()
    missing = next(name for name in _native.ISAS if name not in library.isas)
    monkeypatch.setenv("LEANCONV_ISA", missing)
    with pytest.raises(Error, match=f"on this machine, got '{missing}'$"):
        _native.load()


def test_an_instruction_set_without_a_library_is_an_error(fresh, monkeypatch):
    monkeypatch.setattr(_native, "_open", lambda: "it is not there")
    assert _native.load() is None
    assert _native.explain() == "native code: none, it is not there"
    monkeypatch.setenv("LEANCONV_ISA", "scalar")
    with pytest.raises(Error, match=r"^LEANCONV_ISA=scalar: native code must be there, got none: it is not there$"):
        _native.load()


def test_a_damaged_library_is_told_not_raised(tmp_path):
    damaged = tmp_path / "libleanconv.so"
    damaged.write_bytes(b"\x7fELF and then nothing")
    told = _native._check(str(damaged))
    assert isinstance(told, str)
    assert "cannot be loaded" in told


def test_a_foreign_library_is_told_not_raised():
    told = _native._check(ctypes.util.find_library("c") or "libc.so.6")
    assert isinstance(told, str)
    assert "cannot be loaded" in told


def test_another_abi_is_told_not_raised(library, monkeypatch):
    monkeypatch.setattr(_native, "ABI", 999)
    told = _native._check(library.path)
    assert isinstance(told, str)
    assert "has ABI 5, this leanconv needs 999" in told


def test_the_library_refuses_what_does_not_fit(library, monkeypatch):
    out = (ctypes.c_uint8 * 8)()
    address = ctypes.addressof(out)
    with pytest.raises(Error, match="lacks the instruction set"):
        library.keep_mask(0, 0, 1, 8, 3, address, None, "neon" if "neon" not in library.isas else "avx2")
    with pytest.raises(Error, match="out of range"):
        library.keep_mask(0, 0, 1, 8, 65536, address)
    with pytest.raises(Error, match="out of range"):
        library.keep_exact(0, 0, 1, 8, 9, address)
    monkeypatch.setattr(
        _native.library, "Mask", type("Longer", (structures.Mask,), {"_fields_": [("more", ctypes.c_int)]})
    )
    with pytest.raises(Error, match="another size"):
        library.keep_mask(0, 0, 1, 8, 3, address)
    assert list(out) == [0] * 8


@pytest.mark.parametrize(
    ("name", "struct"),
    [
        ("lc_mask", structures.Mask),
        ("lc_dropout", structures.Dropout),
        ("lc_spread", structures.Spread),
        ("lc_depthwise", structures.Depthwise),
        ("lc_value", structures.Value),
        ("lc_step", structures.Step),
        ("lc_plan", structures.Plan),
        ("lc_batch", structures.Batch),
        ("lc_burst", structures.Burst),
    ],
)
def test_structs_agree_with_the_header(name, struct):
    header = (ROOT / "native" / "leanconv.h").read_text()
    start = header.index(f"struct {name} {{")
    body = header[start : header.index("};", start)]
    lines = [m[1] for line in body.splitlines()[1:] if (m := re.match(r"\s*[\w:*]+[\s*]+([\w, ]+);", line))]
    assert ", ".join(lines).split(", ") == [field[0] for field in struct._fields_]
    assert "#define LC_ABI 5\n" in header


def test_exports_and_needs_are_few(library):
    if not shutil.which("nm") or sys.platform != "linux":
        pytest.skip("nm is not at hand")
    shown = subprocess.run(["nm", "-D", "--defined-only", library.path], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in shown.stdout.splitlines()}
    assert names == {
        "lc_abi", "lc_isas", "lc_supported", "lc_paths", "lc_path_supported", "lc_path_of", *_native._CALLS,
    }  # fmt: skip
    needs = subprocess.run(["nm", "-D", "--undefined-only", library.path], capture_output=True, text=True, check=True)
    for word in ("omp_", "GOMP", "_Z", "Py"):  # no OpenMP, no C++ library, no Python
        assert word not in needs.stdout


def test_no_object_of_an_instruction_set_shares_code(tmp_path):
    """No weak or unique symbol in any object: the linker would keep one copy for all processors."""
    missing = [tool for tool in ("cmake", "nm", "c++") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not at hand")
    quiet = {"check": True, "capture_output": True}
    # What is not inlined shows, and it compiles in a third of the time.
    little = '-DCMAKE_CXX_FLAGS_RELEASE=-O0 "-DLC_INLINE=static inline" -DLC_INLINE_MEMBER='
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(tmp_path), little], **quiet)
    subprocess.run(["cmake", "--build", str(tmp_path), "--parallel"], **quiet, env={**os.environ, "VERBOSE": "1"})
    objects = [path for path in tmp_path.rglob("*.o") if "one_isa" in path.name or "one_path" in path.name]
    assert objects
    for path in objects:
        shown = subprocess.run(["nm", str(path)], check=True, capture_output=True, text=True).stdout
        kinds = {line.split()[-1]: line.split()[-2] for line in shown.splitlines()}
        shared = [name for name, kind in kinds.items() if kind in "wWvVu"]
        visible = [name for name, kind in kinds.items() if kind in "TDBRGS"]
        assert shared == [], path
        assert len(visible) == 1, path  # the table alone


def test_depthwise_offsets_beyond_32_bits(tmp_path):
    if not shutil.which("c++") or sys.platform != "linux":
        pytest.skip("c++ is not at hand")
    program, source = tmp_path / "far", ROOT / "tests" / "native" / "far.cc"
    flags = ["-std=gnu++17", "-O1", "-DLC_BYTES=16", "-Wno-psabi", "-Wno-unused-function"]
    subprocess.run(["c++", *flags, str(source), "-o", str(program)], check=True, capture_output=True)
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    if done.stdout == "no address space\n":
        pytest.skip("48 GiB of address space are not at hand")
    assert done.stdout == "ok\n"


DEPTHWISE = (0, 1, 3, 3, 4, 1, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("channels", -1), ("multiplier", 0), ("stride_width", 0), ("pad_height", -1), ("images", 2**50), ("width", 2**62)],
)
def test_the_depthwise_convolution_refuses_bad_sizes(library, field, value):
    at = [name for name, _ in structures.Depthwise._fields_].index(field) - 2
    sizes = (*DEPTHWISE[:at], value, *DEPTHWISE[at + 1 :])
    with pytest.raises(
        Error, match=f"native depthwise convolution: an argument is out of range, got .*{field}={value}"
    ):
        library.depthwise_scratch(sizes if field != "images" else (*sizes[:2], 2**20, *sizes[3:]))


def test_the_depthwise_convolution_refuses_little_scratch(library):
    floats = library.depthwise_scratch(DEPTHWISE)
    memory = (ctypes.c_float * (floats + 200))()
    at = ctypes.addressof(memory)
    with pytest.raises(Error, match="an argument is out of range"):
        library.depthwise("forward", DEPTHWISE, (at, at, at, None, at), floats - 1)
    with pytest.raises(Error, match="lacks the instruction set"):
        library.depthwise_scratch(DEPTHWISE, "neon" if "neon" not in library.isas else "avx2")
