"""A network goes in, a changed copy and its certificate come out."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

import leanconv
from leanconv import Error, surgery
from leanconv.surgery import Plan, Step
from surgery.networks import Block, images, network


def test_fold_takes_batch_norm_and_dropout_and_certifies_it() -> None:
    model, x = network(), images()
    before = copy.deepcopy(model.state_dict())
    folded, told = leanconv.fold(model, example=x)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.Dropout) for m in folded.modules())
    assert told.exact is not None
    assert told.exact.relative <= 1e-10
    assert told.rule is not None
    assert told.rule.holds
    assert torch.allclose(model(x), folded(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert told.after.params < told.before.params
    assert told.latency is not None
    assert "fold" in told.table()
    assert json.loads(json.dumps(told.to_dict()))["float64"]["relative"] <= 1e-10


def test_without_an_example_one_is_guessed_and_that_is_told() -> None:
    _, told = leanconv.fold(network(), latency=False)
    assert "noise of shape (2, 3, 32, 32)" in told.notes[0]


def test_what_finds_nothing_to_do_says_so() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    same, told = leanconv.remove(model, "dropout", example=torch.randn(2, 3))
    assert not told.changed
    assert told.notes == ("nothing changed: the network has no place for it, or has it already",)
    assert "nothing changed" in told.table()
    assert torch.equal(same[0].weight, model[0].weight)  # type: ignore[index]


def test_batch_norm_comes_in_without_changing_the_outputs() -> None:
    model, x = network(), images()
    changed, told = leanconv.apply(model, "batchnorm", example=x, batches=[x, images(seed=2)], latency=False)
    assert told.exact is not None
    assert sum(isinstance(m, leanconv.nn.BatchNorm2d) for m in changed.modules()) >= 1
    assert {edit.claim for edit in told.edits} == {"exact"}
    assert told.keys["5.0.weight"] == "5.weight"


def test_dropout_comes_in_by_policy_and_never_before_a_batch_norm() -> None:
    model, x = network(), images()
    plain, _ = leanconv.remove(model, "dropout", example=x, latency=False)
    changed, told = leanconv.apply(plain, "dropout", {"p": 0.3, "where": "all"}, example=x, latency=False)
    assert told.changed
    assert told.exact is not None
    graph = leanconv.record(changed, x)
    for step in graph.steps:
        if isinstance(step.module, leanconv.nn.Dropout):
            assert not any(isinstance(s.module, nn.BatchNorm2d) for v in step.outputs for s in graph.consumers(v))


@pytest.mark.parametrize("verb", ["fold", "batchnorm", "dropout"])
def test_undo_gives_the_original_back_bit_for_bit(verb: str) -> None:
    model, x = network(), images()
    if verb == "fold":
        changed, told = leanconv.fold(model, example=x, latency=False)
    elif verb == "dropout":
        changed, told = leanconv.remove(model, "dropout", example=x, latency=False)
    else:
        changed, told = leanconv.apply(model, "batchnorm", example=x, latency=False)
    back, since = told.undo(changed)
    assert since == ()
    assert list(back.state_dict()) == list(model.state_dict())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in back.state_dict().items())
    assert torch.equal(back(x), model(x))
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]


def test_undo_tells_what_was_trained_since() -> None:
    model, x = network(), images()
    changed, told = leanconv.fold(model, example=x, latency=False)
    with torch.no_grad():
        changed.get_parameter("10.weight").add_(1)
        changed.get_parameter("0.weight").add_(1)
    back, since = told.undo(changed)
    assert set(since) == {"10.weight", "0.weight"}
    assert torch.equal(back.get_parameter("0.weight"), model.get_parameter("0.weight"))
    assert torch.equal(back.get_parameter("10.weight"), model.get_parameter("10.weight") + 1)
    with pytest.raises(Error, match="undo: the network must be the one that was rewritten"):
        told.undo(nn.Linear(2, 2))


def test_a_plan_does_the_same_again_and_survives_json() -> None:
    model, x = network(), images()
    changed, told = leanconv.fold(model, example=x, latency=False)
    plan = Plan.from_dict(json.loads(json.dumps(told.plan.to_dict())))
    again = surgery.replay(model, plan, x)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in changed.state_dict().items())


@pytest.mark.parametrize("wrong", [{"format_version": 2, "steps": []}, {"format_version": 1, "steps": [{"verb": "x"}]}])
def test_a_plan_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(Error, match="plan"):
        Plan.from_dict(wrong)
    with pytest.raises(Error, match="a verb must be one of"):
        Step("melt", "dropout")


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_optimizer_goes_on(kind: type[torch.optim.Optimizer]) -> None:
    model, x = network().train(), images()
    optimizer = kind(leanconv.param_groups(model), lr=0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    model(x).sum().backward()
    optimizer.step()
    changed, told = leanconv.apply(model, "batchnorm", example=x, optimizer=optimizer, latency=False)
    assert told.optimizer is not None
    made = told.optimizer.optimizer
    assert type(made) is kind
    held = {id(p) for group in made.param_groups for p in group["params"]}
    assert held == {id(p) for p in changed.parameters()}
    name = "5.0.weight"
    assert name in told.optimizer.kept
    new, old = changed.get_parameter(name), model.get_parameter("5.weight")
    for key, value in optimizer.state[old].items():
        assert torch.equal(torch.as_tensor(made.state[new][key]), torch.as_tensor(value))
        assert made.state[new][key] is not value or not isinstance(value, torch.Tensor)
    assert set(told.optimizer.fresh) == {"5.1.weight", "5.1.bias"}
    norms = next(group for group in made.param_groups if group["role"] == "norm")
    assert changed.get_parameter("5.1.weight") in set(norms["params"])
    changed(x).sum().backward()
    made.step()


def test_an_optimizer_without_roles_puts_new_parameters_beside_those_they_replace() -> None:
    model, x = network().train(), images()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": 0.1}, {"params": rest}], lr=0.1)
    changed, told = leanconv.apply(model, "batchnorm", example=x, optimizer=optimizer, latency=False)
    assert told.optimizer is not None
    groups = told.optimizer.optimizer.param_groups
    assert changed.get_parameter("5.1.weight") in set(groups[1]["params"])
    assert groups[0]["weight_decay"] == 0.1


def test_a_strange_optimizer_is_refused() -> None:
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(Error, match="the optimizer must be that of the network"):
        leanconv.fold(network(), example=images(), optimizer=other)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_cannot_be_rewritten_from_outside_is_refused_with_the_remedy() -> None:
    with pytest.raises(Error, match=r"before it is wrapped \(its \.module\), got DataParallel"):
        leanconv.fold(DataParallel(network()), example=images())
    with pytest.raises(Error, match="must be Python, got a ScriptModule"):
        leanconv.fold(torch.jit.trace(network(), images()), example=images())


def test_an_input_that_does_not_run_is_told_with_the_layer() -> None:
    with pytest.raises(Error, match=r"got RuntimeError in 0: Given groups=1"):
        leanconv.fold(network(), example=torch.randn(2, 4, 12, 12))


def test_flags_of_submodules_stay() -> None:
    model, x = network().train(), images()
    block = model[3]
    assert isinstance(block, Block)
    block.norm.eval()
    changed, _ = leanconv.remove(model, "dropout", example=x, latency=False)
    assert changed[3].training  # type: ignore[index]
    assert not changed[3].norm.training  # type: ignore[index, union-attr]


def test_half_precision_is_folded_too_and_its_rounding_told() -> None:
    model, x = network().bfloat16(), images().bfloat16()
    folded, told = leanconv.fold(model, example=x, latency=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert {p.dtype for p in folded.parameters()} == {torch.bfloat16}
    assert {edit.claim for edit in told.edits if len(edit.paths) == 2} == {"approximate"}
    assert told.difference is not None
    assert told.difference.relative < 0.02


def test_an_old_checkpoint_is_renamed_where_nothing_is_new() -> None:
    model, x = network(), images()
    plain, _ = leanconv.remove(model, "dropout", example=x, latency=False)
    changed, told = leanconv.apply(plain, "dropout", {"p": 0.3, "where": "all"}, example=x, latency=False)
    old = {name: value + 1 for name, value in plain.state_dict().items()}
    changed.load_state_dict(told.translated(old))
    plain.load_state_dict(old)
    assert torch.equal(changed(x), plain(x))
    with pytest.raises(Error, match=r"the checkpoint must be of the network before, got one without '0\.weight'"):
        told.translated({})
    _, told = leanconv.apply(model, "batchnorm", example=x, latency=False)
    with pytest.raises(Error, match=r"only where nothing is new, got '5\.1\.weight'"):
        told.translated(model.state_dict())


def test_options_that_a_technique_does_not_have_are_refused() -> None:
    with pytest.raises(Error, match=r"dropout: options must be among .*, got 'q'"):
        leanconv.apply(network(), "dropout", {"q": 1}, example=images())
    with pytest.raises(Error, match="a name must be one of"):
        leanconv.apply(network(), "dropuot", example=images())
