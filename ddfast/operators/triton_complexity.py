"""The triton backend of class centralization and CMI: buffers and launches around `ddfast.kernels`."""

import torch
from torch import Tensor

from ddfast.kernels.complexity import class_sums, class_terms, totals
from ddfast.kernels.complexity_backward import row_gradient
from ddfast.kernels.complexity_tiling import Cut, class_cut
from ddfast.operators.launch import chip_of, on_device
from ddfast.operators.library import implement
from ddfast.operators.schemas import accumulator, row_share


def _cut(features: Tensor, largest: int, num_classes: int) -> Cut:
    double = features.dtype == torch.float64
    return class_cut(num_classes, largest, features.shape[1], double, chip_of(features.device))


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
    width = features.shape[1]
    cut = _cut(features, largest, num_classes)
    splits = cut.grid[1]
    center, inform = centralization_weight != 0, cmi_weight != 0

    def empty(*shape: int) -> Tensor:
        return features.new_empty(shape, dtype=accumulator(features.dtype))

    def state(wanted: bool) -> Tensor:
        return empty(num_classes, width) if needs_grad and wanted else empty(0)

    loss = empty(num_classes) if reduction == "none" else empty()
    terms, parts = empty(2), empty(num_classes, splits, 2)
    centers, drift, log_q = state(center), state(center), state(inform)
    scales = empty(len(features), 2) if inform else None
    sums = masses = pulls = tickets = None
    rows = (features, offsets, index)
    sizes = (largest, width, num_classes, splits, *features.stride())
    weights = (centralization_weight, cmi_weight, row_share(reduction, features))
    wanted = {"CENTER": center, "INFORM": inform}
    if splits > 1:
        sums, masses = (empty(*(num_classes, splits, width) if it else (0,)) for it in (center, inform))
        pulls = empty(num_classes, splits, width) if center and needs_grad and alpha is not None else None
        tickets = features.new_empty(cut.grid[0] + 1, dtype=torch.int32)
        class_sums[cut.grid](*rows, sums, masses, scales, tickets, *sizes, **wanted, **cut.options)
    class_terms[cut.grid](
        *(*rows, sums, masses, scales, parts, pulls, centers, drift, log_q, loss, terms, tickets),
        *(*sizes, *weights, alpha or 0.0, beta),
        EXPONENTIAL=alpha is not None,
        KEEP=needs_grad,
        PER_CLASS=reduction == "none",
        **wanted,
        **cut.options,
    )
    if splits == 1:
        totals[1,](parts, loss, terms, num_classes, *weights, PER_CLASS=reduction == "none", **wanted, num_warps=4)
    return loss, terms, centers, drift, log_q


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
    cut = _cut(features, largest, num_classes)
    gradient = torch.empty_like(features)
    row_gradient[cut.grid](
        *(grad, features, offsets, index, centers, drift, log_q, gradient),
        *(largest, features.shape[1], num_classes, cut.grid[1]),
        *(grad.stride(0) if grad.ndim else 0, *features.stride(), *gradient.stride()),
        *(centralization_weight, cmi_weight * row_share(reduction, features), alpha or 0.0, beta),
        CENTER=centralization_weight != 0,
        INFORM=cmi_weight != 0,
        EXPONENTIAL=alpha is not None,
        DOUBLE=features.dtype == torch.float64,
        **cut.options,
    )
    return gradient


for _operator in (class_complexity, class_complexity_backward):
    implement("triton", _operator.__name__, _operator, "CompositeExplicitAutograd")
