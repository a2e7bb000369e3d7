"""Class centralization and conditional mutual information, alone and in one pass."""

from benchmarks.cases import COMPLEXITY as OPERATORS  # noqa: F401  conftest.py makes the benchmarks of these
from benchmarks.replay import replayed


@replayed
def test_complexity(report, operator, workload, direction, contender):
    report(operator, workload, direction, contender)
