"""A trained network as one file that runs without torch, verified before it is kept."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from leanconv import surgery
from leanconv.deploy import onnx
from leanconv.deploy.quantisation import Int8, Quantised
from leanconv.deploy.quantisation.samples import chosen
from leanconv.deploy.quantisation.writing import written
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
    int8: Int8 | bool = False,
    data: Any = None,
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

    With ``int8`` the file's maps and weights are bytes: a quarter of the size and memory, and the network's answers
    nearly. It is calibrated and its accuracy measured on real images, and layers stay in float until the loss is within
    ``int8.max_drop`` points; what is told of it is in ``quantised``, and ``difference`` is that of the float plan that
    it was made of.

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
        int8: how maps and weights become bytes; True: as :class:`Int8` has it; ``lean`` alone.
        data: for ``int8``: images, in any form that :func:`leanconv.data.load` takes or loose in a folder; or inputs
            (N, C, H, W), or these and labels (N,). None: those of the run.
        overwrite: whether ``path`` may exist.
        progress: called with a few words before each stage.

    Returns:
        Size, parameters, steps, memory and the largest difference.

    Raises:
        Error: an argument out of range; the file exists; the network has operations that a ``.lean`` file does not
            know (all of them are named); the file does not answer as the network does; no packages for ONNX;
            ``int8`` without images, or with ``onnx``, or the loss is above the bound whatever stays in float.
    """
    path = Path(path)
    if format not in FORMATS:
        raise Error(f"export: format must be one of {', '.join(FORMATS)}, got {format!r}")
    how = Int8() if int8 is True else int8 or None
    if how is not None and format != "lean":
        raise Error(f"export: --int8 writes .lean files alone, got --format {format}")
    if how is None and data is not None:
        raise Error("export: data are for int8, got them without it")
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
    run = found if isinstance(found, Run) else None
    write = partial(_lean, int8=how, data=data, run=run) if format == "lean" else _onnx
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


def _lean(
    subject: Subject,
    folded: nn.Module,
    path: Path,
    say: Callable[[str], None],
    int8: Int8 | None = None,
    data: Any = None,
    run: Run | None = None,
) -> Exported:
    say("translating")
    found = translate(folded, subject.example)
    plan = replace(found.plan, classes=subject.classes, picture=subject.picture, about=_about(subject))
    file.write(path, plan, found.tensors)
    say("comparing")
    with load(path, verify=True) as engine:
        shape = engine.input_shape

        def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
            y = engine(x.reshape(len(x), *shape))
            return as_torch(y, found.order)

        difference = compare(subject.model, forward, probes(subject.example, subject.images))
        executor = f"leanconv.runtime ({engine.executor})"
    tensors: Mapping[str, NDArray[Any]] = found.tensors
    quantised: Quantised | None = None
    if int8 is not None:
        samples = chosen(
            data, run, plan, int8.calibrate, lambda done, total: say(f"reading images: {done:,} of {total:,}")
        )
        plan, tensors, quantised = written(path, plan, tensors, int8, samples, say)
    blocks = sum(step.op == "block" for step in plan.steps)
    count = sum(tensor.size for tensor in tensors.values())
    size, memory = path.stat().st_size, 4 * plan.memory
    done = Exported(path, "lean", size, count, 0, len(plan.steps), blocks, memory, executor, difference)
    return replace(done, quantised=quantised)


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
