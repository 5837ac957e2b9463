"""Plain records of runs, and the files they live in. Imports no torch.

A run's folder holds ``run.json`` (one :class:`Run`) and ``metrics.jsonl`` (one :class:`Epoch` a line). Every JSON file
bears ``format_version`` and is replaced in one step, so a reader never sees half of it. Numbers that are not finite
are written as the texts ``"nan"``, ``"inf"``, ``"-inf"``: a diverged run is still valid JSON.
"""

from leanconv.results.files import FORMAT_VERSION as FORMAT_VERSION
from leanconv.results.files import append_line as append_line
from leanconv.results.files import read_json as read_json
from leanconv.results.files import read_lines as read_lines
from leanconv.results.files import write_bytes as write_bytes
from leanconv.results.files import write_json as write_json
from leanconv.results.listing import Listed as Listed
from leanconv.results.listing import runs_below as runs_below
from leanconv.results.machine import environment as environment
from leanconv.results.machine import usable_cores as usable_cores
from leanconv.results.quality import Outcome as Outcome
from leanconv.results.records import Epoch as Epoch
from leanconv.results.records import Run as Run
from leanconv.results.records import append_metrics as append_metrics
from leanconv.results.records import read_metrics as read_metrics
from leanconv.results.records import read_run as read_run
from leanconv.results.records import write_run as write_run
from leanconv.results.shares import Difference as Difference
from leanconv.results.shares import Score as Score
from leanconv.results.shares import difference as difference
from leanconv.results.shares import wilson as wilson
