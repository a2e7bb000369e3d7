"""How the images step, by SGD with momentum: all classes at once, or one after another under one momentum.

IDM's code steps once per class over the tensor of all classes. While a class steps, every other has no gradient, but
its momentum moves it all the same. So in a sweep over K classes the k-th has moved k times when its turn comes, and
moves K − 1 − k times after it. None of this needs another class, and geometric series tell where it all ends.
"""

import torch
from torch import Tensor

from ddfast.distill.config import Config


class ImageSGD:
    """The step of a class, whichever chunk it is in.

    With buffer v, learning rate h, momentum m and s(n) = 1 + m + ... + m^(n−1), class k of a sweep of K takes its
    gradient g at x − h·m·s(k)·v, and ends at x − h·(m·s(K)·v + s(K−k)·g) with the buffer m^K·v + m^(K−1−k)·g. Classes
    that step at once are each the only one of a sweep of their own, which is the plain step.
    """

    def __init__(self, config: Config, num_classes: int, device: torch.device) -> None:
        in_turn = config.method == "idm"
        turns = num_classes if in_turn else 1
        turn = torch.arange(num_classes) if in_turn else torch.zeros(num_classes, dtype=torch.int64)
        powers = config.image_momentum ** torch.arange(turns + 1, dtype=torch.float64)  # of 0 as well: 1, 0, 0, ...
        sums = torch.cat([powers.new_zeros(1), powers.cumsum(0)])  # s(0), s(1), ...
        self._lr = config.image_lr
        self._carried, self._left = float(config.image_momentum * sums[turns]), float(powers[turns])
        by_class = config.image_lr * config.image_momentum * sums[turn], sums[turns - turn], powers[turns - 1 - turn]
        self._drift, self._taken, self._kept = (it.to(device)[:, None, None, None, None] for it in by_class)

    def ahead(self, images: Tensor, momentum: Tensor, classes: Tensor) -> Tensor:
        """Where images (G, IPC, C, H, W) of `classes` (G,) are when their turn comes: a tensor of its own."""
        return torch.addcmul(images, self._drift[classes].to(images.dtype), momentum, value=-1)

    def take(self, images: Tensor, momentum: Tensor, gradient: Tensor, classes: Tensor) -> None:
        """Puts images and momentum, in place, where they are after the sweep; `gradient` is that of images `ahead`."""
        taken, kept = (it[classes].to(images.dtype) for it in (self._taken, self._kept))
        images.sub_((momentum * self._carried).addcmul_(gradient, taken), alpha=self._lr)
        momentum.mul_(self._left).addcmul_(gradient, kept)
