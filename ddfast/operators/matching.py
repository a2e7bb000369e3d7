"""The autograd function of distribution matching and covariance matching, against a constant real side."""

from typing import Any

import torch
from torch import Tensor

from ddfast.operators.first_order import applied, constant, first_order
from ddfast.operators.library import overload
from ddfast.segments import ClassSegments


class MomentMatching(torch.autograd.Function):
    """The loss and its terms; the gradient flows to `syn` alone, once."""

    @staticmethod
    def forward(
        operator: str,
        real: tuple[Any, ...],
        syn: Tensor,
        form: tuple[int, ...],
        segments: ClassSegments,
        options: tuple[Any, ...],
        backend: Any,
    ) -> tuple[Tensor, ...]:
        run = overload(operator, backend, syn)
        side = (segments.offsets, segments.index, segments.largest, segments.num_classes)
        return run(*real, syn.reshape(form), *side, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, _, syn, form, segments, (*weights, _), backend = inputs
        _, terms, *state = output
        ctx.mark_non_differentiable(terms, *state)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(syn, segments.offsets, segments.index, *state)
        ctx.form, ctx.sizes = form, (segments.largest, segments.num_classes)
        ctx.weights, ctx.backend = weights, backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        syn, offsets, index, *state = ctx.saved_tensors
        run = overload("moment_matching_backward", ctx.backend, syn)
        maps = constant(syn.reshape, ctx.form)
        gradient = constant(run, grad, maps, offsets, index, *ctx.sizes, *state, *ctx.weights)
        return None, None, first_order(gradient.reshape(syn.shape), grad, syn), None, None, None, None


def moment_matching(
    operator: str,
    real: tuple[Any, ...],
    syn: Tensor,
    form: tuple[int, ...],
    segments: ClassSegments,
    *,
    mean_weight: float,
    covariance_weight: float,
    tf32: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """The weighted loss () and its unweighted terms (2,).

    Args:
        operator, real: its name, and its description of the real side.
        syn: the synthetic features as they came; the operator reads them as `form` (N, A, B, P), so that no view of
            them is part of the graph.
    """
    needs_grad = syn.requires_grad and torch.is_grad_enabled()
    options = (mean_weight, covariance_weight, tf32, needs_grad)
    loss, terms, *_ = applied(MomentMatching, operator, real, syn, form, segments, options, backend)
    return loss, terms
