"""What the autograd functions share.

Our operators are first-order: whoever differentiates their gradient is told so, and never gets a constant's zero.

`once_differentiable` does that only where the upstream gradient itself requires a gradient, which that of a plain
`torch.autograd.grad(loss, features, create_graph=True)` does not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def applied(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`, whose Python binds the arguments to the names of `forward` at every call: 15 µs."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    alive = torch._functorch.utils.unwrap_dead_wrappers(args)
    return super(torch.autograd.Function, function).apply(*alive)  # type: ignore[misc]


def constant(run: Callable[..., Any], *args: Any) -> Any:
    """`run(*args)` without a graph; entering `no_grad` takes 3 µs, and mostly a backward is without one anyway."""
    if not torch.is_grad_enabled():
        return run(*args)
    with torch.no_grad():
        return run(*args)


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
    return applied(_FirstOrder, what, gradient, *sources) if torch.is_grad_enabled() else gradient
