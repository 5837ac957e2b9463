from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from dropout_networks import NETWORKS, network
from leanconv.errors import Error
from leanconv.kernels.keys import keyed
from leanconv.techniques.dropout.layers import Dropout, Dropout2d
from leanconv.techniques.dropout.strict import Strict, strict
from leanconv_tests import close

pytestmark = pytest.mark.source("S4")

Make = Callable[[Iterator[nn.Parameter]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "sgd decay": lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "nesterov foreach": lambda p: torch.optim.SGD(p, 0.05, 0.9, weight_decay=0.1, nesterov=True, foreach=True),
    "momentum fused": lambda p: torch.optim.SGD(p, 0.05, 0.9, weight_decay=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1),
    "amsgrad foreach": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1, amsgrad=True, foreach=True),
    "adam decoupled": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1, decoupled_weight_decay=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1, amsgrad=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.05, momentum=0.9, weight_decay=0.1),
}


# What a batch norm behind makes indifferent (a bias; gamma and beta before a depthwise filter), by network: gradients
# that are zero but for rounding, stopped or not.
INDIFFERENT = {
    "norm_before": {"0.bias"},
    "norm_after": {"0.bias"},
    "depthwise": {"0.bias", "1.weight", "1.bias", "2.bias"},
    "two_in_one": {"0.bias"},
    "sequence": {"0.bias"},
    "volume": {"0.bias"},
    "branches": {"stem.bias"},
}


def everything(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Parameters, running statistics and all state that has an entry per entry of its parameter."""
    found = {n: t.detach().clone() for n, t in model.state_dict().items() if t.ndim}
    for name, parameter in model.named_parameters():
        for key, state in optimizer.state.get(parameter, {}).items():
            if isinstance(state, Tensor) and state.shape == parameter.shape:
                found[f"{name}/{key}"] = state.clone()
    return found


def stopped_entries(handle: Strict, model: nn.Module) -> dict[str, Tensor]:
    """handle.stopped() for every parameter, in its full shape."""
    told = handle.stopped()
    none = torch.zeros((), dtype=torch.bool)
    return {name: told.get(name, none).expand(p.shape) for name, p in model.named_parameters()}


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def step(model: nn.Module, optimizer: Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    loss_of(model, x).backward()
    optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_stopped_entries_are_bit_identical_and_the_others_move(name: str, make: Make) -> None:
    model, x = network(name)
    optimizer = make(model.parameters())
    handle = strict(model, optimizer, x)
    ever = 0
    for _ in range(4):
        before = everything(model, optimizer)
        step(model, optimizer, torch.randn_like(x))
        after, masks = everything(model, optimizer), stopped_entries(handle, model)
        for key, now in after.items():
            mask = masks.get(key.split("/")[0])
            if mask is None:  # a running statistic stops with the gamma beside it
                mask = masks[key.rpartition(".")[0] + ".weight"]
            was = before.get(key, torch.zeros_like(now))  # state that did not exist starts at zero
            assert torch.equal(now[mask], was[mask]), key
            if key.split("/")[0] not in INDIFFERENT.get(name, ()) and not key.endswith("max_exp_avg_sq"):
                assert (now[~mask] != was[~mask]).float().mean() > 0.7 or mask.all(), key
            ever += int(mask.sum())
    assert ever > 0


def units_zero(model: nn.Module, shape: torch.Size, seed: int) -> dict[str, Tensor]:
    """Which gradients are exactly zero whatever the input: float64, several inputs, one key, no strict mode."""
    plain = copy.deepcopy(model).double().train()
    zero = {n: torch.ones_like(p, dtype=torch.bool) for n, p in plain.named_parameters()}
    for probe in range(4):
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(probe))
        with keyed(seed, 0):
            plain.zero_grad()
            loss_of(plain, x).backward()
        for n, p in plain.named_parameters():
            assert p.grad is not None
            zero[n] &= p.grad == 0
    return zero


# In these networks nothing turns a zeroed channel into something else before a consumer reads it.
ZERO_STAYS = ["mlp", "norm_before", "flattened", "parts", "sequence", "volume", "branches"]


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(ZERO_STAYS), seed=st.integers(0, 10_000))
def test_an_entry_is_kept_if_and_only_if_its_gradient_is_zero_by_structure(name: str, seed: int) -> None:
    model, x = network(name, seed)
    expected = units_zero(model, x.shape, seed)
    handle = strict(model, torch.optim.SGD(model.parameters(), 0.1), x)
    with keyed(seed, 0):
        model(x)
    for n, mask in stopped_entries(handle, model).items():
        assert expected[n][mask].all(), n
        assert torch.equal(mask, expected[n]) or n in INDIFFERENT.get(name, ()), n


@pytest.mark.parametrize("name", ["norm_after", "two_in_one", "depthwise"])
def test_the_same_where_a_batch_norm_revives_a_zeroed_channel(name: str) -> None:
    model, x = network(name)
    handle = strict(model, torch.optim.SGD(model.parameters(), 0.1), x)
    for seed in range(5):
        handle._stepped = True  # as after an optimizer step
        zero = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
        for _ in range(4):  # strict mode's own hooks silence gradients, so autograd is asked past them
            with keyed(seed, 0):
                gradients = torch.autograd.grad(loss_of(model, torch.randn_like(x)), list(model.parameters()))
            for n, g in zip(zero, gradients, strict=True):
                zero[n] &= g == 0
        for n, mask in stopped_entries(handle, model).items():
            assert zero[n][mask].all(), n
            assert torch.equal(mask, zero[n]) or n in INDIFFERENT[name], n


def subnetwork(keep: Tensor, x: Tensor, w: dict[str, Tensor], scale: float) -> Tensor:
    """conv -> dropout -> batch norm -> LeakyReLU -> conv of the kept channels alone, written out."""
    y = nn.functional.conv2d(x, w["0.weight"][keep], w["0.bias"][keep]) * scale
    mean = y.mean((0, 2, 3), keepdim=True)
    var = ((y - mean) ** 2).mean((0, 2, 3), keepdim=True)
    y = (y - mean) / (var + 1e-5).sqrt() * w["2.weight"][keep].view(1, -1, 1, 1) + w["2.bias"][keep].view(1, -1, 1, 1)
    return nn.functional.conv2d(torch.where(y > 0, y, 0.01 * y), w["4.weight"][:, keep], w["4.bias"])


def plain_steps(model: nn.Module, xs: list[Tensor], keeps: list[Tensor], scale: float) -> dict[str, Tensor]:
    """SGD with momentum 0.9 and decay 0.1 on the kept sub-network of each step; what is not in it stands still."""
    w = {n: p.detach().clone() for n, p in model.named_parameters()}
    v = {n: torch.zeros_like(p) for n, p in w.items()}
    for x, keep in zip(xs, keeps, strict=True):
        leaves = {n: p.requires_grad_() for n, p in w.items()}
        loss = subnetwork(keep, x, leaves, scale).square().mean()
        g = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        lives = {n: keep.view(-1, *[1] * (p.ndim - 1)).expand(p.shape) for n, p in w.items() if n[0] in "02"}
        lives |= {"4.weight": keep.view(1, -1, 1, 1).expand(w["4.weight"].shape), "4.bias": torch.ones(4).bool()}
        with torch.no_grad():
            for n in w:
                v[n] = torch.where(lives[n], 0.9 * v[n] + g[n] + 0.1 * w[n], v[n])
                w[n] = torch.where(lives[n], w[n] - 0.05 * v[n], w[n])
    return w


def test_the_others_move_as_in_the_sub_network_alone() -> None:
    model, x = network("norm_after")
    start = copy.deepcopy(model)
    xs = [torch.randn_like(x) for _ in range(5)]
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    keeps = []
    with strict(model, optimizer, x):
        for each in xs:
            step(model, optimizer, each)
            keeps.append(model[1].last_mask.view(-1).clone())
    scale = model[1]._scale((len(x), 8, 6, 6), keeps[0])
    torchs = plain_steps(start, xs, keeps, scale)
    reference = plain_steps(start.double(), [each.double() for each in xs], keeps, scale)
    for n, p in model.named_parameters():
        if n != "0.bias":  # a bias before batch norm has gradient 0, in floating point a rounding error of its own
            close(p.detach(), torchs[n].detach(), reference[n].detach())


def test_nn_dropout_moves_units_whose_gradient_is_zero() -> None:
    """What strict mode is for: the second step stops what the first had trained, and momentum and decay move it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    ours = nn.Sequential(model[0], Dropout(0.5, "batch"), model[2])
    for each, in_strict_mode in ((model, False), (ours, True)):
        net = copy.deepcopy(each)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        handle = strict(net, optimizer, torch.ones(1, 4)) if in_strict_mode else None
        moved, silent = False, 0
        for _ in range(6):
            before = net[0].weight.detach().clone()
            step(net, optimizer, torch.randn(1, 4))  # one sample, so that its mask is the batch's
            zero = (net[0].weight.grad == 0).all(1)
            moved |= not torch.equal(net[0].weight[zero], before[zero])
            silent += int(zero.sum())
        assert silent > 0
        assert moved is (handle is None)


# --- several forwards, none, evaluation ------------------------------------------------------------------------------


def test_micro_batches_stop_what_all_of_them_stop() -> None:
    model, x = network("mlp")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    handle = strict(model, optimizer, x)
    step(model, optimizer, x)  # momentum for all
    for _ in range(3):
        optimizer.zero_grad()
        zero = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
        for _ in range(3):
            loss = loss_of(model, torch.randn_like(x))
            for (n, _), g in zip(model.named_parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
                zero[n] &= g == 0
        loss_of(model, torch.randn_like(x)).backward()
        for n, p in model.named_parameters():
            zero[n] &= p.grad == 0
        told = stopped_entries(handle, model)
        before = everything(model, optimizer)
        for n, mask in told.items():
            assert torch.equal(mask, zero[n]), n
        optimizer.step()
        for n, p in model.named_parameters():
            assert torch.equal(p[told[n]], before[n][told[n]])
            assert (p[~told[n]] != before[n][~told[n]]).all()


def test_keyed_micro_batches_stop_the_same() -> None:
    model, x = network("flattened")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handle = strict(model, optimizer, x)
    told = []
    for offset in (0, 4, 8):
        with keyed(3, 7, offset):
            loss_of(model, torch.randn_like(x)).backward()
        told.append(handle.stopped())
    assert len(handle._rounds) <= 2
    for n, mask in told[0].items():
        assert torch.equal(mask, told[1][n])
        assert torch.equal(mask, told[2][n])


def test_evaluation_and_forwards_without_gradients_change_nothing() -> None:
    model, x = network("norm_before")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    handle = strict(model, optimizer, x)
    loss_of(model, x).backward()
    told = handle.stopped()
    with torch.no_grad():
        model(x)
    statistics = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    model.eval()
    once = model(x)
    assert torch.equal(once, model(x))
    assert all(torch.equal(v, statistics[k]) for k, v in model.state_dict().items() if k in statistics)
    model.train()
    assert told.keys() == handle.stopped().keys()
    assert all(torch.equal(mask, handle.stopped()[n]) for n, mask in told.items())


def test_a_step_without_a_forward_stops_nothing() -> None:
    model, x = network("mlp")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    handle = strict(model, optimizer, x)
    step(model, optimizer, x)
    assert handle.stopped()
    step(model, optimizer, x)
    before = everything(model, optimizer)
    optimizer.step()
    for n, p in model.named_parameters():
        moved = p != before[n]
        trained = before[f"{n}/momentum_buffer"] != 0
        assert moved[trained].all()


def test_a_closure_runs_the_forward_inside_the_step() -> None:
    model, x = network("mlp")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    handle = strict(model, optimizer, x)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(model, x)
        loss.backward()
        return loss.item()

    for _ in range(3):
        before = everything(model, optimizer)
        optimizer.step(closure)
        for n, mask in stopped_entries(handle, model).items():
            assert torch.equal(model.get_parameter(n)[mask], before[n][mask])
            assert mask.any() or n == "6.bias"


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints_run_a_layer_twice(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=reentrant) if self.training else self.inner(x)

    inner, x = network("norm_before")
    model = Checkpointed(inner)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    handle = strict(model, optimizer, x)
    for _ in range(4):
        before = everything(model, optimizer)
        step(model, optimizer, x.clone().requires_grad_())
        masks = stopped_entries(handle, model)
        assert masks["inner.0.bias"].any()
        for n, mask in masks.items():
            assert torch.equal(model.get_parameter(n)[mask], before[n][mask])


# --- what else touches gradients -------------------------------------------------------------------------------------


def test_a_penalty_in_the_loss_neither_moves_stopped_entries_nor_counts_in_a_clipping_norm() -> None:
    model, x = network("norm_after")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    handle = strict(model, optimizer, x)
    for _ in range(3):
        before = everything(model, optimizer)
        optimizer.zero_grad()
        data = loss_of(model, x)
        (data + sum(p.square().sum() for p in model.parameters())).backward()
        masks = stopped_entries(handle, model)
        alive = [p.grad[~masks[n]] for n, p in model.named_parameters()]
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        torch.testing.assert_close(norm, torch.cat(alive).norm())
        assert all((p.grad[masks[n]] == 0).all() for n, p in model.named_parameters())
        optimizer.step()
        assert all(torch.equal(p[masks[n]], before[n][masks[n]]) for n, p in model.named_parameters())


def test_gradients_that_arrive_by_hand_are_silenced_before_the_step() -> None:
    model, x = network("mlp")
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    handle = strict(model, optimizer, x)
    model(x)
    before = everything(model, optimizer)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for n, mask in stopped_entries(handle, model).items():
        assert (model.get_parameter(n).grad[mask] == 0).all()
        assert torch.equal(model.get_parameter(n)[mask], before[n][mask])


def test_infinite_activations_of_stopped_units_do_not_spread() -> None:
    model, x = network("mlp")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with strict(model, optimizer, x), torch.no_grad():
        with keyed(0, 0):
            model(x)
        stopped = (~model[2].last_mask).view(-1).nonzero()[0]
        model[0].bias[stopped] = float("inf")
        with keyed(0, 0):
            assert model(x).isfinite().all()


# --- handle ----------------------------------------------------------------------------------------------------------


def test_frozen_parameters_and_parameters_of_no_optimizer_are_left_alone() -> None:
    model, x = network("norm_before")
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[4].parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    handle = strict(model, optimizer, x)
    for _ in range(3):
        before = everything(model, optimizer)
        step(model, optimizer, x)
        masks = stopped_entries(handle, model)
        assert masks["0.weight"].any()
        assert torch.equal(model[4].weight[masks["4.weight"]], before["4.weight"][masks["4.weight"]])
        assert torch.equal(model[1].weight, before["1.weight"])


def hooks_of(model: nn.Module, optimizer: Optimizer) -> int:
    count = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
    count += sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return count + sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


def test_close_removes_every_hook() -> None:
    model, x = network("norm_before")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    with strict(model, optimizer, x):
        assert hooks_of(model, optimizer) > 10
        step(model, optimizer, x)
    assert hooks_of(model, optimizer) == 0
    before = everything(model, optimizer)
    step(model, optimizer, x)
    assert all((p != before[n]).all() for n, p in model.named_parameters())


def test_copies_and_pickles_of_the_network_are_free_of_it() -> None:
    model, x = network("norm_after")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    handle = strict(model, optimizer, x)
    step(model, optimizer, x)
    told = handle.stopped()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(x).sum().backward()
        assert torch.equal(twin[2].running_var == model[2].running_var, torch.zeros(8, dtype=torch.bool))
    assert all(torch.equal(mask, handle.stopped()[n]) for n, mask in told.items())


def test_the_state_dict_is_unchanged() -> None:
    model, x = network("norm_after")
    keys = list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    strict(model, optimizer, x)
    step(model, optimizer, x)
    assert list(model.state_dict()) == keys


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


@pytest.mark.parametrize(
    ("model", "make", "part"),
    [
        (
            nn.Sequential(nn.Linear(7, 2), Dropout(0.5), nn.Linear(2, 1)),
            sgd,
            "at 1: mask must be 'batch', got mask='sample'",
        ),
        (nn.Sequential(nn.Linear(7, 2), nn.Dropout(0.5), nn.Linear(2, 1)), sgd, "strict dropout at 1: "),
        (nn.Sequential(nn.Linear(7, 2)), sgd, "must have a dropout with mask='batch', got Sequential without"),
        (network("mlp")[0], lambda m: torch.optim.LBFGS(m.parameters()), "got LBFGS"),
        (network("mlp")[0], lambda m: torch.optim.Rprop(m.parameters()), "got Rprop"),
        (network("mlp")[0], lambda m: sgd(nn.Linear(2, 2)), "must hold parameters of the network, got none of them"),
    ],
)
def test_what_strict_mode_cannot_do_is_an_error(model: nn.Module, make: Callable[..., Optimizer], part: str) -> None:
    optimizer = make(model)
    with pytest.raises(Error) as caught:
        strict(model, optimizer, torch.ones(2, 7))
    assert part in str(caught.value)
    assert hooks_of(model, optimizer) == 0


def test_a_residual_sum_is_an_error_that_names_its_path() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.drop, self.b = nn.Conv2d(3, 3, 1), Dropout2d(0.5, "batch"), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x + self.drop(self.a(x)))

    model = nn.Sequential(Block())
    with pytest.raises(Error, match=r"at 0\.drop: units must not mix .* got 0 \(add\)"):
        strict(model, sgd(model), torch.ones(2, 3, 4, 4))
