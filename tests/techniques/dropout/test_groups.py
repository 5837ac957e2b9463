from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dropout_networks import NETWORKS, network
from leanconv.graph import record
from leanconv.techniques.dropout.groups import Group, find
from leanconv.techniques.dropout.layers import DropBlock2d, Dropout, Dropout2d, StochasticDepth

IMAGES = torch.zeros(2, 3, 8, 8)


def groups(model: nn.Module, x: Tensor) -> list[Group]:
    found, refusals = find(record(model, x))
    assert not refusals
    return found


def refusal(model: nn.Module, x: Tensor = IMAGES) -> str:
    found, refusals = find(record(model, x))
    assert not found
    assert len(refusals) == 1
    return f"{refusals[0].path}: {refusals[0].why}"


def test_conv_norm_dropout_depthwise_pool_flatten_linear() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), Dropout2d(0.5, "batch"),
        nn.Conv2d(6, 12, 3, groups=6), nn.PReLU(12), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 4, 5),
    )  # fmt: skip
    (group,) = groups(model, IMAGES)
    assert (group.units, group.path, group.producer.path) == (6, "3", "0")
    assert [(p.path, p.before, p.after) for p in group.between] == [("1", 1, 1), ("4", 1, 2), ("5", 2, 2)]
    assert [(p.path, p.before) for p in group.consumers] == [("8", 8)]
    assert {(e.name, e.dim, e.repeat) for e in group.entries()} == {
        ("0.weight", 0, 1), ("0.bias", 0, 1), ("1.weight", 0, 1), ("1.bias", 0, 1),
        ("1.running_mean", 0, 1), ("1.running_var", 0, 1), ("4.weight", 0, 2), ("4.bias", 0, 2),
        ("5.weight", 0, 2), ("8.weight", 1, 8),
    }  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_every_entry_list_fits_its_tensor(name: str) -> None:
    model, x = network(name)
    tensors = model.state_dict()
    for group in groups(model, x):
        for e in group.entries():
            assert tensors[e.name].shape[e.dim] == group.units * e.repeat
            assert tensors[e.name].data_ptr() == getattr(e.owner, e.key).data_ptr()


def test_two_dropouts_in_one_group() -> None:
    (group,) = groups(*network("two_in_one"))
    assert [(p.path, p.after) for p in group.dropouts] == [("1", 1), ("5", 2)]


def test_a_layer_can_consume_in_one_group_and_produce_in_the_next() -> None:
    first, second = groups(*network("mlp"))
    assert first.consumers[0].path == second.producer.path == "3"


def test_functional_operations_and_branches() -> None:
    (group,) = groups(*network("branches"))
    assert [p.path for p in group.consumers] == ["left", "right", "head"]
    assert group.fixed is None


def test_one_slope_for_all_channels_belongs_to_no_unit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.PReLU(), Dropout2d(0.5, "batch"), nn.Conv2d(6, 2, 1))
    (group,) = groups(model, IMAGES)
    assert "1.weight" not in {e.name for e in group.entries()}


def test_a_module_of_the_users_own_that_is_elementwise_passes() -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    (group,) = groups(nn.Sequential(nn.Linear(4, 6), Swish(), Dropout(0.5, "batch"), nn.Linear(6, 2)), torch.ones(2, 4))
    assert group.units == 6


def test_a_size_that_is_written_into_a_view_is_told() -> None:
    class Net(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.conv, self.drop, self.head, self.size = (
                nn.Conv2d(3, 4, 3),
                Dropout2d(0.5, "batch"),
                nn.Linear(144, 2),
                size,
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(self.conv(x)).view(len(x), self.size))

    assert groups(Net(144), IMAGES)[0].fixed is not None
    assert groups(Net(-1), IMAGES)[0].fixed is None


def test_dropout_that_never_draws_is_passed_over() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), Dropout(0.0), nn.Linear(4, 2))
    assert groups(model, torch.ones(2, 4)) == []


class Wired(nn.Module):
    """stem -> dropout -> head, wired by the test."""

    def __init__(self, forward: str) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.drop, self.head, self.tail = Dropout2d(0.5, "batch"), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.grouped, self.group_norm = nn.Conv2d(4, 4, 1, groups=2), nn.GroupNorm(2, 4)
        self.wide = nn.Conv2d(8, 2, 1)
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.code = forward

    def forward(self, x: Tensor) -> Tensor:
        names = {"s": self, "x": x, "torch": torch, "F": nn.functional}
        return eval(f"(lambda s, x, torch, F: {self.code})(s, x, torch, F)", names)


@pytest.mark.parametrize(
    ("code", "part"),
    {
        "the input": ("s.wide(torch.cat([s.drop(x), x, x[:, :2]], 1))", "drop: a Linear or a convolution must produce"),
        "a sum": ("s.head(s.drop(s.stem(x) + s.other(x)))", "one layer must produce the units"),
        "a residual": ("s.head(s.drop(s.stem(x)) + s.other(x))", "units must not mix with values from elsewhere"),
        "a concat": ("s.wide(torch.cat([s.drop(s.stem(x)), s.other(x)], 1))", "drop: units must not mix"),
        "a bypass": ("(lambda y: s.head(s.drop(y)) + s.tail(y))(s.stem(x))", "must come after the dropout, got tail"),
        "a sum with itself": ("(lambda y: s.head(s.drop(y) + y))(s.stem(x))", "must come after the dropout, got head"),
        "groups": (
            "s.head(s.grouped(s.drop(s.stem(x))))",
            "keep channels apart may stand between, got grouped (Conv2d)",
        ),
        "groups before": ("s.head(s.drop(s.grouped(s.stem(x))))", "keep channels apart may stand between, got grouped"),
        "group norm": ("s.head(s.group_norm(s.drop(s.stem(x))))", "got group_norm (GroupNorm)"),
        "a parameter": ("s.head(s.drop(s.stem(x)) * s.scale)", "got the network (mul)"),
        "softmax": ("s.head(torch.softmax(s.drop(s.stem(x)), 1))", "got the network (softmax)"),
        "a mean over channels": ("s.drop(s.stem(x)).mean(1)", "got the network (mean)"),
        "the output": ("s.drop(s.stem(x))", "must not reach the network's output"),
        "twice": ("s.head(s.drop(s.stem(s.stem(x)[:, :3])))", "called once"),
        "the head twice": ("s.head(s.head(s.drop(s.stem(x))))", "called once and stand at one path, got head"),
        "a functional product": ("F.conv2d(s.drop(s.stem(x)), s.head.weight)", "got the network (conv2d)"),
        "moved channels": ("s.wide(s.drop(s.stem(x)).movedim(1, 3))", "got the network (movedim)"),
        "folded into the batch": ("s.head(s.drop(s.stem(x)).reshape(4, 4, 4, 8))", "got the network (reshape)"),
    }.values(),
    ids=lambda v: v if v.startswith(("s.", "(", "F.")) else "",
)
def test_what_has_no_group_is_refused_with_its_path(code: str, part: str) -> None:
    assert part in refusal(Wired(code))


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        (Dropout2d(0.5), "mask must be 'batch', got mask='sample'"),
        (nn.Dropout2d(0.5), "got Dropout2d"),
        (nn.Dropout(0.5), "got Dropout"),
        (DropBlock2d(0.1), "got DropBlock2d"),
        (StochasticDepth(0.1, "batch"), "got StochasticDepth"),
        (Dropout(0.5, "batch"), "maps take Dropout1d, 2d or 3d, got an input of shape (2, 4, 6, 6)"),
    ],
)
def test_layers_that_stop_no_whole_units_are_refused(layer: nn.Module, part: str) -> None:
    assert part in refusal(nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 2, 1)))


def test_a_sample_mask_on_the_way_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), Dropout(0.5, "batch"), Dropout(0.5), nn.Linear(6, 2))
    found, refusals = find(record(model, torch.ones(2, 4)))
    assert not found
    assert [r.path for r in refusals] == ["1", "2"]


def test_tied_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Dropout(0.5, "batch"), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert "parameters must not be shared, got 0.weight" in refusal(model, torch.ones(2, 4))


def test_a_weight_that_is_computed_is_refused() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Dropout2d(0.5, "batch"), Standardised(4, 2, 1))
    assert "got 2 (Standardised)" in refusal(model)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 2, 1))
    assert "got 2 (Conv2d)" in refusal(nn.Sequential(nn.Conv2d(3, 4, 3), Dropout2d(0.5, "batch"), normed))


def test_a_linear_over_the_last_of_three_dimensions_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Dropout(0.5, "batch"), nn.Linear(6, 2))
    assert "got an input of shape (2, 5, 6)" in refusal(model, torch.ones(2, 5, 4))
