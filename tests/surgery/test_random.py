"""Random networks go through surgery: exact where that is claimed, undone bit for bit, done again by the plan."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import leanconv
from leanconv import surgery
from leanconv.surgery import Certificate
from random_nets import example, networks


def changed(model: nn.Module, verb: str) -> tuple[nn.Module, Certificate]:
    x = example()
    if verb == "fold":
        return leanconv.fold(model, example=x, latency=False)
    if verb.startswith("remove"):
        return leanconv.remove(model, verb.split()[1], example=x, latency=False)
    return leanconv.apply(model, verb.split()[1], example=x, batches=[x], latency=False)


@settings(max_examples=60, deadline=None)
@given(networks(), st.sampled_from(("fold", "apply batchnorm", "apply dropout", "remove batchnorm", "remove dropout")))
def test_certified_undone_and_done_again(model: nn.Module, verb: str) -> None:
    x = example()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    new, told = changed(model, verb)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert [module.training for module in model.modules()] == modes
    if told.edits and all(edit.claim == "exact" for edit in told.edits):
        assert told.exact is not None
        assert told.exact.relative <= 1e-10
    back, since = told.undo(new)
    assert since == ()
    assert list(back.state_dict()) == list(before)
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in before.items())
    assert [type(module) for module in back.modules()] == [type(module) for module in model.modules()]
    again = surgery.replay(model, told.plan, x, [x])
    with torch.no_grad():
        assert torch.equal(again.eval()(x), new.eval()(x))
        assert torch.equal(back.eval()(x), model.eval()(x))
