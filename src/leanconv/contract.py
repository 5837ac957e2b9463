"""What a technique is: a folder in ``leanconv.techniques`` whose module has the names of :class:`Technique`.

Everything else in leanconv (surgery, training, doctor, study, costs) iterates over techniques through this contract and
knows none of them by name. Verbs *propose* edits; :mod:`leanconv.rewrite` carries them out on a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from leanconv.graph import Graph

Claim = Literal["exact", "approximate", "changes"]
Severity = Literal["error", "warning", "note"]
Init = Literal["keep", "fresh"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """What a verb or a check may look at, read-only. Only the model is always there.

    Attributes:
        model: the network.
        graph: one recorded execution of it (:func:`leanconv.graph.record`), or None where no example was given.
        batches: inputs for calibration, each (N, C, ...).
        optimizer: the optimizer that trains it.
        run: the plain record of a run (recipe, metrics), as read from its folder.
        probe: one input batch.
        seed: for everything that draws numbers.
        roles: parameter name -> role, as :func:`leanconv.techniques.roles` joins them.
        samples: n, the number of training images.
    """

    model: nn.Module
    graph: Graph | None = None
    batches: Iterable[Tensor] | None = None
    optimizer: Optimizer | None = None
    run: Mapping[str, Any] | None = None
    probe: Tensor | None = None
    seed: int = 0
    roles: Mapping[str, str] = field(default_factory=dict)
    samples: int | None = None


@dataclass(frozen=True)
class Edit:
    """A proposal: put these modules at these paths, all of them or none.

    Attributes:
        put: module path -> new module. A module that stands under two paths is listed under both.
        why: one sentence for the certificate.
        claim: ``exact`` (eval outputs stay equal), ``approximate`` (close, for the same purpose) or ``changes``.
        keys: new state_dict name -> old state_dict name, pure renames only.
    """

    put: Mapping[str, nn.Module]
    why: str
    claim: Claim = "changes"
    keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A place where a verb did not act, and why."""

    path: str
    why: str


@dataclass(frozen=True)
class Price:
    """What a finding costs: a quantity with its interval, measured or predicted.

    Attributes:
        quantity: what is counted, such as ``latency`` or ``variance shift``.
        value, low, high: the estimate and its interval, in ``unit``.
        how: ``measured`` on this machine or ``predicted`` from a formula.
    """

    quantity: str
    value: float
    low: float
    high: float
    unit: str
    how: Literal["measured", "predicted"]


@dataclass(frozen=True)
class Finding:
    """One misuse: rule ``code`` (such as ``BN001``) at ``path``; ``fix`` would mend it."""

    code: str
    path: str
    severity: Severity
    message: str
    fix: tuple[Edit, ...] = ()
    prices: tuple[Price, ...] = ()


@dataclass(frozen=True)
class Cost:
    """One forward pass: parameters held, multiply-adds (MACs) done, bytes moved where nothing is fused.

    ``macs`` counts convolutions and matrix products, as the papers do. ``bytes`` is inputs + outputs + parameters of
    every leaf layer, each once, at the dtype of the execution (4 bytes an element in float32).
    """

    params: int = 0
    macs: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs, self.bytes + other.bytes)


class Attachment:
    """What a technique does while a network trains; every method may be left as it is.

    The training loop calls ``penalty`` once per loss, ``settle`` before evaluation for keeps and before export, and
    ``close`` at the end.
    """

    def penalty(self, stopped: Mapping[str, Tensor]) -> Tensor | None:
        """Added to the loss: a scalar with a gradient, or None.

        Args:
            stopped: parameter name -> bool tensor, broadcastable to the parameter, True where an entry takes no part in
                this step (strict dropout); such entries must not enter the penalty.
        """
        return None

    def stopped(self) -> Mapping[str, Tensor]:
        """Entries of parameters that take no part in this step: name -> bool tensor, True where stopped."""
        return {}

    def settle(self, batches: Iterable[Tensor]) -> None:
        """Bring statistics into their final state from training inputs, such as precise BN."""

    def close(self) -> None:
        """Remove every hook."""


@runtime_checkable
class Technique(Protocol):
    """A module with these names: ``leanconv.techniques.dropout`` itself is one.

    ``ORDER`` says when it acts: 100 convolution, 200 norm, 300 drop, 900 optimizer.
    """

    NAME: str
    ORDER: int
    PAPER: str

    @property
    def LAYERS(self) -> tuple[type[nn.Module], ...]:
        """Its layers; empty where it has none."""

    @property
    def Options(self) -> type[Any]:
        """A frozen dataclass, every field with a default; layer techniques have ``init: "keep" | "fresh"``."""

    def apply(self, ctx: Context, options: Any) -> list[Edit | Refusal]:
        """Edits that put the technique in."""

    def remove(self, ctx: Context) -> list[Edit | Refusal]:
        """Edits that take it out; the function may change."""

    def fold(self, ctx: Context) -> list[Edit | Refusal]:
        """Edits that take it out while eval outputs stay the same."""

    def check(self, ctx: Context) -> Iterator[Finding]:
        """Its misuses."""

    def cost(self, layer: nn.Module, shape: Shape) -> Cost:
        """The closed form for one of its LAYERS on an input of ``shape`` (N, C, ...)."""

    def roles(self, model: nn.Module) -> Mapping[str, str]:
        """Parameter name -> weight | bias | norm | depthwise | the technique's own, for the parameters it knows."""

    def attach(self, ctx: Context, options: Any) -> Attachment | None:
        """What it does during training, or None."""
