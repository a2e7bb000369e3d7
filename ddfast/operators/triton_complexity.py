"""The triton backend of class centralization and CMI: buffers and launches around `ddfast.kernels`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddfast.kernels.complexity import class_sums, class_terms, totals
from ddfast.kernels.complexity_backward import row_gradient
from ddfast.kernels.complexity_tiling import Cut, class_cut
from ddfast.kernels.tiling import Chip
from ddfast.operators.launch import Launch, Spec, chip_of, on_device, planned, spec
from ddfast.operators.library import implement
from ddfast.operators.schemas import accumulator, row_share

Dtypes = tuple[torch.dtype, ...]


class Rows(NamedTuple):
    """What a plan knows of features and their classes."""

    features: Spec
    segments: Dtypes  # of offsets and index; empty where classes are equal
    largest: int
    num_classes: int

    def cut(self, chip: Chip) -> Cut:
        double = self.features.dtype == torch.float64
        return class_cut(self.num_classes, self.largest, self.features.shape[1], double, chip)


def _rows(features: Tensor, offsets: Tensor | None, index: Tensor | None, largest: int, num_classes: int) -> Rows:
    segments = () if offsets is None or index is None else (offsets.dtype, index.dtype)
    return Rows(spec(features), segments, largest, num_classes)


class Terms(NamedTuple):
    center: bool
    inform: bool
    exponential: bool
    per_class: bool
    keep: bool  # what backward needs


class Plan(NamedTuple):
    """The launches, two of three, and the shapes of what they write; None and (0,) where it is not wanted."""

    dtype: torch.dtype
    sums: Launch | None
    terms: Launch
    totals: Launch | None
    loss: tuple[int, ...]
    parts: tuple[int, ...]
    centers: tuple[int, ...]
    log_q: tuple[int, ...]
    scales: tuple[int, ...] | None
    tickets: int
    split_sums: tuple[int, ...]
    split_masses: tuple[int, ...]
    pulls: tuple[int, ...] | None


@planned
def _plan(rows: Rows, wanted: Terms, chip: Chip) -> Plan:
    (n, width), k, cut = rows.features.shape, rows.num_classes, rows.cut(chip)
    splits = cut.grid[1]
    center, inform, exponential, per_class, keep = wanted
    sizes = (rows.largest, width, k, splits, *rows.features.stride)
    flags: dict[str, Any] = {"CENTER": center, "INFORM": inform}
    terms = Launch(
        class_terms, cut.grid, sizes, **flags, **cut.options, EXPONENTIAL=exponential, KEEP=keep, PER_CLASS=per_class
    )
    split, state, whole = (k, splits, width), (k, width), splits == 1
    return Plan(
        accumulator(rows.features.dtype),
        None if whole else Launch(class_sums, cut.grid, sizes, **flags, **cut.options),
        terms,
        Launch(totals, (1,), (k,), **flags, PER_CLASS=per_class, num_warps=4) if whole else None,
        loss=(k,) if per_class else (),
        parts=(k, splits, 2),
        centers=state if keep and center else (0,),
        log_q=state if keep and inform else (0,),
        scales=(n, 2) if inform else None,
        tickets=cut.grid[0] + 1,
        split_sums=split if center else (0,),
        split_masses=split if inform else (0,),
        pulls=split if center and keep and exponential and not whole else None,
    )


@on_device
def class_complexity(
    features: Tensor,
    offsets: Tensor | None,
    index: Tensor | None,
    largest: int,
    num_classes: int,
    centralization_weight: float,
    cmi_weight: float,
    alpha: float | None,
    beta: float,
    reduction: str,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wanted = Terms(centralization_weight != 0, cmi_weight != 0, alpha is not None, reduction == "none", needs_grad)
    rows = features, offsets, index
    plan = _plan(_rows(*rows, largest, num_classes), wanted, chip_of(features.device))
    dtype, new = plan.dtype, features.new_empty
    loss, terms, parts = new(plan.loss, dtype=dtype), new(2, dtype=dtype), new(plan.parts, dtype=dtype)
    centers, drift = new(plan.centers, dtype=dtype), new(plan.centers, dtype=dtype)
    log_q = new(plan.log_q, dtype=dtype)
    scales = None if plan.scales is None else new(plan.scales, dtype=dtype)
    sums = masses = pulls = tickets = None
    weights = (centralization_weight, cmi_weight, row_share(reduction, features))
    if plan.sums is not None:
        sums, masses = new(plan.split_sums, dtype=dtype), new(plan.split_masses, dtype=dtype)
        pulls = None if plan.pulls is None else new(plan.pulls, dtype=dtype)
        tickets = new(plan.tickets, dtype=torch.int32)
        plan.sums(*rows, sums, masses, scales, tickets)
    plan.terms(
        *(*rows, sums, masses, scales, parts, pulls, centers, drift, log_q, loss, terms, tickets),
        floats=(*weights, alpha or 0.0, beta),
    )
    if plan.totals is not None:
        plan.totals(parts, loss, terms, floats=weights)
    return loss, terms, centers, drift, log_q


@planned
def _backward_plan(
    rows: Rows, grad: Spec, sums: torch.dtype, out: tuple[int, ...], wanted: Terms, chip: Chip
) -> Launch:
    cut = rows.cut(chip)
    return Launch(
        row_gradient,
        cut.grid,
        (
            *(rows.largest, rows.features.shape[1], rows.num_classes, cut.grid[1]),
            *(grad.stride[0] if grad.stride else 0, *rows.features.stride, *out),
        ),
        CENTER=wanted.center,
        INFORM=wanted.inform,
        EXPONENTIAL=wanted.exponential,
        DOUBLE=rows.features.dtype == torch.float64,
        **cut.options,
    )


@on_device
def class_complexity_backward(
    grad: Tensor,
    features: Tensor,
    offsets: Tensor | None,
    index: Tensor | None,
    largest: int,
    num_classes: int,
    centers: Tensor,
    drift: Tensor,
    log_q: Tensor,
    centralization_weight: float,
    cmi_weight: float,
    alpha: float | None,
    beta: float,
    reduction: str,
) -> Tensor:
    gradient = torch.empty_like(features)
    rows = _rows(features, offsets, index, largest, num_classes)
    wanted = Terms(centralization_weight != 0, cmi_weight != 0, alpha is not None, False, True)
    launch = _backward_plan(rows, spec(grad), centers.dtype, gradient.stride(), wanted, chip_of(features.device))
    launch(
        *(grad, features, offsets, index, centers, drift, log_q, gradient),
        floats=(centralization_weight, cmi_weight * row_share(reduction, features), alpha or 0.0, beta),
    )
    return gradient


for _operator in (class_complexity, class_complexity_backward):
    implement("triton", _operator.__name__, _operator, "CompositeExplicitAutograd")
