"""Networks: MobileNetV1, its dense twin, small ones, and any ``package.module:attribute`` that builds one."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import nn

from leanconv.errors import Error
from leanconv.models.mobilenet import dense_twin, mobilenet_v1, small
from leanconv.models.plain import mlp, plain
from leanconv.models.residual import residual

__all__ = ["build", "dense_twin", "fitting", "mlp", "mobilenet_v1", "names", "options", "plain", "residual", "small"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {f.__name__: f for f in (mlp, mobilenet_v1, plain, residual, small)}


def names() -> tuple[str, ...]:
    """The networks that :func:`build` knows by name, sorted."""
    return tuple(sorted(_BUILDERS))


def options(name: str) -> Mapping[str, Any] | None:
    """What :func:`build` may be given for a network: option -> default (``inspect.Parameter.empty`` where it has none).

    None where the network takes options of any name.

    Raises:
        Error: no network has that name.
    """
    parameters = _parameters(_builder(name))
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return {n: p.default for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def fitting(name: str, **told: Any) -> dict[str, Any]:
    """Of what is known about the task (``num_classes``, ``in_chans``, ``imgsz``) what a network can be told.

    A builder that takes any option is told ``num_classes`` and ``in_chans``, or ``in_channels`` where it says so.

    Raises:
        Error: no network has that name.
    """
    parameters = _parameters(_builder(name))
    anything = parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = parameters or {}
    found = {}
    for word, value in told.items():
        if word == "in_chans" and word not in named and "in_channels" in named:
            found["in_channels"] = value
        elif word in named or (anything and word != "imgsz"):
            found[word] = value
    return found


def build(name: str, **given: Any) -> nn.Module:
    """A network with fresh weights.

    Args:
        name: one of :func:`names`, or ``package.module:attribute``; the attribute is called with the options.
        **given: options of that network, such as ``num_classes=10``.

    Raises:
        Error: no network has that name (near ones are named); it has no such option; the call fails, or what it gives
            is no ``nn.Module``.
    """
    builder = _builder(name)
    known = options(name)
    wrong = [] if known is None else [option for option in given if option not in known]
    if wrong:
        near = _near(wrong[0], known or ())
        raise Error(
            f"model {name}: options must be among {', '.join(known or ()) or 'none'}, got {', '.join(wrong)}{near}"
        )
    missing = [n for n, default in (known or {}).items() if default is inspect.Parameter.empty and n not in given]
    if missing:
        raise Error(f"model {name}: options without a default must be given, got none for {', '.join(missing)}")
    try:
        model = builder(**given)
    except Error:
        raise
    except Exception as error:  # whatever a foreign builder raises
        reason = str(error).strip().split("\n")[0]
        raise Error(f"model {name}: it must build with {given}, got {type(error).__name__}: {reason}") from error
    if not isinstance(model, nn.Module):
        raise Error(f"model {name}: calling it must give an nn.Module, got {type(model).__name__}")
    return model


def _builder(name: str) -> Callable[..., Any]:
    if not isinstance(name, str) or ":" not in name:
        return _own(name)
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = import_module(module_name)
    except Exception as error:  # a module may raise anything while it is imported
        reason = str(error).strip().split("\n")[0]
        raise Error(
            f"model {name}: {module_name or 'the module'} must be importable, got {type(error).__name__}: {reason}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise Error(
                f"model {name}: {module_name} must have the attribute {attribute!r}, got none{_near(part, dir(found))}"
            )
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise Error(
            f"model {name}: {attribute} must be a class or function that builds a network, got {type(found).__name__}"
        )
    return found  # type: ignore[no-any-return]


def _own(name: str) -> Callable[..., nn.Module]:
    if name in _BUILDERS:
        return _BUILDERS[name]
    known = ", ".join(names())
    near = _near(name, names())
    raise Error(f"model: a name must be one of {known} or package.module:attribute, got {name!r}{near}")


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _parameters(builder: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(builder).parameters
    except (TypeError, ValueError):  # written in C
        return None
