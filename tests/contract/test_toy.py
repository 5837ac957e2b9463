"""A fifth technique comes in by its folder alone: found, checked, applied by a recipe, trained."""

import os
import subprocess
import sys
from pathlib import Path

TOY = Path(__file__).parents[1] / "toy"

SCRIPT = """
import sys
import leanconv.techniques
leanconv.techniques.__path__.append(sys.argv[1])
from leanconv import techniques, testing
from leanconv.accounting import cost
from leanconv.recipe import load
from leanconv.training import train

names = [t.NAME for t in techniques.all()]
assert names == ["separable", "standardise", "batchnorm", "dropout", "l2"], names
failed = testing.failures(techniques.get("standardise"))
assert not failed, failed

import torch
from leanconv import models
from leanconv.contract import Context
from leanconv.graph import record
from leanconv.rewrite import rewrite
toy = techniques.get("standardise")
plain, x = models.plain(), torch.zeros(1, 1, 28, 28)
changed = rewrite(plain, toy.apply(Context(plain, graph=record(plain, x)), toy.Options())).model
assert any(type(m).__name__ == "StandardisedConv2d" for m in changed.modules())
assert cost(changed, x).total.params == cost(plain, x).total.params

import yaml
from pathlib import Path
text = {"format_version": 1, "model": {"name": "plain"}, "techniques": {"standardise": {"min_channels": 2}}}
Path("toy.yaml").write_text(yaml.safe_dump(text))
run = train(sys.argv[2], recipe="toy.yaml", epochs=1, batch=8, name="toy")
assert any(type(m).__name__ == "StandardisedConv2d" for m in run.model.modules())
print("the fifth technique trained")
"""


def test_a_fifth_technique_needs_no_change_elsewhere(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 255, (28, 28), dtype=np.uint8)).save(
                tmp_path / "images" / name / f"{i}.png"
            )
    command = [sys.executable, "-c", SCRIPT, str(TOY), str(tmp_path / "images")]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the fifth technique trained" in done.stdout
