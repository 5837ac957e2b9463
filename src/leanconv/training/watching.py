"""What goes on inside a network while it learns, layer by layer, from one step per epoch; and where numbers go wrong.

The source says that hidden outputs shift (S11) and that batch norm keeps them normal (S25), that gradients vanish or
explode with depth without it (S12), and that L2 keeps shrinking the weights (S16). Here that is measured, in the
training itself: hooks look at the tensors that pass by, and only in the step that is watched.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from leanconv.graph import Graph, Step, record
from leanconv.measure.moments import moments_of
from leanconv.techniques.batchnorm.places import CONVOLUTIONS, is_activation, is_norm

__all__ = ["Hidden", "Watching", "first_nonfinite", "hidden_layers", "steadiness"]

VALUES = 2**16
"""A layer's moments are taken from the first samples of a batch, as many as have at most so many values, from one."""

BINS = 40
"""Of the histograms: from mean - 4 std to mean + 4 std."""

Place = tuple[str, int, int | None]
"""Module, which call of it, and which of its inputs; None: its output."""

_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_ADDITIONS = frozenset({"add", "iadd", "add_"})
_PASSED = frozenset({"Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "DropBlock2d", "StochasticDepth"})


@dataclass(frozen=True)
class Hidden:
    """A hidden layer and where its output can be seen.

    Attributes:
        path: of the convolution or linear layer that makes it.
        seen: where what the next layer sees is: at the layer itself, the norm or activation after it, or one that reads
            it.
        pre: where what enters the last activation is; None where there is no activation, or it cannot be seen.
    """

    path: str
    seen: Place
    pre: Place | None = None


class Watching:
    """Looks into a network during single training steps.

    As a context around ONE step, forward to optimizer::

        watching = Watching(model, example)
        with watching:
            step()
        row = watching.layers

    Hooks exist only inside the context. They draw no random number and change no tensor, so a training is the same to
    the last bit with them and without. Where a step has several micro-batches, moments are of the first one and
    gradients of all together; with several processes both are this process's own.

    Args:
        model: any module; the network itself, not what wraps it.
        example: its input, (N, C, ...), to find out once what feeds what.

    Attributes:
        layers: of the last step that was watched, plain values, in order of execution, a dict for each module with
            parameters of its own: ``path``, ``kind``; ``weight_norm`` and ``bias_norm``, Euclidean norms after the step
            of what is named bias and of the rest together (S16); ``grad_norm``, that of the gradient of all of the
            layer's parameters, before any clipping (S12; None where none arrived). For hidden convolutions and linear
            layers also, of their outputs after norm and activation, which is what the next layer sees: ``at`` (the
            module where that was seen), ``mean``, ``std`` (1/N), ``skew`` and ``kurtosis`` (excess, 0 for a normal
            distribution; None where all values are equal), ``zeros`` (share of exact zeros) (S11); and the same under
            ``pre`` of what enters the activation, with ``histogram``: counts in 40 equal bins from mean - 4 std to mean
            + 4 std, values beyond left out (S25).

    Source: rows S11, S12, S16 and S25.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        graph = record(model, example)
        self.model = model
        self.hidden = hidden_layers(graph)
        self.layers: list[dict[str, Any]] = []
        self._owners = _owners(model, graph)
        self._handles: list[RemovableHandle] = []
        self._seen: dict[str, dict[str, Any]] = {}
        self._gradients: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._seen, self._gradients = {}, {}
        modules = dict(self.model.named_modules())
        for at, looks in _by_module(self.hidden).items():
            self._handles.append(modules[at].register_forward_hook(self._looking(looks), with_kwargs=True))
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(self._weighing(name))  # type: ignore[no-untyped-call]
                self._handles.append(handle)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.layers = [self._row(path, names) for path, names in self._owners.items()]

    def _looking(self, looks: list[tuple[str, Place, bool]]) -> Callable[..., None]:
        calls = 0

        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal calls
            for path, (at, call, reads), pre in looks:
                if call == calls:
                    tensors = [t for t in tree_leaves(output if reads is None else (args, kwargs)) if _is_tensor(t)]
                    found = _look(tensors[reads or 0], pre)
                    row = self._seen.setdefault(path, {})
                    row.update({"pre": found} if pre else {"at": at, **found})
            calls += 1

        return hook

    def _weighing(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            # After each micro-batch; what has come together by the last one stays.
            if parameter.grad is not None:
                self._gradients[name] = _norm([parameter.grad])

        return hook

    def _row(self, path: str, names: list[str]) -> dict[str, Any]:
        parameters = dict(self.model.named_parameters())
        biases = [name for name in names if name.rpartition(".")[2] == "bias"]
        rest = [name for name in names if name not in biases]
        gradients = [self._gradients[name] for name in names if name in self._gradients]
        row: dict[str, Any] = {"path": path, "kind": type(self.model.get_submodule(path)).__name__}
        row |= {"weight_norm": _norm([parameters[name] for name in rest])} if rest else {}
        row |= {"bias_norm": _norm([parameters[name] for name in biases])} if biases else {}
        row["grad_norm"] = sum(norm**2 for norm in gradients) ** 0.5 if gradients else None
        return row | self._seen.get(path, {})


def steadiness(losses: Sequence[float]) -> dict[str, float | int]:
    """How steadily the loss fell over the steps of an epoch.

    Args:
        losses: of each step, in nats.

    Returns:
        ``roughness``, ``sqrt(1/2 mean (l_t - l_{t-1})^2)``: the standard deviation of a step's loss around its trend,
        0 for fewer than two steps; ``spikes``, the number of steps whose loss is above 1.5 times the median of the 25
        before it (from the 6th step on).

    Source: row S12.
    """
    steps = [(b - a) ** 2 for a, b in itertools.pairwise(losses)]
    before = [(losses[max(0, t - 25) : t], losses[t]) for t in range(5, len(losses))]
    spikes = sum(loss > 1.5 * statistics.median(window) for window, loss in before)
    return {"roughness": math.sqrt(statistics.fmean(steps) / 2) if steps else 0.0, "spikes": spikes}


def hidden_layers(graph: Graph) -> list[Hidden]:
    """The convolutions and linear layers that are not the network's last, with the place where their output is seen.

    From such a layer the way goes on through norms, activations, additions and dropout, as long as each feeds only the
    next; the last norm, activation or addition on it makes what the next layer sees. Where no module puts that out or
    takes it in (functions alone do), the last place before it that can be seen is taken. Two branches that meet in an
    addition are one hidden output, that of the later one.

    Source: rows S11 and S25.
    """
    found: dict[int, Hidden] = {}
    for step in graph.steps:
        if isinstance(step.module, CONVOLUTIONS) and len(step.outputs) == 1:
            way = _way(graph, step)
            if not any(graph.is_output(value) for value in way):
                seen = next(place for value in reversed(way) if (place := _place(graph, value)) is not None)
                found[way[-1]] = Hidden(step.path, seen, _entering(graph, way))
    latest = {hidden.path: hidden for hidden in found.values()}
    return list(latest.values())


def _entering(graph: Graph, way: list[int]) -> Place | None:
    """Where what enters the last activation on the way can be seen."""
    for value in reversed(way):
        maker = graph.producer(value)
        if maker is not None and is_activation(maker):
            return _place(graph, maker.inputs[0])
    return None


def _by_module(hidden: list[Hidden]) -> dict[str, list[tuple[str, Place, bool]]]:
    """Module -> what is to be seen at it: the layer's path, the place, and whether it is what enters an activation."""
    found: dict[str, list[tuple[str, Place, bool]]] = {}
    for one in hidden:
        for place, pre in ((one.seen, False), (one.pre, True)):
            if place is not None:
                found.setdefault(place[0], []).append((one.path, place, pre))
    return found


def _way(graph: Graph, step: Step) -> list[int]:
    """Values from a layer's own output to what the next layer sees."""
    way = [step.outputs[0]]
    passed: list[int] = []
    while (after := graph.only_consumer(step)) is not None and len(after.outputs) == 1:
        if _makes(after):
            way += [*passed, after.outputs[0]]
            passed = []
        elif after.kind in _PASSED or after.kind == "dropout":
            passed.append(after.outputs[0])
        else:
            break
        step = after
    return way


def _makes(step: Step) -> bool:
    if step.module is None:
        return step.kind in _ADDITIONS or is_activation(step)
    return is_norm(step.module) or is_activation(step) or isinstance(step.module, _NORMS)


def _place(graph: Graph, value: int) -> Place | None:
    """Module, call and input at which a value can be seen; None where only functions touch it."""
    maker = graph.producer(value)
    if maker is not None and maker.module is not None:
        return maker.path, maker.number, None
    for reader in graph.consumers(value):
        if reader.module is not None:
            return reader.path, reader.number, reader.inputs.index(value)
    return None


def _owners(model: nn.Module, graph: Graph) -> dict[str, list[str]]:
    """Module with parameters of its own -> their names, in order of execution; what did not run comes last."""
    owners: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    last = len(graph.steps)

    def first(path: str) -> int:
        return min((s.index for name in owners[path] for s in graph.users(name)), default=last)

    return {path: owners[path] for path in sorted(owners, key=first)}


@torch.no_grad()
def _look(output: Tensor, histogram: bool) -> dict[str, Any]:
    """Moments of some samples of a layer's output, and their share of zeros or their histogram."""
    samples = max(1, VALUES // max(1, output[:1].numel()))
    part = output.detach()[:samples]
    if not part.numel():
        return {}
    found = moments_of(part)
    std = found.variance**0.5
    row: dict[str, Any] = {"mean": found.mean, "std": std}
    row |= {"skew": found.skew, "kurtosis": found.kurtosis} if found.variance > 0 else {"skew": None, "kurtosis": None}
    if not histogram:
        return row | {"zeros": 1 - int(torch.count_nonzero(part)) / part.numel()}
    if not (math.isfinite(found.mean) and 0 < std < math.inf):
        return row | {"histogram": None}
    counts = torch.histc(part.float(), BINS, found.mean - 4 * std, found.mean + 4 * std)
    return row | {"histogram": [int(count) for count in counts.tolist()]}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


@torch.no_grad()
def _norm(tensors: list[Tensor]) -> float:
    """Euclidean norm of all entries together, in float64."""
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))


# --- numbers that are no longer finite --------------------------------------------------------------------------------


def first_nonfinite(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Where a training went wrong: run a step's forward and backward once more and look at every number.

    Weights are looked at first, in order of execution, then the images, then what each module takes in and puts out,
    then the loss, then the parameters' gradients, from the last layer back, which is the order in which they arise. The
    modes stay as they are, so batch statistics are the step's own; inside :func:`leanconv.nn.keyed` with the step's
    seed the dropout masks are too. Parameters, their ``.grad``, buffers and random numbers are as before.

    Args:
        model: the network, in the mode of the step.
        x: its input (N, C, ...).
        y: the labels.
        loss_fn: (outputs, y) -> a scalar.

    Returns:
        One clause without a full stop: ``the output of features.3.norm (BatchNorm2d) was the first that was not
        finite: 12 of 4,096 values were nan``.

    Source: row S12.
    """
    for name, parameter in _in_order(model, x):
        if told := _bad(parameter):
            return f"the weights were no longer finite before the step: {told} of {name}"
    if told := _bad(x):
        return f"the images were not finite: {told}"
    with _left_alone(model), torch.enable_grad():
        order: list[str] = []
        seen: list[str] = []
        with _inspecting(model, seen, order):
            loss = loss_fn(model(x), y)
        if seen:
            return seen[0]
        if told := _bad(loss.detach()):
            return f"every layer's activations were finite, the loss was not: {told}"
        return _gradients(model, loss, order)


def _gradients(model: nn.Module, loss: Tensor, order: list[str]) -> str:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    place = {path: i for i, path in enumerate(order)}
    named.sort(key=lambda pair: -place.get(pair[0].rpartition(".")[0], -1))
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True) if named and loss.requires_grad else ()
    for (name, _), gradient in zip(named, found, strict=False):
        if gradient is not None and (told := _bad(gradient)):
            return f"activations and loss were finite, the gradient of {name} was the first that was not: {told}"
    return "run again, every activation, the loss and every gradient of the network were finite"


@contextmanager
def _inspecting(model: nn.Module, seen: list[str], order: list[str]) -> Iterator[None]:
    """Notes the first thing that is not finite, and in which order modules ran."""

    def look(what: str, given: Any) -> None:
        for t in tree_leaves(given):
            if not seen and isinstance(t, Tensor) and (told := _bad(t.detach())):
                seen.append(f"{what} was the first that was not finite: {told}")

    def hooks(path: str, module: nn.Module) -> list[RemovableHandle]:
        name = f"{path or 'the network'} ({type(module).__name__})"

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            order.append(path)
            look(f"what came to {name}", (args, kwargs))

        def after(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            look(f"the output of {name}", output)

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    handles = [handle for path, module in model.named_modules() for handle in hooks(path, module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _left_alone(model: nn.Module) -> Iterator[None]:
    """Buffers and random numbers are put back."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _in_order(model: nn.Module, x: Tensor) -> list[tuple[str, Tensor]]:
    """Named parameters and floating buffers, leaf by leaf in the order of definition."""
    return [*model.named_parameters(), *model.named_buffers()]


def _bad(tensor: Tensor) -> str:
    """``12 of 4,096 values were nan``; empty where all are finite."""
    if not tensor.is_floating_point():
        return ""
    nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    kinds = [f"{n:,} {kind}" for n, kind in ((nan, "nan"), (infinite, "infinite")) if n]
    return f"{' and '.join(kinds)} of {tensor.numel():,} values" if kinds else ""
