"""Image files to tensors; :mod:`leanconv.runtime.images` decodes them, with the same code as the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leanconv.errors import Error
from leanconv.runtime.images import EXTENSIONS as EXTENSIONS
from leanconv.runtime.images import Header as Header
from leanconv.runtime.images import Picture as Picture
from leanconv.runtime.images import Progress as Progress
from leanconv.runtime.images import Refused as Refused
from leanconv.runtime.images import header as header
from leanconv.runtime.images import pixels, strict_pillow
from leanconv.runtime.images import squares as squares
from leanconv.runtime.images import together as together

__all__ = ["EXTENSIONS", "Header", "Picture", "Progress", "Refused", "header", "read_image", "squares", "together"]


def read_image(path: str | Path, imgsz: int, in_chans: int) -> Tensor:
    """One file as the training images were read.

    Args:
        path: the file.
        imgsz: side in pixels.
        in_chans: 1 grey, 3 colour.

    Returns:
        uint8 (in_chans, imgsz, imgsz).

    Raises:
        Error: no such file, or no readable image.
    """
    path = Path(path)
    if not path.is_file():
        raise Error(f"image: must be a file that exists, got {str(path)!r}")
    with strict_pillow():
        try:
            return torch.from_numpy(np.ascontiguousarray(pixels(path, imgsz, in_chans)))
        except Exception as error:
            why = "a file of zero bytes" if path.stat().st_size == 0 else type(error).__name__
            raise Error(f"image: must be readable, got {why} from {str(path)!r}") from None
