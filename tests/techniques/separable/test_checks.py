"""Each rule with a bad example that it finds and a good one that it leaves alone."""

import pytest
import torch
from torch import nn

from leanconv.contract import Context, Finding
from leanconv.graph import record
from leanconv.rewrite import rewrite
from leanconv.techniques import separable
from leanconv.techniques.separable import checks


def findings(model: nn.Module, code: str, **context: object) -> list[Finding]:
    found = list(separable.check(Context(model, **context)))  # type: ignore[arg-type]
    return [f for f in found if f.code == code]


@pytest.mark.parametrize(
    "layer",
    [
        separable.SeparableConv2d(64, 1, 3),
        separable.SeparableConv2d(8, 16, 1),
        separable.SeparableConv2d(8, 16, 3, depth_multiplier=9),
    ],
)
def test_a_separable_layer_that_loses_is_found_and_mended(layer: nn.Module) -> None:
    model = nn.Sequential(layer).double()
    (finding,) = findings(model, "SC001")
    assert finding.prices[0].value >= 1
    mended = rewrite(model, finding.fix).model
    x = torch.randn(1, layer.in_channels, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(mended(x), model(x), rtol=1e-10, atol=1e-12)
    assert sum(p.numel() for p in mended.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_separable_layer_that_saves_is_fine() -> None:
    assert findings(nn.Sequential(separable.SeparableConv2d(8, 16, 3)), "SC001") == []


def test_decay_on_depthwise_filters() -> None:
    model = nn.Sequential(separable.SeparableConv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    bad = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    (finding,) = findings(model, "SC002", optimizer=bad)
    assert "acts on 2 depthwise filters" in finding.message
    assert finding.prices[0].value == pytest.approx(69314.7, rel=1e-4)
    depthwise = {model[0].conv_dw.weight, model[1].weight}
    rest = [p for p in model.parameters() if p not in depthwise]
    groups = [{"params": list(depthwise), "weight_decay": 0.0}, {"params": rest, "weight_decay": 1e-4}]
    assert findings(model, "SC002", optimizer=torch.optim.SGD(groups, lr=0.1)) == []
    assert findings(model, "SC002") == []


def test_an_activation_after_the_depthwise_half_wants_a_norm() -> None:
    x = torch.randn(2, 4, 8, 8)
    bad = nn.Sequential(
        separable.SeparableConv2d(4, 8, 3, act_layer=nn.ReLU), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8)
    )
    (finding,) = findings(bad, "SC003", graph=record(bad, x))
    assert finding.path == "0.conv_dw"
    good = nn.Sequential(separable.SeparableConv2d(4, 8, 3, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU))
    assert findings(good, "SC003", graph=record(good, x)) == []
    without = nn.Sequential(separable.SeparableConv2d(4, 8, 3, act_layer=nn.ReLU))
    assert findings(without, "SC003", graph=record(without, x)) == []


def test_torchs_slow_multiplier_is_found_and_mended_exactly() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 5, 2, 2, groups=4), nn.Conv2d(8, 8, 3, groups=8)).double()
    (finding,) = findings(model, "SC004")
    assert finding.path == "0"
    mended = rewrite(model, finding.fix).model
    assert type(mended[0]) is separable.DepthwiseConv2d
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(mended(x), model(x), rtol=1e-10, atol=1e-12)
    assert mended.state_dict().keys() == model.state_dict().keys()
    assert findings(mended, "SC004") == []


@pytest.mark.parametrize("rule", checks.RULES, ids=lambda r: r.__name__)
def test_every_rule_is_documented(rule: object) -> None:
    text = rule.__doc__ or ""
    positions = [text.find(f"{section}:") for section in ("What", "Why", "Example", "Fix", "References")]
    assert -1 not in positions
    assert positions == sorted(positions)
