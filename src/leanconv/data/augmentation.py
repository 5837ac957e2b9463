"""Augmentation of 8-bit batches: shifts by whole pixels, mirroring, squares cut out; for photos see :mod:`.photo`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from leanconv.data.order import AUGMENT, hashed
from leanconv.data.photo import Photo, photo, plane_sums
from leanconv.errors import Error

__all__ = ["POLICIES", "augment", "resolve_policy"]


@dataclass(frozen=True)
class _Policy:
    """Shift by at most side / ``reach`` pixels in both directions, filled as ``border`` says; half are mirrored.

    ``cutout``: a square of side / ``cutout`` pixels, anywhere, takes the image's mean colour; 0: none.
    """

    reach: int
    border: Literal["reflect", "edge"]
    flip: bool
    cutout: int = 0


_TABLE: dict[str, _Policy | Photo | None] = {
    "none": None,
    "flip_crop": _Policy(8, "reflect", True),
    "shift": _Policy(28, "edge", False),
    "shift_flip": _Policy(28, "edge", True),
    "crop_flip_cutout": _Policy(8, "reflect", True, 4),
    "photo": Photo(0.35, 4 / 3, 0.3),
    "photo_light": Photo(0.7, 6 / 5, 0.1),
}

POLICIES = tuple(_TABLE)
"""``none``; ``flip_crop``: shifted by up to side/8, borders reflected, half mirrored (the usual padded crop, for
photos); ``shift``: up to side/28, borders repeated (small grey images, where mirroring may change the meaning);
``shift_flip``: the same, half mirrored; ``crop_flip_cutout``: ``flip_crop``, then a square of a quarter of the side is
cut out (8 pixels at 32; DeVries and Taylor 2017), for longer training; ``photo``: a crop of 35 to 100 % of the area
drawn to full size, half mirrored, other brightness, contrast and (colour) saturation, for photos from scratch;
``photo_light``: the same from 70 % with little jitter, for fine-tuning."""

_PHOTO_SIZE = 96


def resolve_policy(policy: str, in_chans: int, imgsz: int | None = None) -> str:
    """The policy that ``auto`` stands for: ``flip_crop`` for colour, ``shift`` for grey, ``photo`` above 96 pixels.

    Small grey images are often characters, which mirroring would change; large ones are photos.

    Args:
        policy: a name of :data:`POLICIES`, or ``auto``.
        in_chans: 1 grey, 3 colour.
        imgsz: side in pixels; None: small.

    Raises:
        Error: no such policy.
    """
    if policy == "auto":
        if imgsz is not None and imgsz > _PHOTO_SIZE:
            return "photo"
        return "shift" if in_chans == 1 else "flip_crop"
    if policy not in _TABLE:
        near = difflib.get_close_matches(policy, _TABLE, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise Error(f"augment: policy must be one of auto, {', '.join(POLICIES)}, got {policy!r}{hint}")
    return policy


def augment(images: Tensor, seed: int, epoch: int, positions: Tensor, policy: str) -> Tensor:
    """Augment each image by numbers that its position in the epoch decides.

    The same (seed, epoch, position) gives the same image, in whatever batch it comes.

    Args:
        images: (N, C, H, W), uint8 or floating.
        seed: any int.
        epoch: from 0.
        positions: int64 (N,), positions in the epoch's order.
        policy: one of :data:`POLICIES`, or ``auto``.

    Returns:
        A new tensor of the same shape and dtype, or ``images`` itself where the policy is ``none``.

    Raises:
        Error: no such policy, or shapes that do not fit together.
    """
    if images.dim() != 4 or positions.shape != images.shape[:1]:
        shapes = f"{tuple(images.shape)} and {tuple(positions.shape)}"
        raise Error(f"augment: images must be (N, C, H, W) and positions (N,), got {shapes}")
    chosen = _TABLE[resolve_policy(policy, images.shape[1], images.shape[-1])]
    if chosen is None or not len(images):
        return images
    if isinstance(chosen, Photo):
        return photo(images, seed, epoch, positions, chosen)
    bits = hashed(AUGMENT, seed, epoch, positions.cpu().numpy())
    n, c, h, w = images.shape
    rows = _sources(h, _offsets(bits, 0, h, chosen.reach), chosen.border)
    columns = _sources(w, _offsets(bits, 16, w, chosen.reach), chosen.border)
    if chosen.flip:
        columns = torch.where(torch.from_numpy((bits >> np.uint64(63)) == 1)[:, None], columns.flip(1), columns)
    # One gather over flattened planes: 4 to 10 times as fast as indexing with three tensors (docs/decisions/003).
    pixels = (rows[:, :, None] * w + columns[:, None, :]).reshape(n, 1, h * w).expand(n, c, h * w)
    moved = images.reshape(n, c, h * w).gather(2, pixels.to(images.device)).reshape(n, c, h, w)
    return _cut(moved, images, bits, chosen.cutout) if chosen.cutout else moved


def _cut(moved: Tensor, images: Tensor, bits: np.ndarray, cutout: int) -> Tensor:
    """A square, its middle anywhere, takes the mean colour of the image as it was; in place."""
    h, w = images.shape[2:]
    mean = plane_sums(images) / (h * w)
    mean = mean.to(images.dtype) if images.is_floating_point() else mean.round().to(images.dtype)
    inside = _stripe(h, bits, 32, cutout)[:, None, :, None] & _stripe(w, bits, 47, cutout)[:, None, None, :]
    return torch.where(inside.to(images.device), mean[:, :, None, None], moved)


def _stripe(side: int, bits: np.ndarray, place: int, cutout: int) -> Tensor:
    """bool (N, side): side / cutout pixels around a middle that 15 bits decide, cut at the border."""
    length = max(1, side // cutout)
    word = (bits >> np.uint64(place)) & np.uint64(0x7FFF)
    first = torch.from_numpy(((word * np.uint64(side)) >> np.uint64(15)).astype(np.int64) - length // 2)
    away = torch.arange(side)[None] - first[:, None]
    return (away >= 0) & (away < length)


def _offsets(bits: np.ndarray, place: int, side: int, reach: int) -> Tensor:
    """int64 (N,): evenly spread over -k..k, k = side / reach rounded, at least 1, from 16 bits of each hash."""
    k = min(max(1, round(side / reach)), side - 1)
    word = (bits >> np.uint64(place)) & np.uint64(0xFFFF)
    return torch.from_numpy(((word * np.uint64(2 * k + 1)) >> np.uint64(16)).astype(np.int64) - k)


def _sources(side: int, offsets: Tensor, border: str) -> Tensor:
    """int64 (N, side): the row (or column) that each row of the result is taken from."""
    index = torch.arange(side)[None] + offsets[:, None]
    if border == "edge":
        return index.clamp_(0, side - 1)
    index = index.abs_()
    return torch.where(index >= side, 2 * (side - 1) - index, index)
