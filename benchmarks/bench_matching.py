"""Distribution and covariance matching, alone and in one pass."""

from benchmarks.cases import MATCHING as OPERATORS  # noqa: F401  conftest.py makes the benchmarks of these
from benchmarks.replay import replayed


@replayed
def test_matching(report, operator, workload, direction, contender):
    report(operator, workload, direction, contender)
