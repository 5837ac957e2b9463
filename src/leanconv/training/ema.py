"""The exponential moving average of a network's weights, which is evaluated and kept in place of the last ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from leanconv.errors import Error

__all__ = ["Average"]


class Average:
    """e <- d e + (1 - d) w after each optimizer step, with d = min(decay, (1 + t) / (10 + t)) after t steps.

    The first steps count little, so that the random start is soon forgotten. Floating buffers (running statistics) are
    averaged alike, counters are copied. Kept in the dtype of the weights.

    Args:
        model: the network; its state is the first average.
        decay: d, 0 < decay < 1; None: no average, and :meth:`in_place` changes nothing.

    Source: Polyak and Juditsky 1992, doi 10.1137/0330046; the warm-up as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self._model, self._decay, self._steps = model, decay, 0
        self._values = {} if decay is None else {n: v.detach().clone() for n, v in model.state_dict().items()}

    @torch.no_grad()
    def step(self) -> None:
        """The weights have moved."""
        if self._decay is None:
            return
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        for name, value in self._model.state_dict().items():
            mean = self._values[name]
            if value.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; its own return afterwards, by an exception too."""
        if self._decay is None:
            yield
            return
        own = {n: v.detach().clone() for n, v in self._model.state_dict().items()}
        try:
            self._model.load_state_dict(self._values)
            yield
        finally:
            self._model.load_state_dict(own)

    def state(self) -> tuple[dict[str, Tensor], int]:
        """The averages and the number of steps behind them, for a checkpoint."""
        return dict(self._values), self._steps

    def load(self, values: Mapping[str, Tensor], steps: int) -> None:
        """Go on from what :meth:`state` gave.

        Raises:
            Error: the names are not those of this network.
        """
        if values.keys() != self._values.keys():
            odd = sorted(values.keys() ^ self._values.keys())
            raise Error(f"ema: the averages must be of this network, got a difference at {odd[0]}")
        self._steps = steps
        for name, value in values.items():
            self._values[name].copy_(value)
