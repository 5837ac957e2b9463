"""Trainings from end to end, small enough for seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import leanconv
from leanconv import data, recipe, techniques, training
from leanconv.contract import Attachment
from leanconv.errors import Error
from leanconv.measure import score
from leanconv.training import Run, build, loop, open_run
from pictures import CLASSES, flat, quick, split


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(images: Any = None, name: str = "a", **flags: Any) -> Run:
    return training.run.run(images or flat(Path("pics")), quick(**flags), training.Job(name, overwrite=True))


def layers(model: nn.Module) -> set[str]:
    """The techniques whose layers a network has."""
    return {t.NAME for t in techniques.all() if any(isinstance(m, t.LAYERS) for m in model.modules())}


def test_a_folder_becomes_a_run_with_its_files_and_figures() -> None:
    done = leanconv.train(split(Path("pics")), recipe=quick(), name="flowers")
    assert done.folder == Path("runs/flowers")
    files = {p.name for p in done.folder.iterdir()}
    assert files == {"recipe.yaml", "model.safetensors", "metrics.jsonl", "run.json", "data.json"}
    record = done.record
    assert (record.status, record.epochs, len(done.metrics)) == ("done", 2, 2)
    assert record.data["classes"] == sorted(CLASSES)
    assert record.train is not None
    assert record.val is not None
    assert record.test is not None
    assert (record.train.total, record.val.total, record.test.total) == (24, 9, 12)
    assert record.params == sum(p.numel() for p in done.model.parameters())
    assert record.macs is not None
    assert record.macs > 0
    assert record.seconds_per_epoch is not None
    assert record.ms_per_image is not None
    assert record.environment["threads"] == 1
    assert recipe.load(done.folder / "recipe.yaml").digest == record.digest


def test_colours_are_learnt() -> None:
    done = train(epochs=12, lr=0.05)
    assert done.record.test is not None
    assert done.record.test.accuracy > 0.9


def test_flat_and_split_folders_and_given_sets_train_alike() -> None:
    folder = split(Path("pics"))
    by_path = train(folder)
    loaded = data.load(folder)
    by_set = training.run.run(loaded, quick(), training.Job("b"))
    for a, b in zip(by_path.model.state_dict().values(), by_set.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["default", "source"])
def test_the_same_seed_gives_the_same_weights_to_the_last_bit(name: str) -> None:
    folder = flat(Path("pics"))
    runs = [training.run.run(folder, quick(name), training.Job(f"run{i}")) for i in range(2)]
    torch.manual_seed(99)  # the user's generator has no part in it
    runs.append(training.run.run(folder, quick(name), training.Job("run2")))
    other = training.run.run(folder, quick(name, seed=1), training.Job("run3"))
    first = runs[0].model.state_dict()
    for done in runs[1:]:
        assert all(torch.equal(first[k], v) for k, v in done.model.state_dict().items())
    assert any(not torch.equal(first[k], v) for k, v in other.model.state_dict().items() if v.is_floating_point())


def test_what_is_trained_from_scratch_starts_fresh_unless_told_otherwise() -> None:
    bare = quick(**{"techniques.separable": {}, "techniques.batchnorm": {"init": "keep"}})
    started = training.run.from_scratch(bare)
    assert started.techniques["separable"] == {"init": "fresh"}
    assert started.techniques["batchnorm"] == {"init": "keep"}
    assert started.techniques["l2"] == bare.techniques["l2"]
    assert list(started.techniques) == list(bare.techniques)


def test_training_leaves_the_users_generator_and_threads_alone() -> None:
    folder = flat(Path("pics"))
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    training.run.run(folder, quick(), training.Job("a"))
    assert torch.equal(before, torch.get_rng_state())
    assert threads == torch.get_num_threads()


@pytest.mark.source("S1")
def test_the_gap_is_measured_in_eval_mode_on_unaugmented_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch's train and val figures are what a copy of the network gives in eval mode on the plain images."""
    seen: list[tuple[Any, ...]] = []
    original = loop.classify

    def spy(model: nn.Module, images: data.DataSet, split: str, size: int = 256) -> Any:
        seen.append((model.state_dict(), images, split))
        found = original(model, images, split, size)
        x = data.normalise(images.splits[split].images, images.mean, images.std)
        was = [m.training for m in model.modules()]
        with torch.no_grad():
            right = int((model.eval()(x).argmax(1) == images.splits[split].labels).sum())
        for module, flag in zip(model.modules(), was, strict=True):
            module.training = flag
        assert found.score.correct == right
        return found

    monkeypatch.setattr(loop, "classify", spy)
    done = train(**{"augment": "flip_crop", "techniques.dropout.p": 0.5})
    assert [split for *_, split in seen] == ["train", "val"] * 2 + ["train", "val", "test"]
    for row in done.metrics:
        assert row.gap.value == pytest.approx(row.train.accuracy - row.val.accuracy)


@pytest.mark.source("S1")
def test_test_images_choose_nothing() -> None:
    """Other test images: the same weights, the same epoch."""
    whole = data.load(flat(Path("pics")))
    assert whole.test is not None
    spoilt = replace(whole, test=data.Split(255 - whole.test.images, whole.test.labels.flip(0)))
    a, b = (
        training.run.run(images, quick(epochs=3), training.Job(name)) for name, images in (("a", whole), ("b", spoilt))
    )
    assert a.record.best == b.record.best
    assert all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())
    without = training.run.run(replace(whole, test=None), quick(epochs=3), training.Job("c"))
    assert without.record.test is None
    assert without.record.gap is not None


def test_the_best_epoch_is_the_best_on_val(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losing epochs are not kept: with a rate that destroys the network later, the early weights stay."""
    done = train(epochs=4, lr=0.03)
    accuracies = [(row.val.accuracy, -(row.val.loss or 0)) for row in done.metrics]
    assert done.record.best == 1 + accuracies.index(max(accuracies))
    assert done.record.val is not None


def test_what_is_saved_is_what_was_scored() -> None:
    done = train()
    again = open_run(done.folder)
    images = data.load("pics")
    assert again.record.test is not None
    assert score(again.model, images, "test") == again.record.test
    assert not any(m.training for m in again.model.modules())


def test_a_run_is_rebuilt_without_the_images_and_whatever_the_generator_says() -> None:
    done = train(name="rebuilt")
    state = done.model.state_dict()
    torch.manual_seed(1234)
    assert all(torch.equal(state[k], v) for k, v in open_run("runs/rebuilt").model.state_dict().items())


@pytest.mark.source("S14")
def test_the_loss_and_the_penalty_are_logged_apart() -> None:
    """With the penalty in the loss its mean is logged beside C0; as weight_decay there is none, and C0 is the same."""
    l2 = {"strength": 0.01, "form": "lambda/2"}
    in_loss = train(**{"techniques.l2": {**l2, "where": "loss"}}, name="loss").metrics
    in_optimizer = train(**{"techniques.l2": {**l2, "where": "optimizer"}}, name="optimizer").metrics
    assert all(row.penalty > 0 for row in in_loss)
    assert all(row.penalty == 0 for row in in_optimizer)
    for a, b in zip(in_loss, in_optimizer, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)


@pytest.mark.source("S28")
def test_the_recipe_source_trains_with_all_four_as_the_text_has_them() -> None:
    settings = quick("source")
    assert list(settings.techniques) == ["separable", "batchnorm", "dropout", "l2"]
    options = settings.technique_options()
    assert (options["dropout"].mask, options["dropout"].strict) == ("batch", True)
    assert (options["l2"].form, options["l2"].where, options["l2"].depthwise) == ("lambda/2n", "loss", True)
    done = training.run.run(flat(Path("pics")), settings, training.Job("source"))
    assert layers(done.model) == {"separable", "batchnorm", "dropout"}
    assert done.metrics[0].penalty > 0
    assert "lambda/2n" in done.record.extra["decay"]
    assert not [note for note in done.record.notes if "no effect" in note]


@pytest.mark.source("S28")
@pytest.mark.parametrize("name", ["separable", "batchnorm", "dropout", "l2"])
def test_each_technique_can_be_switched_on_and_off_alone(name: str) -> None:
    whole = quick("source", epochs=1)
    images = data.load(flat(Path("pics")))
    for chosen in ([name], [other for other in whole.techniques if other != name]):
        done = training.run.run(images, recipe.only(whole, chosen), training.Job("arm", overwrite=True))
        assert layers(done.model) == set(chosen) - {"l2"}
        assert (done.metrics[0].penalty > 0) == ("l2" in chosen)


@pytest.mark.source("S7")
def test_augmentation_is_another_way_and_changes_training() -> None:
    plain = train(augment="none", name="plain").metrics[-1].loss
    moved = train(augment="flip_crop", name="moved").metrics[-1].loss
    assert plain != moved


def test_a_technique_without_any_effect_is_told() -> None:
    done = train(model="mlp", **{"model.options": {}, "techniques.separable.init": "fresh"})
    assert any(note.startswith("separable had no effect") for note in done.record.notes)


def test_strict_dropout_keeps_penalties_off_what_stopped() -> None:
    """_penalty hands what strict dropout stopped to every attachment."""
    asked = []

    class Stopping(Attachment):
        def stopped(self) -> dict[str, torch.Tensor]:
            return {"w": torch.tensor([True, False])}

    class Penalising(Attachment):
        def penalty(self, stopped: Any) -> torch.Tensor:
            asked.append(stopped)
            return (~stopped["w"]).sum().float()

    both: list[Attachment] = [Penalising(), Stopping(), Penalising()]
    total = loop._penalty(both)
    assert total is not None
    assert total.item() == 2
    assert len(asked) == 2
    assert loop._penalty([Stopping()]) is None


def test_a_loss_that_is_not_finite_is_an_error_and_the_best_so_far_stays() -> None:
    with pytest.raises(Error, match=r"the loss must stay finite .*, got (nan|inf) in epoch \d"):
        train(lr=1e12, epochs=5, **{"techniques.batchnorm": False})


def test_bfloat16_trains_and_evaluates(capsys: pytest.CaptureFixture[str]) -> None:
    done = train(precision="bf16-mixed", epochs=1)
    assert all(p.dtype == torch.float32 for p in done.model.parameters())
    assert "Automatic Mixed Precision" not in "".join(capsys.readouterr())


def test_adamw_trains_with_decoupled_decay() -> None:
    done = train(optimizer="adamw", lr=1e-3, **{"techniques.l2": {"strength": 0.01, "where": "decoupled"}})
    assert "decoupled" in done.record.extra["decay"]


def test_a_run_stays_itself_when_a_later_one_takes_its_name() -> None:
    first = train(epochs=1)
    weights = {k: v.clone() for k, v in first.model.state_dict().items()}
    second = train(epochs=2, seed=1)
    assert (first.record.epochs, len(first.metrics)) == (1, 1)
    assert (second.record.epochs, len(second.metrics)) == (2, 2)
    assert first.record.recipe["training"]["seed"] == 0
    assert all(torch.equal(weights[k], v) for k, v in first.model.state_dict().items())


def test_the_watched_training_images_are_evenly_spaced() -> None:
    images = data.load(flat(Path("pics")))
    few = loop.some(images, 6)
    assert sorted(few.train.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert few.val is images.val
    assert loop.some(images, 10**6) is images


def test_any_callable_that_builds_a_network_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.py").write_text(
        "from torch import nn\n"
        "def net(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(8, num_classes))\n"
    )
    monkeypatch.syspath_prepend(".")
    done = train(model="mine:net", **{"model.options": {}})
    assert "batchnorm" in layers(open_run(done.folder).model)


def test_build_fits_classes_and_channels_and_says_what_does_not_fit() -> None:
    built = build.build(quick(), (1, 12, 12), 5)
    with torch.no_grad():
        assert built.model(built.example).shape == (2, 5)
    assert set(built.roles) == {n for n, _ in built.model.named_parameters()}
    with pytest.raises(Error, match=r"mlp: .*12.*"):
        build.build(quick(model="mlp", **{"model.options": {"imgsz": 28}}), (1, 12, 12), 5)
    with pytest.raises(Error, match=r"outputs must be \(N, 5\)"):
        build.build(quick(**{"model.options.num_classes": 4}), (1, 12, 12), 5)


# --- micro-batches, clipping, averages, unequal classes -------------------------------------------------------------


def test_micro_batches_make_the_step_of_the_whole_batch() -> None:
    """Dropout included: masks depend on the position in the whole batch. Not batch norm: it sees the micro-batch."""
    without = {"techniques.batchnorm": False, "techniques.dropout.p": 0.4, "epochs": 2, "batch": 7}
    whole, parts = train(name="a", **without), train(name="b", **{"training.accumulate": 3}, **without)
    for a, b in zip(whole.metrics, parts.metrics, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_step() -> None:
    free, clipped = train(name="a", epochs=1), train(name="b", epochs=1, **{"training.clip": 1e-6})
    start = build.build(quick(), (3, 12, 12), 3).model.state_dict()
    moved = [
        max(float((v - start[n]).abs().max()) for n, v in done.model.state_dict().items() if n.endswith("weight"))
        for done in (free, clipped)
    ]
    assert moved[1] < 1e-3 < moved[0]


def test_the_average_is_what_is_measured_and_kept() -> None:
    plain, averaged = train(name="a"), train(name="b", **{"training.ema": 0.9})
    assert [row.loss for row in plain.metrics] == [row.loss for row in averaged.metrics]
    assert plain.record.extra["weights_sha256"] != averaged.record.extra["weights_sha256"]


def test_a_loss_that_is_no_longer_finite_stops_the_run_and_leaves_the_last_good_weights() -> None:
    with pytest.raises(Error, match="must stay finite"):
        train(name="a", epochs=50, lr=1e6, **{"techniques.batchnorm": False})
    record = open_run("runs/a").record if Path("runs/a/model.safetensors").exists() else Run(Path("runs/a")).record
    assert record.status == "failed"
    assert "must stay finite" in record.notes[-1]
