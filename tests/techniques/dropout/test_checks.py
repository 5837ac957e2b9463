"""Each rule: a network that breaks it, one that does not, and its fix."""

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.contract import Context, Finding
from leanconv.graph import record
from leanconv.rewrite import rewrite
from leanconv.techniques import dropout
from leanconv.techniques.dropout import DropBlock2d, Dropout, Dropout2d, checks

MAPS, FEATURES = torch.randn(4, 3, 8, 8), torch.randn(4, 6)


def _check(model: nn.Module, x: Tensor) -> list[Finding]:
    return list(dropout.check(Context(model, graph=record(model, x))))


def _codes(model: nn.Module, x: Tensor) -> list[str]:
    return [f.code for f in _check(model, x)]


class _Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(self, x))


CONV = nn.Conv2d(3, 3, 3, padding=1)
BROKEN = [
    ("DR001", nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.0), nn.Linear(6, 6)), FEATURES),
    ("DR001", nn.Sequential(nn.Linear(6, 6), Dropout(0), nn.Linear(6, 6)), FEATURES),
    ("DR002", nn.Sequential(CONV, nn.Dropout2d(0.3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), MAPS),
    ("DR002", nn.Sequential(CONV, Dropout2d(0.3), nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), MAPS),
    ("DR003", nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3)), FEATURES),
    ("DR003", nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Dropout(0.3), nn.Softmax(1)), FEATURES),
    ("DR004", nn.Sequential(CONV, nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(3, 3, 1)), MAPS),
    ("DR004", nn.Sequential(CONV, nn.ReLU(), Dropout(0.3), nn.MaxPool2d(2), nn.Conv2d(3, 3, 1)), MAPS),
    ("DR005", _Function(lambda self, x: F.dropout(x, 0.5)), FEATURES),
    ("DR005", _Function(lambda self, x: torch.dropout(x, 0.5, True)), FEATURES),
    ("DR005", _Function(lambda self, x: F.dropout2d(x[:, :, None, None], 0.5)[:, :, 0, 0]), FEATURES),
    ("DR006", nn.Sequential(CONV, nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), MAPS),
    ("DR006", nn.Sequential(Dropout2d(0.3), nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), MAPS),
    (
        "DR006",
        nn.Sequential(Dropout2d(0.3), nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        MAPS,
    ),
]
SOUND = [
    (nn.Sequential(CONV, nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4)), MAPS),
    (nn.Sequential(CONV, nn.ReLU(), Dropout2d(0.5), nn.Conv2d(3, 3, 1)), MAPS),
    (nn.Sequential(CONV, nn.ReLU(), DropBlock2d(0.1, 3), nn.Conv2d(3, 3, 1)), MAPS),
    (nn.Sequential(CONV, Dropout2d(0.5), nn.GroupNorm(1, 3), nn.Conv2d(3, 3, 1)), MAPS),
    (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Dropout(0.5), nn.Linear(6, 2), nn.Softmax(1)), FEATURES),
    (_Function(lambda self, x: F.dropout(x, 0.5, self.training)), FEATURES),
    (_Function(lambda self, x: F.dropout(x, 0.5, training=self.training)), FEATURES),
    (_Function(lambda self, x: F.dropout(x, 0.0)), FEATURES),
]


@pytest.mark.parametrize(("code", "model", "x"), BROKEN, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(BROKEN)])
def test_a_broken_rule_is_found_alone(code: str, model: nn.Module, x: Tensor) -> None:
    findings = _check(model, x)
    assert [f.code for f in findings] == [code]
    assert findings[0].message
    assert "\n" not in findings[0].message


@pytest.mark.parametrize(("model", "x"), SOUND, ids=range(len(SOUND)))
def test_a_sound_network_has_no_finding(model: nn.Module, x: Tensor) -> None:
    assert not _codes(model, x)


@pytest.mark.parametrize(("code", "model", "x"), [b for b in BROKEN if b[0] in ("DR001", "DR004")])
def test_a_fix_mends_it(code: str, model: nn.Module, x: Tensor) -> None:
    (finding,) = _check(model, x)
    assert not _codes(rewrite(model, finding.fix).model, x)


def test_without_a_graph_only_what_needs_none_speaks() -> None:
    found = [f.code for _, model, _ in BROKEN for f in dropout.check(Context(model))]
    assert found == ["DR001", "DR001"]


def test_shared_layers_are_named_once() -> None:
    shared = nn.Dropout(0.0)
    model = nn.Sequential(shared, nn.Linear(6, 6), shared)
    findings = list(dropout.check(Context(model)))
    assert len(findings) == 1
    assert set(findings[0].fix[0].put) == {"0", "2"}


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_the_predicted_variance_shift_is_what_a_batch_norm_learns(p: float) -> None:
    """After ReLU, through a convolution, as in Li et al. 2018: measured within 5 % of the prediction."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 1, bias=False)
    drop = Dropout(p)
    # Positions are what the variance runs over; channels have the mean and variance of ReLU of a standard normal.
    x = torch.relu(torch.randn(4000, 64, 1, 1))
    with torch.no_grad():
        ratio = (conv(drop(x)).var((0, 2, 3)) / conv(x).var((0, 2, 3))).mean().item()
    model = nn.Sequential(Dropout2d(p), conv, nn.BatchNorm2d(64))
    (finding,) = _check(model, x[:2])
    (price,) = finding.prices
    assert price.low < price.value < price.high
    assert price.value == pytest.approx(ratio, rel=0.05)


def test_rules_are_documented_and_numbered() -> None:
    for number, rule in enumerate(checks.RULES, 1):
        text = inspect.getdoc(rule)
        assert text.startswith(f"DR{number:03}: ")
        for section in ("What:", "Why:", "Example:", "Fix:", "References:"):
            assert section in text
