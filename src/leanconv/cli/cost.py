"""``leanconv cost``: parameters, multiply-adds and bytes of a network, layer by layer, beside its dense twin."""

from __future__ import annotations

import argparse
import ast
import json
from typing import TYPE_CHECKING, Any

from leanconv.errors import Error

if TYPE_CHECKING:
    from leanconv.accounting import Report

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", help="a network of leanconv.models, or package.module:attribute")
    parser.add_argument(
        "--input", default="3,224,224", metavar="C,H,W", help="shape of one image (default: %(default)s)"
    )
    parser.add_argument("--batch", default="1", metavar="N", help="images per forward pass (default: %(default)s)")
    parser.add_argument("--width", metavar="ALPHA", help="short for --option width=ALPHA")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the network; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print plain records instead of a table")


def run(args: argparse.Namespace) -> int:
    """Count and print.

    Args:
        args: what :func:`configure` declared.

    Returns:
        0.

    Raises:
        Error: no such network or option; a shape that is none, or does not fit.
    """
    from leanconv import models
    from leanconv.accounting import cost

    shape = (*_sizes("--batch", args.batch, (1,)), *_sizes("--input", args.input, (1, 2, 3, 4)))
    options = _options(args)
    known = models.options(args.model)
    if known is not None and "in_chans" in known:
        options.setdefault("in_chans", shape[1])
    model = _on_meta(lambda: models.build(args.model, **options))
    report = cost(model, shape)
    twin, why = None, ""
    try:
        twin = cost(models.dense_twin(model), shape)
    except Error as error:
        why = str(error)
    groups = _groups(model)
    if args.json:
        print(json.dumps(_record(args.model, options, report, twin, why), indent=2))
    else:
        print(_table(args.model, report, twin, why, groups))
    return 0


def _on_meta(build: Any) -> Any:
    """Without weights where the network can be built so: it is counted, never computed."""
    import torch

    from leanconv.accounting import cost  # noqa: F401  # imported here so that a failure below is the network's

    with torch.device("meta"):
        return build()


def _sizes(name: str, text: str, counts: tuple[int, ...]) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) not in counts or min(sizes) < 1:
        form = "an integer >= 1" if counts == (1,) else "integers >= 1 such as 3,224,224"
        raise Error(f"cost: {name} must be {form}, got {text!r}")
    return sizes


def _options(args: argparse.Namespace) -> dict[str, Any]:
    given = {}
    for text in [*args.option, *([f"width={args.width}"] if args.width is not None else [])]:
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise Error(f"cost: --option must be NAME=VALUE, got {text!r}")
        given[name] = _value(value)
    return given


def _value(text: str) -> Any:
    """A Python literal, or the words true and false, or the text itself."""
    try:
        return {"true": True, "false": False, "none": None}.get(text.lower(), ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
