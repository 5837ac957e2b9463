"""Random networks in float64: chains and residual blocks of every kind of layer, some of which run twice."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from leanconv.techniques.batchnorm import BatchNorm1d, BatchNorm2d

CHANNELS = 4
ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.Tanh, nn.Identity, nn.Dropout)


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@st.composite
def norms(draw: st.DrawFn, kinds: tuple[type[nn.Module], ...] = (BatchNorm2d, nn.BatchNorm2d)) -> nn.Module:
    kind = draw(st.sampled_from(kinds))
    inside = draw(st.sampled_from((None, None, "relu"))) if kind.__module__.startswith("leanconv") else None
    norm = kind(CHANNELS, **({} if inside is None else {"activation": inside}), affine=draw(st.booleans()))
    norm.centred = draw(st.booleans())  # no shift: it may go forward across zero padding
    return norm


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    """A convolution that keeps the shape (N, 4, 6, 6), of any kind, groups and padding mode."""
    kind = draw(st.sampled_from((nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d)))
    size = draw(st.sampled_from((1, 3)))
    mode = (
        "zeros" if kind is nn.ConvTranspose2d else draw(st.sampled_from(("zeros", "reflect", "replicate", "circular")))
    )
    groups, bias = draw(st.sampled_from((1, 2, CHANNELS))), draw(st.booleans())
    return kind(CHANNELS, CHANNELS, size, padding=size // 2, groups=groups, bias=bias, padding_mode=mode)


@st.composite
def chains(draw: st.DrawFn) -> list[nn.Module]:
    parts = [draw(norms())] if draw(st.booleans()) else []
    parts.append(draw(layers()))
    parts += [draw(norms())] if draw(st.booleans()) else []
    return [*parts, draw(st.sampled_from(ACTIVATIONS))()]


@st.composite
def blocks(draw: st.DrawFn) -> list[nn.Module]:
    chain = [part for _ in range(draw(st.integers(1, 2))) for part in draw(chains())]
    how = draw(st.sampled_from(("plain", "plain", "residual", "twice", "a layer again")))
    if how == "residual":
        return [Residual(nn.Sequential(*chain))]
    if how == "twice":
        return [*chain, *chain]
    return [*chain, draw(st.sampled_from(chain))] if how == "a layer again" else chain


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    parts = [part for _ in range(draw(st.integers(1, 3))) for part in draw(blocks())]
    if draw(st.booleans()):
        flat = [nn.Flatten(), nn.Linear(36 * CHANNELS, CHANNELS), draw(norms((BatchNorm1d, nn.BatchNorm1d)))]
        parts += [*([draw(norms())] if draw(st.booleans()) else []), *flat, nn.Linear(CHANNELS, 3)]
    model = nn.Sequential(*parts).double()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for norm in (m for m in model.modules() if hasattr(m, "centred")):
            norm.running_var.copy_(0.1 + 2 * torch.rand(norm.num_features, generator=generator))
            if not norm.centred:
                norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
            elif norm.bias is not None:
                norm.bias.zero_()
    for module in model.modules():
        module.training = draw(st.booleans())
    return model


def example() -> Tensor:
    """An input of :func:`networks`."""
    return torch.randn(2, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
