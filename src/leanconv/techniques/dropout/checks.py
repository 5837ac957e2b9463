"""What goes wrong with dropout: one function per rule, each with what, why, example, fix and references."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from torch import nn
from torch.nn.modules.conv import _ConvNd

from leanconv.contract import Context, Edit, Finding, Price
from leanconv.graph import Graph, Step
from leanconv.techniques.dropout.flow import DROPPING, drops, readers, weighted
from leanconv.techniques.dropout.layers import Dropout, Dropout2d, Dropout3d
from leanconv.techniques.dropout.surgery import _removal

__all__ = [
    "RULES",
    "after_the_output",
    "before_a_norm",
    "check",
    "elements_of_maps",
    "norm_after_next_layer",
    "on_in_eval",
    "without_effect",
]

# mean^2 / variance of max(z, 0) for z ~ N(0, 1): what BN and ReLU leave.
_RELU = 0.467
_FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")


def check(ctx: Context) -> Iterator[Finding]:
    """Every rule on the context; rules that need a graph say nothing without one."""
    for rule in RULES:
        yield from rule(ctx)


def without_effect(ctx: Context) -> Iterator[Finding]:
    """DR001: dropout with p = 0.

    What:
        A dropout layer, ours or torch's, whose p is 0.
    Why:
        It does nothing in training and in evaluation, yet reads as if the network were regularised.
    Example:
        ``nn.Dropout(p=0.0)``
    Fix:
        remove it, or give it a p.
    References:
        row S2 of the source.
    """
    seen: dict[int, list[str]] = {}
    modules = dict(ctx.model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        if isinstance(module, DROPPING) and module.p == 0:
            seen.setdefault(id(module), []).append(path)
    for paths in seen.values():
        removal = _removal(modules[paths[0]], paths)
        fix = (removal,) if isinstance(removal, Edit) else ()
        yield Finding("DR001", paths[0], "note", f"{paths[0]}: dropout with p = 0 does nothing", fix)


def before_a_norm(ctx: Context) -> Iterator[Finding]:
    """DR002: dropout straight before a norm layer with running statistics.

    What:
        A dropout layer whose output reaches a batch norm with no layer with weights and no activation in between.
        Needs a graph.
    Why:
        Dropout raises the variance in training only: by (1 + p m) / (1 - p), where m = mean^2 / variance. The norm
        learns the raised variance, and evaluation, where it is not raised, gets scaled by another number than training.
    Example:
        ``nn.Sequential(conv, nn.Dropout2d(0.3), nn.BatchNorm2d(64))``
    Fix:
        move dropout behind the last norm: before the last Linear, say.
    References:
        Li et al. 2018, arXiv 1801.05134.
    """
    for graph, step, p in _dropouts(ctx):
        for reader, _ in readers(graph, step.outputs[0]):
            if _running(reader):
                message = f"{step.path}: dropout (p={p:g}) straight before the norm {reader.path} shifts its variance"
                yield Finding("DR002", step.path, "warning", message, prices=_shift(p))
                break


def after_the_output(ctx: Context) -> Iterator[Finding]:
    """DR003: dropout on what the last layer made.

    What:
        A dropout layer from which only the network's output is reached, no layer with weights. Needs a graph.
    Why:
        It zeroes predictions, not features: the loss then punishes the network for answers it was not allowed to give.
    Example:
        ``nn.Sequential(features, nn.Linear(512, 10), nn.Dropout(0.5))``
    Fix:
        put it before the last layer.
    References:
        Srivastava et al. 2014, section 4: dropout acts on inputs and hidden units.
    """
    for graph, step, p in _dropouts(ctx):
        if not any(weighted(later) for later in _downstream(graph, step)) and _reaches_output(graph, step):
            message = f"{step.path}: dropout (p={p:g}) acts on the network's output, after the last layer with weights"
            yield Finding("DR003", step.path, "warning", message)


def elements_of_maps(ctx: Context) -> Iterator[Finding]:
    """DR004: single elements of convolution maps are stopped.

    What:
        A Dropout that stops single elements stands on maps that a convolution reads next. Needs a graph.
    Why:
        Neighbouring pixels of a map hold much the same, so what is stopped can be read next to it, and little is taken
        away. Whole channels, or blocks, are.
    Example:
        ``nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(64, 64, 3))``
    Fix:
        ``Dropout2d``, or ``DropBlock2d``.
    References:
        Tompson et al. 2015, arXiv 1411.4280; Ghiasi et al. 2018, arXiv 1810.12890.
    """
    for graph, step, p in _dropouts(ctx):
        shape = graph.shape(step.inputs[0])
        kind = {4: Dropout2d, 5: Dropout3d}.get(len(shape))
        single = type(step.module) in (Dropout, nn.Dropout)
        convolves = any(isinstance(reader.module, _ConvNd) for reader, _ in readers(graph, step.outputs[0]))
        if single and kind is not None and prod(shape[2:]) > 1 and convolves and step.module is not None:
            new = kind(p, getattr(step.module, "mask", "sample"), getattr(step.module, "count", "bernoulli"))
            new.training = step.module.training
            once = len(graph.calls(step.path)) == 1
            put = dict.fromkeys(graph.aliased(step.path), new)
            fix = (Edit(put, f"{step.kind} becomes {new}", "exact"),) if once else ()
            message = f"{step.path}: {step.kind} stops single pixels of maps; {kind.__name__} stops whole channels"
            yield Finding("DR004", step.path, "note", message, fix)


def on_in_eval(ctx: Context) -> Iterator[Finding]:
    """DR005: functional dropout that is on in eval mode.

    What:
        ``F.dropout`` ran with ``training=True`` although the network was in eval mode. Needs a graph.
    Why:
        ``training`` is True by default, so ``F.dropout(x, 0.5)`` drops in evaluation too: predictions are noisy and
        differ from call to call.
    Example:
        ``x = F.dropout(x, 0.5)``
    Fix:
        ``F.dropout(x, 0.5, self.training)``, or a layer.
    References:
        pytorch#26338.
    """
    for step in ctx.graph.steps if ctx.graph is not None else ():
        given = step.arguments
        training = given.get("training", given.get("train", given.get("2", True)))
        if (
            step.module is None
            and step.kind.strip("_") in _FUNCTIONS
            and training
            and given.get("p", given.get("1")) != 0
        ):
            where = step.path or "the network"
            message = f"{where}: {step.kind} with training=True drops in eval mode too; pass training=self.training"
            yield Finding("DR005", step.path, "error", message)


def norm_after_next_layer(ctx: Context) -> Iterator[Finding]:
    """DR006: a batch norm follows dropout, one layer with weights later.

    What:
        Dropout, a convolution or Linear, then a batch norm. Needs a graph.
    Why:
        The layer between hands the raised variance on: after BN and ReLU it is (1 + 0.467 p) / (1 - p) times as large
        in training as in evaluation, and it multiplies with every such step. Measured on untrained networks: 1.17,
        1.63, 2.54 for p = 0.1, 0.3, 0.5.
    Example:
        ``nn.Sequential(nn.Dropout2d(0.3), nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64))``
    Fix:
        dropout after the last norm only, or a smaller p.
    References:
        Li et al. 2018, arXiv 1801.05134.
    """
    for graph, step, p in _dropouts(ctx):
        norm = _norm_behind(graph, step)
        if norm is not None:
            message = f"{step.path}: dropout (p={p:g}) raises, through a layer, the variance that {norm.path} learns"
            yield Finding("DR006", step.path, "note", message, prices=_shift(p))


RULES = (without_effect, before_a_norm, after_the_output, elements_of_maps, on_in_eval, norm_after_next_layer)


def _dropouts(ctx: Context) -> Iterator[tuple[Graph, Step, float]]:
    """Active dropout layers in the graph, each path once."""
    seen: set[str] = set()
    for step in ctx.graph.steps if ctx.graph is not None else ():
        p = getattr(step.module, "p", 0)
        if drops(step) and p > 0 and step.path not in seen and ctx.graph is not None:
            seen.add(step.path)
            yield ctx.graph, step, p


def _running(step: Step) -> bool:
    """A norm layer that keeps statistics for evaluation."""
    module = step.module
    return module is not None and module._buffers.get("running_var") is not None


def _norm_behind(graph: Graph, step: Step) -> Step | None:
    """The first norm that a dropout reaches through depthwise convolutions or one other layer with weights."""
    for reader, between in readers(graph, step.outputs[0], filters=True):
        if _running(reader) and any(weighted(s) for s in between):
            return reader
        behind = (n for v in reader.outputs for n, _ in readers(graph, v))
        norm = next((n for n in behind if _running(n)), None) if weighted(reader) else None
        if norm is not None:
            return norm
    return None


def _downstream(graph: Graph, step: Step) -> Iterator[Step]:
    reached = set(step.outputs)
    for later in graph.steps[step.index + 1 :]:
        if reached & set(later.inputs):
            reached |= set(later.outputs)
            yield later


def _reaches_output(graph: Graph, step: Step) -> bool:
    values = (*step.outputs, *(v for later in _downstream(graph, step) for v in later.outputs))
    return any(graph.is_output(value) for value in values)


def _shift(p: float) -> tuple[Price, ...]:
    """Variance in training over variance in evaluation, (1 + p m) / (1 - p): m = 0, after ReLU, and 1."""
    if p >= 1:
        return ()
    value, low, high = ((1 + p * m) / (1 - p) for m in (_RELU, 0.0, 1.0))
    return (Price("variance shift", value, low, high, "times", "predicted"),)
