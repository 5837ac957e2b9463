"""Trained weights to start from: no code is executed, names are matched, the head is fresh where classes differ."""

from __future__ import annotations

import difflib
import hashlib
import os
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.graph import Graph, record
from leanconv.techniques import batchnorm

__all__ = ["Loaded", "digest", "fit", "freeze", "head_of", "matches", "read", "stem_of"]

State = dict[str, Tensor]
# Where checkpoints of other training programs keep the weights; an average, where there is one, is what was evaluated.
_NESTED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
)
_PREFIXES = ("module.", "_orig_mod.", "model.")
_SHOWN = 5


@dataclass(frozen=True)
class Loaded:
    """What became of trained weights.

    Attributes:
        source: where they came from.
        sha256: of all of them.
        loaded: names of parameters and buffers that have their values now.
        fresh: names that stayed as they were: the head, where its shape differs.
        unused: names that the network does not have: the head of the other classes.
    """

    source: str
    sha256: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        fresh = f"; fresh: {', '.join(self.fresh)}" if self.fresh else ""
        return f"{len(self.loaded)} tensors loaded from {self.source} (SHA-256 {self.sha256[:12]}){fresh}"

    def table(self) -> str:
        """Every name with what became of it, a line each."""
        marks = [("loaded", self.loaded), ("fresh", self.fresh), ("unused", self.unused)]
        return "\n".join(f"{mark:7} {name}" for mark, names in marks for name in names)


def read(source: str) -> State:
    """Weights by name.

    Args:
        source: a ``.safetensors`` file; a ``.pt``, ``.pth`` or ``.bin`` file, of which tensors are read and no code is
            executed; the folder of a run; or ``package.module:attribute``, which is a state_dict, a network, a path, or
            a function without arguments that gives one of these.

    Returns:
        Name -> tensor, without the usual nestings (``state_dict``, ``model``, ``ema``) and prefixes (``module.``).

    Raises:
        Error: nothing there; damaged; a file that needs code to be read; no weights in it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return read(str(path / "model.safetensors"))
    if path.is_file():
        return _stripped(_file(path), source)
    module, colon, attribute = source.partition(":")
    if colon and module and attribute and os.sep not in module:
        return _stripped(_attribute(source, module, attribute), source)
    raise Error(f"weights: must be a file, the folder of a run or package.module:attribute, got nothing at {source!r}")


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, 64 hexadecimal digits."""
    found = hashlib.sha256()
    for name in sorted(state):
        t = state[name].detach().cpu().contiguous()
        found.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        found.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def matches(model: nn.Module, state: Mapping[str, Tensor], example: Tensor) -> bool:
    """Whether the weights have every name of the network, head and counters apart, and no others.

    Args:
        model: is not changed.
        state: name -> tensor.
        example: an input (N, C, ...), to find the head.
    """
    head = head_of(record(model, example))

    def counted(names: Iterable[str]) -> set[str]:
        return {n for n in names if not n.startswith(f"{head}.") and not n.endswith("num_batches_tracked")}

    return counted(model.state_dict()) == counted(state)


@torch.no_grad()
def fit(model: nn.Module, state: Mapping[str, Tensor], example: Tensor, source: str = "the weights") -> Loaded:
    """Give a network the weights that bear its names.

    The head (the last layer with weights) stays as it is where its shape is another, as with other classes.

    Args:
        model: changed in place, all of it or nothing.
        state: name -> tensor.
        example: an input (N, C, ...), to find the head.
        source: for the sentences.

    Raises:
        Error: a name that only one of the two has, or a shape that differs, outside the head.
    """
    own = model.state_dict()
    head = head_of(record(model, example))
    inside = {name for name in own if name == head or name.startswith(f"{head}.")}
    fits = {n: v for n, v in state.items() if n in own and v.shape == own[n].shape}
    misshapen = [n for n in state if n in own and n not in fits]
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    odd = [n for n in state if n not in own and not n.endswith("num_batches_tracked")]
    fresh = [n for n in inside if n not in fits]
    if fresh:  # a half-loaded head is none
        fresh = sorted(inside)
        fits = {n: v for n, v in fits.items() if n not in inside}
        head_like = {n for n in odd if n.startswith(f"{head}.")}
        odd = [n for n in odd if n not in head_like]
    outside = {
        "lacks": [n for n in missing if n not in inside],
        "has another shape for": [n for n in misshapen if n not in inside],
    }
    for what, names in outside.items():
        if names:
            raise Error(f"weights: {source} must fit the network, got one that {what} {_some(names, odd)}")
    if odd:
        raise Error(f"weights: {source} must fit the network, got more than it has: {_some(odd, missing)}")
    for name, value in fits.items():
        own[name].copy_(value)
    unused = tuple(n for n in state if n not in fits)
    return Loaded(source, digest(state), tuple(n for n in own if n in fits), tuple(fresh), unused)


def head_of(graph: Graph) -> str:
    """Path of the last layer with weights of its own, which gives the outputs.

    Raises:
        Error: no layer has weights.
    """
    return _weighted(graph)[-1]


def stem_of(graph: Graph) -> str:
    """Path of the first layer with weights of its own.

    Raises:
        Error: no layer has weights.
    """
    return _weighted(graph)[0]


def freeze(model: nn.Module, what: Literal["none", "stem", "backbone"], example: Tensor) -> tuple[str, ...]:
    """Stop a part from learning: its parameters take no gradient, its batch norms' statistics stand still.

    Args:
        model: changed in place.
        what: ``stem``: the first layer with weights, and the norm after it; ``backbone``: everything but the head.
        example: an input (N, C, ...), to find the parts.

    Returns:
        Names of the parameters that learn no more.

    Raises:
        Error: the network has no such part: with one layer alone, it is the head.
    """
    if what == "none":
        return ()
    graph = record(model, example)
    layers = _weighted(graph)
    head = layers[-1]
    if len(set(layers)) < 2:
        raise Error(f"freeze: the network must have a {what} apart from its head, got {head or 'one layer'} alone")
    paths = [p for p in dict.fromkeys(layers) if p != head] if what == "backbone" else _stem(graph, layers)
    modules = dict(model.named_modules())
    chosen = [modules[path] for path in paths]
    kept = {id(p) for p in modules[head].parameters()} if what == "backbone" else set()
    if what == "backbone":  # parameters that belong to no leaf layer too
        chosen.append(model)
    for module in chosen:
        for parameter in module.parameters():
            if id(parameter) not in kept:
                parameter.requires_grad_(False)
    for path in paths:
        if _has_statistics(modules[path]):
            batchnorm.freeze(modules[path], affine=True)
    return tuple(n for n, p in model.named_parameters() if not p.requires_grad)


def _stem(graph: Graph, layers: list[str]) -> list[str]:
    """The first layer, and the norm right after it."""
    step = next(s for s in graph.steps if s.path == layers[0] and s.module is not None)
    following = graph.only_consumer(step)
    norm = following is not None and following.module is not None and _has_statistics(following.module)
    return [layers[0], *([following.path] if norm and following is not None else [])]


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), Tensor)


def _weighted(graph: Graph) -> list[str]:
    """Paths of the leaf layers that have parameters, in order of execution."""
    found = [s.path for s in graph.steps if s.module is not None and next(s.module.parameters(), None) is not None]
    if not found:
        raise Error("weights: the network must have a layer with weights, got none")
    return found


def _some(names: list[str], others: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    near = difflib.get_close_matches(names[0], others, n=1, cutoff=0.5)
    return f"{shown} (near: {near[0]})" if near else shown


def _file(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise Error(f"weights: {path} must be readable, got {error.strerror or error}") from None
    try:
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            with safe_open(path, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on the pickle's protocol are not the user's business
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        if isinstance(error, pickle.UnpicklingError) and ("GLOBAL" in str(error) or "Unsupported global" in str(error)):
            rule = "must hold tensors alone, got a file that needs code to be read, which is not executed"
            raise Error(f"weights: {path} {rule}") from None
        told = type(error).__name__
        raise Error(f"weights: {path} must be a whole file of weights, got a damaged one ({told})") from None


def _attribute(source: str, module: str, attribute: str) -> Any:
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found() if callable(found) and not isinstance(found, nn.Module) else found
    except Exception as error:  # a module may raise anything
        told = str(error).strip().split("\n")[0]
        raise Error(f"weights: {source} must be there, got {type(error).__name__}: {told}") from error


def _stripped(found: Any, source: str) -> State:
    """The state_dict in what was read."""
    if isinstance(found, str | Path):
        return read(str(found))
    if isinstance(found, nn.Module):
        return dict(found.state_dict())
    while isinstance(found, Mapping) and not _is_state(found):
        inner = next((found[key] for key in _NESTED if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not _is_state(found):
        raise Error(f"weights: {source} must hold tensors by name, got {_kinds(found)}")
    state = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_state(found: Mapping[Any, Any]) -> bool:
    tensors = [isinstance(value, Tensor) for value in found.values()]
    return bool(tensors) and all(tensors)


def _kinds(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"a mapping with the keys {', '.join(map(str, list(found)[:_SHOWN]))}" if found else "an empty mapping"
    return type(found).__name__
