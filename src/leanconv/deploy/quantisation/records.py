"""What quantising gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from leanconv.deploy.quantisation.measuring import Measured
from leanconv.deploy.quantisation.options import Int8
from leanconv.results import Score

__all__ = ["LayerRow", "Quantised"]


@dataclass(frozen=True)
class LayerRow:
    """One step of the float plan; a block is one, and each of its parts one more.

    Attributes:
        layer: its name in the network.
        op: of the step.
        kept: why it computes in float; empty: in bytes.
        ratio: signal to noise of its output against float in dB, all that comes before it counted; None where the
            value is not made any more.
        alone: the same of the network's output if this step alone is in bytes; None where that was not needed.
    """

    layer: str
    op: str
    kept: str
    ratio: float | None
    alone: float | None = None


@dataclass(frozen=True)
class Quantised:
    """An int8 file beside the float file of the same network.

    Attributes:
        options: how it was made.
        calibrated: images that the ranges come from.
        measured: images that accuracy was measured on.
        source: of the images.
        equalised: pairs of layers whose channels were given one size.
        before: right answers in float; None without labels.
        after: the file on the same images.
        float_bytes: size of the float file.
        float_memory: bytes that it needs per input.
        layers: step by step.
        checked: how the executor's answers were compared with numpy's.
        seconds: that calibration, choice and measuring took.
        notes: what a reader should know, a sentence each.
    """

    options: Int8
    calibrated: int
    measured: int
    source: str
    equalised: int
    before: Score | None
    after: Measured
    float_bytes: int
    float_memory: int
    layers: tuple[LayerRow, ...]
    checked: str
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[LayerRow, ...]:
        """Steps that compute in float."""
        return tuple(row for row in self.layers if row.kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        made = asdict(self)
        for name, score in (("before", self.before), ("after", self.after.score)):
            told = (
                None
                if score is None
                else {"correct": score.correct, "total": score.total, "interval": [*score.interval()]}
            )
            if name == "before":
                made[name] = told
            else:
                made[name]["score"] = told
        return made | {"layers": [asdict(row) for row in self.layers], "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """For a terminal."""
        options, after = self.options, self.after
        rule = f"percentile {options.percentile:g}" if options.rule == "percentile" else options.rule
        even = f", {self.equalised} pairs of layers equalised" if self.equalised else ""
        lines = [f"calibration      {rule} on {self.calibrated:,} images{even}"]
        if after.agreement is None:
            lines.append("accuracy         not measured: the output is no vector of classes")
        elif after.score is not None and self.before is not None:
            lines.append(
                f"accuracy         float {_share(self.before)} %, int8 {_share(after.score)} %: "
                f"{0 - after.lost:+.2f} points, {100 * (1 - after.agreement):.2f} % of the answers differ"
            )
        else:
            lines.append(
                f"agreement        {100 * after.agreement:.2f} % of the answers are those of float; there are no labels"
            )
        lines.append(f"measured on      {self.measured:,} images of {self.source}")
        lines.append(f"signal to noise  {after.ratio:.1f} dB at the output")
        for why in dict.fromkeys(row.kept for row in self.kept):
            names = ", ".join(f"{row.layer or row.op}" for row in self.kept if row.kept == why)
            lines.append(f"kept in float    {names}: {why}")
        if not self.kept:
            lines.append("kept in float    nothing")
        lines.append(f"checked          {self.checked}")
        return lines

    def listed(self) -> list[str]:
        """A line for each step, for a terminal."""
        width = max(len(row.layer) for row in self.layers)
        lines = ["", f"{'layer':<{width}}  {'op':<11}  {'dB':>6}  {'alone':>6}"]
        for row in self.layers:
            ratio, alone = ("-" if x is None else f"{x:.1f}" for x in (row.ratio, row.alone))
            kept = f"  float: {row.kept}" if row.kept else ""
            lines.append(f"{row.layer:<{width}}  {row.op:<11}  {ratio:>6}  {alone:>6}{kept}")
        return lines


def _share(score: Score) -> str:
    low, high = score.interval()
    return f"{100 * score.accuracy:.2f} ({100 * low:.1f} to {100 * high:.1f})"
