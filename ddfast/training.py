"""Building a classifier, training it for an epoch, testing it: the part that evaluation and pre-training share."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ddfast.augment import DRAWS, tabulate_batch, transform
from ddfast.data import Dataset
from ddfast.networks import Network, build
from ddfast.operators.schemas import TABLE

BATCH = 256
Tick = Callable[[], None]
Work = Callable[[], None]


class Architecture(Protocol):
    """The keys that describe a network, wherever they stand; None is the network's own."""

    @property
    def network(self) -> str: ...
    @property
    def width(self) -> int | None: ...
    @property
    def depth(self) -> int | None: ...
    @property
    def norm(self) -> str | None: ...
    @property
    def activation(self) -> str | None: ...
    @property
    def pooling(self) -> str | None: ...


def build_network(keys: Architecture, dataset: Dataset, generator: torch.Generator | None = None) -> Network:
    """The network that `keys` describe, for the images of `dataset` and on their device.

    generator: on that device, for the weights; without one they are some fixed draw, to be replaced.
    """
    device = dataset.train.images.device
    return build(
        keys.network,
        channels=dataset.channels,
        num_classes=dataset.num_classes,
        size=dataset.size,
        width=keys.width,
        depth=keys.depth,
        norm=keys.norm,
        activation=keys.activation,
        pooling=keys.pooling,
        device=device,
        generator=generator or torch.Generator(device),
    )


def optimizer(network: Network, lr: float, weight_decay: float = 5e-4) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)


class Steps:
    """Steps of SGD, each on a batch whose rows and augmentation lie where a captured step reads them.

    Args:
        network, sgd: what learns, and how; `sgd` is that of all steps, for its rates are a part of what is captured.
        images, labels: (N, C, H, W), made float by `prepare`, and (N,).
        strategy: one operation for each batch, with parameters for every image.
        dtype: what the network computes in; its weights, their gradients and momentum stay float32.
        capture: makes of the step on a whole batch what replays it; that on a partial one is done as written here.
    """

    def __init__(
        self,
        network: Network,
        sgd: torch.optim.SGD,
        images: Tensor,
        labels: Tensor,
        *,
        prepare: Callable[[Tensor], Tensor],
        strategy: tuple[str, ...],
        dtype: torch.dtype = torch.float32,
        capture: Callable[[Work], Work] | None = None,
    ) -> None:
        self.network, self.sgd, self.images, self.labels = network, sgd, images, labels
        self.prepare, self.strategy, self.dtype = prepare, strategy, dtype
        self._rows = torch.zeros(BATCH, dtype=torch.int64, device=images.device)
        self._table = torch.zeros(BATCH, TABLE, dtype=torch.float64, device=images.device)
        whole = partial(self._step, BATCH)
        self._whole = capture(whole) if capture else whole

    def epoch(self, generator: torch.Generator, tick: Tick) -> None:
        """One pass over shuffled batches of 256, the last partial one kept.

        generator: on the CPU. tick: called after every step.
        """
        order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        for rows in order.split(BATCH):
            self.step(rows, torch.rand(len(rows), DRAWS, generator=generator))
            tick()

    def step(self, rows: Tensor, draws: Tensor) -> None:
        """A step on the images of `rows` (n,), augmented by `draws` (n, DRAWS) on the CPU; waits for nothing."""
        count = len(rows)
        self._rows[:count].copy_(rows)
        if self.strategy:
            table = tabulate_batch(draws, self.strategy, self.images.shape[-2:])
            on_gpu = self._table.device.type == "cuda"
            self._table[:count].copy_(table.pin_memory() if on_gpu else table, non_blocking=True)
        if count == BATCH:
            self._whole()
        else:
            self._step(count)

    def _step(self, count: int) -> None:
        """All that the device does for a step: nothing in it is a number of the host's."""
        rows = self._rows[:count]
        batch = self.prepare(self.images[rows])
        if self.strategy:
            batch = transform(batch[:, None], self._table[:count])[:, 0]
        loss = F.cross_entropy(_logits(self.network, batch, self.dtype), self.labels[rows])
        self.sgd.zero_grad(set_to_none=True)
        loss.backward()
        self.sgd.step()


def train_epoch(
    network: Network,
    sgd: torch.optim.SGD,
    images: Tensor,
    labels: Tensor,
    *,
    prepare: Callable[[Tensor], Tensor],
    strategy: tuple[str, ...],
    generator: torch.Generator,
    tick: Tick,
    dtype: torch.dtype = torch.float32,
) -> None:
    """An epoch of `Steps` as they are written: nothing is captured."""
    steps = Steps(network, sgd, images, labels, prepare=prepare, strategy=strategy, dtype=dtype)
    steps.epoch(generator, tick)


def _logits(network: Network, batch: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, C, H, W) -> (N, num_classes), both float32, with images and weights rounded to `dtype` in between."""
    if dtype == torch.float32:
        return network(batch)
    weights = {name: parameter.to(dtype) for name, parameter in network.named_parameters()}
    return functional_call(network, weights, batch.to(dtype)).float()


@torch.no_grad()
def accuracy(network: Network, dataset: Dataset) -> tuple[float, list[float | None]]:
    """Test accuracy in percent, and that of every class; None for a class without test images."""
    split = dataset.test
    hits = []
    for images, labels in zip(split.images.split(2 * BATCH), split.labels.split(2 * BATCH), strict=True):
        hits.append(network(dataset.normalise(images)).argmax(1) == labels)
    correct = torch.cat(hits).cpu().split(split.counts)
    per_class = [100 * hit.float().mean().item() if len(hit) else None for hit in correct]
    return 100 * torch.cat(correct).double().mean().item(), per_class
