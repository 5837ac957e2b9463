"""``leanconv export RUN|MODEL``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from leanconv.cli import rewriting
from leanconv.errors import Error

_EPILOG = """\
examples:
  leanconv export runs/flowers --output flowers.lean
  leanconv export runs/flowers --output flowers.onnx --format onnx
  leanconv export runs/flowers-lean --output flowers.lean --overwrite --json
  leanconv export runs/flowers --output flowers-int8.lean --int8                     # calibrated on the run's images
  leanconv export runs/flowers --output flowers-int8.lean --int8 --data path/to/images --max-drop 0.5 --layers
  leanconv export package.module:attribute --weights net.safetensors --input 3,224,224 --output net.lean

lean: one file for leanconv.runtime, which needs numpy and no torch; batch norms are folded, dropout is gone, what can
run as one step is one. onnx: for other programs (pip install 'leanconv[onnx]'). The file is read back and compared with
torch on noise and on images of the run, and kept only if it answers as the network does. A network of your own may be
named as package.module:attribute; with --mean and --std its file reads photos. In Python: leanconv.export(network,
"network.lean", example=x).

--int8: maps and weights are bytes. Ranges come from some images, accuracy is measured on others, in float and in int8,
and layers stay in float until the loss is at most --max-drop points. A folder of loose images, without labels, will do;
then answers that stay are counted.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("network", metavar="RUN|MODEL", help="folder of a run, or package.module:attribute")
    parser.add_argument("--format", default="lean", metavar="lean|onnx", help="what to write (default: lean)")
    parser.add_argument("--output", required=True, metavar="FILE", help="where to write it")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    rewriting.configure_model(parser)
    parser.add_argument("--mean", metavar="R,G,B", help="how a MODEL wants photos: (v / 255 - mean) / std")
    parser.add_argument("--std", metavar="R,G,B", help="likewise; both or neither")
    told = parser.add_argument_group("int8")
    told.add_argument("--int8", action="store_true", help="maps and weights in bytes")
    told.add_argument("--data", metavar="DIR", help="images to calibrate and to measure on (default: the run's)")
    told.add_argument("--max-drop", type=float, metavar="P", help="points of accuracy that may be lost (default: 1)")
    told.add_argument("--rule", metavar="NAME", help="ranges by mse, percentile or minmax (default: mse)")
    told.add_argument(
        "--percentile", type=float, metavar="P", help="of that rule, which it chooses too (default: 99.99)"
    )
    told.add_argument("--calibrate", type=int, metavar="N", help="images that the ranges come from (default: 256)")
    told.add_argument("--no-equalise", action="store_true", help="leave the channels of layers in a row as they are")
    told.add_argument("--layers", action="store_true", help="print signal to noise, layer by layer")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Translate, write, verify, print."""
    if arguments.format not in ("lean", "onnx"):
        raise Error(f"export: --format must be lean or onnx, got {arguments.format!r}")

    how = {name: getattr(arguments, name) for name in ("max_drop", "rule", "percentile", "calibrate")}
    how = {name: value for name, value in how.items() if value is not None}
    how |= {"equalise": False} if arguments.no_equalise else {}
    if "percentile" in how and how.setdefault("rule", "percentile") != "percentile":
        raise Error(f"export: --percentile is for --rule percentile, got --rule {how['rule']}")
    if not arguments.int8 and (how or arguments.data is not None or arguments.layers):
        word = "--data" if arguments.data is not None else "--" + next(iter(how), "layers").replace("_", "-")
        raise Error(f"export: {word} is for --int8, got it without")

    from leanconv.cli import shown
    from leanconv.deploy import Int8, export

    try:
        network, more = _network(arguments)
        done = export(
            network, arguments.output, arguments.format, int8=Int8(**how) if arguments.int8 else False,
            data=arguments.data, overwrite=arguments.overwrite, progress=_saying(), **more,
        )  # fmt: skip
    finally:
        _clear()
    print(shown.as_json(done.to_dict()) if arguments.json else done.table(arguments.layers))
    return 0


def _network(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """What is exported, and what else is known about it."""
    if rewriting.is_run(arguments, "export", ("weights", "input", "option", "mean", "std")):
        return arguments.network, {}
    if ":" not in arguments.network:
        raise Error(
            f"export: the network must be the folder of a run or package.module:attribute, got {arguments.network!r}"
        )
    if (arguments.mean is None) != (arguments.std is None):
        raise Error("export: --mean and --std must be given together, got one of them")
    model, example, _ = rewriting.open_model(arguments, "export")
    if arguments.mean is None:
        return model, {"example": example}
    from leanconv.runtime.plan import Picture

    channels, height, width = example.shape[1:]
    if height != width or channels not in (1, 3):
        raise Error(
            f"export: --mean is for square photos of 1 or 3 channels, got an input of {channels},{height},{width}"
        )
    mean, std = (_numbers(f"--{word}", getattr(arguments, word), channels) for word in ("mean", "std"))
    return model, {"example": example, "picture": Picture(height, "RGB" if channels == 3 else "L", mean, std)}


def _numbers(word: str, text: str, count: int) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != count:
        raise Error(f"export: {word} must be {count} numbers with commas between them, got {text!r}")
    return found


def _saying() -> Callable[[str], None] | None:
    if not sys.stderr.isatty():
        return None
    return lambda words: print(f"\r{words} ...\033[K", end="", file=sys.stderr, flush=True)


def _clear() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
