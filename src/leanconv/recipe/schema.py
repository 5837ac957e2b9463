"""The recipe and its sections, as immutable dataclasses that check themselves."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

from leanconv.recipe.values import known, need, plain, typed

__all__ = ["FORMAT_VERSION", "Data", "Model", "Recipe", "Training"]

FORMAT_VERSION = 1


class _Section:
    """Common to the sections: every field is checked against its annotation, then the ranges."""

    def __post_init__(self) -> None:
        subject = type(self).__name__.lower()
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = typed(f"{subject}.{item.name}", hints[item.name], getattr(self, item.name))
            object.__setattr__(self, item.name, value)
        self._ranges()

    def _ranges(self) -> None:
        """Say which values are out of range, as an Error."""

    def _least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            need(
                value is None or value >= least, f"{type(self).__name__.lower()}.{name} must be at least {least}", value
            )


@dataclass(frozen=True)
class Model(_Section):
    """Which network, and what it starts from.

    Attributes:
        name: of :mod:`leanconv.models`, or ``package.module:attribute``.
        options: its keyword arguments.
        weights: a ``.safetensors`` or ``.pt`` file, or ``package.module:attribute``; None: fresh ones.
        freeze: what does not learn: ``none``, ``stem`` (the first layer with weights and its norm) or ``backbone``
            (everything but the head).
    """

    name: str = "plain"
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    freeze: Literal["none", "stem", "backbone"] = "none"

    def _ranges(self) -> None:
        need(bool(self.name.strip()), "model.name must not be empty", self.name)
        plain("model.options", self.options)


@dataclass(frozen=True)
class Data(_Section):
    """How images become batches.

    Attributes:
        imgsz: side of the square images in pixels; None: their own where all are equal, square and at most 96, else 64.
        in_chans: 1 grey, 3 colour; None: 1 where every image is grey.
        val: share of the training images that select, where there is no ``val`` folder; 0 < val < 1.
        test: share of all images that is held out of a flat folder; 0 <= test < 1.
        split_seed: picks both shares, apart from ``training.seed`` so that seeds are compared on the same images.
        augment: :data:`leanconv.data.POLICIES`, or ``auto``: ``photo`` above 96 pixels, else ``flip_crop`` for colour
            and ``shift`` for grey.
        mean, std: per channel, of pixels scaled to 0..1, that an input is normalised with; None: of the training
            images. Trained weights expect those that they were trained with.
        balance: of unequal classes: ``none``, ``weights`` (of the loss) or ``sampler`` (each class equally often).
        label_noise: share of training labels replaced by another class, for studies; 0 <= label_noise < 1.
    """

    imgsz: int | None = None
    in_chans: int | None = None
    val: float = 0.1
    test: float = 0.2
    split_seed: int = 0
    augment: Literal["auto", "none", "flip_crop", "shift", "shift_flip", "crop_flip_cutout", "photo", "photo_light"] = (
        "auto"
    )
    mean: list[float] | None = None
    std: list[float] | None = None
    balance: Literal["none", "weights", "sampler"] = "none"
    label_noise: float = 0.0

    def _ranges(self) -> None:
        self._least(8, "imgsz")
        self._least(0, "split_seed")
        need(self.in_chans in (None, 1, 3), "data.in_chans must be 1 or 3", self.in_chans)
        need(0 < self.val < 1, "data.val must satisfy 0 < val < 1", self.val)
        need(0 <= self.test < 1, "data.test must satisfy 0 <= test < 1", self.test)
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = values is None or (len(values) > 0 and all(type(v) in (int, float) for v in values))
            need(numbers, f"data.{name} must be numbers, one per channel", values)
        need((self.mean is None) == (self.std is None), "data.mean and data.std must be given together", self.mean)
        need(self.std is None or min(self.std) > 0, "data.std must be above 0", self.std)
        rule = "data.label_noise must satisfy 0 <= label_noise < 1"
        need(0 <= self.label_noise < 1, rule, self.label_noise)


@dataclass(frozen=True)
class Training(_Section):
    """How the network is trained.

    Attributes:
        epochs: passes over the training images.
        batch: images per optimizer step.
        optimizer: ``sgd`` or ``adamw``. Decay is the business of the technique ``l2`` alone.
        lr: learning rate at its height.
        momentum, nesterov: of SGD.
        warmup: epochs, fractions too, in which the rate rises linearly from 0.
        schedule: ``cosine`` falls to 0 over the rest; ``constant`` stays.
        seed: of weights, order, augmentation and masks.
        precision: Fabric's word: ``32-true`` or ``bf16-mixed``.
        label_smoothing: mass that is spread evenly over the classes; 0 <= label_smoothing < 1.
        threads: of the CPU; None: as many as this process may use.
        eval_batch: images per step of evaluation.
        clip: largest L2 norm of all gradients together; None: not clipped.
        accumulate: micro-batches that one optimizer step is made of; ``batch`` is their sum.
        ema: decay of the exponential moving average of the weights, which then is what is evaluated and kept, such as
            0.999; None: none.
        patience: epochs without a better ``val`` after which training stops; None: never.
        keep: the weights of which epoch: ``best`` on ``val``, or ``last``, where trainings of equal length are to be
            compared.
        loaded_lr: learning rate of parameters that were loaded, as a share of ``lr``.
    """

    epochs: int = 10
    batch: int = 32
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    warmup: float = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    label_smoothing: float = 0.0
    threads: int | None = None
    eval_batch: int = 256
    clip: float | None = None
    accumulate: int = 1
    ema: float | None = None
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    loaded_lr: float = 0.1

    def _ranges(self) -> None:
        self._least(1, "epochs", "batch", "threads", "eval_batch", "accumulate", "patience")
        self._least(0, "seed", "warmup")
        need(self.seed < 2**63, "training.seed must be below 2^63", self.seed)
        need(self.lr > 0, "training.lr must be above 0", self.lr)
        need(0 <= self.momentum < 1, "training.momentum must satisfy 0 <= momentum < 1", self.momentum)
        need(self.clip is None or self.clip > 0, "training.clip must be above 0", self.clip)
        need(self.ema is None or 0 < self.ema < 1, "training.ema must satisfy 0 < ema < 1", self.ema)
        need(self.loaded_lr >= 0, "training.loaded_lr must be at least 0", self.loaded_lr)
        rule = "training.accumulate must be at most the batch"
        need(self.accumulate <= self.batch, rule, f"{self.accumulate} of batch={self.batch}")
        rule = "training.label_smoothing must satisfy 0 <= label_smoothing < 1"
        need(0 <= self.label_smoothing < 1, rule, self.label_smoothing)
        need(
            not (self.nesterov and self.optimizer == "sgd" and self.momentum == 0),
            "training.nesterov needs momentum > 0",
            f"momentum={self.momentum}",
        )


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run but the images themselves. Immutable; :func:`override` makes a changed one.

    The options of techniques are checked against the techniques themselves by :func:`load`, :func:`override` and
    :meth:`technique_options`, which import torch; building a Recipe does not.
    """

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    techniques: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, section in (("model", Model), ("data", Data), ("training", Training)):
            got = getattr(self, name)
            need(isinstance(got, section), f"recipe: {name} must be a {section.__name__}", got)
        need(isinstance(self.techniques, Mapping), "techniques must map names to options", self.techniques)
        options = {str(name): _options(str(name), given) for name, given in self.techniques.items()}
        object.__setattr__(self, "techniques", options)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the YAML: ``format_version``, ``model``, ``data``, ``training``, ``techniques``."""
        return {"format_version": FORMAT_VERSION, **copy.deepcopy(dataclasses.asdict(self))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`. Sections and fields that are left out have their defaults.

        Raises:
            Error: an unknown key (with near matches), a value of the wrong type or out of range, a later version.
        """
        need(isinstance(values, Mapping), "recipe must be a mapping", values)
        known("recipe", values, ["format_version", *(f.name for f in dataclasses.fields(cls))])
        version = values.get("format_version", FORMAT_VERSION)
        need(version == FORMAT_VERSION, f"recipe: format_version must be {FORMAT_VERSION}", version)
        model = values.get("model", {})
        return cls(
            _section(Model, {"name": model} if isinstance(model, str) else model),
            _section(Data, values.get("data", {})),
            _section(Training, values.get("training", {})),
            values.get("techniques") or {},
        )

    @property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of the canonical form.

        Formatting, comments and the order of keys do not enter it; the order of the techniques does: they act in it.
        """
        values = self.to_dict()
        values["techniques"] = [[name, options] for name, options in self.techniques.items()]
        return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def technique_options(self) -> dict[str, Any]:
        """Name -> the technique's own ``Options``, in the recipe's order.

        Raises:
            Error: no such technique, no such option (with near matches), or a value that the technique rejects.
        """
        from leanconv import techniques

        made = {}
        for name, given in self.techniques.items():
            kind = techniques.get(name).Options
            known(f"techniques.{name}", given, [f.name for f in dataclasses.fields(kind)])
            made[name] = kind(**given)
        return made

    def resolved(self) -> Recipe:
        """The same run with every option of every technique written out: what a checkpoint keeps.

        A default that changes in a later version then changes no old run.
        """
        full = {name: dataclasses.asdict(options) for name, options in self.technique_options().items()}
        return dataclasses.replace(self, techniques=full)


_S = TypeVar("_S")


def _section(kind: type[_S], values: Any) -> _S:
    subject = kind.__name__.lower()
    values = {} if values is None else values
    need(isinstance(values, Mapping), f"{subject} must be a mapping", values)
    known(subject, values, [f.name for f in dataclasses.fields(kind)])  # type: ignore[arg-type]
    return kind(**values)


def _options(name: str, given: Any) -> dict[str, Any]:
    given = {} if given is None or given is True else given
    need(isinstance(given, Mapping), f"techniques.{name} must be a mapping of options", given)
    plain(f"techniques.{name}", dict(given))
    return copy.deepcopy(dict(given))
