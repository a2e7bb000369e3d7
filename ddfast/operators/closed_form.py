"""The reference backend: every operator in vectorised PyTorch, gradients in closed form, on any device.

It trades memory for plainness: rows are gathered into a block padded to the largest class, and float32 products keep
their accuracy whatever autocast, the global precision flags or `tf32` allow. That is only more accurate than asked.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddfast.operators.library import implement
from ddfast.operators.schemas import accumulator, row_share


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with float32 accuracy: in float64 where the global flags would lower a float32 product.

    The flags are read and never written: other threads see them too, and one that inherits its value from a wider flag
    could not be set back.
    """
    flags = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    if all(flag.fp32_precision in ("none", "ieee") for flag in flags):
        return a @ b
    return (a.double() @ b.double()).to(a.dtype)


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any) -> Any:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        with torch.autocast(device.type, enabled=False):
            return function(*args)

    return run


class _Rows:
    """Rows of N by class, as a block (K, L, ...) padded with zeros to the largest class."""

    def __init__(self, rows: Tensor, offsets: Tensor | None, index: Tensor | None, largest: int, num_classes: int):
        self.shape = (num_classes, largest)
        self.slot = None  # (N,) where row n lies in the flattened block
        if offsets is None or index is None:
            self.counts = torch.full((num_classes,), largest, device=rows.device)
            self.member = torch.ones(self.shape, dtype=torch.bool, device=rows.device)
            return
        self.counts = offsets.diff()
        rank = torch.arange(largest, device=rows.device)
        self.member = rank < self.counts[:, None]
        self.source = index[(offsets[:-1, None] + rank).clamp(max=max(len(index) - 1, 0))] if len(index) else None
        position = torch.arange(len(index), device=rows.device)
        label = torch.searchsorted(offsets, position, right=True) - 1
        self.slot = torch.empty_like(index).scatter_(0, index, label * largest + position - offsets[label])

    def block(self, rows: Tensor) -> Tensor:
        """(N, ...) -> (K, L, ...)."""
        if self.slot is None:
            return rows.unflatten(0, self.shape)
        if self.source is None:
            return rows.new_zeros(*self.shape, *rows.shape[1:])
        return self.mask(rows[self.source])

    def mask(self, block: Tensor) -> Tensor:
        """Zeros where the block has no row; a NaN elsewhere stays."""
        member = self.member.reshape(*self.shape, *[1] * (block.ndim - 2))
        return torch.where(member, block, 0)

    def rows(self, block: Tensor) -> Tensor:
        """(K, L, ...) -> (N, ...)."""
        flat = block.flatten(0, 1)
        return flat if self.slot is None else flat[self.slot]

    def mean(self, block: Tensor) -> Tensor:
        """(K, L, ...) -> (K, ...), zeros for an empty class."""
        return block.sum(1) / self.counts.clamp(min=1).reshape(-1, *[1] * (block.ndim - 2))


def _centred(rows: _Rows, block: Tensor, means: Tensor) -> Tensor:
    """(K, L, D, P) -> F − M as (K, D, L·P), zeros where there is no row."""
    return rows.mask(block - means[:, None]).transpose(1, 2).flatten(2)


def _covariances(rows: _Rows, centred: Tensor) -> Tensor:
    """(K, D, L·P) -> (K, D, D)."""
    return product(centred, centred.transpose(1, 2)) / rows.counts.clamp(min=1).reshape(-1, 1, 1)


def _moments(rows: _Rows, block: Tensor, covariance: bool) -> tuple[Tensor, Tensor]:
    """(K, L, D, P) -> means (K, D, P) and centred second moments / N (K, D, D), or (0,) without them."""
    means = rows.mean(block)
    return means, _covariances(rows, _centred(rows, block, means)) if covariance else block.new_empty(0)


def _maps(features: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, A, B, P) -> (N, D, P), D = A·B local descriptors."""
    return features.to(dtype).flatten(1, 2)


@without_autocast
def class_moments(
    features: Tensor, offsets: Tensor | None, index: Tensor | None, largest: int, num_classes: int, tf32: bool
) -> tuple[Tensor, Tensor]:
    rows = _Rows(features, offsets, index, largest, num_classes)
    return _moments(rows, rows.block(_maps(features, accumulator(features.dtype))), covariance=True)


@without_autocast
def moment_matching_to_moments(
    counts: Tensor,
    means: Tensor,
    covariances: Tensor,
    syn: Tensor,
    offsets: Tensor | None,
    index: Tensor | None,
    largest: int,
    num_classes: int,
    mean_weight: float,
    covariance_weight: float,
    tf32: bool,
    needs_grad: bool,
) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(accumulator(syn.dtype), means.dtype)
    rows = _Rows(syn, offsets, index, largest, num_classes)
    block = rows.block(_maps(syn, dtype))
    centers = rows.mean(block)
    matched = (counts > 0) & (rows.counts > 0)
    share = torch.where(matched, 1 / rows.counts.clamp(min=1).to(dtype), 0)  # (K,)
    drift, mean_gap, covariance_gap = (centers.new_empty(0) for _ in range(3))
    terms = centers.new_zeros(2)
    if mean_weight != 0:
        mean_gap = torch.where(matched[:, None, None], centers - means, 0)  # (K, D, P)
        terms[0] = mean_gap.square().sum()
    if covariance_weight != 0:
        centred = _centred(rows, block, centers)
        covariance_gap = torch.where(matched[:, None, None], _covariances(rows, centred) - covariances, 0)  # (K, D, D)
        terms[1] = covariance_gap.square().sum()
        drift = rows.mean(rows.mask(block - centers[:, None]))
    terms = terms.to(accumulator(syn.dtype))
    loss = mean_weight * terms[0] + covariance_weight * terms[1]
    wanted = (needs_grad, *2 * [needs_grad and covariance_weight != 0], needs_grad, needs_grad)
    state = zip((share, centers, drift, mean_gap, covariance_gap), wanted, strict=True)
    return loss, terms, *((kept if w else kept.new_empty(0)).to(terms.dtype) for kept, w in state)


@without_autocast
def moment_matching(
    real: Tensor,
    real_offsets: Tensor | None,
    real_index: Tensor | None,
    real_largest: int,
    syn: Tensor,
    offsets: Tensor | None,
    index: Tensor | None,
    largest: int,
    num_classes: int,
    mean_weight: float,
    covariance_weight: float,
    tf32: bool,
    needs_grad: bool,
) -> tuple[Tensor, ...]:
    rows = _Rows(real, real_offsets, real_index, real_largest, num_classes)
    block = rows.block(_maps(real, accumulator(real.dtype)))
    means, covariances = _moments(rows, block, covariance_weight != 0)
    side = (syn, offsets, index, largest, num_classes)
    return moment_matching_to_moments(
        rows.counts, means, covariances, *side, mean_weight, covariance_weight, tf32, needs_grad
    )


@without_autocast
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
    # dL/dF_n = (4w/N)·Delta·(F_n − M) + (2w'/N)·D; the terms through the means cancel. They also take away the rounding
    # of M, which a large mean makes as large as F_n − M: that is the drift.
    rows = _Rows(syn, offsets, index, largest, num_classes)
    block = rows.block(_maps(syn, share.dtype))  # (K, L, D, P)
    gradient = torch.zeros_like(block)
    if covariance_weight != 0:
        # One product per class, (D, D) by (D, L·P): a batch of them with a small P adds up less accurately.
        centred = (block - centers[:, None] - drift[:, None]).transpose(1, 2)  # (K, D, L, P)
        pulled = product(covariance_gap, centred.flatten(2)).reshape(centred.shape)
        gradient = (4 * covariance_weight) * pulled.transpose(1, 2)
    if mean_weight != 0:
        gradient = gradient + (2 * mean_weight) * mean_gap[:, None]
    scale = share.reshape(-1, 1, 1, 1)
    gradient = torch.where(scale == 0, 0, grad * scale * gradient)
    return torch.empty_like(syn).copy_(rows.rows(gradient).reshape(syn.shape))


def _distribution(rows: _Rows, block: Tensor) -> tuple[Tensor, Tensor]:
    """(K, L, E) -> log P (K, L, E) and log Q (K, E); a Q that underflows has log 1, for its P is 0 as well."""
    log_p = torch.log_softmax(block, -1)
    q = rows.mean(rows.mask(log_p.exp()))
    return log_p, torch.where(q == 0, 1, q).log()


def _divergence(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """P and the summands P·(log P − log Q) of the KL in its direct form, with 0·log 0 = 0."""
    p = log_p.exp()
    return p, torch.where(p == 0, 0, p * (log_p - log_q[:, None]))


@without_autocast
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
    rows = _Rows(features, offsets, index, largest, num_classes)
    block = rows.block(features.to(accumulator(features.dtype)))  # (K, L, E)
    centers, drift, log_q = (block.new_empty(0) for _ in range(3))
    spread = kl = block.new_zeros(num_classes)
    if centralization_weight != 0:
        centers = rows.mean(block)  # (K, E)
        offset = rows.mask(block - centers[:, None])
        squared = offset.square().sum(-1)  # (K, L)
        spread = squared
        drift = rows.mean(offset)
        if alpha is not None:
            spread = rows.mask((torch.exp(alpha * squared) - beta).clamp(min=0))
            drift = rows.mean(_pull(squared, alpha, beta)[..., None] * offset)
        spread = spread.sum(1)
    if cmi_weight != 0:
        log_p, log_q = _distribution(rows, block)
        kl = rows.mask(_divergence(log_p, log_q)[1].sum(-1)).sum(1)
    per_class = centralization_weight * spread + cmi_weight * row_share(reduction, features) * kl
    terms = torch.stack([spread.sum(), row_share(reduction, features) * kl.sum()])
    loss = per_class if reduction == "none" else per_class.sum()
    if not needs_grad:
        centers, drift, log_q = (block.new_empty(0) for _ in range(3))
    return loss, terms, centers, drift, log_q


@without_autocast
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
    # dL_CC/dz_i = 2(w_i·(z_i − c) − mean_j w_j·(z_j − c)); without alpha w = 1, the second part the rounding of c;
    # dL_CMI/dz_i = P_i ⊙ (log P_i − log Q − KL_i); the term through Q cancels.
    rows = _Rows(features, offsets, index, largest, num_classes)
    block = rows.block(features.to(accumulator(features.dtype)))  # (K, L, E)
    gradient = torch.zeros_like(block)
    if centralization_weight != 0:
        offset = block - centers[:, None]
        if alpha is not None:
            offset = _pull(offset.square().sum(-1), alpha, beta)[..., None] * offset
        gradient = (2 * centralization_weight) * (offset - drift[:, None])
    if cmi_weight != 0:
        p, summands = _divergence(torch.log_softmax(block, -1), log_q)
        pulled = summands - p * summands.sum(-1, keepdim=True)
        gradient = gradient + (cmi_weight * row_share(reduction, features)) * pulled
    return torch.empty_like(features).copy_(rows.rows(gradient * grad.reshape(-1, 1, 1)))


def _pull(squared: Tensor, alpha: float, beta: float) -> Tensor:
    """d max(0, exp(alpha·s) − beta) / ds."""
    grown = torch.exp(alpha * squared)
    return torch.where(grown < beta, 0, alpha * grown)


for _operator in (
    class_moments,
    moment_matching,
    moment_matching_to_moments,
    moment_matching_backward,
    class_complexity,
    class_complexity_backward,
):
    implement("reference", _operator.__name__, _operator, "CompositeExplicitAutograd")
