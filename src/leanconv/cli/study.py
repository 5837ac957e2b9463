"""``leanconv study DATA``."""

from __future__ import annotations

import argparse
import re
import sys
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanconv.errors import Error

if TYPE_CHECKING:
    from leanconv.study.analysis import Analysis
    from leanconv.study.engine import Engine
    from leanconv.study.run import Study
    from leanconv.study.store import Store

_EPILOG = """\
examples:
  leanconv study path/to/images                          all 16 combinations of the four techniques, 5 seeds
  leanconv study path/to/images --arms add-one --budget 1h
  leanconv study path/to/images --arms arms.yaml --name rates
  leanconv study path/to/images --engine ray --address 10.0.0.5:6379
  leanconv study --resume study                          go on where it was stopped
  leanconv study --status study                          what is there
  leanconv study --add-seeds 5 study                     five more seeds of every arm
  leanconv study --status study --aim latency --max-ms 2

arms.yaml: factors and their levels, the first the baseline, over techniques and any key of the recipe:
  factors:
    batchnorm: [false, true]
    techniques.dropout.p: [0.1, 0.3, 0.5]
  arms: factorial                      # add-one, leave-one-out, or a list such as [{}, {batchnorm: true}]

All lies in runs/NAME: study.db (SQLite, one row per finished training), the trainings, report.html, and
recommended.yaml for `leanconv train --recipe`. Stopped or killed at any moment, it goes on with --resume and repeats
nothing.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("data", nargs="?", metavar="DATA", help="images as of `leanconv train`, or demo")
    parser.add_argument("--arms", default="factorial", metavar="DESIGN", help="factorial, add-one, leave-one-out, FILE")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="trainings of every arm (default: 5)")
    parser.add_argument("--budget", metavar="TIME", help="such as 45m or 2h; fewer seeds where it is short")
    parser.add_argument("--recipe", default="study", metavar="NAME|FILE", help="with all its techniques")
    parser.add_argument("--epochs", metavar="N", help="of every training (default: the recipe's)")
    parser.add_argument("--name", metavar="NAME", help="of the folder in runs (default: study, study2, ...)")
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at once (default: as the cores allow)")
    parser.add_argument("--engine", default="local", metavar="ENGINE", help="local processes (default), or ray")
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster (default: Ray on this machine alone)")
    parser.add_argument("--no-sides", action="store_true", help="without the arms on wrong labels and on width")
    going = parser.add_mutually_exclusive_group()
    going.add_argument("--resume", metavar="NAME", help="go on with a study that was stopped")
    going.add_argument("--status", metavar="NAME", help="show what a study has so far")
    going.add_argument("--add-seeds", nargs=2, metavar=("N", "NAME"), help="more seeds for a study")
    parser.add_argument(
        "--aim", default="accuracy", metavar="AIM", help="of the recommendation: accuracy, latency, size"
    )
    parser.add_argument("--max-ms", type=float, metavar="MS", help="an image at most, one at a time")
    parser.add_argument("--max-params", type=int, metavar="N", help="at most so many parameters")
    parser.add_argument("--max-macs", type=int, metavar="N", help="at most so many multiply-adds an image")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--csv", action="store_true", help="print the trainings as CSV")


def run(arguments: argparse.Namespace) -> int:
    """Plan, train, tell."""
    existing = arguments.resume or arguments.status or (arguments.add_seeds or (None, None))[1]
    _check(arguments, existing)

    from leanconv.study.store import Store

    if existing is None:
        study, store, seeds = _new(arguments)
    else:
        store = Store(Path("runs") / existing / "study.db", create=False)
        study, seeds = _found(existing, store)
        if arguments.add_seeds:
            seeds += int(arguments.add_seeds[0])
    with store:
        if not arguments.status:
            _work(study, store, seeds, arguments)
        return _tell(study, store, arguments)


def _check(arguments: argparse.Namespace, existing: str | None) -> None:
    if existing is None and arguments.data is None:
        raise Error("study: DATA must be given, or --resume, --status or --add-seeds with a study, got none")
    if existing is not None and arguments.data is not None:
        raise Error(f"study: DATA is known of the study {existing}, got {arguments.data!r} too")
    if arguments.seeds < 1:
        raise Error(f"study: --seeds must be at least 1, got {arguments.seeds}")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise Error(f"study: --jobs must be at least 1, got {arguments.jobs}")
    if arguments.add_seeds and not (arguments.add_seeds[0].isdecimal() and int(arguments.add_seeds[0]) > 0):
        raise Error(f"study: --add-seeds must be a number from 1, got {arguments.add_seeds[0]!r}")
    if arguments.engine not in ("local", "ray"):
        raise Error(f"study: --engine must be local or ray, got {arguments.engine!r}")
    if arguments.address is not None and arguments.engine != "ray":
        raise Error(f"study: --address goes with --engine ray, got {arguments.address!r} with --engine local")
    if arguments.jobs is not None and arguments.engine == "ray":
        raise Error(f"study: --jobs goes with --engine local, got {arguments.jobs} with --engine ray")
    if arguments.aim not in ("accuracy", "latency", "size"):
        raise Error(f"study: --aim must be accuracy, latency or size, got {arguments.aim!r}")
    seconds(arguments.budget)


def seconds(text: str | None) -> float | None:
    """``90s``, ``45m``, ``2h``, ``1h30m`` or a number of minutes, in seconds.

    Raises:
        Error: it is none of these.
    """
    if text is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return 60 * float(text)
    match = re.fullmatch(
        r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?", text.replace(" ", "")
    )
    if not text.strip() or match is None:
        raise Error(f"study: --budget must be a time such as 45m, 2h or 1h30m, got {text!r}")
    return sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True))


def _new(arguments: argparse.Namespace) -> tuple[Study, Store, int]:
    from leanconv import recipe as recipes
    from leanconv.results import write_bytes
    from leanconv.study.design import DESIGNS, design
    from leanconv.study.run import DATABASE, Study
    from leanconv.study.store import Store
    from leanconv.study.work import Images
    from leanconv.training.folder import RUNS

    whole = recipes.override(recipes.load(arguments.recipe), epochs=arguments.epochs)
    made = design(whole, arguments.arms, sides=not arguments.no_sides)
    source = arguments.data if arguments.data == "demo" else _source(arguments.data)
    images = Images(source)
    held = images.of(whole)
    name = arguments.name or _free(RUNS)
    folder = RUNS / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not name.strip():
        raise Error(f"study: --name must be a plain name such as 'rates', got {name!r}")
    if folder.exists():
        raise Error(f"study: --name must be a new one, got {name!r} (`--resume {name}` goes on with it)")
    folder.mkdir(parents=True)
    arms = arguments.arms
    if arms not in DESIGNS:
        write_bytes(folder / "arms.yaml", Path(arms).read_bytes())
        arms = "arms.yaml"
    about = {
        "data": source,
        "fingerprint": held.fingerprint,
        "recipe": whole.to_dict(),
        "arms": arms,
        "sides": not arguments.no_sides,
    }
    store = Store(folder / DATABASE, about)
    store.tell({"seeds": arguments.seeds})
    if arguments.seeds < 2:
        print("leanconv: study: with one seed no effect can be told from luck", file=sys.stderr)
    return Study(name, made, images, store, _Shown(arguments)), store, arguments.seeds


def _source(data: str) -> str:
    path = Path(data).expanduser()
    return str(path.resolve()) if path.exists() else data


def _free(runs: Path) -> str:
    return next(n for i in range(1, 10_000) if not (runs / (n := "study" if i == 1 else f"study{i}")).exists())


def _found(name: str, store: Store) -> tuple[Study, int]:
    from leanconv.recipe import Recipe
    from leanconv.study.design import design
    from leanconv.study.run import Study
    from leanconv.study.work import Images
    from leanconv.training.folder import RUNS

    about = store.about
    arms = str(about["arms"])
    kind = str(RUNS / name / arms) if arms.endswith(".yaml") else arms
    made = design(Recipe.from_dict(about["recipe"]), kind, sides=bool(about["sides"]))
    return Study(name, made, Images(str(about["data"])), store, _Shown()), int(about["seeds"])


def _work(study: Study, store: Store, seeds: int, arguments: argparse.Namespace) -> None:
    from leanconv.cli import shown
    from leanconv.study.run import plan

    whole = study.design.arms[0].recipe
    if study.images.of(whole).fingerprint != store.about["fingerprint"]:
        raise Error(f"study: DATA must be that of the study {study.name}, got other images in {study.images.source}")
    shown.tune()
    start, budget = time.monotonic(), seconds(arguments.budget)
    engine = _engine(study, arguments)
    jobs = engine.workers
    try:
        _say(f"study {study.name}: {len(study.design.every)} arms, {seeds} seeds, {jobs} at once")
        study.work(engine, study.pilots())
        left = None if budget is None else budget - (time.monotonic() - start)
        planned = plan(study.costs(), seeds, jobs, left)
        if not planned.fits:
            _say(f"the budget holds {planned.seeds} of {planned.wanted} seeds; `--add-seeds` adds the others later")
        store.tell({"seeds": planned.seeds})
        study.work(engine, study.trainings(planned.seeds))
    except KeyboardInterrupt:
        _say(f"stopped; `leanconv study --resume {study.name}` goes on")
        raise
    finally:
        engine.close()
    _say("times, one at a time")
    study.times()
    _say(f"done in {(time.monotonic() - start) / 60:.1f} minutes")


def _engine(study: Study, arguments: argparse.Namespace) -> Engine:
    from leanconv.results import usable_cores

    cores = usable_cores()
    threads = study.design.arms[0].recipe.training.threads
    if arguments.engine == "ray":
        from leanconv.study.cluster import Ray

        return Ray(study.images, [arm.recipe for arm in study.design.every], arguments.address, threads or 1)
    from leanconv.study.engine import Local

    return Local(str(study.images.source), arguments.jobs or max(1, cores // (threads or cores)))


class _Shown:
    """A line per piece of work, on stderr."""

    def __init__(self, arguments: argparse.Namespace | None = None) -> None:
        self.start = time.monotonic()

    def __call__(self, done: int, total: int, what: str) -> None:
        if done:
            gone = time.monotonic() - self.start
            _say(f"[{done}/{total}] {what}  ({gone / 60:.1f} min)")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _tell(study: Study, store: Store, arguments: argparse.Namespace) -> int:
    from leanconv import recipe as recipes
    from leanconv.cli import shown
    from leanconv.report.study_page import render
    from leanconv.results import write_bytes
    from leanconv.study.analysis import Wanted, analyse, choose
    from leanconv.study.showing import view

    if arguments.csv:
        print(store.as_csv(), end="")
        return 0
    found = analyse(study.design, store.rows())
    wanted = Wanted(arguments.aim, arguments.max_ms, arguments.max_params, arguments.max_macs)
    best, why = choose(found, study.design, wanted)
    file = study.folder / "recommended.yaml"
    chosen = study.recipe(study.design.arm(best), 0)
    dumped = recipes.dump(chosen)
    write_bytes(file, f"# {best}: {why}; study {study.name}.\n{dumped}".encode())
    page = study.folder / "report.html"
    write_bytes(page, render(view(study, found, (best, why, str(file), dumped))).encode())
    if arguments.open:
        webbrowser.open(page.resolve().as_uri())
    recommended = {"arm": best, "why": why, "recipe": str(file), "report": str(page)}
    if arguments.json:
        from leanconv.study.store import plain

        print(shown.as_json(plain({**found.to_dict(), "recommended": recommended})))
    else:
        print(text(found, study))
        print(f"\nrecommended: {best} ({why})\n  leanconv train DATA --recipe {file}\nreport: {page}")
    return 0


def text(found: Analysis, study: Study) -> str:
    """The arms, the effects, what they are worth."""
    from leanconv.cli.shown import table

    head = ("arm", "seeds", "train %", "test %", "gap", "lr", "stable lr", "parameters", "MACs", "ms/image")
    rows = [_row(study, name, values) for name, values in found.arms.items()]
    parts = [table(head, rows)]
    for key, told, scale in (("test", "test accuracy, points", 100.0), ("gap", "gap train - test, points", 100.0)):
        effects = found.effects.get(key, [])
        if effects:
            lines = [
                (e.name, f"{scale * e.value:+.2f}", _interval(e.low, e.high, scale), _p(e.p), _p(e.holm), _verdict(e))
                for e in effects
            ]
            parts.append(table((f"effect on {told}", "estimate", "95 % interval", "p", "p (Holm)", ""), lines))
    rates = [(e.name, f"{2**e.value:.2f}x") for e in found.rate_effects if e.value == e.value]
    if rates:
        parts.append(table(("largest stable learning rate", "times"), rates))
    needed = [f"{name} {count if count is not None else 'over 10,000'}" for name, count in found.needed.items()]
    notes = [f"Seeds that would show 0.5 points with 80 % probability: {', '.join(needed)}."] if needed else []
    notes += [
        "Main effects and interactions of one metric are corrected together (Holm); intervals are each at 95 %.",
        "Test images choose nothing; learning rates were chosen on val by short trainings of each arm.",
        *found.notes,
    ]
    return "\n\n".join(parts) + "\n\n" + "\n".join(notes)


def _row(study: Study, name: str, v: dict[str, Any]) -> tuple[str, ...]:
    def number(key: str, form: str, scale: float = 1.0) -> str:
        return format(scale * v[key], form) if v.get(key) is not None and v[key] == v[key] else "-"

    test = number("test", ".1f", 100)
    if v.get("test_error", float("nan")) == v.get("test_error"):
        test += f" +- {100 * v['test_error']:.1f}"
    rate = f"{study.rate(study.design.arm(name)):g}"
    stable = f"{v['rate']:g}" if v.get("rate") else "-"
    told = (number("train", ".1f", 100), test, number("gap", "+.1f", 100), rate, stable)
    return name, str(v["seeds"]), *told, number("params", ",.0f"), number("macs", ",.0f"), number("ms_1", ".3f")


def _interval(low: float, high: float, scale: float) -> str:
    return f"{scale * low:+.2f} to {scale * high:+.2f}" if low == low else "-"


def _p(value: float) -> str:
    return "-" if value != value else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _verdict(effect: Any) -> str:
    if effect.holm != effect.holm:
        return "unknown"
    return ("raises it" if effect.value > 0 else "lowers it") if effect.holm < 0.05 else "undecided"
