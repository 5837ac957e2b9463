"""``leanconv.export``: the file, what is compared, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import leanconv
from lean_nets import Function, drawn, mobilenet_v2
from leanconv import deploy, models, runtime
from leanconv.deploy import exporting, onnx
from leanconv.errors import Error
from leanconv.graph import evaluating
from leanconv.runtime.plan import Picture

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    return drawn(models.small(width=0.25, num_classes=3))


def exported(model: Any, path: Path, **more: Any) -> deploy.Exported:
    return leanconv.export(model, path, **{"example": X, **more})


def test_a_file_that_answers_as_the_network_does(tmp_path: Path) -> None:
    network, path = small(), tmp_path / "net.lean"
    before = copy.deepcopy(network.state_dict())
    picture = Picture(16, "RGB", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    stages: list[str] = []
    told = exported(network, path, classes=["a", "b", "c"], picture=picture, progress=stages.append)
    assert told.path == path
    assert told.bytes == path.stat().st_size
    assert told.blocks == 6
    assert told.steps == 9
    assert told.difference.holds
    assert told.macs == leanconv.cost(network, X[:1]).macs
    assert told.memory
    assert stages[-1] == "comparing"
    with runtime.load(path) as engine, evaluating(network):
        assert engine.classes == ("a", "b", "c")
        assert engine.plan.picture == picture
        assert engine.plan.about["network"] == "ImageClassifier"
        assert np.allclose(engine(X.numpy()), network(X).numpy(), atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 2)), (2, 3, 12)),
    (nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()), (2, 3, 12)),
    (nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2)), (3, 7)),
    (nn.Conv2d(3, 2, 3), (1, 3, 8, 6)),
    (Function(lambda x: x.flatten(2), nn.Conv2d(3, 2, 3)), (1, 3, 8, 6)),
    (Function(lambda x: {"logits": x}, nn.Conv2d(3, 2, 3)), (1, 3, 8, 6)),  # type: ignore[arg-type,return-value]
])  # fmt: skip
def test_inputs_and_outputs_of_any_kind(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    told = exported(layer, tmp_path / "net.lean", example=torch.randn(shape))
    assert told.difference.inputs == 4 + shape[0]


def test_the_example_is_guessed_and_that_is_told(tmp_path: Path) -> None:
    told = exported(nn.Linear(7, 5), tmp_path / "net.lean", example=None)
    assert "no example was given" in told.notes[0]
    assert "note " in told.table()


def test_weights_behind_parametrizations_and_hooks_are_those_that_run(tmp_path: Path) -> None:
    network = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    network[1].register_forward_hook(lambda module, given, result: result * 2)
    assert exported(network, tmp_path / "net.lean").steps == 2


# --- what is refused -------------------------------------------------------------------------------------------------


def test_everything_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.GroupNorm(2, 4), nn.GELU(), nn.ConvTranspose2d(4, 2, 2))
    with pytest.raises(Error) as caught:
        exported(network, tmp_path / "net.lean")
    assert str(caught.value) == (
        "export: a .lean file must consist of operations that the runtime has, got gelu (1, 3), group_norm (2), "
        "conv_transpose2d (4); --format onnx writes this network"
    )
    assert not list(tmp_path.iterdir())


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x + 2


def part(x: Tensor) -> Tensor:
    y = x + 0
    y[:, :1] = 0
    return y * 2


REFUSED: list[tuple[nn.Module, str]] = [
    (Pair(), "must give one tensor, got 2"),
    (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "padding with reflect instead of zeros"),
    (nn.BatchNorm2d(3, track_running_stats=False), "batch norm with the statistics of the batch"),
    (leanconv.nn.BatchNorm2d(3, track_running_stats=False), "batch norm with the statistics of the batch"),
    (Function(lambda x: F.dropout(x, 0.5, True)), "dropout that is random in eval mode"),
    (Function(lambda x: x.flatten(0, 1)), "flatten that mixes the batch"),
    (Function(lambda x: x.permute(1, 0, 2, 3)), "permute that mixes the batch|permute of the batch"),
    (Function(lambda x: x.mean(0, keepdim=True).expand(len(x), 3, 16, 16)), "mean"),
    (Function(lambda x: F.conv2d(x, x[:1, :, :3, :3])), "getitem that mixes the batch"),
    (Function(lambda x: x / x.mean((2, 3), keepdim=True)), "div by a map"),
    (Function(part), "setitem"),
    (Function(lambda x: x.mean(2, keepdim=True) * x.mean(3, keepdim=True)), "mul of maps of"),
    (Function(lambda x: F.softmax(x, 2)), "softmax over a dimension that is not the channels"),
    (Function(lambda x: F.relu(x).half().float()), "half to another type"),
    (nn.AdaptiveAvgPool2d(5), "from 16 to 5 positions"),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=3), "a divisor of its own"),
    (
        Function(
            lambda x: x.view(len(x), 3, 4, 4, 4, 4).permute(0, 1, 3, 5, 2, 4).reshape(len(x), 48, 4, 4) + 1,
        ),
        "add|output",
    ),
    (Function(lambda x: torch.zeros(len(x), 3)), "made of weights alone"),
    (nn.Identity(), "must compute something"),
    (nn.Conv2d(4, 4, 3), "must run on an example"),
    (nn.Conv2d(3, 4, 3).double(), "must be float32"),
]


@pytest.mark.parametrize("place", range(len(REFUSED)))
def test_what_cannot_be_written_is_refused(place: int, tmp_path: Path) -> None:
    network, words = REFUSED[place]
    with pytest.raises(Error, match=words):
        exported(network, tmp_path / "net.lean")
    assert not list(tmp_path.iterdir())


def test_places_and_formats_are_checked_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    for path, words in (
        (tmp_path, "the folder"),
        (tmp_path / "no" / "a", "must exist"),
        (tmp_path / "there", "exists"),
    ):
        with pytest.raises(Error, match=words):
            exported(small(), path)
    assert (tmp_path / "there").read_text() == "mine"
    with pytest.raises(Error, match="format must be one of lean, onnx, got 'tflite'"):
        exported(small(), tmp_path / "a", format="tflite")
    with pytest.raises(Error, match="must be a network, a run or its folder, got int"):
        exported(3, tmp_path / "a")
    exported(small(), tmp_path / "there", overwrite=True)
    assert runtime.load(tmp_path / "there").input_shape == (3, 16, 16)


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.lean"
    path.write_bytes(b"as it was")

    def wrong(model: nn.Module, example: Tensor) -> Any:
        found = translate(model, example)
        found.tensors["classifier.weight"][0, 0] += 0.01  # type: ignore[index]
        return found

    translate = exporting.translate
    monkeypatch.setattr(exporting, "translate", wrong)
    with pytest.raises(Error, match=r"must answer as the network does, got a difference of .* the file was not kept"):
        exported(small(), path, overwrite=True)
    assert path.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_whose_numbers_are_not_finite_is_refused(tmp_path: Path) -> None:
    network = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        network.weight[0] = float("nan")
    with pytest.raises(Error, match="finite numbers"):
        exported(network, tmp_path / "net.lean")


# --- ONNX ------------------------------------------------------------------------------------------------------------


def test_onnx_with_any_number_of_inputs(tmp_path: Path) -> None:
    import onnx as onnx_

    network = nn.Sequential(mobilenet_v2(), nn.GELU())  # no .lean file has that
    told = exported(drawn(network), tmp_path / "net.onnx", format="onnx", classes="abcde")
    assert told.difference.holds
    assert told.memory is None
    made = onnx_.load(str(tmp_path / "net.onnx"))
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert {"classes", "made_by"} <= {entry.key for entry in made.metadata_props}
    assert not {"BatchNormalization", "Gather"} & {node.op_type for node in made.graph.node}


def test_onnx_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxruntime" else name)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 2))
    told = exported(network, tmp_path / "net.onnx", format="onnx")
    assert told.executor.startswith("the reference evaluator of onnx")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(Error, match=r"pip install 'leanconv\[onnx\]'\), got no onnx$"):
        exported(small(), tmp_path / "net.onnx", format="onnx")
