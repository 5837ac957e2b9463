"""What is measured inside the network, against tensors taken by hand; and that looking changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from leanconv import training
from leanconv.training import Job, loop
from leanconv.training.watching import Watching, first_nonfinite
from pictures import flat, quick


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(320, 2)
    )


X, Y = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 0, 1, 0, 1])


@pytest.mark.source("S11")
@pytest.mark.source("S12")
@pytest.mark.source("S16")
@pytest.mark.source("S25")
def test_moments_gradients_and_weights_are_those_of_the_step() -> None:
    net = network()
    watching = Watching(net, X)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with watching:
        cross_entropy(net(X), Y).backward()
        gradients = {n: p.grad.double().clone() for n, p in net.named_parameters() if p.grad is not None}
        optimizer.step()
    rows = {row["path"]: row for row in watching.layers}
    assert list(rows) == ["0", "1", "3", "6"]
    again = network().requires_grad_(False)
    hidden = again[2](again[1](again[0](X))).double()
    last = again[4](again[3](hidden.float())).double()
    for path, out in (("0", hidden), ("3", last)):
        d = out - out.mean()
        var = d.square().mean()
        assert rows[path]["mean"] == pytest.approx(float(out.mean()), rel=1e-6, abs=1e-8)
        assert rows[path]["std"] == pytest.approx(float(var.sqrt()), rel=1e-6)
        assert rows[path]["skew"] == pytest.approx(float(d.pow(3).mean() / var**1.5), rel=1e-5, abs=1e-7)
        assert rows[path]["kurtosis"] == pytest.approx(float(d.pow(4).mean() / var**2 - 3), rel=1e-5)
        assert rows[path]["zeros"] == float((out == 0).double().mean())
    entering = {"0": again[1](again[0](X)).double(), "3": again[3](hidden.float()).double()}
    for path, out in entering.items():
        pre, d = rows[path]["pre"], out - out.mean()
        std = float(d.square().mean().sqrt())
        assert pre["mean"] == pytest.approx(float(out.mean()), rel=1e-5, abs=1e-7)
        assert pre["std"] == pytest.approx(std, rel=1e-6)
        low, width = float(out.mean()) - 4 * std, 8 * std / 40
        places = ((out - low) / width).floor().long().flatten()
        expected = torch.bincount(places[(places >= 0) & (places < 40)], minlength=40).tolist()
        assert sum(pre["histogram"]) == sum(expected)
        # A value at the border of two bins may fall into either.
        assert sum(abs(a - b) for a, b in zip(pre["histogram"], expected, strict=True)) <= 4
    for path, row in rows.items():
        own = [gradients[f"{path}.weight"], gradients[f"{path}.bias"]]
        assert row["grad_norm"] == pytest.approx(float(sum(g.square().sum() for g in own)) ** 0.5, rel=1e-6)
        assert row["weight_norm"] == pytest.approx(
            float(net.get_submodule(path).weight.detach().double().norm()), rel=1e-6
        )


def test_looking_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = flat(Path("pics"))
    watched = training.run.run(images, quick(), Job("a"))
    monkeypatch.setattr(loop._Training, "watched_step", loop._Training.step)
    blind = training.run.run(images, quick(), Job("b"))
    assert watched.record.extra["weights_sha256"] == blind.record.extra["weights_sha256"]
    assert [row.loss for row in watched.metrics] == [row.loss for row in blind.metrics]
    assert len(watched.metrics[0].extra["layers"]) > 3
    assert "layers" not in blind.metrics[0].extra


def test_where_numbers_went_wrong() -> None:
    net = network()
    with torch.no_grad():
        net[3].weight[0, 0, 0, 0] = float("inf")
    before = {n: v.clone() for n, v in net.state_dict().items()}
    told = first_nonfinite(net, X, Y, cross_entropy)
    assert told.startswith("the weights were no longer finite before the step: 1 infinite of 180 values")
    assert "3.weight" in told
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert "the images were not finite" in first_nonfinite(network(), X / 0, Y, cross_entropy)


class Exploding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1e38 * 1e38


def test_the_first_layer_whose_output_is_not_finite_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Exploding(), nn.Flatten(), nn.Linear(400, 2))
    told = first_nonfinite(net, X, Y, cross_entropy)
    assert "the output of 1 (Exploding) was the first that was not finite" in told
