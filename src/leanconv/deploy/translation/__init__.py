"""A trained torch network as a plan of the runtime: recorded, translated step by step, simplified, fused, placed."""

from leanconv.deploy.translation.network import Translated as Translated
from leanconv.deploy.translation.network import as_torch as as_torch
from leanconv.deploy.translation.network import translate as translate
