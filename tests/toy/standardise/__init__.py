"""Weight standardisation (Qiao et al. 2019): a fifth technique, added from outside; nothing else knows of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.contract import Attachment, Context, Cost, Edit, Finding, Refusal, Shape
from leanconv.errors import Error

NAME = "standardise"
ORDER = 150
PAPER = "https://arxiv.org/abs/1903.10520"


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose kernels have mean 0 and deviation 1 / sqrt(Cin K), so that outputs keep the inputs' scale."""

    def standardised(self) -> Tensor:
        w = self.weight
        w = w - w.mean((1, 2, 3), keepdim=True)
        return w / ((w.std((1, 2, 3), keepdim=True) + 1e-5) * w[0].numel() ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standardised(), self.bias, self.stride, self.padding, self.dilation, self.groups)


LAYERS = (StandardisedConv2d,)


@dataclass(frozen=True)
class Options:
    """Leave convolutions with fewer output channels than this alone."""

    init: Literal["keep", "fresh"] = "keep"
    min_channels: int = 1

    def __post_init__(self) -> None:
        if self.min_channels < 1:
            raise Error(f"standardise: min_channels must be at least 1, got min_channels={self.min_channels!r}")


def _like(layer: nn.Conv2d, kind: type[nn.Conv2d], weight: Tensor) -> nn.Conv2d:
    new = copy.deepcopy(layer)
    new.__class__ = kind
    with torch.no_grad():
        new.weight.copy_(weight)
    return new


def apply(ctx: Context, options: Options) -> list[Edit | Refusal]:
    return [
        Edit({path: _like(m, StandardisedConv2d, m.weight)}, f"{path}: kernels standardised", "changes")
        for path, m in ctx.model.named_modules()
        if type(m) is nn.Conv2d and m.out_channels >= options.min_channels
    ]


def remove(ctx: Context) -> list[Edit | Refusal]:
    return fold(ctx)


def fold(ctx: Context) -> list[Edit | Refusal]:
    return [
        Edit({path: _like(m, nn.Conv2d, m.standardised())}, f"{path}: standardised kernels written down", "exact")
        for path, m in ctx.model.named_modules()
        if isinstance(m, StandardisedConv2d)
    ]


def check(ctx: Context) -> Iterator[Finding]:
    yield from ()


def cost(layer: nn.Module, shape: Shape) -> Cost:
    assert isinstance(layer, StandardisedConv2d)
    n, c, h, w = shape
    (kh, kw), (sh, sw), pad = layer.kernel_size, layer.stride, layer.padding
    ho, wo = (h + 2 * pad[0] - kh) // sh + 1, (w + 2 * pad[1] - kw) // sw + 1
    params = sum(p.numel() for p in layer.parameters())
    made = n * layer.out_channels * ho * wo
    return Cost(params, made * c * kh * kw, 4 * (n * c * h * w + made + params))


def roles(model: nn.Module) -> Mapping[str, str]:
    return {}


def attach(ctx: Context, options: Options) -> Attachment | None:
    return None
