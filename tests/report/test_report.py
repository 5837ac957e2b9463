"""Reports from plain records: what they say, what they leave out, and that they are sound HTML."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from leanconv.report import page
from leanconv.report.run_page import answer, render, short
from leanconv.report.views import Layer, Photo, Stopping, Twin, View
from leanconv.results import Epoch, Outcome, Run, Score

VOID = {"meta", "link", "img", "br", "circle", "input"}


class Balanced(HTMLParser):
    """Every tag is closed in its order; collects names, ids and addresses."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.addresses += [given[k] or "" for k in ("src", "href") if k in given]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(text: str) -> Balanced:
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert all(address.startswith("data:") for address in parser.addresses)
    return parser


def layer(path: str, scale: float) -> dict[str, Any]:
    pre = {"mean": 0.1, "std": scale, "skew": 0.3, "kurtosis": 0.0, "histogram": [1, 5, 10, 5, 1] * 8}
    return {
        "path": path,
        "kind": "Conv2d",
        "weight_norm": 3.0 * scale,
        "grad_norm": 0.1 * scale,
        "mean": 0.4,
        "std": scale,
        "skew": 1.0,
        "kurtosis": 0.0,
        "zeros": 0.5,
        "pre": pre,
    }


def view(**change: Any) -> View:
    outcome = Outcome(("cat", "dog <b>"), ((40, 10), (5, 45)), 0.4, 0.05, ((60, 0.8, 0.75), (40, 0.9, 0.95)))
    epochs = [
        Epoch(
            i,
            10 * i,
            0.1,
            1.0 / i,
            0.01,
            Score(60 + i, 100, 0.5),
            Score(55 + i, 100, 0.6),
            1.5,
            {"layers": [layer("a", 1.0 / i), layer("b", 2.0)]},
        )
        for i in (1, 2, 3)
    ]
    recipe = {"model": {"name": "plain"}, "training": {"epochs": 3}, "techniques": {"l2": {}, "dropout": {}}}
    run = Run(
        "one",
        "done",
        recipe,
        "abc",
        {"source": "folder pics", "fingerprint": "f" * 64, "counts": {"train": {"cat": 3}}},
        {"python": "3.11"},
        3,
        3,
        Score(90, 100, 0.3),
        Score(58, 100, 0.6),
        Score(85, 100, 0.4),
        75_000,
        1_200_000,
        1.5,
        0.8,
        {"test": outcome.to_dict()},
        ["a note <i>"],
    )
    gate = {
        "findings": [{"code": "D301", "severity": "warning", "message": "the same picture twice", "shown": ["a.png"]}],
        "counts": {"train": {"cat": 3, "dog <b>": 4}},
    }
    twin = Twin(160_000, 8_000_000, (0.8, 0.75, 0.85), (0.9, 0.7), (Layer("a", "separable", 10, 100, 90, 900),))
    made = View(
        Path("runs/one"),
        run,
        epochs,
        "model: {name: plain}",
        gate,
        {"test": outcome.to_dict()},
        outcome.calibration,
        (Photo("a<b>.png", "cat", "dog <b>", 0.9, "data:image/png;base64,AA", True),),
        15,
        twin,
        (Stopping("head", 0.5, "batch", ((True, False, True),) * 3, 3),),
        ({"name": "w", "shape": [3, 2], "role": "weight", "where": "loss", "weight_decay": 0.1, "count": 6},),
    )
    return replace(made, **change)


def test_the_answer_comes_first_and_everything_else_is_there() -> None:
    text = render([view()])
    checked(text)
    body = text[text.index("<main>") :]
    assert body.index("On 100 test images this network is right 85.0 % of the time (76.7 to 90.7).") < body.index("<h2")
    for told in (
        "+5.0 points (-4.4 to +14.4) apart: that could be chance",
        "75 k parameters and takes 1.2 M multiply-adds an image, 2.1 times fewer parameters and 6.7 times fewer",
        "on this machine it is 1.25 times slower than that twin (times of the two: ratio 0.75 to 0.85)",
        "cat is found least often (80.0 %)",
        "D301 warning:",
        "6 of 6 numbers are decayed",
        "p = 0.5, one mask for the whole batch",
        "epoch 3 was kept",
        "f" * 64,
    ):
        assert told in body, told
    names = re.findall(r'data-plot="([^"]+)"', body)
    assert names == ["accuracy", "loss", "confusion", "recall", "calibration", "outputs", "mean", "std", "gradients",
                     "weights", "macs", "params"]  # fmt: skip


def test_names_from_outside_are_escaped() -> None:
    text = render([view()])
    body = text[text.index("<main>") : text.index("</main>")]
    outside = re.sub(r"<script.*?</script>", "", body, flags=re.DOTALL)
    assert "dog <b>" not in outside
    assert "a<b>.png" not in outside
    assert "a note <i>" not in outside
    assert "dog &lt;b&gt;" in outside
    bad = page.figure("x", [{"name": "</script><script>alert(1)</script>"}], {}, "a")
    assert bad.count("</script>") == 1


def test_figures_are_plotly_json_with_titles_and_units() -> None:
    for inner in re.findall(r'<script type="application/json">(.*?)</script>', render([view()]), re.DOTALL):
        made = json.loads(inner)
        assert made["data"]
        assert made["layout"]["title"]["text"]
        for axis in ("xaxis", "yaxis"):
            assert isinstance(made["layout"][axis].get("title", {}), dict)


def test_a_run_that_was_killed_early_says_what_is_missing() -> None:
    bare = replace(view().run, status="stopped", train=None, val=None, test=None, params=None, macs=None, best=0)
    bare = replace(bare, seconds_per_epoch=None, ms_per_image=None, quality={})
    early = View(Path("runs/one"), bare, view().epochs[:2], missing=("everything that needs the network: <none>",))
    assert answer(early) == "This training is stopped after 2 of 3 epochs; the last one reached 57.0 % on val."
    text = render([early])
    checked(text)
    assert "Not shown here:" in text
    assert "everything that needs the network: &lt;none&gt;" in text
    none = View(Path("runs/one"), bare, [])
    assert answer(none) == "This training is stopped after 0 of 3 epochs."
    checked(render([none]))


def test_an_older_run_without_layers_or_quality_still_has_a_page() -> None:
    old = view()
    epochs = [replace(row, extra={}) for row in old.epochs]
    text = render([replace(old, epochs=epochs, quality={}, calibration=(), gate=None, twin=None, ledger=(), photos=())])
    checked(text)
    assert "Inside" not in text[text.index("<main>") : text.index("</main>")]


def test_numbers_that_are_not_finite_are_left_out_of_figures() -> None:
    broken = view()
    rows = [replace(row, loss=float("nan"), train=replace(row.train, loss=float("inf"))) for row in broken.epochs]
    rows[1].extra["layers"][0]["grad_norm"] = float("nan")
    checked(render([replace(broken, epochs=rows)]))


def test_several_runs_stand_side_by_side() -> None:
    one, other = view(), view()
    other = replace(other, run=replace(other.run, name="two", data={**other.run.data, "fingerprint": "0"}))
    text = render([one, other])
    checked(text)
    assert "2 runs side by side" in text
    assert "did not learn from the same images" in text
    assert "did not learn from the same images" not in render([one, one])
    assert text.count("everything about it") == 2


@pytest.mark.parametrize(
    ("gap", "told"),
    [
        ((95, 70), "learned some of the training images by heart"),
        ((85, 85), "could be chance"),
        ((70, 95), "no sign of"),
    ],
)
def test_the_gap_is_judged_by_its_interval(gap: tuple[int, int], told: str) -> None:
    run = replace(view().run, train=Score(gap[0], 100), test=Score(gap[1], 100))
    assert told in answer(view(run=run))


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        ((2.0, 1.8, 2.2), "2.00 times as fast as that twin"),
        ((0.5, 0.4, 0.6), "2.00 times slower than that twin"),
        ((0.9, 0.5, 1.6), "as fast as that twin, as far as could be measured"),
    ],
)
def test_the_speed_is_judged_by_its_interval(ratio: tuple[float, float, float], told: str) -> None:
    twin = view().twin
    assert twin is not None
    assert told in answer(view(twin=replace(twin, ratio=ratio)))


def test_short_numbers() -> None:
    assert [short(n) for n in (7, 950, 75_114, 1_191_680, 2.5e9)] == ["7", "950", "75.1 k", "1.19 M", "2.5 G"]


def test_the_room_needs_no_torch() -> None:
    code = "import sys, leanconv.report.run_page, leanconv.report.page; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
