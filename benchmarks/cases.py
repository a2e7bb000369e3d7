"""What is compared: every operator on every workload, by each backend that runs here and by each baseline."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.baselines import BASELINES, augmentation, eager, loop
from benchmarks.workloads import Workload
from ddfast import ClassMoments, keyed, reference
from ddfast.augment import DRAWS, augment
from ddfast.operators.backends import BACKENDS, refusal
from tests import oracle
from tests.oracle import Batch, Loss

COMPLEXITY = ("class_complexity", "class_centralization", "conditional_mutual_information")
MATCHING = ("moment_matching", "distribution_matching", "covariance_matching")
MOMENTS = ("class_moments",)
AUGMENT = ("augment", "augment_real")  # of synthetic images with its gradient, and of real ones
CONSTANT = ("class_moments", "augment_real")  # what has no gradient

Function = Callable[[Tensor], Any]  # of the features that are differentiated, or whose moments are taken
Bind = Callable[[Batch], Function]  # what need not be timed: the segments and the constant side

_definitions = {loss.name: loss for loss in (*oracle.MATCHING, *oracle.COMPLEXITY)}


def loss_of(operator: str, local: str) -> Loss:
    rows = local == "rows"
    return _definitions[
        {
            "moment_matching": "mm-rows" if rows else "mm",
            "covariance_matching": "cm-rows" if rows else "cm",
            "distribution_matching": "dm",
            "class_complexity": "cx",
            "class_centralization": "cc",
            "conditional_mutual_information": "cmi",
        }[operator]
    ]


def backends(operator: str, device: torch.device) -> list[str]:
    """Those that run the operator here."""
    if operator in AUGMENT:
        needed: tuple[str, ...] = ("augment", "augment_backward")
    else:
        needed = MOMENTS if operator in MOMENTS else loss_of(operator, "channels").operators
    return [name for name in BACKENDS if all(refusal(name, part, device) is None for part in needed)]


@dataclass(frozen=True)
class Case:
    """An operator on a workload, with its gradient where it has one."""

    operator: str
    workload: Workload
    device: torch.device

    @property
    def differentiable(self) -> bool:
        return self.operator not in CONSTANT

    def batch(self, seed: int) -> Batch:
        if self.operator in AUGMENT:
            return inputs.images(self.workload, self.device, seed)
        make = inputs.complexity if self.operator in COMPLEXITY else inputs.matching
        return make(self.workload, self.device, seed)

    def features(self, batch: Batch) -> Tensor:
        return batch.syn if self.differentiable else batch.real

    def upstream(self, batch: Batch) -> Tensor | None:
        """The gradient of the result; that of a loss is 1."""
        return batch.syn.roll(1, 0) if self.operator in AUGMENT else None

    def definition(self, batch: Batch) -> Function:
        if self.operator in AUGMENT:
            return self._augmentation(augmentation.loop, batch)
        if self.differentiable:
            return partial(loss_of(self.operator, self.workload.local).definition, batch)
        return partial(_moments_by_definition, batch, self.workload.local)

    def contenders(self, only: Collection[str] | None = None) -> dict[str, Bind]:
        """Baselines and backends by name; or those of `only`, without what the others would import."""
        names = (*BASELINES, *backends(self.operator, self.device))
        return {name: self.contender(name) for name in names if only is None or name in only}

    def contender(self, name: str) -> Bind:
        if self.operator in AUGMENT:
            functions: dict[str, Callable[[], Callable[..., Tensor]]] = {
                "loop": lambda: augmentation.loop,
                "eager": lambda: augmentation.eager,
                "compile": lambda: torch.compile(augmentation.eager, dynamic=False),  # in several graphs
            }
            made = functions.get(name, lambda: partial(augment, backend=name))
            return partial(self._augmentation, made())
        if name == "loop":
            return partial(self._baseline, getattr(loop, self.operator))
        baseline = getattr(eager, self.operator)
        if name == "compile":
            baseline = torch.compile(baseline, dynamic=False, fullgraph=True)
        return partial(self._baseline, baseline) if name in BASELINES else partial(self._public, name)

    def _baseline(self, function: Callable[..., Any], batch: Batch) -> Function:
        if not self.differentiable:
            return lambda real: function(real, batch.num_classes, local=self.workload.local)
        loss = loss_of(self.operator, self.workload.local)
        if loss.matching:
            return lambda syn: function(batch.real, syn, batch.num_classes, **loss.options)
        return lambda features: function(features, batch.num_classes, **loss.options)

    def _augmentation(self, function: Callable[..., Tensor], batch: Batch) -> Function:
        draws = keyed.uniform(0, 0, torch.arange(batch.num_classes), "benchmark", DRAWS)
        draws[:, 0] = (torch.arange(batch.num_classes) + 0.5) / batch.num_classes  # every operation equally often
        return lambda images: function(images.unflatten(0, (batch.num_classes, -1)), draws).flatten(0, 1)

    def _public(self, backend: str, batch: Batch) -> Function:
        if self.differentiable:
            return loss_of(self.operator, self.workload.local).of(batch, backend)
        segments, local = batch.real_segments, self.workload.local

        def moments(real: Tensor) -> tuple[Tensor, Tensor]:
            result = ClassMoments.from_features(real, segments, local, backend=backend)
            return result.means, result.covariances

        return moments


def _moments_by_definition(batch: Batch, local: str, real: Tensor) -> tuple[Tensor, Tensor]:
    members = [real[batch.real_labels == k] for k in range(batch.num_classes)]
    means = [reference.descriptors(rows, local).mean(0) for rows in members]
    return torch.stack(means), torch.stack([reference.local_covariance(rows, local) for rows in members])
