"""What each technique brings, shown on the images that ship with the package."""

from leanconv.demo.arms import BATCH as BATCH
from leanconv.demo.arms import Arm as Arm
from leanconv.demo.arms import arms as arms
from leanconv.demo.arms import estimate as estimate
from leanconv.demo.arms import run as run

__all__ = ["BATCH", "Arm", "arms", "estimate", "run"]
