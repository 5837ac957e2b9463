"""leanconv makes convolutional networks lean and shows that they are.

Dropout, batch normalisation, L2 regularisation and depthwise separable convolution: as layers (``leanconv.nn``), as
changes to any network (``leanconv.rewrite``), as costs (``leanconv.cost``) and in the training of your own images
(``leanconv.train``). Importing leanconv imports no torch; each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from leanconv.errors import Error as Error

if TYPE_CHECKING:
    from leanconv import models as models
    from leanconv import nn as nn
    from leanconv import runtime as runtime
    from leanconv import techniques as techniques
    from leanconv.acceleration import accelerate as accelerate
    from leanconv.accounting import cost as cost
    from leanconv.allocator import tune_allocator as tune_allocator
    from leanconv.deploy import export as export
    from leanconv.graph import record as record
    from leanconv.prediction import evaluate as evaluate
    from leanconv.prediction import predict as predict
    from leanconv.recipe import Recipe as Recipe
    from leanconv.surgery import apply as apply
    from leanconv.surgery import convert as convert
    from leanconv.surgery import fold as fold
    from leanconv.surgery import remove as remove
    from leanconv.surgery import separate as separate
    from leanconv.techniques.l2 import ledger as ledger
    from leanconv.techniques.l2 import param_groups as param_groups
    from leanconv.training import train as train

__version__ = "0.1.0"

# Name -> the module that has it ("" : the name is a module of its own).
_LAZY = {
    "models": "",
    "nn": "",
    "runtime": "",
    "techniques": "",
    "accelerate": "acceleration",
    "cost": "accounting",
    "tune_allocator": "allocator",
    "export": "deploy",
    "record": "graph",
    "evaluate": "prediction",
    "predict": "prediction",
    "Recipe": "recipe",
    "apply": "surgery",
    "convert": "surgery",
    "fold": "surgery",
    "remove": "surgery",
    "separate": "surgery",
    "ledger": "techniques.l2",
    "param_groups": "techniques.l2",
    "train": "training",
}

__all__ = ["Error", "__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'leanconv' has no attribute {name!r}")
    room = _LAZY[name]
    value = import_module(f"{__name__}.{room or name}")
    value = getattr(value, name) if room else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
