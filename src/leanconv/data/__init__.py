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
from leanconv.data.batching import normalise as normalise
from leanconv.data.dataset import DataSet as DataSet
from leanconv.data.dataset import Split as Split
from leanconv.data.images import read_image as read_image
from leanconv.data.loading import load as load
from leanconv.data.order import epoch_order as epoch_order
