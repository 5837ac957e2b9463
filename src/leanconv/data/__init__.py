"""Images: from a folder, or from the package, to batches.

:func:`load` gives a :class:`DataSet` with its splits, :func:`batches` goes through one of them. Order and augmentation
are functions of (seed, epoch, position) alone, never of a loader's state: a run resumed, split into other batches or
over several processes sees the same images in the same form.
"""

from leanconv.data.augmentation import POLICIES as POLICIES
from leanconv.data.augmentation import augment as augment
from leanconv.data.augmentation import resolve_policy as resolve_policy
from leanconv.data.batching import Batch as Batch
from leanconv.data.batching import batch_sizes as batch_sizes
from leanconv.data.batching import batches as batches
from leanconv.data.batching import class_weights as class_weights
from leanconv.data.batching import normalise as normalise
from leanconv.data.batching import steps as steps
from leanconv.data.cache import cache_folder as cache_folder
from leanconv.data.cache import clear_cache as clear_cache
from leanconv.data.dataset import DataSet as DataSet
from leanconv.data.dataset import Facts as Facts
from leanconv.data.dataset import Split as Split
from leanconv.data.dataset import Unreadable as Unreadable
from leanconv.data.gating import Finding as Finding
from leanconv.data.gating import Report as Report
from leanconv.data.gating import gate as gate
from leanconv.data.images import Progress as Progress
from leanconv.data.images import read_image as read_image
from leanconv.data.loading import load as load
from leanconv.data.order import balanced_order as balanced_order
from leanconv.data.order import epoch_order as epoch_order
from leanconv.data.pictures import Pictures as Pictures
from leanconv.data.pictures import labelled as labelled
from leanconv.data.pictures import unlabelled as unlabelled
