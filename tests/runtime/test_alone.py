"""The runtime in a Python that has no torch, and in one that has no Pillow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lean_plans import mobilenet
from leanconv.cli import main
from leanconv.runtime import load
from leanconv.runtime.file import write
from pictures import picture

WITHOUT = """\
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Missing())
"""
HEAVY = {"torch", "lightning_fabric", "lightning", "safetensors", "yaml", "rich", "plotly", "scipy"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    write(folder / "m.lean", *mobilenet(0.25, 32, 10))
    picture(folder / "photo.jpg", (200, 40, 40), 1)
    picture(folder / "inner" / "other.png", (20, 40, 240), 2)
    (folder / "inner" / "bad.png").write_bytes(b"")
    return folder


def python(code: str, folder: Path, missing: set[str]) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    words = [sys.executable, "-c", WITHOUT.format(missing=missing) + code]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("native", ["0", ""])
def test_it_runs_without_torch(here: Path, native: str) -> None:
    code = f"""
import os
if {native!r}: os.environ["LEANCONV_NATIVE"] = {native!r}
import json, numpy as np, leanconv
with leanconv.runtime.load("m.lean", verify=True) as net:
    y = net(np.ones((2, 3, 32, 32), np.float32))
    named = net.classify("photo.jpg")
assert not set(sys.modules) & {HEAVY}, set(sys.modules) & {HEAVY}
print(json.dumps([y.tolist(), named[0].to_dict()]))
"""
    done = python(code, here, HEAVY)
    assert not done.stderr, done.stderr
    y, named = json.loads(done.stdout)
    with load(here / "m.lean") as net:
        np.testing.assert_allclose(net(np.ones((2, 3, 32, 32), np.float32)), y, rtol=1e-4, atol=1e-6)
        assert named["classes"].keys() == net.classify(here / "photo.jpg")[0].to_dict()["classes"].keys()


def test_predict_runs_without_torch(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Output, remarks and exit codes are those of a process that has it."""
    monkeypatch.chdir(here)
    commands = {
        "m.lean photo.jpg": 0,
        "m.lean photo.jpg photo.jpg --top 1": 0,
        "m.lean photo.jpg --json": 0,
        "m.lean inner photo.jpg --csv --top 2": 1,
        "m.lean gone.jpg": 2,
        "gone.lean photo.jpg": 2,
        "m.lean": 2,
        "m.lean m.lean photo.jpg": 2,
        "m.lean photo.jpg --samples 5": 2,
        "m.lean photo.jpg --top 0": 2,
        "--help": 0,
    }
    codes = {words: main(["predict", *words.split()]) for words in commands}
    out, err = capsys.readouterr()
    code = (
        f"from leanconv.cli import main; codes = {{w: main(['predict', *w.split()]) for w in {[*commands]}}}\n"
        f"assert not set(sys.modules) & {HEAVY}; assert codes == {commands}, codes"
    )
    done = python(code, here, HEAVY)
    assert codes == commands
    assert (done.returncode, done.stdout, done.stderr) == (0, out, err)


def test_predict_prints_what_it_prints_for_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    assert main(["predict", "m.lean", "photo.jpg", "--top", "2"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("photo.jpg: class ")
    assert line.count("%") == 2
    assert main(["predict", "m.lean", "inner", "--csv", "--top", "1"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "image,class,probability,spread"
    assert out.splitlines()[1].startswith("inner/other.png,class ")
    assert err == "leanconv: inner/bad.png could not be read and is left out: zero bytes\n"
    assert main(["predict", "m.lean", "photo.jpg", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert sum(row["probability"] for row in told["classes"].values()) == pytest.approx(1)
    assert main(["predict", "m.lean", "inner/bad.png"]) == 2
    assert capsys.readouterr().err == "leanconv: error: image: must be readable, got zero bytes from 'inner/bad.png'\n"


def test_a_damaged_file_is_told(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    content = bytearray((here / "m.lean").read_bytes())
    content[-1] ^= 1
    (here / "bad.lean").write_bytes(content)
    assert main(["predict", "bad.lean", "photo.jpg"]) == 2
    assert "bad.lean: its tensors must be as they were written" in capsys.readouterr().err


def test_without_pillow_the_extra_is_named(here: Path) -> None:
    code = """
import numpy as np
from leanconv import Error, runtime
net = runtime.load("m.lean")
net(np.ones((1, 3, 32, 32), np.float32))
for images in ("photo.jpg", ["photo.jpg", "photo.jpg"]):
    try: net.classify(images)
    except Error as error: print(error)
"""
    done = python(code, here, {*HEAVY, "PIL"})
    rule = 'images: Pillow must be installed to read them (`pip install "leanconv[image]"`), got none\n'
    assert (done.stdout, done.stderr) == (rule * 2, "")
