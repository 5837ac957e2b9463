"""The forward half of strict dropout: a stopped unit reaches no consumer and leaves no trace in running statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.techniques.dropout.groups import Group, Place

__all__ = ["Hook", "Masking", "coarse_or_fine", "stopped_of"]


class Hook:
    """A hook for one module. On a copy of the module (an EMA model, a pickle) it does nothing."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self.module, self.function = module, function

    def __call__(self, module: nn.Module, *rest: Any) -> Any:
        """Run it, if this is the module it was made for."""
        return self.function(*rest) if module is self.module else None

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert, ()


def _inert() -> Callable[..., None]:
    return nothing


def nothing(*_: object) -> None:
    """What is left of a hook on a copy."""


def coarse_or_fine(stop: Tensor, units: int, repeat: int) -> Tensor:
    """Stopped entries at ``repeat`` entries per unit, from those at any other number.

    Going finer, each entry takes its part's flag; going coarser, an entry is stopped only if all its parts are.

    Args:
        stop: (units * r,) bool.
        units: how many units.
        repeat: a multiple or a divisor of r.

    Returns:
        (units * repeat,) bool.
    """
    length = units * repeat
    if length >= stop.numel():
        return stop.repeat_interleave(length // stop.numel())
    return stop.view(length, -1).all(1)


def stopped_of(stops: Iterable[Tensor], units: int, repeat: int) -> Tensor | None:
    """The union of what several dropout layers stop, at ``repeat`` entries per unit; None without any."""
    stops = list(stops)
    if not stops:
        return None
    finest = max(stop.numel() for stop in stops) // units
    union = torch.stack([coarse_or_fine(stop, units, finest) for stop in stops]).any(0)
    return coarse_or_fine(union, units, repeat)


class Masking:
    """Hooks on the layers of groups that make a stop complete within a training forward.

    The mask acts at the dropout already. Here it acts again at every consumer's input, since batch norm turns a zeroed
    channel into beta; and running statistics of stopped units get back what they were before the forward.

    Args:
        groups: as found by :func:`~leanconv.techniques.dropout.groups.find`.
        told: called with (group, place of the dropout, stopped entries) whenever a dropout layer has drawn its mask.
    """

    def __init__(self, groups: Iterable[Group], told: Callable[[Group, Place, Tensor], None] | None = None) -> None:
        self._told = told
        self._handles: list[Any] = []
        for group in groups:
            self._hook(_Forward(group))

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, forward: _Forward) -> None:
        group = forward.group
        self._before(group.producer, lambda args: forward.begin())
        for place in group.between:
            if place.module._buffers.get("running_mean") is not None:
                self._before(place, lambda args, place=place: forward.keep(place))
                self._after(place, lambda args, result: forward.restore())
        for place in group.dropouts:
            self._after(place, lambda args, result, place=place: self._drawn(forward, place))
        for place in group.consumers:
            self._before(place, lambda args, place=place: forward.mask(place, args))

    def _before(self, place: Place, function: Callable[..., Any]) -> None:
        self._handles.append(place.module.register_forward_pre_hook(Hook(place.module, function)))

    def _after(self, place: Place, function: Callable[..., Any]) -> None:
        self._handles.append(place.module.register_forward_hook(Hook(place.module, function)))

    def _drawn(self, forward: _Forward, place: Place) -> None:
        keep = getattr(place.module, "last_mask", None)
        if not place.module.training or keep is None:
            return
        stop = keep.detach().reshape(-1) == 0
        forward.stops[place.path] = stop
        forward.restore()
        if self._told is not None:
            self._told(forward.group, place, stop)


class _Forward:
    """One group during one forward."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.stops: dict[str, Tensor] = {}
        self.kept: dict[str, tuple[Place, Mapping[str, Tensor]]] = {}

    def begin(self) -> None:
        self.stops.clear()
        self.kept.clear()

    def keep(self, place: Place) -> None:
        """Before a batch norm updates its running statistics: remember them."""
        if place.module.training:
            buffers = place.module._buffers
            pairs = {key: buffers[key] for key in ("running_mean", "running_var")}
            self.kept[place.path] = place, {key: b.clone() for key, b in pairs.items() if b is not None}

    def restore(self) -> None:
        """As far as masks are drawn by now; before the last dropout has drawn, more may follow."""
        for place, kept in self.kept.values():
            stop = stopped_of(self.stops.values(), self.group.units, place.after)
            for key, before in kept.items() if stop is not None else ():
                buffer = place.module._buffers[key]
                if buffer is not None and stop is not None:
                    # Past autograd's version counter: torch's batch norm saves its running statistics, and reads them
                    # in the backward of evaluation only.
                    buffer.data.copy_(torch.where(stop, before, buffer))

    def mask(self, place: Place, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The consumer's input with stopped entries at 0; one that holds kept entries alone is left as it is."""
        stop = stopped_of(self.stops.values(), self.group.units, place.before)
        if stop is None or not args or args[0].shape[1] != stop.numel():
            return None
        x: Tensor = args[0]
        return x.masked_fill(stop.view(1, -1, *[1] * (x.ndim - 2)), 0), *args[1:]
