"""The process of a contender that `leanconv bench` does not know: `python benchmarks/contender.py SETUP`.

SETUP is JSON as of `leanconv.benchmarking.contenders`; `kind` is one of :data:`KINDS`, `file` what `conversion.py`
made, or for torch `network` one of `contending.NAMES`. Each runs in what its makers have as the fastest setting for
float32: LiteRT and executorch on XNNPACK, ncnn with packed layouts, Winograd and sgemm. Inputs and outputs stay as the
program wants them: their transposition is not in the time.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from leanconv.benchmarking import turns
from leanconv.benchmarking.contenders import answers, batch_of, serve_torch


def _serve(package: str, step: Callable[[], Any]) -> None:
    """Answers are those of a second pass: what a program keeps between passes must not change them."""
    step()
    turns.serve(step, {"version": importlib.metadata.version(package), "answers": answers(step())})


def _ncnn(setup: Mapping[str, Any]) -> None:
    import ncnn  # type: ignore[import-not-found]
    import numpy as np

    net = ncnn.Net()
    net.opt.num_threads = setup["threads"]
    ncnn.set_omp_num_threads(setup["threads"])
    for name in dir(net.opt):  # half precision is on by default
        if name.startswith(("use_fp16", "use_bf16", "use_vulkan")):
            setattr(net.opt, name, False)
    if net.load_param(setup["file"]) or net.load_model(setup["file"].removesuffix(".param") + ".bin"):
        raise SystemExit(f"ncnn: the file must be one of ncnn's, got {setup['file']}")
    images = [ncnn.Mat(image).clone() for image in batch_of(setup)]
    into, out = net.input_names()[0], net.output_names()[0]

    def step() -> Any:  # a network of ncnn takes one image
        found = []
        for image in images:
            run = net.create_extractor()
            run.input(into, image)
            found.append(run.extract(out)[1])
        return np.stack([np.array(one) for one in found])

    _serve("ncnn", step)


def _litert(setup: Mapping[str, Any]) -> None:
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-not-found]

    net = Interpreter(setup["file"], num_threads=setup["threads"])
    net.allocate_tensors()
    into, out = net.get_input_details()[0], net.get_output_details()[0]
    x = np.ascontiguousarray(batch_of(setup).transpose(0, 2, 3, 1))
    if into["dtype"] != np.float32:
        scale, zero = into["quantization"]
        limits = np.iinfo(into["dtype"])
        x = np.clip(np.rint(x / scale) + zero, limits.min, limits.max).astype(into["dtype"])
    net.set_tensor(into["index"], x)

    def step() -> Any:
        net.invoke()
        found = net.get_tensor(out["index"])
        if found.dtype == np.float32:
            return found
        scale, zero = out["quantization"]
        return (found.astype(np.float32) - zero) * scale

    _serve("ai-edge-litert", step)


def _executorch(setup: Mapping[str, Any]) -> None:
    import torch
    from executorch.extension.pybindings import portable_lib as library  # type: ignore[import-not-found]

    torch.set_num_threads(setup["threads"])
    library._unsafe_reset_threadpool(setup["threads"])
    net = library._load_for_executorch(setup["file"])
    inputs = (torch.from_numpy(batch_of(setup)),)
    _serve("executorch", lambda: net.run_method("forward", inputs)[0])


def _torch(setup: Mapping[str, Any]) -> None:
    import contending

    serve_torch(contending.build(setup["network"]), setup)


KINDS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "ncnn": _ncnn,
    "litert": _litert,
    "executorch": _executorch,
    "torch": _torch,
    "torch.compile": _torch,
}
"""What a contender can be."""


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    try:
        KINDS[given["kind"]](given)
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name or "a package"}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # threads of other programs may wait for ever
