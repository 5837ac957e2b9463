"""Carries out the edits that techniques propose, on a copy of the network."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from leanconv.contract import Edit, Refusal
from leanconv.errors import Error

__all__ = ["Replaced", "Rewritten", "put_back", "rewrite"]

Replaced = Mapping[str, nn.Module]
"""Module path -> the module that stood there before an edit."""


@dataclass(frozen=True)
class Rewritten:
    """A changed copy of a network, with what was done and what was not.

    Attributes:
        model: the copy.
        edits: carried out, in order.
        refusals: places where the technique did not act, with its reason.
        keys: state_dict name of the copy -> name in the original, for every entry that was kept or only renamed.
        history: what stood where, one mapping per rewriting, this one the last; :func:`put_back` undoes with it. A
            layer that an edit put into a container of its own is the very layer that learns on in the copy.
    """

    model: nn.Module
    edits: tuple[Edit, ...]
    refusals: tuple[Refusal, ...]
    keys: Mapping[str, str]
    history: tuple[Replaced, ...] = ()


def rewrite(model: nn.Module, proposals: Iterable[Edit | Refusal], history: Sequence[Replaced] = ()) -> Rewritten:
    """Put the proposed modules into a copy of the network.

    The copy is made with one shared memo over model and edits, so weights that are tied between a layer that stays and
    one that is new stay tied. The network itself is not touched. New modules keep the training mode they come in, and
    tensors that only they have are taken over, not copied: proposals are carried out once.

    Args:
        model: the network that the proposals were made for.
        proposals: what a verb of a technique returned.
        history: of the rewritings that gave this network; copied along with it.

    Raises:
        Error: two edits want one path, or one wants a path inside another's; a path does not exist; a module stands
            under several paths and an edit names only some of them; the root is to be replaced together with others.
    """
    proposals = tuple(proposals)
    edits = tuple(p for p in proposals if isinstance(p, Edit))
    refusals = tuple(p for p in proposals if isinstance(p, Refusal))
    _validate(model, edits)
    kept = [model, *(module for one in history for module in one.values())]
    old = {id(t) for module in kept for t in _tensors(module)}
    taken = {id(t): t for edit in edits for module in edit.put.values() for t in _tensors(module) if id(t) not in old}
    new, puts, before = copy.deepcopy(
        (model, [dict(edit.put) for edit in edits], [dict(one) for one in history]), taken
    )
    replaced: dict[str, nn.Module] = {}
    for put in puts:
        for path, module in put.items():
            replaced[path] = new.get_submodule(path)
            new = _put(new, path, module)
    return Rewritten(new, edits, refusals, _keys(model, new, edits), (*before, replaced))


def put_back(model: nn.Module, history: Sequence[Replaced]) -> nn.Module:
    """A copy of a rewritten network in which everything that was replaced stands where it stood.

    Args:
        model: what the rewritings gave, trained since or not.
        history: of the last :class:`Rewritten`.

    Raises:
        Error: the network has no such paths.
    """
    new, replaced = copy.deepcopy((model, [dict(one) for one in history]))
    for one in reversed(replaced):
        for path, module in one.items():
            if path.rpartition(".")[0] not in dict(new.named_modules(remove_duplicate=False)):
                raise Error(f"undo: the network must have the paths that were edited, got none at {path!r}")
            new = _put(new, path, module)
    return new


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _validate(model: nn.Module, edits: tuple[Edit, ...]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted = Counter(path for edit in edits for path in edit.put)
    for path, count in wanted.items():
        if count > 1:
            raise Error(f"rewrite: edits of one call must not meet, got {count} edits of {path!r}")
        if path not in modules:
            raise Error(f"rewrite: an edit must name a module of the network, got {path!r}")
        above = [other for other in wanted if other != path and _inside(path, other)]
        if above:
            raise Error(f"rewrite: edits of one call must not meet, got {path!r} inside {above[0]!r}")
    for edit in edits:
        _validate_aliases(modules, edit)


def _validate_aliases(modules: Mapping[str, nn.Module], edit: Edit) -> None:
    for path in edit.put:
        missing = [p for p, m in modules.items() if m is modules[path] and p not in edit.put]
        if missing:
            raise Error(
                f"rewrite: an edit of a shared module must list all its paths, got {path!r} without {missing[0]!r}"
            )


def _inside(path: str, other: str) -> bool:
    return other == "" or path.startswith(other + ".")


def _put(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    if not path:
        return module
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
    return model


def _keys(old: nn.Module, new: nn.Module, edits: tuple[Edit, ...]) -> dict[str, str]:
    """Which entry of the old state_dict each entry of the new one is."""
    before, after = set(old.state_dict()), list(new.state_dict())
    renamed = {name: source for edit in edits for name, source in edit.keys.items()}
    touched = [path for edit in edits for path in edit.put]
    kept = {n: n for n in after if n in before and not any(_inside(n, path) for path in touched)}
    return kept | {n: source for n, source in renamed.items() if n in set(after) and source in before}
