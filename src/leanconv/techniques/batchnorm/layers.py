"""BatchNorm1d, 2d and 3d: torch.nn's signatures and state_dict, a forward and backward of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite, prod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from leanconv._native import environment
from leanconv.errors import Error
from leanconv.kernels.choice import decide
from leanconv.kernels.norm import ACTIVATIONS as ACTIVATIONS_FUSED
from leanconv.kernels.norm import Norm, in_rows, infer, norm_act, run, train
from leanconv.kernels.ops import eager
from leanconv.techniques.batchnorm.normalise import normalise

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "freeze", "frozen", "unfreeze"]

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, tuple[Activation, Callable[[], nn.Module]]] = {
    "relu": (F.relu, nn.ReLU),
    "relu6": (F.relu6, nn.ReLU6),
    "hardswish": (F.hardswish, nn.Hardswish),
    "silu": (F.silu, nn.SiLU),
}


PLANS = 64  # shapes that a layer remembers
# torch's batch norm keeps its input alone, so what comes out of it may be overwritten; the last two would keep a copy.
_OVERWRITE: tuple[Activation, ...] = (lambda y: y, torch.relu_, lambda y: F.hardtanh_(y, 0.0, 6.0), F.hardswish, F.silu)


class _Plan(NamedTuple):
    """What runs for one shape: native code or torch, the memory format, the activation's number, values per channel."""

    native: bool
    form: torch.memory_format
    act: int
    values: int


class BatchNorm(nn.Module):
    """What the three layers share: y = gamma (x - mu) / sqrt(s^2 + eps) + beta per channel, then the activation.

    In training mu and s^2 (1/m) are the batch's, and running statistics move towards them by ``momentum``, the
    variance as 1/(m-1); in eval, and when frozen, the running statistics normalise. State and arguments are torch.nn's,
    and a state_dict loads both ways. Use one of the three subclasses; they differ in the inputs they take.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: learn gamma (``weight``, 1 at start) and beta (``bias``, 0 at start).
        track_running_stats: keep running statistics; without them the batch's are used in eval too.
        device: of parameters and buffers.
        dtype: of parameters and buffers. Statistics of half precision inputs are computed in float32.
        activation: ``relu``, ``relu6``, ``hardswish``, ``silu`` or a function, applied to y; a module with its own
            parameters stands after the layer instead.
        on_single: what training does with one value per channel, which has no variance: ``raise`` as torch, or
            ``running`` to normalise with the running statistics and leave them as they are.

    Raises:
        Error: an argument out of range; an input of another shape; one value per channel in training.

    On the CPU native code or torch computes it, whichever :mod:`leanconv.kernels.choice` takes for the shape (torch for
    small float32 maps); ``LEANCONV_NATIVE=1`` keeps native code, which loses no digits to a large mean.

    Source:
        Table 2-1 (row S8); Ioffe & Szegedy 2015, arXiv 1502.03167.
    """

    _version = 2
    dims: ClassVar[tuple[int, ...]] = ()
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | Activation | None = None,
        on_single: Literal["raise", "running"] = "raise",
    ) -> None:
        super().__init__()
        self._plans: dict[Any, _Plan | tuple[()]] = {}
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.activation, self.on_single, self.frozen = activation, on_single, False
        self._validate()
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        for name in ("weight", "bias"):
            self.register_parameter(name, nn.Parameter(torch.empty(num_features, **like)) if affine else None)
        tracks = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features, **like) if tracks else None)
        self.register_buffer("running_var", torch.ones(num_features, **like) if tracks else None)
        batches = torch.tensor(0, dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", batches if tracks else None)
        self.reset_parameters()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles decide for themselves."""
        return {**self.__dict__, "_plans": {}}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_plans" in self.__dict__:
            self._plans.clear()

    def _validate(self) -> None:
        name = type(self).__name__
        if not isinstance(self.num_features, int) or self.num_features < 1:
            raise Error(f"{name}: num_features must be an integer >= 1, got num_features={self.num_features!r}")
        if not isinstance(self.eps, int | float) or not (self.eps >= 0 and isfinite(self.eps)):
            raise Error(f"{name}: eps must be a finite number >= 0, got eps={self.eps!r}")
        if self.momentum is not None and not (isinstance(self.momentum, int | float) and 0 <= self.momentum <= 1):
            raise Error(f"{name}: momentum must satisfy 0 <= momentum <= 1 or be None, got momentum={self.momentum!r}")
        if self.on_single not in ("raise", "running"):
            raise Error(f"{name}: on_single must be 'raise' or 'running', got on_single={self.on_single!r}")
        if self.on_single == "running" and not self.track_running_stats:
            raise Error(f"{name}: on_single='running' needs running statistics, got track_running_stats=False")
        act = self.activation
        if isinstance(act, nn.Module) or not (act is None or callable(act) or act in ACTIVATIONS):
            known = ", ".join(ACTIVATIONS)
            raise Error(f"{name}: activation must be one of {known}, a function or None, got activation={act!r}")

    def reset_running_stats(self) -> None:
        """Running mean 0, running variance 1, no batches seen."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Step 1 of table 2-1: gamma = 1, beta = 0; and fresh running statistics."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch.

        Args:
            x: (N, C) or (N, C, ...), floating point; each subclass says which.

        Returns:
            y, in the shape, dtype and memory format of x.

        Raises:
            Error: the shape or dtype does not fit, or training gets one value per channel.
        """
        batch = self._buffers.get("running_mean") is None or (self.training and not self.frozen)
        if not eager(x):
            return self._forward(x)
        gamma = self._parameters.get("weight")
        beta = self._parameters.get("bias")
        learns = torch.is_grad_enabled() and (
            x.requires_grad or (gamma is not None and gamma.requires_grad) or (beta is not None and beta.requires_grad)
        )
        # To decide takes 50 microseconds, as long as a small layer; to find again what was decided takes three.
        key = (x.shape, x.dtype, batch, learns, None if gamma is None else gamma.dtype, environment())
        plan = self._plans.get(key)
        if plan is None:
            plan = self._decided(key, x)
        if not plan or not x.is_contiguous(memory_format=plan.form):
            return self._forward(x)
        if plan.native:
            return self._natives(x, plan, batch, learns)
        return self._torchs(x, plan, batch)

    def _decided(self, key: Any, x: Tensor) -> _Plan | tuple[()]:
        """Which implementation an input of this shape takes, remembered; nothing where it is not simple."""
        self._check_input(x)
        act, values = self._fused(x), x.numel() // x.shape[1]
        vectors = (*self._parameters.values(), self._buffers["running_mean"], self._buffers["running_var"])
        if not in_rows(x) or x.dim() not in (2, 4) or values < 2:
            return ()
        if len(self._plans) >= PLANS:
            self._plans.clear()
        plan: _Plan | tuple[()] = ()
        complete = {"weight", "bias"} <= self._parameters.keys()
        if act is not None and complete and all(v is None or v.dtype == torch.float32 for v in vectors):
            geometry = (int(key[2]), int(key[3]), ACTIVATIONS_FUSED.index(act))
            native = decide("norm_act", tuple(x.shape), x.dtype, "cpu", geometry).implementation == "native"
            form = torch.channels_last if x.dim() == 4 else torch.contiguous_format
            plan = _Plan(native, form, geometry[2], values)
        self._plans[key] = plan
        return plan

    def _natives(self, x: Tensor, plan: _Plan, batch: bool, learns: bool) -> Tensor:
        gamma, beta = self._parameters["weight"], self._parameters["bias"]
        mean, var = self._buffers["running_mean"], self._buffers["running_var"]
        if batch:
            y, mean, var = train(x, gamma, beta, self.eps, plan.act)
            self._track(mean, var, plan.values)
            return y
        assert mean is not None
        assert var is not None
        if learns:
            return run(x, gamma, beta, mean, var, self.eps, plan.act)[0]
        return infer(x, gamma, beta, mean, var, self.eps, plan.act)

    def _torchs(self, x: Tensor, plan: _Plan, batch: bool) -> Tensor:
        mean, var, share = self._buffers["running_mean"], self._buffers["running_var"], self.momentum
        if batch and mean is not None:
            if _recomputing():
                mean, var = mean.clone(), None if var is None else var.clone()  # as many are saved as at first
            else:
                seen = self._buffers["num_batches_tracked"]
                assert seen is not None
                seen.add_(1)
                share = 1 / float(seen) if share is None else share
        gamma, beta = self._parameters["weight"], self._parameters["bias"]
        y = torch.batch_norm(x, gamma, beta, mean, var, batch, share or 0.0, self.eps, False)
        return _OVERWRITE[plan.act](y)

    def _forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if x.numel() == 0:
            return self._activate(x * 1)  # nothing to normalise and nothing to learn from, as a tensor of its own
        given = self._given(x.shape)
        act = self._fused(x)
        if act is None:
            y, mean, var = normalise(x, self.weight, self.bias, self.eps, *given)
        else:
            y, mean, var = norm_act(x, self.weight, self.bias, *given, self.eps, act)
        self.observe(x.shape, mean, var)
        return self._activate(y) if act is None else y

    def prepared(self, shape: tuple[int, ...]) -> Norm | None:
        """What forward would do to an input of this shape now, for an operation that takes in several layers.

        None where the activation is none of :data:`leanconv.kernels.norm.ACTIVATIONS`.

        Raises:
            Error: training gets one value per channel.
        """
        act = self._named_activation()
        return None if act is None else Norm(self.weight, self.bias, *self._given(shape), self.eps, act)

    def observe(self, shape: tuple[int, ...], mean: Tensor, var: Tensor) -> None:
        """Move the running statistics where the batch's moments were used for an input of this shape."""
        if self._batch(shape):
            self._track(mean, var, _count(shape))

    def _batch(self, shape: tuple[int, ...]) -> bool:
        """Whether the batch's statistics are used."""
        batch = self.running_mean is None or (self.training and not self.frozen)
        return batch and (_count(shape) > 1 or self.on_single == "raise")

    def _given(self, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
        """The running statistics where they are used, else nothing."""
        if not self._batch(shape):
            return self.running_mean, self.running_var
        if _count(shape) == 1:
            name = type(self).__name__
            raise Error(f"{name}: training needs more than one value per channel, got shape {tuple(shape)}")
        return None, None

    def _named_activation(self) -> str | None:
        act = "none" if self.activation is None else self.activation
        return act if isinstance(act, str) and act in ACTIVATIONS_FUSED else None

    def _fused(self, x: Tensor) -> str | None:
        """The activation that native code computes with the norm; None where it does not run."""
        act = self._named_activation()
        if act is None or not eager(x) or not in_rows(x):
            return None
        return act if decide("norm_act", tuple(x.shape), x.dtype, x.device.type).implementation == "native" else None

    def _check_input(self, x: Tensor) -> None:
        if x.dim() not in self.dims:
            wanted = " or ".join(f"{d}-D" for d in self.dims)
            raise Error(f"{type(self).__name__}: input must be {wanted}, got shape {tuple(x.shape)}")
        if x.shape[1] != self.num_features:
            raise Error(
                f"{type(self).__name__}: input must have {self.num_features} channels in dimension 1, "
                f"got shape {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise Error(f"{type(self).__name__}: input must be of a floating point dtype, got {x.dtype}")

    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics: the mean as it is, the variance unbiased, times m / (m - 1)."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        if _recomputing():
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        _move(self.running_mean, mean, share)
        _move(self.running_var, var * (count / (count - 1)), share)

    def _activate(self, y: Tensor) -> Tensor:
        if self.activation is None:
            return y
        function = ACTIVATIONS[self.activation][0] if isinstance(self.activation, str) else self.activation
        return function(y)

    def extra_repr(self) -> str:
        """The arguments, as torch prints them, then what is ours."""
        text = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"
        text += f", track_running_stats={self.track_running_stats}"
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        return text + (", frozen" if self.frozen else "")

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *rest: Any
    ) -> None:
        """Files written before torch 0.4.1 know no num_batches_tracked: it stays as it is."""
        key = f"{prefix}num_batches_tracked"
        old = (local_metadata.get("version") or 0) < 2
        if old and self.num_batches_tracked is not None and key not in state_dict:
            state_dict = dict(state_dict) | {key: self.num_batches_tracked}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class BatchNorm1d(BatchNorm):
    """Batch normalisation of features (N, C) or sequences (N, C, L); m = N or N * L values per channel.

    y = gamma (x - mu) / sqrt(s^2 + eps) + beta. Arguments and errors: :class:`BatchNorm`. Table 2-1 of the source.
    """

    dims = (2, 3)


class BatchNorm2d(BatchNorm):
    """Batch normalisation of maps (N, C, H, W); m = N * H * W values per channel. channels_last stays channels_last.

    y = gamma (x - mu) / sqrt(s^2 + eps) + beta. Arguments and errors: :class:`BatchNorm`. Table 2-1 of the source.
    """

    dims = (4,)


class BatchNorm3d(BatchNorm):
    """Batch normalisation of volumes (N, C, D, H, W); m = N * D * H * W values per channel.

    y = gamma (x - mu) / sqrt(s^2 + eps) + beta. Arguments and errors: :class:`BatchNorm`. Table 2-1 of the source.
    """

    dims = (5,)


def _move(running: Tensor, new: Tensor, share: Tensor | float) -> None:
    """running += share (new - running), computed in the dtype of the statistics."""
    if running.dtype == new.dtype:
        running.lerp_(new, share)
    else:
        running.copy_(torch.lerp(running.to(new.dtype), new, share))


def _count(shape: tuple[int, ...]) -> int:
    """Values per channel."""
    return shape[0] * prod(shape[2:])


def _recomputing() -> bool:
    """Whether this forward runs inside a backward pass: checkpointing shows a batch twice, it counts once."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)


def freeze(model: nn.Module, affine: bool = True) -> list[str]:
    """Batch norms normalise with their running statistics from now on, and these stand still, also in training mode.

    ``model.train()`` does not undo it, :func:`unfreeze` does. Works on our layers and torch's (through a hook there).

    Args:
        model: a network or one layer.
        affine: also stop gamma and beta (``requires_grad`` off).

    Returns:
        Paths of the layers that were frozen.

    Raises:
        Error: a layer has no running statistics to stand on.

    Source:
        Inference of Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 2, kept on during training.
    """
    layers = {p: m for p, m in model.named_modules() if isinstance(m, BatchNorm | TorchBatchNorm)}
    for path, layer in layers.items():
        if layer.running_mean is None:
            raise Error(f"freeze: a layer must have running statistics, got track_running_stats=False at {path!r}")
    for layer in layers.values():
        if isinstance(layer, BatchNorm):
            layer.frozen = True
        elif not frozen(layer):
            layer.register_forward_pre_hook(_use_running)
            layer.register_forward_hook(_put_back, always_call=True)
        for parameter in layer.parameters(recurse=False) if affine else ():
            parameter.requires_grad_(False)
    return list(layers)


def unfreeze(model: nn.Module) -> list[str]:
    """Undo :func:`freeze`: batch statistics in training again, gamma and beta learn again.

    Args:
        model: a network or one layer.

    Returns:
        Paths of the layers that were frozen until now; others are left alone.

    Source:
        As :func:`freeze`.
    """
    found = [(p, m) for p, m in model.named_modules() if frozen(m)]
    for _, layer in found:
        if isinstance(layer, BatchNorm):
            layer.frozen = False
        for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
            for key in [k for k, h in hooks.items() if h in (_use_running, _put_back)]:
                del hooks[key]
                layer._forward_hooks_always_called.pop(key, None)
        if isinstance(layer.weight, Tensor):
            layer.weight.requires_grad_(True)
            layer.bias.requires_grad_(True)
    return [p for p, _ in found]


def frozen(layer: nn.Module) -> bool:
    """Whether :func:`freeze` was called on this layer, ours or torch's, and nothing undid it."""
    if isinstance(layer, BatchNorm):
        return layer.frozen
    return _use_running in layer._forward_pre_hooks.values()


def _use_running(layer: nn.Module, args: Any) -> None:
    layer._leanconv_training, layer.training = layer.training, False  # type: ignore[assignment]


def _put_back(layer: nn.Module, args: Any, result: Any) -> None:
    layer.training = layer.__dict__.pop("_leanconv_training", layer.training)
