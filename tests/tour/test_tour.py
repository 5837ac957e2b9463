"""The tour's numbers against references written out, its two languages, and the page in a browser."""

from __future__ import annotations

import math
import os
import re
import shutil
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leanconv import tour, training
from leanconv.cli import main
from leanconv.errors import Error
from leanconv.report.tour_page import render
from leanconv.report.tour_text import LANGUAGES, TEXT, say
from leanconv.tour.separable import counted
from pictures import flat, quick

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return tour.make()


@pytest.mark.source("S6")
@pytest.mark.source("S2")
def test_every_batch_has_another_mask_and_never_stops_all(made: dict[str, Any]) -> None:
    drawn = made["figure_2_10"]
    masks = [str(batch["kept"]) for batch in drawn["batches"]]
    assert len(set(masks)) > len(masks) // 2
    for batch in drawn["batches"]:
        assert [len(layer) for layer in batch["kept"]] == drawn["sizes"]
        assert all(any(layer) for layer in batch["kept"])
        assert all(batch["kept"][0] + batch["kept"][-1])
        assert math.isclose(sum(batch["output"]), 1, rel_tol=1e-6)
    assert len({str(batch["output"]) for batch in drawn["batches"]}) > 6


@pytest.mark.source("S5")
def test_the_ensemble_is_whole_and_its_geometric_mean_is_weight_scaling(made: dict[str, Any]) -> None:
    found = made["ensemble"]
    assert found["count"] == 2 ** found["units"] == 1024
    assert sum(found["histogram"]) == pytest.approx(1)
    assert found["difference"] < 1e-14
    assert found["geometric"] == pytest.approx(found["scaling"], abs=1e-14)
    assert abs(found["arithmetic"] - found["geometric"]) > 1e-3


@pytest.mark.source("S8")
@pytest.mark.source("S9a")
def test_table_2_1_by_hand(made: dict[str, Any]) -> None:
    t = made["table_2_1"]
    for f in range(3):
        values = [row[f] for row in t["x"]]
        mu = sum(values) / 4
        variance = sum((v - mu) ** 2 for v in values) / 4
        assert t["mu"][f] == pytest.approx(mu, rel=1e-14)
        assert t["variance"][f] == pytest.approx(variance, rel=1e-14)
        for i, v in enumerate(values):
            x_hat = (v - mu) / math.sqrt(variance + t["eps"])
            assert t["x_hat"][i][f] == pytest.approx(x_hat, rel=1e-13, abs=1e-15)
            assert t["y"][i][f] == pytest.approx(t["gamma"][f] * x_hat + t["beta"][f], rel=1e-13, abs=1e-15)
    assert t["restored"] < 1e-14
    assert "# Step 2" in t["code"]


@pytest.mark.source("S11")
@pytest.mark.source("S25")
def test_batch_norm_keeps_every_depth_at_mean_0_and_variance_1(made: dict[str, Any]) -> None:
    d = made["with_depth"]
    for row in d["normalised"]:
        assert row["mean"] == pytest.approx(0, abs=1e-5)
        assert row["std"] == pytest.approx(1, abs=1e-3)
    assert d["plain"][-1]["std"] < 0.1 * d["plain"][0]["std"]
    for name in ("plain", "normalised"):
        for row in d[name]:
            assert sum(row["histogram"]) * (8.2 / 41) == pytest.approx(1, rel=1e-4)


@pytest.mark.source("S14")
@pytest.mark.source("S15")
@pytest.mark.source("S16")
def test_the_equations_hold_and_weights_shrink(made: dict[str, Any]) -> None:
    forms = made["equations"]["forms"]
    assert [one["form"] for one in forms] == ["lambda/2n", "lambda/2", "lambda"]
    for one in forms:
        assert one["c"] == pytest.approx(one["c0"] + one["penalty"], rel=1e-14)
        assert one["penalty"] == pytest.approx(forms[0]["penalty"], rel=1e-12)
        assert one["weight_decay"] == pytest.approx(0.05)
        assert one["weight_gap"] < 1e-15
        assert one["bias_gap"] == 0
    for name, values in made["shrinking"]["with"].items():
        assert values[0] == made["shrinking"]["without"][name][0]
        assert values[-1] < made["shrinking"]["without"][name][-1]


@pytest.mark.source("S27")
def test_the_output_map_is_the_weighted_sum_of_the_filtered_channels(made: dict[str, Any]) -> None:
    maps = made["maps"]
    assert maps["difference"] < 1e-6
    assert len(maps["channels"]) == 6
    assert maps["params"]["standard"] == maps["cin"] * maps["k"] * maps["cout"]
    assert maps["params"]["separable"] == maps["cin"] * maps["k"] + maps["cin"] * maps["cout"]


@pytest.mark.source("S26")
@pytest.mark.source("S19")
def test_the_ladder_and_where_separating_loses(made: dict[str, Any]) -> None:
    ladder = made["ladder"]
    counts = {row["name"]: (row["params"], row["macs"]) for row in ladder["rows"]}
    assert counts == {
        "connected": (3 * 1024 * 16 * 1024,) * 2,
        "unshared": (1024 * 16 * 27,) * 2,
        "standard": (432, 432 * 1024),
        "separable": (75, 75 * 1024),
    }
    assert len(ladder["losing"]) == 4
    assert all(one["separable"] > one["standard"] for one in ladder["losing"])


def test_both_languages_are_complete() -> None:
    for key, texts in TEXT.items():
        assert len(texts) == len(LANGUAGES)
        fields = [{field for _, field, _, _ in string.Formatter().parse(text) if field} for text in texts]
        assert fields[0] == fields[1], key
        assert all(text.strip() for text in texts)
        if not re.fullmatch(r"[A-Z0-9 .,]+", texts[0]):
            assert re.search(r"[\u4e00-\u9fff]|λ|ε", texts[1]) or key == "c0", key
    assert say("feature", "zh", n=2) == "特征 2"


def test_the_page_has_both_languages_and_every_number(made: dict[str, Any]) -> None:
    page = render(made, "zh")
    assert '<html lang="zh">' in page
    assert 'data-lang="zh"' in page
    body = page[page.index("<main>") : page.index("</main>")]
    assert body.count('<span lang="en">') == body.count('<span lang="zh">') > 40
    plots = re.findall(r'data-plot="([^"]+)-(en|zh)"', body)
    assert {n for n, lang in plots if lang == "en"} == {n for n, lang in plots if lang == "zh"}
    assert len(page.encode()) < 8_000_000


def test_the_command_and_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    flat(Path("pics"))
    training.run.run("pics", quick(), training.Job("a"))
    assert main(["tour", "--run", "runs/a", "--out", "own.html"]) == 0
    assert "The network and the image are those of runs/a." in Path("own.html").read_text()
    capsys.readouterr()
    for words, sentence in (
        (["--lang", "fr"], "tour: --lang must be en or zh, got 'fr'"),
        (["--out", "no/page.html"], "--out must be a file in a folder that exists"),
        (["--run", "nowhere"], "run: must be the folder of a run"),
    ):
        assert main(["tour", *words]) == 2
        assert sentence in capsys.readouterr().err
    training.run.run("pics", quick(**{"techniques.separable": False}), training.Job("dense"))
    with pytest.raises(Error, match="tour: the network of the run must have a separable convolution"):
        tour.make("runs/dense")


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    required = os.environ.get("LEANCONV_REQUIRE_BROWSER") == "1"
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None and not required:
        pytest.skip("no chromium on this machine")
    sync = pytest.importorskip("playwright.sync_api") if not required else __import__("playwright.sync_api").sync_api
    with sync.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(browser: Any, made: dict[str, Any], tmp_path: Path, width: int) -> None:
    (tmp_path / "tour.html").write_text(render(made))
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "tour.html").as_uri())
    page.wait_for_function("document.querySelector('#growth-en svg.main-svg') !== null")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    # The button steps through the masks that were computed.
    batches = made["figure_2_10"]["batches"]
    for number in (0, 1, 2):
        stopped = sum(not unit for layer in batches[number]["kept"] for unit in layer)
        assert page.locator("#masked circle.off").count() == stopped
        assert page.locator("[data-batch]").inner_text() == str(number + 1)
        page.locator("button[data-next]").focus()
        page.keyboard.press("Enter")

    # The calculator against counts of executed layers.
    for cin, cout, side in ((64, 128, 3), (16, 1, 5), (32, 64, 1), (7, 9, 7)):
        for name, value in (("cin", cin), ("cout", cout), ("side", side)):
            page.locator(f"#{name}").fill(str(value))
        found = counted(cin, cout, side, 8)["params"]
        assert page.locator("#standard").inner_text() == f"{found['standard']:,}"
        assert page.locator("#separable-count").inner_text() == f"{found['separable']:,}"
        told = page.locator("#told").inner_text()
        assert ("fewer" in told) == (found["separable"] < found["standard"])
    page.locator("#cin").fill("0")
    assert page.locator("#told").inner_text() == TEXT["bad"][0]

    # The other language: everything, figures too.
    page.locator("button[data-speak=zh]").click()
    page.wait_for_function("document.querySelector('#growth-zh svg.main-svg') !== null")
    assert page.title() == TEXT["title"][1]
    assert page.evaluate("document.documentElement.lang") == "zh"
    assert page.locator("h1 span[lang=zh]").is_visible()
    assert not page.locator("h1 span[lang=en]").is_visible()
    assert page.locator("#told").inner_text() == TEXT["bad"][1]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("#ensemble-zh .legendtoggle").first.click()
    page.wait_for_function("document.querySelector('#ensemble-zh').data.some(d => d.visible === 'legendonly')")
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    page.close()
