"""Edits are carried out on a copy: all of one or nothing, ties kept, conflicts refused."""

import pytest
import torch
from torch import nn

from leanconv import Error
from leanconv.contract import Edit, Refusal
from leanconv.rewrite import rewrite


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


def test_the_original_is_untouched_and_the_copy_changed() -> None:
    model = net()
    result = rewrite(model, [Edit({"1": nn.Tanh(), "2.1": nn.Tanh()}, "smooth"), Refusal("0", "no activation")])
    assert [type(model[1]), type(model[2][1])] == [nn.ReLU, nn.ReLU]
    assert [type(result.model[1]), type(result.model[2][1])] == [nn.Tanh, nn.Tanh]  # type: ignore[index]
    assert result.refusals == (Refusal("0", "no activation"),)
    assert result.model.get_parameter("0.weight") is not model[0].weight


def test_weights_tied_across_an_edit_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    result = rewrite(
        model, [Edit({"0": nn.Sequential(model[0], nn.Tanh())}, "wrapped", keys={"0.0.weight": "0.weight"})]
    )
    assert result.model.get_parameter("0.0.weight") is result.model.get_parameter("2.weight")
    assert result.model.get_parameter("2.weight") is not model[0].weight


def test_key_map_lists_what_was_kept_and_what_was_renamed() -> None:
    model = net()
    edit = Edit(
        {"0": nn.Sequential(model[0], nn.Tanh())}, "wrapped", keys={"0.0.weight": "0.weight", "0.0.bias": "0.bias"}
    )
    assert rewrite(model, [edit]).keys == {
        "2.0.weight": "2.0.weight",
        "2.0.bias": "2.0.bias",
        "0.0.weight": "0.weight",
        "0.0.bias": "0.bias",
    }


def test_the_root_can_be_replaced() -> None:
    assert isinstance(rewrite(net(), [Edit({"": nn.Identity()}, "nothing left")]).model, nn.Identity)


def test_no_edits_give_an_equal_copy() -> None:
    model = net()
    result = rewrite(model, [])
    x = torch.randn(1, 2)
    assert torch.equal(result.model(x), model(x))


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        ([Edit({"1": nn.Tanh()}, "a"), Edit({"1": nn.Tanh()}, "b")], "got 2 edits of '1'"),
        ([Edit({"2": nn.Tanh()}, "a"), Edit({"2.1": nn.Tanh()}, "b")], "got '2.1' inside '2'"),
        ([Edit({"7": nn.Tanh()}, "a")], "must name a module of the network, got '7'"),
    ],
)
def test_conflicts_are_one_sentence(edits: list[Edit], sentence: str) -> None:
    with pytest.raises(Error, match=r"^rewrite: ") as error:
        rewrite(net(), edits)
    assert sentence in str(error.value)


def test_a_shared_module_needs_all_its_paths() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act)
    with pytest.raises(Error, match="got '1' without '3'"):
        rewrite(model, [Edit({"1": nn.Tanh()}, "a")])
    new = nn.Tanh()
    result = rewrite(model, [Edit({"1": new, "3": new}, "a")])
    assert result.model.get_submodule("1") is result.model.get_submodule("3")
