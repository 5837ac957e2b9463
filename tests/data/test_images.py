"""Single files to 8-bit squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanconv.data import read_image
from leanconv.errors import Error


def corners() -> Image.Image:
    """10x20 (w x h): red above, blue below, left half darker."""
    array = np.zeros((20, 10, 3), np.uint8)
    array[:10, :, 0], array[10:, :, 2] = 200, 200
    array[:, 5:] += 50
    return Image.fromarray(array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = corners()
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = upright if stored is None else upright.transpose(stored)
    turned.save(tmp_path / "x.png", exif=exif)
    upright.save(tmp_path / "y.png")
    assert torch.equal(read_image(tmp_path / "x.png", 10, 3), read_image(tmp_path / "y.png", 10, 3))


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (8, 8), (200, 0, 0, 255)).save(tmp_path / "full.png")
    Image.new("LA", (8, 8), (0, 128)).save(tmp_path / "half.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "p.gif", transparency=0)
    assert read_image(tmp_path / "clear.png", 8, 3).unique().tolist() == [255]
    assert read_image(tmp_path / "full.png", 8, 3)[:, 0, 0].tolist() == [200, 0, 0]
    assert read_image(tmp_path / "half.png", 8, 1).unique().tolist() == [127]
    assert read_image(tmp_path / "p.gif", 8, 3).unique().tolist() == [255]


def test_sixteen_bits_are_cut_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256], [32767, 32768, 65279], [65280, 65535, 1]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    Image.fromarray(values).save(tmp_path / "x.tif")
    for name in ("x.png", "x.tif"):
        assert read_image(tmp_path / name, 3, 1)[0].tolist() == [[0, 0, 1], [127, 128, 254], [255, 255, 0]]
    assert read_image(tmp_path / "x.png", 3, 3).shape == (3, 3, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_every_mode_becomes_grey_or_colour(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("x.jpg" if mode == "YCbCr" else "x.tif")
    Image.new(mode, (6, 9)).save(file)
    assert read_image(file, 4, 1).shape == (1, 4, 4)
    assert read_image(file, 4, 3).shape == (3, 4, 4)


def test_the_central_square_is_taken(tmp_path: Path) -> None:
    array = np.zeros((8, 24), np.uint8)
    array[:, 8:16] = np.arange(8, dtype=np.uint8)[None] * 10
    Image.fromarray(array).save(tmp_path / "wide.png")
    Image.fromarray(array.T.copy()).save(tmp_path / "tall.png")
    expected = array[:, 8:16]
    assert np.array_equal(read_image(tmp_path / "wide.png", 8, 1)[0].numpy(), expected)
    assert np.array_equal(read_image(tmp_path / "tall.png", 8, 1)[0].numpy(), expected.T)


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "x.png")
    small = read_image(tmp_path / "x.png", 16, 1).float()
    # Taken point by point, a checkerboard would come out all black or all white.
    assert (small[:, 2:-2, 2:-2] - 127.5).abs().max() < 3


def test_a_large_jpeg_decoded_small_is_the_same_picture(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    Image.fromarray(np.stack([ramp[None].repeat(512, 0)] * 3, -1)).save(tmp_path / "x.jpg", quality=95)
    Image.fromarray(np.stack([ramp[None].repeat(512, 0)] * 3, -1)).save(tmp_path / "x.png")
    apart = read_image(tmp_path / "x.jpg", 32, 3).int() - read_image(tmp_path / "x.png", 32, 3).int()
    assert apart.abs().max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 5)])
def test_extreme_shapes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", 12, 3)[:, 5, 5].tolist() == [9, 8, 7]


def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(
        tmp_path / "x.png", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01"
    )
    assert read_image(tmp_path / "x.png", 8, 3)[:, 0, 0].tolist() == [1, 2, 3]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"image: must be a file that exists, got '.*none.png'"):
        read_image(tmp_path / "none.png", 8, 3)
    (tmp_path / "zero.png").write_bytes(b"")
    with pytest.raises(Error, match=r"must be readable, got a file of zero bytes from '.*zero.png'"):
        read_image(tmp_path / "zero.png", 8, 3)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(Error, match="must be readable, got UnidentifiedImageError"):
        read_image(tmp_path / "text.png", 8, 3)
