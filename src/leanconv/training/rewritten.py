"""The folder of a run whose network was rewritten: the same recipe, other weights, the plan in their header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanconv import accounting, measure, results
from leanconv import recipe as recipes
from leanconv.data import DataSet
from leanconv.surgery import Certificate, Plan
from leanconv.training import checkpoint
from leanconv.training import folder as folders
from leanconv.training.checkpoint import Header
from leanconv.training.folder import RECIPE, RECORD, WEIGHTS, Run

__all__ = ["CERTIFICATE", "write"]

CERTIFICATE = "certificate.json"


def write(
    model: nn.Module,
    certificate: Certificate,
    header: Header,
    *,
    name: str,
    overwrite: bool = False,
    source: str = "",
    images: DataSet | None = None,
) -> Run:
    """Keep a rewritten network as a run, which every command takes.

    Args:
        model: the network.
        certificate: of the rewriting.
        header: of the network before it.
        name: of the run.
        overwrite: replace the run of that name.
        source: where the network came from.
        images: to judge it on, those splits that there are; None: its accuracy is not known.

    Returns:
        The run: recipe, weights with the plan in their header, record, ``certificate.json``.

    Raises:
        Error: a name that exists, or that cannot be written; then nothing is overwritten.
    """
    folder = folders.choose(name, overwrite)
    earlier = Plan.from_dict(header.surgery) if header.surgery else Plan()
    header = replace(header, surgery=(earlier + certificate.plan).to_dict())
    record = _record(model, certificate, header, name, source, images)
    folders.claim(folder)
    results.write_bytes(folder / RECIPE, recipes.dump(header.built_from()).encode())
    checkpoint.save(folder / WEIGHTS, model.state_dict(), header)
    results.write_json(folder / CERTIFICATE, certificate.to_dict())
    results.write_run(folder, record)
    return Run(folder)


def _record(
    model: nn.Module, certificate: Certificate, header: Header, name: str, source: str, images: DataSet | None
) -> results.Run:
    example = torch.zeros(1, *header.shape).contiguous(memory_format=torch.channels_last)
    cost = accounting.cost(model, example)
    outcomes = {split: measure.classify(model, images, split) for split in images.splits} if images else {}
    before = results.read_run(source) if source and (Path(source) / RECORD).is_file() else None
    base = before or results.Run(
        name=name, status="done", recipe=header.recipe, digest=header.built_from().digest,
        data=_data(header), environment=results.environment() | {"threads": torch.get_num_threads()},
    )  # fmt: skip
    told = [f"rewritten: {step}" for step in certificate.plan.steps if step.places]
    extra: Mapping[str, Any] = {**base.extra, "surgery": header.surgery, "rewritten_from": source or None}
    return replace(
        base,
        name=name,
        status="done",
        train=outcomes["train"].score if "train" in outcomes else None,
        val=outcomes["val"].score if "val" in outcomes else None,
        test=outcomes["test"].score if "test" in outcomes else None,
        quality={split: outcome.to_dict() for split, outcome in outcomes.items()},
        params=cost.params,
        macs=cost.macs,
        ms_per_image=measure.latency(model, example).per_image,
        notes=[*base.notes, *told],
        extra=dict(extra),
    )


def _data(header: Header) -> dict[str, Any]:
    return {
        "source": "",
        "path": None,
        "fingerprint": header.fingerprint,
        "classes": list(header.classes),
        "counts": {},
        "mean": list(header.mean),
        "std": list(header.std),
        "imgsz": header.shape[1],
        "in_chans": header.shape[0],
    }
