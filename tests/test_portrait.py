"""A run's page from its own files, and in a browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from leanconv import recipe, training
from leanconv.accounting import cost
from leanconv.cli import main
from leanconv.errors import Error
from leanconv.portrait import dense, gather
from leanconv.report.run_page import answer
from pictures import CLASSES, quick, trained

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("portrait")
    settings = recipe.override(
        quick(epochs=3), **{"techniques.dropout": {"p": 0.5}, "techniques.l2": {"strength": 0.01}}
    )
    (root / "quick.yaml").write_text(recipe.dump(settings))
    return trained(root, settings)


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.mark.source("S1")
@pytest.mark.source("S6")
def test_everything_is_gathered_and_agrees_with_the_run() -> None:
    view = gather("runs/a", rounds=3)
    run = training.open_run("runs/a")
    assert view.missing == ()
    assert len(view.epochs) == 3
    assert view.quality == run.record.quality
    assert sum(n for n, _, _ in view.calibration) == run.record.test.total  # type: ignore[union-attr]
    assert view.mistakes == run.record.test.total - run.record.test.correct  # type: ignore[union-attr]
    assert len(view.photos) == view.mistakes
    assert all(photo.truth in CLASSES and photo.source.startswith("data:image/png") for photo in view.photos)
    assert sum(row["count"] for row in view.ledger) == run.record.params
    assert view.stopping
    for one in view.stopping:
        assert len(one.kept) == 3
        assert one.p == 0.5
        assert len(set(one.kept)) > 1
        assert 0 < sum(map(sum, one.kept)) < 3 * len(one.kept[0])


@pytest.mark.source("S19")
def test_the_dense_twin_has_the_same_layers_and_its_own_cost() -> None:
    view = gather("runs/a", rounds=3)
    run = training.open_run("runs/a")
    twin = view.twin
    assert twin is not None
    h = run.header
    own = cost(run.model, torch.randn(1, *h.shape))
    assert sum(layer.macs for layer in twin.layers) == own.macs == run.record.macs
    assert sum(layer.dense_macs for layer in twin.layers) == twin.macs
    assert twin.macs > own.macs
    assert twin.ratio[1] <= twin.ratio[0] <= twin.ratio[2]


def test_what_has_no_separable_convolution_has_no_twin() -> None:
    plain = recipe.override(quick(), **{"techniques.separable": False})
    assert dense(plain) is None
    assert dense(recipe.load("mobilenet")) is not None


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    shutil.copytree("runs/a", tmp_path / "b")
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    record |= {"status": "stopped", "train": None, "val": None, "test": None, "quality": {}}
    (tmp_path / "b" / "run.json").write_text(json.dumps(record))
    (tmp_path / "b" / "model.safetensors").unlink()
    (tmp_path / "b" / "data.json").unlink()
    (tmp_path / "b" / "metrics.jsonl").write_text("{\n")
    view = gather(tmp_path / "b")
    told = "\n".join(view.missing)
    for part in ("the training is stopped", "there is no model.safetensors", "data.json", "the curves"):
        assert part in told
    assert view.twin is None
    assert answer(view) == "This training is stopped after 0 of 3 epochs."


def test_images_that_are_gone_or_others_leave_the_photos_out(tmp_path: Path) -> None:
    shutil.copytree("runs/a", tmp_path / "b")
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    record["quality"]["test"]["mistakes"] = [[0, "red", "blue", 0.9]]
    record["data"]["path"] = str(tmp_path / "gone")
    (tmp_path / "b" / "run.json").write_text(json.dumps(record))
    view = gather(tmp_path / "b", rounds=3)
    assert view.photos == ()
    assert any(told.startswith("the most wrong images: ") for told in view.missing)
    record["data"] |= {"path": str(Path("pics").resolve()), "fingerprint": "0"}
    (tmp_path / "b" / "run.json").write_text(json.dumps(record))
    assert "no longer those" in "\n".join(gather(tmp_path / "b", rounds=3).missing)


def test_the_command_writes_one_page_for_one_run_or_several(capsys: Capture, tmp_path: Path) -> None:
    assert main(["report", "runs/a"]) == 0
    assert capsys.readouterr().out == "runs/a/report.html\n"
    assert "Class by class" in Path("runs/a/report.html").read_text()
    shutil.copytree("runs/a", tmp_path / "b")
    assert main(["report", "runs/a", str(tmp_path / "b"), "--out", str(tmp_path / "two.html")]) == 0
    text = (tmp_path / "two.html").read_text()
    assert "2 runs side by side" in text
    assert len(text.encode()) < 8_000_000


def test_training_leaves_its_report_and_does_not_fail_for_it(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "pics", "--recipe", "quick.yaml", "--epochs", "1", "--no-tune-allocator"]
    assert main([*words, "--name", "told"]) == 0
    assert "report: runs/told/report.html" in capsys.readouterr().err
    assert Path("runs/told/report.html").is_file()
    assert main([*words, "--name", "untold", "--no-report"]) == 0
    assert not Path("runs/untold/report.html").exists()

    def fails(*_: Any) -> None:
        raise Error("plotly is not there")

    monkeypatch.setattr("leanconv.cli.report.write", fails)
    assert main([*words, "--name", "unwritten"]) == 0
    assert "no report was written: plotly is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["report"], "report: RUN must be the folder of a run such as runs/exp, got nothing"),
        (["report", "nowhere"], "got 'nowhere'"),
        (["report", "pics"], "report: RUN must be the folder of a run such as runs/exp, got 'pics'"),
        (["report", "runs/a", "--out", "no/such/page.html"], "--out must be a file in a folder that exists"),
    ],
)
def test_bad_input(words: list[str], sentence: str, capsys: Capture) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert sentence in err


def test_a_record_of_a_later_format_is_told(tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree("runs/a", tmp_path / "b")
    record = json.loads((tmp_path / "b" / "run.json").read_text()) | {"format_version": 99}
    (tmp_path / "b" / "run.json").write_text(json.dumps(record))
    assert main(["report", str(tmp_path / "b")]) == 2
    assert "format_version" in capsys.readouterr().err


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    required = os.environ.get("LEANCONV_REQUIRE_BROWSER") == "1"
    chromium = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if chromium is None and not required:
        pytest.skip("no chromium on this machine")
    sync = pytest.importorskip("playwright.sync_api") if not required else __import__("playwright.sync_api").sync_api
    with sync.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(browser: Any, width: int) -> None:
    main(["report", "runs/a"])
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(Path("runs/a/report.html").resolve().as_uri())
    page.wait_for_function("document.querySelectorAll('figure[data-plot]:not([data-drawn])').length === 0")
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    figures = page.locator("figure[data-plot]").count()
    assert figures >= 9
    assert page.locator("figure[data-plot] svg.main-svg").count() >= figures
    # A click on a legend's name hides its line; hovering tells values.
    shown = page.locator("#accuracy .legend .traces").count()
    assert shown >= 3
    page.locator("#accuracy .legendtoggle").first.click()
    page.wait_for_function("document.querySelector('#accuracy').data[0].visible === 'legendonly'")
    page.locator("#loss").scroll_into_view_if_needed()
    page.evaluate("Plotly.Fx.hover('loss', [{curveNumber: 0, pointNumber: 1}])")
    page.wait_for_selector("#loss .hovertext")
    page.close()


def test_a_run_whose_record_says_nothing_of_layers(tmp_path: Path) -> None:
    shutil.copytree("runs/a", tmp_path / "b")
    rows = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "extra": {}}) + "\n" for row in rows]
    (tmp_path / "b" / "metrics.jsonl").write_text("".join(lines))
    assert "distributions inside: this run did not record them" in gather(tmp_path / "b", rounds=3).missing
    assert replace(gather("runs/a", rounds=3), missing=()).run.name == "a"
