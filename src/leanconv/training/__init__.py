"""From a recipe and images to a trained network in ``runs/<name>``."""

from leanconv.training.folder import Run as Run
from leanconv.training.folder import open_run as open_run
from leanconv.training.run import Job as Job
from leanconv.training.run import images_of as images_of
from leanconv.training.run import train as train
from leanconv.training.stopping import Stopped as Stopped

__all__ = ["Job", "Run", "Stopped", "images_of", "open_run", "train"]
