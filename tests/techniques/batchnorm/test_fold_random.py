"""Random networks: wherever fold edits, eval outputs stay, and the mode of every module too."""

import torch
from hypothesis import given, settings
from torch import nn

from batchnorm_nets import context
from leanconv.rewrite import rewrite
from leanconv.techniques import batchnorm
from random_nets import example, networks


@settings(max_examples=80, deadline=None)
@given(networks())
def test_fold_keeps_outputs_and_modes(model: nn.Module) -> None:
    x = example()
    modes = {path: m.training for path, m in model.named_modules(remove_duplicate=False)}
    result = rewrite(model, batchnorm.fold(context(model, x)))
    assert {path: m.training for path, m in result.model.named_modules(remove_duplicate=False)} == modes
    assert {path: m.training for path, m in model.named_modules(remove_duplicate=False)} == modes
    assert all(edit.claim == "exact" for edit in result.edits)
    with torch.no_grad():
        want, got = model.eval()(x), result.model.eval()(x)
    assert (got - want).abs().max() <= 1e-10 * want.abs().max()
