"""Small networks with batch-masked dropout, for the tests of groups, strict mode and skipping."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from leanconv.techniques.batchnorm.layers import BatchNorm2d
from leanconv.techniques.dropout.layers import Dropout, Dropout1d, Dropout2d, Dropout3d

Build = Callable[[], nn.Module]


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 9), nn.LeakyReLU(), Dropout(0.5, "batch"),
        nn.Linear(9, 8), nn.Tanh(), Dropout(0.4, "batch"), nn.Linear(8, 3),
    )  # fmt: skip


def norm_before() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), BatchNorm2d(8), nn.LeakyReLU(), Dropout2d(0.5, "batch"), nn.Conv2d(8, 4, 3)
    )


def norm_after() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), Dropout2d(0.5, "batch"), nn.BatchNorm2d(8), nn.LeakyReLU(), nn.Conv2d(8, 4, 3)
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 1), BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.PReLU(6),
        Dropout2d(0.5, "batch"), nn.Conv2d(6, 12, 3, groups=6, bias=False), nn.LeakyReLU(), nn.Conv2d(12, 4, 1),
    )  # fmt: skip


def flattened() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.LeakyReLU(), Dropout2d(0.5, "batch"), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(6 * 9, 10), nn.LeakyReLU(), Dropout(0.5, "batch", "exact"), nn.Linear(10, 4),
    )  # fmt: skip


def parts() -> nn.Module:
    """The dropout stops positions of channels; a channel stops if all its positions do."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.LeakyReLU(), nn.AvgPool2d(3), nn.Flatten(), Dropout(0.6, "batch"), nn.Linear(5 * 4, 4)
    )


def two_in_one() -> nn.Module:
    """Two dropouts between a producer and its consumers, the second on the outputs of a depth multiplier."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), Dropout2d(0.3, "batch"), BatchNorm2d(8), nn.Tanh(),
        nn.Conv2d(8, 16, 1, groups=8), Dropout2d(0.4, "batch"), nn.Conv2d(16, 4, 1),
    )  # fmt: skip


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.LeakyReLU(), Dropout1d(0.5, "batch"), nn.Conv1d(8, 4, 3)
    )


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 2), nn.BatchNorm3d(6), nn.LeakyReLU(), Dropout3d(0.5, "batch"), nn.Conv3d(6, 3, 1)
    )


class Branches(nn.Module):
    """Functional operations on the way, and two consumers of one masked map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.drop = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), Dropout2d(0.5, "batch")
        self.left, self.right, self.head = nn.Conv2d(8, 5, 3, padding=1), nn.Conv2d(8, 5, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = self.drop(x * torch.sigmoid(x))
        pooled = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        maps = self.left(x) + self.right(nn.functional.leaky_relu(x))
        return maps.mean((2, 3)) + self.head(pooled)


NETWORKS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "mlp": (mlp, (6, 7)),
    "norm_before": (norm_before, (4, 3, 8, 8)),
    "norm_after": (norm_after, (4, 3, 8, 8)),
    "depthwise": (depthwise, (4, 3, 7, 7)),
    "flattened": (flattened, (4, 3, 8, 8)),
    "parts": (parts, (4, 3, 8, 8)),
    "two_in_one": (two_in_one, (4, 3, 6, 6)),
    "sequence": (sequence, (4, 3, 9)),
    "volume": (volume, (3, 2, 4, 4, 4)),
    "branches": (Branches, (4, 3, 6, 6)),
}


def network(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The network with seeded weights (batch norms too) in training mode, and an input."""
    torch.manual_seed(seed)
    build, shape = NETWORKS[name]
    model = build()
    for module in model.modules():
        if hasattr(module, "num_features"):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.3, 0.7)
    return model, torch.randn(shape)
