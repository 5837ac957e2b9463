from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from leanconv.errors import Error
from leanconv.recipe import Recipe
from leanconv.training import checkpoint
from leanconv.training.checkpoint import Header

HEADER = Header(Recipe().to_dict(), ("a", "b"), (1, 8, 8), (0.5,), (0.25,), 40, "f" * 64)


def state() -> dict[str, torch.Tensor]:
    weight = torch.arange(36.0).reshape(2, 2, 3, 3).to(memory_format=torch.channels_last)
    return {"w": weight, "n": torch.tensor(3), "half": torch.ones(3, dtype=torch.bfloat16), "empty": torch.zeros(0)}


def test_weights_and_header_come_back(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    digest = checkpoint.save(path, state(), HEADER)
    tensors, header = checkpoint.load(path)
    assert header == HEADER
    assert header.built_from() == Recipe()
    assert len(digest) == 64
    for name, tensor in state().items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_tied_tensors_can_be_saved(tmp_path: Path) -> None:
    w = torch.ones(3)
    checkpoint.save(tmp_path / "m", {"a": w, "b": w}, HEADER)
    assert torch.equal(checkpoint.load(tmp_path / "m")[0]["b"], w)


@pytest.mark.parametrize("keep", [0, 4, 50, 0.5, -1])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, state(), HEADER)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))] if isinstance(keep, float) else content[:keep])
    with pytest.raises(Error, match=r"the weights must be a whole \.safetensors file"):
        checkpoint.load(path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, state(), HEADER)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(Error, match="must have the SHA-256 of their header"):
        checkpoint.load(path)


def test_files_of_others_and_of_later_versions_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(Error, match="without its header"):
        checkpoint.load(path)
    save_file({"w": torch.ones(2)}, path, {"leanconv": json.dumps({"format_version": 99})})
    with pytest.raises(Error, match="format_version must be 1, got 99"):
        checkpoint.load(path)
    save_file({"w": torch.ones(2)}, path, {"leanconv": "{"})
    with pytest.raises(Error, match="the header must be JSON"):
        checkpoint.load(path)
    with pytest.raises(Error, match="got nothing there"):
        checkpoint.load(tmp_path / "absent")
    path.write_bytes(b"PK\x03\x04 a pickle in a zip")
    with pytest.raises(Error, match=r"whole \.safetensors file"):
        checkpoint.load(path)
