"""Whether a written file answers as the network does: it is read back, run on probes, and compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.graph import evaluating

__all__ = ["LOOSE", "Difference", "compare", "probes"]

LOOSE = 1e-5
"""Where the rule does not hold, so much of the largest output is let through, or four times torch's own error."""

NOISE = 4


@dataclass(frozen=True)
class Difference:
    """How far outputs are from torch's in float64, on the batch of probes where that comes nearest to the bound.

    Attributes:
        ours: max|file - reference|.
        theirs: max|torch in float32 - reference|, the largest of both orders of memory, at once and one by one.
        scale: max|reference|.
        bound: 2 theirs + 4 eps scale.
        inputs: how many inputs were compared in all.
    """

    ours: float
    theirs: float
    scale: float
    bound: float
    inputs: int

    @property
    def holds(self) -> bool:
        """ours <= bound: the project's rule for what claims to be the same."""
        return self.ours <= self.bound

    @property
    def loose(self) -> float:
        """What is let through where the rule does not hold: some networks blow every rounding up, torch's too."""
        return max(LOOSE * self.scale, 4 * self.theirs)

    def __str__(self) -> str:
        rule = (
            "holds" if self.holds else f"does not hold (bound {self.bound:.2g}), the loose one does ({self.loose:.2g})"
        )
        return (
            f"{self.ours:.2g} at most from torch in float64, on {self.inputs} inputs "
            f"(torch in float32: {self.theirs:.2g}, largest output {self.scale:.2g}): the rule {rule}"
        )


def probes(example: Tensor, images: Tensor | None = None) -> list[Tensor]:
    """Batches to compare on: the example, noise of its shape, and images where there are some.

    Args:
        example: (N, C, ...).
        images: (M, C, ...), as the network wants them; some of them are taken.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(NOISE, *example.shape[1:], generator=generator)
    found = [noise, example[:NOISE].detach().cpu().float()]
    if images is not None and len(images):
        found.append(images[:NOISE])
    return found


def compare(
    model: nn.Module, run: Callable[[NDArray[np.float32]], NDArray[np.float32]], batches: Sequence[Tensor]
) -> Difference:
    """Compare what a file gives with what torch gives.

    Args:
        model: the network as it was, float32, on the CPU.
        run: (N, C, ...) -> an array of the shape of torch's output.
        batches: inputs.

    Raises:
        Error: outputs are not finite or of another shape; neither the rule nor the loose bound holds.
    """
    twin = copy.deepcopy(model).double()
    found = [_compared(model, twin, run, x) for x in batches]
    worst = max(found, key=lambda d: d.ours / max(d.bound, 1e-300))
    told = Difference(worst.ours, worst.theirs, worst.scale, worst.bound, sum(map(len, batches)))
    if not told.holds and not told.ours <= told.loose:
        raise Error(
            f"export: the file must answer as the network does, got a difference of {told.ours:.3g} where torch itself "
            f"has {told.theirs:.3g} (largest output: {told.scale:.3g}); the file was not kept"
        )
    return told


def _compared(
    model: nn.Module, twin: nn.Module, run: Callable[[NDArray[np.float32]], NDArray[np.float32]], x: Tensor
) -> Difference:
    reference = _outputs(twin, x.double())
    if not np.isfinite(reference).all():
        raise Error("export: the network must give finite numbers on noise, got some that are not")
    found = run(np.ascontiguousarray(x.numpy()))
    if found.shape != reference.shape:
        raise Error(f"export: the file must give {reference.shape}, got {found.shape}; it was not kept")
    lying = [x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
    singles = np.concatenate([_outputs(model, one[None]) for one in x])
    theirs = max(float(np.abs(y - reference).max()) for y in (singles, *(_outputs(model, one) for one in lying)))
    ours = float(np.abs(found.astype(np.float64) - reference).max())
    scale = float(np.abs(reference).max())
    bound = 2 * theirs + 4 * float(np.finfo(np.float32).eps) * scale
    return Difference(ours if np.isfinite(found).all() else float("inf"), theirs, scale, bound, len(x))


def _outputs(model: nn.Module, x: Tensor) -> NDArray[np.float64]:
    with evaluating(model):
        result = model(x)
    leaves = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]
    y: NDArray[np.float64] = leaves[0].double().numpy()
    return y
