"""What the runtime's benchmarks share: their networks, these as each program wants them, contenders in turns, records.

Contenders run in Pythons of their own: --python has numpy, onnxruntime, openvino, ncnn and pnnx (and for int8 nncf and
onnx), --executorch has executorch and torch, --litert has ai-edge-litert, litert-torch and torch (for int8
ai-edge-quantizer). For example:

    python -m venv contend && contend/bin/pip install numpy onnx onnxruntime openvino nncf ncnn
    contend/bin/pip install --no-deps pnnx

What a Python lacks is named, and its contender left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench
import conversion
import torch

import leanconv
from leanconv.benchmarking import command, measure
from leanconv.benchmarking.contenders import answers, batch_of

NAMES = ("mobilenet_v1", "dense_twin", "mobilenet_v2", "efficientnet_lite0", "resnet18")
SHAPE = (3, 224, 224)
HERE = Path(__file__).parent
AGREES = 1e-4  # of float32 answers with torch's, by the largest


def build(name: str) -> torch.nn.Module:
    """A network in eval mode; the same weights in every process."""
    import zoo

    from leanconv import models

    makers: Mapping[str, Callable[[], Any]] = {
        "mobilenet_v1": models.mobilenet_v1,
        "dense_twin": lambda: models.dense_twin(models.mobilenet_v1()),
        "mobilenet_v2": lambda: zoo.pytorchcv("mobilenetv2_w1"),
        "efficientnet_lite0": zoo.lite0,
        "resnet18": lambda: zoo.pytorchcv("resnet18"),
    }
    torch.manual_seed(0)
    model: torch.nn.Module = makers[name]().eval()
    return model


def parser(doc: str | None, names: Sequence[str], kinds: Sequence[str]) -> argparse.ArgumentParser:
    """The words that all of these benchmarks take."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", nargs="+", choices=names, default=names)
    made.add_argument("--contenders", nargs="*", choices=kinds, default=kinds)
    made.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    made.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    made.add_argument("--rounds", type=int, default=11)
    made.add_argument("--python", default=sys.executable, help="of onnxruntime, openvino and ncnn")
    made.add_argument("--executorch", metavar="PYTHON", help="of executorch (default: that of --python)")
    made.add_argument("--litert", metavar="PYTHON", help="of LiteRT (default: that of --python)")
    made.add_argument("--avx2", action="store_true", help="hide instruction sets beyond AVX2 from all of them")
    made.add_argument("--folder", metavar="FOLDER", help="keeps what was exported and converted for the next time")
    return made


class Files:
    """One network's files, each made when it is first asked for.

    Attributes:
        missing: contender -> the package that its Python lacks.
    """

    def __init__(self, name: str, folder: Path, given: argparse.Namespace) -> None:
        self.name, self._folder, self._given = name, folder, given
        self.model = build(name)
        self.missing: dict[str, str] = {}

    def python(self, kind: str) -> str:
        """The Python that has a contender's packages."""
        if kind.startswith("torch"):
            return sys.executable
        special = {"executorch": self._given.executorch, "litert": self._given.litert}
        return special.get(kind.partition("-")[0]) or str(self._given.python)

    def lean(self, **how: Any) -> Path:
        """The ``.lean`` file; ``how`` goes to :func:`leanconv.export`."""
        return self._made("int8.lean" if how else "lean", lambda file: self._export(file, "lean", **how))

    def onnx(self) -> Path:
        """The ONNX file, for any batch."""
        return self._made("onnx", lambda file: self._export(file, "onnx"))

    def noise(self) -> torch.Tensor:
        """Inputs to calibrate int8 on: like those of the contenders."""
        return torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))

    def of(self, kind: str, batch: int) -> Path | None:
        """What a contender reads; None where the tools that make it are missing."""
        if kind in ("onnxruntime", "openvino"):
            return self.onnx()
        ending = conversion.KINDS[kind][0]
        if kind in ("executorch", "litert"):
            return self._converted(kind, self._program(batch), f"{batch}.{kind}{ending}")
        if kind == "litert-int8":
            source = self.of("litert", batch)
            return source and self._converted(kind, source, f"{batch}.{kind}{ending}", self._noise())
        return self._converted(kind, self.onnx(), f"{kind}{ending}", self._noise() if "int8" in kind else None)

    def _export(self, file: Path, form: str, **how: Any) -> None:
        leanconv.export(self.model, file, form, example=torch.randn(2, *SHAPE), **how)

    def _program(self, batch: int) -> Path:
        def make(file: Path) -> None:
            folded, _ = leanconv.fold(self.model, example=torch.randn(1, *SHAPE), check=False, latency=False)
            folded = folded.eval().to(memory_format=torch.contiguous_format)  # executorch refuses other weights
            before = os.environ.get("LEANCONV_NATIVE")
            os.environ["LEANCONV_NATIVE"] = "0"  # torch's operations alone
            try:
                torch.export.save(torch.export.export(folded, (torch.randn(batch, *SHAPE),)), file)
            finally:
                del os.environ["LEANCONV_NATIVE"]
                os.environ.update({"LEANCONV_NATIVE": before} if before is not None else {})

        return self._made(f"{batch}.pt2", make)

    def _noise(self) -> Path:
        import numpy as np

        return self._made("noise.npy", lambda file: np.save(file, self.noise().numpy()))

    def _converted(self, kind: str, source: Path, ending: str, noise: Path | None = None) -> Path | None:
        if kind in self.missing:
            return None
        words = [self.python(kind), "-W", "ignore", str(HERE / "conversion.py"), kind, str(source)]

        def make(file: Path) -> None:
            done = subprocess.run([*words, str(file), *([str(noise)] if noise else [])], capture_output=True, text=True)
            if done.returncode == 3:
                self.missing[kind] = json.loads(done.stdout.splitlines()[-1])["missing"]
            elif done.returncode:
                raise SystemExit(f"{kind} of {self.name}: its tools must make it, got\n{done.stderr[-3000:]}")

        made = self._made(ending, make)
        return None if kind in self.missing else made

    def _made(self, ending: str, make: Callable[[Path], None]) -> Path:
        file = self._folder / f"{self.name}.{ending}"
        if not file.exists():
            make(file)
        return file


def compared(
    files: Files, lean: Path, given: argparse.Namespace, *, more: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """A network in all cells of batch and threads, as a record.

    Args:
        files: the network's.
        lean: the ``.lean`` file that is ours.
        given: of :func:`parser`.
        more: further ``.lean`` files, by the name of the contender.
    """
    outputs: dict[int, list[float]] = {}

    def commands(setup: Mapping[str, Any]) -> dict[str, list[str]]:
        made = {name: command("leanconv", {**setup, "file": str(file)}) for name, file in (more or {}).items()}
        for kind in given.contenders:
            words = _words(files, kind, setup)
            if words:
                made[kind] = words
        return made

    def reference(setup: Mapping[str, Any]) -> list[float]:
        if setup["batch"] not in outputs:
            with torch.no_grad():
                outputs[setup["batch"]] = answers(files.model(torch.from_numpy(batch_of(setup))).numpy())
        return outputs[setup["batch"]]

    told = measure(
        lean,
        batch=given.batch,
        threads=given.threads,
        rounds=given.rounds,
        commands=commands,
        reference=reference,
    )
    missing = {**files.missing, **told.missing}
    cells = [_cell(files.name, one) for one in told.measurements]
    for contender, package in missing.items():
        print(f"  {contender} is left out: {package} is not installed")
    how = {"executor": told.executor, "isa": told.isa, "path": told.path}
    return {"macs": told.macs, **how, "missing": missing, "cells": cells}


def each(
    given: argparse.Namespace, made: Callable[[Files], dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The record of every network that was asked for, and the variables that hide instruction sets.

    Args:
        given: of :func:`parser`.
        made: makes a network's record; one that cannot be built is named and left out.
    """
    networks = {}
    with tempfile.TemporaryDirectory() as temporary, only_avx2(Path(temporary), given.avx2) as restricted:
        for name in given.only:
            try:
                files = Files(name, Path(given.folder or temporary), given)
            except ModuleNotFoundError as error:
                print(f"{name} is left out: {error}")
                continue
            networks[name] = made(files)
    return networks, restricted


def _words(files: Files, kind: str, setup: Mapping[str, Any]) -> list[str] | None:
    python = files.python(kind)
    if kind.startswith("torch"):
        return [python, str(HERE / "contender.py"), json.dumps({**setup, "kind": kind, "network": files.name})]
    file = files.of(kind, setup["batch"])
    if file is None:
        return None
    program = kind.partition("-")[0]
    if program in ("onnxruntime", "openvino"):
        return command(program, {**setup, "file": str(file)}, python)
    return [python, str(HERE / "contender.py"), json.dumps({**setup, "kind": program, "file": str(file)})]


def _cell(name: str, one: Any) -> dict[str, Any]:
    rows = {}
    for n, row in one.contenders.items():
        rows[n] = {
            "ms": round(row.median, 3),
            "low": round(row.low, 3),
            "high": round(row.high, 3),
            "by_ours": round(row.ratio, 3),
            "by_ours_interval": [round(row.ratio_low, 3), round(row.ratio_high, 3)],
            "of_peak": row.of_peak and round(row.of_peak, 3),
            "difference": row.difference,
            "cores": round(row.cores, 2),
            "version": row.version,
        }
    # One whose float32 answers are not torch's computes something else.
    rest = {
        n: row
        for n, row in one.contenders.items()
        if not n.startswith("leanconv") and ("int8" in n or row.difference <= AGREES)
    }
    best = min(rest, key=lambda n: rest[n].median, default=None)
    # Where other processes run, the system may leave two threads on one processor.
    waited = [n for n, row in one.contenders.items() if row.cores < 0.7 * one.threads]
    print(f"{name}, batch {one.batch}, {one.threads} threads; others took {one.others:.2f} cores", flush=True)
    for n, row in one.contenders.items():
        share = f"{100 * row.of_peak:5.1f} % of peak" if row.of_peak else ""
        odd = "" if n in rest or n.startswith("leanconv") else ", other answers"
        odd += ", threads waited" if n in waited else ""
        print(
            f"  {n:26} {row.median:8.2f} ms  {row.ratio:5.2f} x ours  {row.cores:4.2f} cores  "
            f"difference {row.difference:.0e}{odd}  {share}",
            flush=True,
        )
    return {
        "batch": one.batch,
        "threads": one.threads,
        "peak": one.peak,
        "int8_peak": one.int8_peak,
        "others": round(one.others, 2),
        "waited": waited,
        "best_other": best,
        "ratio_to_best": round(1 / rest[best].ratio, 3) if best else None,
        "contenders": rows,
    }


@contextmanager
def only_avx2(folder: Path, wanted: bool) -> Iterator[dict[str, str]]:
    """Within it, processes that start see a processor with AVX2 and no more; yields the variables that do it.

    CPUID itself is answered in the processor's place (``cpuid.c``), which acts on every program; what programs have of
    their own is set too.

    Raises:
        SystemExit: this machine cannot refuse CPUID, or has no C compiler.
    """
    if not wanted:
        yield {}
        return
    library = folder / "cpuid.so"
    compiler = os.environ.get("CC", "cc")
    try:
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, HERE / "cpuid.c"], check=True)
        subprocess.run([sys.executable, "-c", ""], check=True, env={**os.environ, "LD_PRELOAD": str(library)})
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"--avx2: needs a C compiler and a processor that can refuse CPUID, got {error}") from None
    variables = {
        "LD_PRELOAD": str(library),
        "LEANCONV_ISA": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield {**variables, "LD_PRELOAD": "cpuid.c"}
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def write(name: str, given: argparse.Namespace, record: Mapping[str, Any]) -> None:
    """Append the record of all networks to the results."""
    most = max((cell["others"] for n in record["networks"].values() for cell in n["cells"]), default=0.0)
    crowded = bench.crowded(most)
    print(crowded or "", bench.write(name, {"rounds": given.rounds, **record, "crowded": crowded}))
