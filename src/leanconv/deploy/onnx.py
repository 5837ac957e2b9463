"""The other way out: ONNX, by torch's own exporter."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leanconv.errors import Error

__all__ = ["need", "reader", "write"]


def need() -> None:
    """Refuse where a package is missing.

    Raises:
        Error: it names what to install.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise Error(
            f"export: --format onnx needs onnx and onnxscript (pip install 'leanconv[onnx]'), got no {missing[0]}"
        )


class _Mean(nn.Module):
    """The mean over positions, without the strides of an adaptive pooling, which become a gather in ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


def write(model: nn.Module, example: Tensor, path: Path, about: Mapping[str, str]) -> tuple[int, int]:
    """Write a network in eval mode, with any number of inputs in a batch.

    Args:
        model: the network.
        example: (N, C, ...).
        path: the file.
        about: goes into the metadata.

    Returns:
        Nodes and numbers in it.

    Raises:
        Error: torch cannot export it.
    """
    import onnx

    network = copy.deepcopy(model).eval()
    for name, module in list(network.named_modules()):
        if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)) and name:
            network.set_submodule(name, _Mean())
    two = example[:1].expand(2, *example.shape[1:]).contiguous()
    dimensions = ({0: torch.export.Dim("batch")},)
    try:
        with _quiet():
            torch.onnx.export(
                network, (two,), str(path), dynamo=True, dynamic_shapes=dimensions, input_names=["input"],
                output_names=["output"], external_data=False, verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter raises many kinds
        reason = str(error.__cause__ or error).strip().split("\n")[0][:300]
        raise Error(f"export: torch must be able to write the network as ONNX, got {reason}") from None
    made = onnx.load(str(path))
    for key, value in about.items():
        made.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(made)
    onnx.save(made, str(path))
    return len(made.graph.node), sum(int(np.prod(t.dims)) for t in made.graph.initializer)


def reader(path: Path) -> tuple[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]]:
    """What runs the file here, and how: onnxruntime, or else the reference evaluator of onnx."""
    with _quiet():
        if find_spec("onnxruntime") is not None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            return f"onnxruntime {onnxruntime.__version__}", lambda x: session.run(None, {"input": x})[0]
        import onnx
        from onnx.reference import ReferenceEvaluator

        evaluator: Any = ReferenceEvaluator(str(path))
        return f"the reference evaluator of onnx {onnx.__version__}", lambda x: evaluator.run(None, {"input": x})[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Remarks of the exporter on itself and on packages that are not there are not the user's."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
