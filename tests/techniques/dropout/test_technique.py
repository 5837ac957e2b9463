"""Options, attach, cost: dropout as a technique among others."""

import pytest
import torch
from torch import nn

from leanconv import Error
from leanconv import nn as layers
from leanconv.contract import Context, Cost
from leanconv.techniques import dropout
from leanconv.techniques.dropout import Dropout, Options

BAD = [
    ({"p": 1.0}, "dropout: p must satisfy 0 <= p < 1, got p=1.0"),
    ({"p": -0.5}, "dropout: p must satisfy 0 <= p < 1, got p=-0.5"),
    ({"p": "0.5"}, "dropout: p must satisfy 0 <= p < 1, got p='0.5'"),
    ({"p": True}, "dropout: p must satisfy 0 <= p < 1, got p=True"),
    ({"mask": "row"}, "dropout: mask must be one of sample, batch, got mask='row'"),
    ({"count": 3}, "dropout: count must be one of bernoulli, exact, got count=3"),
    ({"where": "tail"}, "dropout: where must be one of auto, head, hidden, all, got where='tail'"),
    ({"strict": 1, "mask": "batch"}, "dropout: strict must be one of False, True, got strict=1"),
    ({"strict": True}, "dropout: strict needs mask='batch', got strict=True with mask='sample'"),
    ({"init": -3}, "dropout: init must be one of keep, fresh, got init=-3"),
]


@pytest.mark.parametrize(("given", "sentence"), BAD, ids=[s for _, s in BAD])
def test_bad_options_are_one_sentence(given, sentence) -> None:
    with pytest.raises(Error) as caught:
        Options(**given)
    assert str(caught.value) == sentence


def test_nothing_is_attached_without_strict() -> None:
    assert dropout.attach(Context(nn.Linear(2, 2)), Options()) is None


@pytest.mark.parametrize("missing", ["optimizer", "probe"])
def test_strict_needs_optimizer_and_probe(missing: str) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Dropout(0.5, "batch"), nn.Linear(5, 3))
    given = {"optimizer": torch.optim.SGD(model.parameters()), "probe": torch.ones(2, 4), missing: None}
    with pytest.raises(Error, match=f"^dropout: strict needs .* got {missing}=None$"):
        dropout.attach(Context(model, **given), Options(mask="batch", strict=True))


def test_strict_leaves_no_hook_behind() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Dropout(0.5, "batch"), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters())
    dropout.attach(
        Context(model, optimizer=optimizer, probe=torch.ones(2, 4)), Options(mask="batch", strict=True)
    ).close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks


def test_cost_is_traffic_alone() -> None:
    for layer in dropout.LAYERS:
        assert dropout.cost(layer(0.5), (2, 3, 4, 5)) == Cost(params=0, macs=0, bytes=2 * 120 * 4)


def test_everything_is_found_under_its_name() -> None:
    for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "DropBlock2d", "StochasticDepth"):
        assert getattr(dropout, name) in dropout.LAYERS
    for name in ("keyed", "strict", "skip", "monte_carlo"):
        assert callable(getattr(dropout, name))
        assert getattr(layers, name, getattr(dropout, name)) is getattr(dropout, name)
