"""What a report shows of a run, as plain records: whoever gathers them needs torch, whoever draws them does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanconv.results import Epoch, Run

__all__ = ["Layer", "Photo", "Stopping", "Twin", "View"]


@dataclass(frozen=True)
class Photo:
    """An image that was called something else.

    Attributes:
        name: of its file.
        truth: its class.
        answer: what it was called.
        probability: that the network gave to that answer.
        source: the picture itself as a ``data:`` address.
        small: it has so few pixels that they should be seen as they are.
    """

    name: str
    truth: str
    answer: str
    probability: float
    source: str
    small: bool = False


@dataclass(frozen=True)
class Layer:
    """A layer's cost: parameters and multiply-adds, and those of the layer that stands in its place in the twin."""

    path: str
    kind: str
    params: int
    macs: int
    dense_params: int
    dense_macs: int


@dataclass(frozen=True)
class Twin:
    """The same network with every separable convolution dense.

    Attributes:
        params, macs: of the twin.
        ratio: its time for one image, divided by the network's: median over interleaved rounds, with its interval.
        milliseconds: of the network and of the twin, medians of the same rounds.
        layers: side by side.
    """

    params: int
    macs: int
    ratio: tuple[float, float, float]
    milliseconds: tuple[float, float]
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Stopping:
    """Units that a dropout layer stops (row S6).

    Attributes:
        path: of the layer.
        p: probability to be stopped.
        mask: ``batch``: one mask for the whole batch; ``sample``: one for each image, of which the first is shown.
        kept: of the units that are shown, for some steps: True where a unit works.
        units: how many the layer has in all.
    """

    path: str
    p: float
    mask: str
    kept: tuple[tuple[bool, ...], ...]
    units: int


@dataclass(frozen=True)
class View:
    """Everything that a report shows of one run.

    Attributes:
        folder: of the run.
        run: its record.
        epochs: its metrics.
        recipe: its YAML.
        gate: what the data gate found, as ``data.json`` has it; None where there is none.
        quality: split -> what :meth:`leanconv.results.Outcome.to_dict` gives.
        calibration: (images, share right, mean probability of the answer) of each bin that has images, of the split
            that the answer is about.
        photos: the surest mistakes.
        mistakes: how many there are in all.
        twin: the dense twin; None where there is none.
        stopping: the network's dropout layers.
        ledger: a row per parameter, as :meth:`Ledger.records` gives it.
        missing: what is not shown, and why, a sentence each.
    """

    folder: Path
    run: Run
    epochs: list[Epoch]
    recipe: str = ""
    gate: dict[str, Any] | None = None
    quality: dict[str, Any] = field(default_factory=dict)
    calibration: tuple[tuple[int, float, float], ...] = ()
    photos: tuple[Photo, ...] = ()
    mistakes: int = 0
    twin: Twin | None = None
    stopping: tuple[Stopping, ...] = ()
    ledger: tuple[dict[str, Any], ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def held(self) -> str:
        """The split that the answer is about: ``test``, or ``val`` where there is no test."""
        return "test" if self.run.test is not None or "test" in self.quality else "val"
