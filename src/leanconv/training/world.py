"""The processes of a training: one, or those that ``torchrun`` started. Fabric does the talking (gloo on the CPU)."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any, TypeVar

import torch

from leanconv.errors import Error

__all__ = ["World", "rank"]

_T = TypeVar("_T")


def rank() -> int:
    """Number of this process, from 0, as torchrun tells; 0 without it. Only 0 writes and prints."""
    return int(os.environ.get("RANK", "0"))


class World:
    """This process among those that train together.

    Attributes:
        fabric: Lightning Fabric, launched.
        rank: from 0.
        size: number of processes.
    """

    def __init__(self, precision: str) -> None:
        """Join the others.

        Args:
            precision: Fabric's word: ``32-true`` or ``bf16-mixed``.

        Raises:
            Error: torchrun's variables say something that cannot be joined.
        """
        self.fabric: Any = _launched(precision)
        self.rank, self.size = int(self.fabric.global_rank), int(self.fabric.world_size)

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def same(self, value: _T) -> _T:
        """The value of process 0, in all of them."""
        return self.fabric.broadcast(value) if self.size > 1 else value

    def total(self, *values: float) -> list[float]:
        """Sums over the processes."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(summed)
        return list(summed.tolist())

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            self.fabric.barrier()


def _launched(precision: str) -> Any:
    with warnings.catch_warnings():
        # Fabric's remarks on the machine are not the user's business.
        warnings.simplefilter("ignore")
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        from lightning_fabric import Fabric

        size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if size == 1:
            return Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
        if size % local:
            raise Error(f"torchrun: every node must have as many processes, got {local} of {size} on this one")
        fabric = Fabric(
            accelerator="cpu",
            devices=local,
            num_nodes=size // local,
            strategy="ddp",
            precision=precision,  # type: ignore[arg-type]
        )
        fabric.launch()
        return fabric
