"""Moment matching on tensor cores that truncate sums, at the lengths of the standard workloads."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from oracle import INTERPRETED, frobenius
from truncation import as_tf32, features, toward_zero, truncated_product, truncating

from benchmarks.workloads import WORKLOADS
from ddfast import checks, reference
from ddfast.kernels import tiling
from ddfast.operators import triton_matching

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(not INTERPRETED, reason="follows the kernels in Triton's interpreter: TRITON_INTERPRET=1"),
]
H100, A100 = tiling.Chip(90, 132), tiling.Chip(80, 108)
LIMIT = 1e-5


@dataclass(frozen=True)
class Case:
    """One class of a workload, its rows shared by as many programs as among all its classes."""

    real: int
    ipc: int
    classes: int
    row: tuple[int, ...] = (128, 4, 4)
    chip: tiling.Chip = H100

    @classmethod
    def of(cls, name, chip=H100):
        workload = WORKLOADS[name]
        return cls(workload.real, workload.ipc, workload.classes, workload.row, chip)

    def sides(self):
        return features(self.real, self.row, 0.0, 1), features(self.ipc, self.row, 0.1, 2)


CASES = {
    "tiny-ipc50": Case.of("tiny-ipc50"),
    "tiny-ipc50 in tiles": Case.of("tiny-ipc50", A100),
    "many positions": Case(8, 8, 1, (32, 32, 32)),
    "many descriptors": Case(16, 4, 1, (1024, 1, 2)),
    "c10-ipc1000": Case.of("c10-ipc1000"),
}


@pytest.fixture(params=CASES, ids=str)
def case(request, monkeypatch):
    chosen = CASES[request.param]
    rows = tiling.rows_of_a_program

    def as_among_all(sides, programs, chip):
        return rows(sides, programs * chosen.classes, chip)

    monkeypatch.setattr(tiling, "rows_of_a_program", as_among_all)
    monkeypatch.setattr(triton_matching, "chip_of", lambda device: chosen.chip)
    return chosen


def exact(real, syn):
    """Delta and the gradient, by the definition in float64."""
    real, syn = real.double(), syn.double().requires_grad_()
    delta = reference.local_covariance(syn, "channels") - reference.local_covariance(real, "channels")
    (gradient,) = torch.autograd.grad(delta.square().sum(), syn)
    return delta.detach(), gradient


def by_the_kernels(real, syn, tf32=False):
    real, syn = (checks.maps("x", x, "channels") for x in (real, syn))
    segments = (None, None, len(syn), 1)
    forward, backward = torch.ops.ddfast.moment_matching.triton, torch.ops.ddfast.moment_matching_backward.triton
    _, _, *state = forward(real, None, None, len(real), syn, *segments, 0.0, 1.0, tf32, True)
    return state[-1][0], backward(torch.ones(()), syn, *segments, *state, 0.0, 1.0, tf32)


def test_delta_and_its_gradient_keep_float32_accuracy(case):
    real, syn = case.sides()
    delta, gradient = exact(real, syn)
    with truncating() as seen:
        found, found_gradient = by_the_kernels(real, syn)
    assert seen and max(seen) <= 64
    assert frobenius(found, delta) < LIMIT
    assert frobenius(found_gradient.reshape(gradient.shape), gradient) < LIMIT


@pytest.mark.parametrize("name", ["tiny-ipc50", "c10-ipc1000"])
def test_one_accumulator_for_all_rows_would_not_do(name):
    """The very same products, each sum in an accumulator that starts from zero once."""
    real, syn = CASES[name].sides()
    rows = tiling.rows_of_a_program((len(real), len(syn)), CASES[name].classes, H100)

    def covariance(x, step):
        y = (x - x[0]).flatten(2).numpy()  # [N, D, P]
        total = np.zeros((y.shape[1],) * 2, np.float32)
        for first in range(0, len(y), rows):
            columns = y[first : first + rows].transpose(1, 0, 2).reshape(y.shape[1], -1)
            bits = columns.view(np.int32)
            hi = ((bits + 0x1000) & -0x2000).view(np.float32)
            lo = as_tf32(columns - hi)
            for k in range(0, columns.shape[1], step or columns.shape[1]):
                here = slice(k, k + (step or columns.shape[1]))
                small = truncated_product(hi[:, here], lo[:, here].T, np.zeros_like(total))
                total += truncated_product(hi[:, here], hi[:, here].T, np.zeros_like(total)) + small + small.T
        sums = y.astype(np.float64).sum(0)
        return (total - sums @ sums.T / len(y)) / len(y)

    delta, _ = exact(real, syn)
    old, flushed = (torch.from_numpy(covariance(syn, step) - covariance(real, step)) for step in (None, 32))
    assert frobenius(old, delta) > 2 * LIMIT
    assert frobenius(flushed, delta) < LIMIT


def test_what_is_emulated():
    """Rounding toward zero loses up to a unit of the last place, always to the same side."""
    x = np.array([1 + 2.0**-24, -1 - 2.0**-23 - 2.0**-24, np.inf, -np.inf, 1.5])
    assert toward_zero(x).tolist() == [1.0, -1 - 2.0**-23, np.inf, -np.inf, 1.5]
    ones, tiny = np.ones((1, 8), np.float32), np.full((8, 1), 2.0**-28, np.float32)
    assert truncated_product(ones, tiny, np.ones((1, 1), np.float32)).item() == 1.0
    assert truncated_product(ones, tiny, np.zeros((1, 1), np.float32)).item() == 2.0**-25
