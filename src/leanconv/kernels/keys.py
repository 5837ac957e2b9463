"""Keys of random masks: where a layer's random numbers come from, so that nothing of them has to be stored.

A layer that drops draws ONE 64-bit key per training forward pass from torch's default CPU generator. Everything else
follows from the key and from the sample's index by Philox (:mod:`leanconv.kernels.philox`), so a mask is computed
again in the backward pass instead of being kept, and survives checkpointing, ``torch.compile`` and resuming.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from leanconv.errors import Error
from leanconv.kernels.ops import register

__all__ = ["dropout_key", "keyed", "mix"]

_WORD = 2**64 - 1
_REMEMBERED = 4096


def mix(seed: int, step: int) -> int:
    """The documented 64-bit hash of (seed, step): two rounds of SplitMix64, ``s(s(seed) xor step)``.

    ``s(z)``: z += 0x9E3779B97F4A7C15; z = (z ^ z>>30) * 0xBF58476D1CE4E5B9; z = (z ^ z>>27) * 0x94D049BB133111EB;
    z ^ z>>31, all modulo 2^64. For one seed, different steps never share a hash (s is a bijection).

    Args:
        seed: any int, taken modulo 2^64.
        step: any int, taken modulo 2^64.

    Returns:
        An int from 0 to 2^64 - 1.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    return _splitmix(_splitmix(seed & _WORD) ^ (step & _WORD))


def _splitmix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)


@dataclass(frozen=True)
class _Frame:
    """One open ``keyed``: the hash that every draw is combined with, and the index of this process's first sample."""

    salt: int
    offset: int


class _State:
    """Open contexts, as global as the generator they fork: a context variable would not reach autograd's threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner = 0
        self.frames: list[_Frame] = []
        # A draw made inside a context -> the context, or None where contexts of different offsets made the same draw.
        # Recomputation (activation checkpoints) restores the generator and repeats the draw, perhaps after the context.
        self.drawn: dict[int, _Frame | None] = {}

    def enter(self, frame: _Frame) -> None:
        with self.lock:
            if self.frames and self.owner != threading.get_ident():
                raise Error(
                    "keyed: one thread at a time may hold it (the default generator is shared), got a second thread"
                )
            self.owner = threading.get_ident()
            self.frames.append(frame)

    def leave(self) -> None:
        with self.lock:
            self.frames.pop()

    def frame(self, draw: int) -> _Frame | None:
        """The context that the draw belongs to; None: no context, the user's own generator."""
        with self.lock:
            if self.frames:
                frame = self.frames[-1]
                known = self.drawn.setdefault(draw, frame)
                if known != frame:
                    self.drawn[draw] = frame if known is not None and known.salt != frame.salt else None
                if len(self.drawn) > _REMEMBERED:
                    del self.drawn[next(iter(self.drawn))]
                return frame
            if draw not in self.drawn:
                return None
            found = self.drawn[draw]
        if found is None:
            raise Error(
                "keyed: where offsets share a seed and step, recomputation in backward must run inside the same "
                "keyed(...), got a key drawn again outside of any"
            )
        return found


_state = _State()


@contextmanager
def keyed(seed: int, step: int, offset: int = 0) -> Iterator[None]:
    """Make every mask drawn inside a function of (seed, step, position of the draw, sample index) alone.

    Forks torch's default CPU generator, seeds it with :func:`mix` (seed, step) and sets the sample offset. On
    leaving, by an exception too, the generator's state is as it was. The innermost context counts. It wraps forward
    and backward::

        for step, (x, y) in enumerate(batches):
            with keyed(seed, step):
                loss(model(x), y).backward()

    Micro-batches and ranks of one optimizer step enter with the same seed and step and each with its own offset: the
    position of its first sample in the step's whole batch. Their masks then are the slices of the mask of the whole
    batch.

    torch's generator keeps only 32 bits of a seed, so every draw is also combined (xor) with the 64-bit hash: two
    steps never share masks because half of their hashes agree.

    A checkpointed segment recomputed after the context was left finds its context again by its draw; where that is
    ambiguous (several offsets of one step), it is an error rather than another mask.

    Args:
        seed: any int.
        step: the optimizer step, an int from 0.
        offset: index of this process's first sample in the step's batch, an int from 0.

    Raises:
        Error: step or offset is negative, an argument is no int, or another thread is inside a ``keyed``.

    Source: counter-based numbers, Salmon et al. 2011 (Philox), doi 10.1145/2063384.2063405.
    """
    for name, value, least in (("seed", seed, None), ("step", step, 0), ("offset", offset, 0)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise Error(f"keyed: {name} must be an int, got {name}={value!r}")
        if least is not None and value < least:
            raise Error(f"keyed: {name} must be at least 0, got {name}={value}")
    salt = mix(seed, step)
    _state.enter(_Frame(salt, offset))
    generator = torch.default_generator
    before = generator.get_state()
    try:
        generator.manual_seed(salt)
        yield
    finally:
        generator.set_state(before)
        _state.leave()


def dropout_key(samples: int) -> Tensor:
    """Draw the key of one mask: one int64 from torch's default CPU generator, and the index of the first sample.

    The draw happens inside the operator ``leanconv::dropout_key``, which bears torch's tag
    ``nondeterministic_seeded``, and the sample offset is read there too, at run time: both hold under
    ``torch.compile`` and activation checkpointing. Without :func:`keyed` the offset is 0, or rank x samples where
    ``torch.distributed`` runs.

    Args:
        samples: samples of this forward pass, from 0 (one for a mask that the batch shares).

    Returns:
        int64 (2,) on the CPU: key, sample offset.
    """
    return torch.ops.leanconv.dropout_key(samples)  # type: ignore[no-any-return]


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _draw(samples: int) -> Tensor:
    draw = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None).item()) & _WORD
    frame = _state.frame(draw)
    key = (draw ^ frame.salt, frame.offset) if frame else (draw, _rank() * samples)
    return torch.tensor((_signed(key[0]), key[1]))


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _fake(samples: int) -> Tensor:
    return torch.empty(2, dtype=torch.int64)


register(
    "dropout_key(SymInt samples) -> Tensor",
    {"CompositeExplicitAutograd": _draw},
    _fake,
    tags=(torch.Tag.nondeterministic_seeded,),
)
