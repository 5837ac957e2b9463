"""The native code under the compiler's sanitizers: tests/native/cases.cc calls all of it over many shapes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leanconv import _native

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("sanitizers", "arguments"), [("address,undefined", []), ("thread", ["--threads"])])
def test_no_sanitizer_has_anything_to_say(tmp_path, sanitizers, arguments):
    missing = [tool for tool in ("cmake", "c++") if not shutil.which(tool)]
    if missing or sys.platform != "linux":
        pytest.skip(f"{', '.join(missing) or 'linux'} not at hand")
    empty, build = tmp_path / "empty.cc", tmp_path / "build"
    empty.write_text("int main() {}\n")
    tried = ["c++", f"-fsanitize={sanitizers}", str(empty), "-o", str(tmp_path / "empty")]
    if subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip(f"this compiler has no -fsanitize={sanitizers}")
    quiet = {"check": True, "capture_output": True}
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), f"-DLEANCONV_SANITIZE={sanitizers}"], **quiet)
    subprocess.run(["cmake", "--build", str(build)], **quiet)
    program = str(build / "leanconv_cases")
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=False)
    command = [program, *arguments]
    if "unexpected memory mapping" in listed.stderr:  # the thread sanitizer of GCC 12 where addresses are very random
        command = ["setarch", "-R", *command]
    else:
        assert sorted(listed.stdout.split()) == sorted(_native._CALLS)  # each function of the library has its cases
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith(": ok\n")
    assert done.stderr == ""
