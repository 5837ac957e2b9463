"""What an export gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
        difference: of its outputs from the network's.
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
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"path": str(self.path), "holds": self.difference.holds, "notes": list(self.notes)}

    def table(self) -> str:
        """For a terminal."""
        blocks = f", {self.blocks} of them blocks of depthwise and pointwise convolutions" if self.blocks else ""
        lines = [
            f"file             {self.path}",
            f"size             {self.bytes:,} bytes, {self.parameters:,} parameters",
            f"MACs             {self.macs:,} an input",
            f"steps            {self.steps}{blocks}",
        ]
        if self.memory is not None:
            lines.append(f"memory           {self.memory:,} bytes an input")
        lines += [f"difference       {self.difference}", f"compared with    {self.executor}"]
        return "\n".join([*lines, *(f"note             {note}" for note in self.notes)])
