"""IDM's queue of networks, which learn from the training images while others are distilled: some know more than others,
and an iteration is matched in any of them.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from ddfast import keyed
from ddfast.data import Dataset
from ddfast.distill.config import Config
from ddfast.networks import Network, draw_weights
from ddfast.ranks import ALONE, Ranks
from ddfast.training import BATCH

START, MOST, TRAINED = 3, 100, 2  # networks before the first iteration, at any time, and taught after each iteration
LR, MOMENTUM, DECAY = 0.01, 0.9, 5e-4


@dataclass
class Queue:
    """All that there is to know of M networks of P parameters, the oldest first.

    weights, momentum: (M, P) float32, SGD's buffer the latter. seen, right: (M,) int64, the training images that a
    network saw since it came, and those of them that it told right.
    """

    weights: Tensor
    momentum: Tensor
    seen: Tensor
    right: Tensor

    def __len__(self) -> int:
        return len(self.weights)

    def push(self, weights: Tensor) -> None:
        """Adds a network of `weights` (P,) that has learned nothing; the oldest of MOST goes for it."""
        none = self.seen.new_zeros(())
        fresh = {"weights": weights, "momentum": torch.zeros_like(weights), "seen": none, "right": none}
        for name, value in fresh.items():
            setattr(self, name, torch.cat([getattr(self, name)[1 - MOST :], value[None]]))

    def accuracy(self, number: int) -> Tensor:
        """How many percent of its training images a network told right: () float64, 0 before it has seen any."""
        return 100 * self.right[number].double() / self.seen[number].clamp(min=1)


class Teacher:
    """What is done with the networks of a queue: in one network, which holds the weights of any of them.

    Args:
        config: of a run; `queue_every` and `queue_steps` are the keys of the queue.
        dataset: what the networks learn from.
        network: the architecture, of which a copy in float32 learns: bfloat16 would round its steps away.
        ranks: those that have the same queue and share the work.
    """

    def __init__(self, config: Config, dataset: Dataset, network: Network, ranks: Ranks = ALONE) -> None:
        self.config, self.dataset, self.ranks = config, dataset, ranks
        self.network = copy.deepcopy(network).to(torch.float32).requires_grad_()

    def admit(self, queue: Queue | None, iteration: int) -> Queue:
        """The queue of an iteration, with a new network if one is due; without a queue, the first one."""
        if queue is None:
            weights = _flat(self.network.parameters())
            none = torch.zeros(0, dtype=torch.int64, device=weights.device)
            queue = Queue(weights.new_zeros(0, len(weights)), weights.new_zeros(0, len(weights)), none, none)
            for number in range(START):
                queue.push(self._fresh(number))
        turn, rest = divmod(iteration, self.config.queue_every)
        if not rest:
            queue.push(self._fresh(START + turn))
        return queue

    def _fresh(self, number: int) -> Tensor:
        """The weights that the n-th network of a run begins with."""
        device = self.dataset.train.images.device
        draw_weights(self.network, keyed.generator(self.config.seed, number, "queue network", device))
        return _flat(self.network.parameters())

    def lend(self, queue: Queue, iteration: int, network: Network, accuracy: Tensor) -> None:
        """Gives `network` the weights that an iteration is matched in, and `accuracy` () theirs; both stay in place."""
        draw = keyed.uniform(self.config.seed, iteration, torch.zeros(1, dtype=torch.int64), "matching network", 1)
        drawn = int(draw * len(queue))
        _set_weights(network, queue.weights[drawn])
        accuracy.copy_(queue.accuracy(drawn))

    @record_function("networks")
    def teach(self, queue: Queue, iteration: int) -> None:
        """Lets TRAINED networks learn for some steps each, on batches of all classes, not augmented.

        They do not need each other, so each learns on one rank, bit for bit as it would anywhere, and is then given to
        the others: twice its weights travel, where averaging gradients would send them once in every step.
        """
        config, split = self.config, self.dataset.train
        count, steps = len(split.labels), config.queue_steps
        scores = keyed.bits(config.seed, iteration, torch.zeros(1, dtype=torch.int64), "taught networks", MOST)
        taught = scores[0, : len(queue)].argsort()[:TRAINED].tolist()
        turns = torch.arange(len(taught) * steps, device=split.labels.device).split(1)
        for place in self.ranks.turns(len(taught)):
            for each in turns[place * steps : (place + 1) * steps]:
                scores = keyed.bits(config.seed, iteration, each, "queue batches", count)
                rows = scores[0].topk(min(BATCH, count)).indices
                self._step(queue, taught[place], split.images[rows], split.labels[rows])
        self.ranks.meet()
        for place, number in enumerate(taught):
            for tensor in vars(queue).values():
                self.ranks.spread(tensor[number : number + 1], place % self.ranks.size)

    def _step(self, queue: Queue, number: int, images: Tensor, labels: Tensor) -> None:
        weights, momentum = queue.weights[number], queue.momentum[number]
        _set_weights(self.network, weights)
        logits = self.network(self.dataset.normalise(images).to(weights.dtype))
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), list(self.network.parameters()))
        momentum.mul_(MOMENTUM).add_(_flat(gradients)).add_(weights, alpha=DECAY)
        weights.sub_(momentum, alpha=LR)
        queue.seen[number] += len(labels)
        queue.right[number] += (logits.argmax(1) == labels).sum()


@torch.no_grad()
def _set_weights(network: Network, weights: Tensor) -> None:
    """Gives `network` the weights (P,) of one in a queue, in its own dtype; its parameters stay where they are."""
    parameters = list(network.parameters())
    for parameter, values in zip(parameters, weights.split([it.numel() for it in parameters]), strict=True):
        parameter.copy_(values.view_as(parameter))


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
