"""What goes wrong with batch normalisation: one function per rule, each with what, why, example, fix and references."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from math import sqrt

import torch
from torch import Tensor, nn

from leanconv.contract import Context, Edit, Finding, Price
from leanconv.graph import Graph, Step
from leanconv.techniques.batchnorm.fit import unfit_producer
from leanconv.techniques.batchnorm.places import back, is_activation, is_norm
from leanconv.techniques.batchnorm.surgery import without_bias

__all__ = [
    "RULES",
    "activation_first",
    "cancelled_bias",
    "check",
    "eps_dominates",
    "keras_momentum",
    "no_running_statistics",
    "tiny_batch",
    "unsettled_statistics",
]

TINY = 8


def check(ctx: Context) -> Iterator[Finding]:
    """Every rule on the context; rules that lack what they need say nothing."""
    for rule in RULES:
        yield from rule(ctx)


def activation_first(ctx: Context) -> Iterator[Finding]:
    """BN001: the batch norm stands after the activation.

    What:
        An activation feeds a batch norm (dropout and max pooling between them do not count). Needs the graph.
    Why:
        The source normalises the features before the activation (row S10): the activation then gets inputs of mean 0
        and deviation 1, half of them on each side of a ReLU. After it, the layer normalises what was already cut off.
        Some networks do this on purpose; it trains, but it is another network than the paper's.
    Example:
        ``nn.Sequential(conv, nn.ReLU(), BatchNorm2d(16))``
    Fix:
        ``nn.Sequential(conv, BatchNorm2d(16), nn.ReLU())``
    References:
        Row S10 of the source; Ioffe & Szegedy 2015, section 3.2.
    """
    for step in _norm_steps(ctx):
        assert ctx.graph is not None
        before, _ = back(ctx.graph, step)
        if before is not None and (is_activation(before) or getattr(before.module, "activation", None) is not None):
            message = (
                f"{step.path}: the batch norm stands after {before.kind}; the source puts it before the activation"
            )
            yield Finding("BN001", step.path, "warning", message)


def cancelled_bias(ctx: Context) -> Iterator[Finding]:
    """BN002: a bias that the batch norm after it cancels.

    What:
        A convolution or Linear with a bias feeds only a batch norm. Needs the graph.
    Why:
        The batch norm subtracts the mean, and the bias with it: its gradient in training is 0 but for rounding, and it
        costs parameters, optimizer state and, under weight decay, a drift that means nothing.
    Example:
        ``nn.Sequential(nn.Conv2d(3, 16, 3), BatchNorm2d(16))``
    Fix:
        ``nn.Conv2d(3, 16, 3, bias=False)``; on a trained network the running mean moves by the bias (the offered edit).
    References:
        Ioffe & Szegedy 2015, section 3.2: "the bias b can be ignored".
    """
    for step in _norm_steps(ctx):
        graph, norm = ctx.graph, step.module
        assert graph is not None
        assert norm is not None
        producer = graph.producer(step.inputs[0])
        if len(graph.calls(step.path)) > 1 or unfit_producer(graph, producer, step, norm):
            continue
        if producer is None or producer.module is None or not isinstance(producer.module.bias, Tensor):
            continue
        size = producer.module.bias.numel()
        price = Price("parameters", size, size, size, "parameters", "predicted")
        message = f"{producer.path}: its bias is cancelled by {step.path}; use bias=False"
        fix = _drop_bias(graph, producer, step)
        yield Finding("BN002", producer.path, "note", message, fix, (price,))


def keras_momentum(ctx: Context) -> Iterator[Finding]:
    """BN003: a momentum that looks like another library's.

    What:
        momentum >= 0.9. Needs the network alone.
    Why:
        Here, as in torch, momentum is the weight of the newest batch: 0.9 forgets all but the last one or two batches,
        so that evaluation hangs on them. Keras, TensorFlow and the papers count the old value's weight: their 0.9 is
        0.1 here, their 0.99 is 0.01.
    Example:
        ``BatchNorm2d(16, momentum=0.99)``
    Fix:
        ``BatchNorm2d(16, momentum=0.01)``
    References:
        Keras BatchNormalization; docs/source.md, conventions.
    """
    for path, norm in _norms(ctx.model).items():
        momentum = getattr(norm, "momentum", None)
        if isinstance(momentum, float | int) and momentum >= 0.9:
            message = (
                f"{path}: momentum={momentum:g} is the newest batch's weight here; Keras' {momentum:g} "
                f"is momentum={1 - momentum:.2g}"
            )
            yield Finding("BN003", path, "warning", message)


def eps_dominates(ctx: Context) -> Iterator[Finding]:
    """BN004: eps is not small beside the variance.

    What:
        In half of the channels or more, eps exceeds a tenth of the running variance. Needs trained statistics.
    Why:
        The output's variance is gamma^2 s^2 / (s^2 + eps), which then is clearly below gamma^2: the layer scales, but
        normalises no more. torch's eps is 1e-5, Keras' 1e-3; activations of small scale meet the second.
    Example:
        ``BatchNorm2d(16, eps=1e-3)`` on features of deviation 0.01
    Fix:
        ``BatchNorm2d(16, eps=1e-5)``, or features of a larger scale
    References:
        Row S9b of the source; docs/source.md, conventions.
    """
    for path, norm in _norms(ctx.model).items():
        var = norm.running_var
        if not isinstance(var, Tensor) or _fresh(norm):
            continue
        eps = float(norm.eps)  # type: ignore[arg-type]
        share = float((eps / (var.double() + eps).clamp_min(1e-300)).median())
        if share > 1 / 11:
            price = Price("output variance lost", share, share, share, "share", "measured")
            message = f"{path}: eps={eps:g} makes up {share:.0%} of variance + eps in the median channel"
            yield Finding("BN004", path, "warning", message, prices=(price,))


def no_running_statistics(ctx: Context) -> Iterator[Finding]:
    """BN005: evaluation depends on the batch.

    What:
        A batch norm with track_running_stats=False. Needs the network alone.
    Why:
        In eval it normalises with the statistics of whatever batch arrives: the answer for an image depends on its
        neighbours, one image alone may raise, and the layer cannot be folded or exported.
    Example:
        ``BatchNorm2d(16, track_running_stats=False)``
    Fix:
        ``BatchNorm2d(16)``, then ``precise_statistics(model, batches)``
    References:
        Ioffe & Szegedy 2015, section 3.1: inference with population statistics.
    """
    for path, norm in _norms(ctx.model).items():
        if norm.running_mean is None:
            message = f"{path}: without running statistics, an output in eval depends on the rest of its batch"
            yield Finding("BN005", path, "warning", message)


def tiny_batch(ctx: Context) -> Iterator[Finding]:
    """BN006: batch statistics from a tiny batch.

    What:
        The run trains with fewer than 8 images a batch, and a batch norm is not frozen. Needs the run's record.
    Why:
        The variance of a batch of N independent values is off by about sqrt(2 / (N - 1)) of itself: at N = 2 the layer
        trains on noise, and evaluation differs from training. Pixels of one image are no independent values.
    Example:
        ``training: {batch: 2}``
    Fix:
        A larger batch, or :func:`freeze` when fine-tuning.
    References:
        Wu & He 2018 (Group Normalization), figure 1; yolov5#1630.
    """
    size = _batch_size(ctx.run)
    learning = [p for p, m in _norms(ctx.model).items() if not getattr(m, "frozen", False)]
    if size is None or size >= TINY or not learning:
        return
    noise = sqrt(2 / max(size - 1, 1))
    price = Price("noise of the batch variance", noise, noise, noise, "share", "predicted")
    more = f" and {len(learning) - 1} more" if len(learning) > 1 else ""
    message = f"{learning[0]}{more}: batches of {size} give a variance that is off by {noise:.0%}"
    yield Finding("BN006", learning[0], "warning", message, prices=(price,))


def unsettled_statistics(ctx: Context) -> Iterator[Finding]:
    """BN007: eval mode with running statistics that were never learnt.

    What:
        The network is in eval mode and a batch norm still has mean 0 and variance 1. Needs the network alone.
    Why:
        It then normalises nothing: eval is far worse than training.
    Example:
        A network that was trained with ``momentum=0``, or surgery without calibration.
    Fix:
        ``precise_statistics(model, batches)``
    References:
        pytorch#4741, pytorch#5406.
    """
    for path, norm in _norms(ctx.model).items():
        if not norm.training and _fresh(norm):
            message = f"{path}: evaluates with mean 0 and variance 1, as if no batch was ever seen"
            yield Finding("BN007", path, "warning", message)


RULES = (
    activation_first,
    cancelled_bias,
    keras_momentum,
    eps_dominates,
    no_running_statistics,
    tiny_batch,
    unsettled_statistics,
)


def _norms(model: nn.Module) -> dict[str, nn.Module]:
    return {p: m for p, m in model.named_modules() if is_norm(m)}


def _norm_steps(ctx: Context) -> list[Step]:
    return [s for s in ctx.graph.steps if is_norm(s.module) and len(s.inputs) == 1] if ctx.graph is not None else []


def _fresh(norm: nn.Module) -> bool:
    """Whether the running statistics are still those of the beginning, mean 0 and variance 1."""
    mean, var = norm.running_mean, norm.running_var
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return False
    return not bool(mean.any()) and bool((var == 1).all())


def _batch_size(run: Mapping[str, object] | None) -> int | None:
    """``training.batch`` of the recipe in a run's record."""
    recipe = run.get("recipe", run) if run is not None else None
    training = recipe.get("training") if isinstance(recipe, Mapping) else None
    size = training.get("batch") if isinstance(training, Mapping) else None
    return size if isinstance(size, int) else None


@torch.no_grad()
def _drop_bias(graph: Graph, producer: Step, step: Step) -> tuple[Edit, ...]:
    """The exact edit: the producer without bias, the running mean without it too."""
    layer, norm = producer.module, step.module
    if layer is None or norm is None or norm.running_mean is None or "" in (producer.path, step.path):
        return ()
    moved = copy.deepcopy(norm)
    moved.running_mean.copy_(norm.running_mean.double() - layer.bias.double())  # type: ignore
    bare = without_bias(layer)
    put = dict.fromkeys(graph.aliased(producer.path), bare) | dict.fromkeys(graph.aliased(step.path), moved)
    return (Edit(put, f"{producer.path}: bias moved into the running mean of {step.path}", "exact"),)
