"""Class centralization and conditional mutual information; what every loss has in common is in test_operators.py."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    COMPLEXITY,
    MANY_CLASSES,
    PRECISIONS,
    Batch,
    assert_accurate,
    assert_close,
    batch,
    differentiate,
    distance,
    many,
    ragged,
    uniform,
)

import ddfast.functional as DF
from ddfast import ClassSegments, reference

LOSSES = COMPLEXITY
CMI = [loss for loss in LOSSES if loss.name.startswith("cmi")]
pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.operators("class_complexity", "class_complexity_backward"),
]


@many
@given(sides=ragged(), width=st.integers(1, 12))
def test_equal_to_the_definition(loss, backend, device, sides, width):
    _, labels, classes, seed = sides
    b = batch((width,), [], labels, classes, seed=seed)
    value, gradient = differentiate(loss.of(b.to(device), backend), b.syn.to(device))
    expected, expected_gradient = loss.expected(b)
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)


@pytest.mark.parametrize(("dtype", "mean"), PRECISIONS, ids=str)
def test_accuracy(loss, dtype, mean, backend, device):
    values, gradients = [], []
    for seed in range(5):
        b = batch(loss.row, seed=seed, mean=mean).to(dtype)
        value, gradient = differentiate(loss.of(b.to(device), backend), b.syn.to(device))
        eager, eager_gradient = loss.expected(b)
        exact, exact_gradient = loss.expected(b.exact())
        values.append((value, eager, exact))
        gradients.append((gradient, eager_gradient, exact_gradient))
        assert gradient.dtype == dtype
    assert_accurate(values, dtype, backend)
    assert_accurate(gradients, dtype, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_in_float32(loss, dtype, backend, device):
    """Of the rounded numbers, that is: rounding them moves the loss by far more."""
    b = batch(loss.row, mean=1.0).to(dtype)
    value = loss.of(b.to(device), backend)(b.syn.to(device))
    assert distance(value, loss.expected(b.exact())[0]) < 1e-5


def tensor(*values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def test_centralization_by_hand(backend, device):
    features = tensor([0, 0], [2, 4], device=device)
    value, gradient = differentiate(partial(DF.class_centralization, backend=backend), features)
    assert value.item() == 10
    assert gradient.tolist() == [[-2, -4], [2, 4]]


def test_exponential_centralization_by_hand(backend, device):
    """d² = 1 twice: the pull of each row is 2·alpha·exp(alpha)·offset, and the pulls cancel in the mean."""
    features = tensor([0], [2], device=device)
    call = partial(DF.class_centralization, alpha=0.5, beta=1.25, backend=backend)
    value, gradient = differentiate(call, features)
    assert value.item() == pytest.approx(2 * (math.exp(0.5) - 1.25), rel=1e-12)
    assert gradient.flatten().tolist() == pytest.approx([-math.exp(0.5), math.exp(0.5)], rel=1e-12)


def test_cmi_by_hand(backend, device):
    """P = (3/4, 1/4) and (1/4, 3/4), Q = (1/2, 1/2)."""
    features = tensor([math.log(3), 0], [0, math.log(3)], device=device)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    for reduction, expected in (("batchmean", kl), ("sum", 2 * kl), ("none", [2 * kl])):
        value = DF.conditional_mutual_information(features, reduction=reduction, backend=backend)
        assert value.tolist() == pytest.approx(expected, rel=1e-12)
    _, gradient = differentiate(partial(DF.conditional_mutual_information, backend=backend), features)
    assert gradient[0].tolist() == pytest.approx(
        [0.375 * (math.log(1.5) - kl), 0.125 * (math.log(0.5) - kl)], rel=1e-12
    )


def test_batchmean_divides_by_all_rows(backend, device):
    b = batch((9,)).to(device)
    per_class = DF.conditional_mutual_information(b.syn, b.segments, reduction="none", backend=backend)
    assert per_class.shape == (5,)
    assert_close(DF.conditional_mutual_information(b.syn, b.segments, backend=backend), per_class.sum() / 11)
    total = DF.conditional_mutual_information(b.syn, b.segments, reduction="sum", backend=backend)
    assert_close(total, per_class.sum())


@pytest.mark.losses("cc", "cc-exponential", "cmi-sum")
def test_one_call_is_a_loop_over_classes(loss, backend, device):
    b = batch(loss.row).to(device)
    looped = sum(loss.function(b.syn[b.labels == k], **loss.options, backend=backend) for k in b.labels.unique())
    assert_close(loss.of(b, backend)(b.syn), looped)


def test_uniform_segments_equal_ragged_ones(loss, backend, device):
    b = uniform(loss.row, 4, 1, 3).to(device)
    value, gradient = differentiate(loss.of(b, backend), b.syn)
    expected, expected_gradient = differentiate(loss.of(replace(b, uniform=False), backend), b.syn)
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)


def test_an_empty_class_contributes_nothing(loss, backend, device):
    b = batch(loss.row).to(device)
    value, gradient = differentiate(loss.of(b, backend), b.syn)
    more = replace(b, num_classes=9)
    expected, expected_gradient = differentiate(loss.of(more, backend), b.syn)
    if loss.name == "cmi-none":
        assert (expected[5:] == 0).all()
        assert value[2] == 0
        expected = expected[:5]
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("classes", [None, 3], ids=["no segments", "three empty classes"])
def test_no_rows(loss, classes, backend, device):
    features = torch.zeros(0, 9, dtype=torch.float64, device=device)
    segments = classes and ClassSegments.from_labels(torch.zeros(0, dtype=torch.int64, device=device), classes)
    call = partial(loss.function, segments=segments, **loss.options, backend=backend)
    value, gradient = differentiate(call, features)
    assert value.shape == ((classes or 1,) if loss.name == "cmi-none" else ())
    assert (value == 0).all()
    assert gradient.shape == (0, 9)


def test_one_row_a_class_has_no_complexity(backend, device):
    features = torch.randn(3, 9, dtype=torch.float64, device=device)
    segments = ClassSegments.from_labels(torch.tensor([2, 0, 1], device=device))
    centralization = partial(DF.class_centralization, segments=segments, backend=backend)
    value, gradient = differentiate(centralization, features)
    assert value.item() == 0
    assert (gradient == 0).all()
    information = partial(DF.conditional_mutual_information, segments=segments, backend=backend)
    value, gradient = differentiate(information, features)
    assert abs(value.item()) < 1e-15
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("classes", [1, MANY_CLASSES, 1000])
def test_any_number_of_classes(loss, classes, backend, device):
    b = batch(loss.row, [], [k for k in range(classes) if k % 5 or classes == 1] * 3, classes)
    value, gradient = differentiate(loss.of(b.to(device), backend), b.syn.to(device))
    expected, expected_gradient = loss.expected(b)
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("width", [1, 2, 511, 2048])
def test_any_width(width, backend, device):
    loss = COMPLEXITY[-1]
    b = batch((width,))
    b = replace(b, syn=b.syn * (9 / width) ** 0.5)
    value, gradient = differentiate(loss.of(b.to(device), backend), b.syn.to(device))
    expected, expected_gradient = loss.expected(b)
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)


def test_cmi_keeps_its_digits_near_convergence(backend, device):
    """KL is 1e-7 here. H(Q) − H(P) would lose every digit of it in float32; the direct form is as good as eager's."""
    values, gradients = [], []
    for seed in range(5):
        noise = batch((64,), [], [0, 1, 2] * 12, 3, seed=seed).syn
        b = Batch(noise, torch.zeros(0), 2 + 1e-3 * noise, torch.arange(36) % 3, 3).to(torch.float32)
        call = partial(DF.conditional_mutual_information, segments=b.segments.to(device), backend=backend)
        value, gradient = differentiate(call, b.syn.to(device))
        definition = CMI[0].definition
        eager, eager_gradient = differentiate(partial(definition, b), b.syn)
        exact, exact_gradient = differentiate(partial(definition, b.exact()), b.exact().syn)
        assert 1e-8 < exact.item() < 1e-6
        values.append((value, eager, exact))
        gradients.append((gradient, eager_gradient, exact_gradient))
    assert_accurate(values, torch.float32, backend)
    assert_accurate(gradients, torch.float32, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cmi_of_impossible_features(dtype, backend, device):
    """−inf in a whole class has P = Q = 0; in some rows P = 0 alone. 0·log 0 is 0, as it is for a feature far below."""
    b = batch((9,))
    syn = b.syn.clone()
    syn[b.labels == 1, 3] = -torch.inf
    syn[0, 5] = -torch.inf
    far = syn.clamp(min=-1e4)
    for loss in CMI:
        value, gradient = differentiate(loss.of(b.to(device), backend), syn.to(device, dtype))
        expected, expected_gradient = loss.expected(replace(b, syn=far))
        assert distance(value, expected) < (1e-12 if dtype == torch.float64 else 1e-6)
        assert distance(gradient, expected_gradient) < (1e-12 if dtype == torch.float64 else 1e-6)
        assert (gradient[b.labels.to(device) == 1, 3] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_cmi_of_features_whose_softmax_underflows(dtype, backend, device):
    b = batch((9,), spread=1e4)
    for loss in CMI:
        rounded = replace(b, syn=b.syn.to(dtype).double())
        value, gradient = differentiate(loss.of(b.to(device), backend), b.syn.to(device, dtype))
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        assert distance(value, loss.expected(rounded)[0]) < 1e-5


def test_small_probabilities_count(backend, device):
    """Probabilities from 1 down to 1e-20; without those below 1e-6 the loss would be off by as much."""
    for loss in CMI:
        b = batch(loss.row, spread=6.0)
        value, gradient = differentiate(loss.of(b.to(device), backend), b.syn.to(device))
        expected, expected_gradient = loss.expected(b)
        assert_close(value, expected)
        assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_probability_whose_mean_underflows_is_finite(dtype, backend, device):
    """P is the smallest number of its dtype in one row and 0 in the others: then Q is 0 where P is not."""
    depth = {torch.float32: (85, 105), torch.float64: (705, 747)}[dtype]
    for gap in torch.arange(*depth, 0.25).tolist():
        features = torch.tensor([[0, -gap], *[[0, -torch.inf]] * 3], dtype=dtype, device=device)
        value, gradient = differentiate(partial(DF.conditional_mutual_information, backend=backend), features)
        assert abs(value.item()) < 1e-30
        assert gradient.abs().max() < 1e-30


def test_cmi_of_equal_rows_is_zero(backend, device):
    features = torch.randn(1, 40, dtype=torch.float64, device=device).expand(12, 40)
    value, gradient = differentiate(partial(DF.conditional_mutual_information, backend=backend), features)
    assert abs(value.item()) < 1e-15
    assert gradient.abs().max() < 1e-15


def test_cmi_is_never_more_than_log_of_the_rows(backend, device):
    """Each row puts all its mass on a feature of its own: KL = log N, whatever the width."""
    features = 1e3 * torch.eye(8, 20, dtype=torch.float64, device=device)
    value = DF.conditional_mutual_information(features, backend=backend)
    assert value.item() == pytest.approx(math.log(8), rel=1e-12)


def test_features_may_have_any_common_offset_in_cmi(backend, device):
    b = batch((9,)).to(device)
    call = partial(DF.conditional_mutual_information, segments=b.segments, backend=backend)
    assert_close(call(b.syn + 256), call(b.syn))


def test_beta_cuts_off_rows_near_the_centre(backend, device):
    """Rows below the threshold contribute nothing, and pull only through the mean of those above it."""
    b = batch((9,))
    squared = torch.cat([(b.syn[b.labels == k] - b.syn[b.labels == k].mean(0)).square().sum(1) for k in (0, 1)])
    beta = (0.05 * squared.median()).exp().item() * 1.001
    assert 0 < (torch.exp(0.05 * squared) < beta).sum() < len(squared)
    call = partial(DF.class_centralization, alpha=0.05, beta=beta, backend=backend)
    value, gradient = differentiate(partial(call, segments=b.segments.to(device)), b.syn.to(device))

    def definition(syn):
        centralize = partial(reference.class_centralization, alpha=0.05, beta=beta)
        return reference.per_class(centralize, 5, (syn, b.labels)).sum()

    expected, expected_gradient = differentiate(definition, b.syn)
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)


def test_beta_above_every_row_leaves_nothing(backend, device):
    b = batch((9,)).to(device)
    call = partial(DF.class_centralization, segments=b.segments, alpha=1e-3, beta=1e6, backend=backend)
    value, gradient = differentiate(call, b.syn)
    assert value.item() == 0
    assert (gradient == 0).all()


def test_an_empty_or_padded_row_has_no_exponential(backend, device):
    """exp(0) − beta is positive for every row at the centre, and must be counted for rows that exist alone."""
    features = torch.zeros(3, 4, dtype=torch.float64, device=device)
    segments = ClassSegments.from_labels(torch.tensor([0, 0, 2], device=device), 4)
    value = DF.class_centralization(features, segments, alpha=1.0, beta=0.25, backend=backend)
    assert value.item() == 3 * 0.75


def test_exponential_centralization_overflows_to_infinity(backend, device):
    features = torch.randn(6, 9, device=device)
    segments = ClassSegments.uniform(2, 3)
    features[:3] *= 1e3
    value = DF.class_centralization(features, segments, alpha=1.0, beta=1.0, backend=backend)
    assert value.item() == torch.inf


def fused(b, backend, **options):
    return partial(DF.class_complexity, segments=b.segments, **options, backend=backend)


@pytest.mark.parametrize("exponential", [{}, {"alpha": 0.05, "beta": 1.3}], ids=["released", "exponential"])
def test_terms_are_the_unweighted_losses(exponential, backend, device):
    b = batch((9,)).to(device)
    syn = b.syn.requires_grad_()
    weights = {"centralization_weight": 0.7, "cmi_weight": 0.3, **exponential}
    loss, terms = fused(b, backend, return_terms=True, **weights)(syn)
    alone = {
        "class_centralization": DF.class_centralization(syn, b.segments, **exponential, backend=backend),
        "conditional_mutual_information": DF.conditional_mutual_information(syn, b.segments, backend=backend),
    }
    assert list(terms) == list(alone)
    for name, term in terms.items():
        assert term.shape == ()
        assert term.dtype == torch.float64
        assert not term.requires_grad
        assert_close(term, alone[name].detach())
    weighted = 0.7 * terms["class_centralization"] + 0.3 * terms["conditional_mutual_information"]
    assert_close(loss.detach(), weighted)
    assert torch.equal(loss, fused(b, backend, **weights)(syn))
    loss.backward()
    assert_close(syn.grad, differentiate(fused(b, backend, **weights), syn)[1])


@pytest.mark.parametrize(
    ("weights", "name"),
    [((1.0, 0.0), "class_centralization"), ((0.0, 1.0), "conditional_mutual_information")],
)
def test_a_zero_weight_leaves_the_other_loss(weights, name, backend, device):
    b = batch((9,)).to(torch.float32).to(device)
    weights = dict(zip(("centralization_weight", "cmi_weight"), weights, strict=True))
    value, gradient = differentiate(fused(b, backend, **weights), b.syn)
    alone = partial(getattr(DF, name), segments=b.segments, backend=backend)
    expected, expected_gradient = differentiate(alone, b.syn)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient)
    assert list(fused(b, backend, return_terms=True, **weights)(b.syn)[1]) == [name]


def test_two_zero_weights(backend, device):
    b = batch((9,)).to(device)
    value, gradient = differentiate(fused(b, backend, centralization_weight=0, cmi_weight=0), b.syn)
    assert value.item() == 0
    assert (gradient == 0).all()
    assert fused(b, backend, centralization_weight=0, cmi_weight=0, return_terms=True)(b.syn)[1] == {}


def test_a_term_of_zero_weight_is_not_computed(backend, device):
    """−inf is a feature without probability for CMI, and ruins the mean that CC wants."""
    b = batch((9,)).to(device)
    b.syn[0, 0] = -torch.inf
    assert fused(b, backend, centralization_weight=0)(b.syn).isfinite()
    assert fused(b, backend, centralization_weight=1e-9)(b.syn).isnan()


@pytest.mark.parametrize("k", [0, 1, 3, 4])
def test_nan_stays_in_its_class(loss, k, backend, device):
    b = batch(loss.row).to(device)
    whole, expected = differentiate(loss.of(b, backend), b.syn)
    b.syn[(b.labels == k).nonzero()[-1].item(), 4] = torch.nan
    value, gradient = differentiate(loss.of(b, backend), b.syn)
    if loss.name == "cmi-none":
        others = torch.arange(5, device=device) != k
        assert value[k].isnan()
        assert_close(value[others], whole[others])
    else:
        assert value.isnan()
    assert gradient[b.labels == k].isnan().any()
    assert_close(gradient[b.labels != k], expected[b.labels != k])


def test_infinity_is_not_hidden(loss, backend, device):
    b = batch(loss.row).to(device)
    b.syn[0, 4] = torch.inf
    value = loss.of(b, backend)(b.syn)
    assert not value.isfinite().all()


LAYOUTS = {
    "columns first": lambda x: x.T.contiguous().T,
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every other column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "some columns": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "offset": lambda x: torch.cat([x[:1], x])[1:],
    "expanded rows": lambda x: x[:1].expand_as(x),
    "expanded columns": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("arrange", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout(loss, arrange, backend, device):
    b = batch(loss.row).to(device)
    syn = arrange(b.syn)
    value, gradient = differentiate(loss.of(b, backend), syn)
    expected, expected_gradient = differentiate(loss.of(b, backend), syn.contiguous())
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)
    assert gradient.stride() == torch.empty_like(syn).stride()
