"""What the autograd functions share.

Our operators are first-order: whoever differentiates their gradient is told so, and never gets a constant's zero.

`once_differentiable` does that only where the upstream gradient itself requires a gradient, which that of a plain
`torch.autograd.grad(loss, features, create_graph=True)` does not.
"""

import inspect
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=type[torch.autograd.Function])


def signed(function: Function) -> Function:
    """Keeps the signature of `forward` at hand: `apply` asks for it at every call, and finding it takes 10 µs."""
    function.forward.__signature__ = inspect.signature(function.forward)  # type: ignore[attr-defined]
    return function


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(what: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.what = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(f"ddfast {ctx.what}")


LOSSES = "losses are first-order: their gradient cannot be differentiated again"
BLOCKS = "blocks are first-order: a network that is to be differentiated again is built with fused=False"


def first_order(gradient: Tensor, *sources: Tensor | None, what: str = LOSSES) -> Tensor:
    """`gradient`, which hangs on `sources` by a node that raises, where a graph of it is asked for."""
    return _FirstOrder.apply(what, gradient, *sources) if torch.is_grad_enabled() else gradient
