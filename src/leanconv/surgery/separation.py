"""``separate``: a trained network becomes separable under a budget and keeps what it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from leanconv.contract import Context
from leanconv.data import DataSet
from leanconv.errors import Error
from leanconv.graph import record
from leanconv.surgery import budget as budgets
from leanconv.surgery.budget import Budget
from leanconv.surgery.carrying import Example, Setting, carry_out, example_of
from leanconv.surgery.certificate import Certificate, Refused
from leanconv.surgery.distilling import Distil, distil
from leanconv.surgery.plan import Plan, Step
from leanconv.surgery.separating import METHODS
from leanconv.techniques import batchnorm

__all__ = ["separate"]


def separate(
    model: nn.Module,
    *,
    budget: str | Budget | None = None,
    ranks: Mapping[str, int] | None = None,
    batches: Iterable[Tensor] | None = None,
    images: DataSet | None = None,
    epochs: int = 0,
    learning: Distil | None = None,
    method: str = "outputs",
    settle: bool = True,
    example: Example | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    latency: bool = True,
    told: Callable[[str], None] | None = None,
) -> tuple[nn.Module, Certificate]:
    """Make the convolutions of a trained network depthwise separable, keeping what their weights know.

    Each layer's depth multiplier is chosen so that the network keeps the budget and its outputs move least. The layers
    are then fitted one after the other to what they put out on the calibration images, batch norm's statistics are
    computed anew, and on request the network learns from the original for some epochs. At full rank it is exact.

    Example:
        >>> lean, certificate = leanconv.separate(net, budget="macs=0.33", batches=some)  # doctest: +SKIP

    Args:
        model: any network; it is left as it is.
        budget: ``macs=0.33``, ``params=200000``, ``latency=0.5``, ``latency=2ms``: of the whole network; a latency is
            measured here, on the example, and does not reproduce: the chosen ranks stand in the plan.
        ranks: path -> depth multiplier, in place of a budget.
        batches: inputs to calibrate on, some hundred images and more; None: the weights alone decide.
        images: to learn from.
        epochs: of learning from the original network on ``images``; 0: none.
        learning: how; its epochs are ``epochs``.
        method: ``outputs``, or ``weights`` for the plain truncated SVD.
        settle: compute batch norm's statistics anew on the batches.
        example: as of :func:`leanconv.apply`; one image is what a latency is measured on.
        optimizer: as of :func:`leanconv.apply`.
        latency: time both networks.
        told: called with a sentence now and then.

    Returns:
        The separable copy, and what was done to it.

    Raises:
        Error: a budget that cannot be kept, with the nearest that can; ranks of layers that cannot become separable;
            as :func:`leanconv.apply`.

    Source: rows S17 to S20; facts on the truncated SVD and the fit of outputs in ``techniques/separable``.
    """
    if (budget is None) == (ranks is None):
        raise Error(f"separate: either a budget or ranks must be given, got budget={budget!r} and ranks={ranks!r}")
    if method not in METHODS:
        raise Error(f"separate: method must be one of {', '.join(METHODS)}, got {method!r}")
    if epochs and images is None:
        raise Error(f"separate: learning needs images, got none and epochs={epochs}")
    say = told or (lambda sentence: None)
    held = None if batches is None else [b[0] if isinstance(b, tuple | list) else b for b in batches]
    if held is not None and not held:
        raise Error("separate: batches must hold at least one batch, got none")
    example, notes = example_of(model, example)
    more: Sequence[Refused] = ()
    if ranks is None:
        assert budget is not None
        wanted = Budget.parse(budget) if isinstance(budget, str) else budget
        ranks, more, note = _chosen(model, wanted, example, held, method, say)
        notes.append(note)
    if held is None:
        notes.append("no images to calibrate on were given: the weights alone decide, statistics stay")

    def finish(changed: nn.Module) -> list[str]:
        done = []
        if settle and held is not None and (count := batchnorm.precise_statistics(changed, held)):
            done.append(f"statistics of {count} batch norms computed anew on {sum(map(len, held)):,} images")
        if epochs and images is not None:
            how = replace(learning or Distil(), epochs=epochs)
            losses = distil(changed, model, images, how, lambda n, total, loss: say(f"step {n} of {total}: {loss:.4f}"))
            if settle and held is not None:
                batchnorm.precise_statistics(changed, held)
            done.append(
                f"learned from the original network for {epochs} epochs, loss {losses[0]:.4f} to {losses[-1]:.4f}"
            )
        return done

    plan = Plan((Step("separate", "separable", {"ranks": dict(ranks), "method": method}),) if ranks else ())
    network, certificate = carry_out(model, plan, Setting(example, held, optimizer, latency), finish)
    refusals = (*certificate.refusals, *more)
    return network, replace(certificate, notes=(*notes, *certificate.notes), refusals=refusals)


def _chosen(
    model: nn.Module,
    budget: Budget,
    example: Example,
    held: list[Tensor] | None,
    method: str,
    say: Callable[[str], None],
) -> tuple[dict[str, int], list[Refused], str]:
    first = example[0] if isinstance(example, tuple) else example
    context = Context(model, graph=record(model, example), batches=held or [first], probe=first)
    chosen = budgets.choose(context, budget, held is not None, method, say)
    refusals = [Refused("separate", "separable", refusal.path, refusal.why) for refusal in chosen.refusals]
    if not chosen.ranks:
        kept = f"the network keeps the budget {budget.unit}={abs(budget.amount):g} as it is"
        return {}, refusals, "no convolution can become separable" if chosen.cost > chosen.limit else kept
    listed = ", ".join(f"{path}: {rank}" for path, rank in chosen.ranks.items())
    return chosen.ranks, refusals, f"ranks chosen under {budget.unit}={abs(budget.amount):g}: {listed}"
