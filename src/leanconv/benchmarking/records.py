"""What was measured, as plain records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Layer", "Measured", "Measurement", "Report"]


@dataclass(frozen=True)
class Layer:
    """One step of the plan.

    Attributes:
        layer, op: as the file names them.
        shape: of its output, (height, width, channels).
        macs: multiply-adds an image.
        microseconds: for the whole batch, the median over the rounds; None: not measured.
        of_peak: its multiply-adds a second by those of the burst, of bytes where it works on bytes; None: it has none,
            or there is no peak.
        share: of the time of all steps.
    """

    layer: str
    op: str
    shape: tuple[int, int, int]
    macs: int
    microseconds: float | None
    of_peak: float | None
    share: float | None


@dataclass(frozen=True)
class Measured:
    """One contender.

    Attributes:
        median, low, high: milliseconds for the whole batch, with the 95 % interval of the median.
        images_per_second: batch by median.
        of_peak: the time that the bursts would take for the plan's multiply-adds, those on bytes and others, by the
            median; None: there is no peak.
        ratio, ratio_low, ratio_high: its time by leanconv's, the median over the rounds with its 95 % interval.
        difference: the largest between its first answers and leanconv's (or a reference's), by the largest of these.
        version: of the package.
        cores: processors that it kept busy during its turns, on average: the threads, unless some of them waited.
    """

    median: float
    low: float
    high: float
    images_per_second: float
    of_peak: float | None
    ratio: float
    ratio_low: float
    ratio_high: float
    difference: float
    version: str
    cores: float


@dataclass(frozen=True)
class Measurement:
    """Contenders that took turns at one batch size and one number of threads.

    Attributes:
        batch, threads: under which it holds.
        rounds: turns that each contender had.
        peak: multiply-adds a second of a burst in registers on these threads, the fastest of these rounds; None: there
            is no native library.
        int8_peak: the same of bytes by bytes; None: the network has none.
        contenders: name -> figures; ``leanconv`` is one.
        layers: leanconv's steps.
        others: cores that other processes kept busy during the turns of all, on average.
    """

    batch: int
    threads: int
    rounds: int
    peak: float | None
    int8_peak: float | None
    contenders: Mapping[str, Measured]
    layers: tuple[Layer, ...]
    others: float


@dataclass(frozen=True)
class Report:
    """All measurements of one file.

    Attributes:
        file: its name.
        shape: of one image, (C, H, W).
        macs: multiply-adds an image.
        executor: ``native`` or ``numpy``.
        isa: the instruction set; None without native code.
        path: the way over bytes; None where there are none.
        missing: contender -> the package that is not installed.
        measurements: one for each batch size and number of threads.
    """

    file: str
    shape: tuple[int, int, int]
    macs: int
    executor: str
    isa: str | None
    path: str | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
