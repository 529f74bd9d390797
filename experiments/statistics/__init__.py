"""What per-image counts allow to be said: intervals, and which differences between configurations are resolved."""

from experiments.statistics.bootstrap import LEVEL, RESAMPLES, percentile_interval, resampled_miou
from experiments.statistics.counts import Counts, read_counts
from experiments.statistics.differences import Comparison, Difference, Score, compare, holm

__all__ = [
    "LEVEL",
    "RESAMPLES",
    "Comparison",
    "Counts",
    "Difference",
    "Score",
    "compare",
    "holm",
    "percentile_interval",
    "read_counts",
    "resampled_miou",
]
