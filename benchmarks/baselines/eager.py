"""The losses in the best eager PyTorch there is: all classes at once, one batched product a side, plain autograd.

Names and options are those of `ddfast.functional`; rows are sorted by class, equally many of each of `classes`.
"""

import torch
from torch import Tensor

from ddfast.reference import descriptors


def class_moments(features: Tensor, classes: int, local: str = "channels") -> tuple[Tensor, Tensor]:
    block = descriptors(features, local).unflatten(0, (classes, -1))  # (K, L, C, P)
    means = block.mean(1)
    centred = (block - means[:, None]).transpose(1, 2).flatten(2)  # (K, C, L·P)
    return means, torch.bmm(centred, centred.transpose(1, 2)) / block.shape[1]


def distribution_matching(real: Tensor, syn: Tensor, classes: int) -> Tensor:
    means = [side.flatten(1).unflatten(0, (classes, -1)).mean(1) for side in (real, syn)]  # (K, C·P)
    return (means[0] - means[1]).square().sum()


def covariance_matching(real: Tensor, syn: Tensor, classes: int, local: str = "channels") -> Tensor:
    return (class_moments(real, classes, local)[1] - class_moments(syn, classes, local)[1]).square().sum()


def moment_matching(
    real: Tensor,
    syn: Tensor,
    classes: int,
    mean_weight: float = 1.0,
    covariance_weight: float = 0.01,
    local: str = "channels",
) -> Tensor:
    means, covariances = class_moments(real, classes, local)
    syn_means, syn_covariances = class_moments(syn, classes, local)
    matched = mean_weight * (means - syn_means).square().sum()
    return matched + covariance_weight * (covariances - syn_covariances).square().sum()


def class_centralization(features: Tensor, classes: int) -> Tensor:
    block = features.unflatten(0, (classes, -1))  # (K, L, E)
    return (block - block.mean(1, keepdim=True)).square().sum()


def conditional_mutual_information(features: Tensor, classes: int) -> Tensor:
    log_p = features.log_softmax(1).unflatten(0, (classes, -1))  # (K, L, E)
    p = log_p.exp()
    return (p * (log_p - p.mean(1, keepdim=True).log())).sum() / len(features)


def class_complexity(
    features: Tensor, classes: int, centralization_weight: float = 0.05, cmi_weight: float = 1.0
) -> Tensor:
    spread = centralization_weight * class_centralization(features, classes)
    return spread + cmi_weight * conditional_mutual_information(features, classes)
