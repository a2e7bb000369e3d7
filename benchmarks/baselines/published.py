"""The loop of the published scripts (DM; IID and CMI on a DM base) with what an iteration costs there.

Every iteration builds a fresh network on the CPU and moves it, and reads its pool network from a file. Classes come one
after the other: 256 real images by index, one siamese augmentation, two forward passes and the losses of `loop.py`.
The activations of all classes stay until one backward over the sum, and PyTorch's SGD steps.

Written from the papers' formulas; names of parameters are those of `ddfast.networks`, so that weights can be exchanged.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from benchmarks.baselines import loop
from ddfast import networks
from ddfast.augment import parse_strategy
from ddfast.data import Dataset
from ddfast.distill.config import Config


class ConvNet(nn.Module):
    def __init__(self, channels: int, num_classes: int, size: Sequence[int], width: int, depth: int, **_: object):
        super().__init__()
        padding = 3 if channels == 1 else 1
        first = _block(channels, width, padding)
        self.blocks = nn.Sequential(first, *(_block(width, width, 1) for _ in range(depth - 1)))
        height, breadth = ((extent + 2 * padding - 2) >> depth for extent in size)
        self.head = nn.Linear(width * height * breadth, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.blocks(x)

    def features(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(1)


def _block(channels: int, width: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            convolution=nn.Conv2d(channels, width, 3, padding=padding),
            norm=nn.GroupNorm(width, width),
            activation=nn.ReLU(inplace=True),
            pool=nn.AvgPool2d(2),
        )
    )


class BasicBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.convolution1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(width, width)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(width, width)
        self.shortcut = nn.Sequential()
        if channels != width:
            convolution = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.GroupNorm(width, width))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.convolution1(x)))
        return F.relu(self.norm2(self.convolution2(inner)) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self, channels: int, num_classes: int, size: Sequence[int], width: int, **_: object):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(width, width)
        widths = [width, width, width, *(width << stage for stage in (1, 1, 2, 2, 3, 3))]
        blocks = [
            BasicBlock(before, after, 1 if before == after else 2) for before, after in itertools.pairwise(widths)
        ]
        self.blocks = nn.Sequential(*blocks)
        window = min(4, size[0] // 8)
        self.pool = nn.AvgPool2d(window)
        self.head = nn.Linear(8 * width * math.prod(extent // 8 // window for extent in size), num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.pool(self.blocks(F.relu(self.norm(self.stem(x))))).flatten(1)


ARCHITECTURES = {"convnet": ConvNet, "resnet18": ResNet18}


def save_network(network: networks.Network, path: Path) -> Path:
    """A member of the pool as a file."""
    torch.save({"config": network.config, "weights": network.state_dict()}, path)
    return path


def augment(images: Tensor, strategy: Sequence[str], draws: Sequence[float]) -> Tensor:
    """One operation for all images (N, C, H, W): which one, and its three parameters, from numbers in [0, 1)."""
    if not strategy:
        return images
    chosen, a, b, c = draws
    operation = strategy[int(chosen * len(strategy))]
    height, width = images.shape[2:]
    if operation == "color":
        images = images + (a - 0.5)
        grey = images.mean(1, keepdim=True)
        images = (images - grey) * (2 * b) + grey
        mean = images.mean((1, 2, 3), keepdim=True)
        return (images - mean) * (c + 0.5) + mean
    if operation == "crop":
        down, right = (int(u * (2 * _pixels(0.125, size) + 1)) for u, size in ((a, height), (b, width)))
        tall, broad = _pixels(0.125, height), _pixels(0.125, width)
        return F.pad(images, (broad, broad, tall, tall))[:, :, down : down + height, right : right + width]
    if operation == "cutout":
        mask = torch.ones_like(images)
        (top, bottom), (left, right) = (_hole(u, size) for u, size in ((a, height), (b, width)))
        mask[:, :, top:bottom, left:right] = 0
        return images * mask
    if operation == "flip":
        return images.flip(3) if a < 0.5 else images
    if operation == "scale":
        sx, sy = (1 / 1.2 + (1.2 - 1 / 1.2) * u for u in (a, b))
        return _warp(images, [[sx, 0, 0], [0, sy, 0]])
    angle = math.radians(15) * (2 * a - 1)
    return _warp(images, [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])


def _pixels(share: float, size: int) -> int:
    return int(share * size + 0.5)


def _hole(u: float, size: int) -> tuple[int, int]:
    side = _pixels(0.5, size)
    first = int(u * (size + 1 - side % 2)) - side // 2
    return max(first, 0), first + side


def _warp(images: Tensor, theta: list[list[float]]) -> Tensor:
    matrices = torch.tensor(theta, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class Choices:
    """What is left to chance. A test makes the choices of another loop instead."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.config, self.dataset = config, dataset

    def network(self) -> ConvNet:
        """A fresh network, built on the CPU by its constructor."""
        dataset, config = self.dataset, self.config
        return ConvNet(dataset.channels, dataset.num_classes, dataset.size, config.width or 128, config.depth or 3)

    def member(self, count: int) -> int:
        return np.random.randint(count)

    def real(self, of_class: int, rows: np.ndarray, count: int) -> np.ndarray:
        return np.random.permutation(rows)[:count]

    def augmentation(self, of_class: int) -> list[float]:
        return torch.rand(4).tolist()


class Published:
    """The loop over `images` (K·IPC, C, H, W), sorted by class; `pool` are files of `save_network`."""

    def __init__(
        self, config: Config, dataset: Dataset, images: Tensor, pool: Sequence[Path], choices: Choices | None = None
    ) -> None:
        self.config, self.dataset, self.pool = config, dataset, pool
        self.choices = choices or Choices(config, dataset)
        self.strategy = parse_strategy(config.augmentation)
        self.real = dataset.normalise(dataset.train.images)  # all of them, float, on the device
        labels = dataset.train.labels.cpu().numpy()
        self.rows = [np.flatnonzero(labels == k) for k in range(dataset.num_classes)]
        self.images = images.detach().clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.images], lr=config.image_lr, momentum=config.image_momentum)

    def iterate(self) -> dict[str, float]:
        """One step of the images; the unweighted terms."""
        config, classes = self.config, self.dataset.num_classes
        with record_function("networks"):
            network = self.choices.network().to(self.images).requires_grad_(False)
            member = self.load_member() if config.needs_pool else None
        terms = [self.images.new_zeros(()) for _ in range(4)]
        for k in range(classes):
            synthetic = self.images[k * config.ipc : (k + 1) * config.ipc]
            with record_function("augment"):
                real = self.real[self.choices.real(k, self.rows[k], config.batch_real)]
                draws = self.choices.augmentation(k)
                real, augmented = (augment(side, self.strategy, draws) for side in (real, synthetic))
            with record_function("real features"):
                real_maps = network.embed(real).detach()
            with record_function("synthetic features"):
                maps = network.embed(augmented)
            with record_function("losses"):
                terms[0] = terms[0] + loop.distribution_matching(real_maps, maps, 1)
                if config.covariance_weight:
                    terms[1] = terms[1] + loop.covariance_matching(real_maps, maps, 1, config.local)
            if config.centralization_weight:
                with record_function("synthetic features"):
                    features = member.features(augmented)
                with record_function("losses"):
                    terms[2] = terms[2] + loop.class_centralization(features, 1)
            if config.cmi_weight:
                with record_function("synthetic features"):
                    features = member.features(synthetic)
                with record_function("losses"):
                    terms[3] = terms[3] + loop.conditional_mutual_information(features, 1) / classes
        weights = (config.mean_weight, config.covariance_weight, config.centralization_weight, config.cmi_weight)
        with record_function("backward"):
            self.optimizer.zero_grad()
            sum(weight * term for weight, term in zip(weights, terms, strict=True)).backward()
        with record_function("step"):
            self.optimizer.step()
            names = ("distribution_matching", "covariance_matching", "class_centralization")
            return dict(zip((*names, "conditional_mutual_information"), (term.item() for term in terms), strict=True))

    def load_member(self) -> nn.Module:
        """The pool network of an iteration, from its file."""
        saved = torch.load(self.pool[self.choices.member(len(self.pool))])
        network = ARCHITECTURES[saved["config"]["name"]](**saved["config"])
        network.load_state_dict(saved["weights"])
        return network.to(self.images).requires_grad_(False)
