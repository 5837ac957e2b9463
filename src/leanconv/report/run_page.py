"""The report of one run: the answer first, then what stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leanconv.report import layers, parts
from leanconv.report.page import document, escape, table
from leanconv.report.views import View
from leanconv.results import Score

__all__ = ["compared", "render", "sections"]


def render(views: Sequence[View]) -> str:
    """One page for one run, or for several side by side.

    Args:
        views: from one.

    Returns:
        HTML.
    """
    if len(views) == 1:
        (view,) = views
        title = f"{view.run.name}: report"
        body = f"<h1>{escape(view.run.name)}</h1>{sections(view, '')}"
        return document(title, body + _foot(), description=answer(view))
    names = ", ".join(view.run.name for view in views)
    listed = [f"<h1>{len(views)} runs side by side</h1>", compared(views)]
    for number, view in enumerate(views):
        inner = sections(view, f"r{number}-")
        listed.append(f"<details><summary>{escape(view.run.name)}: everything about it</summary>{inner}</details>")
    return document(f"Runs: {names}", "".join(listed) + _foot(), description=f"The runs {names}, side by side.")


def sections(view: View, prefix: str) -> str:
    """Everything about one run; ``prefix`` keeps the names of its figures apart from another's."""
    parts_of_it = [
        f'<p class="note">{escape(_about(view))}</p><p class="lead">{escape(answer(view))}</p>',
        _missing(view),
        _tiles(view),
        parts.curves(view, prefix),
        parts.classes(view, prefix),
        parts.calibration(view, prefix),
        parts.photos(view),
        parts.gate(view),
        layers.outputs(view, prefix),
        layers.gradients(view, prefix),
        layers.weights(view, prefix),
        layers.costs(view, prefix),
        layers.stopped(view, prefix),
        layers.ledger(view),
        parts.origin(view),
    ]
    return "".join(parts_of_it)


def answer(view: View) -> str:
    """The whole report in a few sentences."""
    run, score = view.run, _score(view)
    if score is None:
        done = len(view.epochs)
        last = f"; the last one reached {100 * view.epochs[-1].val.accuracy:.1f} % on val" if view.epochs else ""
        return f"This training is {run.status} after {done} of {_planned(view)} epochs{last}."
    low, high = score.interval()
    told = [
        f"On {score.total:,} {view.held} images this network is right {100 * score.accuracy:.1f} % of the time "
        f"({100 * low:.1f} to {100 * high:.1f})."
    ]
    if run.gap is not None:
        g = run.gap
        word = "clear" if g.low > 0 else "not sure" if g.high > 0 else "none"
        verdict = {
            "clear": "it has learned some of the training images by heart",
            "not sure": "that could be chance",
            "none": "no sign of overfitting",
        }[word]
        told.append(
            f"On training images it is {100 * g.value:+.1f} points ({100 * g.low:+.1f} to {100 * g.high:+.1f}) apart: "
            f"{verdict}."
        )
    if run.params is not None and run.macs is not None:
        size = f"It has {short(run.params)} parameters and takes {short(run.macs)} multiply-adds an image"
        told.append(size + _against(view) + ".")
    return " ".join(told)


def short(count: float) -> str:
    """``75.1 k``, ``1.19 M``."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def compared(views: Sequence[View]) -> str:
    """Figures of several runs in one table, and their curves in one figure."""
    head = ["", *(view.run.name for view in views)]
    rows: list[list[str]] = []

    def row(name: str, values: Sequence[str]) -> None:
        if any(value != "-" for value in values):
            rows.append([name, *values])

    row("status", [view.run.status for view in views])
    row("model", [str(view.run.recipe.get("model", {}).get("name", "-")) for view in views])
    row("techniques", [", ".join(view.run.recipe.get("techniques", {})) or "none" for view in views])
    row("held-out images", [f"{s.total:,} ({view.held})" if (s := _score(view)) else "-" for view in views])
    row("accuracy, %", [_share(_score(view)) for view in views])
    row("training accuracy, %", [_share(view.run.train) for view in views])
    gaps = [view.run.gap for view in views]
    row(
        "gap, points", [f"{100 * g.value:+.1f} ({100 * g.low:+.1f} to {100 * g.high:+.1f})" if g else "-" for g in gaps]
    )
    for key, name in (("balanced_accuracy", "balanced accuracy, %"), ("macro_f1", "macro F1, %")):
        found = [view.quality.get(view.held, {}).get(key) for view in views]
        row(name, ["-" if value is None else f"{100 * value:.1f}" for value in found])
    errors = [view.quality.get(view.held, {}).get("calibration_error") for view in views]
    row("calibration error, points", ["-" if value is None else f"{100 * value:.1f}" for value in errors])
    row("parameters", ["-" if view.run.params is None else f"{view.run.params:,}" for view in views])
    row("multiply-adds an image", ["-" if view.run.macs is None else f"{view.run.macs:,}" for view in views])
    row("ms an image", ["-" if (t := view.run.ms_per_image) is None else f"{t:.3f}" for view in views])
    row("s an epoch", ["-" if (t := view.run.seconds_per_epoch) is None else f"{t:.2f}" for view in views])
    row("epochs", [f"{len(view.epochs)} of {_planned(view)}, kept {view.run.best or '-'}" for view in views])
    apart = len({view.run.data.get("fingerprint") for view in views}) > 1
    note = (
        '<p class="missing">These runs did not learn from the same images in the same splits (their data fingerprints '
        "differ): their accuracies are not measured on the same set.</p>"
        if apart
        else '<p class="note">All learned from the same images in the same splits. Intervals are of each accuracy '
        "alone (Wilson, 95 %); one seed is one seed.</p>"
    )
    return note + table(head, rows) + parts.together(views)


def _about(view: View) -> str:
    """Which network on which images."""
    recipe = view.run.recipe
    techniques = ", ".join(recipe.get("techniques", {})) or "no technique"
    source = view.run.data.get("source", "unknown images")
    return f"{recipe.get('model', {}).get('name', 'a network')} with {techniques}, on {source}"


def _score(view: View) -> Score | None:
    return view.run.test or view.run.val


def _share(score: Score | None) -> str:
    if score is None:
        return "-"
    low, high = score.interval()
    return f"{100 * score.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _planned(view: View) -> Any:
    return view.run.recipe.get("training", {}).get("epochs", "?")


def _against(view: View) -> str:
    """Beside the dense twin."""
    twin, run = view.twin, view.run
    if twin is None or not run.params or not run.macs:
        return ""
    value, low, high = twin.ratio
    if low <= 1 <= high:
        speed = "as fast as that twin, as far as could be measured"
    else:
        speed = (
            f"{value:.2f} times as fast as that twin" if value > 1 else f"{1 / value:.2f} times slower than that twin"
        )
    return (
        f", {twin.params / run.params:.1f} times fewer parameters and {twin.macs / run.macs:.1f} times fewer "
        f"multiply-adds than its dense twin; on this machine it is {speed} (times of the two: ratio {low:.2f} to "
        f"{high:.2f})"
    )


def _tiles(view: View) -> str:
    run, score, tiles = view.run, _score(view), []
    if score is not None:
        low, high = score.interval()
        tiles.append((f"{100 * score.accuracy:.1f} %", f"{view.held} accuracy, {100 * low:.1f} to {100 * high:.1f}"))
    quality = view.quality.get(view.held)
    if quality:
        tiles.append((f"{100 * quality['balanced_accuracy']:.1f} %", "balanced accuracy, the mean over the classes"))
    if run.gap is not None:
        tiles.append((f"{100 * run.gap.value:+.1f}", f"points between training and {view.held}"))
    if run.params is not None:
        tiles.append((short(run.params), "parameters"))
    if run.macs is not None:
        tiles.append((short(run.macs), "multiply-adds an image"))
    if run.ms_per_image is not None:
        tiles.append((f"{run.ms_per_image:.2f} ms", "an image, one at a time"))
    if run.seconds_per_epoch is not None:
        tiles.append((f"{run.seconds_per_epoch:.1f} s", f"an epoch, {run.epochs} in all"))
    made = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(told)}</span></div>' for value, told in tiles
    )
    return f'<div class="tiles">{made}</div>' if made else ""


def _missing(view: View) -> str:
    if not view.missing:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in view.missing)
    return f'<div class="missing">Not shown here:<ul>{items}</ul></div>'


def _foot() -> str:
    return (
        "<footer>Made by leanconv from the run's own files. Accuracies are of the network in eval mode on images as "
        "they are, without augmentation; intervals are 95 %. Test images chose nothing.</footer>"
    )
