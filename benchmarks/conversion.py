"""A network as another program wants it, made by that program's own tools in its own Python.

    PYTHON benchmarks/conversion.py KIND SOURCE TARGET [NOISE]

KIND and SOURCE: ncnn of an ONNX file (pnnx); executorch and litert of what `torch.export.save` wrote
(executorch; litert-torch); onnxruntime-int8, onnxruntime-int8-qoperator, openvino-int8 and openvino-int8-mixed of an
ONNX file (onnxruntime.quantization; nncf); litert-int8 of a .tflite file (ai-edge-quantizer). NOISE is a .npy file of
inputs (N, C, H, W), to calibrate on. A missing package ends it with `{"missing": NAME}` and code 3.

Every int8 network has weights in signed bytes with a scale for each channel. onnxruntime's maps are unsigned bytes:
signed ones took as long or up to 3.5 times as long on a processor with AVX-512 VNNI.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

# What executorch may do without XNNPACK: no arithmetic.
_FREE = ("call_delegate", "getitem", "copy", "clone")


def ncnn(source: Path, target: Path, noise: Path | None) -> None:
    # It writes beside its input, under that name.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(shutil.copy(source, Path(folder) / "net.onnx"))
        found = importlib.util.find_spec("pnnx")  # importing it would need torch, its program does not
        if found is None or found.origin is None:
            raise ModuleNotFoundError(name="pnnx")
        pnnx = Path(found.origin).with_name("pnnx")
        shape = ",".join(map(str, _shape(source)))
        subprocess.run([pnnx, file, f"inputshape=[1,{shape}]", "fp16=0"], check=True, capture_output=True, cwd=folder)
        for ending in ("param", "bin"):
            shutil.move(file.with_name(f"net.ncnn.{ending}"), target.with_suffix(f".{ending}"))


def executorch(source: Path, target: Path, noise: Path | None) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.load(source)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    calls = {str(n.target) for n in lowered.exported_program().graph.nodes if n.op == "call_function"}
    if left := {call for call in calls if not any(free in call for free in _FREE)}:
        raise SystemExit(f"executorch: XNNPACK must do all arithmetic, got {', '.join(sorted(left))} beside it")
    target.write_bytes(lowered.to_executorch().buffer)


def litert(source: Path, target: Path, noise: Path | None) -> None:
    import litert_torch
    import torch

    program = torch.export.load(source)
    example = program.example_inputs[0][0].permute(0, 2, 3, 1).contiguous()
    litert_torch.convert(_ChannelsLast.of(program.module()), (example,)).export(str(target))


class _ChannelsLast:
    """A module that reads NHWC, as kernels of LiteRT do; made late, since only litert has torch."""

    @staticmethod
    def of(model: Any) -> Any:
        import torch

        class Module(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.model(x.permute(0, 3, 1, 2))

        return Module()


def litert_int8(source: Path, target: Path, noise: Path | None) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    (key, names), *_ = Interpreter(str(source)).get_signature_list().items()
    quantise = quantizer.Quantizer(str(source))
    quantise.load_quantization_recipe(recipe.static_wi8_ai8())
    batch = int(Interpreter(str(source)).get_input_details()[0]["shape"][0])
    x = _noise(noise).transpose(0, 2, 3, 1)
    inputs = [{names["inputs"][0]: x.take(range(i, i + batch), 0, mode="wrap")} for i in range(0, len(x), batch)]
    quantise.quantize(quantise.calibrate({key: inputs})).export_model(str(target), overwrite=True)


def onnxruntime_int8(source: Path, target: Path, noise: Path | None, form: str) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    (name,) = (x.name for x in onnx.load(str(source), load_external_data=False).graph.input)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(_noise(noise))

        def get_next(self) -> dict[str, Any] | None:
            x = next(self.left, None)
            return None if x is None else {name: x[None]}

    with tempfile.TemporaryDirectory() as folder:
        prepared = f"{folder}/prepared.onnx"
        quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            str(target),
            Reader(),
            quant_format=getattr(QuantFormat, form),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )


def openvino_int8(source: Path, target: Path, noise: Path | None, preset: str) -> None:
    import nncf
    import openvino

    inputs = [x[None] for x in _noise(noise)]
    how = {"preset": getattr(nncf.QuantizationPreset, preset), "subset_size": len(inputs)}
    model = nncf.quantize(openvino.Core().read_model(source), nncf.Dataset(inputs), **how)
    openvino.save_model(model, target, compress_to_fp16=False)


def _noise(file: Path | None) -> Any:
    import numpy as np

    if file is None:
        raise SystemExit("conversion: int8 needs NOISE, a .npy file of inputs")
    return np.load(file)


def _shape(file: Path) -> list[int]:
    import onnx

    (given,) = onnx.load(str(file), load_external_data=False).graph.input
    return [x.dim_value for x in given.type.tensor_type.shape.dim][1:]


KINDS: Mapping[str, tuple[str, Callable[[Path, Path, Path | None], None]]] = {
    "ncnn": (".param", ncnn),
    "executorch": (".pte", executorch),
    "litert": (".tflite", litert),
    "litert-int8": (".tflite", litert_int8),
    "onnxruntime-int8": (".onnx", partial(onnxruntime_int8, form="QDQ")),
    "onnxruntime-int8-qoperator": (".onnx", partial(onnxruntime_int8, form="QOperator")),
    "openvino-int8": (".xml", partial(openvino_int8, preset="PERFORMANCE")),
    "openvino-int8-mixed": (".xml", partial(openvino_int8, preset="MIXED")),
}
"""What a network can become -> the ending of its file, and who makes it."""


def main(words: list[str]) -> None:
    kind, source, target, *noise = words
    try:
        KINDS[kind][1](Path(source), Path(target), Path(noise[0]) if noise else None)
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": (error.name or "a package").partition(".")[0]}))
        raise SystemExit(3) from None


if __name__ == "__main__":
    main(sys.argv[1:])
