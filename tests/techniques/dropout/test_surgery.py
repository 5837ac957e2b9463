"""Where dropout goes, what is wrapped or exchanged, and that nothing changes in eval mode."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv import models
from leanconv.contract import Context, Edit, Refusal
from leanconv.graph import evaluating, record
from leanconv.rewrite import rewrite
from leanconv.techniques import dropout
from leanconv.techniques.dropout import DropBlock2d, Dropout, Dropout1d, Dropout2d, Dropout3d, Options, StochasticDepth

STRICT = {"mask": "batch", "strict": True}


def _propose(model: nn.Module, x: Tensor, **options: object) -> list[Edit | Refusal]:
    return dropout.apply(Context(model, graph=record(model, x)), Options(**options))


def _edits(model: nn.Module, x: Tensor, **options: object) -> dict[str, nn.Module]:
    return {p: m for e in _propose(model, x, **options) if isinstance(e, Edit) for p, m in e.put.items()}


def _refusals(model: nn.Module, x: Tensor, **options: object) -> list[str]:
    return [p.why for p in _propose(model, x, **options) if isinstance(p, Refusal)]


def _apply(model: nn.Module, x: Tensor, **options: object) -> nn.Module:
    """Applied, with what holds everywhere: exact in eval, nothing left to do, weights found under their keys."""
    result = rewrite(model, _propose(model, x, **options))
    assert all(edit.claim == "exact" for edit in result.edits)
    with evaluating(model), evaluating(result.model):
        assert torch.equal(model(x), result.model(x))
    again = [p for p in _propose(result.model, x, **options) if isinstance(p, Edit)]
    assert not again, "a second time there is nothing to do"
    old, new = model.state_dict(), result.model.state_dict()
    assert set(result.keys) == set(new)
    assert all(torch.equal(new[name], old[source]) for name, source in result.keys.items())
    return result.model


def _dropouts(model: nn.Module) -> list[str]:
    return [f"{path}:{type(m).__name__}" for path, m in model.named_modules() if isinstance(m, dropout.LAYERS)]


CNN_INPUT = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _cnn(*, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(8)] if norm else []
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), *norms, nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 6), nn.ReLU(), nn.Linear(6, 4)),
    )


def test_auto_puts_one_layer_before_the_last_linear() -> None:
    model = _apply(_cnn(), CNN_INPUT)
    assert _dropouts(model) == ["7.1:Dropout"]
    assert model[7][1].p == 0.2


def test_hidden_puts_channels_after_activations_and_features_after_linears() -> None:
    model = _apply(_cnn(), CNN_INPUT, where="hidden", p=0.1)
    assert _dropouts(model) == ["1.1:Dropout2d", "4.1:Dropout2d"]
    assert _dropouts(_apply(_cnn(), CNN_INPUT, where="all")) == ["1.1:Dropout2d", "4.1:Dropout2d", "7.1:Dropout"]


@pytest.mark.parametrize(("conv", "norm", "kind", "shape"), [
    (nn.Conv1d, nn.BatchNorm1d, Dropout1d, (2, 3, 9)),
    (nn.Conv2d, nn.BatchNorm2d, Dropout2d, (2, 3, 9, 9)),
    (nn.Conv3d, nn.BatchNorm3d, Dropout3d, (2, 3, 5, 5, 5)),
])  # fmt: skip
def test_every_rank_has_its_channel_form(conv, norm, kind, shape) -> None:
    net = nn.Sequential(conv(3, 4, 3), norm(4), nn.SiLU(), conv(4, 5, 3), nn.Flatten(2)).eval()
    model = _apply(net, torch.randn(shape), where="all", count="exact")
    (layer,) = (m for m in model.modules() if isinstance(m, dropout.LAYERS))
    assert type(layer) is kind
    assert layer.count == "exact"


def test_existing_layers_are_exchanged_and_not_doubled() -> None:
    net = nn.Sequential(*_cnn()[:8], nn.Dropout(0.5), nn.Linear(6, 4))
    model = _apply(net, CNN_INPUT, p=0.3)
    assert _dropouts(model) == ["8:Dropout"]
    assert model[8].p == 0.3
    assert not _edits(model, CNN_INPUT, p=0.3)
    assert _dropouts(_apply(model, CNN_INPUT, p=0.4)) == ["8:Dropout"]
    several = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.1), nn.Dropout(0.2), nn.Linear(4, 3))
    assert _refusals(several, torch.ones(2, 5)) == ["several dropout layers stand here already: 2, 3"]


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.next = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)
        self.same = self.fc

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.next(F.relu(self.conv(x))))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


def test_functional_networks_have_the_reader_wrapped_and_its_keys_mapped() -> None:
    model = _apply(_Functional(), CNN_INPUT, where="all")
    assert _dropouts(model) == ["next.0:Dropout2d", "fc.0:Dropout"]
    assert model.same is model.fc
    assert "same.1.weight" in model.state_dict()


class _Shared(nn.Module):
    """One activation module for all places, a skip connection, a branch that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.act = nn.ReLU(inplace=True)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = self.act(x + self.b(self.act(self.a(x))))
        y: Tensor = self.fc(torch.cat([self.left(x), self.right(x)], 1).mean((2, 3)))
        return y


def test_shared_activations_and_skip_connections() -> None:
    net = _Shared()
    model = _apply(net, CNN_INPUT, where="all")
    # What feeds the sum is left alone; the value that two convolutions read has no layer of its own to be wrapped.
    assert _dropouts(model) == ["b.0:Dropout2d", "fc.0:Dropout"]
    assert _refusals(net, CNN_INPUT, where="all") == [
        "functions and layers that are called several times stand around it: none can be wrapped"
    ]


class _Joins(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x + y)


class _Joined(nn.Module):
    """Layers that take more than one tensor, which nn.Sequential could not pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.join = nn.Conv2d(3, 4, 3), _Joins()
        self.up, self.flat, self.head = nn.ConvTranspose2d(4, 4, 3), nn.Flatten(), nn.Linear(256, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(torch.flatten(self.up(self.join(y, 2 * y), output_size=[8, 8]), 1))


@pytest.mark.parametrize("where", ["all", "head"])
def test_layers_that_take_more_than_one_tensor_are_not_wrapped(where: str) -> None:
    applied = _apply(_Joined(), CNN_INPUT, where=where)
    assert _dropouts(applied) == ["head.0:Dropout"]


def test_never_straight_before_a_norm_or_a_sum() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    assert list(_edits(net, CNN_INPUT, where="all")) == ["4"]


def test_separable_blocks_get_it_once_before_the_channels_mix() -> None:
    net = models.plain(batchnorm=True, separable=True)
    x = torch.randn(2, 1, 28, 28)
    model = _apply(net, x, where="hidden")
    assert len(_dropouts(model)) == 5
    mobile = models.mobilenet_v1(num_classes=4, width=0.25)
    places = list(_edits(mobile, torch.randn(2, 3, 32, 32), where="hidden"))
    assert all(place.endswith("act_dw") for place in places)
    assert len(places) == 13


def test_the_networks_input_is_no_hidden_layer() -> None:
    assert _refusals(nn.Linear(5, 3), torch.ones(2, 5)) == ["no layer reads what a hidden layer made"]
    assert _refusals(nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), torch.ones(2, 5), where="all")
    assert _refusals(nn.ReLU(), torch.ones(2, 5)) == ["no layer reads what a hidden layer made"]


def test_without_a_graph_or_with_p_zero_it_refuses() -> None:
    (refusal,) = dropout.apply(Context(_cnn()), Options())
    assert refusal == Refusal("", "the places for dropout are known from one execution, so an example input is needed")
    assert _refusals(_cnn(), CNN_INPUT, p=0.0) == ["with p = 0 nothing ever stops"]


@pytest.mark.source("S4")
@pytest.mark.parametrize("where", ["auto", "hidden", "all"])
@pytest.mark.parametrize("norm", [False, True])
def test_strict_places_are_places_that_strict_mode_takes(where: str, norm: bool) -> None:
    model = _apply(_cnn(norm=norm), CNN_INPUT, where=where, **STRICT).train()
    first, second, last = (i + norm for i in (1, 4, 7))
    expected = {"auto": [f"{last}.1:Dropout"], "hidden": [f"{first}.1:Dropout2d", f"{second}.1:Dropout2d"]}
    assert _dropouts(model) == expected.get(where, [*expected["hidden"], *expected["auto"]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    options = Options(where=where, **STRICT)
    attachment = dropout.attach(Context(model, optimizer=optimizer, probe=CNN_INPUT), options)
    for _ in range(3):
        before = copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        model(CNN_INPUT).square().sum().backward()
        optimizer.step()
        stopped = attachment.stopped()
        assert stopped
        for name, mask in stopped.items():
            now, then = model.state_dict()[name], before[name]
            assert torch.equal(now[mask.expand_as(now)], then[mask.expand_as(now)])
    attachment.close()


def test_strict_moves_up_before_flatten_and_refuses_sums() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4))
    assert _dropouts(_apply(net, CNN_INPUT, **STRICT)) == ["1.1:Dropout2d"]
    assert _dropouts(_apply(net, CNN_INPUT)) == ["3.1:Dropout"]
    model = _apply(_Shared(), CNN_INPUT, where="all", **STRICT)
    assert _dropouts(model) == ["b.0:Dropout2d"]
    assert any(
        "skip connection" in why or "sum or concat" in why
        for why in _refusals(_Shared(), CNN_INPUT, where="all", **STRICT)
    )


def test_a_network_in_eval_or_partly_frozen_keeps_its_flags() -> None:
    net = _cnn().train()
    net[7].eval()
    model = rewrite(net, _propose(net, CNN_INPUT, where="all")).model
    assert not any(m.training for m in model[7].modules())
    assert all(m.training for m in model[1].modules())


def _mixed() -> nn.Module:
    shared = nn.Dropout(0.1)
    net = nn.Sequential(nn.Dropout2d(0.1), Dropout2d(0.2), DropBlock2d(0.1), nn.Sequential(StochasticDepth(0.1)))
    net.add_module("one", shared)
    net.add_module("two", shared)
    return net


@pytest.mark.parametrize("verb", [dropout.remove, dropout.fold])
def test_remove_and_fold_take_out_every_dropout_exactly(verb) -> None:
    net = _mixed().train()
    proposals = verb(Context(net))
    assert ("one", "two") in [tuple(e.put) for e in proposals]
    model = rewrite(net, proposals).model
    assert not any(isinstance(m, (*dropout.LAYERS, nn.Dropout, nn.Dropout2d)) for m in model.modules())
    assert model.one is model.two
    assert all(m.training for m in model.modules())
    assert torch.equal(model(CNN_INPUT), CNN_INPUT), "in training, too, nothing is left that draws"
    assert not verb(Context(model))


def test_a_hooked_layer_is_not_taken_out() -> None:
    net = nn.Sequential(nn.Linear(3, 3), Dropout(0.5))
    net[1].register_forward_hook(lambda *_: None)
    assert dropout.remove(Context(net)) == [Refusal("1", "hooks on the dropout layer would be lost with it")]
