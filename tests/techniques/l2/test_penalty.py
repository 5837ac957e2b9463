"""The penalty of equations 2-10 to 2-13: its value, its gradient, and who is in it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from l2_nets import OTHERS, ROLES, WEIGHTS, N, batches, copied, gradients, net, train
from leanconv.errors import Error
from leanconv.techniques.l2 import norms, objective, penalty, weight_decay
from leanconv.techniques.l2.forms import FORMS, Form

FORM = st.sampled_from(FORMS)


def plain(values: list[list[float]], strength: float, form: str, n: int) -> float:
    """The formula as it is printed, in Python floats."""
    total = math.fsum(w * w for row in values for w in row)
    return {"lambda/2n": strength / (2 * n), "lambda/2": strength / 2, "lambda": strength}[form] * total


@pytest.mark.source("S14")
@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.lists(st.floats(-4, 4), min_size=1, max_size=5), min_size=1, max_size=4),
    strength=st.floats(0, 3),
    form=FORM,
    n=st.integers(1, 1000),
)
def test_value_is_the_formula(values: list[list[float]], strength: float, form: Form, n: int) -> None:
    tensors = [torch.tensor(row, dtype=torch.float64) for row in values]
    assert penalty(tensors, strength, form, n).item() == pytest.approx(plain(values, strength, form, n), rel=1e-13)


@pytest.mark.source("S14", "S15")
@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_decay_times_weight_and_nothing_for_the_others(form: Form) -> None:
    model = net()
    penalty(model, 0.3, form, N, roles=ROLES).backward()
    for name, p in model.named_parameters():
        if name in OTHERS:
            assert p.grad is None, name
        else:
            assert p.grad is not None, name
            torch.testing.assert_close(p.grad, weight_decay(0.3, form, N) * p.detach(), rtol=1e-15, atol=0)


@pytest.mark.source("S14")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_penalty_and_matched_weight_decay_give_equal_weights(form: Form, momentum: float) -> None:
    strength = {"lambda/2n": 0.02 * N, "lambda/2": 0.02, "lambda": 0.01}[form]
    by_loss, by_optimizer = net(), net()
    sgd = torch.optim.SGD(by_loss.parameters(), lr=0.05, momentum=momentum)
    train(by_loss, sgd, 150, lambda: penalty(by_loss, strength, form, N, roles=ROLES))
    groups = [
        {"params": [p], "weight_decay": weight_decay(strength, form, N) if name in WEIGHTS else 0.0}
        for name, p in by_optimizer.named_parameters()
    ]
    train(by_optimizer, torch.optim.SGD(groups, lr=0.05, momentum=momentum), 150)
    for name, p in by_optimizer.named_parameters():
        torch.testing.assert_close(by_loss.get_parameter(name), p, rtol=1e-12, atol=1e-12)
    undecayed = net()
    train(undecayed, torch.optim.SGD(undecayed.parameters(), lr=0.05, momentum=momentum), 150)
    assert (undecayed.get_parameter("0.weight") - by_loss.get_parameter("0.weight")).abs().max() > 1e-2


@pytest.mark.source("S15")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_step_leaves_bias_gamma_and_beta_bit_identical(momentum: float) -> None:
    after = []
    for strength in (0.0, 0.7):
        model = net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum), 3)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
        train(model, sgd, 1, lambda m=model, s=strength: penalty(m, s, "lambda/2", roles=ROLES))
        after.append(copied(model))
    without, with_l2 = after
    for name in OTHERS:
        assert torch.equal(without[name], with_l2[name]), name
    for name in WEIGHTS:
        assert not torch.equal(without[name], with_l2[name]), name


@pytest.mark.source("S16")
def test_a_step_is_the_shrunk_weight_minus_the_gradient_of_c0() -> None:
    eta, lam = 0.1, 2.0
    model = net()
    before, slope = copied(model), gradients(model)
    sgd = torch.optim.SGD(model.parameters(), lr=eta)
    train(model, sgd, 1, lambda: penalty(model, lam, "lambda/2n", N, roles=ROLES))
    for name, w in copied(model).items():
        shrink = 1 - eta * lam / N if name in WEIGHTS else 1.0
        torch.testing.assert_close(w, shrink * before[name] - eta * slope[name], rtol=1e-13, atol=1e-15)


@pytest.mark.source("S16")
def test_the_norms_of_the_weights_become_smaller() -> None:
    plainly, penalised = net(), net()
    train(plainly, torch.optim.SGD(plainly.parameters(), lr=0.05), 200)
    sgd = torch.optim.SGD(penalised.parameters(), lr=0.05)
    train(penalised, sgd, 200, lambda: penalty(penalised, 0.05 * N, "lambda/2n", N, roles=ROLES))
    without, with_l2 = norms(plainly, ROLES), norms(penalised, ROLES)
    assert list(with_l2) == WEIGHTS
    assert all(with_l2[name] < 0.95 * without[name] for name in WEIGHTS)


@pytest.mark.source("S16")
def test_without_a_gradient_the_weights_shrink_geometrically() -> None:
    w = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    sgd = torch.optim.SGD([w], lr=0.5)
    for _ in range(10):
        sgd.zero_grad()
        penalty([w], 4.0, "lambda/2n", 20).backward()
        sgd.step()
    expected = torch.tensor([3.0, -2.0], dtype=torch.float64) * (1 - 0.5 * 4.0 / 20) ** 10
    torch.testing.assert_close(w.detach(), expected, rtol=1e-14, atol=0)


@pytest.mark.source("S15")
def test_depthwise_filters_are_in_by_default_and_can_be_left_out() -> None:
    model = net()
    both, without = penalty(model, 1.0, roles=ROLES), penalty(model, 1.0, roles=ROLES, depthwise=False)
    depthwise = model.get_parameter("3.weight").detach()
    assert (both - without).item() == pytest.approx(0.5 * float((depthwise**2).sum()), rel=1e-12)


@pytest.mark.source("S15")
def test_roles_are_found_for_a_network_without_them() -> None:
    model = net()
    assert penalty(model, 0.4).item() == penalty(model, 0.4, roles=ROLES).item()
    assert norms(model) == norms(model, ROLES)


def test_stopped_entries_are_in_neither_value_nor_gradient() -> None:
    model = net()
    mask = torch.zeros(4, 1, 1, 1, dtype=torch.bool)
    mask[2] = True
    p = penalty(model, 1.0, roles=ROLES, stopped={"0.weight": mask, "0.bias": mask.flatten()})
    p.backward()
    w = model.get_parameter("0.weight")
    full = penalty(model, 1.0, roles=ROLES)
    assert (full - p).item() == pytest.approx(0.5 * float((w.detach()[2] ** 2).sum()), rel=1e-12)
    assert w.grad is not None
    assert torch.equal(w.grad[2], torch.zeros_like(w[2]))
    assert torch.equal(w.grad[0], w.detach()[0])


def test_a_stopped_entry_may_be_infinite() -> None:
    w = nn.Parameter(torch.tensor([math.inf, 2.0]))
    p = penalty({"w": w}, 1.0, stopped={"w": torch.tensor([True, False])})
    p.backward()
    assert p.item() == 2.0
    assert w.grad is not None
    assert w.grad.tolist() == [0.0, 2.0]


def test_tied_weights_enter_once_and_frozen_ones_not() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.c.weight.requires_grad_(False)

    model = Tied()
    assert penalty(model, 2.0).item() == pytest.approx(float((model.a.weight.detach() ** 2).sum()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    w = torch.full((300, 300), 1.0, dtype=dtype)
    p = penalty([w], 2.0)
    assert p.dtype == torch.float32
    assert p.item() == 90_000.0


def test_nothing_to_decay_is_zero() -> None:
    assert penalty([], 1.0).item() == 0.0
    assert penalty({"b": torch.ones(3)}, 1.0, roles={"b": "bias"}).item() == 0.0


def test_layout_does_not_matter() -> None:
    w = torch.randn(8, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    last = nn.Parameter(w.clone(memory_format=torch.channels_last))
    p = penalty([last], 1.0)
    p.backward()
    assert last.grad is not None
    assert p.item() == pytest.approx(0.5 * float((w**2).sum()), rel=1e-13)
    assert torch.equal(last.grad, w)


def test_names_must_fit() -> None:
    with pytest.raises(Error, match=r"roles must name every parameter, got none for '6\.bias'"):
        penalty(net(), 1.0, roles={k: v for k, v in ROLES.items() if k != "6.bias"})
    with pytest.raises(Error, match=r"stopped must name parameters, got '7\.weight'"):
        penalty(net(), 1.0, roles=ROLES, stopped={"7.weight": torch.tensor(True)})


@pytest.mark.source("S14")
def test_c0_and_penalty_are_told_apart() -> None:
    model = net()
    x, y = batches(1)[0]
    c0 = F.cross_entropy(model(x), y)
    parts = objective(c0, penalty(model, 0.5, roles=ROLES))
    record = parts.record()
    assert record["c0"] == c0.item()
    assert record["penalty"] > 0
    assert record["c"] == pytest.approx(record["c0"] + record["penalty"], rel=1e-15)
    parts.c.backward()
    slope = gradients(model)["0.weight"]
    torch.testing.assert_close(
        model.get_parameter("0.weight").grad, slope + 0.5 * model.get_parameter("0.weight").detach()
    )


def test_objective_without_penalty_is_c0() -> None:
    c0 = torch.tensor(1.25)
    assert objective(c0).record() == {"c": 1.25, "c0": 1.25, "penalty": 0.0}
    with pytest.raises(Error, match=r"c0 must be a scalar, got shape \(2,\)"):
        objective(torch.zeros(2))
    with pytest.raises(Error, match=r"penalty must be a scalar, got shape \(3,\)"):
        objective(c0, torch.zeros(3))


def test_penalty_can_be_differentiated_twice() -> None:
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)

    def value(v: Tensor) -> Tensor:
        return penalty([v], 3.0, "lambda")

    hessian = torch.autograd.functional.hessian(value, w)
    assert torch.equal(hessian, 6.0 * torch.eye(2, dtype=torch.float64))
