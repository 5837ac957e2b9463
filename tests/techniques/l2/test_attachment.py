"""What L2 does in training, in each of its three places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from l2_nets import OTHERS, ROLES, WEIGHTS, N, copied, net, train
from leanconv.contract import Context
from leanconv.errors import Error
from leanconv.techniques import l2
from leanconv.techniques.l2 import Options, attach, param_groups, penalty


def by_role(model: nn.Module) -> list[dict[str, object]]:
    return param_groups(model, strength=0.0, roles=ROLES)


def trained(options: Options | None, kind: str, steps: int, lr: float = 0.05) -> tuple[nn.Module, Optimizer]:
    model = net()
    arguments = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(by_role(model), lr=lr, **arguments)
    if options is None:
        train(model, optimizer, steps)
        return model, optimizer
    attachment = attach(Context(model, optimizer=optimizer, roles=ROLES, samples=N), options)
    train(model, optimizer, steps, lambda: attachment.penalty({}))
    attachment.close()
    return model, optimizer


@pytest.mark.source("S14")
@pytest.mark.parametrize(("form", "strength"), [("lambda/2n", 0.8), ("lambda/2", 0.02), ("lambda", 0.01)])
def test_in_the_loss_or_in_the_optimizer_sgd_takes_the_same_steps(form: l2.Form, strength: float) -> None:
    reference, _ = trained(Options(0.8, "lambda/2n", "loss"), "SGD", 100)
    for where in ("loss", "optimizer"):
        model, _ = trained(Options(strength, form, where), "SGD", 100)
        for name, p in model.named_parameters():
            torch.testing.assert_close(reference.get_parameter(name), p, rtol=1e-12, atol=1e-12)


@pytest.mark.source("S15")
@pytest.mark.parametrize("where", ["loss", "optimizer", "decoupled"])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_one_step_is_bit_identical_for_bias_gamma_and_beta(where: l2.Where, kind: str) -> None:
    plain, with_l2 = trained(None, kind, 1)[0], trained(Options(0.3, where=where), kind, 1)[0]
    for name in OTHERS:
        assert torch.equal(plain.get_parameter(name), with_l2.get_parameter(name)), name
    changed = [name for name in WEIGHTS if not torch.equal(plain.get_parameter(name), with_l2.get_parameter(name))]
    # Adam's first coupled step is lr * sign(g): it hardly notices the decay, so there one changed weight suffices
    assert changed == WEIGHTS if (kind, where) != ("Adam", "optimizer") else changed


@pytest.mark.source("S15")
@pytest.mark.parametrize("where", ["loss", "optimizer", "decoupled"])
def test_depthwise_left_out_is_not_decayed(where: l2.Where) -> None:
    plain, some = trained(None, "SGD", 1)[0], trained(Options(0.3, where=where, depthwise=False), "SGD", 1)[0]
    assert torch.equal(plain.get_parameter("3.weight"), some.get_parameter("3.weight"))
    assert not torch.equal(plain.get_parameter("6.weight"), some.get_parameter("6.weight"))


def test_adam_with_decoupled_decay_is_adamw() -> None:
    ours, _ = trained(Options(0.1, where="decoupled"), "Adam", 60, lr=0.01)
    torchs, optimizer = trained(Options(0.1, where="decoupled"), "AdamW", 60, lr=0.01)
    coupled, _ = trained(Options(0.1, where="optimizer"), "Adam", 60, lr=0.01)
    for name in WEIGHTS:
        torch.testing.assert_close(ours.get_parameter(name), torchs.get_parameter(name), rtol=1e-12, atol=1e-12)
    assert (ours.get_parameter("0.weight") - coupled.get_parameter("0.weight")).abs().max() > 1e-2
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0}


def test_adamw_decays_by_its_own_groups() -> None:
    model = net()
    adamw = torch.optim.AdamW(by_role(model))
    attach(Context(model, optimizer=adamw, roles=ROLES), Options(0.1, where="decoupled"))
    assert {g["role"]: g["weight_decay"] for g in adamw.param_groups}["weight"] == 0.1
    assert not adamw._optimizer_step_pre_hooks


def test_close_gives_the_groups_back() -> None:
    model = net()
    sgd = torch.optim.SGD(param_groups(model, strength=0.125, roles=ROLES), lr=0.1)
    attachment = attach(Context(model, optimizer=sgd, roles=ROLES), Options(0.5, where="optimizer", depthwise=False))
    decay = {g["role"]: g["weight_decay"] for g in sgd.param_groups}
    assert decay == {"weight": 0.5, "bias": 0.0, "norm": 0.0, "depthwise": 0.125}
    assert attachment.penalty({}) is None
    attachment.close()
    assert [g["weight_decay"] for g in sgd.param_groups] == [0.125, 0.0, 0.0, 0.125]


def test_close_removes_the_hook() -> None:
    model = net()
    sgd = torch.optim.SGD(by_role(model), lr=0.1)
    attach(Context(model, optimizer=sgd, roles=ROLES), Options(0.5, where="decoupled")).close()
    before = copied(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    sgd.step()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_the_penalty_leaves_stopped_entries_out() -> None:
    model = net()
    attachment = attach(Context(model, roles=ROLES, samples=N), Options(2.0, "lambda/2n", "loss"))
    mask = torch.tensor([True, False, False, True]).view(4, 1, 1, 1)
    value = attachment.penalty({"0.weight": mask})
    assert value is not None
    assert value.item() == penalty(model, 2.0, "lambda/2n", N, roles=ROLES, stopped={"0.weight": mask}).item()
    assert value.item() < penalty(model, 2.0, "lambda/2n", N, roles=ROLES).item()


def test_a_tied_weight_may_be_stopped_by_either_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    attachment = attach(Context(model), Options(1.0))
    everything: dict[str, Tensor] = {"1.weight": torch.ones(2, 2, dtype=torch.bool)}
    value = attachment.penalty(everything)
    assert value is not None
    assert value.item() == 0.0


def test_roles_are_found_where_the_context_has_none() -> None:
    model = net()
    value = attach(Context(model), Options(0.5)).penalty({})
    assert value is not None
    assert value.item() == penalty(model, 0.5, roles=ROLES).item()


def refusal(options: Options, optimizer: str | None = "SGD", decay: float = 0.0, samples: int | None = N) -> str:
    model = net()
    made = (
        getattr(torch.optim, optimizer)(param_groups(model, strength=decay, roles=ROLES), lr=0.1) if optimizer else None
    )
    with pytest.raises(Error) as error:
        attach(Context(model, optimizer=made, roles=ROLES, samples=samples), options)
    return str(error.value)


def test_refusals_say_what_was_got() -> None:
    assert "number of training images" in refusal(Options(form="lambda/2n"), samples=None)
    assert refusal(Options(where="optimizer"), None) == "l2: where='optimizer' needs an optimizer, got None"
    assert refusal(Options(where="optimizer"), "AdamW").endswith("adds weight_decay to the gradient, got AdamW")
    assert refusal(Options(where="optimizer"), "Adafactor").endswith("got Adafactor")
    assert "needs the optimizer's own weight_decay at 0, got 0.1 for '0.weight'" in refusal(Options(), decay=0.1)
    assert "got 0.1 for '0.weight'" in refusal(Options(where="decoupled"), decay=0.1)


def test_a_group_of_both_kinds_is_refused() -> None:
    model = net()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(Error, match=r"must hold only weights or none .* got 5 of 8 that are not decayed"):
        attach(Context(model, optimizer=sgd, roles=ROLES), Options(where="optimizer"))


def test_the_contract_without_layers() -> None:
    ctx = Context(net())
    assert (l2.apply(ctx, Options()), l2.remove(ctx), l2.fold(ctx), l2.roles(ctx.model)) == ([], [], [], {})
    with pytest.raises(Error, match="it has none, got Linear"):
        l2.cost(nn.Linear(2, 2), (1, 2))
