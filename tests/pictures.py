"""Generated image folders and quick recipes for the tests of training, prediction and the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leanconv import recipe, training
from leanconv.recipe import Recipe

CLASSES = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


def picture(path: Path, colour: tuple[int, int, int], seed: int, side: int = 12) -> Path:
    """A noisy square of one colour."""
    noise = np.random.default_rng(seed).integers(-40, 40, (side, side, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def flat(root: Path, each: int = 10, side: int = 12) -> Path:
    """root/<class>/*.png"""
    for place, (name, colour) in enumerate(CLASSES.items()):
        for i in range(each):
            picture(root / name / f"{i}.png", colour, 100 * place + i, side)
    return root


def split(root: Path) -> Path:
    """root/{train,val,test}/<class>/*.png"""
    for name, each in (("train", 8), ("val", 3), ("test", 4)):
        flat(root / name, each)
    return root


def quick(name: str = "default", **flags: Any) -> Recipe:
    """A recipe that trains in a second: two epochs, one thread, a narrow network."""
    small = {"epochs": 2, "batch": 8, "threads": 1, "model.options.width": 8}
    return recipe.override(recipe.load(name), **{**small, **flags})


def trained(root: Path, settings: Recipe) -> Path:
    """root/pics, generated, and root/runs/a, trained on them."""
    flat(root / "pics")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        training.run.run("pics", settings, training.Job("a"))
    return root
