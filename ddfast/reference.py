"""The losses as the papers define them: plain PyTorch, one class at a time, differentiated by autograd.

Nothing here is fast. It is the oracle of every test and a baseline of every benchmark, to be checked against the
papers by eye. IID is "Exploiting Inter-sample and Inter-feature Relations in Dataset Distillation" (CVPR 2024), CMI is
"Going Beyond Feature Similarity: Effective Dataset Distillation based on Class-aware Conditional Mutual Information"
(ICLR 2025), DM is "Dataset Condensation with Distribution Matching" (WACV 2023).

Each function takes the features of *one* class; `per_class` applies it to all of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def distribution_matching(real: Tensor, syn: Tensor) -> Tensor:
    """DM: || mean_n F_r − mean_m F_s ||² over flattened features; real (N, ...), syn (M, ...)."""
    return (real.detach().flatten(1).mean(0) - syn.flatten(1).mean(0)).square().sum()


def descriptors(features: Tensor, local: str) -> Tensor:
    """Feature maps as local descriptors: (N, C, P), or (N, C·H, W) for local="rows"; (N, E) becomes (N, E, 1)."""
    if local == "rows":
        return features.flatten(1, 2)
    return features.flatten(2) if features.ndim > 2 else features.unsqueeze(2)


def local_covariance(features: Tensor, local: str = "channels") -> Tensor:
    """IID: Sigma = (1/N) sum_n (F_n − M)(F_n − M)^T, M a mean for every channel and position; (N, ...) -> (C, C)."""
    maps = descriptors(features, local)
    centred = maps - maps.mean(0)
    return torch.einsum("ncp,ndp->cd", centred, centred) / len(maps)


def covariance_matching(real: Tensor, syn: Tensor, local: str = "channels") -> Tensor:
    """IID, covariance matching constraint: || Sigma_r − Sigma_s ||_F²."""
    return (local_covariance(real.detach(), local) - local_covariance(syn, local)).square().sum()


def class_centralization(features: Tensor, alpha: float | None = None, beta: float = 0.0) -> Tensor:
    """IID: sum_i max(0, exp(alpha·d_i²) − beta), or without alpha sum_i d_i²; d_i = || z_i − mean z ||; z (N, E)."""
    squared = (features - features.mean(0)).square().sum(1)  # (N,)
    return squared.sum() if alpha is None else (torch.exp(alpha * squared) - beta).clamp(min=0).sum()


def conditional_mutual_information(features: Tensor) -> Tensor:
    """CMI: sum_i KL(P_i || Q), P_i = softmax(z_i), Q = mean_i P_i, 0·log 0 = 0; not divided by N; z (N, E)."""
    log_p = torch.log_softmax(features, 1)  # (N, E)
    p = log_p.exp()
    q = p.mean(0)
    log_q = torch.where(q == 0, 1.0, q).log()
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum()


def per_class(loss: Callable[..., Tensor], num_classes: int, *sides: tuple[Tensor, Tensor]) -> Tensor:
    """`loss` of every class (K,); each side is (features (N, ...), labels (N,)); 0 for a class empty on any side."""
    terms = []
    for k in range(num_classes):
        members = [features[labels == k] for features, labels in sides]
        empty = any(len(rows) == 0 for rows in members)
        terms.append(members[-1].sum() * 0 if empty else loss(*members))
    return torch.stack(terms)
