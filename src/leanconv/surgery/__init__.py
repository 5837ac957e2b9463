"""Techniques put into any trained network, taken out, folded away, each change certified and undone on request."""

from leanconv.surgery.budget import Budget as Budget
from leanconv.surgery.carrying import replay as replay
from leanconv.surgery.certificate import Certificate as Certificate
from leanconv.surgery.distilling import Distil as Distil
from leanconv.surgery.distilling import distil as distil
from leanconv.surgery.optimizing import Carried as Carried
from leanconv.surgery.plan import Plan as Plan
from leanconv.surgery.plan import Step as Step
from leanconv.surgery.separation import separate as separate
from leanconv.surgery.verbs import apply as apply
from leanconv.surgery.verbs import convert as convert
from leanconv.surgery.verbs import fold as fold
from leanconv.surgery.verbs import remove as remove
