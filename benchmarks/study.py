"""What a study costs beyond its trainings: rows written a second, and the page of a study of 10,000 trainings.

    python benchmarks/study.py [--rows 10000]

Rows as large as those of real trainings, which never ran: hundreds of seeds of a full factorial. Measured: rows written
a second (each in a transaction of its own), reading and analysing them, making the page, opening it in a headless
Chromium until its table stands, where there is one, and tasks a second that do nothing on Ray, where that is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
import numpy as np

from leanconv import recipe
from leanconv.report.study_page import render
from leanconv.study.analysis import analyse
from leanconv.study.design import design
from leanconv.study.run import Study
from leanconv.study.showing import view
from leanconv.study.store import Row, Store
from leanconv.study.task import Task
from leanconv.study.work import Images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    arguments = parser.parse_args()
    made = design(recipe.load("study"))
    rng = np.random.default_rng(0)
    seeds = -(-arguments.rows // len(made.every))
    rows = [Row("run", arm.name, seed, values=_values(rng)) for seed in range(seeds) for arm in made.every]
    took: dict[str, Any] = {"rows": len(rows)}
    with tempfile.TemporaryDirectory() as place:
        about = {"data": "made", "fingerprint": "0" * 64, "arms": "factorial"}
        with Store(Path(place) / "study.db", about) as store:
            start = time.perf_counter()
            for row in rows:
                store.add(row)
            took["writes_per_second"] = round(len(rows) / (time.perf_counter() - start))
            took["megabytes"] = round((Path(place) / "study.db").stat().st_size / 1e6, 1)
            start = time.perf_counter()
            found = analyse(made, store.rows())
            took["analyse_seconds"] = round(time.perf_counter() - start, 2)
            start = time.perf_counter()
            shown = view(Study("made", made, Images("demo"), store), found, ("all", "made", "made.yaml", "made"))
            page = Path(place) / "report.html"
            page.write_text(render(shown), encoding="utf-8")
            took["page_seconds"] = round(time.perf_counter() - start, 2)
        took["page_megabytes"] = round(page.stat().st_size / 1e6, 1)
        took["open_seconds"] = _open(page)
    took["ray_tasks_per_second"] = _scheduled(made.arms[0].recipe.to_dict())
    print(", ".join(f"{key} {value}" for key, value in took.items()))
    print(bench.crowded() or "", bench.write("study", took))


def _values(rng: np.random.Generator) -> dict[str, Any]:
    names = "train test val gap loss roughness shift gradients weight_norm shift_deeper calibration_error"
    numbers = {key: float(rng.random()) for key in names.split()}
    curve = {key: rng.random(10).tolist() for key in ("loss", "train", "val", "weight_norm")}
    layers = [{"path": f"l{i}", "kind": "Conv2d", "mean": 0.1, "std": 1.0, "grad_norm": 0.2} for i in range(12)]
    curve["step"] = list(range(10, 110, 10))
    return {**numbers, "params": 9, "macs": 9, "chance": 0.1, "diverged": 0, "curve": curve, "layers": layers}


def _open(page: Path) -> float | None:
    """Median of three, in seconds, until the table of trainings stands."""
    chromium = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(3):
            tab = browser.new_page()
            start = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_function("document.querySelectorAll('#study-runs tbody tr').length > 0")
            times.append(time.perf_counter() - start)
            tab.close()
        browser.close()
    return round(sorted(times)[1], 2)


def _nothing(task: dict[str, Any], images: Any, version: str) -> tuple[dict[str, Any], None]:
    return {"kind": task["kind"], "arm": task["arm"], "seed": task["seed"], "values": {"test": 0.5}}, None


def _scheduled(whole: dict[str, Any], count: int = 5_000) -> int | None:
    if importlib.util.find_spec("ray") is None:
        return None
    from leanconv.study.cluster import Ray

    tasks = [Task("run", "arm", seed, whole) for seed in range(count)]
    engine = Ray(Images("demo"), [], do=_nothing)
    try:
        list(engine.run(tasks[:100]))
        start = time.perf_counter()
        seeds = sorted(row.seed for row in engine.run(tasks))
        took = time.perf_counter() - start
    finally:
        engine.close()
    assert seeds == list(range(count))
    return round(count / took)


if __name__ == "__main__":
    main()
