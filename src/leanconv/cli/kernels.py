"""``leanconv kernels``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from leanconv.errors import Error

if TYPE_CHECKING:
    import torch

_EPILOG = """\
examples:
  leanconv kernels
  leanconv kernels --shape 32 128 56 56 --kernel 7 --dtype bfloat16
  LEANCONV_ISA=avx2 leanconv kernels --shape 4 256 1000 --kernel 31 --json

Which implementation runs for each operation of a layer with maps of that shape, and why: native code or torch. The
choice depends on the operation, the shape, the dtype and the instruction set; it is never timed while a network runs.
LEANCONV_NATIVE=0 turns native code off, 1 requires it; LEANCONV_ISA forces scalar, avx2, avx512 or neon.
"""
_DTYPES = ("float32", "bfloat16", "float64")


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--shape", type=int, nargs="+", metavar="SIZE", default=[32, 128, 28, 28],
        help="of the maps: N C H W, or N C L for sequences (default: 32 128 28 28)",
    )  # fmt: skip
    parser.add_argument("--kernel", type=int, metavar="K", default=3, help="side of a depthwise kernel (default: 3)")
    for name in ("stride", "dilation", "multiplier"):
        parser.add_argument(f"--{name}", type=int, metavar="N", default=1, help="of the depthwise layer (default: 1)")
    parser.add_argument("--dtype", metavar="NAME", default="float32", help=f"{', '.join(_DTYPES)} (default: float32)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Ask the choice, print."""
    import torch

    from leanconv import _native
    from leanconv.cli import shown

    shape = tuple(arguments.shape)
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise Error(f"kernels: --shape must be N C L or N C H W, each at least 1, got {' '.join(map(str, shape))}")
    if arguments.dtype not in _DTYPES:
        raise Error(f"kernels: --dtype must be one of {', '.join(_DTYPES)}, got {arguments.dtype!r}")
    for name in ("kernel", "stride", "dilation", "multiplier"):
        if getattr(arguments, name) < 1:
            raise Error(f"kernels: --{name} must be at least 1, got {getattr(arguments, name)}")
    rows = _rows(arguments, shape, getattr(torch, arguments.dtype))
    if arguments.json:
        print(shown.as_json({"library": _native.explain(), "operations": rows}))
        return 0
    print(_native.explain())
    print(shown.table(["operation", "runs in", "why"], [list(row.values()) for row in rows], left=3))
    return 0


def _rows(arguments: argparse.Namespace, shape: tuple[int, ...], dtype: torch.dtype) -> list[dict[str, Any]]:
    import torch

    from leanconv.kernels.choice import NATIVE, decide

    flat = len(shape) == 3
    maps = (shape[0], shape[1], 1, shape[2]) if flat else shape
    sides = [(1, n) if flat else (n, n) for n in (arguments.kernel, arguments.stride, arguments.dilation)]
    geometry = (*(n for pair in sides for n in pair), arguments.multiplier)
    # Of a layer that learns, its norm with a ReLU after it.
    others: dict[str, tuple[int, ...]] = {"norm_act": (1, 1, 1), "separable_block": (shape[1],)}
    rows = []
    for op in NATIVE:
        depthwise, mask = op.startswith("depthwise"), op.startswith("keep")
        size = (shape[0], shape[1] * max(1, maps[2] * maps[3])) if mask else maps
        kind = torch.bool if mask else dtype
        choice = decide(op, size, kind, "cpu", geometry if depthwise else others.get(op, ()))
        rows.append({"operation": op, "implementation": choice.implementation, "why": choice.why})
    return rows
