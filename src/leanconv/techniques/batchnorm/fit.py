"""Which batch norm may go into which layer without changing an eval output; if none, the reason."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from leanconv.graph import Graph, Step, is_leaf
from leanconv.techniques.batchnorm.affine import Affine, fused, unfit_statistics
from leanconv.techniques.batchnorm.layers import BatchNorm, _put_back, _use_running
from leanconv.techniques.batchnorm.places import CONVOLUTIONS, TRANSPOSED, channel_count, is_norm, shared

__all__ = ["after", "agrees", "before", "border", "functional", "hooked", "plain", "unfit_norm", "unfit_producer"]

FREEZING = {_use_running, _put_back}
FORWARDS = (BatchNorm.forward, TorchBatchNorm.forward, nn.SyncBatchNorm.forward)
# What may run inside a layer whose forward is its own: it, padding, questions, what only moves numbers, sums and
# products. All make polynomials of the input, and two polynomials that agree on one random input are the same
# (:func:`agrees`). Anything else could do what no trial shows.
KNOWN_OPS = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "pad"}
    | {"shape", "size", "dim", "ndim", "dtype", "device", "stride", "numel", "is_contiguous", "contiguous"}
    | {"view", "reshape", "flatten", "movedim", "permute", "transpose", "squeeze", "unsqueeze", "expand", "view_as"}
    | {"stack", "cat", "unbind", "chunk", "split", "narrow", "__getitem__", "requires_grad", "to", "type", "is_cuda"}
    | {"add", "sub", "mul", "neg"}
)
PASSIVE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
PASSIVE_NAMES = frozenset({"Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "DropBlock2d", "StochasticDepth"})
PASSIVE_FUNCTIONS = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout"})
FLATTENING = frozenset({"flatten", "reshape", "view", "squeeze"})


def unfit_norm(graph: Graph, path: str, norm: nn.Module) -> str:
    """Why a batch norm goes nowhere; empty where it may."""
    calls = graph.calls(path)
    if not calls:
        return "it did not run on the example"
    if len(calls) > 1:
        return f"it is called {len(calls)} times"
    if path == "":
        return "the network is this one layer"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics, so that eval depends on the batch"
    if type(norm).forward not in FORWARDS or "forward" in vars(norm):
        return f"{type(norm).__name__} has a forward of its own"
    if hooked(norm):
        return "it has hooks or parametrizations"
    if len(calls[0].inputs) != 1 or len(calls[0].outputs) != 1:
        return "it does not map one tensor to one"
    name = shared(graph, calls[0])
    return f"{name} is shared" if name is not None else unfit_statistics(norm)


def hooked(module: nn.Module) -> bool:
    """Whether it has hooks or parametrizations, those of :func:`leanconv.techniques.batchnorm.freeze` apart."""
    hooks = {*module._forward_pre_hooks.values(), *module._forward_hooks.values()} - FREEZING
    others = module._backward_hooks or module._backward_pre_hooks
    return bool(hooks or others or hasattr(module, "parametrizations"))


# --- back, into the layer that feeds it ------------------------------------------------------------------------------


def before(graph: Graph, step: Step) -> tuple[Step | None, Step]:
    """The step that feeds this one, past what is the identity in eval; and the step that reads its output."""
    reader: Step = step
    producer = graph.producer(step.inputs[0])
    while producer is not None and _passive(graph, producer) and graph.only_consumer(producer) == reader:
        reader, producer = producer, graph.producer(producer.inputs[0])
    return producer, reader


def _passive(graph: Graph, step: Step) -> bool:
    """Identity and dropout: nothing in eval."""
    if len(step.inputs) != 1 or len(step.outputs) != 1 or step.inplace:
        return False
    if step.module is None:
        told = step.arguments.get("training", step.arguments.get("2", True))
        return step.kind in PASSIVE_FUNCTIONS and told is False
    ours = step.kind in PASSIVE_NAMES and type(step.module).__module__.startswith("leanconv.")
    return (type(step.module) in PASSIVE or ours) and not graph.hooked(step.path)


def unfit_producer(graph: Graph, producer: Step | None, step: Step, norm: nn.Module) -> str:
    """Why the batch norm cannot be folded into ``producer``, whose output ``step`` reads; empty where it can."""
    if producer is None:
        return "it normalises the network's input"
    if not isinstance(producer.module, CONVOLUTIONS):
        return f"the step before it is {producer.kind}, not a convolution or Linear"
    if producer.path == "":
        return "the network is this one layer"
    why = _unfit_layer(graph, producer)
    if why:
        return why
    only = graph.only_consumer(producer)
    if only is None or only.index != step.index:
        return f"the output of {producer.path} is used elsewhere too, or returned"
    name = shared(graph, step)
    if name is not None:
        return f"{name} is shared"
    shape = graph.shape(producer.outputs[0])
    if not _per_channel(producer, shape) or not shape[1] == channel_count(producer.module) == norm.num_features:
        return f"the channels of {producer.path} (output {shape}) are not those of the batch norm"
    return ""


def _unfit_layer(graph: Graph, step: Step) -> str:
    """Why the weights of this step cannot be changed; empty where they can."""
    module, path = step.module, step.path
    assert module is not None
    calls = len(graph.calls(path))
    if calls > 1:
        return f"{path} is called {calls} times"
    if graph.hooked(path) or not isinstance(module._parameters.get("weight"), nn.Parameter):
        return f"{path} has hooks or parametrizations"
    if len(step.inputs) != 1 or len(step.outputs) != 1:
        return f"{path} does not map one tensor to one"
    if not KNOWN_OPS.issuperset(step.ops) or step.inplace:
        return f"{path} ({step.kind}) does more than its convolution or product"
    name = shared(graph, step)
    return f"{name} is shared" if name is not None else ""


def _per_channel(step: Step, shape: tuple[int, ...]) -> bool:
    """Whether dimension 1 of a batched tensor of this shape holds the channels of a layer."""
    module = step.module
    return len(shape) == (2 if isinstance(module, nn.Linear) else 2 + len(module.kernel_size))  # type: ignore


# --- forward, into the layer that reads it ---------------------------------------------------------------------------


def after(graph: Graph, step: Step) -> tuple[Step | None, int, str]:
    """The layer that alone reads this batch norm, past what is the identity in eval and past Flatten.

    Returns:
        The layer and how many of its features a channel became; or None and the reason why none can take it.
    """
    if getattr(step.module, "activation", None) is not None:
        return None, 1, "an activation stands inside it"
    channels = graph.shape(step.inputs[0])[1]
    here = step
    while True:
        reader = graph.only_consumer(here)
        if reader is None:
            return None, 1, "its output is used more than once, or returned"
        if not (_passive(graph, reader) or _flattens(graph, reader)):
            break
        here = reader
    if not isinstance(reader.module, CONVOLUTIONS) or reader.path == "" or len(reader.inputs) != 1:
        return None, 1, f"the step after it is {reader.kind}, not a convolution or Linear"
    shape = graph.shape(reader.inputs[0])
    width = reader.module.in_features if isinstance(reader.module, nn.Linear) else reader.module.in_channels
    times = int(width) // channels
    fits = _per_channel(reader, shape) and shape[1] == width == channels * times
    if not fits or (times != 1 and here is step):
        return None, 1, f"the channels of {reader.path} (input {shape}) are not those of the batch norm"
    why = _unfit_layer(graph, reader)
    return (None, 1, why) if why else (reader, times, "")


def _flattens(graph: Graph, step: Step) -> bool:
    """Maps (N, C, ...) to features (N, C ...), each channel's in a row."""
    if step.kind not in FLATTENING and type(step.module) is not nn.Flatten:
        return False
    if len(step.inputs) != 1 or len(step.outputs) != 1 or (step.module is not None and graph.hooked(step.path)):
        return False
    old, new = graph.shape(step.inputs[0]), graph.shape(step.outputs[0])
    return len(old) > 2 and new == (old[0], prod(old[1:]))


def border(layer: nn.Module, shift: Tensor) -> str:
    """Why a shift before the layer is no bias after it: some outputs do not see all taps. Empty where it is one."""
    if isinstance(layer, nn.Linear) or not shift.any():
        return ""
    if isinstance(layer, TRANSPOSED):
        sizes = (*layer.kernel_size, *layer.stride, *(1 + p for p in layer.output_padding))
        # With more than one tap, or a stride, outputs differ in how many taps reach them.
        return "" if max(sizes) == 1 else "not every output of the transposed convolution sees the shift of every tap"
    if plain(layer) or type(layer).__module__.startswith("leanconv."):
        zeros = layer.padding_mode == "zeros" and any(layer._reversed_padding_repeated_twice)  # type: ignore
        return "the zero padding of the layer after it does not see the shift beta - a mean" if zeros else ""
    # A forward of its own may pad as it likes, on sizes that the example does not show; with one tap a trial tells.
    return "" if max(layer.kernel_size) == 1 else f"{type(layer).__name__} may pad in a forward of its own"  # type: ignore


# --- layers with a forward of their own ------------------------------------------------------------------------------


def plain(layer: nn.Module) -> bool:
    """Whether a convolution or Linear computes as torch's class does."""
    kind = next(k for k in CONVOLUTIONS if isinstance(layer, k))
    same = (getattr(type(layer), n, None) is getattr(kind, n, None) for n in ("forward", "_conv_forward"))
    return all(same) and "forward" not in vars(layer)


@torch.no_grad()
def agrees(layer: nn.Module, shape: tuple[int, ...], first: Affine | None, last: Affine | None) -> bool:
    """Whether folding gives what ``first``, ``layer`` and ``last`` give, on one random input in float64.

    Args:
        layer: as it is; a copy runs.
        shape: of the input that it had when the network was recorded.
        first, last: what stands before and after it.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((min(2, shape[0]), *shape[1:]), generator=generator, dtype=torch.float64).to(weight.device)
    old = copy.deepcopy(layer).double().eval()
    try:
        want: Tensor = old(x if first is None else _act(first, x))
        want = want if last is None else _act(last, want)
        got: Tensor = fused(old, first, last)[0](x)
    except Exception:  # it does not run alone, or not in float64
        return False
    return got.shape == want.shape and bool((got - want).abs().max() <= 1e-10 * want.abs().max())


def _act(one: Affine, x: Tensor) -> Tensor:
    scale, shift = (v.view(1, -1, *[1] * (x.dim() - 2)) for v in (one.scale, one.shift))
    return scale * x + shift


def functional(graph: Graph) -> Iterator[tuple[str, str]]:
    """Batch norms that are no layers of this technique: path and reason."""
    for step in graph.steps:
        if isinstance(step.module, CONVOLUTIONS) or is_norm(step.module):
            continue  # a convolution that calls it standardises its weights
        if step.module is None and step.kind == "batch_norm":
            yield step.path, "it calls the function batch_norm, which is no layer that could be exchanged"
        elif step.module is not None and is_leaf(step.module) and "batch_norm" in step.ops:
            yield step.path, f"{step.kind} calls the function batch_norm in a forward of its own"
