"""The pictures of the README: the tour's figures and the head of a report, as PNG files under docs/pictures.

    python tools/pictures.py

Makes both pages anew (about two minutes), opens them in headless Chromium and cuts the pictures out.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from leanconv import tour
from leanconv.portrait import gather
from leanconv.report import run_page, tour_page
from leanconv.training import train

OUT = Path(__file__).parents[1] / "docs" / "pictures"
WIDTH = 1120


def main() -> int:
    """Make every picture."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("pictures: Chromium must be installed, got none", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        pages = {"tour": Path(folder) / "tour.html", "report": Path(folder) / "report.html"}
        pages["tour"].write_text(tour_page.render(tour.make()), encoding="utf-8")
        os.chdir(folder)
        run = train("demo", recipe="demo", name="all-four")
        pages["report"].write_text(run_page.render([gather(run.folder)]), encoding="utf-8")
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for lang in ("en", "zh"):
            page = browser.new_page(viewport={"width": WIDTH, "height": 900})
            page.goto(pages["tour"].as_uri())
            page.locator(f"button[data-speak={lang}]").click()
            page.wait_for_function(f"document.querySelector('#growth-{lang} svg.main-svg') !== null")
            page.wait_for_timeout(500)
            cut(page, f"dropout-{lang}", "#dropout h2", "#dropout")
            cut(page, f"depth-{lang}", f"#plain-{lang}", f"#deviation-{lang}")
            cut(page, f"maps-{lang}", "#separable h2", "#separable")
            page.close()
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.goto(pages["report"].as_uri())
        page.wait_for_function("document.querySelectorAll('figure[data-plot]:not([data-drawn])').length === 0")
        page.wait_for_timeout(500)
        cut(page, "report", "h1", "#recall")
        browser.close()
    return 0


def cut(page: Any, name: str, first: str, last: str) -> None:
    """From the top of one element to the end of another, across the page."""
    boxes = [page.locator(selector).first.bounding_box() for selector in (first, last)]
    top, bottom = boxes[0]["y"] - 8, boxes[1]["y"] + boxes[1]["height"] + 8
    path = OUT / f"{name}.png"
    page.screenshot(path=path, full_page=True, clip={"x": 0, "y": top, "width": WIDTH, "height": bottom - top})
    with Image.open(path) as image:
        image.convert("RGB").save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
