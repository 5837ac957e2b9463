"""Counts against counts made by hand, for networks as people write them."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import leanconv
from leanconv.accounting import Report, cost, layer_cost
from leanconv.contract import Cost
from leanconv.errors import Error


def row(report: Report, path: str) -> Any:
    return next(r for r in report.rows if r.path == path)


def test_a_small_network_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))
    report = cost(model, torch.randn(2, 3, 6, 6))
    conv, norm, act, flat, linear = report.rows
    assert (conv.path, conv.kind, conv.shape, conv.calls) == ("0", "Conv2d", (2, 4, 4, 4), 1)
    x, y = 2 * 3 * 36, 2 * 4 * 16
    assert (conv.params, conv.macs, conv.bytes) == (112, y * 27, 4 * (x + y + 112))
    assert (norm.params, norm.macs, norm.bytes) == (8, 0, 4 * (2 * y + 8 + 8))  # running statistics; no counter
    assert (act.params, act.macs, act.bytes) == (0, 0, 4 * 2 * y)
    assert (flat.macs, flat.bytes) == (0, 4 * 2 * y)
    assert (linear.params, linear.macs, linear.bytes) == (325, 2 * 64 * 5, 4 * (y + 10 + 325))
    assert report.total == Cost(112 + 8 + 325, y * 27 + 640, sum(r.bytes for r in report.rows))
    assert (report.params, report.macs, report.bytes) == tuple(vars(report.total).values())


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv1d(3, 4, 5), (2, 3, 9), 2 * 5 * 4 * 3 * 5),
        (nn.Conv2d(4, 6, (1, 3), (2, 1), groups=2), (1, 4, 5, 5), 3 * 3 * 6 * 2 * 3),
        (nn.Conv2d(4, 8, 3, groups=4, dilation=2), (1, 4, 7, 7), 9 * 8 * 9),
        (nn.Conv3d(2, 3, 2), (1, 2, 3, 3, 3), 8 * 3 * 2 * 8),
        (nn.ConvTranspose2d(3, 4, 2, 2), (1, 3, 5, 5), 25 * 3 * 4 * 4),
        (nn.ConvTranspose2d(4, 4, 3, groups=2), (1, 4, 5, 5), 25 * 4 * 2 * 9),
        (nn.Linear(3, 4), (7, 3), 7 * 12),
        (nn.Linear(3, 4, bias=False), (2, 5, 3), 10 * 12),
        (nn.AvgPool2d(2), (1, 3, 4, 4), 0),
        (nn.LayerNorm(4), (3, 4), 0),
    ],
)
def test_multiply_adds_of_torchs_layers(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert layer_cost(layer, shape).macs == macs


class Functional(nn.Module):
    """Functions, a parameter of its own, a layer called twice, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(5, 3, 1, 1))
        self.first = nn.Linear(5, 5, bias=False)
        self.second = nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.conv(x))) + x
        x = F.conv2d(x, self.kernel).mean((2, 3))
        return self.second(self.first(x)) @ torch.ones(5, 2, device=x.device)


def test_functions_calls_and_ties() -> None:
    report = cost(Functional(), torch.randn(2, 3, 4, 4))
    elements = 2 * 3 * 16
    assert row(report, "conv").calls == 2
    assert row(report, "conv").macs == 2 * elements * 27
    own = row(report, "")
    assert own.kind == "relu, add, convolution, mean, ones, mm"
    assert own.macs == 2 * 5 * 16 * 3 + 2 * 5 * 2
    assert own.params == 15
    moved = 2 * elements  # relu
    moved += 3 * elements  # add
    moved += elements + 15 + 2 * 5 * 16  # convolution
    moved += 2 * 5 * 16 + 2 * 5  # mean
    moved += 10  # ones
    moved += 10 + 10 + 4  # product
    assert own.bytes == 4 * moved
    assert (row(report, "first").params, row(report, "second").params) == (25, 0)
    assert (row(report, "idle").calls, row(report, "idle").params) == (0, 6)
    assert report.params == sum(p.numel() for p in Functional().parameters())


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def test_attention_and_batched_products() -> None:
    assert cost(Attention(), torch.randn(2, 3, 7, 4)).macs == 2 * 3 * 7 * 7 * 4 * 2

    class Batched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bij,bjk->bik", x, x.transpose(1, 2))

    assert cost(Batched(), torch.randn(2, 3, 5)).macs == 2 * 3 * 3 * 5


def test_what_has_no_rule_is_said() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]  # type: ignore[no-any-return]

    report = cost(Recurrent(), torch.randn(5, 2, 3))
    assert report.macs or report.uncounted
    if not report.macs:
        assert "not counted" in report.table()


def test_views_move_nothing() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.never = nn.Identity()  # with a module inside it, this is no leaf

        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, -1).t().unsqueeze(0)[:, 1:].squeeze(0)

    assert cost(Views(), torch.randn(2, 3, 4)).total == Cost()


def test_weight_norm_belongs_to_its_layer() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    report = cost(nn.Sequential(layer), torch.randn(1, 3, 5, 5))
    assert [(r.path, r.kind) for r in report.rows] == [("0", "Conv2d")]
    assert report.params == sum(p.numel() for p in layer.parameters())
    assert report.macs == 9 * 4 * 27


def test_the_network_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    cost(model, (2, 3, 5, 5))
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_even_when_the_run_fails() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(
        Error, match=r"cost: the network must run on an input of shape \(1, 2, 5, 5\), got RuntimeError"
    ):
        cost(model, (1, 2, 5, 5))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("example", [(), (1, 0, 3), (1.5, 2), "abc", (torch.ones(1), 3)])
def test_bad_examples_are_told(example: Any) -> None:
    with pytest.raises(Error, match="the example must be a tensor, tensors, or a shape of integers >= 1"):
        cost(nn.Identity(), example)


def test_on_the_meta_device_and_in_other_dtypes() -> None:
    real = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with torch.device("meta"):
        ghost = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert cost(ghost, (1, 3, 8, 8)).total == cost(real, (1, 3, 8, 8)).total
    half = cost(real.to(torch.float64), (1, 3, 8, 8))
    assert half.dtype == "float64"
    assert half.bytes == 2 * cost(ghost, (1, 3, 8, 8)).bytes


def test_several_inputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x @ y

    report = cost(Two(), (torch.ones(2, 3), torch.ones(3, 4)))
    assert report.macs == 24
    assert report.inputs == ((2, 3), (3, 4))


def test_plain_records_and_text() -> None:
    report = leanconv.cost(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), (1, 3, 5, 5))
    record = json.loads(json.dumps(report.to_json()))
    assert record["layers"][0] == {
        "path": "0", "kind": "Conv2d", "calls": 1, "shape": [1, 4, 3, 3], "params": 108, "macs": 972,
        "bytes": 4 * (75 + 36 + 108),
    }  # fmt: skip
    assert record["total"] == {"params": 108, "macs": 972, "bytes": 876, "flops": 1944}
    lines = report.table().splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "MACs", "bytes"]
    assert lines[-2].split() == ["total", "108", "972", "876"]
    assert "FLOPs = 2 x MACs = 1,944" in lines[-1]
    assert report.under("0") == report.total
    assert report.under("1") == Cost()
