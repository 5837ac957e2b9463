"""Images in the runtime: the bits of training, from any number of threads, and a sentence where Pillow is missing."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leanconv import data
from leanconv.runtime import images


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.sampled_from((1, 3)), st.integers(1, 9), st.integers(1, 9), st.data())
def test_normalising_gives_the_bits_of_training(
    n: int, channels: int, height: int, width: int, data_: st.DataObject
) -> None:
    draw = st.lists(st.floats(1e-3, 1), min_size=channels, max_size=channels)
    mean, std = (tuple(data_.draw(draw)) for _ in range(2))
    x = np.random.default_rng(n).integers(0, 256, (n, height, width, channels), np.uint8)
    theirs = data.normalise(torch.from_numpy(x).permute(0, 3, 1, 2), mean, std).permute(0, 2, 3, 1)
    assert np.array_equal(images.normalise(x, mean, std), theirs.numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_all_256_values_normalise_to_the_bits_of_training(channels: int) -> None:
    x = np.repeat(np.arange(256, dtype=np.uint8), channels).reshape(1, 16, 16, channels)
    for mean, std in (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.2860,) * 3, (0.3530,) * 3)):
        theirs = data.normalise(torch.from_numpy(x).permute(0, 3, 1, 2), mean[:channels], std[:channels])
        assert np.array_equal(images.normalise(x, mean[:channels], std[:channels]), theirs.permute(0, 2, 3, 1).numpy())


def test_squares_are_those_of_training(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    for ending in ("jpg", "png", "gif", "bmp", "webp"):
        file = tmp_path / f"x.{ending}"
        Image.fromarray(pixels).save(file)
        for side, channels in ((32, 3), (64, 1), (300, 3)):
            with images.strict_pillow():
                square = images.square(file, side, channels)
            assert np.array_equal(square, data.read_image(file, side, channels).numpy())


def test_filters_of_warnings_come_back_after_any_number_of_threads() -> None:
    before = list(warnings.filters)
    inside, leave = threading.Barrier(6), threading.Event()

    def work() -> None:
        with images.strict_pillow():
            inside.wait()
            leave.wait()

    workers = [threading.Thread(target=work) for _ in range(5)]
    for worker in workers:
        worker.start()
    inside.wait()
    with images.strict_pillow(), pytest.raises(Image.DecompressionBombWarning):
        warnings.warn("large", Image.DecompressionBombWarning, stacklevel=1)
    leave.set()
    for worker in workers:
        worker.join()
    assert list(warnings.filters) == before


def test_an_absurdly_large_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    with images.strict_pillow():
        assert images.square(tmp_path / "x.png", 8, 1) == images.Refused("limit", "more than 6,000 pixels")
