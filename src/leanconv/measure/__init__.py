"""What a network does, measured: time, quality, differences of outputs, moments of hidden outputs, the gap.

Prices of findings and certificates of changes are made of these. Nothing here leaves a trace in the network: flags,
buffers and random numbers are as before.
"""

from leanconv.measure.latency import Comparison as Comparison
from leanconv.measure.latency import Latency as Latency
from leanconv.measure.latency import compare_latency as compare_latency
from leanconv.measure.latency import compare_training as compare_training
from leanconv.measure.latency import latency as latency
from leanconv.measure.latency import median_interval as median_interval
from leanconv.measure.moments import Moments as Moments
from leanconv.measure.moments import Shift as Shift
from leanconv.measure.moments import moments as moments
from leanconv.measure.moments import shift as shift
from leanconv.measure.outputs import Gap as Gap
from leanconv.measure.outputs import OutputDifference as OutputDifference
from leanconv.measure.outputs import compared as compared
from leanconv.measure.outputs import gap as gap
from leanconv.measure.outputs import output_difference as output_difference
from leanconv.measure.outputs import outputs as outputs
from leanconv.measure.quality import Tally as Tally
from leanconv.measure.quality import classify as classify
from leanconv.measure.quality import classify_together as classify_together
from leanconv.measure.quality import score as score
from leanconv.results import Outcome as Outcome
