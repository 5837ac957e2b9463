"""The recorded graph sees what really ran: reuse, skips, in-place and functional operations, ties, hooks."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv import Error
from leanconv.graph import Given, Graph, record


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.ones(3, 3, 1, 1))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.drop(x)
        y = self.conv(self.conv(x))
        y = self.act(self.bn(y)) + kept
        y = F.conv2d(y, self.scale * 2)
        y = F.dropout(y, 0.5, self.training)
        y.mul_(2)
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return record(Net(), torch.randn(2, 3, 4, 4))


def kinds(graph: Graph) -> list[str]:
    return [s.kind for s in graph.steps]


def test_steps_in_order(graph: Graph) -> None:
    expected = [
        "Dropout",
        "Conv2d",
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "add",
        "conv2d",
        "dropout",
        "mul_",
        "mean",
        "Linear",
    ]
    assert kinds(graph) == expected
    assert [s.index for s in graph.steps] == list(range(len(expected)))


def test_a_layer_called_twice_has_two_calls_and_two_users(graph: Graph) -> None:
    assert [s.number for s in graph.calls("conv")] == [0, 1]
    assert len(graph.users("conv.weight")) == 2


def test_dropout_that_is_identity_in_eval_is_still_a_step_of_its_own(graph: Graph) -> None:
    drop, conv = graph.calls("drop")[0], graph.calls("conv")[0]
    assert drop.inputs == conv.inputs == graph.inputs
    assert [s.kind for s in graph.consumers(drop.outputs[0])] == ["add"]
    functional = next(s for s in graph.steps if s.kind == "dropout")
    assert functional.arguments["p"] == 0.5
    assert functional.arguments["training"] is False


def test_skip_connection_has_two_producers(graph: Graph) -> None:
    add = next(s for s in graph.steps if s.kind == "add")
    assert [graph.producer(v).kind for v in add.inputs] == ["ReLU", "Dropout"]  # type: ignore[union-attr]


def test_in_place_operations_make_a_new_value(graph: Graph) -> None:
    act, bn = graph.calls("act")[0], graph.calls("bn")[0]
    assert act.inplace
    assert act.inputs == bn.outputs
    assert act.outputs != bn.outputs
    mul = next(s for s in graph.steps if s.kind == "mul_")
    mean = next(s for s in graph.steps if s.kind == "mean")
    assert mul.inplace
    assert mean.inputs == mul.outputs


def test_functional_convolution_names_the_parameters_behind_a_computed_weight(graph: Graph) -> None:
    conv = next(s for s in graph.steps if s.kind == "conv2d")
    assert conv.params == ("scale",)
    assert conv.module is None
    assert conv.path == ""


def test_leaf_modules_list_their_parameters_and_what_ran_inside(graph: Graph) -> None:
    (bn,) = graph.calls("bn")
    assert bn.params[:2] == ("bn.weight", "bn.bias")
    assert "batch_norm" in bn.ops


def test_shapes_and_outputs(graph: Graph) -> None:
    assert graph.shape(graph.inputs[0]) == (2, 3, 4, 4)
    (out,) = graph.outputs
    assert graph.shape(out) == (2, 2)
    assert graph.is_output(out)
    assert graph.producer(out).kind == "Linear"  # type: ignore[union-attr]


def test_only_consumer(graph: Graph) -> None:
    first, second = graph.calls("conv")
    assert graph.only_consumer(first) == second
    assert graph.only_consumer(second) == graph.calls("bn")[0]
    assert graph.only_consumer(graph.steps[-1]) is None  # the network returns it


def test_a_value_read_twice_by_one_step_and_by_two_steps() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 2), nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y) * self.c(y)

    graph = record(Square(), torch.ones(1, 2))
    assert len(graph.consumers(graph.calls("a")[0].outputs[0])) == 2
    assert graph.only_consumer(graph.calls("a")[0]) is None


def test_views_share_in_place_changes() -> None:
    class View(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            y.view(-1).add_(1)
            return self.out(y)

    graph = record(View(), torch.ones(2, 4))
    assert graph.producer(graph.calls("out")[0].inputs[0]).kind == "add_"  # type: ignore[union-attr]


def test_tied_weights_shared_modules_and_hooks() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(
        shared, nn.ReLU(), shared, nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2)
    )
    model[4].weight = model[0].weight
    model[4].register_forward_hook(lambda *args: None)
    graph = record(model, torch.ones(1, 2))
    assert graph.aliased("2") == ("0", "2")
    assert [s.number for s in graph.calls("2")] == [0, 1]
    assert graph.tied("4.weight") == ("0.weight", "2.weight", "4.weight")
    assert len(graph.users("4.weight")) == 3
    assert [graph.hooked(p) for p in ("0", "3", "4")] == [False, True, True]
    assert [s.kind for s in graph.steps] == ["Linear", "ReLU", "Linear", "Linear", "Linear"]


def test_recording_leaves_no_trace() -> None:
    model = Net().train()
    model.bn.eval()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state = torch.get_rng_state()
    record(model, torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())
    assert flags == [m.training for m in model.modules()]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_buffers_that_change_in_eval_are_put_back() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * 2

    model = Counter()
    record(model, torch.ones(1))
    assert model.calls == 0


class SamePadding(nn.Conv2d):
    """As EfficientNet-Lite's: the padding is a module of its own inside the convolution."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.static_padding = nn.ZeroPad2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.static_padding(x), self.weight, self.bias)


def test_a_convolution_that_holds_its_padding_is_one_step() -> None:
    graph = record(nn.Sequential(SamePadding(), nn.ReLU()), torch.ones(1, 3, 4, 4))
    assert kinds(graph) == ["SamePadding", "ReLU"]
    assert graph.calls("0")[0].ops == ("pad", "conv2d")
    bare = SamePadding()
    bare.static_padding = type("Identity", (nn.Module,), {"forward": lambda self, x: x})()
    assert kinds(record(nn.Sequential(bare), torch.ones(1, 3, 4, 4))) == ["SamePadding"]
    holder = SamePadding()
    holder.norm = nn.BatchNorm2d(4)  # a child that computes is a step, so its parent is none
    assert kinds(record(nn.Sequential(holder), torch.ones(1, 3, 4, 4))) == ["ZeroPad2d", "conv2d"]


def test_what_a_layer_is_called_with_besides_tensors() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 2, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=[10])

    (step,) = record(Up(), torch.ones(1, 2, 4)).steps
    assert step.arguments == {"output_size": [10]}


def test_tensors_that_a_function_was_given_are_told_by_name() -> None:
    model = Net()
    graph = record(model, torch.randn(2, 3, 4, 4))
    (scaled,) = (s for s in graph.steps if s.kind == "conv2d")
    given, weight = scaled.tensors["0"], scaled.tensors["1"]
    assert isinstance(given, Given)
    assert isinstance(weight, Given)
    assert (given.value, given.tensor) == (scaled.inputs[0], None)
    assert weight.value is None
    assert weight.tensor is not None
    assert torch.equal(weight.tensor, model.scale * 2)
    (joined,) = record(_Cat(), torch.ones(1, 2), lambda module: False).steps
    assert [part.value is None for part in joined.tensors["0"]] == [False, True]  # type: ignore[attr-defined]


class _Cat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros(1, 3)], dim=1)


def test_modules_can_be_looked_into() -> None:
    graph = record(Net(), torch.randn(2, 3, 4, 4), lambda module: isinstance(module, nn.BatchNorm2d))
    assert kinds(graph) == ["dropout", "conv2d", "conv2d", "BatchNorm2d", "relu", "add", "conv2d", "dropout", "mul_",
                            "mean", "linear"]  # fmt: skip
    assert [s.path for s in graph.steps][:5] == ["drop", "conv", "conv", "bn", "act"]


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            left, right = (a + b).chunk(2, dim=1)
            return {"left": left, "right": self.act(right)}

    graph = record(Two(), (torch.ones(1, 4), torch.ones(1, 4)))
    assert kinds(graph) == ["add", "chunk", "ReLU"]
    assert [graph.shape(v) for v in graph.outputs] == [(1, 2), (1, 2)]


def test_an_example_that_does_not_fit_is_one_sentence() -> None:
    model = Net()
    with pytest.raises(
        Error, match=r"^graph: the network must run on an example of shape \(2, 5, 4, 4\), got RuntimeError in conv: "
    ):
        record(model, torch.randn(2, 5, 4, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
