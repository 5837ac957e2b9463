"""The runtime's int8 files beside the int8 of other programs: whole networks at 224 x 224, in turns.

    python benchmarks/runtime_int8.py [--only NAME ...] [--contenders NAME ...] [--batch 1 16] [--threads 1 2]
        [--rounds 11] [--python PYTHON] [--litert PYTHON] [--avx2] [--folder FOLDER]

`runtime.py` tells how, `conversion.py` how each program's own tools quantise: onnxruntime as QDQ and as QOperator,
openvino by nncf with symmetric maps and mixed, LiteRT by ai-edge-quantizer. All are calibrated on the same noise; ours
keeps no layer in float for accuracy's sake, as theirs do not. LiteRT reads and writes bytes, the others float32.
`leanconv-float` is our float32 file, `difference` is from torch's answers in float32. The peak is that of our file's
steps, in bytes.
"""

from __future__ import annotations

from typing import Any

import contending

from leanconv.deploy import Int8

NAMES = ("mobilenet_v1", "efficientnet_lite0", "resnet18")
KINDS = (
    "onnxruntime-int8",
    "onnxruntime-int8-qoperator",
    "openvino-int8",
    "openvino-int8-mixed",
    "litert-int8",
)


def main() -> None:
    given = contending.parser(__doc__, NAMES, KINDS).parse_args()

    def compared(files: contending.Files) -> dict[str, Any]:
        ours = files.lean(int8=Int8(max_drop=100), data=files.noise())
        return contending.compared(files, ours, given, more={"leanconv-float": files.lean()})

    networks, restricted = contending.each(given, compared)
    contending.write("runtime_int8", given, {"networks": networks, "restricted": restricted})


if __name__ == "__main__":
    main()
