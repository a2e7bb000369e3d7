"""One iteration of distillation: distribution matching with any of covariance matching, centralization and CMI.

DM matches in a fresh network at each iteration, IDM in one that learns from the training images meanwhile, with the
cross-entropy of the synthetic images in it; and there each class steps by itself.

All losses are sums over classes, so a chunk of classes goes forward and backward without the others, and no more than
one chunk's activations exist at any time. Within a chunk every class is handled in the same calls. A class too large
for that goes in parts: what joins its images is their features alone. Several ranks have classes of their own each, and
nothing of an iteration travels but what the networks of IDM learn.

The named ranges are what benchmarks/profile_memory.py and profile_iteration.py tell phases by.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

import ddfast.functional as DF
from ddfast import keyed
from ddfast.augment import DRAWS, parse_strategy, tabulate, transform
from ddfast.data import Dataset
from ddfast.distill.config import Config
from ddfast.distill.folder import State
from ddfast.distill.graph import Recorded
from ddfast.distill.plan import Plan
from ddfast.distill.pool import Pool
from ddfast.distill.precision import convolutions, to_network
from ddfast.distill.queue import Teacher
from ddfast.distill.steps import ImageSGD
from ddfast.moments import ClassMoments
from ddfast.networks import Network, draw_weights
from ddfast.partition import expand
from ddfast.ranks import ALONE, Ranks
from ddfast.segments import ClassSegments

TERMS = {
    "distribution_matching": "DM",
    "covariance_matching": "CM",
    "class_centralization": "CC",
    "conditional_mutual_information": "CMI",
    "cross_entropy": "CE",
}
MATCHING, COMPLEXITY = (*tuple(TERMS)[:2], "cross_entropy"), tuple(TERMS)[2:4]
BLOCK = 16  # iterations whose augmentations are tabulated at once: as many operators as for one


Terms = dict[str, Tensor]
Embed = Callable[[Tensor], Tensor]  # (N, C, H, W) -> (N, ...)
Loss = Callable[[Tensor, ClassSegments], tuple[Tensor, Terms]]  # of features (N, ...), with its unweighted terms


@dataclass
class Distiller:
    """Everything an iteration needs and none changes; `iterate` changes a State, of this rank's classes."""

    config: Config
    dataset: Dataset
    network: Network
    pool: Pool | None
    plan: Plan
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        config, dataset = self.config, self.dataset
        keys = ("mean_weight", "covariance_weight", "centralization_weight", "cmi_weight", "cross_entropy_weight")
        weights = {name: getattr(config, key) for name, key in zip(TERMS, keys, strict=True)}
        self.weights = {name: weight for name, weight in weights.items() if weight != 0}
        self.strategy = parse_strategy(config.augmentation)
        self.batch_real = min(config.batch_real, min(dataset.train.counts))
        self.local = config.local if config.covariance_weight != 0 else "channels"  # no covariance larger than need be
        self.device = dataset.train.images.device
        self.sgd = ImageSGD(config, dataset.num_classes, self.device)
        self.teacher = Teacher(config, dataset, self.network, self.ranks) if config.method == "idm" else None
        # What is different in every iteration, where a captured one reads it.
        self.number = torch.zeros((), dtype=torch.int64, device=self.device)
        self.generator = torch.Generator(self.device)
        self.drawn = torch.arange(dataset.num_classes)[self.ranks.parts(dataset.num_classes)[self.ranks.rank]]
        self.classes = self.drawn.to(self.device)
        self.table = tabulate(torch.zeros(len(self.drawn), DRAWS), (), dataset.size).to(self.device)
        self.accuracy = torch.zeros((), dtype=torch.float64, device=self.device)
        self._tables: tuple[int, Tensor] | None = None
        self._steps: tuple[State, Callable[[], Tensor]] | None = None

    def iterate(self, state: State) -> Tensor:
        """One step of the images; the unweighted terms of their loss (5,), in the order of TERMS, on the device.

        A graph has the images of one state in it and its terms in one place: the next iteration writes over them.
        """
        if self._steps is None or self._steps[0] is not state:
            step = partial(self._step, state)
            recorded = self.config.graph and self.device.type == "cuda"
            self._steps = state, Recorded(step, self.generator) if recorded else step
        with record_function("networks"):
            self._deal(state)
        with convolutions(self.config.precision):
            terms = self._steps[1]()
            if self.teacher is not None and state.queue is not None:
                self.teacher.teach(state.queue, state.iteration)
        state.iteration += 1
        return terms

    def _deal(self, state: State) -> None:
        """Draws what the host draws, and puts it where the device finds it, without waiting."""
        seed, number = self.config.seed, state.iteration
        self.number.fill_(number)
        if self.teacher is None:
            self.generator.manual_seed(keyed.key(seed, number, "matching network"))
        else:
            state.queue = self.teacher.admit(state.queue, number)
            self.teacher.lend(state.queue, number, self.network, self.accuracy)
        if self.pool is not None:
            self.pool.draw(seed, number)
        self.table.copy_(self._tabulated(number), non_blocking=True)

    def _tabulated(self, number: int) -> Tensor:
        """The table of augmentations of an iteration, (G, TABLE) in the host's memory."""
        block, place = divmod(number, BLOCK)
        if self._tables is None or self._tables[0] != block:
            numbers = torch.arange(BLOCK * block, BLOCK * (block + 1))[:, None]
            draws = keyed.uniform(self.config.seed, numbers, self.drawn, "augmentation", DRAWS)
            tables = tabulate(draws.flatten(0, 1), self.strategy, self.dataset.size).unflatten(0, draws.shape[:2])
            # In pinned memory, which is used again only after the device has read it.
            self._tables = block, tables.pin_memory() if self.device.type == "cuda" else tables
        return self._tables[1][place]

    def _step(self, state: State) -> Tensor:
        """All that the device does in an iteration: nothing in it depends on a number of the host's."""
        config = self.config
        if self.teacher is None:
            with record_function("networks"):
                draw_weights(self.network, self.generator)
        terms = torch.zeros(len(TERMS), device=self.device)
        chunks = zip(self.classes.split(self.plan.classes), self.table.split(self.plan.classes), strict=True)
        first = 0
        for classes, table in chunks:
            rows = slice(first, first := first + len(classes) * config.ipc)
            held, momentum = (it[rows].unflatten(0, (-1, config.ipc)) for it in (state.images, state.momentum))
            images = self.sgd.ahead(held, momentum, classes).requires_grad_()
            terms += self._match(images, classes, table)
            if self.pool is not None:
                terms += self._simplify(images, table, self.pool.member)
            assert images.grad is not None
            # No loss looks at another class, so a chunk's step need not wait for the others' gradients.
            with record_function("step"):
                self.sgd.take(held, momentum, images.grad, classes)
        return terms

    def _match(self, images: Tensor, classes: Tensor, table: Tensor) -> Tensor:
        """Distribution and covariance matching of a chunk's images (G, IPC, C, H, W), and their cross-entropy."""
        config = self.config
        if not any(name in self.weights for name in MATCHING):
            return self._stack({})
        real = self._real_moments(classes, table)

        def loss(features: Tensor, segments: ClassSegments) -> tuple[Tensor, Terms]:
            value, terms = DF.moment_matching(
                real,
                features,
                syn_segments=segments,
                mean_weight=config.mean_weight,
                covariance_weight=config.covariance_weight,
                local=self.local,
                return_terms=True,
            )
            if config.cross_entropy_weight == 0:
                return value, terms
            # The mean over the images of a class, added up over classes.
            logits = self.network.head(self.network.pooled(features)).to(value.dtype)
            labels = classes[:, None].expand(-1, len(logits) // len(classes)).flatten()
            entropy = self.accuracy.to(value.dtype) * len(classes) * F.cross_entropy(logits, labels)
            return value + config.cross_entropy_weight * entropy, {**terms, "cross_entropy": entropy.detach()}

        return self._differentiate(images, table, self.network.embed, loss)

    @torch.no_grad()
    def _real_moments(self, classes: Tensor, table: Tensor) -> ClassMoments:
        """Of the feature maps of a random batch of every class, augmented as its synthetic images are."""
        split, moments = self.dataset.train, None
        scores = keyed.bits(self.config.seed, self.number, classes, "real images", max(split.counts))
        for chosen in split.choose(classes, self.batch_real, scores).split(self.plan.real, dim=1):
            with record_function("augment"):
                images = self._augmented(self.dataset.normalise(split.images[chosen]), table)
            with record_function("real features"):
                batch = to_network(images, self.network).split(self.plan.rows)
                features = torch.cat([self.network.embed(rows) for rows in batch])
            with record_function("losses"):
                part = ClassMoments.from_features(features, ClassSegments.uniform(*chosen.shape), self.local)
                moments = part if moments is None else moments.merge(part)
        assert moments is not None
        return moments

    def _simplify(self, images: Tensor, table: Tensor, member: Network) -> Tensor:
        """Class centralization, of the augmented images, and CMI, of the images as they are, under a pool network."""
        config = self.config
        # The batch mean is over all classes, not over the chunk's.
        total = config.partition**2 * config.ipc * self.dataset.num_classes

        def centralization(features: Tensor, segments: ClassSegments) -> tuple[Tensor, Terms]:
            spread = DF.class_centralization(features, segments, alpha=config.alpha, beta=config.beta)
            return config.centralization_weight * spread, {COMPLEXITY[0]: spread.detach()}

        def information(features: Tensor, segments: ClassSegments) -> tuple[Tensor, Terms]:
            mean = DF.conditional_mutual_information(features, segments, reduction="sum") / total
            return config.cmi_weight * mean, {COMPLEXITY[1]: mean.detach()}

        terms = self._stack({})
        if config.centralization_weight != 0:
            terms += self._differentiate(images, table, member.features, centralization)
        if config.cmi_weight != 0:
            terms += self._differentiate(images, None, member.features, information)
        return terms

    def _differentiate(self, images: Tensor, table: Tensor | None, embed: Embed, loss: Loss) -> Tensor:
        """Adds the gradient of a loss to that of `images` (G, IPC, C, H, W), augmented by `table`; the loss's terms.

        Where only a part of them can go backward at a time, the features of all come first, without gradient. The loss
        has their gradient, and each part goes forward again to take its own back to its images.
        """
        parts = images.split(self.plan.synthetic, dim=1)
        if len(parts) == 1:
            features = self._features(images, table, embed)
        else:
            with torch.no_grad():
                features = torch.cat([self._features(part, table, embed) for part in parts], dim=1)
            features.requires_grad_()
        with record_function("losses"):
            value, terms = loss(features.flatten(0, 1), ClassSegments.uniform(*features.shape[:2]))
        with record_function("backward"):
            value.backward()
        if len(parts) > 1:
            assert features.grad is not None
            gradients = features.grad.split(self.config.partition**2 * self.plan.synthetic, dim=1)
            for part, gradient in zip(parts, gradients, strict=True):
                features = self._features(part, table, embed)
                with record_function("backward"):
                    features.backward(gradient)
        return self._stack(terms)

    def _features(self, images: Tensor, table: Tensor | None, embed: Embed) -> Tensor:
        """(G, s, C, H, W) -> (G, s times the pieces of an image, ...)."""
        with record_function("augment"):
            images = expand(images, self.config.partition)
            augmented = images if table is None else self._augmented(images, table)
        with record_function("synthetic features"):
            return embed(to_network(augmented, self.network)).unflatten(0, images.shape[:2])

    def _augmented(self, images: Tensor, table: Tensor) -> Tensor:
        return transform(images, table) if self.strategy else images

    def _stack(self, terms: Terms) -> Tensor:
        zero = torch.zeros((), device=self.device)
        return torch.stack([terms.get(name, zero) for name in TERMS])

    def report(self, terms: Tensor) -> dict[str, float]:
        """The weighted loss and the unweighted terms (5,) that have a weight, as numbers; waits for the device."""
        values = dict(zip(TERMS, terms.tolist(), strict=True))
        loss = sum(weight * values[name] for name, weight in self.weights.items())
        return {"loss": loss, **{name: values[name] for name in self.weights}}
