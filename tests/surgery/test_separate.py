"""A trained network becomes separable under a budget."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import leanconv
from leanconv import Error, surgery
from leanconv.contract import Context
from leanconv.data import DataSet, Split, normalise
from leanconv.graph import record
from leanconv.surgery import Budget, Distil, Plan
from leanconv.techniques.separable import SeparableConv2d
from surgery.networks import shaken

SHAPE = (3, 12, 12)


def network() -> nn.Sequential:
    """Convolutions of every kind that separation meets, a skip connection left out for speed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, 2, 1, groups=2, padding_mode="reflect"),
            nn.ReLU(),
            nn.Conv2d(24, 16, 5, padding=4, dilation=2, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 4),
        )
        shaken(model)
    return model.eval()


def smooth(count: int = 64, seed: int = 3) -> Tensor:
    """Maps with the correlations that images have."""
    noise = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, scale_factor=2, mode="bilinear")


def images(count: int = 64) -> DataSet:
    pixels = (smooth(count) * 40 + 128).clamp(0, 255).to(torch.uint8)
    split = Split(pixels, torch.arange(count) % 4)
    return DataSet.build({"train": split, "val": split}, ("a", "b", "c", "d"), "made", ())


def apart(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((a(x) - b(x)).norm() / a(x).norm())


@pytest.mark.source("S19")
def test_the_budget_is_kept_and_the_certificate_counts_it() -> None:
    model, x = network(), smooth()
    before = copy.deepcopy(model.state_dict())
    lean, told = leanconv.separate(model, budget="macs=0.5", batches=[x], example=x[:1], latency=False)
    assert told.after.macs <= 0.5 * told.before.macs
    assert told.after.macs == leanconv.cost(lean, (1, *SHAPE)).macs
    assert any(isinstance(m, SeparableConv2d) for m in lean.modules())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert any("ranks chosen under macs=0.5" in note for note in told.notes)


def test_fitting_the_outputs_keeps_more_than_fitting_the_weights() -> None:
    model, x, other = network(), smooth(), smooth(seed=4)
    ranks = {"2": 2, "5": 2, "7": 4}
    aware, _ = leanconv.separate(model, ranks=ranks, batches=[x], example=x[:1], latency=False, settle=False)
    plain, _ = leanconv.separate(
        model, ranks=ranks, batches=[x], example=x[:1], latency=False, settle=False, method="weights"
    )
    assert apart(model, aware, other) < 0.5 * apart(model, plain, other)


def test_large_layers_fitted_to_features_keep_more_than_by_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, other = network(), smooth(), smooth(seed=4)
    ranks = {"2": 2, "5": 2, "7": 4}
    plain, _ = leanconv.separate(
        model, ranks=ranks, batches=[x], example=x[:1], latency=False, settle=False, method="weights"
    )
    monkeypatch.setattr(surgery.separating, "LARGE", 100)
    large, _ = leanconv.separate(model, ranks=ranks, batches=[x], example=x[:1], latency=False, settle=False)
    assert apart(model, large, other) < 0.7 * apart(model, plain, other)
    _, told = leanconv.separate(model, budget="macs=0.5", batches=[x], example=x[:1], latency=False)
    assert told.after.macs <= 0.5 * told.before.macs
    exact, _ = leanconv.separate(
        model, ranks={"2": 9, "7": 16}, batches=[x], example=x[:2], latency=False, settle=False
    )
    assert apart(model, exact, other) < 1e-4


@pytest.mark.source("S18")
def test_at_full_rank_it_is_exact() -> None:
    model, x = network(), smooth()
    lean, told = leanconv.separate(
        model, ranks={"2": 9, "5": 9, "7": 16}, batches=[x], example=x[:2], latency=False, settle=False
    )
    assert {edit.claim for edit in told.edits} == {"exact"}
    assert told.difference is not None
    assert told.difference.relative < 1e-4
    assert apart(model, lean, smooth(seed=5)) < 1e-4


def test_undo_plan_and_json() -> None:
    model, x = network(), smooth()
    lean, told = leanconv.separate(model, budget="params=0.6", batches=[x], example=x[:1], latency=False)
    plan = Plan.from_dict(json.loads(json.dumps(told.plan.to_dict())))
    shell = surgery.replay(network(), plan, x[:1])
    shell.load_state_dict(lean.state_dict())
    assert torch.equal(shell(x), lean(x))


@pytest.mark.parametrize("epochs", [0, 1])
def test_undo_gives_statistics_and_all_that_learned_back_too(epochs: int) -> None:
    model, x = network(), smooth()
    lean, told = leanconv.separate(
        model, ranks={"5": 1}, batches=[x], images=images(), epochs=epochs, example=x[:1], latency=False
    )
    assert not torch.equal(lean.get_buffer("3.running_var"), model.get_buffer("3.running_var"))
    back, changed = told.undo(lean)
    assert not changed
    assert list(back.state_dict()) == list(model.state_dict())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in back.state_dict().items())
    lean.get_buffer("3.running_var").add_(1)
    back, changed = told.undo(lean)
    assert changed == ("3.running_var",)
    assert torch.equal(back.get_buffer("3.running_var"), lean.get_buffer("3.running_var"))


def test_an_old_checkpoint_is_separated_again_by_the_stored_plan() -> None:
    model, x = network(), smooth()
    lean, told = leanconv.separate(model, ranks={"2": 3}, batches=[x], example=x[:1], latency=False, settle=False)
    again = surgery.replay(model, told.plan, x[:1], [x])
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in lean.state_dict().items())


def test_a_budget_that_cannot_be_kept_names_the_nearest() -> None:
    with pytest.raises(Error, match=r"the budget must be at least macs=0\.\d+, every layer at its cheapest, got macs"):
        leanconv.separate(network(), budget="macs=0.01", example=smooth(1))


def test_a_budget_that_is_kept_already_changes_nothing() -> None:
    _, told = leanconv.separate(network(), budget="macs=1.0", example=smooth(1))
    assert not told.changed
    assert any("keeps the budget macs=1 as it is" in note for note in told.notes)


def test_under_a_latency_budget_a_layer_that_would_be_slower_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), smooth()
    slow = {"0": 1.0, "2": 1.0, "5": 1.0, "7": 1.0}

    def costs(ctx: object, unit: str, paths: list[str]) -> tuple[float, dict[str, dict[int | None, float]]]:
        assert unit == "latency"
        lean: dict[int | None, float] = {None: 1.0, **dict.fromkeys(range(1, 26), 0.5)}
        return 5.0, {path: lean if path == "2" else {**lean, **dict.fromkeys(range(1, 26), 2.0)} for path in slow}

    monkeypatch.setattr(surgery.budget, "_costs", costs)
    _, told = leanconv.separate(model, budget="latency=0.95", example=x[:1], batches=[x], latency=False)
    assert [edit.paths[0] for edit in told.edits] == ["2"]
    assert {r.path for r in told.refusals if "slower here" in r.why} == {"0", "5", "7"}
    with pytest.raises(Error, match=r"the budget must be at least latency=0\.900"):
        leanconv.separate(model, budget="latency=0.5", example=x[:1], batches=[x], latency=False)


def test_a_latency_is_measured_layer_by_layer() -> None:
    model, x = network(), smooth(1)
    context = Context(model, graph=record(model, x), probe=x)
    whole, found = surgery.budget._costs(context, "latency", ["2", "7"])
    assert whole > 0
    assert set(found["2"]) == {None, *range(1, 10)}
    assert all(cost > 0 for costs in found.values() for cost in costs.values())


@pytest.mark.parametrize(
    ("text", "limit"),
    [("macs=0.33", 33.0), ("params=50", 50.0), ("latency=2ms", 2.0), ("latency=0.5ms", 0.5), ("latency=0.5", 50.0)],
)
def test_budgets(text: str, limit: float) -> None:
    assert Budget.parse(text).limit(100.0) == pytest.approx(limit)


@pytest.mark.parametrize("text", ["macs", "macs=", "flops=0.3", "macs=-1", "macs=nan", "latency=ms"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(Error, match="the budget must be such as"):
        Budget.parse(text)


def test_bad_arguments_are_told() -> None:
    model = network()
    with pytest.raises(Error, match="either a budget or ranks"):
        leanconv.separate(model)
    with pytest.raises(Error, match=r"got '11': it is no convolution"):
        leanconv.separate(model, ranks={"11": 2}, example=smooth(1))
    hooked = network()
    hooked[0].register_forward_hook(lambda module, args, output: None)
    with pytest.raises(Error, match=r"got '0': hooks on the layer would be lost"):
        leanconv.separate(hooked, ranks={"0": 2}, example=smooth(1))
    with pytest.raises(Error, match="method must be one of"):
        leanconv.separate(model, ranks={"2": 2}, method="best")
    with pytest.raises(Error, match="learning needs images"):
        leanconv.separate(model, ranks={"2": 2}, epochs=1)
    with pytest.raises(Error, match="at least one batch"):
        leanconv.separate(model, ranks={"2": 2}, batches=[])


def test_learning_from_the_original_brings_it_nearer() -> None:
    model, held = network(), images()
    x = smooth()
    arguments = {"ranks": {"2": 1, "5": 1, "7": 1}, "batches": [x], "example": x[:1], "latency": False}
    without, _ = leanconv.separate(model, **arguments)  # type: ignore[arg-type]
    learned, told = leanconv.separate(
        model, images=held, epochs=3, learning=Distil(lr=0.01, batch=16, augment="none"), **arguments
    )  # type: ignore[arg-type]
    assert any("learned from the original network for 3 epochs" in note for note in told.notes)
    assert not learned.training

    shown = normalise(held.train.images, held.mean, held.std)

    @torch.no_grad()
    def loss(net: nn.Module) -> float:
        given, wanted = (one(shown).log_softmax(1) for one in (net, model))
        return float(nn.functional.kl_div(given, wanted, reduction="batchmean", log_target=True))

    assert loss(learned) < loss(without)
    assert len(surgery.distil(learned, model, held, Distil(epochs=2, batch=100))) == 2
    with pytest.raises(Error, match="the loss must stay finite"):
        surgery.distil(learned, model, held, Distil(lr=1e30, clip=1e30))
    with pytest.raises(Error, match="lr must be above 0"):
        Distil(lr=-1)


def test_statistics_are_those_of_the_changed_network() -> None:
    model, x = network(), smooth()
    lean, told = leanconv.separate(model, ranks={"2": 1}, batches=[x], example=x[:1], latency=False)
    assert "statistics of 1 batch norms computed anew on 64 images" in told.notes
    seen: list[Tensor] = []
    lean[3].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    lean(x)
    assert torch.allclose(lean[3].running_mean, seen[0].mean((0, 2, 3)), atol=1e-4)  # type: ignore[arg-type]


def test_networks_that_view_their_maps_stay_runnable() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()[:7]

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            return y.view(len(y), 2, -1, *y.shape[2:]).transpose(1, 2).reshape(y.shape).view(len(y), -1)

    model, x = Shuffled().eval(), smooth()
    lean, told = leanconv.separate(model, ranks={"body.2": 1, "body.5": 2}, batches=[x], example=x[:1], latency=False)
    assert len(told.edits) == 2
    assert lean(x).shape == model(x).shape
