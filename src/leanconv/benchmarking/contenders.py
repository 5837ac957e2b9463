"""The process of one contender: ``python -m leanconv.benchmarking.contenders SETUP``.

SETUP is JSON: ``kind``, one of :data:`KINDS`; ``file``, a ``.lean`` file, an ONNX file or the folder of a run;
``batch``; ``shape``, (C, H, W); ``threads``. Only torch's contenders import torch. A missing package is told as
``{"missing": NAME}``; what is ready tells its version and its first answers (:func:`answers`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from leanconv.benchmarking import turns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

__all__ = ["KINDS", "answers", "batch_of", "main", "serve_torch"]

_TURNS = 8_000_000  # of the burst on each thread: 15 to 60 ms, beside which starting it is nothing
_ANSWERS = 16


def batch_of(setup: Mapping[str, Any]) -> Array:
    """The input of every contender: noise (N, C, H, W), float32."""
    import numpy as np

    shape = (setup["batch"], *setup["shape"])
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def answers(output: Any) -> list[float]:
    """The first numbers of an output, in torch's order of dimensions."""
    import numpy as np

    return [float(value) for value in np.asarray(output).reshape(-1)[:_ANSWERS]]


def _leanconv(setup: Mapping[str, Any]) -> None:
    import numpy as np

    from leanconv.runtime.engine import load

    engine = load(setup["file"], setup["threads"])
    x = batch_of(setup)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    about = {"executor": engine.executor, "answers": answers(engine(x)), "native": engine.executor == "native"}
    turns.serve(lambda: engine.run(last), about, more=lambda: {"layers": engine.times()})


def _peak(setup: Mapping[str, Any]) -> None:
    from leanconv import _native

    library = _native.load()
    if library is None:
        print(json.dumps({"missing": "the native library"}), flush=True)
        return
    threads, path = setup["threads"], _native.int8() if setup["kind"] == "int8 peak" else None

    def burst() -> int:
        # New threads each time: the system spreads them over processors, where it may leave those that wake on one.
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(library.burst, [_TURNS] * threads, [path] * threads))

    turns.serve(burst, {"macs": burst(), "isa": library.isa, "path": path})


def _onnxruntime(setup: Mapping[str, Any]) -> None:
    import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = setup["threads"], 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(setup["file"], options, providers=["CPUExecutionProvider"])
    x = {session.get_inputs()[0].name: batch_of(setup)}
    about = {"version": onnxruntime.__version__, "answers": answers(session.run(None, x)[0])}
    turns.serve(lambda: session.run(None, x), about)


def _openvino(setup: Mapping[str, Any]) -> None:
    import openvino  # type: ignore[import-not-found,import-untyped,unused-ignore]

    core = openvino.Core()
    model = core.read_model(setup["file"])
    x = batch_of(setup)
    model.reshape(list(x.shape))
    # Its own choice of precision is bfloat16 where the processor has it: another result, and not always a faster one.
    how = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": setup["threads"],
    }
    request = core.compile_model(model, "CPU", how).create_infer_request()
    found = request.infer([x], share_inputs=True)[0]
    about = {"version": openvino.__version__.partition("-")[0], "answers": answers(found)}
    turns.serve(lambda: request.infer([x], share_inputs=True, share_outputs=True), about)


def _torch(setup: Mapping[str, Any]) -> None:
    from leanconv.training.folder import open_run

    serve_torch(open_run(setup["file"]).model, setup)


def serve_torch(model: Any, setup: Mapping[str, Any]) -> None:
    """Time a network in torch, channels_last, in eval mode.

    Args:
        model: an ``nn.Module`` in float32 on the CPU.
        setup: as the module says; ``kind`` ``torch.compile`` compiles it with ``freezing``.
    """
    import torch

    torch.set_num_threads(setup["threads"])
    x = torch.from_numpy(batch_of(setup)).to(memory_format=torch.channels_last)
    model = model.eval().to(memory_format=torch.channels_last)
    call: Callable[[Any], Any] = model
    if setup["kind"] == "torch.compile":
        import torch._inductor.config

        torch._inductor.config.freezing = True
        call = torch.compile(model)
    with torch.no_grad():
        about = {"version": str(torch.__version__), "answers": answers(call(x).numpy())}
        turns.serve(lambda: call(x), about)


KINDS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "peak": _peak,
    "int8 peak": _peak,
    "leanconv": _leanconv,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torch": _torch,
    "torch.compile": _torch,
}
"""What a contender can be."""


def main(words: list[str]) -> None:
    """Serve what SETUP says until the input ends."""
    setup = json.loads(words[0])
    try:
        KINDS[setup["kind"]](setup)
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name or "a package"}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # threads of other programs may wait for ever
