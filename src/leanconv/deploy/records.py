"""What an export gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leanconv.deploy.quantisation.records import Quantised
from leanconv.deploy.verify import Difference

__all__ = ["Exported"]


@dataclass(frozen=True)
class Exported:
    """A file that was written and verified.

    Attributes:
        path: of the file.
        format: ``lean`` or ``onnx``.
        bytes: its size.
        parameters: numbers in it.
        macs: multiply-adds of one input.
        steps: operations.
        blocks: steps in which depthwise and pointwise convolutions are one; 0 in ONNX.
        memory: bytes that the runtime needs per input of a batch, input and output apart; None in ONNX.
        executor: what ran it for the comparison.
        difference: of its outputs from the network's; of an int8 file, those of the float plan that it was made of.
        quantised: of an int8 file.
        notes: what else there is to say, a sentence each.
    """

    path: Path
    format: str
    bytes: int
    parameters: int
    macs: int
    steps: int
    blocks: int
    memory: int | None
    executor: str
    difference: Difference
    quantised: Quantised | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        made = asdict(self) | {"path": str(self.path), "holds": self.difference.holds, "notes": list(self.notes)}
        return made | {"quantised": None if self.quantised is None else self.quantised.to_dict()}

    def table(self, layers: bool = False) -> str:
        """For a terminal.

        Args:
            layers: of an int8 file, a line for each of its layers.
        """
        told = self.quantised
        smaller = "" if told is None else f" ({told.float_bytes / self.bytes:.2f} times smaller than in float)"
        less = "" if told is None else f" ({told.float_memory:,} in float)"
        blocks = f", {self.blocks} of them blocks of depthwise and pointwise convolutions" if self.blocks else ""
        lines = [
            f"file             {self.path}",
            f"size             {self.bytes:,} bytes, {self.parameters:,} parameters{smaller}",
            f"MACs             {self.macs:,} an input",
            f"steps            {self.steps}{blocks}",
        ]
        if self.memory is not None:
            lines.append(f"memory           {self.memory:,} bytes an input{less}")
        whose = "" if told is None else "in float, "
        lines += [f"difference       {whose}{self.difference}", f"compared with    {self.executor}"]
        if told is not None:
            lines += told.lines()
        lines += [f"note             {note}" for note in (*self.notes, *(() if told is None else told.notes))]
        return "\n".join([*lines, *(told.listed() if layers and told is not None else ())])
