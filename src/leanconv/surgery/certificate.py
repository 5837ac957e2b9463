"""What a rewriting did and what it changed, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.contract import Cost
from leanconv.errors import Error
from leanconv.measure import Comparison, OutputDifference
from leanconv.rewrite import Replaced, put_back
from leanconv.surgery.optimizing import Carried
from leanconv.surgery.plan import Plan
from leanconv.surgery.state import digests

__all__ = ["Certificate", "Done", "Refused", "Rule"]

EXACT = 1e-10
"""Largest relative difference of outputs in float64 of what claims to be exact."""


@dataclass(frozen=True)
class Done:
    """An edit that was carried out.

    Attributes:
        verb, technique: whose edit it is.
        paths: what was replaced.
        why: one sentence.
        claim: ``exact``, ``approximate`` or ``changes``.
    """

    verb: str
    technique: str
    paths: tuple[str, ...]
    why: str
    claim: str


@dataclass(frozen=True)
class Refused:
    """A place where a verb did not act, and why."""

    verb: str
    technique: str
    path: str
    why: str


@dataclass(frozen=True)
class Rule:
    """Errors against the original network in float64, on the probe: the rule for exact changes in the network's dtype.

    Attributes:
        ours: max|changed - reference|.
        theirs: max|original - reference|.
        bound: 2 theirs + 4 eps max|reference|.
    """

    ours: float
    theirs: float
    bound: float

    @property
    def holds(self) -> bool:
        """ours <= bound."""
        return self.ours <= self.bound


@dataclass(frozen=True)
class Certificate:
    """What was done to a network, what was not and why, and what it changed.

    Attributes:
        plan: does the same again.
        edits: carried out, in order.
        refusals: places where nothing was done.
        notes: what else there is to say, a sentence each.
        difference: of the outputs on the probe, in the network's dtype; None where the two cannot be compared.
        exact: likewise in float64, the verbs carried out in float64 too; None unless every edit claims to be exact.
        rule: the error rule for exact changes; None likewise.
        before, after: cost of one probe.
        latency: ``before`` and ``after`` timed in turns on the probe; None where it was not asked for.
        keys: state_dict name -> name before, for what was kept or renamed.
        shape: of the probe.
        optimizer: for the new network, where one was given.
    """

    plan: Plan
    edits: tuple[Done, ...]
    refusals: tuple[Refused, ...]
    notes: tuple[str, ...]
    difference: OutputDifference | None
    exact: OutputDifference | None
    rule: Rule | None
    before: Cost
    after: Cost
    latency: Comparison | None
    keys: Mapping[str, str]
    shape: tuple[int, ...]
    optimizer: Carried | None = None
    _history: tuple[Replaced, ...] = field(default=(), repr=False)
    _digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    _entries: tuple[str, ...] = field(default=(), repr=False)
    _settled: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return bool(self.edits)

    def undo(self, network: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
        """Put what was replaced back, in a copy.

        Args:
            network: what the rewriting gave, trained since or not.

        Returns:
            The network, bit for bit the original where nothing was trained since; and the names, in ``network``, of
            the parameters and buffers that were changed since. Layers that only stood in a new container keep what
            they have learned; those that were replaced come back as they were.

        Raises:
            Error: the network is not what the rewriting gave.
        """
        now = digests(network)
        if set(now) != set(self._digests):
            odd = sorted(set(now) ^ set(self._digests))
            raise Error(f"undo: the network must be the one that was rewritten, got another: {odd[0]!r} differs")
        changed = tuple(name for name, digest in now.items() if digest != self._digests[name])
        back = put_back(network, self._history)
        state = back.state_dict()
        with torch.no_grad():
            for name, tensor in self._settled.items():
                if name not in changed:
                    state[self.keys[name]].copy_(tensor)
        return back, changed

    def translated(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint of the network before, under the names of the network after, where the change only renamed.

        Args:
            state: a state_dict of the network before.

        Raises:
            Error: the new network has entries that the old one had not, or the checkpoint lacks some.
        """
        new = [name for name in self._entries if name not in self.keys]
        if new:
            raise Error(
                f"certificate: an old checkpoint can be renamed only where nothing is new, got {new[0]!r} "
                "(load it into the original network and replay the plan)"
            )
        lacking = [self.keys[name] for name in self._entries if self.keys[name] not in state]
        if lacking:
            raise Error(f"certificate: the checkpoint must be of the network before, got one without {lacking[0]!r}")
        return {name: state[self.keys[name]] for name in self._entries}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "plan": self.plan.to_dict(),
            "edits": [asdict(edit) | {"paths": list(edit.paths)} for edit in self.edits],
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "notes": list(self.notes),
            "difference": None if self.difference is None else asdict(self.difference),
            "float64": None if self.exact is None else asdict(self.exact) | {"relative": self.exact.relative},
            "rule": None if self.rule is None else asdict(self.rule) | {"holds": self.rule.holds},
            "before": asdict(self.before),
            "after": asdict(self.after),
            "latency": None if self.latency is None else _latency(self.latency),
            "keys": dict(self.keys),
            "shape": list(self.shape),
            "optimizer": None
            if self.optimizer is None
            else {name: list(getattr(self.optimizer, name)) for name in ("kept", "fresh", "gone")},
        }

    def table(self) -> str:
        """For a terminal: what was done, what was refused, what it changed."""
        lines = [f"{edit.verb:8} {', '.join(p or '(network)' for p in edit.paths)}: {edit.why}" for edit in self.edits]
        lines += [f"refused  {refusal.path or '(network)'}: {refusal.why}" for refusal in self.refusals]
        lines += [f"note     {note}" for note in self.notes]
        if not self.edits:
            return "\n".join(lines)
        lines.append("")
        lines += [f"{name:10} {_change(getattr(self.before, name), getattr(self.after, name))}"
                  for name in ("params", "macs", "bytes")]  # fmt: skip
        if self.latency is not None:
            old, new = (self.latency.latencies[name] for name in ("before", "after"))
            ratio = self.latency.ratio("after", "before")
            times = f"{ratio.value:.3f} of it ({ratio.low:.3f} to {ratio.high:.3f})"
            lines.append(f"{'latency':10} {old.median:.3g} -> {new.median:.3g} ms, {times}, batch {new.batch}, "
                         f"{new.threads} threads")  # fmt: skip
        if self.difference is not None:
            d = self.difference
            lines.append(
                f"{'outputs':10} differ by {d.max:.3g} at most, {d.mean:.3g} on average (largest: {d.scale:.3g})"
            )
        if self.exact is not None:
            lines.append(f"{'float64':10} relative difference {self.exact.relative:.2g}, exact is below {EXACT:g}")
        if self.rule is not None:
            told = "holds" if self.rule.holds else "does not hold"
            lines.append(f"{'rounding':10} error {self.rule.ours:.3g} against {self.rule.theirs:.3g} of the original: "
                         f"the rule {told}")  # fmt: skip
        if self.optimizer is not None:
            lines.append(str(self.optimizer))
        return "\n".join(lines)


def _change(before: int, after: int) -> str:
    share = f" ({after / before:.1%})" if before else ""
    return f"{before:,} -> {after:,}{share}"


def _latency(found: Comparison) -> dict[str, Any]:
    ratio = found.ratio("after", "before")
    times = {name: asdict(latency) for name, latency in found.latencies.items()}
    return {**times, "ratio": {"value": ratio.value, "low": ratio.low, "high": ratio.high}}
