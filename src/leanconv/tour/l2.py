"""Equations 2-10 to 2-13: the cost in its two parts, the gradient by formula and by autograd, weights that shrink."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanconv import data
from leanconv.techniques.l2 import norms, objective, penalty, weight_decay

__all__ = ["equations", "shrinking"]

_STRENGTHS = {"lambda/2n": 10.0, "lambda/2": 0.05, "lambda": 0.025}
_STEPS = 150


def _problem(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images of the package as rows, and their labels."""
    train = data.load("demo", imgsz=28).train
    images = data.normalise(train.images[:count], (0.2860,), (0.3530,))
    return images.flatten(1).to(dtype), train.labels[:count]


def equations(seed: int = 0) -> dict[str, Any]:
    """One batch of 200 images, a small network in float64.

    Returns:
        ``n``; ``forms``: for each form of lambda its ``strength``, ``c0``, ``penalty``, ``c``, the equivalent
        ``weight_decay``, the greatest difference between autograd's gradient of a weight and
        ``dC0/dw + weight_decay w`` (``weight_gap``), that of a bias and ``dC0/db`` (``bias_gap``), and the norm of the
        penalty's part of the gradient (``pull``).
    """
    torch.manual_seed(seed)
    x, y = _problem(200, torch.float64)
    net = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 10)).double()
    named = dict(net.named_parameters())

    def c0() -> Tensor:
        return nn.functional.cross_entropy(net(x), y)

    plain = dict(zip(named, torch.autograd.grad(c0(), list(named.values())), strict=True))
    forms = []
    for form, strength in _STRENGTHS.items():
        cost = objective(c0(), penalty(net, strength, form, n=len(x)))  # type: ignore[arg-type]
        whole = dict(zip(named, torch.autograd.grad(cost.c, list(named.values())), strict=True))
        decay = weight_decay(strength, form, len(x))  # type: ignore[arg-type]
        gaps = {
            name: float((whole[name] - plain[name] - (decay * w.detach() if w.dim() > 1 else 0)).abs().max())
            for name, w in named.items()
        }
        pull = sum(float((decay * w.detach()).square().sum()) for w in named.values() if w.dim() > 1) ** 0.5
        forms.append(
            {
                "form": form,
                "strength": strength,
                **cost.record(),
                "weight_decay": decay,
                "weight_gap": max(gap for name, gap in gaps.items() if named[name].dim() > 1),
                "bias_gap": max(gap for name, gap in gaps.items() if named[name].dim() == 1),
                "pull": pull,
            }
        )
    return {"n": len(x), "forms": forms}


def shrinking(seed: int = 0) -> dict[str, Any]:
    """The norm of each layer's weights over 150 steps of gradient descent, with L2 and without, from the same start.

    Returns:
        ``steps``; ``strength``; ``without`` and ``with``: parameter -> norms; ``gap``: the greatest difference between
        the weights' norms of the first step and equation 2-12's.
    """
    x, y = _problem(500, torch.float32)
    found: dict[str, dict[str, list[float]]] = {}
    strength = 0.05
    for name, lam in (("without", 0.0), ("with", strength)):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 10))
        rows: dict[str, list[float]] = {key: [value] for key, value in norms(net).items()}
        for _ in range(_STEPS):
            cost = nn.functional.cross_entropy(net(x), y) + (penalty(net, lam, "lambda/2") if lam else 0.0)
            net.zero_grad()
            cost.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for parameter in net.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(0.1 * parameter.grad)
            for key, value in norms(net).items():
                rows[key].append(value)
        found[name] = rows
    return {"steps": list(range(_STEPS + 1)), "strength": strength, **found}
