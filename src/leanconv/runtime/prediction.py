"""What a network says of one image: classes with probabilities, and how that is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """The classes of one image.

    Attributes:
        image: where it was read from.
        classes: names, most probable first.
        probabilities: of these classes, between 0 and 1; of all classes they add up to 1.
        spread: standard deviation of each probability over runs and Monte-Carlo samples; zeros where there is one
            network and no samples.
    """

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    spread: tuple[float, ...]

    def line(self, top: int = 3) -> str:
        """``photo.jpg: rose 93.1 %, tulip 5.2 %, daisy 1.0 %``."""
        told = []
        for name, p, s in list(zip(self.classes, self.probabilities, self.spread, strict=True))[:top]:
            told.append(f"{name} {100 * p:.1f} %" + (f" ± {100 * s:.1f}" if any(self.spread) else ""))
        return f"{self.image}: {', '.join(told)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``image``, and ``classes`` as name -> probability and spread."""
        rows = zip(self.classes, self.probabilities, self.spread, strict=True)
        return {"image": self.image, "classes": {n: {"probability": p, "spread": s} for n, p, s in rows}}
