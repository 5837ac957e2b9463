"""The options of the separable technique in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from leanconv.contract import Init
from leanconv.techniques.separable.layers import one_of, positive

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """Which convolutions become separable, and what becomes of their weights.

    Attributes:
        depth_multiplier: m, depthwise kernels per input channel; with ``init="keep"`` the rank that is kept.
        act: ``none`` as in the text, or ``relu`` between depthwise and pointwise as in MobileNet; the technique
            batchnorm then puts a norm before it.
        init: ``keep``: the best separable weights for the dense ones (truncated SVD per input channel); ``fresh``:
            drawn anew at the scale of the dense ones, biases 0.
        min_channels: convolutions with fewer input channels stay; the first layer, above all.
    """

    depth_multiplier: int = 1
    act: Literal["none", "relu"] = "none"
    init: Init = "keep"
    min_channels: int = 8

    def __post_init__(self) -> None:
        positive("separable", depth_multiplier=self.depth_multiplier, min_channels=self.min_channels)
        one_of("separable", "act", self.act, ("none", "relu"))
        one_of("separable", "init", self.init, ("keep", "fresh"))
