from __future__ import annotations

import math

import pytest
from torch import nn
from torch.optim import SGD, AdamW

from leanconv import techniques
from leanconv.recipe import Training
from leanconv.techniques.batchnorm import BatchNorm2d
from leanconv.techniques.separable import SeparableConv2d
from leanconv.training import optim


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), BatchNorm2d(8), SeparableConv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))


def test_one_group_per_role_and_each_parameter_once() -> None:
    model = network()
    roles = techniques.roles(model)
    groups = optim.groups(model, roles, 0.1)
    assert sorted(g["role"] for g in groups) == ["bias", "depthwise", "norm", "weight"]
    named = [(n, p) for g in groups for n, p in zip(g["names"], g["params"], strict=True)]
    assert {n: id(p) for n, p in named} == {n: id(p) for n, p in model.named_parameters()}
    assert all(roles[n] == g["role"] for g in groups for n in g["names"])
    assert all((g["weight_decay"], g["lr"]) == (0.0, 0.1) for g in groups)


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    groups = optim.groups(model, techniques.roles(model), 0.1)
    assert "0.weight" not in [n for g in groups for n in g["names"]]


def test_the_optimizers() -> None:
    model = network()
    roles = techniques.roles(model)
    sgd = optim.make(model, roles, Training(lr=0.2, momentum=0.8, nesterov=True))
    assert type(sgd) is SGD
    assert all((g["momentum"], g["nesterov"], g["lr"]) == (0.8, True, 0.2) for g in sgd.param_groups)
    adamw = optim.make(model, roles, Training(optimizer="adamw", lr=1e-3))
    assert type(adamw) is AdamW
    assert all(g["weight_decay"] == 0 for g in adamw.param_groups)


def test_the_rate_rises_then_follows_the_cosine() -> None:
    settings = Training(epochs=5, warmup=2.0)
    factors = [optim.factor(settings, step, 10) for step in range(50)]
    assert factors[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert factors[20:] == pytest.approx([(1 + math.cos(math.pi * i / 30)) / 2 for i in range(30)])
    assert factors[-1] > 0


def test_a_constant_rate_and_a_warm_up_longer_than_the_training() -> None:
    constant = Training(epochs=2, warmup=0, schedule="constant")
    assert {optim.factor(constant, step, 7) for step in range(14)} == {1.0}
    long = Training(epochs=1, warmup=100.0)
    factors = [optim.factor(long, step, 10) for step in range(10)]
    assert max(factors) == 1.0
    assert optim.factor(Training(epochs=1, warmup=1.0), 0, 1) == 1.0
