"""What the tests share: the error rule of numerical tests."""

from __future__ import annotations

import torch
from torch import Tensor


def close(ours: Tensor, torchs: Tensor, ref64: Tensor) -> None:
    """max|ours - ref64| <= 2 max|torch - ref64| + 4 eps max|ref64|: no worse than torch at the same precision.

    Args:
        ours: the result under test, of any floating dtype.
        torchs: torch's own result at the same dtype.
        ref64: the reference, float64, written out plainly.
    """
    assert ours.shape == ref64.shape, f"shape {tuple(ours.shape)}, expected {tuple(ref64.shape)}"
    assert ours.dtype == torchs.dtype, f"dtype {ours.dtype}, expected {torchs.dtype}"
    if not ref64.numel():
        return
    error = (ours.double() - ref64).abs().max().item()
    allowed = (
        2 * (torchs.double() - ref64).abs().max().item() + 4 * torch.finfo(ours.dtype).eps * ref64.abs().max().item()
    )
    assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"
