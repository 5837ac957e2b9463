"""What the tests of batch norms share: small networks, contexts, proposals sorted."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from leanconv.contract import Context, Edit, Refusal
from leanconv.graph import record


class Net(nn.Module):
    """Parts and a forward of them, to write down one situation each."""

    def __init__(self, forward: Callable[["Net", Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def image(n: int = 4, c: int = 3, size: int = 8) -> Tensor:
    return torch.randn(n, c, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def context(model: nn.Module, x: Tensor, batches: list[Tensor] | None = None) -> Context:
    return Context(model, record(model, x), batches)


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """In float64, with statistics and parameters away from their start, in eval."""
    model = model.double().train()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    for _ in range(3):
        model(x)
    return model.eval()


def edits(proposals: list[Edit | Refusal]) -> list[Edit]:
    return [p for p in proposals if isinstance(p, Edit)]


def reasons(proposals: list[Edit | Refusal]) -> str:
    return "; ".join(f"{p.path}: {p.why}" for p in proposals if isinstance(p, Refusal))
