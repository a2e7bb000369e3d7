"""One iteration of distillation: distribution matching with any of covariance matching, centralization and CMI.

All losses are sums over classes, so a chunk of classes goes forward and backward without the others, and no more than
one chunk's activations exist at any time. Within a chunk every class is handled in the same calls.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import ddfast.functional as DF
from ddfast import keyed
from ddfast.augment import DRAWS, augment, parse_strategy
from ddfast.data import Dataset
from ddfast.distill.config import Config
from ddfast.distill.folder import State
from ddfast.distill.plan import Plan
from ddfast.distill.pool import Pool
from ddfast.distill.precision import convolutions, to_network
from ddfast.networks import Network, draw_weights
from ddfast.segments import ClassSegments

TERMS = {
    "distribution_matching": "DM",
    "covariance_matching": "CM",
    "class_centralization": "CC",
    "conditional_mutual_information": "CMI",
}
MATCHING, COMPLEXITY = tuple(TERMS)[:2], tuple(TERMS)[2:]


@dataclass
class Distiller:
    """Everything an iteration needs and none changes; `iterate` changes a State."""

    config: Config
    dataset: Dataset
    network: Network
    pool: Pool | None
    plan: Plan

    def __post_init__(self) -> None:
        config = self.config
        weights = (config.mean_weight, config.covariance_weight, config.centralization_weight, config.cmi_weight)
        self.weights = {name: weight for name, weight in zip(TERMS, weights, strict=True) if weight != 0}
        self.strategy = parse_strategy(config.augmentation)
        self.batch_real = min(config.batch_real, min(self.dataset.train.counts))
        self.device = self.dataset.train.images.device

    def iterate(self, state: State) -> Tensor:
        """One step of the images; the unweighted terms of the loss (4,), in the order of TERMS, on the device."""
        with convolutions(self.config.precision):
            return self._iterate(state)

    def _iterate(self, state: State) -> Tensor:
        config, number = self.config, state.iteration
        draw_weights(self.network, keyed.generator(config.seed, number, "matching network", self.device))
        member = self.pool.member(config.seed, number) if self.pool else None
        terms = torch.zeros(len(TERMS), device=self.device)
        for classes in torch.arange(self.dataset.num_classes).split(self.plan.classes):
            rows = slice(int(classes[0]) * config.ipc, (int(classes[-1]) + 1) * config.ipc)
            images = state.images[rows].unflatten(0, (-1, config.ipc)).detach().requires_grad_()
            # On the CPU: which operation a class gets is read there, without waiting for the device.
            draws = keyed.uniform(config.seed, number, classes, "augmentation", DRAWS)
            terms[:2] += self._match(images, classes.to(self.device, non_blocking=True), draws, number)
            if member is not None:
                terms[2:] += self._simplify(images, draws, member)
            assert images.grad is not None
            # No loss looks at another class, so a chunk's step need not wait for the others' gradients.
            state.momentum[rows].mul_(config.image_momentum).add_(images.grad.flatten(0, 1))
            state.images[rows].sub_(state.momentum[rows], alpha=config.image_lr)
        state.iteration += 1
        return terms

    def _match(self, images: Tensor, classes: Tensor, draws: Tensor, number: int) -> Tensor:
        """Distribution and covariance matching of a chunk's images (G, IPC, C, H, W), under the fresh network."""
        if not any(name in self.weights for name in MATCHING):
            return torch.zeros(2, device=self.device)
        real = self._real_features(classes, draws, number)
        synthetic = self.network.embed(to_network(augment(images, draws, self.strategy), self.network))
        loss, terms = DF.moment_matching(
            real,
            synthetic,
            ClassSegments.uniform(len(classes), self.batch_real),
            ClassSegments.uniform(len(classes), self.config.ipc),
            mean_weight=self.config.mean_weight,
            covariance_weight=self.config.covariance_weight,
            local=self.config.local,
            return_terms=True,
        )
        loss.backward()
        return self._stack(terms, MATCHING)

    @torch.no_grad()
    def _real_features(self, classes: Tensor, draws: Tensor, number: int) -> Tensor:
        """The feature maps of a random batch of every class, (G·n, C, h, w), augmented as its synthetic images are."""
        split = self.dataset.train
        scores = keyed.bits(self.config.seed, number, classes, "real images", max(split.counts))
        images = self.dataset.normalise(split.images[split.choose(classes, self.batch_real, scores)])
        batch = to_network(augment(images, draws, self.strategy), self.network)
        return torch.cat([self.network.embed(rows) for rows in batch.split(self.plan.rows)])

    def _simplify(self, images: Tensor, draws: Tensor, member: Network) -> Tensor:
        """Class centralization, of the augmented images, and CMI, of the images as they are, under a pool network."""
        config = self.config
        segments = ClassSegments.uniform(len(images), config.ipc)
        terms = {}
        if config.centralization_weight != 0:
            augmented = to_network(augment(images, draws, self.strategy), member)
            spread = DF.class_centralization(member.features(augmented), segments, alpha=config.alpha, beta=config.beta)
            (config.centralization_weight * spread).backward()
            terms[COMPLEXITY[0]] = spread.detach()
        if config.cmi_weight != 0:
            features = member.features(to_network(images, member))
            total = config.ipc * self.dataset.num_classes  # the batch mean is over all classes, not over the chunk's
            information = DF.conditional_mutual_information(features, segments, reduction="sum") / total
            (config.cmi_weight * information).backward()
            terms[COMPLEXITY[1]] = information.detach()
        return self._stack(terms, COMPLEXITY)

    def _stack(self, terms: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
        zero = torch.zeros((), device=self.device)
        return torch.stack([terms.get(name, zero) for name in names])

    def report(self, terms: Tensor) -> dict[str, float]:
        """The weighted loss and the unweighted terms that have a weight, as numbers; waits for the device."""
        values = dict(zip(TERMS, terms.tolist(), strict=True))
        loss = sum(weight * values[name] for name, weight in self.weights.items())
        return {"loss": loss, **{name: values[name] for name in self.weights}}
