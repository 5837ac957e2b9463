"""Fingerprints of parameters and buffers."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

__all__ = ["digests"]


def digests(model: nn.Module) -> dict[str, str]:
    """A digest of each parameter and buffer, over dtype, shape and values.

    Args:
        model: any network.

    Returns:
        Name -> 32 hexadecimal digits.
    """
    found = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        values = tensor.detach().cpu().contiguous()
        digest = hashlib.blake2b(f"{values.dtype} {tuple(values.shape)}".encode(), digest_size=16)
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
        found[name] = digest.hexdigest()
    return found
