"""Siamese augmentation of the synthetic images, with its gradient, and of the real ones."""

from benchmarks.cases import AUGMENT as OPERATORS  # noqa: F401  conftest.py makes the benchmarks of these
from benchmarks.replay import replayed


@replayed
def test_augment(report, operator, workload, direction, contender):
    report(operator, workload, direction, contender)
