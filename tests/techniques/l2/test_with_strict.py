"""L2 beside strict dropout: what a step stops is decayed in none of the three places."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leanconv import techniques
from leanconv.contract import Context
from leanconv.graph import record
from leanconv.techniques import dropout, l2

PLACES = [
    (where, kind)
    for where in ("loss", "optimizer", "decoupled")
    for kind in ("SGD", "Adam", "AdamW")
    if (where, kind) != ("optimizer", "AdamW")
]


@pytest.mark.source("S4", "S15")
@pytest.mark.parametrize(("where", "kind"), PLACES)
def test_stopped_entries_are_kept_to_the_bit(where: l2.Where, kind: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), dropout.Dropout(0.5, mask="batch"), nn.Linear(8, 3))
        momentum = {"momentum": 0.9} if kind == "SGD" else {}
        optimizer = getattr(torch.optim, kind)(l2.param_groups(model, strength=0.0), lr=0.1, **momentum)
        probe = torch.randn(2, 6)
        ctx = Context(model, record(model, probe), optimizer=optimizer, probe=probe, roles=techniques.roles(model))
        strict = dropout.attach(ctx, dropout.Options(p=0.5, mask="batch", strict=True))
        decay = l2.attach(ctx, l2.Options(0.3, where=where))
        assert strict is not None
        kept = moved = 0
        for _ in range(15):
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.zero_grad()
            c0 = F.cross_entropy(model(torch.randn(4, 6)), torch.randint(0, 3, (4,)))
            stopped = {name: mask.clone() for name, mask in strict.stopped().items()}
            l2.objective(c0, decay.penalty(stopped)).c.backward()
            optimizer.step()
            for name, mask in stopped.items():
                p = model.get_parameter(name).detach()
                assert torch.equal(p[mask.expand_as(p)], before[name][mask.expand_as(p)]), name
                kept += int(mask.expand_as(p).sum())
                moved += int((p != before[name]).sum())
    assert kept > 0
    assert moved > 0
