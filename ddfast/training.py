"""Building a classifier, training it for an epoch, testing it: the part that evaluation and pre-training share."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ddfast.augment import DRAWS, augment_batch
from ddfast.data import Dataset
from ddfast.networks import Network, build

BATCH = 256
Tick = Callable[[], None]


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
    """One pass over shuffled batches of 256, the last partial one kept, each with one augmentation for the batch.

    images: (N, C, H, W), made float by `prepare`. generator: on the CPU. tick: called after every step. dtype: what the
    network computes in; its weights, their gradients and momentum stay float32.
    """
    order = torch.randperm(len(images), generator=generator).to(images.device)
    for rows in order.split(BATCH):
        draws = torch.rand(len(rows), DRAWS, generator=generator)
        batch = augment_batch(prepare(images[rows]), draws, strategy)
        loss = F.cross_entropy(_logits(network, batch, dtype), labels[rows])
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()
        tick()


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
