"""Small float64 networks with every role in them, and plain training on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

N = 40
ROLES = {
    "0.weight": "weight",
    "0.bias": "bias",
    "1.weight": "norm",
    "1.bias": "norm",
    "3.weight": "depthwise",
    "3.bias": "bias",
    "6.weight": "weight",
    "6.bias": "bias",
}
WEIGHTS = [name for name, role in ROLES.items() if role in ("weight", "depthwise")]
OTHERS = [name for name, role in ROLES.items() if role in ("bias", "norm")]


def net(seed: int = 0) -> nn.Sequential:
    """Convolution, norm, depthwise convolution, linear: a weight, a bias, gamma, beta and a depthwise filter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4)]
        model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()
        for p in model.parameters():
            nn.init.normal_(p, std=0.3)
    return model


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    images = torch.randn(N, 2, 6, 6, dtype=torch.float64, generator=g)
    labels = torch.randint(0, 3, (N,), generator=g)
    picks = [torch.randint(0, N, (8,), generator=g) for _ in range(steps)]
    return [(images[i], labels[i]) for i in picks]


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    added: Callable[[], Tensor | None] = lambda: None,
    each: Callable[[int], None] = lambda step: None,
) -> None:
    for step, (x, y) in enumerate(batches(steps)):
        each(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        extra = added()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    x, y = batches(1)[0]
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(F.cross_entropy(model(x), y), parameters), strict=True))
