"""Parameter groups by role, and the ledger of every parameter's role and decay."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import leanconv
from l2_nets import ROLES, N, net, train
from leanconv.errors import Error
from leanconv.techniques.l2 import ledger, param_groups, penalty

OPTIMIZERS = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "ASGD", "Adafactor"]


@pytest.mark.source("S15")
def test_groups_by_role_decay_weights_only() -> None:
    groups = {g["role"]: g for g in param_groups(net(), strength=0.25)}
    assert {role: g["weight_decay"] for role, g in groups.items()} == {
        "weight": 0.25,
        "bias": 0.0,
        "norm": 0.0,
        "depthwise": 0.25,
    }
    assert groups["weight"]["names"] == ["0.weight", "6.weight"]
    assert groups["norm"]["names"] == ["1.weight", "1.bias"]


def test_groups_hold_the_parameters_themselves_each_once() -> None:
    model = net()
    groups = param_groups(model, roles=ROLES)
    pairs = [(name, p) for g in groups for name, p in zip(g["names"], g["params"], strict=True)]
    assert len(pairs) == len(ROLES)
    assert all(p is model.get_parameter(name) for name, p in pairs)


def test_depthwise_can_be_left_out() -> None:
    groups = {g["role"]: g["weight_decay"] for g in param_groups(net(), strength=0.25, depthwise=False, roles=ROLES)}
    assert (groups["weight"], groups["depthwise"]) == (0.25, 0.0)


def test_a_role_of_another_technique_is_a_group_without_decay() -> None:
    groups = {g["role"]: g["weight_decay"] for g in param_groups(net(), roles={**ROLES, "6.weight": "scale"})}
    assert groups["scale"] == 0.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_work_with_every_optimizer(name: str) -> None:
    model = net()
    optimizer = getattr(torch.optim, name)(param_groups(model, strength=1e-3, roles=ROLES), lr=1e-3)
    before = model.get_parameter("0.weight").detach().clone()
    train(model, optimizer, 2)
    assert not torch.equal(before, model.get_parameter("0.weight"))
    assert [g["role"] for g in optimizer.param_groups] == ["weight", "bias", "norm", "depthwise"]
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["names"] == ["0.weight", "6.weight"]


@pytest.mark.source("S14")
def test_groups_and_penalty_take_the_same_steps() -> None:
    by_groups, by_loss = net(), net()
    options: dict[str, Any] = {"strength": 0.8, "form": "lambda/2n", "n": N, "roles": ROLES}
    train(by_groups, torch.optim.SGD(param_groups(by_groups, **options), lr=0.05, momentum=0.9, nesterov=True), 100)
    sgd = torch.optim.SGD(by_loss.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    train(by_loss, sgd, 100, lambda: penalty(by_loss, 0.8, "lambda/2n", N, roles=ROLES))
    for name, p in by_loss.named_parameters():
        torch.testing.assert_close(by_groups.get_parameter(name), p, rtol=1e-12, atol=1e-12)


def test_it_is_public() -> None:
    assert leanconv.param_groups is param_groups


def test_tied_parameters_are_in_one_group_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    names = [name for g in param_groups(model) for name in g["names"]]
    assert sorted(names) == ["0.bias", "0.weight", "1.bias"]
    torch.optim.SGD(param_groups(model), lr=0.1)


def test_groups_refuse_what_they_cannot_do() -> None:
    with pytest.raises(Error, match="must have parameters, got ReLU without any"):
        param_groups(nn.ReLU())
    with pytest.raises(Error, match=r"roles must name every parameter, got none for '0\.bias'"):
        param_groups(net(), roles={"0.weight": "weight"})
    with pytest.raises(Error, match="number of training images"):
        param_groups(net(), form="lambda/2n")


@pytest.mark.source("S15")
def test_ledger_has_every_parameter_exactly_once_with_its_decay() -> None:
    model = net()
    rows = ledger(model, strength=0.8, form="lambda/2n", n=N, roles=ROLES).rows
    assert [row.name for row in rows] == [name for name, _ in model.named_parameters()]
    assert {row.name: row.role for row in rows} == ROLES
    for row in rows:
        p = model.get_parameter(row.name)
        assert (row.shape, row.count) == (tuple(p.shape), p.numel())
        decayed = row.role in ("weight", "depthwise")
        assert row.weight_decay == (0.8 / N if decayed else 0.0)
        assert (row.where, row.form, row.coefficient) == (("loss", "lambda/2n", 0.8) if decayed else ("-", "-", 0.0))


@pytest.mark.source("S14")
def test_the_table_prints_lambda_and_the_equivalent_weight_decay() -> None:
    made = ledger(net(), strength=0.8, form="lambda/2n", n=N, depthwise=False, roles=ROLES)
    text = made.table()
    assert str(made) == text
    head, rule, *lines, foot = text.splitlines()
    assert head.split() == ["parameter", "shape", "role", "decayed", "in", "form", "lambda", "weight_decay", "count"]
    assert set(rule) == {"-", " "}
    cells = {line.split()[0]: line.split() for line in lines}
    assert cells["0.weight"] == ["0.weight", "4x2x3x3", "weight", "loss", "lambda/2n", "0.8", "0.02", "72"]
    assert cells["3.weight"] == ["3.weight", "4x1x3x3", "depthwise", "-", "-", "0", "0", "36"]
    assert len(lines) == len(ROLES)
    assert foot == "120 of 175 numbers are decayed"


def test_ledger_of_an_optimizer_reads_its_own_groups() -> None:
    model = net()
    groups = param_groups(model, strength=0.01)
    coupled = ledger(torch.optim.SGD(groups, lr=0.1))
    assert sorted(row.name for row in coupled.rows) == sorted(ROLES)
    assert {row.where for row in coupled.rows if row.weight_decay} == {"optimizer"}
    adamw = torch.optim.AdamW(param_groups(model, strength=0.01))
    assert {row.where for row in ledger(adamw).rows if row.weight_decay} == {"decoupled"}
    assert {(row.form, row.coefficient) for row in ledger(groups).rows if row.weight_decay} == {("lambda/2", 0.01)}


def test_records_are_plain() -> None:
    records = ledger(net(), strength=0.01, roles=ROLES).records()
    assert json.loads(json.dumps(records)) == records
    assert records[0]["name"] == "0.weight"
    assert records[0]["shape"] == [4, 2, 3, 3]


def test_ledger_refuses_nameless_groups_and_doubles() -> None:
    model = net()
    with pytest.raises(Error, match="a group must have names"):
        ledger(torch.optim.SGD(model.parameters(), lr=0.1))
    groups = param_groups(model)
    with pytest.raises(Error, match=r"a parameter belongs to one group, got '0\.weight' 2 times"):
        ledger([*groups, groups[0]])
