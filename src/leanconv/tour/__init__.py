"""The source, runnable: every number of the tour, computed by leanconv's own layers while the page is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leanconv.tour.batchnorm import table_2_1, with_depth
from leanconv.tour.dropout import ensemble, figure_2_10
from leanconv.tour.l2 import equations, shrinking
from leanconv.tour.separable import figures_2_11_and_2_12, ladder

__all__ = ["make"]


def make(run: str | Path | None = None) -> dict[str, Any]:
    """All numbers of the page, as plain values.

    Args:
        run: the folder of a run whose network shows its kernels and feature maps; None: a small one, trained here on
            the images of the package for a few seconds.

    Raises:
        Error: the run is none, or its network has no separable convolution.
    """
    return {
        "figure_2_10": figure_2_10(),
        "ensemble": ensemble(),
        "table_2_1": table_2_1(),
        "with_depth": with_depth(),
        "equations": equations(),
        "shrinking": shrinking(),
        "maps": figures_2_11_and_2_12(run),
        "ladder": ladder(),
    }
