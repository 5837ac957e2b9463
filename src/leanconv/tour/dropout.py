"""Figure 2-10, another mask for every batch, and the ensemble of all of them (rows S2, S5 and S6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.kernels.keys import keyed
from leanconv.techniques.dropout import Dropout, enumerate_ensemble, geometric_mean, weight_scaling

__all__ = ["ensemble", "figure_2_10"]

_SIZES = (5, 8, 8, 3)
_BATCHES = 12
_UNITS = 10


def figure_2_10(seed: int = 3) -> dict[str, Any]:
    """A fully connected network 5-8-8-3, and which units each of some batches leaves at work.

    Returns:
        ``sizes``; ``p``; ``batches``: for each, ``kept`` (a list per layer of whether a unit works) and ``output``,
        what the network says of one input with that mask; ``in_use``: what it says with all units.
    """
    torch.manual_seed(seed)
    first, second = Dropout(0.5, mask="batch"), Dropout(0.5, mask="batch")
    net = nn.Sequential(
        *(nn.Linear(_SIZES[0], _SIZES[1]), nn.Tanh(), first),
        *(nn.Linear(_SIZES[1], _SIZES[2]), nn.Tanh(), second),
        nn.Linear(_SIZES[2], _SIZES[3]),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)  # untrained, it would hardly tell the three classes apart
    x = torch.randn(4, _SIZES[0])
    seen: dict[int, Tensor] = {}
    for number, layer in enumerate((first, second)):

        def look(_module: nn.Module, _args: object, output: Tensor, number: int = number) -> None:
            seen[number] = output

        layer.register_forward_hook(look)
    batches = []
    with torch.no_grad():
        for step in range(_BATCHES):
            with keyed(seed, step):
                output = net.train()(x)[0].softmax(0)
            # tanh of a weighted sum is 0 for no input drawn here, so a zero is a stopped unit.
            kept = [(seen[number] != 0).all(0).tolist() for number in (0, 1)]
            batches.append({"kept": [[True] * _SIZES[0], *kept, [True] * _SIZES[3]], "output": output.tolist()})
        in_use = net.eval()(x)[0].softmax(0).tolist()
    return {"sizes": list(_SIZES), "p": 0.5, "batches": batches, "in_use": in_use}


def ensemble(seed: int = 5) -> dict[str, Any]:
    """All 2^10 sub-networks of one dropout layer before a softmax.

    Returns:
        ``count``; ``histogram`` of the probability that each gives to the first class, in 40 bins from 0 to 1, weighted
        by how likely its mask is; ``arithmetic`` and ``geometric`` means (the latter normalised); ``scaling``: one pass
        with all units; ``difference``: the greatest between the last two, over all classes and inputs.
    """
    torch.manual_seed(seed)
    last = nn.Linear(_UNITS, 3)
    with torch.no_grad():
        last.weight.mul_(3)
    net = nn.Sequential(nn.Linear(6, _UNITS), nn.Tanh(), Dropout(0.5), last).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    found = enumerate_ensemble(net, x)
    each = found.log_predictions[..., 0].exp()
    shown = int(each.std(0).argmax())  # the input on which they differ most
    each = each[:, shown]
    counts = torch.zeros(40, dtype=torch.float64)
    counts.index_add_(0, (each * 40).long().clamp(0, 39), found.weights)
    geometric, scaling = geometric_mean(found), weight_scaling(net, x)
    return {
        "count": len(found.masks),
        "units": _UNITS,
        "histogram": counts.tolist(),
        "arithmetic": float((found.weights * each).sum()),
        "geometric": float(geometric[shown, 0]),
        "scaling": float(scaling[shown, 0]),
        "difference": float((geometric - scaling).abs().max()),
    }
