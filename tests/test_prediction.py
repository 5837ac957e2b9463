from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

import leanconv
from leanconv import data, training
from leanconv.errors import Error
from leanconv.prediction import predict
from pictures import CLASSES, flat, picture, quick


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of 12 epochs on colours, and one of other classes, in one folder."""
    root = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        flat(root / "pics")
        for seed in (0, 1):
            training.run.run("pics", quick(epochs=12, seed=seed), training.Job(f"s{seed}"))
        shutil.copytree("pics", "others")
        shutil.move("others/red", "others/rouge")
        training.run.run("others", quick(epochs=1), training.Job("others"))
        for name, colour in CLASSES.items():
            picture(root / f"{name}.jpg", colour, 7, side=31)
    return root


@pytest.fixture(autouse=True)
def _here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)


def test_photos_are_named() -> None:
    found = leanconv.predict("runs/s0", [f"{name}.jpg" for name in CLASSES])
    assert [p.classes[0] for p in found] == list(CLASSES)
    for p in found:
        assert sum(p.probabilities) == pytest.approx(1)
        assert list(p.probabilities) == sorted(p.probabilities, reverse=True)
        assert not any(p.spread)
    assert found[0].line(1).startswith("blue.jpg: blue ")


def probabilities(run: str, file: str) -> torch.Tensor:
    """One run by hand, in the order of its classes."""
    opened = training.open_run(run)
    h = opened.header
    x = data.normalise(data.read_image(file, h.shape[1], h.shape[0])[None], h.mean, h.std)
    with torch.no_grad():
        return opened.model(x).softmax(1)[0]


@pytest.mark.source("S7")
def test_several_runs_are_averaged() -> None:
    (found,) = predict(["runs/s0", "runs/s1"], "red.jpg")
    a, b = probabilities("runs/s0", "red.jpg"), probabilities("runs/s1", "red.jpg")
    assert not torch.equal(a, b)
    for name, p, s in zip(found.classes, found.probabilities, found.spread, strict=True):
        i = sorted(CLASSES).index(name)
        assert p == pytest.approx(float(a[i] + b[i]) / 2, rel=1e-5)
        assert s == pytest.approx(abs(float(a[i] - b[i])) / 2, rel=1e-3, abs=1e-7)


@pytest.mark.source("S5")
def test_monte_carlo_samples_give_a_mean_and_a_spread() -> None:
    (once,) = predict("runs/s0", "red.jpg")
    (many,) = predict("runs/s0", "red.jpg", samples=20)
    assert any(many.spread)
    assert dict(zip(many.classes, many.probabilities, strict=True))["red"] == pytest.approx(
        dict(zip(once.classes, once.probabilities, strict=True))["red"], abs=0.2
    )
    assert predict("runs/s0", "red.jpg", samples=20) == [many]


def test_what_cannot_be_predicted_is_told() -> None:
    Path("zero.jpg").write_bytes(b"")
    Path("bare").mkdir(exist_ok=True)
    for runs, images, samples, sentence in (
        ("nowhere", "red.jpg", 0, "run: must be the folder of a run"),
        ("pics", "red.jpg", 0, "must hold model.safetensors"),
        ([], "red.jpg", 0, "at least one run must be given"),
        ("runs/s0", [], 0, "at least one image must be given"),
        ("runs/s0", "gone.jpg", 0, "image: must be a file that exists, got 'gone.jpg'"),
        ("runs/s0", "zero.jpg", 0, "image: must be readable, got zero bytes from 'zero.jpg'"),
        ("runs/s0", "bare", 0, "a folder must hold images, got 'bare' without any"),
        ("runs/s0", "red.jpg", 1, "samples must be 0 .* got samples=1"),
        (["runs/s0", "runs/others"], "red.jpg", 0, "all runs must know the same classes"),
    ):
        with pytest.raises(Error, match=sentence):
            predict(runs, images, samples=samples)


def test_damaged_weights_are_told() -> None:
    shutil.copytree("runs/s0", "runs/cut", dirs_exist_ok=True)
    weights = Path("runs/cut/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Error, match=r"whole \.safetensors file"):
        predict("runs/cut", "red.jpg")


def test_a_folder_stands_for_every_image_in_it(tmp_path: Path) -> None:
    shutil.copytree("pics", tmp_path / "pics")
    (tmp_path / "pics" / "red" / "cut.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "pics" / "notes.txt").write_text("no image")
    told: list[tuple[str, str]] = []
    seen: list[tuple[int, int]] = []
    found = predict(
        "runs/s0",
        tmp_path / "pics",
        unreadable=lambda image, why: told.append((image, why)),
        progress=lambda done, total: seen.append((done, total)),
    )
    files = sorted((tmp_path / "pics").glob("*/*.png"))
    assert [p.image for p in found] == [str(file) for file in files if file.name != "cut.png"]
    assert told == [(str(tmp_path / "pics" / "red" / "cut.png"), "no known image format")]
    assert seen[-1] == (len(files), len(files))
    one_by_one = [predict("runs/s0", p.image)[0] for p in found]
    assert [p.classes for p in found] == [p.classes for p in one_by_one]
    assert [p.probabilities[0] for p in found] == pytest.approx([p.probabilities[0] for p in one_by_one], rel=1e-5)


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_on_its_own_data_a_run_gives_what_training_measured() -> None:
    run = training.open_run("runs/s0")
    for images in (None, "pics"):
        found = leanconv.evaluate("runs/s0", images)
        assert found.split == "test"
        assert found.outcome.score == run.record.test
        assert found.outcome.to_dict() == run.record.quality["test"]
        assert not found.notes
    assert leanconv.evaluate("runs/s0", split="val").outcome.score == run.record.val


def test_other_images_are_all_counted_and_matched_by_name(tmp_path: Path) -> None:
    """Fewer classes than the run knows, in another order of folders, without training images."""
    names = sorted(CLASSES)
    for name in names[1:]:
        for seed in range(5):
            picture(tmp_path / "new" / "test" / name / f"{seed}.png", CLASSES[name], 50 + seed, side=20)
    (tmp_path / "new" / "test" / names[1] / "cut.png").write_bytes(b"")
    found = leanconv.evaluate("runs/s0", tmp_path / "new")
    assert (found.split, found.outcome.score.total) == ("test", 5 * (len(names) - 1))
    assert found.outcome.images[0] == 0
    assert found.skipped == ((f"test/{names[1]}/cut.png", "zero bytes"),)
    files = [tmp_path / "new" / "test" / name / f"{seed}.png" for name in names[1:] for seed in range(5)]
    named = predict("runs/s0", files)
    truths = [name for name in names[1:] for _ in range(5)]
    assert found.outcome.score.correct == sum(p.classes[0] == truth for p, truth in zip(named, truths, strict=True))
    wrong = {(Path(p.image).name, t, p.classes[0]) for p, t in zip(named, truths, strict=True) if p.classes[0] != t}
    assert {(Path(m.image).name, m.truth, m.answer) for m in found.mistakes} == wrong
    loss = -sum(
        math.log(dict(zip(p.classes, p.probabilities, strict=True))[t]) for p, t in zip(named, truths, strict=True)
    )
    assert found.outcome.negative_log_likelihood == pytest.approx(loss / len(truths), rel=1e-5)


def test_a_split_that_a_network_never_saw_in_training_is_labelled_by_its_true_names(tmp_path: Path) -> None:
    """Every image under a wrong name: right answers become wrong ones, and the surest mistake comes first."""
    names = sorted(CLASSES)
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        for seed in range(3):
            picture(tmp_path / "turned" / other / f"{name}{seed}.png", CLASSES[name], 70 + seed)
    found = leanconv.evaluate("runs/s0", tmp_path / "turned")
    assert found.split == "all"
    assert len(found.mistakes) == found.outcome.score.total - found.outcome.score.correct
    sure = [m.probability for m in found.mistakes]
    assert sure == sorted(sure, reverse=True)


@pytest.mark.source("S7")
def test_several_runs_are_evaluated_as_their_average(tmp_path: Path) -> None:
    shutil.copytree("pics", tmp_path / "pics")
    found = leanconv.evaluate(["runs/s0", "runs/s1"], tmp_path / "pics")
    files = sorted((tmp_path / "pics").glob("*/*.png"))
    named = predict(["runs/s0", "runs/s1"], files)
    assert found.outcome.score.total == len(files)
    assert found.outcome.score.correct == sum(p.classes[0] == Path(p.image).parent.name for p in named)
    own = leanconv.evaluate(["runs/s0", "runs/s1"])
    assert own.outcome.score.total == training.open_run("runs/s0").record.test.total  # type: ignore[union-attr]


@pytest.mark.source("S5")
def test_evaluation_with_monte_carlo_samples_repeats_itself(tmp_path: Path) -> None:
    shutil.copytree("pics", tmp_path / "pics")
    found = [leanconv.evaluate("runs/s0", tmp_path / "pics", samples=8) for _ in range(2)]
    assert found[0] == found[1]
    named = predict("runs/s0", sorted((tmp_path / "pics").glob("*/*.png")), samples=8)
    truths = [Path(p.image).parent.name for p in named]
    loss = [
        -math.log(dict(zip(p.classes, p.probabilities, strict=True))[t]) for p, t in zip(named, truths, strict=True)
    ]
    assert found[0].outcome.negative_log_likelihood == pytest.approx(sum(loss) / len(loss), rel=1e-5)


def test_what_cannot_be_evaluated_is_told(tmp_path: Path) -> None:
    flat(tmp_path / "pics")
    shutil.copytree(tmp_path / "pics", tmp_path / "strange")
    shutil.move(tmp_path / "strange" / "red", tmp_path / "strange" / "mauve")
    for name in CLASSES:
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "a.png").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        memory = training.train(data.load("pics"), recipe=quick(epochs=1), name="memory")
    shutil.copytree("pics", "moved", dirs_exist_ok=True)
    for runs, images, options, sentence in (
        ("nowhere", None, {}, "run: must be the folder of a run"),
        ("runs/s0", tmp_path / "gone", {}, "or a folder that exists, got nothing at"),
        ("runs/s0", tmp_path / "strange", {}, "every class must be of .*, got 'mauve'"),
        ("runs/s0", tmp_path / "bad", {}, "must be readable, got 3 that are not"),
        ("runs/s0", tmp_path / "pics", {"split": "test"}, "split: must be one of all of .*, got 'test'"),
        ("runs/s0", None, {"split": "all"}, "split: must be one of train, val, test of .*, got 'all'"),
        ("runs/s0", "pics", {"samples": 1}, "eval: samples must be 0 .* got samples=1"),
        (["runs/s0", "runs/others"], None, {}, "eval: all runs must know the same classes"),
        (memory, None, {}, "must tell where its images are, got none"),
        (["runs/s0", memory], "pics", {}, "must share their data and its splits"),
    ):
        with pytest.raises(Error, match=sentence):
            leanconv.evaluate(runs, images, **options)  # type: ignore[arg-type]


def test_data_that_have_changed_are_told() -> None:
    extra = picture(Path("pics/red/new.png"), CLASSES["red"], 99)
    try:
        (note,) = leanconv.evaluate("runs/s0").notes
    finally:
        extra.unlink()
    assert note.endswith("the images are no longer those it was trained on (another fingerprint)")
