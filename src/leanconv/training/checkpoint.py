"""A network on disk: one ``.safetensors`` file whose header says how to build the network and how to read images.

Nothing in it is executed on loading. The header's SHA-256 over weights and header detects damage, not an adversary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from leanconv.errors import Error
from leanconv.recipe import Recipe
from leanconv.results import write_bytes

__all__ = ["FORMAT_VERSION", "Header", "load", "read_tensors", "save", "write_tensors"]

FORMAT_VERSION = 1
_KEY = "leanconv"


@dataclass(frozen=True)
class Header:
    """What stands beside the weights.

    Attributes:
        recipe: as plain values, every option written out; model and techniques are built again from it.
        classes: names, in the order of the network's outputs.
        shape: (C, H, W) of one input.
        mean, std: per channel, of pixels scaled to 0..1; an input is ``(pixels - mean) / std``.
        samples: n, the number of training images.
        fingerprint: of the data set.
        surgery: what was done to the network after it was built, as ``leanconv.surgery.Plan.to_dict`` gives it; None:
            nothing.
    """

    recipe: dict[str, Any]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    samples: int
    fingerprint: str
    surgery: dict[str, Any] | None = None

    def built_from(self) -> Recipe:
        """The recipe as an object."""
        return Recipe.from_dict(self.recipe)


def save(path: Path, state: Mapping[str, Tensor], header: Header) -> str:
    """Write weights and header at once: the file is either the old one or the whole new one.

    Args:
        path: of the file; its folder exists.
        state: name -> tensor, a ``state_dict``.
        header: written into the file's metadata, with ``format_version`` and the digests.

    Returns:
        The SHA-256 of the weights, 64 hexadecimal digits.
    """
    return write_tensors(path, state, asdict(header))


def load(path: Path) -> tuple[dict[str, Tensor], Header]:
    """Read what :func:`save` wrote.

    Raises:
        Error: no such file; truncated, damaged in any byte, or not of leanconv; a later format.
    """
    tensors, about = read_tensors(path, "the weights")
    return tensors, _header(path, about)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    before: Callable[[Path], None] | None = None,
) -> str:
    """Write tensors and plain values into one ``.safetensors`` file, with digests over both.

    Args:
        path: of the file.
        tensors: name -> tensor.
        about: plain values.
        before: called with the path when the new content is on disk and not yet in place.

    Returns:
        The SHA-256 of the tensors.

    Raises:
        Error: it cannot be written; what stood there stays.
    """
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    digest = _digest(plain)
    values = {"format_version": FORMAT_VERSION, **about, "weights_sha256": digest}
    text = json.dumps({**values, "sha256": _whole(values)})
    write_bytes(path, to_bytes(plain, {_KEY: text}), before)
    return digest


def read_tensors(path: Path, subject: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`write_tensors` wrote.

    Raises:
        Error: no such file; truncated, or damaged in any byte; not of leanconv; a later format.
    """
    if not path.is_file():
        raise Error(f"{path}: {subject} must be a file, got nothing there")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise Error(f"{path}: {subject} must be a whole .safetensors file, got a damaged one ({reason})") from None
    about = _about(path, subject, metadata.get(_KEY))
    version, whole, digest = about.get("format_version"), about.pop("sha256", None), about.get("weights_sha256")
    if version != FORMAT_VERSION:
        raise Error(f"{path}: format_version must be {FORMAT_VERSION}, got {version!r}")
    if whole != _whole(about) or digest != _digest(tensors):
        raise Error(f"{path}: {subject} must have the SHA-256 of their header, got a damaged file")
    del about["weights_sha256"], about["format_version"]
    return tensors, about


def _about(path: Path, subject: str, text: str | None) -> dict[str, Any]:
    if text is None:
        raise Error(f"{path}: {subject} must be of a run of leanconv, got a .safetensors file without its header")
    try:
        about = json.loads(text)
    except json.JSONDecodeError as error:
        raise Error(f"{path}: the header must be JSON, got: {error}") from None
    if not isinstance(about, dict):
        raise Error(f"{path}: the header must be a JSON object, got {type(about).__name__}")
    return about


def _header(path: Path, about: dict[str, Any]) -> Header:
    try:
        for name in ("classes", "shape", "mean", "std"):
            about[name] = tuple(about[name])
        return Header(**about)
    except (KeyError, TypeError) as error:
        raise Error(f"{path}: the header must have the fields of a run, got: {error}") from None


def _whole(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
