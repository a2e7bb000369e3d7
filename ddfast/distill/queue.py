"""IDM's queue of networks, which learn from the training images while others are distilled: some know more than others,
and an iteration is matched in any of them.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from ddfast import keyed
from ddfast.data import Dataset
from ddfast.distill.config import Config
from ddfast.distill.graph import Recorded
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

    def one(self, number: int) -> "Queue":
        """The network of that number by itself: a view."""
        return Queue(*(tensor[number : number + 1] for tensor in vars(self).values()))

    def copy_(self, other: "Queue") -> None:
        """Puts what there is to know of as many networks into the place of these."""
        for name, tensor in vars(self).items():
            tensor.copy_(getattr(other, name))


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
        device = dataset.train.images.device
        # Where a captured step reads which iteration it is in, and which step it is; and the network that it teaches.
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.turn = torch.zeros(1, dtype=torch.int64, device=device)
        self.student: Queue | None = None
        recorded = config.graph and device.type == "cuda"
        self._learn: Callable[[], None] = Recorded(self._step) if recorded else self._step

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
        drawn = keyed.choice(self.config.seed, iteration, "matching network", len(queue))
        _set_weights(network, queue.weights[drawn])
        accuracy.copy_(queue.accuracy(drawn))

    @record_function("networks")
    def teach(self, queue: Queue, iteration: int) -> None:
        """Lets TRAINED networks learn for some steps each, on batches of all classes, not augmented.

        They do not need each other, so each learns on one rank, bit for bit as it would anywhere, and is then given to
        the others: twice its weights travel, where averaging gradients would send them once in every step.
        """
        config = self.config
        if self.student is None:
            self.student = Queue(*(tensor.clone() for tensor in vars(queue.one(0)).values()))
        scores = keyed.integers(config.seed, iteration, "taught networks", len(queue))
        taught = sorted(range(len(queue)), key=scores.__getitem__)[:TRAINED]
        self.number.fill_(iteration)
        for place in self.ranks.turns(len(taught)):
            self.turn.fill_(place * config.queue_steps)
            self.student.copy_(queue.one(taught[place]))
            for _ in range(config.queue_steps):
                self._learn()
            queue.one(taught[place]).copy_(self.student)
        self.ranks.meet()
        for place, number in enumerate(taught):
            for tensor in vars(queue.one(number)).values():
                self.ranks.spread(tensor, place % self.ranks.size)

    def _step(self) -> None:
        """A step of the student on a batch of its own, and on to the next: nothing in it is a number of the host's."""
        split, student = self.dataset.train, self.student
        assert student is not None
        count = len(split.labels)
        scores = keyed.bits(self.config.seed, self.number, self.turn, "queue batches", count)
        rows = scores[0].topk(min(BATCH, count)).indices
        images, labels = split.images[rows], split.labels[rows]
        weights, momentum = student.weights[0], student.momentum[0]
        _set_weights(self.network, weights)
        logits = self.network(self.dataset.normalise(images).to(weights.dtype))
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), list(self.network.parameters()))
        momentum.mul_(MOMENTUM).add_(_flat(gradients)).add_(weights, alpha=DECAY)
        weights.sub_(momentum, alpha=LR)
        student.seen += len(labels)
        student.right += (logits.argmax(1) == labels).sum()
        self.turn += 1


@torch.no_grad()
def _set_weights(network: Network, weights: Tensor) -> None:
    """Gives `network` the weights (P,) of one in a queue, in its own dtype; its parameters stay where they are."""
    parameters: list[Tensor] = list(network.parameters())
    values = weights.split([parameter.numel() for parameter in parameters])
    torch._foreach_copy_(parameters, [it.view_as(its) for it, its in zip(values, parameters, strict=True)])


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
