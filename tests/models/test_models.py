"""The networks: shapes, switches, twins, names, and what they refuse."""

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leanconv import models, techniques
from leanconv.accounting import cost
from leanconv.contract import Context
from leanconv.errors import Error
from leanconv.graph import record
from leanconv.rewrite import rewrite
from leanconv.techniques import batchnorm, dropout, separable


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("channels", [1, 3])
def test_each_gives_one_output_per_class(name: str, channels: int) -> None:
    model = models.build(name, num_classes=7, in_chans=channels)
    assert model(torch.randn(2, channels, 28, 28)).shape == (2, 7)
    assert model.training


@pytest.mark.parametrize("name", ["plain", "small"])
@pytest.mark.parametrize("size", [28, 33, 64, 96])
def test_small_ones_take_28_to_96_pixels(name: str, size: int) -> None:
    with torch.device("meta"):
        model = models.build(name, in_chans=3)
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 10)


def kinds(model: nn.Module, x: Tensor) -> list[tuple[str, Any]]:
    """What runs, in order, with the shapes of its parameters."""
    steps = record(model, x).steps
    return [(s.kind, [tuple(p.shape) for p in s.module.parameters()]) for s in steps if s.module is not None]


@pytest.mark.source("S28")
@pytest.mark.parametrize(("drop", "norm", "apart"), list(product([False, True], repeat=3)))
def test_the_switches_build_what_the_techniques_make_of_the_plain_network(drop: bool, norm: bool, apart: bool) -> None:
    x = torch.randn(2, 1, 28, 28)
    switched = models.plain(dropout=0.2 if drop else False, batchnorm=norm, separable=apart, width=8)
    model: nn.Module = models.plain(width=8)
    chosen: Sequence[tuple[bool, Any, Any]] = (
        (apart, separable, separable.Options(init="fresh")),
        (norm, batchnorm, batchnorm.Options(init="fresh")),
        (drop, dropout, dropout.Options(p=0.2)),
    )
    for wanted, technique, options in chosen:
        if wanted:
            context = Context(model, graph=record(model, x), roles=techniques.roles(model))
            model = rewrite(model, technique.apply(context, options)).model
    assert kinds(switched, x) == kinds(model, x)


@pytest.mark.source("S28")
def test_each_switch_stands_alone() -> None:
    def found(**switches: Any) -> set[str]:
        names = {type(m).__name__ for m in models.plain(**switches).modules()}
        return names & {"Dropout", "BatchNorm2d", "SeparableConv2d"}

    assert found() == set()
    assert found(dropout=0.3) == {"Dropout"}
    assert found(batchnorm=True) == {"BatchNorm2d"}
    assert found(separable=True) == {"SeparableConv2d"}
    assert len(found(dropout=True, batchnorm=True, separable=True)) == 3


def test_dropout_switches_of_plain_and_mlp() -> None:
    assert [m.p for m in models.plain(dropout=True).modules() if isinstance(m, dropout.Dropout)] == [0.5]
    assert [m.p for m in models.mlp(dropout=0.3).modules() if isinstance(m, dropout.Dropout)] == [0.3, 0.3]
    assert not any(isinstance(m, dropout.Dropout) for m in models.mlp(dropout=0.0).modules())


@pytest.mark.parametrize("batchnorm_", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_weights_start_so_that_maps_keep_their_scale(batchnorm_: bool, apart: bool) -> None:
    torch.manual_seed(0)
    model = models.plain(batchnorm=batchnorm_, separable=apart)
    scales: list[float] = []
    for module in model.features:  # type: ignore[attr-defined]
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda m, a, y: scales.append(y.square().mean().sqrt().item()))
    model(torch.randn(16, 1, 28, 28))
    assert scales
    assert all(0.3 < scale < 3 for scale in scales)


def test_everything_runs_channels_last() -> None:
    model = models.small(width=0.25).eval()
    formats = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda m, a, y: formats.append(y.is_contiguous(memory_format=torch.channels_last))
            )
    model(torch.randn(2, 3, 32, 32))
    assert formats
    assert all(formats)


def test_dense_twin_keeps_what_is_not_separable_and_leaves_the_network_alone() -> None:
    model = models.small(width=0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    twin = models.dense_twin(model)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(isinstance(m, separable.SeparableConv2d) for m in twin.modules())
    kept = twin.state_dict()["features.stem.conv.weight"]
    assert torch.equal(kept, before["features.stem.conv.weight"])
    again = models.dense_twin(model)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in twin.state_dict().items())
    assert twin(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_dense_twin_of_plain_is_plain_dense() -> None:
    model = models.plain(batchnorm=True, separable=True)
    shape = (1, 1, 28, 28)
    assert cost(models.dense_twin(model), shape).total == cost(models.plain(batchnorm=True), shape).total
    one = separable.SeparableConv2d(3, 4, 3)
    assert type(models.dense_twin(one)) is nn.Conv2d


def test_no_twin_without_separable_layers() -> None:
    with pytest.raises(Error, match="dense_twin: the network must have SeparableConv2d layers, got none in"):
        models.dense_twin(models.mlp())


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75])
def test_width_scales_channels(width: float) -> None:
    with torch.device("meta"):
        model = models.mobilenet_v1(width=width)
    assert model.classifier.in_features == 1024 * width  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("mobilenet", {}, r"got 'mobilenet' \(did you mean mobilenet_v1\?\)"),
        ("plian", {}, r"got 'plian' \(did you mean plain\?\)"),
        ("plain", {"dropuot": 0.1}, r"got dropuot \(did you mean dropout\?\)"),
        ("plain", {"dropout": -3}, "plain: dropout must be False, True or satisfy 0 <= dropout < 1, got dropout=-3"),
        ("plain", {"dropout": "much"}, "plain: dropout must be False, True or satisfy"),
        ("plain", {"num_classes": 0}, "plain: num_classes must be an integer >= 1, got num_classes=0"),
        ("mobilenet_v1", {"width": 0}, "mobilenet_v1: width must satisfy 0 < width <= 16, got width=0"),
        ("mobilenet_v1", {"width": "wide"}, "mobilenet_v1: width must satisfy"),
        ("small", {"in_chans": True}, "small: in_chans must be an integer >= 1"),
        ("mlp", {"hidden": (4, 0)}, "mlp: hidden must be an integer >= 1, got hidden=0"),
        ("nowhere.at.all:net", {}, "nowhere.at.all must be importable, got ModuleNotFoundError"),
        (":net", {}, "the module must be importable"),
        ("torch.nn:Lineer", {}, r"must have the attribute 'Lineer', got none \(did you mean Linear"),
        ("torch.nn:Linear", {"in_features": 3}, "options without a default must be given, got none for out_features"),
        ("torch.nn:Linear", {"in_features": -1, "out_features": 2}, "it must build with"),
        ("math:pi", {}, "pi must be a class or function that builds a network, got float"),
        ("math:sqrt", {"x": 1}, "options must be among|it must build with"),
        ("collections:Counter", {}, "calling it must give an nn.Module, got Counter"),
    ],
)
def test_bad_names_and_options_are_told(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Error, match=sentence):
        models.build(name, **options)


@pytest.mark.parametrize(
    ("model", "shape", "sentence"),
    [
        (models.plain(width=2), (2, 3, 28, 28), r"plain: the input must be \(N, 1, H, W\), got \(2, 3, 28, 28\)"),
        (models.plain(width=2), (1, 28, 28), r"plain: the input must be \(N, 1, H, W\), got \(1, 28, 28\)"),
        (models.mlp(hidden=4), (2, 1, 32, 32), r"mlp: the input must be \(N, 1, 28, 28\), got \(2, 1, 32, 32\)"),
    ],
)
def test_an_input_that_does_not_fit_is_told(model: nn.Module, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(Error, match=sentence):
        model(torch.zeros(shape))


def test_a_network_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from torch import nn\n\ndef net(num_classes=2, **rest):\n    return nn.Linear(3, num_classes)\n"
    (tmp_path / "users_networks.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert models.build("users_networks:net", num_classes=5, anything=1).out_features == 5
        assert models.options("users_networks:net") is None
    finally:
        sys.modules.pop("users_networks", None)


def test_options_tell_names_and_defaults() -> None:
    known = models.options("plain") or {}
    assert {"dropout", "batchnorm", "separable", "num_classes", "in_chans", "width"} <= set(known)
    assert (known["dropout"], known["batchnorm"], known["separable"], known["num_classes"]) == (False, False, False, 10)
    assert "width" in (models.options("mobilenet_v1") or {})
