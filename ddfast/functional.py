"""The losses, as functions: what a distillation script calls.

Common to all of them:

- Segments say which rows belong to which class; without any, all rows are one class, so a loss also works inside a
  Python loop over classes. A class that is empty on either side contributes 0. NaN stays NaN.
- Features are float32, float64, bfloat16 or float16, and sums are float32 or better. The result is a 0-dim float64 for
  float64 features and float32 otherwise; autocast never changes it.
- `real` is a constant: no gradient flows to it. Losses are first-order: a second backward through the gradient raises.
- `precision=None` keeps float32 accuracy whatever the global flags say, "tf32" allows TF32 products.
- `backend` names the implementation ("reference", "cpp", "triton", "cuda"); None is the fastest that runs here.
- No function synchronises with the device. A wrong argument raises ValueError or TypeError and says what was expected;
  a named backend that cannot run here raises NotImplementedError and says why.
"""

from typing import Literal, overload

from torch import Tensor

from ddfast import checks, operators
from ddfast.moments import ClassMoments
from ddfast.segments import ClassSegments

Terms = dict[str, Tensor]

__all__ = [
    "class_centralization",
    "class_complexity",
    "conditional_mutual_information",
    "covariance_matching",
    "distribution_matching",
    "moment_matching",
]


def distribution_matching(
    real: Tensor | ClassMoments,
    syn: Tensor,
    real_segments: ClassSegments | None = None,
    syn_segments: ClassSegments | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """L_DM = sum_k || mean_n F_r − mean_m F_s ||², over flattened features (DM, WACV 2023).

    Args:
        real: (N, C, H, W), (N, C, P) or (N, E) features, or their ClassMoments.
        syn: features (M, ...) of the same shape beyond the first dimension, of the same dtype and device.
        real_segments: the class of every real row; none with ClassMoments.
        syn_segments: the class of every synthetic row.
        backend: the implementation, by default the fastest that runs here.
    """
    local = real.local if isinstance(real, ClassMoments) else "channels"
    return _matching(real, syn, real_segments, syn_segments, 1.0, 0.0, local, None, backend)[0]


def covariance_matching(
    real: Tensor | ClassMoments,
    syn: Tensor,
    real_segments: ClassSegments | None = None,
    syn_segments: ClassSegments | None = None,
    *,
    local: str = "channels",
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """L_CM = sum_k || Sigma_r − Sigma_s ||_F², Sigma = (1/N) sum_n (F_n − M)(F_n − M)^T (IID, CVPR 2024).

    M = mean_n F_n has a mean for every channel and position; Sigma is (C, C), or (C·H, C·H) for local="rows".

    Args:
        real: (N, C, H, W), (N, C, P) or (N, E) features, or their ClassMoments of the same `local`.
        syn: features (M, ...) of the same shape beyond the first dimension, of the same dtype and device.
        real_segments: the class of every real row; none with ClassMoments.
        syn_segments: the class of every synthetic row.
        local: "channels", or "rows" for maps (N, C, H, W) read as C·H local descriptors of length W.
        precision: None or "tf32".
        backend: the implementation, by default the fastest that runs here.
    """
    return _matching(real, syn, real_segments, syn_segments, 0.0, 1.0, local, precision, backend)[0]


@overload
def moment_matching(
    real: Tensor | ClassMoments,
    syn: Tensor,
    real_segments: ClassSegments | None = ...,
    syn_segments: ClassSegments | None = ...,
    *,
    mean_weight: float = ...,
    covariance_weight: float = ...,
    local: str = ...,
    return_terms: Literal[False] = ...,
    precision: str | None = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def moment_matching(
    real: Tensor | ClassMoments,
    syn: Tensor,
    real_segments: ClassSegments | None = ...,
    syn_segments: ClassSegments | None = ...,
    *,
    mean_weight: float = ...,
    covariance_weight: float = ...,
    local: str = ...,
    return_terms: Literal[True],
    precision: str | None = ...,
    backend: str | None = ...,
) -> tuple[Tensor, Terms]: ...
def moment_matching(
    real: Tensor | ClassMoments,
    syn: Tensor,
    real_segments: ClassSegments | None = None,
    syn_segments: ClassSegments | None = None,
    *,
    mean_weight: float = 1.0,
    covariance_weight: float = 0.01,
    local: str = "channels",
    return_terms: bool = False,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Terms]:
    """mean_weight·L_DM + covariance_weight·L_CM in one pass over each side (IID on a DM base, CVPR 2024).

    Args:
        real, syn, real_segments, syn_segments, local, precision, backend: as in `covariance_matching`.
        mean_weight: of `distribution_matching`. A zero weight skips its term.
        covariance_weight: of `covariance_matching`; the paper's is 0.01 with DM and 0.03 with IDM.
        return_terms: return (loss, terms) as well, the unweighted losses by their names here, detached and 0-dim; a
            term of zero weight is not computed and left out.
    """
    weights = (checks.number("mean_weight", mean_weight), checks.number("covariance_weight", covariance_weight))
    loss, terms = _matching(real, syn, real_segments, syn_segments, *weights, local, precision, backend)
    names = ("distribution_matching", "covariance_matching")
    return (loss, _named(terms, names, weights)) if return_terms else loss


def class_centralization(
    features: Tensor,
    segments: ClassSegments | None = None,
    *,
    alpha: float | None = None,
    beta: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """L_CC = sum_k sum_i || z_i − mean_k z ||², or with `alpha` max(0, exp(alpha·d_i²) − beta) (IID, CVPR 2024).

    Args:
        features: (N, E), of the synthetic images under a pre-trained network.
        segments: the class of every row.
        alpha: None for the form of the released code, else the exponential form's rate.
        beta: the exponential form's threshold; needs `alpha`.
        backend: the implementation, by default the fastest that runs here.
    """
    return _complexity(features, segments, 1.0, 0.0, alpha, beta, "sum", backend)[0]


def conditional_mutual_information(
    features: Tensor,
    segments: ClassSegments | None = None,
    *,
    reduction: str = "batchmean",
    backend: str | None = None,
) -> Tensor:
    """L_CMI = (1/N) sum_i KL(P_i || Q_k(i)), P_i = softmax(z_i), Q_k = mean of P over the class (CMI, ICLR 2025).

    Args:
        features: (N, E), penultimate features or class logits; N counts the rows of all classes.
        segments: the class of every row.
        reduction: "batchmean" divides by N, "sum" does not, "none" gives the K per-class sums of KL.
        backend: the implementation, by default the fastest that runs here.
    """
    checks.one_of("reduction", reduction, ("batchmean", "sum", "none"))
    return _complexity(features, segments, 0.0, 1.0, None, 0.0, reduction, backend)[0]


@overload
def class_complexity(
    features: Tensor,
    segments: ClassSegments | None = ...,
    *,
    centralization_weight: float = ...,
    cmi_weight: float = ...,
    alpha: float | None = ...,
    beta: float = ...,
    return_terms: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def class_complexity(
    features: Tensor,
    segments: ClassSegments | None = ...,
    *,
    centralization_weight: float = ...,
    cmi_weight: float = ...,
    alpha: float | None = ...,
    beta: float = ...,
    return_terms: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Terms]: ...
def class_complexity(
    features: Tensor,
    segments: ClassSegments | None = None,
    *,
    centralization_weight: float = 0.05,
    cmi_weight: float = 1.0,
    alpha: float | None = None,
    beta: float = 0.0,
    return_terms: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Terms]:
    """centralization_weight·L_CC + cmi_weight·L_CMI in one pass over the features (IID and CMI).

    Args:
        features, segments, alpha, beta, backend: as in `class_centralization`.
        centralization_weight: of `class_centralization`; the paper's is 0.05 with DM. A zero weight skips its term.
        cmi_weight: of `conditional_mutual_information` as a batch mean.
        return_terms: return (loss, terms) as well, the unweighted losses by their names here, detached and 0-dim; a
            term of zero weight is not computed and left out.
    """
    weights = (checks.number("centralization_weight", centralization_weight), checks.number("cmi_weight", cmi_weight))
    loss, terms = _complexity(features, segments, *weights, alpha, beta, "batchmean", backend)
    names = ("class_centralization", "conditional_mutual_information")
    return (loss, _named(terms, names, weights)) if return_terms else loss


def _named(terms: Tensor, names: tuple[str, str], weights: tuple[float, float]) -> Terms:
    return {name: terms[i] for i, (name, weight) in enumerate(zip(names, weights, strict=True)) if weight != 0}


def _matching(
    real: Tensor | ClassMoments,
    syn: Tensor,
    real_segments: ClassSegments | None,
    syn_segments: ClassSegments | None,
    mean_weight: float,
    covariance_weight: float,
    local: str,
    precision: str | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Checks both sides and calls the operator for real features or for real moments."""
    checks.one_of("precision", precision, (None, "tf32"))
    form = checks.form("syn", syn, local)
    segments = checks.segments_of("syn_segments", syn_segments, syn)
    if isinstance(real, ClassMoments):
        side = checks.moments("real", real, real_segments, syn, form, segments, local)
        operator = "moment_matching_to_moments"
    else:
        side = checks.real_features("real", real, real_segments, syn, segments, local)
        operator = "moment_matching"
    return operators.moment_matching(
        operator,
        side,
        syn,
        form,
        segments,
        mean_weight=mean_weight,
        covariance_weight=covariance_weight,
        tf32=precision == "tf32",
        backend=backend,
    )


def _complexity(
    features: Tensor,
    segments: ClassSegments | None,
    centralization_weight: float,
    cmi_weight: float,
    alpha: float | None,
    beta: float,
    reduction: str,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    checks.rows("features", features)
    beta = checks.number("beta", beta)
    if alpha is None and beta != 0:
        raise ValueError(f"beta needs alpha, the exponential form's rate: got beta={beta} without alpha")
    return operators.class_complexity(
        features,
        checks.segments_of("segments", segments, features),
        centralization_weight=centralization_weight,
        cmi_weight=cmi_weight,
        alpha=None if alpha is None else checks.number("alpha", alpha),
        beta=beta,
        reduction=reduction,
        backend=backend,
    )
