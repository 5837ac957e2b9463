"""``leanconv.export(..., int8=...)``: where images come from, what the file holds, what is told, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import leanconv
from lean_nets import drawn, mobilenet_v2, mobilenet_v3
from leanconv import deploy, runtime
from leanconv.deploy import Int8
from leanconv.deploy.quantisation import checked as checking
from leanconv.deploy.quantisation import writing
from leanconv.deploy.quantisation.checked import checked, exact
from leanconv.deploy.quantisation.samples import chosen
from leanconv.errors import Error
from leanconv.runtime import file
from leanconv.runtime.plan import Picture, Plan, Value

X = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PICTURE = Picture(16, "RGB", (0.4, 0.5, 0.5), (0.25, 0.2, 0.2))
CLASSES = ("a", "b", "c", "d", "e")


def exported(network: nn.Module, path: Path, **more: Any) -> deploy.Exported:
    return leanconv.export(network, path, **{"example": X[:2], "int8": True, "data": X, **more})


def images(root: Path, counts: dict[str, int], size: int = 16) -> Path:
    random = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = random.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root


def plan_of(classes: tuple[str, ...] = CLASSES, picture: Picture | None = PICTURE) -> Plan:
    values = (Value((16, 16, 3)), Value((1, 1, 5)))
    return Plan(values, (), 0, 1, 0, classes, picture)


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_file_of_bytes_that_answers_nearly_as_the_network(tmp_path: Path) -> None:
    network, path = drawn(mobilenet_v2()), tmp_path / "net.lean"
    float_ = leanconv.export(network, tmp_path / "float.lean", example=X[:2])
    stages: list[str] = []
    told = exported(network, path, classes=CLASSES, picture=PICTURE, progress=stages.append)
    found = told.quantised
    assert found is not None
    assert told.bytes == path.stat().st_size < float_.bytes
    assert found.float_bytes == pytest.approx(float_.bytes, abs=300)  # classes and picture
    assert told.memory is not None
    assert told.memory <= 0.5 * found.float_memory
    assert told.difference.holds
    assert (found.calibrated, found.measured) == (20, 20)
    assert found.kept == ()
    assert found.checked.endswith("the same bits")
    assert found.before is None
    assert found.after.agreement >= 0.9
    assert any("calibrating" in words for words in stages)
    assert any("measuring int8: 20 of 20 images" in words for words in stages)
    with runtime.load(path, verify=True) as engine:
        assert engine.classes == CLASSES
        assert engine.plan.picture == PICTURE
        assert engine.plan.about["int8"] == "mse on 20 images"
        assert engine.plan.values[engine.plan.steps[0].output].quant is not None
        wanted = network(X).detach().numpy()
        assert np.abs(engine(X.numpy()) - wanted).max() < 0.05 * np.abs(wanted).max()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["float.lean", "net.lean"]


def test_the_input_has_the_bytes_of_all_pixels(tmp_path: Path) -> None:
    network = drawn(mobilenet_v2())
    exported(network, tmp_path / "net.lean", picture=PICTURE)
    plan, _ = file.read(tmp_path / "net.lean")
    quant = plan.values[plan.steps[0].output].quant
    assert quant is not None
    ends = quant.scale * (0 - quant.zero), quant.scale * (255 - quant.zero)
    assert ends[0] == pytest.approx(-2.5, abs=0.02)
    assert ends[1] == pytest.approx(2.5, abs=0.02)


def test_labels_give_accuracy(tmp_path: Path) -> None:
    network = drawn(mobilenet_v2())
    labels = network(X).argmax(1)
    labels[::10] = (labels[::10] + 1) % 5  # some answers of float are wrong
    told = exported(network, tmp_path / "net.lean", data=(X, labels)).quantised
    assert told is not None
    assert told.before is not None
    assert told.after.score is not None
    assert told.before.total == told.after.score.total == 20
    assert told.after.lost == pytest.approx(100 * (told.before.accuracy - told.after.score.accuracy))
    assert told.before.accuracy < 1
    made = json.loads(json.dumps(told.to_dict()))
    assert made["after"]["score"]["correct"] == told.after.score.correct
    assert len(made["layers"]) == len(told.layers)
    assert made["options"]["rule"] == "mse"


def test_the_table_tells_what_it_costs(tmp_path: Path) -> None:
    network = drawn(mobilenet_v3())
    told = exported(network, tmp_path / "net.lean", data=(X, network(X).argmax(1)), int8=Int8(rule="percentile"))
    text = told.table(layers=True)
    for words in (
        "times smaller than in float",
        "calibration      percentile 99.99 on 20 images",
        "accuracy         float 100.00",
        "% of the answers differ",
        "kept in float    nothing",
        "signal to noise",
        "- depthwise",
    ):
        assert words in text
    assert len(told.table().splitlines()) < len(text.splitlines()) - 10
    assert "are those of float; there are no labels" in exported(network, tmp_path / "b.lean").table()


def test_a_file_that_loses_too_much_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "net.lean"
    path.write_bytes(b"as it was")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    near = 0.5 + 1e-4 * torch.randn(40, 3, 1, 1).expand(40, 3, 16, 16)  # all of them one byte
    with torch.no_grad():
        network[0].bias.add_(1)
        network[4].bias.sub_(network(near).mean(0))
    with pytest.raises(Error, match=r"points may be lost \(--max-drop\), got .* the file was not kept"):
        exported(network, path, overwrite=True, int8=Int8(max_drop=5), data=near)
    assert path.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [path]


# --- the comparison with numpy ---------------------------------------------------------------------------------------


def test_whatever_runs_the_file_is_compared_with_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = drawn(mobilenet_v2())

    class Wrong(runtime.Engine):
        def run(self, batch: Any) -> Any:
            return super().run(batch) + np.float32(1e-6)

    def wrong(path: Path, verify: bool = False) -> runtime.Engine:
        return Wrong(*file.read(path, verify))

    monkeypatch.setattr(writing, "load", wrong)
    with pytest.raises(Error, match="must run as numpy runs it"):
        exported(network, tmp_path / "net.lean")
    assert not list(tmp_path.iterdir())


def test_where_bits_may_differ_noise_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    exported(network, tmp_path / "net.lean")
    plan, tensors = file.read(tmp_path / "net.lean")
    assert not exact(plan)
    inputs = chosen(X, None, plan, 20).measured
    reference = runtime.Engine(plan, tensors).run(inputs.batch(slice(0, 20)))
    reference = reference.reshape(20, -1) + np.float32(0.01)

    class Near(runtime.Engine):
        off = 1e-3

        def run(self, batch: Any) -> Any:
            return super().run(batch) + np.float32(self.off)

    near = Near(plan, tensors)
    assert "apart at most" in checked(near, tensors, inputs, reference)
    near.off = 0.02
    with pytest.raises(Error, match="must run as numpy runs it"):
        checked(near, tensors, inputs, reference)
    assert checking.NOISE < 1


# --- images ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_splits(tmp_path: Path) -> None:
    counts = {f"{split}/{name}": n for split, n in (("train", 6), ("val", 3), ("test", 4)) for name in "abc"}
    found = chosen(images(tmp_path, counts, 20), None, plan_of(), 10)
    assert len(found.calibration) == 10
    assert len(found.measured) == 12
    assert found.measured.labels is not None
    assert sorted(found.measured.labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    x = found.measured.batch(slice(0, 2))
    assert x.shape == (2, 16, 16, 3)
    assert x.dtype == np.float32
    assert x.min() < -0.5


def test_a_flat_folder_is_shared_out(tmp_path: Path) -> None:
    found = chosen(images(tmp_path, {"a": 5, "b": 5}), None, plan_of(), 100)
    assert (len(found.calibration), len(found.measured)) == (5, 5)
    seen = {one.tobytes() for one in found.calibration.maps} | {one.tobytes() for one in found.measured.maps}
    assert len(seen) == 10
    assert found.measured.labels is not None
    assert set(found.measured.labels.tolist()) == {0, 1}


@pytest.mark.parametrize("loose", [True, False])
def test_images_without_labels(loose: bool, tmp_path: Path) -> None:
    place = images(tmp_path, {"." if loose else "a": 9})
    found = chosen(place, None, plan_of(CLASSES if loose else ()), 4)
    assert (len(found.calibration), len(found.measured)) == (4, 5)
    assert found.measured.labels is None
    assert ("no names of classes" in " ".join(found.notes)) != loose


def test_images_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    place = images(tmp_path, {"a": 6, "b": 6})
    (place / "b" / "3.png").write_bytes(b"nothing")
    (place / "a" / "0.png").write_bytes(b"nothing")
    found = chosen(place, None, plan_of(), 6)
    assert len(found.calibration) + len(found.measured) == 10
    assert any("could not be read" in note for note in found.notes)
    loose = images(tmp_path / "loose", {".": 6})
    (loose / "2.png").write_bytes(b"nothing")
    found = chosen(loose, None, plan_of(), 3)
    assert len(found.calibration) + len(found.measured) == 5


def test_so_few_images_that_they_are_both() -> None:
    found = chosen(X[:3], None, plan_of(), 2)
    assert len(found.calibration) == len(found.measured) == 3
    assert "no others" in found.notes[0]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data": None}, r"must be given to calibrate on \(--data DIR\), got none"),
    ({"data": X[:1]}, r"at least 2 inputs \(N, 3, 16, 16\), got float32 \(1, 3, 16, 16\)"),
    ({"data": X[:, :2]}, "at least 2 inputs"),
    ({"data": X.int()}, "at least 2 inputs"),
    ({"data": (X, torch.zeros(3, dtype=torch.int64))}, "labels must be 40 whole numbers below 5"),
    ({"data": (X, torch.full((40,), 5))}, "labels must be 40 whole numbers below 5"),
    ({"data": "nowhere"}, "known to read images"),
    ({"data": "nowhere", "picture": PICTURE, "classes": CLASSES}, "got nothing at 'nowhere'"),
    ({"data": torch.full((4, 3, 16, 16), float("inf"))}, "must be finite on the images"),
    ({"format": "onnx"}, "--int8 writes .lean files alone, got --format onnx"),
    ({"int8": False}, "data are for int8"),
]


@pytest.mark.parametrize("place", range(len(REFUSED)))
def test_what_is_refused(place: int, tmp_path: Path) -> None:
    more, words = REFUSED[place]
    with pytest.raises(Error, match=words):
        exported(drawn(mobilenet_v2()), tmp_path / "net.lean", **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "sentence"), [
    ({"rule": "max"}, "rule must be one of mse, percentile, minmax, got 'max'"),
    ({"percentile": 50}, "above 50 and at most 100, got 50"),
    ({"calibrate": 0}, "calibrate must be at least 1, got 0"),
    ({"max_drop": -1}, "max_drop must be from 0 to 100 points, got -1"),
    ({"max_drop": float("nan")}, "max_drop must be"),
])  # fmt: skip
def test_options_out_of_range(words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Error, match=sentence):
        Int8(**words)


def test_outputs_that_are_no_classes(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    told = exported(network, tmp_path / "net.lean", int8=Int8(max_drop=0))
    assert told.quantised is not None
    assert told.quantised.after.agreement is None
    assert told.quantised.after.ratio > 30
    assert "the output is no vector of classes" in told.table()


def test_a_run_whose_images_are_on_a_hub() -> None:
    run: Any = SimpleNamespace(record=SimpleNamespace(data={"path": "hf:owner/name"}))
    with pytest.raises(Error, match="got a run whose images are on a hub"):
        chosen(None, run, plan_of(), 4)
