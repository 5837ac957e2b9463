"""Depthwise convolution, each pass: torch in NCHW and in channels_last against native code, at each instruction set.

    python benchmarks/depthwise.py [--rounds 30] [--threads 1] [--isas avx512 avx2] [--only holes layers]

"holes": where torch's own code is slow. "layers": the depthwise layers of MobileNetV1 at batch 32. The instruction set
binds native code alone; ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 before the command bind torch to AVX2 too.
"chosen" says what leanconv runs by itself. Times are of the operations, without autograd.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import bench
import torch
import torch.nn.functional as F

from leanconv import _native, tune_allocator
from leanconv.kernels import choice, depthwise  # noqa: F401  (registers the operations)

Run = Callable[[], object]
PASSES = ("forward", "input", "weight")


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    dilation: int = 1
    multiplier: int = 1
    dtype: torch.dtype = torch.float32

    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        """Stride, padding that keeps the size at stride 1, dilation; an axis of one kernel row has none of them."""
        stride, dilation = ([v if k > 1 else 1 for k in self.kernel] for v in (self.stride, self.dilation))
        return stride, [d * (k // 2) for d, k in zip(dilation, self.kernel, strict=True)], dilation


IMAGE = (4, 128, 28, 28)
HOLES = {
    "3x3": Case(IMAGE),
    "5x5": Case(IMAGE, (5, 5)),
    "7x7": Case(IMAGE, (7, 7)),
    "7x7 bf16": Case(IMAGE, (7, 7), dtype=torch.bfloat16),
    "3x3 bf16": Case(IMAGE, dtype=torch.bfloat16),
    "3x3 dilation 2": Case(IMAGE, dilation=2),
    "3x3 multiplier 2": Case(IMAGE, multiplier=2),
    "3x3 stride 2": Case(IMAGE, stride=2),
    "1-D 31": Case((4, 256, 1, 1000), (1, 31)),
}
LAYERS = {
    f"{c} at {s}, stride {stride}": Case((32, c, s, s), stride=stride)
    for c, s, stride in (
        (32, 112, 1),
        (64, 112, 2),
        (128, 56, 1),
        (128, 56, 2),
        (256, 28, 1),
        (256, 28, 2),
        (512, 14, 1),
        (512, 14, 2),
        (1024, 7, 1),
    )
}


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def torch_runs(case: Case, form: torch.memory_format) -> dict[str, Run]:
    x, weight, grad = tensors(case, form)
    stride, padding, dilation = case.geometry()
    groups = case.shape[1]

    def backward(*mask: bool) -> Run:
        return lambda: torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
        )

    return {
        "forward": lambda: F.conv2d(x, weight, None, stride, padding, dilation, groups),
        "input": backward(True, False, False),
        "weight": backward(False, True, False),
    }


def native_runs(case: Case, isa: str) -> dict[str, Run]:
    x, weight, grad = tensors(case, torch.channels_last)
    stride, (h, w), dilation = case.geometry()
    ops, geometry = torch.ops.leanconv, (stride, [h, h, w, w], dilation)

    def forced(run: Run) -> Run:
        def call() -> object:
            with environment(LEANCONV_NATIVE="1", LEANCONV_ISA=isa):
                return run()

        return call

    return {
        "forward": forced(lambda: ops.depthwise_conv2d(x, weight, None, *geometry)),
        "input": forced(lambda: ops.depthwise_conv2d_input(grad, weight, list(x.shape), *geometry)),
        "weight": forced(lambda: ops.depthwise_conv2d_weight(grad, x, list(case.kernel), *geometry, False)),
    }


def tensors(case: Case, form: torch.memory_format) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(case.shape).to(case.dtype).contiguous(memory_format=form)
    weight = torch.randn(case.shape[1] * case.multiplier, 1, *case.kernel).to(case.dtype)
    y = F.conv2d(x, weight, None, *case.geometry(), case.shape[1])
    return x, weight, torch.randn(y.shape).to(case.dtype).contiguous(memory_format=form)


def chosen(case: Case, step: str) -> str:
    stride, _, dilation = case.geometry()
    geometry = (*case.kernel, *stride, *dilation, case.multiplier)
    return choice.decide(f"depthwise_{step}", case.shape, case.dtype, "cpu", geometry).implementation


def measure(cases: dict[str, Case], isas: list[str], rounds: int, nchw: bool) -> dict[str, dict[str, object]]:
    record: dict[str, dict[str, object]] = {}
    for name, case in cases.items():
        runs = {"torch": torch_runs(case, torch.channels_last)}
        if nchw:
            runs["torch NCHW"] = torch_runs(case, torch.contiguous_format)
        runs |= {isa: native_runs(case, isa) for isa in isas}
        for step in PASSES:
            trial = bench.interleave({who: run[step] for who, run in runs.items()}, 2, 1)
            few = max(5, min(rounds, int(1.0 / max(trial.values()))))
            medians = bench.interleave({who: run[step] for who, run in runs.items()}, few, 1)
            times = "  ".join(f"{who} {1e3 * s:8.3f} ({medians['torch'] / s:5.2f}x)" for who, s in medians.items())
            print(f"{name:22} {step:8} {times}  chosen: {chosen(case, step)}", flush=True)
            record[f"{name}, {step}"] = {
                "median_ms": {who: round(1e3 * s, 4) for who, s in medians.items()},
                "chosen": chosen(case, step),
            }
    return record


def related(isas: list[str], rounds: int) -> dict[str, float]:
    """Native code against itself, interleaved: what dilation 2, multiplier 2 and bfloat16 cost."""
    pairs = {"dilation 2": ("3x3 dilation 2", "3x3"), "multiplier 2": ("3x3 multiplier 2", "3x3")}
    pairs["bfloat16"] = ("7x7 bf16", "7x7")
    found = {}
    for isa in isas:
        for name, (more, less) in pairs.items():
            for step in PASSES:
                two = {which: native_runs(HOLES[which], isa)[step] for which in (more, less)}
                medians = bench.interleave(two, 3 * rounds)
                found[f"{isa}, {name}, {step}"] = round(medians[more] / medians[less], 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isas", nargs="+", default=None)
    parser.add_argument("--only", nargs="+", choices=("holes", "layers"), default=["holes", "layers"])
    parser.add_argument("--dry", action="store_true", help="append nothing")
    given = parser.parse_args()
    library = _native.load()
    if library is None:
        raise SystemExit(_native.explain())
    tuned = tune_allocator()
    torch.set_num_threads(given.threads)
    isas = given.isas or [isa for isa in ("avx512", "avx2", "neon") if isa in library.isas]
    record: dict[str, object] = {"rounds": given.rounds, "tuned_malloc": tuned.tuned}
    record["torch_isa"] = os.environ.get("ONEDNN_MAX_CPU_ISA")
    with torch.no_grad():
        if "holes" in given.only:
            record["holes"] = measure(HOLES, isas, given.rounds, True)
            record["related"] = related(isas, given.rounds)
            print(record["related"])
        if "layers" in given.only:
            record["layers"] = measure(LAYERS, isas, given.rounds, False)
    print(bench.crowded() or "the machine was free")
    if not given.dry:
        print(f"appended to {bench.write('depthwise', record)}")


if __name__ == "__main__":
    main()
