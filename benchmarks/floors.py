"""What an operator cannot do without: bytes that must move, and operations of matrix products that must be done.

Each input is read once and each result written once, in float32. A symmetric product counts the elements on and above
its diagonal. Only matrix products are counted: where there are none the floor is that of the bytes, and exponentials,
which a CPU does not do for nothing, are not in it.
"""

import math
from dataclasses import dataclass

from benchmarks.ceilings import Ceilings
from benchmarks.workloads import Workload

ITEM = 4  # bytes of a float32


@dataclass(frozen=True)
class Floor:
    bytes: int
    symmetric: int = 0  # operations of the products X·X^T
    general: int = 0  # operations of all other products

    @property
    def operations(self) -> int:
        return self.symmetric + self.general

    def seconds(self, ceilings: Ceilings) -> float:
        return max(self.bytes / ceilings.copy, ceilings.products(self.symmetric, self.general))


def floor(operator: str, workload: Workload, direction: str) -> Floor:
    if operator == "class_moments":
        return _moments(workload)
    if operator.startswith("augment"):
        return _augment(workload, direction, workload.real if operator == "augment_real" else workload.ipc)
    if operator.endswith("matching"):
        mean, covariance = operator != "covariance_matching", operator != "distribution_matching"
        return _matching(workload, direction, mean, covariance)
    return _complexity(workload, direction, losses=2 if operator == "class_complexity" else 1)


def _moments(w: Workload) -> Floor:
    d, p = w.descriptors
    features, results = w.classes * w.real * d * p, w.classes * (d * p + d * d)
    return Floor(ITEM * (features + results), symmetric=w.classes * w.real * p * d * (d + 1))


def _matching(w: Workload, direction: str, mean: bool, covariance: bool) -> Floor:
    d, p = w.descriptors
    real, syn = w.classes * w.real * d * p, w.classes * w.ipc * d * p
    symmetric = covariance * w.classes * (w.real + w.ipc) * p * d * (d + 1)
    general = covariance * 2 * w.classes * w.ipc * p * d * d
    if direction == "forward":
        return Floor(ITEM * (real + syn), symmetric)
    if direction == "backward":  # the gaps of the means and of the covariances in, the gradient out
        gaps = w.classes * (mean * d * p + covariance * (d * p + d * d))
        return Floor(ITEM * (covariance * syn + gaps + syn), general=general)
    return Floor(ITEM * (real + 2 * syn), symmetric, general)


def _augment(w: Workload, direction: str, per_class: int) -> Floor:
    images = w.classes * per_class * math.prod(w.image)
    return Floor(ITEM * images * (4 if direction == "both" else 2))


def _complexity(w: Workload, direction: str, losses: int) -> Floor:
    features, state = w.classes * w.ipc * w.width, w.classes * w.width
    moved = {"forward": features, "backward": 2 * features + losses * state, "both": 2 * features}
    return Floor(ITEM * moved[direction])
