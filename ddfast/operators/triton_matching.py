"""The triton backend of the moments and of moment matching: buffers and launches around `ddfast.kernels`."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ddfast.kernels import tiling
from ddfast.kernels.matching import merge_kernel
from ddfast.kernels.matching_backward import backward_kernel
from ddfast.kernels.moments import moments_kernel
from ddfast.kernels.tiling import Chip
from ddfast.operators.launch import Launch, Spec, chip_of, on_device, planned, spec
from ddfast.operators.library import implement
from ddfast.operators.schemas import accumulator


class Side(NamedTuple):
    """Features (N, A, B, P) by class."""

    features: Tensor
    offsets: Tensor | None
    index: Tensor | None  # type: ignore[assignment]  # a tuple has a method of this name, which nobody calls
    largest: int

    @property
    def form(self) -> "Form":
        rows = None if self.offsets is None or self.index is None else (self.offsets.dtype, self.index.dtype)
        return Form(spec(self.features), rows, self.largest)


class Form(NamedTuple):
    """What a plan knows of a side."""

    features: Spec
    rows: tuple[torch.dtype, torch.dtype] | None  # of ragged classes: dtypes of offsets and index
    largest: int

    @property
    def inner(self) -> tuple[int, ...]:
        """Strides of a, b and p."""
        return self.features.stride[1:]


class Terms(NamedTuple):
    """What is wanted of both sides."""

    real: str  # features, moments or none
    mean: bool
    covariance: bool
    state: bool  # what backward needs
    tf32: bool


class Plan(NamedTuple):
    """Launches of `moments_kernel` and `merge_kernel`, and shapes of what they write.

    `splits` programs share the rows of a class on each side.
    """

    dtype: torch.dtype
    real_splits: int
    splits: int
    sums: tuple[int, ...]  # (splits of both sides, K, D, P)
    products: tuple[int, ...] | None  # (splits of both sides, K, TILES, BLOCK, BLOCK)
    moments: tuple[tuple[int, int, int, Launch], ...]  # number of the left and the right side, splits before these
    merge: Launch
    squares: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]  # share, centers, drift, gaps of means and of covariances


class Partials(NamedTuple):
    """What `moments_kernel` adds up for both sides of all classes."""

    plan: Plan
    real: Side | None
    syn: Side
    sums: Tensor
    products: Tensor | None
    ticket: Tensor | None  # (1,) int32, 0: what the programs or blocks that follow count themselves by


@planned
def _plan(real: Form | None, syn: Form, num_classes: int, terms: Terms, moments: Any, chip: Chip) -> Plan:
    _, a, b, p = syn.features.shape
    d, k, covariance = a * b, num_classes, terms.covariance
    precision, dtype = _precision(syn.features.dtype, terms.tf32), accumulator(syn.features.dtype)
    cut = tiling.moments_tiling(d, p, precision, chip)
    tiles = tiling.pieces(d, cut.block, covariance)
    rows = tiling.rows_of_a_program(tuple(it.largest for it in (real, syn) if it is not None), k * tiles, chip)
    splits = -(-syn.largest // rows)
    real_splits = 0 if real is None else -(-real.largest // rows)

    def add_up(left: Form, right: Form, left_splits: int, right_splits: int) -> Launch:
        return Launch(
            moments_kernel,
            (tiles * k * (left_splits + right_splits),),
            (left.largest, rows, left_splits, right.largest, rows, right_splits, k, d, b, p),
            (left.features.stride[0], right.features.stride[0], *left.inner),
            TILES=tiles, BLOCK=cut.block, PART=tiling.PART, ROWS=cut.rows, BLOCK_P=cut.block_p,
            FULL=d % cut.block == 0 and p % cut.block_p == 0,
            REAL_RAGGED=left.rows is not None, RAGGED=right.rows is not None,
            COVARIANCE=covariance, PRECISION=precision, DIVISOR=tiling.divisor(p, *left.inner[:2]),
            num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip

    if real is None:
        launches = [(1, 1, 0, add_up(syn, syn, 0, splits))] if splits else []
    elif real.inner == syn.inner:
        launches = [(0, 1, 0, add_up(real, syn, real_splits, splits))] if real_splits + splits else []
    else:  # another memory format is another launch
        launches = [(0, 0, 0, add_up(real, real, real_splits, 0))] if real_splits else []
        launches += [(1, 1, real_splits, add_up(syn, syn, 0, splits))] if splits else []
    parts, left = tiling.merge_tiling(cut.block, precision), real or syn
    count = tiling.pieces(d, parts.block, covariance)
    merge = Launch(
        merge_kernel,
        (count * k,),
        after=(
            *(left.largest, real_splits, syn.largest, splits, k, d, b, p),
            *(*left.features.stride, *syn.features.stride),
        ),
        TILES=tiles, BLOCK=cut.block, PARTS=count, PART=parts.block, BLOCK_P=parts.block_p,
        REAL=terms.real, REAL_RAGGED=left.rows is not None, RAGGED=syn.rows is not None,
        MEAN=terms.mean, COVARIANCE=covariance, STATE=terms.state, SUM=_triton(dtype),
        SQUARES=tiling.SQUARES, DIVISOR=tiling.divisor(p, *left.inner[:2], *syn.inner[:2]),
        num_warps=parts.warps, num_stages=parts.stages,
    )  # fmt: skip
    maps, squared = (k, d, p), (k, d, d)
    outputs = ((k,), maps, maps, maps, squared)
    asked = (True, covariance, covariance, terms.mean, covariance)
    return Plan(
        dtype, real_splits, splits, (real_splits + splits, k, d, p),
        (real_splits + splits, k, tiles, cut.block, cut.block) if covariance else None,
        tuple(launches), merge, (2, k * count),
        tuple(shape if terms.state and it else (0,) for shape, it in zip(outputs, asked, strict=True)),
    )  # fmt: skip


def _precision(dtype: torch.dtype, tf32: bool) -> str:
    if dtype == torch.float64:
        return "float64"
    return "float32" if dtype == torch.float32 and not tf32 else "tf32"  # half precision fits into tf32


def _triton(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def partials_of(real: Side | None, syn: Side, num_classes: int, terms: Terms, moments: Any = None) -> Partials:
    features = syn.features
    plan = _plan(
        None if real is None else real.form, syn.form, num_classes, terms,
        None if moments is None else tuple(it.dtype for it in moments), chip_of(features.device),
    )  # fmt: skip
    sums = features.new_empty(plan.sums, dtype=plan.dtype)
    products = None if plan.products is None else features.new_empty(plan.products, dtype=plan.dtype)
    ticket = None if terms.real == "none" else features.new_empty(1, dtype=torch.int32)
    if ticket is not None and not plan.moments:
        ticket.zero_()
    sides = real or syn, syn
    for left_number, right_number, done, launch in plan.moments:
        left, right = sides[left_number], sides[right_number]
        launch(
            left.features, left.offsets, left.index, right.features, right.offsets, right.index,
            sums[done:] if done else sums, products[done:] if done and products is not None else products, ticket,
        )  # fmt: skip
    return Partials(plan, real, syn, sums, products, ticket)


@on_device
def class_moments(
    features: Tensor, offsets: Tensor | None, index: Tensor | None, largest: int, num_classes: int, tf32: bool
) -> tuple[Tensor, Tensor]:
    _, a, b, p = features.shape
    syn = Side(features, offsets, index, largest)
    plan, _, _, sums, products, _ = partials_of(None, syn, num_classes, Terms("none", False, True, False, tf32))
    means = features.new_empty(num_classes, a * b, p, dtype=plan.dtype)
    covariances = features.new_empty(num_classes, a * b, a * b, dtype=plan.dtype)
    plan.merge(
        features, None, None, offsets, index, features, offsets, index, sums, products,
        None, means, None, None, covariances, None, None, None, None, floats=(0.0, 0.0),
    )  # fmt: skip
    return means, covariances


def _match(
    partials: Partials, moments: tuple[Tensor, ...] | None, terms: Terms, weights: tuple[float, float]
) -> tuple[Tensor, ...]:
    plan, real, syn, sums, products, ticket = partials
    outputs = [sums.new_empty(shape) for shape in plan.outputs]
    loss, both, squares = sums.new_empty(()), sums.new_empty(2), sums.new_empty(plan.squares)
    counts, means, covariances = moments or (None, real.features if real else None, None)
    left = real or syn
    plan.merge(
        means, covariances, counts, left.offsets, left.index, syn.features, syn.offsets, syn.index, sums, products,
        *(outputs if terms.state else (None,) * 5), squares, ticket, loss, both, floats=weights,
    )  # fmt: skip
    return loss, both, *outputs


def matching_by(match: Callable[..., tuple[Tensor, ...]]) -> Iterator[Callable[..., Any]]:
    """moment_matching and moment_matching_to_moments of a backend, of which `match` does what follows the partials."""

    @on_device
    def moment_matching(*args: Any) -> tuple[Tensor, ...]:
        num_classes, mean_weight, covariance_weight, tf32, needs_grad = args[8:]
        terms = Terms("features", mean_weight != 0, covariance_weight != 0, needs_grad, tf32)
        partials = partials_of(Side(*args[:4]), Side(*args[4:8]), num_classes, terms)
        return match(partials, None, terms, (mean_weight, covariance_weight))

    @on_device
    def moment_matching_to_moments(*args: Any) -> tuple[Tensor, ...]:
        num_classes, mean_weight, covariance_weight, tf32, needs_grad = args[7:]
        terms = Terms("moments", mean_weight != 0, covariance_weight != 0, needs_grad, tf32)
        moments = tuple(moment.contiguous() for moment in args[:3])
        partials = partials_of(None, Side(*args[3:7]), num_classes, terms, moments)
        return match(partials, moments, terms, (mean_weight, covariance_weight))

    yield from (moment_matching, moment_matching_to_moments)


@planned
def _backward_plan(
    syn: Form, out: tuple[int, ...], num_classes: int, terms: Terms, dtypes: tuple[torch.dtype, torch.dtype], chip: Chip
) -> Launch:
    (_, a, b, p), strides = syn.features.shape, syn.features.stride
    d, precision = a * b, _precision(syn.features.dtype, terms.tf32)
    cut = tiling.backward_tiling(d, p, precision, chip)
    tiles, blocks = tiling.pieces(d, cut.block, triangle=False), -(-syn.largest // cut.rows)
    return Launch(
        backward_kernel,
        (tiles * blocks * num_classes, -(-p // cut.block_p)),
        after=(syn.largest, blocks, d, b, p, *strides, *out),
        TILES=tiles, BLOCK=cut.block, STEP=min(32, cut.block), ROWS=cut.rows, BLOCK_P=cut.block_p,
        RAGGED=syn.rows is not None, MEAN=terms.mean, COVARIANCE=terms.covariance,
        PRECISION=precision, SUM=_triton(dtypes[1]), DIVISOR=tiling.divisor(p, *strides[1:3], *out[1:3]),
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip


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
    gradient = torch.empty_like(syn)
    if syn.numel() == 0:
        return gradient
    form = Side(syn, offsets, index, largest).form
    terms = Terms("", mean_weight != 0, covariance_weight != 0, True, tf32)
    chip = chip_of(syn.device)
    launch = _backward_plan(form, gradient.stride(), num_classes, terms, (grad.dtype, share.dtype), chip)
    launch(
        gradient, grad, syn, offsets, index, share, centers, drift, mean_gap, covariance_gap,
        floats=(mean_weight, covariance_weight),
    )  # fmt: skip
    return gradient


moment_matching, moment_matching_to_moments = matching_by(_match)

for _operator in (class_moments, moment_matching, moment_matching_to_moments, moment_matching_backward):
    implement("triton", _operator.__name__, _operator, "CompositeExplicitAutograd")
