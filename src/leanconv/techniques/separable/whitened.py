"""The least squares behind a fit of outputs, in coordinates in which each channel's patches are white."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Problem", "best", "improved_depthwise", "pointwise_for", "products"]

_STALLED = 1e-3  # relative gain of a turn below which it ends
_STEPS = 12  # of conjugate gradients in one turn
_JITTER = 1e-12  # of the mean diagonal, so that every factorisation exists


@dataclass(frozen=True, eq=False)
class Problem:
    """Minimise ``E |y - P D x|^2 + e |W - P D|^2`` over P (Cout, C m) and D, m rows of K for each of C channels.

    With ``S + e I`` (S the second moments of x) and L_c L_c^T its block of channel c, x becomes L^-1 x and D becomes
    D L: every block is the identity then, so the problem has no scale of its own and per-channel parts are orthogonal.

    Attributes:
        weight: (Cout, C, K), W L.
        second: (C, K, C K), L^-1 (S + e I) L^-T.
        cross: (Cout, C, K), (U + e W) L^-T, U the cross moments of y and x.
        root, inverse: (C, K, K), L and L^-1.
        energy: of y and of the ridge, by the metric.
        metric: (Cout, Cout) of the outputs' errors; None: the identity.
    """

    weight: Tensor
    second: Tensor
    cross: Tensor
    root: Tensor
    inverse: Tensor
    energy: float
    metric: Tensor | None

    @classmethod
    def build(
        cls, weight: Tensor, moments: tuple[Tensor, Tensor, Tensor], kernel: int, ridge: float, metric: Tensor | None
    ) -> Problem:
        """From W (Cout, n) and the moments (S, U, energy) of one group, n = C K; the ridge is relative."""
        second, cross, energy = moments
        inputs = second.shape[0]
        level = float(second.diagonal().mean()) * ridge
        level = level if level > 0 else 1.0
        blocks = second.view(inputs // kernel, kernel, -1, kernel).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        root = torch.linalg.cholesky(blocks + level * torch.eye(kernel, dtype=second.dtype, device=second.device))
        inverse = torch.linalg.solve_triangular(root, torch.eye(kernel).to(root), upper=False)
        white = second + level * torch.eye(inputs, dtype=second.dtype, device=second.device)
        for _ in range(2):  # rows, then columns
            white = (inverse @ white.view(len(root), kernel, -1)).view(inputs, inputs).T.contiguous()
        split = weight.view(len(weight), -1, kernel)
        crossed = _times(cross.view_as(split) + level * split, inverse.transpose(1, 2))
        lost = energy + level * weight @ weight.T
        whole = lost.diagonal().sum() if metric is None else (metric * lost).sum()
        return cls(_times(split, root), white.view(len(root), kernel, -1), crossed, root, inverse, float(whole), metric)

    def weighted(self, outputs: Tensor) -> Tensor:
        """The metric times (Cout, ...)."""
        return outputs if self.metric is None else (self.metric @ outputs.flatten(1)).view_as(outputs)


def best(problem: Problem, rank: int, rounds: int) -> tuple[Tensor, Tensor]:
    """P (Cout, C, m) and D (C, m, K), in the coordinates of the weights.

    Each round improves D for the P at hand and then solves for P.
    """
    tries = [(d, *pointwise_for(problem, d)) for d in _starts(problem, rank)]
    depthwise, pointwise, loss = min(tries, key=lambda found: found[2])
    for _ in range(rounds):
        trial = _orthonormal(improved_depthwise(problem, pointwise, depthwise))
        solved, found = pointwise_for(problem, trial)
        gain = loss - found
        if gain > 0:
            depthwise, pointwise, loss = trial, solved, found
        if gain <= _STALLED * abs(loss):
            break
    return pointwise.view(len(pointwise), len(depthwise), rank), depthwise @ problem.inverse


def pointwise_for(problem: Problem, depthwise: Tensor) -> tuple[Tensor, float]:
    """The best P (Cout, C m) for D, ``U D^T (D S D^T)^-1``, whatever the metric; and what is lost with it."""
    cross = _times(problem.cross, depthwise.transpose(1, 2)).flatten(1)
    gram = products(problem.second, depthwise)
    gram.diagonal().add_(_JITTER * float(gram.diagonal().mean()))
    found = torch.cholesky_solve(cross.T, torch.linalg.cholesky(gram)).T.contiguous()
    return found, problem.energy - float((problem.weighted(found) * cross).sum())


def improved_depthwise(problem: Problem, pointwise: Tensor, depthwise: Tensor, steps: int = _STEPS) -> Tensor:
    """D (C, m, K) after some steps of conjugate gradients on ``P^T M P D S = P^T M U``, from the D that is given.

    The diagonal blocks of P^T M P precondition it, S has unit blocks already. A step costs C^2 (m^2 K + m K^2)
    multiply-adds: the (C m K)^2 matrix is never formed.
    """
    channels, rank, _ = depthwise.shape
    weighted = problem.weighted(pointwise)
    gram = pointwise.T @ weighted
    split = weighted.view(-1, channels, rank)
    target = torch.einsum("ocj,ock->cjk", split, problem.cross)
    by_channel = gram.view(channels * rank, channels, rank).transpose(0, 1).contiguous()
    own = gram.view(channels, rank, channels, rank).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    scale = _JITTER + 1e-9 * float(own.diagonal(dim1=1, dim2=2).mean())
    inverse = torch.linalg.inv(own + scale * torch.eye(rank, dtype=own.dtype, device=own.device))

    def operator(d: Tensor) -> Tensor:
        mixed = (by_channel @ d).transpose(0, 1).reshape(channels, rank, -1)
        return mixed @ problem.second.transpose(1, 2)

    rest = target - operator(depthwise)
    towards = inverse @ rest
    direction, size = towards, float((rest * towards).sum())
    for _ in range(steps):
        image = operator(direction)
        curvature = float((direction * image).sum())
        if size <= 0 or curvature <= 0:
            break
        depthwise = depthwise + size / curvature * direction
        rest = rest - size / curvature * image
        towards = inverse @ rest
        before, size = size, float((rest * towards).sum())
        direction = towards + size / before * direction
    return depthwise


def products(second: Tensor, depthwise: Tensor) -> Tensor:
    """D S D^T (C m, C m), for S as (C, K, C K) and D (C, m, K)."""
    channels, rank, kernel = depthwise.shape
    half = (depthwise @ second).view(channels * rank, channels, kernel).transpose(0, 1)
    return (half @ depthwise.transpose(1, 2)).permute(1, 0, 2).reshape(channels * rank, channels * rank)


def _starts(problem: Problem, rank: int) -> list[Tensor]:
    """D from the truncated SVD per channel of the whitened weights, and from that of the weights themselves."""
    plain = _times(problem.weight, problem.inverse)
    white = _leading(problem.weight, problem.weighted(problem.weight), rank)
    return [white, _orthonormal(_leading(plain, plain, rank) @ problem.root)]


def _leading(weight: Tensor, weighted: Tensor, rank: int) -> Tensor:
    """(C, m, K): for each channel the m leading right singular vectors, as eigenvectors of W^T M W."""
    gram = torch.einsum("ock,ocl->ckl", weight, weighted)
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors[:, :, -rank:].flip(2).transpose(1, 2)


def _orthonormal(depthwise: Tensor) -> Tensor:
    """Rows that span the same for each channel; what P makes of them stays the same."""
    columns: Tensor = torch.linalg.qr(depthwise.transpose(1, 2)).Q
    return columns.transpose(1, 2)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """(Cout, C, a) times (C, a, b), channel by channel."""
    return (left.transpose(0, 1) @ right).transpose(0, 1)
