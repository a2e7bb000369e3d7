"""The triton backend of the moments and of moment matching: buffers and launches around `ddfast.kernels`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ddfast.kernels import tiling
from ddfast.kernels.matching import merge_kernel
from ddfast.kernels.matching_backward import backward_kernel
from ddfast.kernels.moments import moments_kernel
from ddfast.operators.launch import chip_of, on_device
from ddfast.operators.library import implement
from ddfast.operators.schemas import accumulator


@dataclass(frozen=True)
class Side:
    """Features (N, A, B, P) by class; `splits` programs share the rows of a class, at most `rows` each."""

    features: Tensor
    offsets: Tensor | None
    index: Tensor | None
    largest: int
    splits: int = 0
    rows: int = 1

    @property
    def inner(self) -> tuple[int, ...]:
        """Strides of a, b and p."""
        return self.features.stride()[1:]

    @property
    def ragged(self) -> bool:
        return self.offsets is not None


@dataclass(frozen=True)
class Partials:
    """What `moments_kernel` adds up for both sides of all classes, and how it was cut."""

    real: Side | None
    syn: Side
    sums: Tensor  # (splits, K, D, P)
    products: Tensor | None  # (splits, K, TILES, BLOCK, BLOCK)
    tiling: tiling.Tiling
    precision: str
    num_classes: int
    ticket: Tensor | None  # (1,) int32, 0: what the programs or blocks that follow count themselves by


def _precision(dtype: torch.dtype, tf32: bool) -> str:
    if dtype == torch.float64:
        return "float64"
    return "float32" if dtype == torch.float32 and not tf32 else "tf32"  # half precision fits into tf32


def partials_of(
    real: Side | None, syn: Side, num_classes: int, covariance: bool, tf32: bool, counted: bool = False
) -> Partials:
    features = syn.features
    _, a, b, p = features.shape
    d, precision, chip = a * b, _precision(features.dtype, tf32), chip_of(features.device)
    cut = tiling.moments_tiling(d, p, precision, chip)
    tiles = tiling.pieces(d, cut.block, covariance)
    largest = tuple(side.largest for side in (real, syn) if side is not None)
    rows = tiling.rows_of_a_program(largest, num_classes * tiles, chip)
    syn = replace(syn, rows=rows, splits=-(-syn.largest // rows))
    real = real and replace(real, rows=rows, splits=-(-real.largest // rows))
    splits = (real.splits if real else 0) + syn.splits

    dtype = accumulator(features.dtype)
    sums = features.new_empty(splits, num_classes, d, p, dtype=dtype)
    products = features.new_empty(splits, num_classes, tiles, cut.block, cut.block, dtype=dtype) if covariance else None
    ticket = features.new_empty(1, dtype=torch.int32) if counted else None
    if ticket is not None and splits == 0:
        ticket.zero_()
    absent = replace(syn, splits=0)
    if real is None:
        launches = [(absent, syn)]
    elif real.inner == syn.inner:
        launches = [(real, syn)]
    else:  # another memory format is another launch
        launches = [(real, replace(real, splits=0)), (absent, syn)]
    done = 0
    for left, right in launches:
        programs = tiles * num_classes * (left.splits + right.splits)
        if programs:
            moments_kernel[(programs,)](
                left.features, left.offsets, left.index, right.features, right.offsets, right.index,
                sums[done:], None if products is None else products[done:], ticket,
                left.largest, left.rows, left.splits, right.largest, right.rows, right.splits,
                num_classes, d, b, p, left.features.stride(0), right.features.stride(0), *left.inner,
                TILES=tiles, BLOCK=cut.block, PART=tiling.PART, ROWS=cut.rows, BLOCK_P=cut.block_p,
                FULL=d % cut.block == 0 and p % cut.block_p == 0, REAL_RAGGED=left.ragged, RAGGED=right.ragged,
                COVARIANCE=covariance, PRECISION=precision, DIVISOR=tiling.divisor(p, *left.inner[:2]),
                num_warps=cut.warps, num_stages=cut.stages,
            )  # fmt: skip
        done += left.splits + right.splits
    return Partials(real, syn, sums, products, cut, precision, num_classes, ticket)


def _merge(
    partials: Partials,
    real: str,  # features, moments or none
    moments: tuple[Tensor, Tensor, Tensor] | None,  # counts, means, covariances
    outputs: Mapping[str, Tensor | None],
    mean: bool,
    covariance: bool,
    state: bool,
    loss: Tensor | None = None,
    terms: Tensor | None = None,
    weights: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Launches `merge_kernel`."""
    syn, cut, k = partials.syn, partials.tiling, partials.num_classes
    _, a, b, p = syn.features.shape
    d = a * b
    parts = tiling.merge_tiling(cut.block, partials.precision)
    count = tiling.pieces(d, parts.block, covariance)
    squares = None if loss is None else partials.sums.new_empty(2, k * count)
    left = partials.real or syn
    counts, means, covariances = moments or (None, None, None)
    merge_kernel[(count * k,)](
        left.features if means is None else means, covariances, counts, left.offsets, left.index,
        syn.features, syn.offsets, syn.index, partials.sums, partials.products,
        outputs["share"], outputs["centers"], outputs["drift"], outputs["mean_gap"], outputs["covariance_gap"],
        squares, partials.ticket, loss, terms, *weights,
        left.largest, partials.real.splits if partials.real else 0, syn.largest, syn.splits, k, d, b, p,
        *left.features.stride(), *syn.features.stride(),
        TILES=tiling.pieces(d, cut.block, covariance), BLOCK=cut.block, PARTS=count, PART=parts.block,
        BLOCK_P=parts.block_p, REAL=real, REAL_RAGGED=left.ragged, RAGGED=syn.ragged,
        MEAN=mean, COVARIANCE=covariance, STATE=state, SUM=_triton(partials.sums.dtype),
        SQUARES=tiling.SQUARES, DIVISOR=tiling.divisor(p, *left.inner[:2], *syn.inner[:2]),
        num_warps=parts.warps, num_stages=parts.stages,
    )  # fmt: skip


def _triton(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


@on_device
def class_moments(
    features: Tensor, offsets: Tensor | None, index: Tensor | None, largest: int, num_classes: int, tf32: bool
) -> tuple[Tensor, Tensor]:
    _, a, b, p = features.shape
    dtype = accumulator(features.dtype)
    means = features.new_empty(num_classes, a * b, p, dtype=dtype)
    covariances = features.new_empty(num_classes, a * b, a * b, dtype=dtype)
    partials = partials_of(None, Side(features, offsets, index, largest), num_classes, True, tf32)
    outputs = {"share": None, "centers": means, "drift": None, "mean_gap": None, "covariance_gap": covariances}
    _merge(partials, "none", None, outputs, mean=False, covariance=True, state=False)
    return means, covariances


def _match(
    partials: Partials, moments: Any, mean_weight: float, covariance_weight: float, needs_grad: bool
) -> tuple[Tensor, ...]:
    k, dtype, features = partials.num_classes, partials.sums.dtype, partials.syn.features
    _, a, b, p = features.shape
    mean, covariance = mean_weight != 0, covariance_weight != 0

    def state(*shape: int, of: bool = True) -> Tensor:
        return features.new_empty(shape if needs_grad and of else 0, dtype=dtype)

    outputs = {
        "share": state(k),
        "centers": state(k, a * b, p, of=covariance),
        "drift": state(k, a * b, p, of=covariance),
        "mean_gap": state(k, a * b, p, of=mean),
        "covariance_gap": state(k, a * b, a * b, of=covariance),
    }
    real = "features" if moments is None else "moments"
    loss, terms = features.new_empty((), dtype=dtype), features.new_empty(2, dtype=dtype)
    weights = mean_weight, covariance_weight
    _merge(partials, real, moments, outputs, mean, covariance, needs_grad, loss, terms, weights)
    return loss, terms, *outputs.values()


def matching_by(match: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """moment_matching and moment_matching_to_moments of a backend, of which `match` does what follows the partials."""

    @on_device
    def moment_matching(*args: Any) -> tuple[Tensor, ...]:
        real, syn, (num_classes, mean_weight, covariance_weight, tf32, needs_grad) = args[:4], args[4:8], args[8:]
        partials = partials_of(Side(*real), Side(*syn), num_classes, covariance_weight != 0, tf32, counted=True)
        return match(partials, None, mean_weight, covariance_weight, needs_grad)

    @on_device
    def moment_matching_to_moments(*args: Any) -> tuple[Tensor, ...]:
        moments, syn, (num_classes, mean_weight, covariance_weight, tf32, needs_grad) = args[:3], args[3:7], args[7:]
        partials = partials_of(None, Side(*syn), num_classes, covariance_weight != 0, tf32, counted=True)
        real = tuple(moment.contiguous() for moment in moments)
        return match(partials, real, mean_weight, covariance_weight, needs_grad)

    yield from (moment_matching, moment_matching_to_moments)


@on_device
def moment_matching_backward(
    grad: Tensor,
    syn: Tensor,
    offsets: Tensor | None,
    index: Tensor | None,
    largest: int,
    num_classes: int,
    share: Tensor,
    centers: Tensor,
    drift: Tensor,
    mean_gap: Tensor,
    covariance_gap: Tensor,
    mean_weight: float,
    covariance_weight: float,
    tf32: bool,
) -> Tensor:
    _, a, b, p = syn.shape
    d, precision = a * b, _precision(syn.dtype, tf32)
    gradient = torch.empty_like(syn)
    cut = tiling.backward_tiling(d, p, precision, chip_of(syn.device))
    tiles, blocks = tiling.pieces(d, cut.block, triangle=False), -(-largest // cut.rows)
    grid = (tiles * blocks * num_classes, -(-p // cut.block_p))
    if syn.numel() == 0:
        return gradient
    strides = *syn.stride(), *gradient.stride()
    backward_kernel[grid](
        gradient, grad, syn, offsets, index, share, centers, drift, mean_gap, covariance_gap,
        mean_weight, covariance_weight, largest, blocks, d, b, p, *strides,
        TILES=tiles, BLOCK=cut.block, STEP=min(32, cut.block), ROWS=cut.rows, BLOCK_P=cut.block_p,
        RAGGED=offsets is not None, MEAN=mean_weight != 0, COVARIANCE=covariance_weight != 0,
        PRECISION=precision, SUM=_triton(share.dtype), DIVISOR=tiling.divisor(p, *strides[1:3], *strides[5:7]),
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return gradient


moment_matching, moment_matching_to_moments = matching_by(_match)

for _operator in (class_moments, moment_matching, moment_matching_to_moments, moment_matching_backward):
    implement("triton", _operator.__name__, _operator, "CompositeExplicitAutograd")
