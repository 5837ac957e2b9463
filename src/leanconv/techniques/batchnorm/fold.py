"""A batch norm into the convolution or Linear before it: equal in eval, or refused with the reason."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from leanconv.contract import Context, Edit, Refusal
from leanconv.graph import Graph, Step
from leanconv.techniques.batchnorm.layers import BatchNorm
from leanconv.techniques.batchnorm.places import CONVOLUTIONS, channel_count, is_norm, shared
from leanconv.techniques.batchnorm.surgery import NO_GRAPH, left_behind

__all__ = ["fold", "folded", "unfit_producer"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# What may run inside a convolution whose forward is not torch's: it, its padding, and questions. Anything else could
# change what its weights mean (weight standardisation, say).
KNOWN_OPS = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "pad"}
    | {"shape", "size", "dim", "ndim", "dtype", "device", "stride", "numel", "is_contiguous", "contiguous"}
)


def fold(ctx: Context) -> list[Edit | Refusal]:
    """Batch norms, ours and torch's, into the layer that feeds them: W' = a W, b' = a (b - mean) + beta.

    Here a = gamma / sqrt(var + eps). Grouped, depthwise and transposed convolutions of any dimension and Linear;
    computed in float64 and cast back. An activation inside the batch norm stays in its place as a module. Nothing
    that would change an eval output is proposed: such places come back as refusals (pytorch#197539 folds a convolution
    that is called twice).
    """
    paths = [p for p, m in ctx.model.named_modules() if is_norm(m)]
    if ctx.graph is None:
        return [Refusal(path, NO_GRAPH) for path in paths]
    return [_fold_one(ctx.graph, path, ctx.model.get_submodule(path)) for path in paths]


def _fold_one(graph: Graph, path: str, norm: nn.Module) -> Edit | Refusal:
    why = _unfit_norm(graph, path, norm)
    if why:
        return Refusal(path, why)
    step = graph.calls(path)[0]
    producer = graph.producer(step.inputs[0])
    why = unfit_producer(graph, producer, step, norm)
    if why or producer is None or producer.module is None:
        return Refusal(path, why)
    new, left = folded(producer.module, norm), left_behind(norm)
    put: dict[str, nn.Module] = dict.fromkeys(graph.aliased(producer.path), new)
    put |= dict.fromkeys(graph.aliased(path), left)
    return Edit(put, f"{path} folded into {producer.path}", "exact")


def _unfit_norm(graph: Graph, path: str, norm: nn.Module) -> str:
    calls = graph.calls(path)
    if not calls:
        return "it did not run on the example"
    if len(calls) > 1:
        return f"it is called {len(calls)} times"
    if path == "":
        return "the network is this one layer"
    if norm.running_mean is None:
        return "it has no running statistics, so that eval depends on the batch"
    if type(norm).forward not in (BatchNorm.forward, TorchBatchNorm.forward):
        return f"{type(norm).__name__} has a forward of its own"
    if graph.hooked(path):
        return "it has hooks or parametrizations"
    if len(calls[0].inputs) != 1 or len(calls[0].outputs) != 1:
        return "it does not map one tensor to one"
    return ""


def unfit_producer(graph: Graph, producer: Step | None, step: Step, norm: nn.Module) -> str:
    """Why the batch norm of ``step`` cannot be folded into the step before it; empty where it can."""
    if producer is None:
        return "it normalises the network's input"
    if not isinstance(producer.module, CONVOLUTIONS):
        return f"the step before it is {producer.kind}, not a convolution or Linear"
    calls = len(graph.calls(producer.path))
    if calls > 1:
        return f"{producer.path} is called {calls} times"
    only = graph.only_consumer(producer)
    if only is None or only.index != step.index:
        return f"the output of {producer.path} is used elsewhere too, or returned"
    if graph.hooked(producer.path) or not isinstance(producer.module._parameters.get("weight"), nn.Parameter):
        return f"{producer.path} has hooks or parametrizations"
    if not KNOWN_OPS.issuperset(producer.ops) or producer.inplace:
        return f"{producer.path} ({producer.kind}) does more than its convolution or product"
    for one in (producer, step):
        name = shared(graph, one)
        if name is not None:
            return f"{name} is shared"
    return _unfit_shape(graph, producer, norm)


def _unfit_shape(graph: Graph, producer: Step, norm: nn.Module) -> str:
    layer, shape = producer.module, graph.shape(producer.outputs[0])
    assert layer is not None
    dims = 2 if isinstance(layer, nn.Linear) else 2 + len(layer.kernel_size)  # type: ignore[arg-type]
    if len(shape) != dims or shape[1] != channel_count(layer) or shape[1] != norm.num_features:
        return f"the channels of {producer.path} (output {shape}) are not those of the batch norm"
    return ""


@torch.no_grad()
def folded(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """A copy of a convolution or Linear that also does what the batch norm after it does in eval, activation apart.

    With a = gamma / sqrt(var + eps) per output channel: W' = a W, b' = a (b - mean) + beta, in float64.

    Args:
        layer: Conv1d/2d/3d, ConvTranspose1d/2d/3d, of any groups, or Linear.
        norm: a batch norm with running statistics, ours or torch's.

    Returns:
        A copy with a bias, in the dtype of the layer's weight.
    """
    mean, var = (_double(norm, n, 0) for n in ("running_mean", "running_var"))
    scale = _double(norm, "weight", 1) / (var + float(norm.eps)).sqrt()  # type: ignore[arg-type]
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias = layer.bias.double() if isinstance(layer.bias, Tensor) else torch.zeros_like(mean)
    new = copy.deepcopy(layer)
    flag = weight.requires_grad
    new.weight = nn.Parameter((weight.double() * _outputs(layer, scale)).to(weight), requires_grad=flag)
    new.bias = nn.Parameter((scale * (bias - mean) + _double(norm, "bias", 0)).to(weight.dtype), requires_grad=flag)
    return new


def _double(norm: nn.Module, name: str, default: float) -> Tensor:
    value = getattr(norm, name)
    if isinstance(value, Tensor):
        return value.detach().double()
    return torch.full_like(norm.running_mean, default, dtype=torch.float64)  # type: ignore[arg-type]


def _outputs(layer: nn.Module, scale: Tensor) -> Tensor:
    """A value per output channel, so that it meets the weight: (Cout, Cin/g, ...), transposed (Cin, Cout/g, ...)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    ones = [1] * (weight.dim() - 2)
    if not isinstance(layer, TRANSPOSED):
        return scale.view(-1, 1, *ones)
    groups = layer.groups
    each = weight.shape[0] // groups
    return scale.view(groups, 1, -1).expand(groups, each, -1).reshape(weight.shape[0], -1, *ones)
