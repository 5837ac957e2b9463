"""``leanconv cost MODEL``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from leanconv.errors import Error

__all__ = ["configure", "run", "setting", "sizes"]

if TYPE_CHECKING:
    from torch import nn

    from leanconv.accounting import Report
    from leanconv.contract import Cost

_EPILOG = """\
examples:
  leanconv cost mobilenet_v1 --input 3,224,224
  leanconv cost mobilenet_v1 --input 3,160,160 --width 0.5
  leanconv cost plain --input 1,28,28 --set batchnorm=true --set separable=true
  leanconv cost package.module:attribute --input 3,64,64 --json

MACs are multiply-adds of convolutions and matrix products (FLOPs = 2 x MACs); bytes are inputs, outputs, parameters and
buffers of every layer, each once. The dense twin has one dense convolution in place of each separable layer.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", help="a network of leanconv.models, or package.module:attribute")
    parser.add_argument("--input", default="3,224,224", metavar="C,H,W", help="one image (default: %(default)s)")
    parser.add_argument("--batch", default="1", metavar="N", help="images per forward pass (default: %(default)s)")
    parser.add_argument("--width", metavar="ALPHA", help="the network's option width")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any option of the network")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Count and print.

    Raises:
        Error: no such network or option; a shape that is none, or does not fit.
    """
    options = dict(setting(text) for text in arguments.set)
    if arguments.width is not None:
        options["width"] = _value(arguments.width)
    shape = (*sizes("--batch", arguments.batch, 1), *sizes("--input", arguments.input, 3))

    from leanconv import models
    from leanconv.accounting import cost

    model = _build(arguments.model, options, shape[1:])
    report = cost(model, shape)
    twin, why = None, ""
    try:
        twin = cost(models.dense_twin(model), shape)
    except Error as error:
        why = str(error).partition(": ")[2]
    if arguments.json:
        print(json.dumps(_record(arguments.model, options, report, twin, why), indent=2))
    else:
        print(_table(model, report, twin, why))
    return 0


def _build(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> nn.Module:
    """The network; ours without memory for weights, since nothing needs to be computed."""
    import torch

    from leanconv import models

    known = models.options(name)
    if known is not None and "in_chans" in known:
        options.setdefault("in_chans", shape[0])
    if known is not None and "imgsz" in known:
        options.setdefault("imgsz", shape[1])
    with torch.device("meta" if name in models.names() else "cpu"):
        return models.build(name, **options)


# --- words -----------------------------------------------------------------------------------------------------------


def sizes(name: str, text: str, count: int) -> tuple[int, ...]:
    """Integers from 1, separated by commas.

    Raises:
        Error: other ones, or another number of them.
    """
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != count or min(sizes) < 1:
        form = "an integer >= 1" if count == 1 else "three integers >= 1 such as 3,224,224"
        raise Error(f"cost: {name} must be {form}, got {text!r}")
    return sizes


def setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as in JSON or else the text itself.

    Raises:
        Error: it has another form.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise Error(f"--set must be KEY=VALUE such as width=0.5, got {text!r}")
    return key.strip(), _value(value)


def _value(text: str) -> Any:
    """A number, true, false, null or a list as in JSON; else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- what is printed -------------------------------------------------------------------------------------------------


def _record(name: str, options: dict[str, Any], report: Report, twin: Report | None, why: str) -> dict[str, Any]:
    record = {"model": name, "options": options, **report.to_json(), "twin": None, "ratio": None}
    if twin is None:
        return record | {"no_twin": why}
    ours, dense = report.total, twin.total
    ratio = {key: getattr(dense, key) / max(getattr(ours, key), 1) for key in ("params", "macs", "bytes")}
    return record | {"twin": twin.to_json(), "ratio": ratio}


def _table(model: nn.Module, report: Report, twin: Report | None, why: str) -> str:
    from leanconv.accounting import aligned

    if twin is None:
        return f"{report.table()}\nno dense twin: {why}"
    head = ("layer", "kind", "output", "parameters", "MACs", "bytes", "| dense twin: parameters", "MACs", "bytes")
    total = ("total", "", "", *_cells(report.total), *_cells(twin.total))
    lines = aligned([head, *_rows(model, report, twin), total], left=3)
    ours, dense = report.total, twin.total
    ratios = (dense.params / max(ours.params, 1), dense.macs / max(ours.macs, 1), dense.bytes / max(ours.bytes, 1))
    inputs = "x".join(map(str, report.inputs[0]))
    lines += [
        f"the dense twin has {ratios[0]:.2f} x the parameters, {ratios[1]:.2f} x the MACs, {ratios[2]:.2f} x the bytes",
        f"input {inputs}, {report.dtype}; FLOPs = 2 x MACs: {2 * ours.macs:,} against {2 * dense.macs:,}",
    ]
    return "\n".join(lines)


def _rows(model: nn.Module, report: Report, twin: Report) -> list[tuple[str, ...]]:
    """The layers in order; a separable layer is told as a whole beside its twin, then by its parts."""
    from leanconv.techniques.separable import SeparableConv2d

    whole = {path: module for path, module in model.named_modules() if isinstance(module, SeparableConv2d)}
    beside = {row.path: row for row in twin.rows}
    rows: list[tuple[str, ...]] = []
    told = None
    for row in report.rows:
        path = next((p for p in whole if row.path.startswith(f"{p}.")), None)
        if path is not None and path != told:
            told = path
            kind = type(whole[path]).__name__
            rows.append((path, kind, "", *_cells(report.under(path)), *_cells(twin.under(path))))
        other = beside.get(row.path) if path is None else None
        twins = ("", "", "") if other is None else (f"{other.params:,}", f"{other.macs:,}", f"{other.bytes:,}")
        name = row.path or "(network)" if path is None else f"  {row.path.removeprefix(path)}"
        shape = "x".join(map(str, row.shape))
        rows.append((name, row.kind, shape, f"{row.params:,}", f"{row.macs:,}", f"{row.bytes:,}", *twins))
    return rows


def _cells(cost: Cost) -> tuple[str, str, str]:
    return f"{cost.params:,}", f"{cost.macs:,}", f"{cost.bytes:,}"
