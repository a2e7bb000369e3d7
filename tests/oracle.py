"""What the loss tests share: the losses with their definitions from `ddfast.reference`, batches, and tolerances.

A backend that registers its operators is tested by everything that lists losses or operators here; nothing has to be
added for it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import ddfast
import ddfast.functional as DF
from ddfast import reference
from ddfast.operators import native
from ddfast.operators.backends import BACKENDS, refusal

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PRECISIONS = [*((dtype, 0.0) for dtype in DTYPES), (torch.float32, 1e3), (torch.float64, 1e3)]  # dtype, mean / spread

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # a kernel takes seconds for a GPU's microseconds
MANY_CLASSES = 30 if INTERPRETED else 200

many = settings(deadline=None, max_examples=6 if INTERPRETED else 40, derandomize=True)


def runnable(*operators: str) -> list[tuple[str, str]]:
    """The (backend, device) pairs on which all these operators run here."""

    def runs(backend: str, device: str) -> bool:
        return all(refusal(backend, operator, torch.device(device)) is None for operator in operators)

    return [(backend, device) for backend in BACKENDS for device in DEVICES if runs(backend, device)]


def capabilities_to_test() -> list[Any]:
    """The instruction sets of the native operators here; amx, like everywhere else, only where it is asked for."""
    names = native.module.capabilities() if native.module else []
    asked = pytest.mark.skipif(
        os.environ.get("DDFAST_CAPABILITY") != "amx", reason="only DDFAST_CAPABILITY=amx does it"
    )
    return [pytest.param(name, marks=asked) if name == "amx" else name for name in names]


@contextmanager
def one_thread() -> Iterator[None]:
    """For loops over many small tensors: on a busy machine threads would mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Batch:
    """Real and synthetic features with their labels; the complexity losses read the synthetic side alone."""

    real: Tensor
    real_labels: Tensor
    syn: Tensor
    labels: Tensor
    num_classes: int
    uniform: bool = False  # rows are sorted by class and classes equal, and the segments are to make use of it

    def to(self, *where: Any) -> "Batch":
        """Features as dtype or on device; labels follow to the device."""
        real, syn = self.real.to(*where), self.syn.to(*where)
        labels = {"real_labels": self.real_labels.to(real.device), "labels": self.labels.to(real.device)}
        return replace(self, real=real, syn=syn, **labels)

    def exact(self) -> "Batch":
        """The very same numbers for the oracle."""
        return self.to("cpu", torch.float64)

    @property
    def real_segments(self) -> ddfast.ClassSegments:
        return self._segments(self.real_labels)

    @property
    def segments(self) -> ddfast.ClassSegments:
        return self._segments(self.labels)

    def _segments(self, labels: Tensor) -> ddfast.ClassSegments:
        if self.uniform:
            return ddfast.ClassSegments.uniform(self.num_classes, len(labels) // self.num_classes)
        return ddfast.ClassSegments.from_labels(labels, self.num_classes)


# Class 2 has no synthetic rows, class 3 no real ones, and class 4 has one synthetic row.
REAL_LABELS = (2, 0, 1, 1, 0, 4, 2, 4, 0, 1, 2, 0, 1, 4, 2)
LABELS = (1, 3, 0, 1, 4, 0, 0, 3, 1, 0, 1)


def batch(
    row: tuple[int, ...],
    real_labels: Any = REAL_LABELS,
    labels: Any = LABELS,
    num_classes: int = 5,
    *,
    seed: int = 0,
    mean: float = 0.0,
    spread: float = 1.0,
) -> Batch:
    """Features in float64 on the CPU; `mean` is a typical mean of a feature over the rows, `spread` its deviation."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    centre = mean + spread * normal(row)
    real = centre + spread * normal(len(real_labels), *row)
    syn = centre + spread * (0.3 + 0.7 * normal(len(labels), *row))
    integers = partial(torch.as_tensor, dtype=torch.int64)
    return Batch(real, integers(real_labels), syn, integers(labels), num_classes)


def uniform(row: tuple[int, ...], classes: int, real: int, syn: int) -> Batch:
    """Rows sorted by class, so many of each."""
    labels = torch.arange(classes)
    b = batch(row, labels.repeat_interleave(real), labels.repeat_interleave(syn), classes)
    return replace(b, uniform=True)


@st.composite
def ragged(draw: Any, min_rows: int = 0) -> tuple[list[int], list[int], int, int]:
    """Labels of both sides in any order, classes empty on either; the number of classes; a seed."""
    classes = draw(st.integers(1, 6))
    labels = st.lists(st.integers(0, classes - 1), min_size=min_rows, max_size=11)
    return draw(labels), draw(labels), classes, draw(st.integers(0, 99))


@dataclass(frozen=True)
class Loss:
    """A public function with its options, and its definition: (batch, features) -> loss."""

    name: str
    function: Callable[..., Any]
    definition: Callable[[Batch, Tensor], Tensor]
    row: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    moments: bool = False  # whether the real side goes in as ClassMoments

    @property
    def matching(self) -> bool:
        return self.operators[0].startswith("moment_matching")

    @property
    def operators(self) -> tuple[str, str]:
        if "matching" not in self.function.__name__:
            return "class_complexity", "class_complexity_backward"
        return "moment_matching_to_moments" if self.moments else "moment_matching", "moment_matching_backward"

    def arguments(self, batch: Batch) -> Callable[[Tensor], tuple[Any, ...]]:
        """features -> the positional arguments."""
        segments = batch.segments
        if not self.matching:
            return lambda features: (features, segments)
        real_segments = batch.real_segments
        if not self.moments:
            return lambda features: (batch.real, features, real_segments, segments)
        local = self.options.get("local", "channels")
        moments = ddfast.ClassMoments.from_features(batch.real, real_segments, local)
        return lambda features: (moments, features, None, segments)

    def of(self, batch: Batch, backend: str | None = None, **options: Any) -> Callable[[Tensor], Any]:
        """The loss as a function of the features that it differentiates."""
        arguments = self.arguments(batch)
        return lambda features: self.function(*arguments(features), **self.options, **options, backend=backend)

    def expected(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss and its gradient by the definition and autograd, in the batch's dtype."""
        with one_thread():
            return differentiate(partial(self.definition, batch), batch.syn)


def _matching(mean_weight: float, covariance_weight: float, local: str = "channels") -> Callable[..., Tensor]:
    def definition(batch: Batch, features: Tensor) -> Tensor:
        sides = ((batch.real, batch.real_labels), (features, batch.labels))
        total = features.sum() * 0
        if mean_weight:
            total = mean_weight * reference.per_class(reference.distribution_matching, batch.num_classes, *sides).sum()
        if covariance_weight:
            covariance = partial(reference.covariance_matching, local=local)
            total = total + covariance_weight * reference.per_class(covariance, batch.num_classes, *sides).sum()
        return total

    return definition


def _complexity(
    centralization: float, cmi: float, alpha: float | None = None, beta: float = 0.0, reduction: str = "batchmean"
) -> Callable[..., Tensor]:
    def definition(batch: Batch, features: Tensor) -> Tensor:
        side = (features, batch.labels)
        total = features.sum() * 0
        if centralization:
            centralize = partial(reference.class_centralization, alpha=alpha, beta=beta)
            total = centralization * reference.per_class(centralize, batch.num_classes, side).sum()
        if cmi:
            kl = reference.per_class(reference.conditional_mutual_information, batch.num_classes, side)
            kl = kl if reduction == "none" else kl.sum()
            total = total + cmi * (kl / max(len(features), 1) if reduction == "batchmean" else kl)
        return total

    return definition


_exponential = {"alpha": 0.05, "beta": 1.3}

MATCHING = [
    Loss("dm", DF.distribution_matching, _matching(1, 0), (3, 5, 3)),
    Loss("dm-vectors", DF.distribution_matching, _matching(1, 0), (7,)),
    Loss("cm", DF.covariance_matching, _matching(0, 1), (5, 3, 3)),
    Loss("cm-maps", DF.covariance_matching, _matching(0, 1), (5, 7)),
    Loss("cm-vectors", DF.covariance_matching, _matching(0, 1), (7,)),
    Loss("cm-rows", DF.covariance_matching, _matching(0, 1, "rows"), (3, 2, 5), {"local": "rows"}),
    Loss("mm", DF.moment_matching, _matching(1, 0.01), (5, 3, 3)),
    Loss(
        "mm-rows",
        DF.moment_matching,
        _matching(0.7, 0.3, "rows"),
        (3, 2, 5),
        {"mean_weight": 0.7, "covariance_weight": 0.3, "local": "rows"},
    ),
]
MOMENTS = [replace(loss, name=f"{loss.name}-moments", moments=True) for loss in MATCHING]
COMPLEXITY = [
    Loss("cc", DF.class_centralization, _complexity(1, 0), (9,)),
    Loss("cc-exponential", DF.class_centralization, _complexity(1, 0, **_exponential), (9,), _exponential),
    Loss("cmi", DF.conditional_mutual_information, _complexity(0, 1), (9,)),
    Loss("cmi-sum", DF.conditional_mutual_information, _complexity(0, 1, reduction="sum"), (9,), {"reduction": "sum"}),
    Loss(
        "cmi-none", DF.conditional_mutual_information, _complexity(0, 1, reduction="none"), (9,), {"reduction": "none"}
    ),
    Loss("cx", DF.class_complexity, _complexity(0.05, 1), (9,)),
    Loss(
        "cx-exponential",
        DF.class_complexity,
        _complexity(0.3, 2, **_exponential),
        (9,),
        {"centralization_weight": 0.3, "cmi_weight": 2.0, **_exponential},
    ),
]

EACH_KERNEL = {"dm-vectors", "cm-maps", "mm", "mm-rows", "mm-moments", "cx", "cx-exponential", "cmi-none"}


def differentiate(
    loss: Callable[[Tensor], Tensor], features: Tensor, upstream: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, for an upstream gradient of ones unless another is given."""
    leaf = features.detach().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, torch.ones_like(value) if upstream is None else upstream)
    return value.detach(), gradient


def distance(actual: Tensor, exact: Tensor, floor: float = torch.finfo(torch.float32).tiny) -> float:
    """The largest error, in units of the largest element or of `floor`; NaN where one of them holds a NaN."""
    assert actual.shape == exact.shape
    if exact.numel() == 0:
        return 0.0
    exact = exact.double().cpu()
    scale = exact.abs().max().clamp(min=floor)
    return ((actual.double().cpu() - exact).abs().max() / scale).item()


def frobenius(actual: Tensor, exact: Tensor) -> float:
    exact = exact.double().cpu()
    norm = exact.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return ((actual.double().cpu() - exact).norm() / norm).item()


def assert_close(actual: Tensor, exact: Tensor, tolerance: float = 1e-11) -> None:
    """Equal to rounding: for float64, where nothing more exact is at hand to measure eager PyTorch against."""
    error = distance(actual, exact, floor=1e-2)
    assert error <= tolerance, f"off by {error:.1e} of the largest element"


def assert_accurate(triples: list[tuple[Tensor, Tensor, Tensor]], dtype: torch.dtype, backend: str) -> None:
    """The rule of every operator for (actual, eager, exact): an error of at most twice that of eager PyTorch at
    `dtype`, or 4 eps of the largest element, or 1e-5 in the Frobenius norm for split products.

    Errors are the worst over several batches, since one error of one scalar may be nothing by chance.
    """
    if dtype == torch.float64:
        for actual, _, exact in triples:
            assert_close(actual, exact)
        return
    if backend != "reference" and max(frobenius(actual, exact) for actual, _, exact in triples) <= 1e-5:
        return
    ours = max(distance(actual, exact) for actual, _, exact in triples)
    eager = max(distance(eager, exact) for _, eager, exact in triples)
    allowed = max(2 * eager, 4 * torch.finfo(dtype).eps)
    assert ours <= allowed, f"off by {ours:.1e} of the largest element, allowed {allowed:.1e} (eager {eager:.1e})"
