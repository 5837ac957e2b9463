"""What goes wrong with separable convolution: one function per rule."""

from __future__ import annotations

from collections.abc import Iterator
from math import log

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from leanconv.contract import Context, Edit, Finding, Price
from leanconv.techniques.separable.blocks import _Separable
from leanconv.techniques.separable.formulas import ratio, separable_parameters, standard_parameters
from leanconv.techniques.separable.layers import DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d, _Depthwise
from leanconv.techniques.separable.surgery import _bound, _modules, _removal, _shared, is_depthwise

__all__ = ["RULES", "activation_without_norm", "check", "decay_on_depthwise", "loses", "slow_multiplier"]

_OURS = {nn.Conv1d: DepthwiseConv1d, nn.Conv2d: DepthwiseConv2d, nn.Conv3d: DepthwiseConv3d}
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_ACTIVATIONS = frozenset(
    ("relu", "relu6", "leakyrelu", "prelu", "elu", "selu", "gelu", "silu", "hardswish", "hardtanh", "sigmoid", "tanh")
)


def check(ctx: Context) -> Iterator[Finding]:
    """Every rule on the context; rules that lack what they need say nothing."""
    for rule in RULES:
        yield from rule(ctx)


def loses(ctx: Context) -> Iterator[Finding]:
    """SC001: a separable layer with no fewer parameters than the dense convolution in its place.

    What:
        A separable layer whose ratio m (1 / Cout + 1 / K) is 1 or more: one output channel, a kernel of one, or a depth
        multiplier that eats the saving up.
    Why:
        Separable convolution saves where many outputs share the filtered channels and the kernel has area. Elsewhere it
        costs more parameters and multiply-adds than the dense one, and can express less.
    Example:
        ``SeparableConv2d(64, 1, 3)``: 640 weights, where ``Conv2d(64, 1, 3)`` has 576.
    Fix:
        the dense convolution that computes the same, where nothing stands between the halves.
    References:
        Howard et al. 2017, section 3.1; row S19 of the source.
    """
    shared = _shared(ctx.model)
    for paths, module in _modules(ctx.model):
        if not isinstance(module, _Separable) or module.pointwise.groups > 1:
            continue
        kernel, m = module.depthwise.kernel_size, module.depth_multiplier
        share = ratio(module.out_channels, kernel, m)
        if share < 1:
            continue
        here = separable_parameters(module.in_channels, module.out_channels, kernel, m)
        dense = standard_parameters(module.in_channels, module.out_channels, kernel)
        message = f"{paths[0] or 'the network'}: {here:,} separable weights where a dense convolution has {dense:,}"
        bound = any(_bound(part, shared) for part in module.modules())
        fix: tuple[Edit, ...] = () if bound or module.between() else (_removal(ctx, paths, module),)
        price = Price("weights against dense", share, share, share, "x", "predicted")
        yield Finding("SC001", paths[0], "warning", message, fix, (price,))


def decay_on_depthwise(ctx: Context) -> Iterator[Finding]:
    """SC002: weight decay acts on depthwise filters.

    What:
        A group of the optimizer with ``weight_decay`` holds weights of depthwise convolutions. Needs the optimizer.
    Why:
        A depthwise filter has K weights, so there is little to overfit with, and a filter that decays to 0 silences its
        channel in every output. MobileNet's authors put very little or no decay on them. The text's equations decay
        every weight, these too, so this is a note.
    Example:
        ``torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=4e-5)`` for a MobileNet
    Fix:
        ``l2: {depthwise: false}`` in the recipe.
    References:
        Howard et al. 2017, section 3.2; mmdetection#2063; row S15 of the source.
    """
    if ctx.optimizer is None:
        return
    depthwise = [m for m in ctx.model.modules() if isinstance(m, _ConvNd) and is_depthwise(m)]
    filters = {id(p) for m in depthwise for name, p in m.named_parameters() if not name.endswith("bias")}
    for i, group in enumerate(ctx.optimizer.param_groups):
        hit = sum(id(p) in filters for p in group["params"])
        decay = float(group.get("weight_decay") or 0)
        if hit and decay:
            message = f"weight_decay={decay:g} acts on {hit} depthwise filters"
            yield Finding(
                "SC002", f"optimizer.param_groups[{i}]", "note", message, prices=_half_life(group["lr"], decay)
            )


def activation_without_norm(ctx: Context) -> Iterator[Finding]:
    """SC003: a depthwise convolution feeds an activation with no norm before it, in a network that has norms.

    What:
        The one reader of a depthwise convolution's output is an activation, and the network normalises elsewhere. Needs
        a graph.
    Why:
        Each output of a depthwise convolution is a sum of K products only, of one channel: its scale varies from
        channel to channel more than a dense one's, and a channel that falls below 0 everywhere is dead. Batch norm
        stands before the activation, here as elsewhere.
    Example:
        ``SeparableConv2d(64, 128, 3, act_layer=nn.ReLU)`` in a network with batch norm
    Fix:
        ``norm_layer=leanconv.nn.BatchNorm2d``, or the technique batchnorm.
    References:
        Howard et al. 2017, figure 3; rows S10 and S18 of the source.
    """
    if ctx.graph is None or not any(_is_norm(m) for m in ctx.model.modules()):
        return
    for step in ctx.graph.steps:
        if isinstance(step.module, _ConvNd) and is_depthwise(step.module):
            reader = ctx.graph.only_consumer(step)
            if reader is not None and _is_activation(reader.kind):
                message = f"{step.path}: {reader.kind} follows the depthwise convolution with no norm in between"
                yield Finding("SC003", step.path, "note", message)


def slow_multiplier(ctx: Context) -> Iterator[Finding]:
    """SC004: torch's depthwise convolution with a multiplier of 2 to 4, for which torch has no fast path.

    What:
        ``nn.Conv*d`` with groups = in_channels and two to four outputs for each.
    Why:
        torch runs it as a general grouped convolution. As that many depthwise convolutions of multiplier 1 it takes, on
        a CPU, 0.4 to 0.95 of the time of a training step in 1-D and 2-D, and 0.2 to 0.4 of a forward pass in 3-D.
    Example:
        ``nn.Conv2d(64, 128, 5, groups=64)``
    Fix:
        ``DepthwiseConv2d(64, 5, depth_multiplier=2)``: the same weights, the same outputs.
    References:
        the measurements in ``leanconv.techniques.separable.layers.runs_split``.
    """
    shared = _shared(ctx.model)
    for paths, module in _modules(ctx.model):
        if type(module) not in _OURS or not isinstance(module, _ConvNd) or isinstance(module, _Depthwise):
            continue
        multiplier = module.out_channels // module.in_channels
        if module.groups == module.in_channels > 1 and 2 <= multiplier <= 4:
            message = f"{paths[0]}: torch runs a depth multiplier of {multiplier} as a general grouped convolution"
            fix = () if _bound(module, shared) else (_faster(paths, module, multiplier),)
            yield Finding("SC004", paths[0], "note", message, fix)


RULES = (loses, decay_on_depthwise, activation_without_norm, slow_multiplier)


def _faster(paths: list[str], module: _ConvNd, multiplier: int) -> Edit:
    layer = _OURS[type(module)](
        module.in_channels, module.kernel_size, module.stride, module.padding, module.dilation,
        module.bias is not None, module.padding_mode, "meta", module.weight.dtype, multiplier,
    )  # fmt: skip
    layer.weight, layer.bias = module.weight, module.bias
    layer.train(module.training)
    return Edit(dict.fromkeys(paths, layer), "the same convolution, run as several of multiplier 1", "exact")


def _half_life(rate: float, decay: float) -> tuple[Price, ...]:
    """Steps in which decay alone halves a weight at the present learning rate: ln 2 / (lr * weight_decay)."""
    if float(rate) <= 0:
        return ()
    steps = log(2) / (float(rate) * decay)
    return (Price("half-life of a filter under decay alone", steps, steps, steps, "steps", "predicted"),)


def _is_norm(module: nn.Module) -> bool:
    """torch's norms, and those of other techniques, which this one does not import: known by their name."""
    return isinstance(module, _NORMS) or type(module).__name__.startswith("BatchNorm")


def _is_activation(kind: str) -> bool:
    return kind.lower().rstrip("_").replace("_", "") in _ACTIVATIONS
