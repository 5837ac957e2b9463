"""What a run looks like: everything that its report shows, gathered from its files, its images and its network."""

from __future__ import annotations

import base64
import copy
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from leanconv import measure, models, results
from leanconv import recipe as recipes
from leanconv.accounting import Row, cost
from leanconv.data import Split
from leanconv.errors import Error
from leanconv.kernels.keys import keyed
from leanconv.prediction import evaluate
from leanconv.recipe import Recipe
from leanconv.report.views import Layer, Photo, Stopping, Twin, View
from leanconv.techniques import l2
from leanconv.techniques.dropout import Dropout
from leanconv.training import Run, images_of
from leanconv.training.build import build
from leanconv.training.folder import GATE, RECIPE, RECORD, WEIGHTS, is_run

__all__ = ["dense", "gather"]

_T = TypeVar("_T")
_UNITS, _STEPS = 48, 3


def gather(folder: str | Path, rounds: int = 30) -> View:
    """Everything about a run. What cannot be had is named in :attr:`View.missing` and left out.

    Args:
        folder: of the run, finished or not.
        rounds: how often the network and its dense twin are timed, in turns.

    Raises:
        Error: it is no run, or its record is of a format that this version does not read.
    """
    path = Path(folder)
    if not is_run(path):
        raise Error(f"report: RUN must be the folder of a run such as runs/exp, got {str(folder)!r}")
    if not (path / RECORD).is_file():
        raise Error(f"report: the run must have a {RECORD}, got {str(folder)!r} without it")
    return _Gathering(path, rounds).view()


class _Gathering:
    """One thing after the other; each may be missing."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.run = Run(folder)
        self.record = results.read_run(folder)
        self.missing: list[str] = []

    def view(self) -> View:
        record = self.record
        if record.status != "done":
            self.missing.append(f"final figures: the training is {record.status}, not done")
        epochs = self._try("the curves", lambda: results.read_metrics(self.folder)) or []
        text = self._try("the recipe", lambda: _text(self.folder / RECIPE)) or ""
        gate = self._try("what the data gate found", lambda: results.read_json(self.folder / GATE))
        view = View(self.folder, record, epochs, text, gate, record.quality)
        if not (self.folder / WEIGHTS).is_file():
            self.missing.append(f"everything that needs the network: there is no {WEIGHTS}")
            return replace(view, missing=tuple(self.missing))
        model = self._try("everything that needs the network", lambda: self.run.model)
        if model is not None:
            view = self._answers(view)
            view = replace(
                view,
                twin=self._try("the dense twin", lambda: self._twin(model)),
                stopping=self._try("the stopped units", lambda: _stopping(model, self._example())) or (),
                ledger=self._try("the L2 ledger", lambda: self._ledger(model)) or (),
            )
        if epochs and not any(one.get("pre") for row in epochs for one in row.extra.get("layers") or ()):
            self.missing.append("distributions inside: this run did not record them")
        return replace(view, missing=tuple(self.missing))

    def _try(self, what: str, make: Callable[[], _T]) -> _T | None:
        try:
            return make()
        except Error as error:
            self.missing.append(f"{what}: {error}")
            return None

    def _answers(self, view: View) -> View:
        """The run's answers on its own images, and those of which it was sure and wrong."""
        quality = view.quality
        if "mistakes" not in quality.get(view.held, {}):  # of an earlier version, or not done
            found = self._try("calibration and mistakes", lambda: evaluate(self.run, split=view.held))
            if found is None:
                return view
            self.missing += found.notes
            quality = {**quality, view.held: found.outcome.to_dict()}
        told = quality[view.held]
        photos = self._try("the most wrong images", lambda: self._photos(view.held, told["mistakes"])) or ()
        bins = tuple((int(n), float(right), float(sure)) for n, right, sure in told["calibration"])
        count = told["images"] - told["correct"]
        return replace(view, quality=quality, calibration=bins, photos=photos, mistakes=count)

    def _photos(self, split: str, mistakes: list[list[Any]]) -> tuple[Photo, ...]:
        """Images as the network saw them."""
        if not mistakes:
            return ()
        images = images_of(self.run)
        if images.fingerprint != self.record.data.get("fingerprint"):
            raise Error("the images are no longer those that the run was trained on")
        part = images.splits[split]
        names = part.files or [f"{split} {i}" for i in range(len(part))]
        return tuple(
            Photo(names[place], truth, answer, probability, *_picture(part, place))
            for place, truth, answer, probability in mistakes
        )

    def _recipe(self) -> Recipe:
        return recipes.load(self.folder / RECIPE)

    def _example(self) -> Tensor:
        shape = self.run.header.shape
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        return noise.contiguous(memory_format=torch.channels_last)

    def _twin(self, model: nn.Module) -> Twin | None:
        header = self.run.header
        recipe = dense(self._recipe())
        if recipe is None:
            raise Error("the recipe has no separable convolution that could be dense")
        twin = build(recipe, header.shape, len(header.classes), header.samples).model.eval()
        x = self._example()
        own, other = cost(model, x), cost(twin, x)
        timed = measure.compare_latency({"own": (model, x), "twin": (twin, x)}, runs=self.rounds)
        ratio = timed.ratio("twin", "own")
        layers = _side_by_side(own.rows, other.rows)
        milliseconds = (timed.latencies["own"].per_image, timed.latencies["twin"].per_image)
        return Twin(other.params, other.macs, (ratio.value, ratio.low, ratio.high), milliseconds, layers)

    def _ledger(self, model: nn.Module) -> tuple[dict[str, Any], ...]:
        options = self._recipe().technique_options().get(l2.NAME)
        if options is None:
            return ()
        found = l2.ledger(
            model,
            strength=options.strength,
            form=options.form,
            n=self.run.header.samples,
            where=options.where,
            depthwise=options.depthwise,
        )
        return tuple(found.records())


def _side_by_side(own: Sequence[Row], twin: Sequence[Row]) -> tuple[Layer, ...]:
    """The layers of the twin that multiply, with what stands in their place: below the same path, or below the nearest
    module around it that has no other such layer."""
    mine, others = [row for row in own if row.macs], [row for row in twin if row.macs]

    def below(rows: Sequence[Row], path: str) -> list[Row]:
        return [row for row in rows if not path or row.path == path or row.path.startswith(f"{path}.")]

    layers = []
    for row in others:
        path, found = row.path, below(mine, row.path)
        while not found and path and len(below(others, path.rpartition(".")[0])) == 1:
            path = path.rpartition(".")[0]
            found = below(mine, path)
        kind = row.kind if len(found) == 1 else "separable" if found else row.kind
        params, macs = sum(r.params for r in found), sum(r.macs for r in found)
        layers.append(Layer(path or "the network", kind, params, macs, row.params, row.macs))
    return tuple(layers)


def dense(recipe: Recipe) -> Recipe | None:
    """The recipe with every separable convolution dense; None where it has none."""
    techniques = {name: options for name, options in recipe.techniques.items() if name != "separable"}
    own = models.options(recipe.model.name) or {}
    given = recipe.model.options.get("separable", own.get("separable", False))
    options = {**recipe.model.options, "separable": False} if "separable" in own else recipe.model.options
    if len(techniques) == len(recipe.techniques) and not (given and "separable" in own):
        return None
    model = replace(recipe.model, options=options, weights=None)
    return replace(recipe, model=model, techniques=techniques)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{path} must be a readable text file, got {type(error).__name__}") from None


def _picture(part: Split, place: int) -> tuple[str, bool]:
    """An image as a ``data:`` address, and whether it is small."""
    pixels = part.images[place].permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    small = picture.width <= 64
    if picture.width > 160:
        picture = picture.resize((160, 160), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG" if small else "JPEG", quality=82)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", small


def _stopping(model: nn.Module, example: Tensor) -> tuple[Stopping, ...]:
    """What the network's dropout layers leave in some steps."""
    shapes: dict[str, torch.Size] = {}
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, Dropout) and module.p > 0:

            def note(_module: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
                shapes[path] = args[0].shape

            handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(_stopped(path, model.get_submodule(path), shape) for path, shape in shapes.items())


def _stopped(path: str, layer: nn.Module, shape: torch.Size) -> Stopping:
    """Masks are seen on ones: a unit that is stopped gives zero."""
    assert isinstance(layer, Dropout)
    own = copy.deepcopy(layer).train()
    whole = type(layer) is not Dropout  # whole channels
    kept = []
    for step in range(_STEPS):
        with torch.no_grad(), keyed(0, step):
            out = own(torch.ones(shape))[0]
        works = (out.flatten(1) != 0).any(1) if whole and out.dim() > 1 else out.flatten() != 0
        kept.append(tuple(works[:_UNITS].tolist()))
    units = shape[1] if whole else math.prod(shape[1:])
    return Stopping(path, float(layer.p), str(layer.mask), tuple(kept), units)
