"""Strict dropout: what a stopped unit owns is kept, not updated, in that step (row S4 of the source)."""

from __future__ import annotations

from collections import defaultdict
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, Rprop

from leanconv.errors import Error
from leanconv.graph import record
from leanconv.techniques.dropout.groups import Group, Place, find
from leanconv.techniques.dropout.masking import Hook, Masking, stopped_of

__all__ = ["Strict", "strict"]

_Slot = tuple[Group, int, int]  # a group, the dimension of the parameter that runs over its units, entries per unit
_Round = dict[tuple[Group, str], Tensor]  # group and path of a dropout -> the entries that it stopped


def strict(model: nn.Module, optimizer: Optimizer, example: Tensor | tuple[Tensor, ...]) -> Strict:
    """Keep, bit-identical through each optimizer step, every weight entry whose gradient is zero by structure.

    With a mask that the batch shares, a stopped unit gives these entries a gradient of exactly zero: its row of the
    producer's weight and bias, the filters of depthwise convolutions, gamma and beta of batch norms, slopes of PReLU on
    the way, and its columns of every consumer (H*W columns after Flatten). ``nn.Dropout`` lets momentum and decay move
    them; here they and their optimizer state (every state tensor of the parameter's shape) are as before the step,
    under SGD with momentum or Nesterov, Adam, AdamW and others whose state starts at zero, in any of torch's
    implementations (loop, foreach, fused).

    - Forward: the mask acts at the dropout and again at every consumer's input (a zeroed channel leaves a batch norm as
      beta); running statistics of stopped units do not move. Evaluation is untouched.
    - Backward: gradients of stopped entries are set to zero as they arrive, before a clipping norm can see them.
    - Several forwards before one step: an entry stops only if it stopped in all of them (under
      :func:`~leanconv.nn.keyed` their masks are equal anyway). Every forward of the whole network that draws a mask
      with gradients enabled counts. A step without such a forward stops nothing.

    Not covered: the scalar step count of Adam (its bias correction goes on), ``num_batches_tracked``, copies of the
    weights such as EMA, state of another shape than the parameter's, and steps that a gradient scaler leaves out.
    Works with :func:`~leanconv.nn.skip` on the same model, in either order.

    Args:
        model: a network whose active dropout layers are all :class:`Dropout` on (N, F) or :class:`Dropout1d`, ``2d``,
            ``3d`` with ``mask="batch"``.
        optimizer: the one that trains it; parameters that it does not hold are left alone.
        example: an input (N, C, ...) or a tuple of them, for one recorded execution.

    Returns:
        A handle with ``stopped()`` and ``close()``; also a context manager that closes.

    Raises:
        Error: a sample mask; units that mix with others through a skip connection or concat, reach the output, bypass
            the dropout or pass a layer that mixes channels; a layer called twice, shared parameters; no dropout at all;
            an optimizer that holds none of the parameters or keeps other state (LBFGS, Rprop).

    Source: row S4 of the source: the parameters of the stopped part are kept and not updated.
    """
    groups, refusals = find(record(model, example))
    for refusal in refusals:
        raise Error(f"strict dropout at {refusal.path or 'the network'}: {refusal.why}")
    if not groups:
        raise Error(
            f"strict dropout: the network must have a dropout with mask='batch', got {type(model).__name__} without"
        )
    if isinstance(optimizer, (LBFGS, Rprop)):
        raise Error(
            f"strict dropout: optimizer state must start at zero, per parameter, got {type(optimizer).__name__}"
        )
    return Strict(model, optimizer, groups)


class Strict:
    """The handle of :func:`strict`.

    Attributes:
        groups: what stops together.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, groups: list[Group]) -> None:
        self.groups = tuple(groups)
        self._slots: dict[str, list[_Slot]] = defaultdict(list)
        for group in groups:
            for e in group.entries():
                if not e.buffer:
                    self._slots[e.name].append((group, e.dim, e.repeat))
        self._optimizer = optimizer
        self._parameters = {name: p for name, p in model.named_parameters() if name in self._slots}
        self._check_optimizer(model)
        self._rounds: list[_Round] = []
        self._fresh = self._stepped = False
        self._cache: dict[str, Tensor] | None = None
        self._saved: dict[str, _Saved] = {}
        self._silent: dict[str, tuple[int, int]] = {}
        self._masking = Masking(groups, self._drawn)
        self._handles = self._hook(model)

    def stopped(self) -> dict[str, Tensor]:
        """The entries that this step keeps: parameter name -> bool tensor, broadcastable to it, True where stopped.

        Known once the forward has run; after the optimizer's step it still tells that step's, until the next forward.
        Parameters without stopped entries are absent. The L2 penalty of a loss leaves these entries out.
        """
        if self._cache is None:
            masks = {name: self._mask(name, slots) for name, slots in self._slots.items()}
            self._cache = {name: mask for name, mask in masks.items() if mask is not None}
        return dict(self._cache)

    def close(self) -> None:
        """Remove every hook."""
        self._masking.close()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Strict:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_optimizer(self, model: nn.Module) -> None:
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        if not any(id(p) in held for p in model.parameters()):
            raise Error("strict dropout: the optimizer must hold parameters of the network, got none of them")
        self._held = {name: p for name, p in self._parameters.items() if id(p) in held}

    def _hook(self, model: nn.Module) -> list[Any]:
        handles: list[Any] = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
            model.register_forward_pre_hook(Hook(model, self._begin)),
        ]
        for name, parameter in self._held.items():
            if parameter.requires_grad:
                hook = lambda p, name=name: self._silence(name, p)  # noqa: E731
                handles.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        return handles

    # --- masks -----------------------------------------------------------------------------------------------------

    def _begin(self, *_: object) -> None:
        """The network is called: what its dropout layers draw now belongs to a round (a micro-batch) of its own."""
        self._fresh |= torch.is_grad_enabled()
        if len(self._rounds) > 1 and _same(self._rounds[-1], self._rounds[-2]):
            self._rounds.pop()

    def _drawn(self, group: Group, place: Place, stop: Tensor) -> None:
        """A dropout drew. A mask that is known already is a layer run again by gradient checkpointing."""
        if not torch.is_grad_enabled():
            return
        if self._stepped:
            self._rounds, self._stepped = [], False
        key = group, place.path
        if self._fresh or not self._rounds:
            self._rounds.append({})
        elif key in self._rounds[-1]:
            if any(key in drawn and torch.equal(drawn[key], stop) for drawn in self._rounds):
                return
            self._rounds.append({})
        self._rounds[-1][key] = stop
        self._fresh, self._cache = False, None

    def _mask(self, name: str, slots: list[_Slot]) -> Tensor | None:
        """Stopped in every round; within a round, stopped by its row or by its column."""
        masks = [self._mask_of_round(name, slots, drawn) for drawn in self._rounds]
        if not masks or any(mask is None for mask in masks):
            return None
        result = masks[0]
        for mask in masks[1:]:
            result = result & mask if result is not None and mask is not None else None
        return result

    def _mask_of_round(self, name: str, slots: list[_Slot], drawn: _Round) -> Tensor | None:
        result: Tensor | None = None
        for group, dim, repeat in slots:
            stop = stopped_of([s for (g, _), s in drawn.items() if g is group], group.units, repeat)
            if stop is not None:
                shape = [1] * self._parameters[name].ndim
                shape[dim] = -1
                result = stop.view(shape) if result is None else result | stop.view(shape)
        return result

    # --- the step --------------------------------------------------------------------------------------------------

    def _silence(self, name: str, parameter: Tensor) -> None:
        """Zero the gradient of stopped entries, unless that was done and nothing wrote to it since."""
        grad, mask = parameter.grad, None if self._stepped else self.stopped().get(name)
        if mask is None or grad is None or self._silent.get(name) == (grad.data_ptr(), grad._version):
            return
        grad.masked_fill_(mask, 0)
        self._silent[name] = grad.data_ptr(), grad._version

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        closure = any(a is not None for a in (*args, *kwargs.values()))  # the forward is still to come
        masks = {} if self._stepped else self.stopped()
        for name, parameter in self._held.items():
            if closure or name in masks:
                tensors = {"": parameter.detach(), **self._state(parameter)}
                self._saved[name] = _Saved(tensors, None if closure else masks[name])
                self._silence(name, parameter)

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The optimizer state that has an entry for each entry of the parameter."""
        state = self._optimizer.state.get(parameter, {})
        return {k: s for k, s in state.items() if isinstance(s, Tensor) and s.shape == parameter.shape}

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stopped = {} if self._stepped else self.stopped()
        for name, saved in self._saved.items():
            if name in stopped:
                parameter = self._held[name]
                saved.put_back({"": parameter.detach(), **self._state(parameter)}, stopped[name])
        self._saved, self._silent, self._stepped = {}, {}, True


class _Saved:
    """A parameter and its state before the step: all of it, or the rows that are known to stop."""

    def __init__(self, tensors: dict[str, Tensor], mask: Tensor | None) -> None:
        whole_rows = mask is not None and mask.shape[0] == mask.numel()
        self.rows = mask.flatten().nonzero().flatten() if mask is not None and whole_rows else None
        rows = self.rows
        self.before = {k: t.clone() if rows is None else t.index_select(0, rows) for k, t in tensors.items()}

    def put_back(self, tensors: dict[str, Tensor], mask: Tensor) -> None:
        for key, now in tensors.items():
            if key not in self.before:
                now.masked_fill_(mask, 0)  # state that the step has just made starts at zero
            elif self.rows is None:
                torch.where(mask, self.before[key], now, out=now)
            else:
                now.index_copy_(0, self.rows, self.before[key])


def _same(one: _Round, other: _Round) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
