"""Options, cost, roles, checks and settling."""

import math

import pytest
import torch
from torch import nn

from leanconv.contract import Context, Cost
from leanconv.errors import Error
from leanconv.graph import record
from leanconv.rewrite import rewrite
from leanconv.techniques import batchnorm
from leanconv.techniques.batchnorm import BatchNorm1d, BatchNorm2d, Options, freeze, precise_statistics


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("eps", -3, "must be a finite number >= 0"),
        ("eps", math.inf, "must be a finite number >= 0"),
        ("momentum", -3, "must satisfy 0 <= momentum <= 1 or be None"),
        ("statistics", "mean", "must be running, precise or exact"),
        ("on_single", -3, "must be raise or running"),
        ("init", -3, "must be keep or fresh"),
    ],
)
def test_bad_options(name: str, value: object, rule: str) -> None:
    with pytest.raises(Error, match=f"^batchnorm: {name} {rule}, got {name}="):
        Options(**{name: value})


def test_cost_in_closed_form() -> None:
    assert batchnorm.cost(BatchNorm2d(8), (2, 8, 5, 5)) == Cost(16, 0, 4 * (2 * 400 + 16 + 16))
    assert batchnorm.cost(BatchNorm1d(8, affine=False, track_running_stats=False), (2, 8)) == Cost(0, 0, 4 * 32)
    with pytest.raises(Error, match=r"^batchnorm: cost is known for BatchNorm1d, 2d and 3d, got Linear$"):
        batchnorm.cost(nn.Linear(2, 2), (1, 2))
    with pytest.raises(Error, match=r"^BatchNorm2d: shape must have 8 channels, got shape \(2, 7, 5, 5\)$"):
        batchnorm.cost(BatchNorm2d(8), (2, 7, 5, 5))


def test_roles_of_every_norm() -> None:
    model = nn.ModuleDict(
        {
            "ours": BatchNorm2d(3),
            "torch": nn.BatchNorm1d(3),
            "group": nn.GroupNorm(1, 3),
            "layer": nn.LayerNorm(3),
            "instance": nn.InstanceNorm2d(3, affine=True),
            "bare": BatchNorm2d(3, affine=False),
            "conv": nn.Conv2d(3, 3, 3),
        }
    )
    named = ("ours", "torch", "group", "layer", "instance")
    assert batchnorm.roles(model) == {f"{n}.{p}": "norm" for n in named for p in ("weight", "bias")}
    twins = nn.Sequential(BatchNorm2d(3), BatchNorm2d(3))
    twins[1].weight = twins[0].weight
    assert set(batchnorm.roles(twins)) == {"0.weight", "0.bias", "1.bias"}, "a tied parameter has its first name"


def test_settling() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4))
    twin = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4))
    twin.load_state_dict(model.state_dict())
    batches = [torch.randn(4, 3, 6, 6) for _ in range(3)]
    assert batchnorm.attach(Context(model), Options(statistics="running")) is None
    for kind in ("precise", "exact"):
        attachment = batchnorm.attach(Context(model), Options(statistics=kind))
        assert attachment is not None
        attachment.settle(batches)
        precise_statistics(twin, batches)
        assert torch.allclose(model[1].running_var, twin[1].running_var)
        model[1].reset_running_stats()
    bare = batchnorm.attach(Context(nn.ReLU()), Options())
    assert bare is not None
    bare.settle([])


# --- checks ----------------------------------------------------------------------------------------------------------


def found(model: nn.Module, x: torch.Tensor | None = None, **more: object) -> dict[str, object]:
    x = torch.randn(2, 3, 8, 8) if x is None else x
    context = Context(model, record(model, x), **more)
    return {f.code: f for f in batchnorm.check(context)}


def good() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), BatchNorm2d(4), nn.ReLU()).train()


def test_a_good_network_has_no_finding() -> None:
    assert not found(good(), run={"recipe": {"training": {"batch": 64}}})


@pytest.mark.source("S10")
def test_activation_first() -> None:
    for model in (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.1), BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.BatchNorm2d(4)),
    ):
        assert "the batch norm stands after" in found(model)["BN001"].message
    before = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), BatchNorm2d(4, activation="relu"), nn.Conv2d(4, 4, 3))
    assert "BN001" not in found(before)


def test_cancelled_bias_and_its_exact_fix() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4), nn.ReLU()).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model(x)
    finding = found(model, x)["BN002"]
    assert finding.prices[0].value == 4
    mended = rewrite(model, finding.fix).model.eval()
    assert mended[0].bias is None
    assert model[0].bias is not None
    assert torch.allclose(mended(x), model.eval()(x), rtol=1e-10)
    assert "BN002" not in found(mended, x)
    twice = nn.Conv2d(3, 3, 3, padding=1)
    assert "BN002" not in found(nn.Sequential(twice, BatchNorm2d(3), twice))


def test_keras_momentum() -> None:
    assert "momentum=0.01" in found(nn.Sequential(BatchNorm2d(3, momentum=0.99)))["BN003"].message
    assert "BN003" not in found(nn.Sequential(BatchNorm2d(3, momentum=0.5)))


def test_eps_dominates() -> None:
    model = nn.Sequential(BatchNorm2d(3, eps=1e-3))
    precise_statistics(model, [0.01 * torch.randn(8, 3, 8, 8)])
    assert found(model)["BN004"].prices[0].value == pytest.approx(1e-3 / 1.1e-3, rel=0.1)
    precise_statistics(model, [torch.randn(8, 3, 8, 8)])
    assert "BN004" not in found(model)


def test_no_running_statistics() -> None:
    assert "BN005" in found(nn.Sequential(BatchNorm2d(3, track_running_stats=False)))


def test_tiny_batch() -> None:
    run = {"recipe": {"training": {"batch": 2}}}
    assert found(good(), run=run)["BN006"].prices[0].value == pytest.approx(math.sqrt(2))
    frozen = good()
    freeze(frozen)
    assert "BN006" not in found(frozen, run=run)
    assert "BN006" not in found(good(), run={"recipe": {}})


def test_unsettled_statistics() -> None:
    model = good().eval()
    assert "BN007" in found(model)
    precise_statistics(model, [torch.randn(8, 3, 8, 8)])
    assert "BN007" not in found(model)


def test_every_rule_is_documented() -> None:
    for rule in batchnorm.checks.RULES:
        for section in ("What:", "Why:", "Example:", "Fix:", "References:"):
            assert section in (rule.__doc__ or ""), f"{rule.__name__} has no section {section}"
