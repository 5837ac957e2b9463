"""Every shape that real networks have against torch: what leanconv runs there by its own choice, as its layers do.

    python benchmarks/shapes.py [--rounds 15] [--limit 1.03] [--threads 2] [--only depthwise norm] [--every 1] [--dry]
    pip install --no-deps pytorchcv==0.0.67 && pip install -c constraints.txt requests transformers
    python benchmarks/shapes.py --collect   # writes benchmarks/shapes/*.txt anew

The shapes are drawn from those of the depthwise layers and of the batch norms (with the activation that follows) of the
networks below, with random weights, at their resolution and a batch of 4; one a line, with the networks that have it.
Each is measured in inference (forward in eval mode) and in training (forward and all gradients), float32 and
channels_last, with a tuned allocator: leanconv's layer against torch's, where torch has ReLU and ReLU6 in place, as
networks do. A round runs both once, the first one in turn; a ratio is the median over the rounds of leanconv's time by
torch's in the same round. Ratios above the limit are measured again with five times the rounds, and these count.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench
import torch
from torch import Tensor, nn

import leanconv
from leanconv.kernels import choice
from leanconv.kernels.norm import ACTIVATIONS
from leanconv.techniques.batchnorm import BatchNorm2d
from leanconv.techniques.separable import DepthwiseConv2d

FILES = Path(__file__).parent / "shapes"
BATCH, DRAWN = 4, 100
STEADY = 0.3  # seconds that a measurement takes at least: short operations get more rounds
PAIRS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "silu": nn.SiLU}

# --- the shapes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Depthwise:
    """N, C, H, W, then kernel, stride, padding and dilation, two numbers each, and the channel multiplier."""

    sizes: tuple[int, ...]

    @classmethod
    def read(cls, words: list[str]) -> Depthwise:
        return cls(tuple(map(int, words)))

    def __str__(self) -> str:
        return " ".join(map(str, self.sizes))

    @property
    def input(self) -> tuple[int, ...]:
        return self.sizes[:4]

    def layers(self) -> tuple[nn.Module, nn.Module]:
        """Ours and torch's, with the same weights."""
        kernel, stride, padding, dilation = (self.sizes[i : i + 2] for i in (4, 6, 8, 10))
        channels, m = self.sizes[1], self.sizes[12]
        arguments = (kernel, stride, padding, dilation)
        torchs = nn.Conv2d(channels, channels * m, *arguments, groups=channels, bias=False)  # type: ignore[arg-type]
        ours = DepthwiseConv2d(channels, *arguments, bias=False, depth_multiplier=m)
        ours.load_state_dict(torchs.state_dict())
        return ours, torchs

    def chosen(self, mode: str) -> str:
        """What leanconv runs in each pass."""
        geometry = (*self.sizes[4:8], *self.sizes[10:13])
        passes = ("forward", "input", "weight") if mode == "training" else ("forward",)
        found = (choice.decide(f"depthwise_{p}", self.input, torch.float32, "cpu", geometry) for p in passes)
        return " ".join(one.implementation for one in found)


@dataclass(frozen=True)
class Norm:
    """N, C, H, W and the activation."""

    input: tuple[int, ...]
    act: str

    @classmethod
    def read(cls, words: list[str]) -> Norm:
        return cls(tuple(map(int, words[:4])), words[4])

    def __str__(self) -> str:
        return " ".join(map(str, (*self.input, self.act)))

    def layers(self) -> tuple[nn.Module, nn.Module]:
        """Ours and torch's."""
        channels = self.input[1]
        torchs: nn.Module = nn.BatchNorm2d(channels)
        if self.act != "none":
            inplace = self.act.startswith("relu")  # the others would copy what they overwrite
            torchs = nn.Sequential(torchs, PAIRS[self.act](inplace))
        return BatchNorm2d(channels, activation=None if self.act == "none" else self.act), torchs

    def chosen(self, mode: str) -> str:
        """What leanconv runs."""
        learns = int(mode == "training")
        geometry = (learns, learns, ACTIVATIONS.index(self.act))
        return choice.decide("norm_act", self.input, torch.float32, "cpu", geometry).implementation


KINDS: dict[str, Any] = {"depthwise": Depthwise, "norm": Norm}


def read(kind: str) -> list[Any]:
    lines = (FILES / f"{kind}.txt").read_text().splitlines()
    return [KINDS[kind].read(line.split("#")[0].split()) for line in lines if line.split("#")[0].strip()]


# --- where they come from --------------------------------------------------------------------------------------------

# Of pytorchcv, with the pixels of their images.
_PYTORCHCV = {
    224: """
        mobilenet_w1 mobilenet_wd4 fdmobilenet_w1 mobilenetv2_w1 mobilenetv2b_w1 mobilenetv3_large_w1
        mobilenetv3_small_w1 efficientnet_b0 efficientnet_b1b mnasnet_b1 mnasnet_a1 mnasnet_small proxylessnas_cpu
        proxylessnas_mobile fbnet_cb spnasnet mixnet_s mixnet_m ghostnet shufflenetv2_w1 shufflenet_g3_w1
        menet456_24x1_g3
        igcv3_w1 nasnet_4a1056 darts dicenet_w1 resnet18 resnet50 seresnet50 preresnet18 resnext50_32x4d densenet121
        vovnet39 dla34 bninception darknet53 hardnet39ds peleenet dpn68 hrnet_w18_small_v1
        espnetv2_w1
    """,
    299: "xception inceptionv3",
    32: "resnet20_cifar10 wrn16_10_cifar10 densenet40_k12_cifar10 preresnet20_cifar10",
    256: "simplepose_mobile_mobilenet_w1_coco cgnet_cityscapes dabnet_cityscapes edanet_cityscapes fpenet_cityscapes",
}
_TRANSFORMERS = {
    "ConvNext": 224, "ConvNextV2": 224, "Cvt": 224, "MobileViT": 256, "MobileViTV2": 256, "SwiftFormer": 224,
    "PvtV2": 224, "RegNet": 224, "MobileNetV2": 224,
}  # fmt: skip


def networks() -> Iterator[tuple[str, nn.Module, int]]:
    """Name, network and pixels of its images."""
    from pytorchcv.model_provider import get_model

    yield "leanconv mobilenet_v1", leanconv.models.mobilenet_v1(), 224
    yield "leanconv mobilenet_v1", leanconv.models.mobilenet_v1(), 128
    for pixels, names in _PYTORCHCV.items():
        for name in names.split():
            yield name, get_model(name), pixels
    import transformers

    for kind, pixels in _TRANSFORMERS.items():
        config = getattr(transformers, f"{kind}Config")()
        yield f"{kind} (transformers)", getattr(transformers, f"{kind}Model")(config), pixels


def collect() -> None:
    found: dict[str, dict[Any, list[str]]] = {kind: defaultdict(list) for kind in KINDS}
    for name, model, pixels in networks():
        try:
            shapes = shapes_of(model, torch.randn(BATCH, 3, pixels, pixels))
        except (RuntimeError, ValueError, AttributeError) as error:
            print(f"{name}: left out, {error}")
            continue
        for shape in shapes:
            names = found["depthwise" if isinstance(shape, Depthwise) else "norm"][shape]
            if name not in names:
                names.append(name)
        print(name, {kind: len(all_) for kind, all_ in found.items()}, flush=True)
    for kind, all_ in found.items():
        drawn = random.Random(0).sample(sorted(all_, key=str), min(DRAWN, len(all_)))
        lines = [f"# {KINDS[kind].__doc__} {len(drawn)} drawn of {len(all_)} that the networks have."]
        for shape in sorted(drawn, key=lambda s: [*s.input[1:], str(s)]):
            names = all_[shape]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{shape}  # {', '.join(names[:3])}{more}")
        FILES.mkdir(exist_ok=True)
        (FILES / f"{kind}.txt").write_text("\n".join(lines) + "\n")


@torch.no_grad()
def shapes_of(model: nn.Module, x: Tensor) -> list[Any]:
    """The shapes of its depthwise layers and batch norms, as an execution meets them."""
    found: list[Any] = []
    last: dict[int, tuple[Tensor, tuple[int, ...]]] = {}  # output of a norm -> itself, so that its id stays, and shape

    def norm(module: nn.Module, given: Any, y: Tensor) -> None:
        if y.dim() == 4:
            last[id(y)] = (y, tuple(y.shape))
            found.append(Norm(tuple(y.shape), "none"))

    def act(module: nn.Module, given: Any) -> None:
        x = given[0]
        name = type(module).__name__.lower()
        known = {"relu": "relu", "relu6": "relu6", "hardswish": "hardswish", "hswish": "hardswish", "silu": "silu",
                 "swish": "silu"}.get(name)  # fmt: skip
        if known and id(x) in last:
            del last[id(x)]
            found[max(i for i, s in enumerate(found) if s == Norm(tuple(x.shape), "none"))] = Norm(
                tuple(x.shape), known
            )

    def conv(module: nn.Conv2d, given: Any) -> None:
        shape = tuple(given[0].shape)
        if module.groups == module.in_channels > 1 and len(shape) == 4 and not isinstance(module.padding, str):
            m = module.out_channels // module.in_channels
            pairs = (*module.kernel_size, *module.stride, *module.padding, *module.dilation)
            found.append(Depthwise((*shape, *pairs, m)))

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | BatchNorm2d):
            module.register_forward_hook(norm)
        elif isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(conv)
        elif not list(module.children()):
            module.register_forward_pre_hook(act)
    model.eval()(x)
    return found


# --- the measurement -------------------------------------------------------------------------------------------------

Run = Callable[[], object]


def runs(shape: Any) -> dict[str, tuple[Run, Run]]:
    """Ours and torch's in inference and in training."""
    torch.manual_seed(0)
    x = torch.randn(shape.input).to(memory_format=torch.channels_last)
    ours, torchs = shape.layers()
    with torch.no_grad():
        y = torchs(x)
    grad = torch.randn(y.shape).to(memory_format=torch.channels_last)
    found: dict[str, tuple[Run, Run]] = {}

    def inference(layer: nn.Module) -> Run:
        def run() -> object:
            with torch.no_grad():
                return layer(x)

        return run

    same = x.clone(memory_format=torch.preserve_format).requires_grad_()  # one for both: where it lies in memory counts

    def training(layer: nn.Module) -> Run:
        learned = [same, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(same), learned, grad)

    for layer in (ours, torchs):
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    eval_ = tuple(shape.layers())
    found["inference"] = (inference(eval_[0].eval()), inference(eval_[1].eval()))
    found["training"] = (training(ours.train()), training(torchs.train()))
    return found


def paired(ours: Run, torchs: Run, rounds: int, warmup: int = 3) -> tuple[float, float, int]:
    """Median ratio of the two in one round, torch's median seconds, and how many rounds there were."""
    start = time.perf_counter()
    for _ in range(warmup):
        ours(), torchs()
    one = (time.perf_counter() - start) / warmup
    rounds = max(rounds, min(20 * rounds, int(STEADY * rounds / 15 / one)))
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            (ours, torchs)[which]()
            times[which].append(time.perf_counter() - start)
    return statistics.median(a / b for a, b in zip(*times, strict=True)), statistics.median(times[1]), rounds


def measure(kind: str, shapes: list[Any], rounds: int, limit: float) -> list[dict[str, Any]]:
    rows = []
    for shape in shapes:
        for mode, (ours, torchs) in runs(shape).items():
            ratio, seconds, count = paired(ours, torchs, rounds)
            row: dict[str, Any] = {"kind": kind, "shape": str(shape), "mode": mode, "chosen": shape.chosen(mode)}
            if ratio > limit:
                row["first"] = round(ratio, 3)
                ratio, seconds, count = paired(ours, torchs, 5 * rounds)
            row |= {"ratio": round(ratio, 3), "torch_ms": round(1e3 * seconds, 4), "rounds": count}
            rows.append(row)
            again = f" (first {row['first']:.3f})" if "first" in row else ""
            print(
                f"{kind:9} {shape!s:44} {mode:9} {row['torch_ms']:9.3f} ms  {ratio:6.3f}{again}  {row['chosen']}"
                f"{'  ABOVE' if ratio > limit else ''}",
                flush=True,
            )
    return rows


def summary(rows: list[dict[str, Any]], limit: float) -> dict[str, Any]:
    """Per kind and mode: how many, how many within the limit, worst, median and best ratio."""
    found: dict[str, Any] = {}
    for key in sorted({(r["kind"], r["mode"]) for r in rows}):
        ratios = sorted(r["ratio"] for r in rows if (r["kind"], r["mode"]) == key)
        found[", ".join(key)] = {
            "shapes": len(ratios),
            "within": sum(r <= limit for r in ratios),
            "worst": ratios[-1],
            "median": round(statistics.median(ratios), 3),
            "best": ratios[0],
        }
    shapes = defaultdict(list)
    for r in rows:
        shapes[r["kind"], r["shape"]].append(r["ratio"])
    return found | {"shapes": len(shapes), "within in both": sum(max(v) <= limit for v in shapes.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="store_true", help="write the lists of shapes and measure nothing")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=1.03)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--every", type=int, default=1, help="every so many shapes only")
    parser.add_argument("--dry", action="store_true", help="append nothing")
    given = parser.parse_args()
    if given.collect:
        return collect()
    tuned = leanconv.tune_allocator()
    torch.set_num_threads(given.threads)
    start = time.perf_counter()
    rows = []
    for kind in given.only:
        rows += measure(kind, read(kind)[:: given.every], given.rounds, given.limit)
    found = summary(rows, given.limit)
    for name, values in found.items():
        print(name, values)
    print(bench.crowded() or "the machine was free", f"{time.perf_counter() - start:.0f} s")
    if not given.dry:
        record = {"limit": given.limit, "tuned_malloc": tuned.tuned, "summary": found, "rows": rows}
        print(f"appended to {bench.write('shapes', record)}")
    return None


if __name__ == "__main__":
    main()
