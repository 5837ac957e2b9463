"""Where batch norms stand in a recorded network: what surgery, folding and checks have in common."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from leanconv.graph import Graph, Step
from leanconv.techniques.batchnorm.layers import BatchNorm

__all__ = [
    "CONVOLUTIONS",
    "TRANSPOSED",
    "activations",
    "back",
    "channel_count",
    "is_activation",
    "is_norm",
    "own_activation",
    "shared",
]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Tanhshrink),
)
FUNCTIONS = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish"}
    | {"hardswish", "hardtanh", "hardsigmoid", "sigmoid", "tanh", "softplus", "softsign", "tanhshrink"}
)
ARITHMETIC = frozenset(
    {"add", "iadd", "radd", "sub", "isub", "rsub", "mul", "imul", "rmul", "div", "idiv", "truediv", "itruediv"}
    | {"clamp", "pow", "exp", "neg", "shape", "size", "dim", "clone"}
)
# Layers that keep channels apart: a batch norm before or after them sees the same channels.
BETWEEN = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
BETWEEN_FUNCTIONS = frozenset({"dropout", "max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch", "contiguous"})
BETWEEN_NAMES = frozenset({"Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "DropBlock2d"})


def is_norm(module: nn.Module | None) -> bool:
    """Whether this is a batch norm, ours or torch's."""
    return isinstance(module, BatchNorm | TorchBatchNorm)


def is_activation(step: Step) -> bool:
    """Whether a step is an activation: a module of torch's, another one (Swish), or a function, also in place."""
    if step.module is None:
        return step.kind.rstrip("_") in FUNCTIONS
    return isinstance(step.module, MODULES) or own_activation(step)


def own_activation(step: Step) -> bool:
    """Whether a module without parameters runs an activation function and besides only arithmetic with numbers."""
    ops = {op.strip("_") for op in step.ops}
    one = len(step.inputs) == len(step.outputs) == 1 and not step.params
    return one and is_norm(step.module) is False and bool(ops & FUNCTIONS) and ops <= FUNCTIONS | ARITHMETIC


def activations(graph: Graph) -> list[Step]:
    """The activations of a network, in order of execution."""
    return [s for s in graph.steps if is_activation(s)]


def back(graph: Graph, step: Step) -> tuple[Step | None, str]:
    """The step that feeds this one, past dropout, identity and max pooling; or None with the reason.

    Every step on the way must feed only the next: else a change there would be seen elsewhere.
    """
    here = step
    while True:
        before = graph.producer(here.inputs[0]) if here.inputs else None
        if before is None:
            return None, "the step before it is the network's input"
        only = graph.only_consumer(before)
        if only is None or only.index != here.index:
            return before, "the output is used more than once"
        between = isinstance(before.module, BETWEEN) or before.kind in BETWEEN_NAMES
        if not between and not (before.module is None and before.kind in BETWEEN_FUNCTIONS):
            return before, ""
        here = before


def channel_count(module: nn.Module) -> int:
    """Outputs of a convolution or Linear."""
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)  # type: ignore[arg-type]


def shared(graph: Graph, step: Step) -> str | None:
    """The name of a parameter of this step that another layer or function uses too, or that bears two names."""
    own = set(graph.aliased(step.path))
    for name in step.params:
        if len(graph.users(name)) > 1 or {n.rpartition(".")[0] for n in graph.tied(name)} - own:
            return name
    return None
