"""Runs a trained network from one file, with numpy and the native library: no torch.

:func:`load` opens a ``.lean`` file, the :class:`Engine` that it gives is called with batches or asked to classify
photos. Names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanconv.runtime.engine import Engine as Engine
    from leanconv.runtime.engine import load as load
    from leanconv.runtime.plan import Plan as Plan
    from leanconv.runtime.prediction import Prediction as Prediction

_LAZY = {"Engine": "engine", "Plan": "plan", "Prediction": "prediction", "load": "engine"}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'leanconv.runtime' has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
