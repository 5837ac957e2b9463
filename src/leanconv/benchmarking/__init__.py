"""How fast a ``.lean`` file runs on this machine: layer by layer, and beside other programs that run the same network.

Imports no torch; torch's contenders do, in processes of their own.
"""

from leanconv.benchmarking.measuring import AGAINST as AGAINST
from leanconv.benchmarking.measuring import command as command
from leanconv.benchmarking.measuring import measure as measure
from leanconv.benchmarking.records import Layer as Layer
from leanconv.benchmarking.records import Measured as Measured
from leanconv.benchmarking.records import Measurement as Measurement
from leanconv.benchmarking.records import Report as Report
