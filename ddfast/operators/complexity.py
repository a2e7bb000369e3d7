"""The autograd function of class centralization and class-aware conditional mutual information."""

from typing import Any

import torch
from torch import Tensor

from ddfast.operators.first_order import applied, constant, first_order
from ddfast.operators.library import overload
from ddfast.segments import ClassSegments


class ClassComplexity(torch.autograd.Function):
    """The loss and its terms; the gradient flows to `features`, once."""

    @staticmethod
    def forward(
        features: Tensor, segments: ClassSegments, weights: tuple[Any, ...], needs_grad: bool, backend: str | None
    ) -> tuple[Tensor, ...]:
        run = overload("class_complexity", backend, features)
        side = (segments.offsets, segments.index, segments.largest, segments.num_classes)
        return run(features, *side, *weights, needs_grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        features, segments, weights, _, backend = inputs
        _, terms, *state = output
        ctx.mark_non_differentiable(terms, *state)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(features, segments.offsets, segments.index, *state)
        ctx.sizes = (segments.largest, segments.num_classes)
        ctx.weights, ctx.backend = weights, backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        features, offsets, index, *state = ctx.saved_tensors
        run = overload("class_complexity_backward", ctx.backend, features)
        gradient = constant(run, grad, features, offsets, index, *ctx.sizes, *state, *ctx.weights)
        return first_order(gradient, grad, features), None, None, None, None


def class_complexity(
    features: Tensor,
    segments: ClassSegments,
    *,
    centralization_weight: float,
    cmi_weight: float,
    alpha: float | None,
    beta: float,
    reduction: str,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """The weighted loss, () or (K,), and its unweighted terms (2,)."""
    weights = (centralization_weight, cmi_weight, alpha, beta, reduction)
    needs_grad = features.requires_grad and torch.is_grad_enabled()
    loss, terms, *_ = applied(ClassComplexity, features, segments, weights, needs_grad, backend)
    return loss, terms
