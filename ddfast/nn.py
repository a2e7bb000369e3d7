"""The losses of `ddfast.functional` as modules: options at construction, tensors and segments at the call."""

from typing import Any

from torch import Tensor, nn

from ddfast import functional
from ddfast.moments import ClassMoments
from ddfast.segments import ClassSegments

__all__ = [
    "ClassCentralization",
    "ClassComplexity",
    "ConditionalMutualInformation",
    "CovarianceMatching",
    "DistributionMatching",
    "MomentMatching",
]


class _Loss(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class DistributionMatching(_Loss):
    """`functional.distribution_matching`."""

    def __init__(self, *, backend: str | None = None) -> None:
        super().__init__(backend=backend)

    def forward(
        self,
        real: Tensor | ClassMoments,
        syn: Tensor,
        real_segments: ClassSegments | None = None,
        syn_segments: ClassSegments | None = None,
    ) -> Tensor:
        return functional.distribution_matching(real, syn, real_segments, syn_segments, **self.options)


class CovarianceMatching(_Loss):
    """`functional.covariance_matching`."""

    def __init__(self, *, local: str = "channels", precision: str | None = None, backend: str | None = None) -> None:
        super().__init__(local=local, precision=precision, backend=backend)

    def forward(
        self,
        real: Tensor | ClassMoments,
        syn: Tensor,
        real_segments: ClassSegments | None = None,
        syn_segments: ClassSegments | None = None,
    ) -> Tensor:
        return functional.covariance_matching(real, syn, real_segments, syn_segments, **self.options)


class MomentMatching(_Loss):
    """`functional.moment_matching`."""

    def __init__(
        self,
        *,
        mean_weight: float = 1.0,
        covariance_weight: float = 0.01,
        local: str = "channels",
        return_terms: bool = False,
        precision: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            mean_weight=mean_weight,
            covariance_weight=covariance_weight,
            local=local,
            return_terms=return_terms,
            precision=precision,
            backend=backend,
        )

    def forward(
        self,
        real: Tensor | ClassMoments,
        syn: Tensor,
        real_segments: ClassSegments | None = None,
        syn_segments: ClassSegments | None = None,
    ) -> Tensor | tuple[Tensor, functional.Terms]:
        return functional.moment_matching(real, syn, real_segments, syn_segments, **self.options)


class ClassCentralization(_Loss):
    """`functional.class_centralization`."""

    def __init__(self, *, alpha: float | None = None, beta: float = 0.0, backend: str | None = None) -> None:
        super().__init__(alpha=alpha, beta=beta, backend=backend)

    def forward(self, features: Tensor, segments: ClassSegments | None = None) -> Tensor:
        return functional.class_centralization(features, segments, **self.options)


class ConditionalMutualInformation(_Loss):
    """`functional.conditional_mutual_information`."""

    def __init__(self, *, reduction: str = "batchmean", backend: str | None = None) -> None:
        super().__init__(reduction=reduction, backend=backend)

    def forward(self, features: Tensor, segments: ClassSegments | None = None) -> Tensor:
        return functional.conditional_mutual_information(features, segments, **self.options)


class ClassComplexity(_Loss):
    """`functional.class_complexity`."""

    def __init__(
        self,
        *,
        centralization_weight: float = 0.05,
        cmi_weight: float = 1.0,
        alpha: float | None = None,
        beta: float = 0.0,
        return_terms: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            centralization_weight=centralization_weight,
            cmi_weight=cmi_weight,
            alpha=alpha,
            beta=beta,
            return_terms=return_terms,
            backend=backend,
        )

    def forward(
        self, features: Tensor, segments: ClassSegments | None = None
    ) -> Tensor | tuple[Tensor, functional.Terms]:
        return functional.class_complexity(features, segments, **self.options)
