"""Each rule: one case that it must find, one that it must leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from l2_nets import ROLES, WEIGHTS, net
from leanconv.contract import Context, Finding
from leanconv.techniques.l2 import check, decouple, param_groups
from leanconv.techniques.l2.checks import RULES


def recipe(**l2: Any) -> dict[str, Any]:
    return {"recipe": {"techniques": {"l2": l2}}}


def found(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, run: dict[str, Any] | None = None
) -> list[Finding]:
    return list(check(Context(model, optimizer=optimizer, run=run, roles=ROLES)))


def codes(*arguments: Any) -> list[str]:
    return [finding.code for finding in found(*arguments)]


def test_decay_on_biases_is_found_and_priced() -> None:
    model = net()
    (finding,) = found(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-2))
    assert (finding.code, finding.path) == ("L2001", "optimizer.param_groups[0]")
    assert finding.message.startswith("weight_decay=0.01 acts on 0.bias and 4 more")
    assert finding.prices[0].value == pytest.approx(0.6931471805599453 / 1e-3)


def test_groups_by_role_are_clean() -> None:
    model = net()
    assert codes(model, torch.optim.SGD(param_groups(model, strength=5e-4, roles=ROLES), lr=0.1)) == []
    assert codes(model, torch.optim.AdamW(param_groups(model, strength=1e-2, roles=ROLES))) == []


def test_nothing_is_said_without_an_optimizer() -> None:
    assert codes(net(), None) == []


@pytest.mark.parametrize("kind", ["Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop"])
def test_coupled_decay_under_a_rescaling_optimizer(kind: str) -> None:
    model = net()
    optimizer = getattr(torch.optim, kind)(param_groups(model, strength=0.01, roles=ROLES), lr=1e-3)
    assert codes(model, optimizer) == ["L2002", "L2002"]
    assert kind in found(model, optimizer)[0].message


def test_a_penalty_in_the_loss_under_adam() -> None:
    model = net()
    for kind in ("Adam", "AdamW"):
        optimizer = getattr(torch.optim, kind)(param_groups(model, strength=0.0, roles=ROLES))
        assert codes(model, optimizer, recipe()) == ["L2002"]
        assert codes(model, optimizer, recipe(where="decoupled")) == []


def test_double_decay_by_penalty_or_hook() -> None:
    model = net()
    sgd = torch.optim.SGD(param_groups(model, strength=0.01, roles=ROLES), lr=0.1)
    assert codes(model, sgd, recipe(where="loss", strength=0.01)) == ["L2003", "L2003"]
    assert codes(model, sgd, recipe(where="loss", strength=0.0)) == []
    assert codes(model, sgd, recipe(where="loss", depthwise=False)) == ["L2003"]
    assert codes(model, sgd, recipe(where="optimizer")) == []
    decouple(sgd, {model.get_parameter(name): 0.0 for name in WEIGHTS})
    assert codes(model, sgd) == []
    decouple(sgd, {model.get_parameter(name): 0.1 for name in WEIGHTS})
    assert [f.severity for f in found(model, sgd)] == ["error", "error"]
    assert "decoupled hook" in found(model, sgd)[0].message


def test_a_decay_too_weak_to_matter() -> None:
    model = net()
    weak = torch.optim.SGD(param_groups(model, strength=5e-4, form="lambda/2n", n=50_000, roles=ROLES), lr=0.1)
    assert codes(model, weak) == ["L2004", "L2004"]
    assert (
        codes(
            model, torch.optim.SGD(param_groups(model, strength=25.0, form="lambda/2n", n=50_000, roles=ROLES), lr=0.1)
        )
        == []
    )


def test_unknown_parameters_and_empty_recipes_are_no_trouble() -> None:
    model = net()
    other = torch.optim.SGD(net(1).parameters(), lr=0.1, weight_decay=0.1)
    assert codes(model, other) == []
    for run in ({}, {"recipe": None}, {"recipe": {"techniques": {"l2": None}}}, {"recipe": {"techniques": {}}}):
        assert codes(model, torch.optim.SGD(param_groups(model, strength=0.0, roles=ROLES), lr=0.1), run) == []


def test_checks_leave_everything_as_it_was() -> None:
    model = net()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    groups, state = str(sgd.param_groups), {k: v.clone() for k, v in model.state_dict().items()}
    found(model, sgd)
    assert str(sgd.param_groups) == groups
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert list(ROLES) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_rule_has_its_sections(rule: Any) -> None:
    text = rule.__doc__ or ""
    assert text.startswith("L200")
    assert all(f"\n    {section}:\n" in text for section in ("What", "Why", "Example", "Fix", "References"))
