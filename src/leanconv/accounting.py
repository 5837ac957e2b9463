"""Counts what a network executes: parameters, multiply-adds and bytes, layer by layer.

One forward pass runs in eval mode. Every executed aten operation is seen and credited to the innermost module, so what
is written in ``forward``, called twice, or built from functions is counted as it happened.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from leanconv.contract import Cost, Shape
from leanconv.errors import Error
from leanconv.graph import evaluating, is_leaf

__all__ = ["Report", "Row", "cost", "layer_cost"]

Example = Tensor | tuple[Tensor, ...] | tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One module that ran, or that holds parameters.

    Attributes:
        path: where it stands; ``""`` is the network itself.
        kind: class of the module, or the functions that it ran itself where it has modules of its own.
        calls: how often it ran.
        shape: of its (last) output.
        params: parameters it holds itself; one that is shared counts where it stands first.
        macs: multiply-adds of its convolutions and matrix products.
        bytes: inputs, outputs, parameters and buffers, each once per call.
    """

    path: str
    kind: str
    calls: int
    shape: Shape
    params: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """What one forward pass of a network costs.

    Attributes:
        rows: in order of execution; modules with parameters that did not run come last, with 0 calls.
        inputs: shapes of the inputs.
        dtype: of the parameters, such as ``float32``.
        uncounted: operations that ran, do arithmetic of weight and have no rule here; their MACs are missing.
    """

    rows: tuple[Row, ...]
    inputs: tuple[Shape, ...]
    dtype: str
    uncounted: tuple[str, ...] = ()

    @property
    def total(self) -> Cost:
        """Parameters (shared ones once), MACs and bytes of the whole."""
        return sum((Cost(r.params, r.macs, r.bytes) for r in self.rows), Cost())

    @property
    def params(self) -> int:
        """Parameters of the network, shared ones once."""
        return self.total.params

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass. FLOPs = 2 x MACs."""
        return self.total.macs

    @property
    def bytes(self) -> int:
        """Bytes moved by one forward pass where nothing is fused."""
        return self.total.bytes

    def under(self, path: str) -> Cost:
        """Of a module and everything in it."""
        inside = [r for r in self.rows if not path or r.path == path or r.path.startswith(path + ".")]
        return sum((Cost(r.params, r.macs, r.bytes) for r in inside), Cost())

    def to_json(self) -> dict[str, Any]:
        """Plain records: ``layers``, ``total``, ``inputs``, ``dtype``, ``uncounted``."""
        return {
            "inputs": [list(shape) for shape in self.inputs],
            "dtype": self.dtype,
            "layers": [asdict(row) | {"shape": list(row.shape)} for row in self.rows],
            "total": asdict(self.total) | {"flops": 2 * self.macs},
            "uncounted": list(self.uncounted),
        }

    def table(self) -> str:
        """The rows as text, with the total; FLOPs = 2 x MACs."""
        head = ("layer", "kind", "output", "parameters", "MACs", "bytes")
        body = [
            (r.path or "(network)", r.kind, "x".join(map(str, r.shape)), f"{r.params:,}", f"{r.macs:,}", f"{r.bytes:,}")
            for r in self.rows
        ]
        foot = ("total", "", "", f"{self.params:,}", f"{self.macs:,}", f"{self.bytes:,}")
        lines = aligned([head, *body, foot], left=3)
        inputs = ", ".join("x".join(map(str, shape)) for shape in self.inputs)
        lines.append(f"input {inputs}, {self.dtype}; FLOPs = 2 x MACs = {2 * self.macs:,}")
        if self.uncounted:
            lines.append(f"not counted: {', '.join(self.uncounted)}")
        return "\n".join(lines)


def aligned(rows: list[tuple[str, ...]], left: int) -> list[str]:
    """Rows of words as lines in columns, the first ``left`` to the left; rules under the first and above the last."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: tuple[str, ...]) -> str:
        cells = [w.ljust(n) if i < left else w.rjust(n) for i, (w, n) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [line(rows[0]), rule, *map(line, rows[1:-1]), rule, line(rows[-1])]


def cost(model: nn.Module, example: Example) -> Report:
    """Run a network once and count: parameters, MACs and bytes per layer.

    MACs are those of convolutions and matrix products, as the papers count; norms, activations, pools and biases are
    0. Bytes: each call of a leaf module moves its inputs, outputs, parameters and buffers once, each operation outside
    leaf modules its inputs and outputs, at the dtype of the execution. Views move nothing.

    Args:
        model: any network, on any device; on ``torch.device("meta")`` nothing is computed. It is left as it was.
        example: its input (N, C, ...), a tuple of inputs, or the shape of one as a tuple of integers.

    Returns:
        The report; ``report.table()`` prints it.

    Raises:
        Error: the network does not run on the example.

    Source: S17 to S19; Howard et al. 2017 call MACs "mult-adds".
    """
    inputs = _inputs(model, example)
    counter = _Counter(model)
    handles = counter.hook()
    try:
        with evaluating(model), counter:
            model(*inputs)
    except Error:
        raise
    except Exception as error:  # whatever a network raises
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        reason = str(error).strip().split("\n")[0]
        raise Error(
            f"cost: the network must run on an input of shape {shapes}, got {type(error).__name__}: {reason}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    dtype = str(next((p.dtype for p in model.parameters()), inputs[0].dtype)).removeprefix("torch.")
    return Report(counter.rows(), tuple(tuple(x.shape) for x in inputs), dtype, tuple(sorted(counter.uncounted)))


def layer_cost(layer: nn.Module, shape: Shape) -> Cost:
    """What one layer costs on one input, measured on a float32 copy: what ``technique.cost(layer, shape)`` predicts.

    Args:
        layer: any module.
        shape: of its input, (N, C, ...).

    Raises:
        Error: the layer does not run on that shape.
    """
    return cost(copy.deepcopy(layer).float(), tuple(shape)).total


def _inputs(model: nn.Module, example: Example) -> tuple[Tensor, ...]:
    if isinstance(example, Tensor):
        return (example,)
    shape = [n for n in example if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    if example and len(shape) == len(example):
        like = next((p for p in model.parameters() if p.is_floating_point()), None)
        options: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
        zeros = torch.zeros(shape, **options)
        return (zeros.contiguous(memory_format=torch.channels_last) if zeros.dim() == 4 else zeros,)
    if example and all(isinstance(x, Tensor) for x in example):
        return tuple(x for x in example if isinstance(x, Tensor))
    raise Error(f"cost: the example must be a tensor, tensors, or a shape of integers >= 1, got {example!r}")


# --- rules: executed operation -> multiply-adds ----------------------------------------------------------------------


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    x, weight, transposed = args[0], args[1], bool(args[6])
    per_element = weight.numel() // weight.shape[0]
    return int((x if transposed else out).numel()) * int(per_element)


def _product(left: int) -> Callable[[tuple[Any, ...], Tensor], int]:
    """Every output element is a sum over the last dimension of the left operand."""
    return lambda args, out: int(out.numel()) * int(args[left].shape[-1])


def _attention(args: tuple[Any, ...], out: Any) -> int:
    q, k, v = args[:3]
    return int(math.prod(q.shape[:-1])) * int(k.shape[-2]) * int(q.shape[-1] + v.shape[-1])


_RULES: dict[str, Callable[[tuple[Any, ...], Any], int]] = {
    "convolution": _convolution,
    "mm": _product(0),
    "bmm": _product(0),
    "mv": _product(0),
    "dot": lambda args, out: int(args[0].numel()),
    "addmm": _product(1),
    "addmv": _product(1),
    "baddbmm": _product(1),
    "addbmm": lambda args, out: int(args[1].numel()) * int(args[2].shape[-1]),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
}
_HEAVY = re.compile(r"lstm|gru|rnn|attention|transformer|_fft|conv|linear$|cdist|mm$")
_FREE = ("_unsafe_view", "_reshape_alias")  # views whose schema does not say so


# --- the execution ---------------------------------------------------------------------------------------------------


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every executed operation; module hooks tell whose it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._modules = dict(model.named_modules())
        self.uncounted: set[str] = set()
        self._rows: dict[str, Row] = {}
        self._functions: dict[str, list[str]] = {}
        self._stack: list[str] = [""]
        self._leaf: list[str] = []  # leaf modules that are running; the outermost is credited

    def hook(self) -> list[Any]:
        handles: list[Any] = []
        for path, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(self._enter(path)))
            handles.append(module.register_forward_hook(self._leave(path), with_kwargs=True))
        return handles

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append(path)
            if is_leaf(module):
                self._leaf.append(path)

        return enter

    def _leave(self, path: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self._stack.pop()
            if not is_leaf(module):
                return
            self._leaf.pop()
            if not self._leaf:
                outputs = _tensors(result)
                own = [t for name, t in _state(module) if not name.endswith("num_batches_tracked")]
                moved = _bytes(_tensors((args, kwargs))) + _bytes(outputs) + _bytes(own)
                shape = tuple(outputs[0].shape) if outputs else ()
                self._add(path, _kind(module), shape, 0, moved, 1)

        return leave

    def _add(self, path: str, kind: str, shape: Shape, macs: int, moved: int, calls: int) -> None:
        row = self._rows.get(path) or Row(path, kind, 0, shape, 0, 0, 0)
        self._rows[path] = replace(
            row, shape=shape, macs=row.macs + macs, bytes=row.bytes + moved, calls=row.calls + calls
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        rule = _RULES.get(name)
        macs = rule(args, result) if rule is not None else 0
        if rule is None and _HEAVY.search(name):
            self.uncounted.add(name)
        if self._leaf:
            path = self._leaf[0]
            self._add(path, _kind(self._modules[path]), (), macs, 0, 0)
        elif name not in _FREE and not _only_views(func):
            self._outside(self._stack[-1], name, macs, args, kwargs, result)
        return result

    def _outside(self, path: str, name: str, macs: int, args: Any, kwargs: Any, result: Any) -> None:
        """An operation outside leaf modules: a row of the module that ran it, named after what it ran."""
        outputs = _tensors(result)
        moved = _bytes(_tensors((args, kwargs))) + _bytes(outputs)
        self._functions.setdefault(path, []).append(name.rstrip("_") if name != "_to_copy" else "to")
        self._add(path, "", tuple(outputs[0].shape) if outputs else (), macs, moved, 1)

    def rows(self) -> tuple[Row, ...]:
        """Rows in order of execution, with parameters, then modules that hold parameters and did not run."""
        seen: set[int] = set()
        params: dict[str, int] = {}
        for path, module in self._modules.items():
            own = [p for _, p in _parameters(module) if id(p) not in seen]
            seen.update(id(p) for p in own)
            params[path] = sum(p.numel() for p in own)
        rows = []
        for path, row in self._rows.items():
            functions = ", ".join(dict.fromkeys(self._functions.get(path, ())))
            rows.append(replace(row, kind=row.kind or functions, params=params.pop(path, 0)))
        for path, count in params.items():
            if count:
                rows.append(Row(path, _kind(self._modules[path]), 0, (), count, 0, 0))
        return tuple(rows)


def _kind(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")


def _parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters; what its parametrizations hold belongs to it."""
    yield from module.named_parameters(recurse=is_leaf(module))


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from _parameters(module)
    yield from module.named_buffers(recurse=is_leaf(module))


def _only_views(func: Any) -> bool:
    """Whether an operation hands out its input's memory (view, transpose, slice, detach) and so moves nothing."""
    returns = [r.alias_info for r in func._schema.returns]
    return bool(returns) and all(alias is not None and not alias.is_write for alias in returns)


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested arguments, each once."""
    found = {id(t): t for t in tree_leaves(tree) if isinstance(t, Tensor)}
    return list(found.values())


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
