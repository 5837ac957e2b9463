"""Post-training quantisation: from a float plan to one whose maps are bytes, at a loss that the user bounds."""

from leanconv.deploy.quantisation.options import Int8 as Int8
from leanconv.deploy.quantisation.quantising import Made as Made
from leanconv.deploy.quantisation.quantising import quantise as quantise
from leanconv.deploy.quantisation.records import LayerRow as LayerRow
from leanconv.deploy.quantisation.records import Quantised as Quantised
from leanconv.deploy.quantisation.samples import Samples as Samples
