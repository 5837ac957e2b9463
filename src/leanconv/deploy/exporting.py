"""A trained network as one file that runs without torch, verified before it is kept."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from leanconv import surgery
from leanconv.deploy import onnx
from leanconv.deploy.records import Exported
from leanconv.deploy.subject import Subject, of_model, of_run, opened
from leanconv.deploy.translation import as_torch, translate
from leanconv.deploy.verify import compare, probes
from leanconv.errors import Error
from leanconv.runtime import file, load
from leanconv.runtime.plan import Picture
from leanconv.training import Run

__all__ = ["FORMATS", "export"]

FORMATS = ("lean", "onnx")


def export(
    model: nn.Module | Run | str | Path,
    path: str | Path,
    format: str = "lean",
    *,
    example: Tensor | None = None,
    classes: Sequence[str] | None = None,
    picture: Picture | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Exported:
    """Write a network to one file that runs without torch, and keep it only if it answers as the network does.

    ``lean`` is for :mod:`leanconv.runtime`: batch norms are folded, activations and residual sums are part of the step
    before, depthwise and pointwise convolutions in a row are one block, every value has its place in memory. ``onnx``
    is for everything else, with any number of inputs in a batch. The file is read back, run on noise, on the example
    and on images of the run, and compared with torch in float64: its error may be twice torch's own in float32 plus
    4 eps. Where it is more, at most 1e-5 of the largest output or four times torch's own are let through, and
    ``difference`` says so.

    Example:
        >>> told = leanconv.export(network, "network.lean", example=x)  # doctest: +SKIP
        >>> print(told.table())  # doctest: +SKIP

    Args:
        model: a network in float32 on the CPU, a run, or its folder.
        path: of the file; written in one step.
        format: ``lean`` or ``onnx``.
        example: inputs (N, C, H, W), (N, C, L) or (N, C); None: noise of the run's shape, or of one that is guessed.
        classes: names of the outputs; None: those of the run, or none.
        picture: how images become inputs; None: as the run reads them, or not known.
        overwrite: whether ``path`` may exist.
        progress: called with a few words before each stage.

    Returns:
        Size, parameters, steps, memory and the largest difference.

    Raises:
        Error: an argument out of range; the file exists; the network has operations that a ``.lean`` file does not
            know (all of them are named); the file does not answer as the network does; packages for ONNX are missing.
    """
    path = Path(path)
    if format not in FORMATS:
        raise Error(f"export: format must be one of {', '.join(FORMATS)}, got {format!r}")
    _check_place(path, overwrite)
    if format == "onnx":
        onnx.need()
    say = progress or (lambda words: None)
    say("reading the network and its images")
    found = opened(model)
    given = (example, classes, picture)
    subject = of_run(found, *given) if isinstance(found, Run) else of_model(found, *given)
    say("folding batch norms")
    folded, certificate = surgery.fold(subject.model, example=subject.example[:1], latency=False, check=False)
    macs = certificate.before.macs
    write = _lean if format == "lean" else _onnx
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as place:
            temporary = Path(place) / path.name
            done = write(subject, folded.eval(), temporary, say)
            os.replace(temporary, path)
    except OSError as error:
        raise Error(f"{path}: must be writable, got {error.strerror}") from None
    return replace(done, path=path, macs=macs, notes=subject.notes)


def _check_place(path: Path, overwrite: bool) -> None:
    if path.is_dir() or not path.name:
        raise Error(f"export: the file must be a file's name, got the folder {str(path)!r}")
    if not path.parent.is_dir():
        raise Error(f"export: the file's folder must exist, got {str(path.parent)!r}")
    if path.exists() and not overwrite:
        raise Error(f"export: the file must be a new one unless --overwrite is given, got {str(path)!r}, which exists")


def _lean(subject: Subject, folded: nn.Module, path: Path, say: Callable[[str], None]) -> Exported:
    say("translating")
    found = translate(folded, subject.example)
    plan = replace(found.plan, classes=subject.classes, picture=subject.picture, about=_about(subject))
    file.write(path, plan, found.tensors)
    say("comparing")
    with load(path, verify=True) as engine:
        shape = engine.input_shape

        def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
            y = engine(x.reshape(len(x), *shape))
            return as_torch(y, found.order)

        difference = compare(subject.model, run, probes(subject.example, subject.images))
        executor = f"leanconv.runtime ({engine.executor})"
    blocks = sum(step.op == "block" for step in plan.steps)
    count = sum(tensor.size for tensor in found.tensors.values())
    size = path.stat().st_size
    return Exported(path, "lean", size, count, 0, len(plan.steps), blocks, 4 * plan.memory, executor, difference)


def _onnx(subject: Subject, folded: nn.Module, path: Path, say: Callable[[str], None]) -> Exported:
    about = _about(subject)
    if subject.classes:
        about["classes"] = json.dumps(subject.classes, ensure_ascii=False)
    if subject.picture is not None:
        picture = subject.picture
        about |= {"mode": picture.mode, "mean": json.dumps(picture.mean), "std": json.dumps(picture.std)}
    say("writing")
    nodes, count = onnx.write(folded, subject.example, path, about)
    say("comparing")
    executor, run = onnx.reader(path)
    difference = compare(subject.model, run, probes(subject.example, subject.images))
    return Exported(path, "onnx", path.stat().st_size, count, 0, nodes, 0, None, executor, difference)


def _about(subject: Subject) -> dict[str, str]:
    from leanconv import __version__

    shape = ", ".join(map(str, subject.example.shape[1:]))
    return {"made_by": f"leanconv {__version__}", "network": subject.name, "input": f"(N, {shape})"}
