"""Trained networks as files that run without torch: ``.lean`` for :mod:`leanconv.runtime`, and ONNX."""

from leanconv.deploy.exporting import FORMATS as FORMATS
from leanconv.deploy.exporting import export as export
from leanconv.deploy.quantisation import Int8 as Int8
from leanconv.deploy.quantisation import Quantised as Quantised
from leanconv.deploy.records import Exported as Exported
from leanconv.deploy.verify import Difference as Difference
