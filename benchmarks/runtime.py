"""The runtime beside seven contenders in float32: whole networks at 224 x 224, in turns.

    pip install --no-deps pytorchcv==0.0.67 && pip install -c constraints.txt requests
    python benchmarks/runtime.py [--only NAME ...] [--contenders NAME ...] [--batch 1 16] [--threads 1 2] [--rounds 11]
        [--python PYTHON] [--executorch PYTHON] [--litert PYTHON] [--avx2] [--folder FOLDER]

onnxruntime, openvino (in float32), ncnn, executorch and LiteRT (both on XNNPACK), torch channels_last, eager and
compiled (frozen). Every one is a process of its own; `contending.py` tells what the PYTHONs need. Answers are compared
with torch's: one that differs by more than 1e-4 of the largest does not count. `ratio_to_best` is our time by that of
the fastest other, `cores` what a contender kept busy, `dense by separable` the dense twin's time by MobileNetV1's,
where both ran (their multiply-adds: 8.55). Weights are random, but those of EfficientNet-Lite0. With --avx2 all of
them see a processor without AVX-512 and AMX.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import contending

KINDS = ("onnxruntime", "openvino", "ncnn", "executorch", "litert", "torch", "torch.compile")


def dense_by_separable(networks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The dense twin's time by the network's, for each contender and cell."""
    if not {"mobilenet_v1", "dense_twin"} <= set(networks):
        return []
    made = []
    for lean, dense in zip(networks["mobilenet_v1"]["cells"], networks["dense_twin"]["cells"], strict=True):
        pairs = {n: (row["ms"], lean["contenders"].get(n)) for n, row in dense["contenders"].items()}
        ratios = {n: round(ms / row["ms"], 2) for n, (ms, row) in pairs.items() if row}
        made.append({"batch": lean["batch"], "threads": lean["threads"], **ratios})
    return made


def main() -> None:
    given = contending.parser(__doc__, contending.NAMES, KINDS).parse_args()
    networks, restricted = contending.each(given, lambda files: contending.compared(files, files.lean(), given))
    ratios = dense_by_separable(networks)
    for ratio in ratios:
        print("dense by separable", json.dumps(ratio))
    record = {"networks": networks, "dense_by_separable": ratios, "restricted": restricted}
    contending.write("runtime", given, record)


if __name__ == "__main__":
    main()
