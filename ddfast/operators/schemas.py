"""The operators: what each takes and returns, as schemas and as fakes (shapes and dtypes without values).

    class_moments                means and local covariances of every class
    moment_matching              distribution and covariance matching against real features
    moment_matching_to_moments   ... against the moments of real features
    moment_matching_backward     the gradient of either
    class_complexity             class centralization and conditional mutual information
    class_complexity_backward    its gradient
    augment                      an affine map of each group of images
    augment_backward             the transpose of its linear part

The operators of networks are in `block_schemas.py`.

Matching features come as (N, A, B, P), N images of D = A·B local descriptors (channels, or channels by rows) at P
positions, so that either `local` form of any memory format is read without a copy; complexity features as (N, E).
Classes come as `offsets` (K + 1,) into a row `index` (N,), both None where rows are sorted and classes equal, and the
rows of the largest class. A term whose weight is zero is not computed, and reported as 0.

Images come as (G, n, C, H, W), of any strides, and go contiguous. Row g of `table` (G, TABLE) float64, on their device,
is what happens to those of group g: an operation, four parameters, and an offset that COLOR adds. Rows and columns are
those of the result:

    COLOR   gain·x + a·(mean of x over C) + b·(mean over C, H, W) + offset     gain, a, b
    SHIFT   x at (row + down, column + right), 0 outside                       down, right
    CUT     0 in a rectangle, x elsewhere                                      first and end row, first and end column
    MIRROR  x with left and right exchanged
    SAMPLE  x bilinearly at M·(column, row) about the centre, 0 outside        M by rows, in pixels
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SIDE = "Tensor? offsets, Tensor? index, SymInt largest, SymInt num_classes"
MATCHING = "float mean_weight, float covariance_weight, bool tf32"
COMPLEXITY = "float centralization_weight, float cmi_weight, float? alpha, float beta, str reduction"

# The weighted loss (), its unweighted terms (2,), and what backward needs: 1/N of each class (K,), 0 where a side is
# empty; the synthetic means and what rounding took off them (K, D, P each); the gaps of the means (K, D, P) and of the
# covariances (K, D, D). Empty where no gradient is needed or the weight that asks for them is zero.
STATE = "Tensor share, Tensor centers, Tensor drift, Tensor mean_gap, Tensor covariance_gap"
MATCHED = f"(Tensor loss, Tensor terms, {STATE})"

# The weighted loss, () or (K,) for reduction "none", its unweighted terms (2,), and what backward needs: the class
# means (K, E), the pull on them (K, E; without alpha what rounding took off them) and log Q (K, E); empty likewise.
CENTRED = "(Tensor loss, Tensor terms, Tensor centers, Tensor drift, Tensor log_q)"

COLOR, SHIFT, CUT, MIRROR, SAMPLE = range(5)
TABLE = 6

SIGNATURES = {
    "class_moments": f"(Tensor features, {SIDE}, bool tf32) -> (Tensor means, Tensor covariances)",
    "moment_matching": "(Tensor real, Tensor? real_offsets, Tensor? real_index, SymInt real_largest,"
    f" Tensor syn, {SIDE}, {MATCHING}, bool needs_grad) -> {MATCHED}",
    "moment_matching_to_moments": "(Tensor counts, Tensor means, Tensor covariances,"
    f" Tensor syn, {SIDE}, {MATCHING}, bool needs_grad) -> {MATCHED}",
    "moment_matching_backward": f"(Tensor grad, Tensor syn, {SIDE}, {STATE}, {MATCHING}) -> Tensor",
    "class_complexity": f"(Tensor features, {SIDE}, {COMPLEXITY}, bool needs_grad) -> {CENTRED}",
    "class_complexity_backward": f"(Tensor grad, Tensor features, {SIDE},"
    f" Tensor centers, Tensor drift, Tensor log_q, {COMPLEXITY}) -> Tensor",
    "augment": "(Tensor images, Tensor table) -> Tensor",
    "augment_backward": "(Tensor grad, Tensor table) -> Tensor",
}


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums and results have: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_share(reduction: str, features: Tensor) -> float:
    """What a row's divergence counts for under a `reduction`."""
    return 1 / max(len(features), 1) if reduction == "batchmean" else 1.0


def _class_moments(features: Tensor, offsets: Any, index: Any, largest: int, num_classes: int, tf32: bool) -> Any:
    _, a, b, positions = features.shape
    dtype = accumulator(features.dtype)
    means = features.new_empty(num_classes, a * b, positions, dtype=dtype)
    return means, features.new_empty(num_classes, a * b, a * b, dtype=dtype)


def _matched(syn: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, _, _, num_classes, mean_weight, covariance_weight, _, needs_grad = rest
    _, a, b, positions = syn.shape
    means, covariances = (num_classes, a * b, positions), (num_classes, a * b, a * b)

    def state(shape: tuple[int, ...], weight: float = 1.0) -> Tensor:
        return syn.new_empty(shape if needs_grad and weight != 0 else 0, dtype=accumulator(syn.dtype))

    loss, terms = (syn.new_empty(shape, dtype=accumulator(syn.dtype)) for shape in ((), (2,)))
    centers, drift = state(means, covariance_weight), state(means, covariance_weight)
    gaps = state(means, mean_weight), state(covariances, covariance_weight)
    return loss, terms, state((num_classes,)), centers, drift, *gaps


def _moment_matching(real: Tensor, offsets: Any, index: Any, largest: int, syn: Tensor, *rest: Any) -> Any:
    return _matched(syn, *rest)


def _moment_matching_to_moments(counts: Tensor, means: Tensor, covariances: Tensor, syn: Tensor, *rest: Any) -> Any:
    return _matched(syn, *rest)


def _class_complexity(features: Tensor, *rest: Any) -> Any:
    _, _, _, num_classes, centralization_weight, cmi_weight, _, _, reduction, needs_grad = rest
    dtype = accumulator(features.dtype)

    def state(weight: float) -> Tensor:
        return features.new_empty((num_classes, features.shape[1]) if needs_grad and weight != 0 else 0, dtype=dtype)

    loss = features.new_empty((num_classes,) if reduction == "none" else (), dtype=dtype)
    terms = features.new_empty(2, dtype=dtype)
    return loss, terms, state(centralization_weight), state(centralization_weight), state(cmi_weight)


def _like_second(grad: Tensor, features: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(features)


def _contiguous(images: Tensor, table: Tensor) -> Tensor:
    return images.new_empty(images.shape)


FAKES: dict[str, Callable[..., Any]] = {
    "class_moments": _class_moments,
    "moment_matching": _moment_matching,
    "moment_matching_to_moments": _moment_matching_to_moments,
    "moment_matching_backward": _like_second,
    "class_complexity": _class_complexity,
    "class_complexity_backward": _like_second,
    "augment": _contiguous,
    "augment_backward": _contiguous,
}
