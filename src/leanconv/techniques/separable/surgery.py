"""Separable convolution put into a network, and taken out."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from leanconv.contract import Attachment, Context, Edit, Refusal
from leanconv.techniques.separable.blocks import _Separable
from leanconv.techniques.separable.convert import DENSE, decompose, dense_fresh, fresh_separable, nearest_separable
from leanconv.techniques.separable.formulas import ratio
from leanconv.techniques.separable.layers import _Depthwise, _Pointwise
from leanconv.techniques.separable.options import Options

__all__ = ["apply", "attach", "candidates", "fold", "remove", "roles"]


def apply(ctx: Context, options: Options) -> list[Edit | Refusal]:
    """Put a separable layer in place of every dense convolution with a kernel above one.

    With ``init="keep"`` the weights are the nearest separable ones (an exact edit where the rank suffices, else an
    approximate one whose relative weight error is told), with ``init="fresh"`` they are drawn from ``ctx.seed``.

    Refused: fewer than ``min_channels`` inputs; one output (K = 1 is no candidate at all), where separable loses; a
    subclass of torch's convolution with a forward of its own; hooks and parametrizations; weights that others use.

    Args:
        ctx: needs the model alone.
        options: of the technique.
    """
    shared = _shared(ctx.model)
    proposals: list[Edit | Refusal] = []
    for paths, module in _modules(ctx.model):
        if not _is_candidate(module):
            continue
        why = _objection(module, options) or _bound(module, shared)
        proposals.append(Refusal(paths[0], why) if why else _edit(ctx, paths, module, options))
    return proposals


def candidates(model: nn.Module, options: Options | None = None) -> tuple[dict[str, list[str]], list[Refusal]]:
    """The convolutions that can become separable by a fit, grouped ones too, and those that cannot, with the reason.

    Args:
        model: any network.
        options: ``min_channels`` counts.

    Returns:
        First path -> every path of each layer; and the refusals.
    """
    options = options or Options()
    shared = _shared(model)
    found: dict[str, list[str]] = {}
    refusals = []
    for paths, module in _modules(model):
        if not _is_candidate(module, grouped=True):
            continue
        why = _objection(module, options) or _bound(module, shared)
        if why:
            refusals.append(Refusal(paths[0], why))
        else:
            found[paths[0]] = paths
    return found, refusals


def remove(ctx: Context) -> list[Edit | Refusal]:
    """Put dense convolutions back: exact where nothing stands between the two halves.

    With a norm or an activation between them no single convolution computes the same; the dense one then has drawn
    weights (``changes``). Depthwise and pointwise layers outside of separable ones become torch's, exactly.
    """
    shared = _shared(ctx.model)
    proposals: list[Edit | Refusal] = []
    inside = {
        id(child) for m in ctx.model.modules() if isinstance(m, _Separable) for child in m.modules() if child != m
    }
    for paths, module in _modules(ctx.model):
        if id(module) in inside or not isinstance(module, _Separable | _Depthwise | _Pointwise):
            continue
        bound = next((why for part in module.modules() if (why := _bound(part, shared))), None)
        proposals.append(Refusal(paths[0], bound) if bound else _removal(ctx, paths, module))
    return proposals


def fold(ctx: Context) -> list[Edit | Refusal]:
    """Nothing to fold: the one merger there is gives the dense convolution that the layer was made to avoid.

    ``remove`` does that on request, exactly. Folding a batch norm into the halves is the business of batchnorm.
    """
    why = "depthwise and pointwise merge only into the dense convolution that they save; `remove` does that on request"
    return [Refusal(paths[0], why) for paths, module in _modules(ctx.model) if isinstance(module, _Separable)]


def roles(model: nn.Module) -> Mapping[str, str]:
    """``depthwise`` for the weights of every convolution whose groups are its channels, ours or torch's."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for module in model.modules():
        if isinstance(module, _ConvNd) and is_depthwise(module):
            own = [p for name, p in module.named_parameters() if not name.endswith("bias") and ".bias." not in name]
            found.update({names[id(p)]: "depthwise" for p in own})
    return found


def attach(ctx: Context, options: Options) -> Attachment | None:
    """Nothing: a separable layer trains like any other."""
    return None


def is_depthwise(module: _ConvNd) -> bool:
    """Each channel on its own: groups = channels > 1, or one of our depthwise layers."""
    return isinstance(module, _Depthwise) or module.groups == module.in_channels > 1


def _modules(model: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    """Each module once, with every path that it stands under."""
    paths: dict[int, list[str]] = defaultdict(list)
    modules = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths[id(module)].append(path)
        modules[id(module)] = module
    for key, module in modules.items():
        yield paths[key], module


def _is_candidate(module: nn.Module, grouped: bool = False) -> bool:
    """A dense convolution with a kernel above one, of any class that is not ours; ``grouped``: with groups too."""
    if not isinstance(module, _ConvNd) or not isinstance(module, DENSE) or isinstance(module, _Depthwise | _Pointwise):
        return False
    mixes = module.groups == 1 or (grouped and module.groups < min(module.in_channels, module.out_channels))
    return mixes and prod(module.kernel_size) > 1


def _objection(module: Any, options: Options) -> str | None:
    if module.in_channels < options.min_channels:
        return f"{module.in_channels} input channels are fewer than min_channels={options.min_channels}"
    if module.out_channels == 1:
        return "with one output channel a separable layer has more parameters than the dense one"
    return None


def _bound(module: nn.Module, shared: set[int]) -> str | None:
    """Why a layer cannot be replaced: what hangs on it would be lost."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if hasattr(module, "parametrizations"):
        return "its weight is parametrized, which a new layer would lose"
    if any(getattr(module, kind, None) for kind in kinds):
        return "hooks on the layer would be lost with it"
    if any(id(p) in shared for p in module.parameters(recurse=False)):
        return "other layers use its parameters too"
    if isinstance(module, DENSE) and type(module) not in DENSE:
        ours = isinstance(module, _Depthwise | _Pointwise)
        return None if ours else f"{type(module).__name__} may compute more than nn.{_base(module)} does"
    return None


def _base(module: nn.Module) -> str:
    return next(kind.__name__ for kind in DENSE if isinstance(module, kind))


def _shared(model: nn.Module) -> set[int]:
    """Parameters that stand in more than one module."""
    owners: dict[int, set[int]] = defaultdict(set)
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners[id(p)].add(id(module))
    return {key for key, who in owners.items() if len(who) > 1}


def _edit(ctx: Context, paths: list[str], conv: Any, options: Options) -> Edit:
    act = nn.ReLU if options.act == "relu" else None
    m, seed = options.depth_multiplier, _seed(ctx, paths[0])
    share = ratio(conv.out_channels, conv.kernel_size, m)
    what = f"{'x'.join(map(str, conv.kernel_size))} convolution {conv.in_channels} -> {conv.out_channels}"
    why = f"{what} becomes separable (multiplier {m}): {share:.1%} of its weights"
    if options.init == "fresh":
        return Edit(dict.fromkeys(paths, fresh_separable(conv, m, act, seed)), f"{why}, drawn anew", "changes")
    error = decompose(conv.weight, m)[2]
    layer = nearest_separable(conv, m, act, seed)
    keys = {f"{path}.conv_pw.bias": f"{path}.bias" for path in paths} if conv.bias is not None else {}
    exact = act is None and error <= 4 * torch.finfo(conv.weight.dtype).eps
    claim: Any = "exact" if exact else "changes" if act is not None else "approximate"
    return Edit(dict.fromkeys(paths, layer), f"{why}, relative weight error {error:.2g}", claim, keys)


def _seed(ctx: Context, path: str) -> int:
    """A seed of its own for each layer, the same on every machine."""
    return zlib.crc32(f"{ctx.seed} {path}".encode())


def _removal(ctx: Context, paths: list[str], module: nn.Module) -> Edit:
    if not isinstance(module, _Separable):
        layer = _torchs(module)
        return Edit(dict.fromkeys(paths, layer), f"{type(module).__name__} becomes nn.{type(layer).__name__}", "exact")
    if module.between():
        layer = dense_fresh(module, _seed(ctx, paths[0]))
        why = "no dense convolution computes what it does with a norm or an activation between: weights drawn anew"
        return Edit(dict.fromkeys(paths, layer), why, "changes")
    layer, keys = module.dense(), {}
    if module.pointwise.bias is not None and module.depthwise.bias is None:
        new, old = "0.bias" if module.after() else "bias", _name(module, module.pointwise.bias)
        keys = {f"{path}.{new}": f"{path}.{old}" for path in paths}
    return Edit(
        dict.fromkeys(paths, layer), "separable weights multiplied out into one dense convolution", "exact", keys
    )


def _name(module: nn.Module, parameter: nn.Parameter) -> str:
    return next(name for name, p in module.named_parameters() if p is parameter)


def _torchs(module: Any) -> nn.Module:
    """torch's own layer with the very same parameters."""
    kind: Any = DENSE[module.dims - 1]
    with torch.random.fork_rng(devices=[]):
        layer = kind(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
            module.dilation, module.groups, module.bias is not None, module.padding_mode, "meta", module.weight.dtype,
        )  # fmt: skip
    layer.weight, layer.bias = module.weight, module.bias
    return layer.train(module.training)  # type: ignore[no-any-return]
