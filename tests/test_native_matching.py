"""Moments and matching in C++ where their blocks end: sizes, layouts, dtypes, instruction sets, numbers of threads."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from oracle import assert_close, batch, capabilities_to_test, differentiate, distance, frobenius

import ddfast.functional as DF
from ddfast import ClassMoments
from ddfast.operators import backends, native

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(native.module is None, reason=backends.absent.get("cpp", "")),
]


@pytest.fixture(params=capabilities_to_test())
def capability(request):
    """Runs the test on each instruction set of this machine."""
    before = native.module.build_info()["in use"]
    native.module.set_capability(request.param)
    yield request.param
    native.module.set_capability(before)


@pytest.fixture
def threads():
    """Sets the number of threads; back again afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# (descriptors, positions), the real and the synthetic rows of each class. Tiles have 3 or 5 descriptors, those of the
# gradient 6 or 14, registers 2 to 16 numbers; packed rows have 512 or 1,024 columns, those of the gradient 256; rows
# are read in groups of up to 16.
SIZES = [
    ((1, 1), [1], [1]),
    ((2, 1), [3, 5], [4, 1]),
    ((5, 2), [17, 2], [3, 16]),
    ((6, 3), [33, 0, 5], [18, 7, 0]),
    ((16, 1), [40, 300], [17, 31]),
    ((31, 1), [1100], [300]),
    ((33, 4), [15, 16, 17], [1, 2, 3]),
    ((17, 5), [70, 9], [52, 33]),
    ((14, 7), [150], [37]),
    ((15, 8), [130, 31], [32, 33]),
    ((13, 9), [115], [29]),
    ((29, 15), [69, 70], [18, 1]),
    ((27, 16), [64, 65, 10], [16, 17, 10]),
    ((28, 17), [61], [16]),
    ((12, 31), [34, 3], [9, 8]),
    ((11, 49), [22, 21], [6, 5]),
    ((43, 64), [17, 33], [5, 4]),
    ((7, 255), [5, 4], [2, 1]),
    ((4, 257), [9], [3]),
    ((6, 513), [3], [2]),
    ((3, 1030), [4, 3], [3, 2]),
    ((140, 2), [60], [130]),
    ((263, 1), [20], [9]),
]
LAYOUTS = {
    "positions inside": lambda x: x,
    "descriptors inside": lambda x: x.mT.contiguous().mT,
    "neither": lambda x: x.repeat_interleave(2, 2)[:, :, ::2].mT.contiguous().mT.repeat_interleave(2, 1)[:, ::2],
}
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


def ragged(size, **options):
    """Rows of all classes in any order."""
    row, *sides = size
    generator = torch.Generator().manual_seed(3)
    labels = [torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)) for counts in sides]
    shuffled = [side[torch.randperm(len(side), generator=generator)] for side in labels]
    return batch(row, *shuffled, len(sides[0]), **options)


def matched(b, backend, **options):
    call = partial(DF.moment_matching, covariance_weight=0.3, **options, backend=backend)
    sides = (b.real_segments, b.segments)
    return differentiate(lambda syn: call(b.real, syn, *sides), b.syn)


def moments(b, backend):
    found = ClassMoments.from_features(b.real, b.real_segments, backend=backend)
    return found.means, found.covariances


@every_size
@pytest.mark.parametrize("arrange", LAYOUTS.values(), ids=LAYOUTS)
def test_sizes_across_every_edge(size, arrange, capability):
    b = ragged(size)
    strided = replace(b, real=arrange(b.real), syn=arrange(b.syn))
    for actual, expected in zip(matched(strided, "cpp"), matched(b, "reference"), strict=True):
        assert_close(actual, expected)
    for actual, expected in zip(moments(strided, "cpp"), moments(b, "reference"), strict=True):
        assert_close(actual, expected)


@every_size
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("arrange", LAYOUTS.values(), ids=LAYOUTS)
def test_the_gradient_is_accurate_in_every_dtype(size, dtype, arrange, capability):
    b = ragged(size, mean=1.0).to(dtype)
    strided = replace(b, real=arrange(b.real), syn=arrange(b.syn))
    value, gradient = matched(strided, "cpp")
    exact, exact_gradient = matched(b.exact(), "reference")
    assert gradient.dtype == dtype
    assert distance(value, exact, floor=1e-4) < 1e-5
    assert frobenius(gradient, exact_gradient) < max(1e-5, torch.finfo(dtype).eps)


@every_size
def test_a_large_mean_costs_no_digits(size, capability):
    """In the covariance not even those of the spread: all is summed about a pivot."""
    b = ragged(size, mean=1e3).to(torch.float32)
    exact = b.exact()
    (means, covariances), (exact_means, exact_covariances) = moments(b, "cpp"), moments(exact, "reference")
    assert distance(means, exact_means) < 2 * torch.finfo(torch.float32).eps
    assert distance(covariances, exact_covariances, floor=1e-3) < 1e-5
    assert frobenius(matched(b, "cpp")[1], matched(exact, "reference")[1]) < 1e-5


def test_the_drift_is_what_rounding_took_off_the_mean(capability):
    b = ragged(((5, 7), [9, 4], [30, 7]), mean=1e3)
    syn = b.syn.to(torch.float32)
    maps, sides = syn.unsqueeze(2), (b.segments.offsets, b.segments.index, b.segments.largest, b.num_classes)
    moments = ClassMoments.from_features(b.real.to(torch.float32), b.real_segments)
    real = (moments.counts, moments.means, moments.covariances)
    run = torch.ops.ddfast.moment_matching_to_moments.cpp
    _, _, _, centers, drift, *_ = run(*real, maps, *sides, 1.0, 1.0, False, True)
    exact = torch.stack([syn[b.labels == k].double().mean(0) for k in range(2)])
    assert distance(centers, exact) > 1e-9
    assert distance(centers.double() + drift, exact) < 1e-9


@pytest.mark.parametrize("size", [((130, 4), [50], [21]), ((131, 3), [40, 60, 50, 3], [30, 20, 30, 4])], ids=str)
def test_threads_share_classes(size, threads):
    """More threads than classes or not a multiple of them: the same to rounding, and for as many threads to the bit."""
    b = ragged(size).to(torch.float32)
    expected, expected_gradient = matched(b.exact(), "reference")
    for count in (1, 2, 3, 5):
        threads(count)
        value, gradient = matched(b, "cpp")
        assert distance(value, expected) < 1e-5
        assert frobenius(gradient, expected_gradient) < 1e-5
        again, gradient_again = matched(b, "cpp")
        assert torch.equal(value, again)
        assert torch.equal(gradient, gradient_again)
        (means, covariances), exact = moments(b, "cpp"), moments(b.exact(), "reference")
        assert distance(means, exact[0]) < 1e-6
        assert frobenius(covariances, exact[1]) < 1e-5


def test_a_cut_class_with_an_infinity_or_an_outlier(threads):
    """The leading rows, which give the pivot, hold it; the other classes do not notice."""
    threads(3)
    b = ragged(((130, 4), [50, 50], [20, 20])).to(torch.float32)
    first = (b.real_labels == 0).nonzero()[0, 0]
    b.real[first] *= 30
    assert frobenius(matched(b, "cpp")[1], matched(b.exact(), "reference")[1]) < 1e-5
    b.real[first, 3, 1] = torch.inf
    means, covariances = moments(b, "cpp")
    assert means[0, 3, 1] == torch.inf
    assert not covariances[0, 3].isfinite().any()
    assert covariances[0, 3, 3].isnan()
    assert covariances[1].isfinite().all()
    assert matched(b, "cpp", mean_weight=0.0)[0].isnan()


@pytest.mark.parametrize("row", [(0, 3), (3, 0), (0,)], ids=str)
def test_maps_without_elements(row):
    b = batch(row)
    for actual, expected in zip(matched(b, "cpp"), matched(b, "reference"), strict=True):
        assert torch.equal(actual, expected)
    for actual, expected in zip(moments(b, "cpp"), moments(b, "reference"), strict=True):
        assert torch.equal(actual, expected)


APART = {
    "cropped": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "channels inside": lambda x: x.contiguous(memory_format=torch.channels_last),
    "rows inside": lambda x: x.mT.contiguous().mT,
}


@pytest.mark.parametrize("arrange", APART.values(), ids=APART)
def test_descriptors_whose_strides_do_not_merge(arrange):
    """(channel, row) of maps."""
    b = batch((3, 4, 5))
    call = partial(DF.moment_matching, local="rows")
    sides = (b.real_segments, b.segments)
    actual = differentiate(lambda syn: call(arrange(b.real), arrange(syn), *sides, backend="cpp"), b.syn)
    expected = differentiate(lambda syn: call(b.real, syn, *sides, backend="reference"), b.syn)
    assert_close(actual[0], expected[0])
    assert_close(actual[1], expected[1])


def test_a_class_without_a_match_has_no_gradient():
    """Its share is 0, so that its rows get zeros whatever is in its state."""
    real, syn = torch.randn(3, 1, 1, 4), torch.randn(4, 1, 1, 4)
    real_side, side = (torch.tensor([0, 3, 3]), torch.arange(3), 3), (torch.tensor([0, 2, 4]), torch.arange(4), 2)
    _, _, share, *_ = torch.ops.ddfast.moment_matching.cpp(real, *real_side, syn, *side, 2, 1.0, 1.0, False, True)
    assert share.tolist() == [0.5, 0]
