"""An optimizer for a rewritten network: the state of what is still there goes on, the rest starts anew."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from leanconv import techniques
from leanconv.errors import Error

__all__ = ["Carried", "carry"]


@dataclass(frozen=True)
class Carried:
    """An optimizer and what became of the old one's state.

    Attributes:
        optimizer: of the same class, over the parameters of the rewritten network.
        kept: names of parameters that are unchanged or renamed, with their state.
        fresh: names of new parameters; they have no state yet.
        gone: names, in the old network, of parameters that are no more.
    """

    optimizer: Optimizer
    kept: tuple[str, ...]
    fresh: tuple[str, ...]
    gone: tuple[str, ...]

    def __str__(self) -> str:
        return f"optimizer: {len(self.kept)} parameters keep their state, {len(self.fresh)} start anew"


def carry(optimizer: Optimizer, old: nn.Module, new: nn.Module, keys: Mapping[str, str]) -> Carried:
    """The optimizer of a network for what became of it.

    A parameter that is unchanged or renamed stays in its group with a copy of its state. A new one joins the group of
    its role, where groups name roles (``leanconv.param_groups``), else the group of a parameter of the layer that it
    replaces with as many dimensions or, failing that, the first one. Old optimizer and schedules are left alone:
    schedules have to be made again for the new one.

    Args:
        optimizer: over parameters of ``old``.
        old: the network before.
        new: after.
        keys: name in ``new`` -> name in ``old`` of what was kept or renamed, as of ``Rewritten.keys``.

    Raises:
        Error: the optimizer has parameters that are not the network's.
    """
    names_of = defaultdict(list)
    for name, parameter in old.named_parameters(remove_duplicate=False):
        names_of[parameter].append(name)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names_of:
                shape = tuple(parameter.shape)
                raise Error(f"surgery: the optimizer must be that of the network, got a parameter {shape} of another")
    renamed = defaultdict(list)
    for now, before in keys.items():
        renamed[before].append(now)
    present = dict(new.named_parameters(remove_duplicate=False))
    groups, state, kept, gone = [], {}, [], []
    for group in optimizer.param_groups:
        entries = []
        for parameter in group["params"]:
            names = [now for name in names_of[parameter] for now in renamed[name] if now in present]
            if not names or present[names[0]].shape != parameter.shape:
                gone.append(names_of[parameter][0])
                continue
            entries.append((names[0], present[names[0]]))
            kept.append(names[0])
            if parameter in optimizer.state:
                state[present[names[0]]] = copy.deepcopy(optimizer.state[parameter])
        groups.append({**{k: copy.copy(v) for k, v in group.items() if k not in ("params", "names")}, "in": entries})
    fresh = _join(groups, optimizer, old, new, {id(present[name]) for name in kept}, keys)
    made = _like(optimizer, groups, state, any("names" in group for group in optimizer.param_groups))
    return Carried(made, tuple(kept), tuple(fresh), tuple(gone))


def _join(
    groups: list[dict[str, Any]],
    optimizer: Optimizer,
    old: nn.Module,
    new: nn.Module,
    there: set[int],
    keys: Mapping[str, str],
) -> list[str]:
    """Put new parameters into groups; their names. What the optimizer left alone before stays left alone."""
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    before = dict(old.named_parameters(remove_duplicate=False))
    roles = techniques.roles(new)
    by_role = {group["role"]: group for group in groups if "role" in group}
    where = {name: i for i, group in enumerate(optimizer.param_groups) for name in _names(old, group["params"])}
    found = []
    for name, parameter in new.named_parameters():
        if id(parameter) in there or (name in keys and before.get(keys[name]) not in trained):
            continue
        group = by_role.get(roles[name]) or groups[_beside(name, parameter.dim(), where, before)]
        group["in"].append((name, parameter))
        found.append(name)
    return found


def _names(model: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    wanted = {id(p) for p in parameters}
    return [name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in wanted]


def _beside(name: str, dims: int, where: Mapping[str, int], before: Mapping[str, nn.Parameter]) -> int:
    """The group of the old parameter whose path has most in common with the new one's and as many dimensions."""

    def common(other: str) -> tuple[bool, int]:
        pairs = zip(name.split("."), other.split("."), strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), 99)
        return (before[other].dim() > 1) == (dims > 1), same

    return where[max(where, key=common)] if where else 0


def _like(
    optimizer: Optimizer, groups: list[dict[str, Any]], state: Mapping[nn.Parameter, Any], named: bool
) -> Optimizer:
    """Of the same class, without running its constructor, whose arguments are not known."""
    for group in groups:
        entries = group.pop("in")
        group["params"] = [parameter for _, parameter in entries]
        if named:
            group["names"] = [name for name, _ in entries]
    made: Optimizer = type(optimizer).__new__(type(optimizer))
    made.__setstate__(
        {
            "defaults": dict(optimizer.defaults),
            "state": defaultdict(dict, state),
            "param_groups": [group for group in groups if group["params"]],
        }
    )
    return made
