"""Parameter groups by role for any optimizer, and a ledger that shows what becomes of each parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from leanconv.errors import Error
from leanconv.techniques.l2.forms import Form, Where, decays, weight_decay

__all__ = ["Ledger", "Row", "ledger", "param_groups"]

Group = Mapping[str, Any]


def param_groups(
    model: nn.Module,
    *,
    strength: float = 5e-4,
    form: Form = "lambda/2",
    n: int | None = None,
    depthwise: bool = True,
    roles: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Groups for any optimizer of ``torch.optim``: one per role, weights decayed, biases and norm parameters not.

    Under plain SGD the groups take the same steps as the :func:`penalty` of the same strength, form and n. Under
    Adam a group's ``weight_decay`` is coupled to the gradient, under AdamW it is decoupled.

    Example:
        >>> optimizer = torch.optim.SGD(leanconv.param_groups(model, strength=5e-4), lr=0.1)  # doctest: +SKIP

    Args:
        model: the network; a tied parameter enters once, under its first name.
        strength: λ >= 0.
        form: see :func:`weight_decay`.
        n: the number of training images, for ``lambda/2n``.
        depthwise: False gives the filters of depthwise convolutions no decay, as MobileNet's authors do.
        roles: parameter name -> role; :func:`leanconv.techniques.roles` where it is not given.

    Returns:
        Dicts with ``params``, ``names`` (in the same order), ``role`` and ``weight_decay``, in the order in which
        the roles first occur in the network.

    Raises:
        Error: a bad strength, form or n; ``roles`` lacks a parameter; or the network has none.

    Source: rows S14 and S15.
    """
    decay = weight_decay(strength, form, n)
    groups: dict[str, dict[str, Any]] = {}
    for name, role in named_roles(model, roles).items():
        fresh = {"params": [], "names": [], "role": role, "weight_decay": decay if decays(role, depthwise) else 0.0}
        group = groups.setdefault(role, fresh)
        group["params"].append(model.get_parameter(name))
        group["names"].append(name)
    if not groups:
        raise Error(f"param_groups: the model must have parameters, got {type(model).__name__} without any")
    return list(groups.values())


def named_roles(model: nn.Module, roles: Mapping[str, str] | None) -> dict[str, str]:
    """The role of each parameter of the model, in its order; each parameter once."""
    if not roles:
        from leanconv.techniques import roles as found  # the parent imports this folder, so not at import time

        roles = found(model)
    names = [name for name, _ in model.named_parameters()]
    missing = [name for name in names if name not in roles]
    if missing:
        raise Error(f"param_groups: roles must name every parameter, got none for {missing[0]!r}")
    return {name: roles[name] for name in names}


@dataclass(frozen=True)
class Row:
    """What becomes of one parameter.

    Attributes:
        name: as in ``model.named_parameters()``.
        shape: its shape.
        role: weight, depthwise, bias, norm, or a technique's own.
        where: ``loss``, ``optimizer``, ``decoupled``; ``-`` where it is not decayed.
        form: the form of λ; ``-`` where it is not decayed.
        coefficient: λ in that form; 0 where it is not decayed.
        weight_decay: the factor of w in the gradient, or of the decoupled step.
        count: how many numbers it holds.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    where: str
    form: str
    coefficient: float
    weight_decay: float
    count: int


@dataclass(frozen=True)
class Ledger:
    """Every parameter exactly once, with its role and decay."""

    rows: tuple[Row, ...]

    def records(self) -> list[dict[str, Any]]:
        """The rows as plain dicts, for JSON."""
        return [{**asdict(row), "shape": list(row.shape)} for row in self.rows]

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The rows as aligned text, and below them how many numbers are decayed."""
        head = ("parameter", "shape", "role", "decayed in", "form", "lambda", "weight_decay", "count")
        lines = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = ["  ".join(_aligned(cell, widths[i], i) for i, cell in enumerate(line)).rstrip() for line in lines]
        text.insert(1, "  ".join("-" * width for width in widths))
        decayed = sum(row.count for row in self.rows if row.weight_decay)
        return "\n".join([*text, f"{decayed:,} of {sum(row.count for row in self.rows):,} numbers are decayed"])


def ledger(
    source: nn.Module | Optimizer | Iterable[Group],
    *,
    strength: float = 5e-4,
    form: Form = "lambda/2",
    n: int | None = None,
    where: Where = "loss",
    depthwise: bool = True,
    roles: Mapping[str, str] | None = None,
) -> Ledger:
    """Which parameter has which role and how strongly it is decayed, each exactly once.

    Args:
        source: a network, whose decay the other arguments say; or an optimizer or its groups (with ``names`` and
            ``role``, as :func:`param_groups` makes them), whose own ``weight_decay`` is read, in the form
            ``lambda/2``; the other arguments then play no part.
        strength, form, n, depthwise, roles: as in :func:`param_groups`.
        where: ``loss``, ``optimizer`` or ``decoupled``.

    Raises:
        Error: as :func:`param_groups`; or groups without ``names``, or with a parameter twice.

    Source: row S15.
    """
    if isinstance(source, nn.Module):
        groups = param_groups(source, strength=strength, form=form, n=n, depthwise=depthwise, roles=roles)
        order = {name: i for i, (name, _) in enumerate(source.named_parameters())}
        rows = [row for g in groups for row in _rows(g, where, form, strength)]
        return Ledger(tuple(sorted(rows, key=lambda row: order[row.name])))
    groups = source.param_groups if isinstance(source, Optimizer) else [dict(g) for g in source]
    rows = [row for g in groups for row in _rows(g, group_where(g), "lambda/2", g.get("weight_decay", 0.0))]
    _once(rows)
    return Ledger(tuple(rows))


def group_where(group: Group) -> Where:
    """How an optimizer reads the group's ``weight_decay``: Adam's kind says so in the group, the others couple it."""
    return "decoupled" if group.get("decoupled_weight_decay") else "optimizer"


def _rows(group: Group, where: str, form: str, coefficient: float) -> list[Row]:
    if "names" not in group or len(group["names"]) != len(group["params"]):
        raise Error("ledger: a group must have names, one for each of its params, as leanconv.param_groups makes them")
    decay = float(group.get("weight_decay", 0.0))
    how = (where, form, float(coefficient)) if decay else ("-", "-", 0.0)
    pairs = zip(group["names"], group["params"], strict=True)
    return [Row(name, tuple(p.shape), group.get("role", "?"), *how, decay, p.numel()) for name, p in pairs]


def _once(rows: Sequence[Row]) -> None:
    for name, times in Counter(row.name for row in rows).items():
        if times > 1:
            raise Error(f"ledger: a parameter belongs to one group, got {name!r} {times} times")


def _cells(row: Row) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape)) or "scalar"
    numbers = (f"{row.coefficient:g}", f"{row.weight_decay:g}", f"{row.count:,}")
    return (row.name, shape, row.role, row.where, row.form, *numbers)


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column >= 5 else cell.ljust(width)
