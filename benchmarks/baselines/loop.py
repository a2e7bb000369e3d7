"""The losses as the published scripts compute them: a Python loop over classes, one covariance per image.

Names and options are those of `ddfast.functional`; rows are sorted by class, equally many of each of `classes`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfast.reference import descriptors


def _mean_and_covariance(features: Tensor, local: str) -> tuple[Tensor, Tensor]:
    """One class: (N, C, P) -> (C, P) and (C, C), by way of (N, C, C)."""
    maps = descriptors(features, local)
    mean = maps.mean(0)
    centred = maps - mean
    return mean, torch.bmm(centred, centred.transpose(1, 2)).mean(0)


def class_moments(features: Tensor, classes: int, local: str = "channels") -> tuple[Tensor, Tensor]:
    moments = [_mean_and_covariance(rows, local) for rows in features.chunk(classes)]
    return torch.stack([mean for mean, _ in moments]), torch.stack([covariance for _, covariance in moments])


def distribution_matching(real: Tensor, syn: Tensor, classes: int) -> Tensor:
    loss = syn.new_zeros(())
    for real_rows, syn_rows in zip(real.chunk(classes), syn.chunk(classes), strict=True):
        loss = loss + (real_rows.flatten(1).mean(0) - syn_rows.flatten(1).mean(0)).square().sum()
    return loss


def covariance_matching(real: Tensor, syn: Tensor, classes: int, local: str = "channels") -> Tensor:
    loss = syn.new_zeros(())
    for real_rows, syn_rows in zip(real.chunk(classes), syn.chunk(classes), strict=True):
        _, target = _mean_and_covariance(real_rows, local)
        _, covariance = _mean_and_covariance(syn_rows, local)
        loss = loss + (target - covariance).square().sum()
    return loss


def moment_matching(
    real: Tensor,
    syn: Tensor,
    classes: int,
    mean_weight: float = 1.0,
    covariance_weight: float = 0.01,
    local: str = "channels",
) -> Tensor:
    matched = mean_weight * distribution_matching(real, syn, classes)
    return matched + covariance_weight * covariance_matching(real, syn, classes, local)


def class_centralization(features: Tensor, classes: int) -> Tensor:
    loss = features.new_zeros(())
    for rows in features.chunk(classes):
        centre = rows.mean(0)
        for row in rows:
            loss = loss + (row - centre).square().sum()
    return loss


def conditional_mutual_information(features: Tensor, classes: int) -> Tensor:
    loss = features.new_zeros(())
    for rows in features.chunk(classes):
        p = rows.softmax(1)
        loss = loss + F.kl_div(p.mean(0).log().expand_as(p), p, reduction="sum")
    return loss / len(features)


def class_complexity(
    features: Tensor, classes: int, centralization_weight: float = 0.05, cmi_weight: float = 1.0
) -> Tensor:
    spread = centralization_weight * class_centralization(features, classes)
    return spread + cmi_weight * conditional_mutual_information(features, classes)
