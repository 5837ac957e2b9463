"""Table 2-1 with every number, and what a stack of layers passes on with it and without (rows S8, S11 and S25)."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from leanconv import data
from leanconv.techniques.batchnorm import BatchNorm2d, algorithm1, algorithm1_steps
from leanconv.techniques.batchnorm.reference import Steps

__all__ = ["table_2_1", "with_depth"]

_DEPTH, _WIDTH, _BINS = 12, 16, 41


def table_2_1() -> dict[str, Any]:
    """The steps of the algorithm on four samples of three features.

    Returns:
        ``x``, ``mu``, ``variance``, ``x_hat``, ``gamma``, ``beta``, ``y``, ``eps``; ``restored``: with
        gamma = sqrt(s^2 + eps) and beta = mu the greatest difference between y and x; ``code``: what ran.
    """
    x = torch.tensor([[1.0, 20.0, 0.3], [2.0, 26.0, 0.1], [4.0, 31.0, 0.4], [5.0, 35.0, 0.8]], dtype=torch.float64)
    gamma = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    beta = torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64)
    eps = 1e-5
    steps: Steps = algorithm1_steps(x, gamma, beta, eps)
    back = algorithm1(x, (steps.variance[0] + eps).sqrt(), steps.mu[0], eps)
    code = inspect.getsource(algorithm1_steps)
    return {
        "x": x.tolist(),
        "mu": steps.mu[0].tolist(),
        "variance": steps.variance[0].tolist(),
        "x_hat": steps.x_hat.tolist(),
        "gamma": gamma.tolist(),
        "beta": beta.tolist(),
        "y": steps.y.tolist(),
        "eps": eps,
        "restored": float((back - x).abs().max()),
        "code": code[code.index("    # Step 1") :],
    }


def with_depth(seed: int = 0) -> dict[str, Any]:
    """Twelve untrained convolutions with ReLU on real images: what enters each activation, with batch norm and without.

    Both stacks have the same weights, of a usual size (normal, deviation sqrt(1.3 / fan-in)).

    Returns:
        ``plain`` and ``normalised``: for each layer ``mean``, ``std`` and ``histogram`` (density, 41 bins, -4 to 4).
    """
    images = data.load("demo", imgsz=28).train.images[:64]
    x = data.normalise(images, (0.2860,), (0.3530,))
    torch.manual_seed(seed)
    weights = [torch.randn(_WIDTH, 1 if i == 0 else _WIDTH, 3, 3) for i in range(_DEPTH)]
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("plain", "normalised"):
        rows, h = [], x
        for weight in weights:
            scaled = weight * (1.3 / weight[0].numel()) ** 0.5
            with torch.no_grad():
                h = nn.functional.conv2d(h, scaled, padding=1)
                if name == "normalised":
                    h = BatchNorm2d(_WIDTH).train()(h)
                values = h.double()
                counts = torch.histc(values.clamp(-4.0975, 4.0975).float(), _BINS, -4.1, 4.1)
                density = (counts / counts.sum() / (8.2 / _BINS)).tolist()
                rows.append({"mean": float(values.mean()), "std": float(values.std()), "histogram": density})
                h = h.relu()
        found[name] = rows
    return {**found, "centres": [-4 + 8 * i / (_BINS - 1) for i in range(_BINS)]}
