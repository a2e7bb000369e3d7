"""The cuda backend of moment matching: Triton's moments, merged and compared by one CUDA launch of ddfast._C_cuda."""

import functools

import torch
from torch import Tensor

from ddfast.kernels import tables
from ddfast.operators import backends
from ddfast.operators.launch import chip_of
from ddfast.operators.library import implement, internal
from ddfast.operators.schemas import MATCHED
from ddfast.operators.triton_matching import Partials, Terms, matching_by, moment_matching_backward

internal(
    "match_partials(Tensor? real, Tensor? real_offsets, Tensor? real_index, SymInt real_largest,"
    " Tensor? counts, Tensor? means, Tensor? covariances, Tensor syn, Tensor? offsets, Tensor? index, SymInt largest,"
    " Tensor sums, Tensor? products, Tensor(a!) ticket, SymInt real_splits, SymInt splits,"
    f" float mean_weight, float covariance_weight, bool needs_grad) -> {MATCHED}"
)


def _match(
    partials: Partials, moments: tuple[Tensor, ...] | None, terms: Terms, weights: tuple[float, float]
) -> tuple[Tensor, ...]:
    plan, real, syn, sums, products, ticket = partials
    return torch.ops.ddfast.match_partials(
        *(real or (None, None, None, 0)), *(moments or (None, None, None)), *syn,
        sums, products, ticket, plan.real_splits, plan.splits, *weights, terms.state,
    )  # fmt: skip


for _operator in (*matching_by(_match), moment_matching_backward):
    implement("cuda", _operator.__name__, _operator, "CUDA")


@functools.cache
def _measured(device: torch.device) -> str | None:
    return tables.preferred(chip_of(device).name) if torch.cuda.is_available() else None


backends.faster["cuda"] = _measured
