"""What dropout does while a network trains: nothing, but in strict mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from leanconv.contract import Attachment, Context
from leanconv.errors import Error
from leanconv.techniques.dropout.options import Options

if TYPE_CHECKING:
    from leanconv.techniques.dropout.strict import Strict

__all__ = ["attach"]


class _StrictAttachment(Attachment):
    """Strict mode as a part of training."""

    def __init__(self, handle: Strict) -> None:
        self._handle = handle

    def stopped(self) -> Mapping[str, Tensor]:
        """Entries of parameters that take no part in this step, so that no penalty touches them."""
        return self._handle.stopped()

    def close(self) -> None:
        """Remove every hook."""
        self._handle.close()


def attach(ctx: Context, options: Options) -> Attachment | None:
    """Strict mode where the options ask for it (:func:`leanconv.nn.strict`), else None.

    Raises:
        Error: strict without an optimizer or an input batch, or where strict mode does not fit the network.
    """
    if not options.strict:
        return None
    if ctx.optimizer is None or ctx.probe is None:
        missing = "optimizer" if ctx.optimizer is None else "probe"
        raise Error(f"dropout: strict needs the optimizer and an input batch (probe), got {missing}=None")
    from leanconv.techniques.dropout.strict import strict

    return _StrictAttachment(strict(ctx.model, ctx.optimizer, ctx.probe))
