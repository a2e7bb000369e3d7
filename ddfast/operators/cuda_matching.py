"""The cuda backend of moment matching: Triton's moments, merged and compared by one CUDA launch of ddfast._C_cuda."""

import functools

import torch
from torch import Tensor

from ddfast.kernels import tables
from ddfast.operators import backends
from ddfast.operators.launch import chip_of
from ddfast.operators.library import implement, internal
from ddfast.operators.schemas import MATCHED
from ddfast.operators.triton_matching import Partials, matching_by, moment_matching_backward

internal(
    "match_partials(Tensor? real, Tensor? real_offsets, Tensor? real_index, SymInt real_largest,"
    " Tensor? counts, Tensor? means, Tensor? covariances, Tensor syn, Tensor? offsets, Tensor? index, SymInt largest,"
    " Tensor sums, Tensor? products, Tensor(a!) ticket, SymInt real_splits, SymInt splits,"
    f" float mean_weight, float covariance_weight, bool needs_grad) -> {MATCHED}"
)


def _match(
    partials: Partials,
    moments: tuple[Tensor, ...] | None,
    mean_weight: float,
    covariance_weight: float,
    needs_grad: bool,
) -> tuple[Tensor, ...]:
    real, syn = partials.real, partials.syn
    side = (real.features, real.offsets, real.index, real.largest) if real else (None, None, None, 0)
    return torch.ops.ddfast.match_partials(
        *side, *(moments or (None, None, None)), syn.features, syn.offsets, syn.index, syn.largest,
        partials.sums, partials.products, partials.ticket, real.splits if real else 0, syn.splits,
        mean_weight, covariance_weight, needs_grad,
    )  # fmt: skip


for _operator in (*matching_by(_match, counted=True), moment_matching_backward):
    implement("cuda", _operator.__name__, _operator, "CUDA")


@functools.cache
def _measured(device: torch.device) -> str | None:
    return tables.preferred(chip_of(device).name) if torch.cuda.is_available() else None


backends.faster["cuda"] = _measured
