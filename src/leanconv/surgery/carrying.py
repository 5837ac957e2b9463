"""Carries a plan out on a copy of a network and measures what that changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_map_only

from leanconv import accounting, measure
from leanconv.contract import Context, Edit, Refusal
from leanconv.errors import Error
from leanconv.graph import record
from leanconv.measure import OutputDifference
from leanconv.rewrite import Replaced, rewrite
from leanconv.surgery import separating
from leanconv.surgery.certificate import EXACT, Certificate, Done, Refused, Rule
from leanconv.surgery.optimizing import carry
from leanconv.surgery.plan import Plan, Step, propose
from leanconv.surgery.state import digests

__all__ = ["Setting", "Stages", "carry_out", "example_of", "replay", "runnable", "staged"]

Example = Tensor | tuple[Tensor, ...]
SIDES = (32, 64, 128, 224, 299)
"""Of the images that are tried where no example is given."""
RUNS = 15


@dataclass(frozen=True)
class Setting:
    """What a verb is given besides the network.

    Attributes:
        example: an input (N, C, ...), or a tuple of inputs; None: one is guessed.
        batches: inputs to calibrate on; None: the example.
        optimizer: of the network, to be carried over.
        latency: time both networks.
        check: compare outputs; in float64 too where every edit claims to be exact.
        seed: for everything that draws numbers.
    """

    example: Example | None = None
    batches: Sequence[Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None
    latency: bool = True
    check: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Stages:
    """A network that went through the steps of a plan, with what was done in each."""

    model: nn.Module
    edits: tuple[Done, ...] = ()
    refusals: tuple[Refused, ...] = ()
    keys: dict[str, str] = field(default_factory=dict)
    history: tuple[Replaced, ...] = ()
    plan: Plan = field(default_factory=Plan)


def carry_out(
    model: nn.Module, plan: Plan, setting: Setting, finish: Callable[[nn.Module], Sequence[str]] | None = None
) -> tuple[nn.Module, Certificate]:
    """Rewrite a copy of a network by a plan and certify the change.

    Args:
        model: the network; it is left as it is.
        plan: what to do.
        setting: with what.
        finish: called with the copy when the plan is carried out, to settle its statistics, say; its notes are kept.

    Returns:
        The new network and its certificate.

    Raises:
        Error: the network does not run on the example; it is wrapped; an exact edit turned out not to be.
    """
    runnable(model)
    example, notes = example_of(model, setting.example)
    inputs = example if isinstance(example, tuple) else (example,)
    done = staged(model, plan, example, setting.batches, setting.seed)
    every_exact = bool(done.edits) and all(edit.claim == "exact" for edit in done.edits) and finish is None
    difference, exact, rule = None, None, None
    settled: dict[str, Tensor] = {}
    if finish is not None and done.edits:
        notes += finish(done.model)
        settled = _moved(model, done)
    if setting.check and done.edits:
        difference, told = _difference(model, done.model, example)
        notes += told
        if every_exact and difference is not None:
            exact, rule, told = _certified(model, done, example, setting)
            notes += told
    if not done.edits:
        notes.append(f"nothing changed: {_nothing(done)}")
    latency = None
    if setting.latency and done.edits:
        latency = measure.compare_latency({"before": (model, example), "after": (done.model, example)}, runs=RUNS)
    optimizer = None
    if setting.optimizer is not None:
        optimizer = carry(setting.optimizer, model, done.model, done.keys)
        notes.append(str(optimizer))
    before = accounting.cost(model, example).total
    after = accounting.cost(done.model, example).total if done.edits else before
    return done.model, Certificate(
        done.plan, done.edits, done.refusals, tuple(notes), difference, exact, rule, before, after, latency, done.keys,
        tuple(inputs[0].shape), optimizer, done.history, digests(done.model), tuple(done.model.state_dict()),
        settled,
    )  # fmt: skip


def replay(model: nn.Module, plan: Plan, example: Example, batches: Iterable[Tensor] | None = None) -> nn.Module:
    """The same steps once more: on a network as it was built, whose weights are loaded after, or on an old checkpoint.

    Args:
        model: the network before the plan; it is left as it is.
        plan: as a certificate has it.
        example: an input.
        batches: to calibrate on; None: the example, which is enough where weights are loaded after.

    Raises:
        Error: a step that changed the network then finds nothing to change now.
    """
    return staged(model, plan, example, None if batches is None else list(batches)).model


def staged(
    model: nn.Module, plan: Plan, example: Example, batches: Sequence[Tensor] | None = None, seed: int = 0
) -> Stages:
    """The steps one by one, each on a graph that is recorded anew."""
    first = example[0] if isinstance(example, tuple) else example
    state = Stages(model, keys={name: name for name in model.state_dict()})
    for step in plan.steps:
        graph = record(state.model, example)
        context = Context(state.model, graph=graph, batches=batches or [first], probe=first, seed=seed)
        if step.verb == "separate":
            proposals = separating.propose(step, context, calibrated=batches is not None)
        else:
            proposals = propose(step, context)
        state = _advance(state, step, step.chosen(proposals))
    return state


def _advance(state: Stages, step: Step, proposals: Sequence[Edit | Refusal]) -> Stages:
    refused = tuple(Refused(step.verb, step.technique, p.path, p.why) for p in proposals if isinstance(p, Refusal))
    refusals = state.refusals + refused
    if not any(isinstance(p, Edit) for p in proposals):
        return replace(state, refusals=refusals, plan=state.plan + Plan((replace(step, places=()),)))
    done = rewrite(state.model, proposals, state.history)
    edits = tuple(Done(step.verb, step.technique, tuple(e.put), e.why, e.claim) for e in done.edits)
    keys = {new: state.keys[old] for new, old in done.keys.items() if old in state.keys}
    plan = state.plan + Plan((replace(step, places=tuple(edit.paths for edit in edits)),))
    return Stages(done.model, state.edits + edits, refusals, keys, done.history, plan)


def runnable(model: nn.Module) -> None:
    """Refuse what cannot be rewritten from outside.

    Raises:
        Error: it is wrapped for several processes or devices, or compiled.
    """
    if isinstance(model, DistributedDataParallel | DataParallel) or type(model).__name__ in (
        "FullyShardedDataParallel",
    ):
        kind = type(model).__name__
        raise Error(f"surgery: the network must be rewritten before it is wrapped (its .module), got {kind}")
    if type(model).__name__ == "OptimizedModule":
        raise Error(
            "surgery: the network must be rewritten before it is compiled (its ._orig_mod), got OptimizedModule"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise Error("surgery: the network must be Python, got a ScriptModule")
    if not isinstance(model, nn.Module):
        raise Error(f"surgery: the network must be an nn.Module, got {type(model).__name__}")


def example_of(model: nn.Module, given: Example | None) -> tuple[Example, list[str]]:
    """The example, and a note where it was guessed."""
    if given is not None:
        return given, []
    layer = next((m for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor) and _width(m)), None)
    if layer is None:
        raise Error("surgery: an example input must be given, got none, and no layer tells what it may be")
    width = _width(layer)
    weight: Any = layer.weight
    dims = weight.dim() - 2
    tried = [(2, width)] if dims <= 0 else [(2, width, *[side] * dims) for side in SIDES]
    for shape in tried:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
        try:
            record(model, noise)
        except Error:
            continue
        return noise, [f"no example was given: probed with noise of shape {tuple(shape)}"]
    raise Error(f"surgery: an example input must be given, got none, and the network runs on none of {tried}")


def _width(module: nn.Module) -> int:
    found = getattr(module, "in_channels", None) or getattr(module, "in_features", None)
    return found if isinstance(found, int) else 0


def _nothing(done: Stages) -> str:
    if not done.refusals:
        return "the network has no place for it, or has it already"
    more = f" (and {len(done.refusals) - 1} more places)" if len(done.refusals) > 1 else ""
    return f"{done.refusals[0].path or 'the network'}: {done.refusals[0].why}{more}"


def _moved(model: nn.Module, done: Stages) -> dict[str, Tensor]:
    """Of what no edit touched, the entries that are no longer what they were, as they were."""
    before, now = model.state_dict(), done.model.state_dict()
    kept = [(name, before[old], now[name]) for name, old in done.keys.items()]
    return {name: old.clone() for name, old, new in kept if old.shape == new.shape and not torch.equal(old, new)}


def _difference(old: nn.Module, new: nn.Module, example: Example) -> tuple[OutputDifference | None, list[str]]:
    again = measure.output_difference(old, old, example)
    notes = []
    if again.max != 0:
        kind = "are not numbers" if again.max != again.max else "differ from run to run"
        notes.append(f"the outputs of the network itself {kind}, so that they certify nothing")
    return measure.output_difference(old, new, example), notes


def _certified(
    old: nn.Module, done: Stages, example: Example, setting: Setting
) -> tuple[OutputDifference | None, Rule | None, list[str]]:
    """The same verbs in float64, where nothing but the change itself can make a difference; and the error rule."""
    wide = tree_map_only(Tensor, _double, example)
    try:
        twin = copy.deepcopy(old).double()
        before = measure.outputs(twin, wide)
        batches = None if setting.batches is None else [_double(x) for x in setting.batches]
        again = staged(twin, done.plan, wide, batches, setting.seed)
        after = measure.outputs(again.model, wide)
    except Exception as error:  # whatever a foreign network says to float64
        reason = str(error).strip().split("\n")[0]
        return None, None, [f"not certified in float64, in which the network does not run: {reason}"]
    found = measure.compared(before, after)
    if found.max == found.max and not found.relative <= EXACT:
        raise Error(
            f"surgery: edits that claim to be exact must leave the outputs alone, got a relative difference of "
            f"{found.relative:.2g} in float64; nothing was changed"
        )
    ours, theirs = (measure.compared(before, measure.outputs(net, example)) for net in (done.model, old))
    eps = max((torch.finfo(p.dtype).eps for p in old.parameters() if p.is_floating_point()), default=0.0)
    return found, Rule(ours.max, theirs.max, 2 * theirs.max + 4 * eps * found.scale), []


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
