"""Distribution and covariance matching; what every loss has in common is in test_operators.py."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from oracle import (
    MANY_CLASSES,
    MATCHING,
    MOMENTS,
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
from ddfast import ClassMoments, ClassSegments

LOSSES = MATCHING + MOMENTS
pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.operators("moment_matching", "moment_matching_to_moments", "moment_matching_backward"),
]


@many
@given(sides=ragged())
def test_equal_to_the_definition(loss, backend, device, sides):
    real_labels, labels, classes, seed = sides
    b = batch(loss.row, real_labels, labels, classes, seed=seed)
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


def test_distribution_matching_by_hand(backend, device):
    real, syn = tensor([1, 5], [3, 5], device=device), tensor([4, 6], device=device)
    value, gradient = differentiate(partial(DF.distribution_matching, real, backend=backend), syn)
    assert value.item() == 5  # (2, 5) against (4, 6)
    assert gradient.tolist() == [[4, 2]]


def test_covariance_matching_by_hand(backend, device):
    """One image of two channels at one position, twice: Sigma_s = [[1, 2], [2, 4]], divided by N and not by N − 1."""
    real, syn = tensor([7, 7], [7, 7], device=device), tensor([0, 0], [2, 4], device=device)
    value, gradient = differentiate(partial(DF.covariance_matching, real, backend=backend), syn)
    assert value.item() == 1 + 4 + 4 + 16
    assert gradient.tolist() == [[-10, -20], [10, 20]]  # (4/2)·Delta·(F − M)


def test_covariance_is_not_divided_by_positions_and_centres_each_position(backend, device):
    """One channel at two positions: the variances 1 and 4 add up; each position has a mean of its own."""
    real, syn = tensor([[0, 9]], device=device), tensor([[1, 10]], [[3, 14]], device=device)
    assert DF.covariance_matching(real, syn, backend=backend).item() == 25


def test_one_call_is_a_loop_over_classes(loss, backend, device):
    b = batch(loss.row).to(device)
    looped = 0
    for k in range(b.num_classes):
        real, syn = b.real[b.real_labels == k], b.syn[b.labels == k]
        if len(real) and len(syn):
            side = ClassMoments.from_features(real, None, loss.options.get("local", "channels"))
            looped += loss.function(side if loss.moments else real, syn, **loss.options, backend=backend)
    assert_close(loss.of(b, backend)(b.syn), looped)


def test_uniform_segments_equal_ragged_ones(loss, backend, device):
    b = uniform(loss.row, 4, 6, 3).to(device)
    value, gradient = differentiate(loss.of(b, backend), b.syn)
    expected, expected_gradient = differentiate(loss.of(replace(b, uniform=False), backend), b.syn)
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)


def test_a_class_that_is_empty_on_either_side_contributes_nothing(loss, backend, device):
    b = batch(loss.row).to(device)  # class 2 has real rows only, class 3 synthetic ones only
    value, gradient = differentiate(loss.of(b, backend), b.syn)
    real, syn = b.real_labels != 2, b.labels != 3
    without = Batch(b.real[real], b.real_labels[real], b.syn[syn], b.labels[syn], 5)
    expected, expected_gradient = differentiate(loss.of(without, backend), without.syn)
    assert_close(value, expected)
    assert_close(gradient[syn], expected_gradient)


def test_a_class_without_real_rows_has_zero_gradient(loss, backend, device):
    b = batch(loss.row).to(device)
    _, gradient = differentiate(loss.of(b, backend), b.syn)
    assert (gradient[b.labels == 3] == 0).all()
    assert (gradient[b.labels == 1] != 0).any()


@pytest.mark.parametrize("labels", [((), ()), ((0, 1), ()), ((), (0, 1))], ids=["no rows", "no synthetic", "no real"])
def test_nothing_to_match(loss, labels, backend, device):
    b = batch(loss.row, *labels, num_classes=3).to(device)
    value, gradient = differentiate(loss.of(b, backend), b.syn)
    assert value.item() == 0
    assert gradient.shape == b.syn.shape
    assert (gradient == 0).all()


def test_one_row_a_class_has_no_covariance(backend, device):
    b = batch((4, 3), (0, 1, 2), (2, 1, 0), 3).to(device)
    sides = (b.real_segments, b.segments)
    value, gradient = differentiate(lambda syn: DF.covariance_matching(b.real, syn, *sides, backend=backend), b.syn)
    assert value.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("classes", [1, MANY_CLASSES, pytest.param(5 * MANY_CLASSES, marks=pytest.mark.full)])
def test_any_number_of_classes(loss, classes, backend, device):
    labels = [k for k in range(classes) if k % 5 or classes == 1] * 2
    b = batch(loss.row, list(range(classes)) * 2, labels, classes)
    value, gradient = differentiate(loss.of(b.to(device), backend), b.syn.to(device))
    expected, expected_gradient = loss.expected(b)
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)


def test_real_is_a_constant(loss, backend, device):
    b = batch(loss.row).to(device)
    b.real.requires_grad_()
    assert not loss.of(b, backend)(b.syn).requires_grad
    syn = b.syn.clone().requires_grad_()
    loss.of(b, backend)(syn).backward()
    assert b.real.grad is None
    assert syn.grad.abs().sum() > 0


def test_moments_are_a_constant(backend, device):
    b = batch((4, 3)).to(device)
    moments = ClassMoments.from_features(b.real, b.real_segments)
    moments.means.requires_grad_()
    moments.covariances.requires_grad_()
    syn = b.syn.clone().requires_grad_()
    DF.moment_matching(moments, syn, syn_segments=b.segments, backend=backend).backward()
    assert moments.means.grad is None
    assert moments.covariances.grad is None
    assert syn.grad.abs().sum() > 0


PAIRS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.float64, torch.bfloat16),
]


@pytest.mark.parametrize(("moments_dtype", "dtype"), PAIRS, ids=str)
@pytest.mark.losses("dm-moments", "cm-rows-moments", "mm-moments")
def test_moments_pair_with_any_float_dtype(loss, moments_dtype, dtype, backend, device):
    local = loss.options.get("local", "channels")
    b = batch(loss.row)
    real, syn = b.real.to(device, moments_dtype), b.syn.to(device, dtype)
    moments = ClassMoments.from_features(real, b.real_segments.to(device), local)
    call = partial(loss.function, moments, syn_segments=b.segments.to(device), **loss.options, backend=backend)
    value, gradient = differentiate(call, syn)
    rounded = replace(b, real=real.double().cpu(), syn=syn.double().cpu())
    expected, expected_gradient = loss.expected(rounded)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    assert distance(value, expected) < 1e-5
    assert distance(gradient, expected_gradient) < max(1e-5, 2 * torch.finfo(dtype).eps)


def test_distribution_matching_takes_moments_of_either_local(backend, device):
    b = batch((3, 2, 5)).to(device)
    expected = DF.distribution_matching(b.real, b.syn, b.real_segments, b.segments, backend=backend)
    for local in ("channels", "rows"):
        moments = ClassMoments.from_features(b.real, b.real_segments, local)
        assert_close(
            DF.distribution_matching(moments, b.syn, syn_segments=b.segments, backend=backend),
            expected,
        )


def test_float64_moments_keep_their_digits_against_float32(backend, device):
    """At mean/spread 1e6 float32 means would leave nothing of the gap."""
    b = batch((6, 4), mean=1e6)
    syn = b.syn.to(device, torch.float32)
    moments = ClassMoments.from_features(b.real.to(device), b.real_segments.to(device))
    value = DF.distribution_matching(moments, syn, syn_segments=b.segments.to(device), backend=backend)
    rounded = syn.double().cpu()
    assert distance(value, MATCHING[0].definition(b, rounded)) < 1e-6


def test_merged_moments_equal_real_features(backend, device):
    b = batch((5, 3, 3)).to(device)
    halves = zip(b.real.chunk(2), b.real_labels.chunk(2), strict=True)
    first, second = (ClassMoments.from_features(x, ClassSegments.from_labels(y, 5)) for x, y in halves)
    value = DF.moment_matching(first.merge(second), b.syn, syn_segments=b.segments, backend=backend)
    assert_close(value, DF.moment_matching(b.real, b.syn, b.real_segments, b.segments, backend=backend))


def fused(b, backend, **options):
    sides = {"real_segments": b.real_segments, "syn_segments": b.segments}
    return partial(DF.moment_matching, b.real, **sides, **options, backend=backend)


def test_terms_are_the_unweighted_losses(backend, device):
    b = batch((5, 3, 3)).to(device)
    syn = b.syn.requires_grad_()
    sides = (b.real_segments, b.segments)
    weights = {"mean_weight": 0.7, "covariance_weight": 0.3}
    loss, terms = fused(b, backend, return_terms=True, **weights)(syn)
    assert list(terms) == ["distribution_matching", "covariance_matching"]
    for name, term in terms.items():
        assert term.shape == ()
        assert term.dtype == torch.float64
        assert not term.requires_grad
        assert_close(term, getattr(DF, name)(b.real, syn, *sides, backend=backend).detach())
    assert_close(loss.detach(), 0.7 * terms["distribution_matching"] + 0.3 * terms["covariance_matching"])
    assert torch.equal(loss, fused(b, backend, **weights)(syn))
    loss.backward()
    assert_close(syn.grad, differentiate(fused(b, backend, **weights), syn)[1])


@pytest.mark.parametrize(
    ("weights", "name"),
    [((1.0, 0.0), "distribution_matching"), ((0.0, 1.0), "covariance_matching")],
)
def test_a_zero_weight_leaves_the_other_loss(weights, name, backend, device):
    b = batch((5, 3, 3)).to(torch.float32).to(device)
    weights = dict(zip(("mean_weight", "covariance_weight"), weights, strict=True))
    sides = {"real_segments": b.real_segments, "syn_segments": b.segments}
    value, gradient = differentiate(fused(b, backend, **weights), b.syn)
    alone = partial(getattr(DF, name), b.real, **sides, backend=backend)
    expected, expected_gradient = differentiate(alone, b.syn)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient)
    assert list(fused(b, backend, return_terms=True, **weights)(b.syn)[1]) == [name]


def test_two_zero_weights(backend, device):
    b = batch((5, 3, 3)).to(device)
    value, gradient = differentiate(fused(b, backend, mean_weight=0, covariance_weight=0), b.syn)
    assert value.item() == 0
    assert (gradient == 0).all()
    assert fused(b, backend, mean_weight=0, covariance_weight=0, return_terms=True)(b.syn)[1] == {}


def test_a_term_of_zero_weight_is_not_computed(backend, device):
    """Infinite features have a NaN covariance, and an infinite mean."""
    real, syn = torch.zeros(4, 3, device=device), torch.zeros(4, 3, device=device)
    syn[0, 0] = torch.inf
    value = DF.moment_matching(real, syn, covariance_weight=0, backend=backend)
    assert value.item() == torch.inf
    assert DF.moment_matching(real, syn, covariance_weight=1e-9, backend=backend).isnan()


@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("side", ["real", "syn"])
def test_nan_stays_in_its_class(loss, side, k, backend, device):
    b = batch(loss.row).to(device)
    _, expected = differentiate(loss.of(b, backend), b.syn)
    features, labels = (b.real, b.real_labels) if side == "real" else (b.syn, b.labels)
    features[(labels == k).nonzero()[-1].item()].view(-1)[4] = torch.nan
    value, gradient = differentiate(loss.of(b, backend), b.syn)
    assert value.isnan()
    assert gradient[b.labels == k].isnan().any()
    assert_close(gradient[b.labels != k], expected[b.labels != k])


def test_nan_of_a_class_without_a_counterpart_is_no_part_of_the_loss(loss, backend, device):
    b = batch(loss.row).to(device)
    expected, expected_gradient = differentiate(loss.of(b, backend), b.syn)
    b.real[b.real_labels == 2] = torch.nan
    b.syn[b.labels == 3] = torch.nan
    value, gradient = differentiate(loss.of(b, backend), b.syn)
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)


def test_infinity_is_not_hidden(loss, backend, device):
    b = batch(loss.row).to(device)
    b.syn[0].view(-1)[4] = torch.inf
    value = loss.of(b, backend)(b.syn)
    assert not value.isfinite()
    assert value.item() == torch.inf or "dm" not in loss.name


@pytest.mark.losses("cm", "mm", "cm-rows")
def test_tf32_is_coarse_at_most(loss, backend, device):
    b = batch(loss.row).to(torch.float32)
    value, gradient = differentiate(loss.of(b.to(device), backend, precision="tf32"), b.syn.to(device))
    exact, exact_gradient = loss.expected(b.exact())
    assert distance(value, exact) < 1e-2
    assert distance(gradient, exact_gradient) < 1e-2


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "rows inside": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "columns first": lambda x: x.mT.contiguous().mT,
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every other column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "some channels": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "offset": lambda x: torch.cat([x[:1], x])[1:],
    "expanded rows": lambda x: x[:1].expand_as(x),
    "expanded positions": lambda x: x[..., :1].expand_as(x),
}


@pytest.mark.parametrize("local", ["channels", "rows"])
@pytest.mark.parametrize("arrange", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_of_maps(arrange, local, backend, device):
    b = batch((4, 3, 5)).to(device)
    strided = replace(b, real=arrange(b.real), syn=arrange(b.syn))
    plain = replace(b, real=strided.real.contiguous(), syn=strided.syn.contiguous())
    options = {"covariance_weight": 0.5, "local": local}
    value, gradient = differentiate(fused(strided, backend, **options), strided.syn)
    expected, expected_gradient = differentiate(fused(plain, backend, **options), plain.syn)
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)


@pytest.mark.parametrize(
    ("arrange", "local"),
    [
        ("channels_last", "channels"),
        ("channels_last", "rows"),
        ("rows inside", "channels"),
        ("rows inside", "rows"),
        ("columns first", "rows"),  # as channels its positions are no single dimension
    ],
)
def test_the_gradient_has_the_layout_of_the_input(arrange, local, backend, device):
    b = batch((4, 3, 5)).to(device)
    syn = LAYOUTS[arrange](b.syn)
    assert not syn.is_contiguous()
    _, gradient = differentiate(fused(b, backend, local=local), syn)
    assert gradient.stride() == torch.empty_like(syn).stride() == syn.stride()


@pytest.mark.parametrize("row", [(7,), (4, 5)])
def test_any_layout_of_vectors_and_sequences(row, backend, device):
    b = batch(row).to(device)
    call = fused(b, backend)
    expected, expected_gradient = differentiate(call, b.syn)
    sliced = torch.cat([b.syn, b.syn], -1)[..., : row[-1]]
    for syn in (b.syn.transpose(0, -1).contiguous().transpose(0, -1), sliced, b.syn.repeat_interleave(2, 0)[::2]):
        value, gradient = differentiate(call, syn)
        assert_close(value, expected)
        assert_close(gradient, expected_gradient)
        assert gradient.stride() == torch.empty_like(syn).stride()


def test_real_and_synthetic_may_be_laid_out_differently(backend, device):
    b = batch((4, 3, 5)).to(device)
    sides = (b.real_segments, b.segments)
    expected = DF.moment_matching(b.real, b.syn, *sides, backend=backend)
    real = b.real.contiguous(memory_format=torch.channels_last)
    assert_close(DF.moment_matching(real, b.syn, *sides, backend=backend), expected)


def test_maps_sequences_and_vectors_agree(backend, device):
    b = batch((4, 3, 5)).to(device)
    sides = (b.real_segments, b.segments)
    maps = DF.moment_matching(b.real, b.syn, *sides, backend=backend)
    assert_close(DF.moment_matching(b.real.flatten(2), b.syn.flatten(2), *sides, backend=backend), maps)
    real, syn = b.real[..., :1, :1], b.syn[..., :1, :1]
    vectors = DF.moment_matching(real.flatten(1), syn.flatten(1), *sides, backend=backend)
    assert_close(vectors, DF.moment_matching(real, syn, *sides, backend=backend))
    rows = DF.covariance_matching(b.real, b.syn, *sides, local="rows", backend=backend)
    flat = DF.covariance_matching(b.real.flatten(1, 2), b.syn.flatten(1, 2), *sides, backend=backend)
    assert_close(rows, flat)
