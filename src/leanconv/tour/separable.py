"""Figures 2-11 and 2-12 from a real layer on a real image, and the ladder to separable (rows S17 to S19, S26, S27)."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from leanconv import data, models
from leanconv.accounting import cost
from leanconv.errors import Error
from leanconv.graph import evaluating
from leanconv.techniques import separable
from leanconv.techniques.separable import SeparableConv2d
from leanconv.training import images_of, open_run

__all__ = ["counted", "figures_2_11_and_2_12", "ladder", "picture"]

_CHANNELS = 6
_SIDE = 32


def figures_2_11_and_2_12(run: str | Path | None = None) -> dict[str, Any]:
    """One separable convolution at work: what comes in, each channel's own kernel, and the weighted sum.

    Args:
        run: the folder of a run whose network and whose image are taken; None: a small network, trained here.

    Returns:
        ``image``; ``channels``: the channels that weigh most in one output map, each with ``input``, ``kernel``,
        ``filtered`` (pictures) and ``weight``; ``output``: that map; ``difference`` between it and the weighted sum
        over all channels; ``cin``, ``cout``, ``k``; ``params`` and ``macs``: ``standard`` and ``separable``.

    Raises:
        Error: the folder is no run, or its network has no separable convolution.
    """
    model, x, pixels, whose = _trained() if run is None else _of_run(run)
    found = [m for m in model.modules() if isinstance(m, SeparableConv2d) and m.depthwise.in_channels > 1]
    if not found:
        raise Error(f"tour: the network of the run must have a separable convolution, got {run} without one")
    layer = found[0]
    seen: dict[str, Tensor] = {}
    handles = [
        layer.depthwise.register_forward_hook(lambda _m, a, o: seen.update(given=a[0], filtered=o)),
        layer.pointwise.register_forward_hook(lambda _m, _a, o: seen.update(put=o)),
    ]
    try:
        with evaluating(model):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    given, put = seen["given"][0].double(), seen["put"][0].double()
    cin, cout = given.shape[0], put.shape[0]
    filtered = seen["filtered"][0].double()
    mixing = layer.pointwise.weight.detach().double().flatten(1)
    channel = int(put.flatten(1).std(1).argmax())
    heaviest = (mixing[channel].abs() * filtered.flatten(1).std(1)).argsort(descending=True)[:_CHANNELS].tolist()
    summed = torch.einsum("c,chw->hw", mixing[channel], filtered)
    if layer.pointwise.bias is not None:
        summed = summed + layer.pointwise.bias.detach().double()[channel]
    kernels = layer.depthwise.weight.detach().double()
    k = int(kernels[0, 0].numel())
    return {
        "whose": whose,
        "image": picture(pixels, signed=False),
        "channels": [
            {
                "number": c,
                "input": picture(given[c].numpy()),
                "kernel": picture(kernels[c, 0].numpy()),
                "filtered": picture(filtered[c].numpy()),
                "weight": float(mixing[channel, c]),
            }
            for c in heaviest
        ],
        "output": picture(put[channel].numpy()),
        "channel": channel,
        "difference": float((summed - put[channel]).abs().max() / put[channel].abs().max()),
        "cin": cin,
        "cout": cout,
        "k": k,
        "side": int(kernels.shape[-1]),
        **counted(cin, cout, int(kernels.shape[-1]), given.shape[-1]),
    }


def counted(cin: int, cout: int, side: int, size: int) -> dict[str, Any]:
    """Parameters and multiply-adds of one layer in both forms, as executed on a map of ``size`` x ``size``."""
    x = torch.zeros(1, cin, size, size)
    standard = cost(nn.Conv2d(cin, cout, side, padding=side // 2, bias=False), x)
    apart = cost(SeparableConv2d(cin, cout, side, padding=side // 2, bias=False), x)
    return {
        "params": {"standard": standard.params, "separable": apart.params},
        "macs": {"standard": standard.macs, "separable": apart.macs},
    }


def ladder() -> dict[str, Any]:
    """From 3 to 16 maps of 32 x 32: fully connected, kernels of their own at each place, shared, separable.

    Returns:
        ``rows``: name, parameters and multiply-adds; ``growth``: both counts of 3 x 3 layers by their channels;
        ``losing``: forms in which the separable convolution has more parameters.
    """
    names = {"fully connected": "connected", "unshared": "unshared", "standard": "standard", "separable": "separable"}
    rungs = separable.ladder(3, 16, (3, 3), (_SIDE, _SIDE), padding=1)
    rows = [{"name": names[rung.name], "params": rung.parameters, "macs": rung.macs} for rung in rungs]
    growth = [{"channels": c, **counted(c, c, 3, 4)["params"]} for c in (8, 16, 32, 64, 128, 256, 512)]
    tried = [(i, o, k, counted(i, o, k, 4)["params"]) for i, o, k in ((32, 64, 1), (64, 1, 1), (32, 1, 3), (16, 1, 5))]
    losing = [{"cin": i, "cout": o, "side": k, **n} for i, o, k, n in tried if n["separable"] > n["standard"]]
    return {"rows": rows, "growth": growth, "losing": losing}


def picture(values: NDArray[Any], signed: bool = True) -> str:
    """An array as a PNG in a ``data:`` address; signed: blue below zero, white at zero, vermilion above."""
    if not signed:
        array = np.asarray(values, np.uint8)
        image = Image.fromarray(array)
    else:
        scaled = np.clip(values / (np.abs(values).max() or 1.0), -1, 1)[..., None]
        white, high, low = np.full(3, 255.0), np.array([213.0, 94, 0]), np.array([0.0, 114, 178])
        colours = white + scaled.clip(0) * (high - white) - scaled.clip(None, 0) * (low - white)
        image = Image.fromarray(colours.round().astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _trained(seed: int = 0) -> tuple[nn.Module, Tensor, NDArray[Any], str]:
    """A small network after one pass over 2,000 images of the package, and an image that it did not learn from."""
    whole = data.load("demo")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.plain(dropout=False, batchnorm=True, separable=True, num_classes=10, in_chans=1, width=16)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for i, batch in enumerate(data.steps(whole, 64, epoch=0, seed=seed, policy="none")):
        if i == 32:
            break
        loss = nn.functional.cross_entropy(model(batch[0].images), batch[0].labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if whole.test is None:
        raise Error("tour: the images of the package must have a test split, got none")
    pixels = whole.test.images[0]
    return model.eval(), data.normalise(pixels[None], whole.mean, whole.std), pixels[0].numpy(), ""


def _of_run(folder: str | Path) -> tuple[nn.Module, Tensor, NDArray[Any], str]:
    run = open_run(folder)
    images = images_of(run)
    pixels = (images.test or images.val).images[0]
    shown = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
    return run.model, data.normalise(pixels[None], run.header.mean, run.header.std), shown, str(run.folder)
