"""Cutout and photos: what they do to pixels, in float64 and one by one."""

from __future__ import annotations

import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from leanconv.data import POLICIES, augment, resolve_policy
from leanconv.data.photo import Photo, _draws, photo
from leanconv.recipe.schema import Data

COUNT = 40


def images(channels: int, side: int = 20, n: int = COUNT) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=g)


def test_the_recipe_knows_every_policy() -> None:
    assert get_args(get_type_hints(Data)["augment"]) == ("auto", *POLICIES)


def test_auto_goes_by_channels_and_size() -> None:
    assert [resolve_policy("auto", c, s) for c, s in ((1, 28), (3, 32), (3, 96), (3, 97), (1, 224))] == [
        "shift", "flip_crop", "flip_crop", "photo", "photo",
    ]  # fmt: skip
    assert resolve_policy("auto", 3) == "flip_crop"
    assert resolve_policy("none", 3, 224) == "none"


@pytest.mark.source("S7")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 20])
def test_cutout_is_flip_crop_with_a_square_of_the_mean(channels: int, side: int) -> None:
    x, positions = images(channels, side, 200), torch.arange(200)
    plain, cut = augment(x, 3, 4, positions, "flip_crop"), augment(x, 3, 4, positions, "crop_flip_cutout")
    length, areas = side // 4, []
    for before, moved, after in zip(x, plain, cut, strict=True):
        mean = (before.double().sum((1, 2)) / side**2).round()
        differs = (moved != after).any(0)
        rows, columns = differs.any(1).nonzero().flatten(), differs.any(0).nonzero().flatten()
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        assert bottom - top <= length
        assert right - left <= length
        square = after[:, top:bottom, left:right].double()
        assert torch.equal(square, mean[:, None, None].expand_as(square))
        areas.append(int((bottom - top) * (right - left)))
    assert max(areas) == length**2
    assert min(areas) < length**2, "squares may stand over the border"


def reference(image: Tensor, draws: np.ndarray, how: Photo) -> Tensor:
    """Pixel by pixel in float64."""
    channels, h, w = image.shape
    area, ratio = how.scale + (1 - how.scale) * draws[0], math.exp((2 * draws[1] - 1) * math.log(how.ratio))
    cw, ch = w * min(1, math.sqrt(area * ratio)), h * min(1, math.sqrt(area / ratio))
    left, top = draws[2] * (w - cw), draws[3] * (h - ch)
    x = image.double()
    luma = torch.tensor([0.299, 0.587, 0.114] if channels == 3 else [1.0], dtype=torch.float64)
    result = torch.zeros_like(x)
    for i in range(h):
        for j in range(w):
            column = w - 1 - j if draws[4] < 0.5 else j
            v = min(max(top + (i + 0.5) * ch / h - 0.5, 0), h - 1)
            u = min(max(left + (column + 0.5) * cw / w - 0.5, 0), w - 1)
            r, c = min(int(v), h - 2), min(int(u), w - 2)
            a, b = v - r, u - c
            result[:, i, j] = (1 - a) * ((1 - b) * x[:, r, c] + b * x[:, r, c + 1]) + a * (
                (1 - b) * x[:, r + 1, c] + b * x[:, r + 1, c + 1]
            )
    brightness, contrast, saturation = (1 + how.jitter * (2 * u - 1) for u in draws[5:])
    grey = (result * luma[:, None, None]).sum(0)
    mean = (x * luma[:, None, None]).sum() / (h * w)
    if channels == 1:
        saturation = 1.0
    coloured = saturation * result + (1 - saturation) * grey
    return (brightness * (contrast * coloured + (1 - contrast) * mean)).clamp(0, 255)


@pytest.mark.source("S7")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", [Photo(0.35, 4 / 3, 0.3), Photo(0.7, 6 / 5, 0.1), Photo(1.0, 1.0, 0.0)])
def test_photos_are_as_written_out_in_float64(channels: int, how: Photo) -> None:
    x, positions = images(channels, 9, 12), torch.arange(12)
    draws = _draws(5, 6, positions)
    expected = torch.stack([reference(image, d, how) for image, d in zip(x, draws, strict=True)])
    wide = photo(x.double(), 5, 6, positions, how)
    assert wide.dtype == torch.float64
    # Coordinates are float32: 2^-24 of a side of 9 pixels moves a value by at most 255 of it.
    assert (wide - expected).abs().max() < 255 * 9 * 4 * 2**-24
    bytes_ = photo(x, 5, 6, positions, how)
    assert bytes_.dtype == torch.uint8
    assert (bytes_.double() - expected).abs().max() <= 0.5 + 1e-2


def test_a_photo_in_the_full_frame_is_the_photo() -> None:
    x = images(3, 16)
    moved = photo(x, 0, 0, torch.arange(COUNT), Photo(1.0, 1.0, 0.0))
    flipped = [bool((a == b.flip(2)).all()) for a, b in zip(moved, x, strict=True)]
    straight = [bool((a == b).all()) for a, b in zip(moved, x, strict=True)]
    assert all(f != s for f, s in zip(flipped, straight, strict=True))
    assert 8 < sum(flipped) < 32


@pytest.mark.parametrize("policy", ["crop_flip_cutout", "photo", "photo_light"])
@pytest.mark.parametrize(("channels", "side"), [(3, 33), (1, 20), (3, 160)])
def test_an_image_is_the_same_in_whatever_batch_it_comes(policy: str, channels: int, side: int) -> None:
    x, positions = images(channels, side, 13), torch.arange(100, 113)
    whole = augment(x, 1, 2, positions, policy)
    assert whole.shape == x.shape
    assert not torch.equal(whole, x)
    single = torch.cat([augment(x[i : i + 1], 1, 2, positions[i : i + 1], policy) for i in range(13)])
    assert torch.equal(single, whole)
    assert not torch.equal(augment(x, 1, 3, positions, policy), whole)
    assert not torch.equal(augment(x, 2, 2, positions, policy), whole)


def test_draws_are_even_and_apart() -> None:
    draws = _draws(0, 0, torch.arange(4000))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 4 * (1 / 12 / 4000) ** 0.5
    assert np.abs(np.corrcoef(draws.T) - np.eye(8)).max() < 4 / 4000**0.5


@pytest.mark.parametrize("policy", POLICIES)
def test_one_pixel_and_no_image(policy: str) -> None:
    assert augment(images(3, 1), 0, 0, torch.arange(COUNT), policy).shape == (COUNT, 3, 1, 1)
    assert augment(images(3, 20, 0), 0, 0, torch.arange(0), policy).shape == (0, 3, 20, 20)
