"""Means and local covariances of every class."""

from benchmarks.cases import MOMENTS as OPERATORS  # noqa: F401  conftest.py makes the benchmarks of these
from benchmarks.replay import replayed


@replayed
def test_moments(report, operator, workload, direction, contender):
    report(operator, workload, direction, contender)
