"""A study as its page and its terminal show it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leanconv.report.study_page import StudyView, render
from leanconv.study.analysis import analyse
from leanconv.study.run import Study
from leanconv.study.showing import view
from leanconv.study.store import Row, Store
from leanconv.study.work import Images
from study_rows import DESIGN, rows


def shown(tmp_path: Path, given: list[Row]) -> StudyView:
    about = {"data": "/a/place/flowers", "fingerprint": "ab" * 32, "arms": "factorial"}
    with Store(tmp_path / "study.db", about) as store:
        for row in given:
            store.add(row)
        study = Study("made", DESIGN, Images("demo"), store)
        found = analyse(DESIGN, store.rows())
        return view(study, found, ("all", "best on <val>", "runs/made/recommended.yaml", "model: plain"))


def test_the_answer_comes_first_and_no_path_is_told(tmp_path: Path) -> None:
    made = shown(tmp_path, rows())
    assert made.answer[0].startswith("All together: +8.")
    assert any(sentence.startswith("batchnorm: +2.") and "2.0 times" in sentence for sentence in made.answer)
    page = render(made)
    assert "/a/place" not in page
    assert "best on &lt;val&gt;" in page
    assert page.index("All together") < page.index("What the source claims") < page.index("Every training")
    assert len(made.claims) == 19
    assert next(iter(made.curves)) == "plain"
    assert len(made.runs) == len(DESIGN.every) * 4


def test_a_study_of_one_seed_or_with_divergence_has_a_page(tmp_path: Path) -> None:
    assert "one seed, no interval" in " ".join(shown(tmp_path, rows(seeds=1)).answer)
    (tmp_path / "b").mkdir()
    gone = [
        replace(r, status="diverged", values={"test": 0.1, "val": 0.1, "chance": 0.1, "diverged": 1})
        if r.kind == "run" and r.arm == "plain"
        else r
        for r in rows()
    ]
    made = shown(tmp_path / "b", gone)
    assert "gap" not in made.effects
    assert "trainings diverged" in render(made)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    required = os.environ.get("LEANCONV_REQUIRE_BROWSER") == "1"
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((found for name in names if (found := shutil.which(name))), None)
    if chromium is None and not required:
        pytest.skip("no chromium on this machine")
    sync = pytest.importorskip("playwright.sync_api") if not required else __import__("playwright.sync_api").sync_api
    with sync.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(tmp_path: Path, browser: Any, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(shown(tmp_path, rows())), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, accept_downloads=True)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function("document.querySelectorAll('#study-runs tbody tr').length > 0")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def column(name: str) -> list[str]:
        index = page.locator("#study-runs th").all_inner_texts().index(name) + 1
        return list(page.locator(f"#study-runs tbody td:nth-child({index})").all_inner_texts())

    page.get_by_role("button", name="test", exact=True).click()
    up = list(map(float, column("test")))
    assert up == sorted(up)
    page.get_by_role("button", name="test", exact=True).click()
    assert list(map(float, column("test"))) == sorted(map(float, column("test")), reverse=True)
    page.fill("#study-filter", "noise-dropout")
    assert set(column("arm")) == {"noise-dropout"}
    assert page.inner_text("#study-count").startswith("4 of ")
    with page.expect_download() as saved:
        page.click("#study-json")
    assert len(json.loads(Path(saved.value.path()).read_text())) == 4
    with page.expect_download() as saved:
        page.click("#study-csv")
    lines = Path(saved.value.path()).read_text().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("arm,seed,status")
    page.locator("#effects-test").scroll_into_view_if_needed()
    page.wait_for_selector("#effects-test .plotly")
    page.locator("#curves").scroll_into_view_if_needed()
    page.wait_for_selector("#curves .legendtoggle")
    page.locator("#curves .legendtoggle").first.click()
    page.locator("#effects-test").scroll_into_view_if_needed()
    point = page.locator("#effects-test .scatterlayer .point").first.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    page.wait_for_selector("#effects-test .hoverlayer .hovertext")
    assert "p after Holm" in (page.locator("#effects-test .hoverlayer").text_content() or "")
    page.emulate_media(media="print")
    assert not page.locator("#study-csv").is_visible()
    assert page.locator("#study-runs tbody tr").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert not said
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    page.close()
