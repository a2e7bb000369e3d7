"""The autograd function of augmentation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfast.operators.first_order import applied
from ddfast.operators.library import overload
from ddfast.operators.schemas import TABLE


class Augment(torch.autograd.Function):
    """An affine map, or the transpose of its linear part: each is the other's derivative, so there are all orders."""

    @staticmethod
    def forward(images: Tensor, table: Tensor, transpose: bool, backend: str | None) -> Tensor:
        return overload("augment_backward" if transpose else "augment", backend, images)(images, table)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, table, ctx.transpose, ctx.backend = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 4
        (table,) = ctx.saved_tensors
        linear = F.pad(table[:, : TABLE - 1], (0, 1)) if ctx.transpose else table  # without the offsets
        return applied(Augment, grad, linear, not ctx.transpose, ctx.backend), None, None, None


def augment(images: Tensor, table: Tensor, *, backend: str | None = None) -> Tensor:
    """The images (G, n, C, H, W), each group by its row of `table` (G, TABLE): see `schemas`."""
    return applied(Augment, images, table, False, backend)
