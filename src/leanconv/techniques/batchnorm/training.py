"""Roles of parameters, and what batch normalisation does while a network trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from leanconv.contract import Attachment, Context
from leanconv.techniques.batchnorm.layers import BatchNorm
from leanconv.techniques.batchnorm.options import Options
from leanconv.techniques.batchnorm.statistics import exact_statistics, norms, precise_statistics

__all__ = ["attach", "roles"]

# _NormBase: torch's batch and instance norms.
NORMS = (BatchNorm, _NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def roles(model: nn.Module) -> Mapping[str, str]:
    """``norm`` for gamma and beta of every norm: ours, and torch's batch, instance, group, layer and RMS norms."""
    names = {id(p): n for n, p in model.named_parameters()}
    layers = [m for m in model.modules() if isinstance(m, NORMS)]
    return {names[id(p)]: "norm" for m in layers for p in m.parameters(recurse=False)}


class _Settling(Attachment):
    def __init__(self, model: nn.Module, options: Options) -> None:
        self._model, self._options = model, options

    def settle(self, batches: Iterable[Tensor]) -> None:
        """Precise or exact statistics from training inputs; see :mod:`leanconv.techniques.batchnorm.statistics`."""
        if norms(self._model):
            settle = precise_statistics if self._options.statistics == "precise" else exact_statistics
            settle(self._model, batches)


def attach(ctx: Context, options: Options) -> Attachment | None:
    """Settles the statistics of ctx.model's batch norms as ``options.statistics`` says; None for ``running``."""
    return None if options.statistics == "running" else _Settling(ctx.model, options)
