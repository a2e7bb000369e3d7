"""`ClassMoments`: from features, merged, moved. Its part in matching is in test_matching.py."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import DTYPES, PRECISIONS, assert_accurate, assert_close, batch, distance, many, ragged

from ddfast import ClassMoments, ClassSegments, reference

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.operators("class_moments")]

FORMS = [((3, 5, 3), "channels"), ((4, 7), "channels"), ((5,), "channels"), ((3, 2, 5), "rows")]


def moments_of(features, labels, num_classes, local="channels"):
    """By the definition, in the dtype of the features: means (K, C, P) and covariances (K, C, C)."""
    means, covariances = [], []
    for k in range(num_classes):
        rows = features[labels == k]
        maps = reference.descriptors(rows, local)
        c, p = maps.shape[1:]
        empty = len(rows) == 0
        means.append(maps.new_zeros(c, p) if empty else maps.mean(0))
        covariances.append(maps.new_zeros(c, c) if empty else reference.local_covariance(rows, local))
    return torch.stack(means), torch.stack(covariances)


@pytest.mark.parametrize(("row", "local"), FORMS)
@many
@given(side=ragged())
def test_equal_to_the_definition(row, local, backend, device, side):
    _, labels, classes, seed = side
    b = batch(row, [], labels, classes, seed=seed)
    segments = b.segments.to(device)
    moments = ClassMoments.from_features(b.syn.to(device), segments, local, backend=backend)
    means, covariances = moments_of(b.syn, b.labels, classes, local)
    assert_close(moments.means, means)
    assert_close(moments.covariances, covariances)
    assert moments.counts.tolist() == [labels.count(k) for k in range(classes)]
    assert moments.local == local


@pytest.mark.parametrize(("dtype", "mean"), PRECISIONS, ids=str)
@pytest.mark.parametrize(("row", "local"), FORMS)
def test_accuracy(row, local, dtype, mean, backend, device):
    means, covariances = [], []
    for seed in range(4):
        b = batch(row, mean=mean, seed=seed).to(dtype)
        moments = ClassMoments.from_features(b.syn.to(device), b.segments.to(device), local, backend=backend)
        eager = moments_of(b.syn, b.labels, 5, local)
        exact = moments_of(b.exact().syn, b.labels, 5, local)
        means.append((moments.means, eager[0], exact[0]))
        covariances.append((moments.covariances, eager[1], exact[1]))
    assert_accurate(means, dtype, backend)
    assert_accurate(covariances, dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_are_float64_for_float64_and_float32_otherwise(dtype, backend, device):
    moments = ClassMoments.from_features(torch.randn(6, 4).to(device, dtype), backend=backend)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert moments.means.dtype == moments.covariances.dtype == expected
    assert moments.counts.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_in_float32(dtype, backend, device):
    b = batch((5, 3, 3), labels=[0, 1] * 150, num_classes=2, mean=2.0).to(dtype)
    moments = ClassMoments.from_features(b.syn.to(device), b.segments.to(device), backend=backend)
    means, covariances = moments_of(b.exact().syn, b.labels, 2)
    assert distance(moments.means, means) < 1e-6
    assert distance(moments.covariances, covariances) < 1e-5


def test_no_segments_are_one_class(backend, device):
    features = torch.randn(7, 3, 4, dtype=torch.float64, device=device)
    moments = ClassMoments.from_features(features, backend=backend)
    means, covariances = moments_of(features.cpu(), torch.zeros(7), 1)
    assert moments.counts.tolist() == [7]
    assert moments.num_classes == 1
    assert_close(moments.means, means)
    assert_close(moments.covariances, covariances)


def test_uniform_segments(backend, device):
    features = torch.randn(12, 3, 4, dtype=torch.float64, device=device)
    moments = ClassMoments.from_features(features, ClassSegments.uniform(4, 3), backend=backend)
    means, covariances = moments_of(features.cpu(), torch.arange(4).repeat_interleave(3), 4)
    assert moments.counts.tolist() == [3] * 4
    assert moments.counts.device == moments.means.device == features.device
    assert_close(moments.means, means)
    assert_close(moments.covariances, covariances)


def test_any_layout_of_the_features(backend, device):
    features = torch.randn(9, 4, 3, 6, dtype=torch.float64, device=device)[:, :, :, ::2]
    segments = ClassSegments.from_labels(torch.tensor([0, 2, 1] * 3, device=device))
    for local in ("channels", "rows"):
        expected = ClassMoments.from_features(features.contiguous(), segments, local, backend=backend)
        for other in (features, features.contiguous(memory_format=torch.channels_last), features.mT.contiguous().mT):
            moments = ClassMoments.from_features(other, segments, local, backend=backend)
            assert_close(moments.means, expected.means)
            assert_close(moments.covariances, expected.covariances)


def test_many_classes(backend, device):
    b = batch((3, 4), [], [k for k in range(1000) if k % 7] * 2, 1000)
    moments = ClassMoments.from_features(b.syn.to(device), b.segments.to(device), backend=backend)
    means, covariances = moments_of(b.syn, b.labels, 1000)
    assert_close(moments.means, means)
    assert_close(moments.covariances, covariances)


def test_no_gradient_and_bitwise_the_same_from_run_to_run(backend, device):
    features = torch.randn(40, 16, 3, 3, device=device, requires_grad=True)
    segments = ClassSegments.from_labels(torch.arange(40, device=device) % 3)
    first = ClassMoments.from_features(features, segments, backend=backend)
    second = ClassMoments.from_features(features, segments, backend=backend)
    assert not first.means.requires_grad
    assert not first.covariances.requires_grad
    assert torch.equal(first.means, second.means)
    assert torch.equal(first.covariances, second.covariances)


def test_nan_stays_in_its_class(backend, device):
    features = torch.randn(6, 3, 2, device=device)
    features[1, 2, 0] = torch.nan
    moments = ClassMoments.from_features(features, ClassSegments.uniform(3, 2), backend=backend)
    assert moments.means[0, 2, 0].isnan()
    assert moments.covariances[0, 2].isnan().all()
    assert moments.means[1:].isfinite().all()
    assert moments.covariances[1:].isfinite().all()


def test_tf32_is_coarse_at_most(backend, device):
    b = batch((16, 3, 3), mean=1.0).to(torch.float32)
    moments = ClassMoments.from_features(b.syn.to(device), b.segments.to(device), precision="tf32", backend=backend)
    _, covariances = moments_of(b.exact().syn, b.labels, 5)
    assert distance(moments.covariances, covariances) < 1e-2


@many
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=25),
    cuts=st.sets(st.integers(0, 25)),
    seed=st.integers(0, 9),
)
def test_merged_chunks_equal_the_whole(labels, cuts, seed, device):
    b = batch((3, 4), [], labels, 4, seed=seed).to(device)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(labels)), len(labels)]
    merged = None
    for start, stop in pairwise(bounds):
        segments = ClassSegments.from_labels(b.labels[start:stop], 4)
        chunk = ClassMoments.from_features(b.syn[start:stop], segments)
        merged = chunk if merged is None else merged.merge(chunk)
    means, covariances = moments_of(b.syn.cpu(), b.labels.cpu(), 4)
    assert merged.counts.tolist() == [labels.count(k) for k in range(4)]
    assert_close(merged.means, means)
    assert_close(merged.covariances, covariances)


def chunks(b, count, local="channels"):
    """`count` ClassMoments of the synthetic side, in order."""
    return [
        ClassMoments.from_features(features, ClassSegments.from_labels(labels, b.num_classes), local)
        for features, labels in zip(b.syn.chunk(count), b.labels.chunk(count), strict=True)
    ]


def test_merging_keeps_its_digits_where_the_mean_is_large(device):
    """The means are rounded by 6e-5 of the spread here; a one-pass formula would be off by 6e-2 of its square."""
    labels = torch.arange(60) % 3
    b = batch((5, 4), [], labels.tolist(), 3, mean=1e3).to(torch.float32)
    first, second, third = chunks(b.to(device), 3)
    merged = first.merge(second).merge(third)
    means, covariances = moments_of(b.exact().syn, labels, 3)
    assert merged.means.dtype == merged.covariances.dtype == torch.float32
    assert distance(merged.means, means) < 4 * torch.finfo(torch.float32).eps
    assert distance(merged.covariances, covariances) < 3e-4


def test_any_order_of_merging_is_the_same_to_rounding(device):
    b = batch((5, 4), [], torch.arange(40).mul(7).remainder(3).tolist(), 3).to(device)
    first, second, third = chunks(b, 3)
    ahead, behind = first.merge(second).merge(third), third.merge(second.merge(first))
    assert torch.equal(ahead.counts, behind.counts)
    assert_close(ahead.means, behind.means, 1e-14)
    assert_close(ahead.covariances, behind.covariances, 1e-14)


def test_a_class_in_one_chunk_only_is_left_as_it_is(device):
    """Bit for bit: neither the zeros of the other chunk nor a large mean may disturb it."""
    features = (1e3 + torch.randn(6, 3, 2)).to(device)
    first = ClassMoments.from_features(
        features, ClassSegments.from_labels(torch.tensor([0, 0, 0, 2, 2, 2]).to(device), 4)
    )
    second = ClassMoments.from_features(features, ClassSegments.from_labels(torch.tensor([1] * 6).to(device), 4))
    for merged in (first.merge(second), second.merge(first)):
        assert merged.counts.tolist() == [3, 6, 3, 0]
        assert torch.equal(merged.means, first.means + second.means)
        assert torch.equal(merged.covariances, first.covariances + second.covariances)


def test_merging_is_bitwise_the_same_and_changes_neither(device):
    first, second = chunks(batch((16, 9)).to(torch.float32).to(device), 2)
    before = copy.deepcopy((first.means, first.covariances, second.means, second.covariances))
    once, again = first.merge(second), first.merge(second)
    assert torch.equal(once.means, again.means)
    assert torch.equal(once.covariances, again.covariances)
    after = (first.means, first.covariances, second.means, second.covariances)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_merging_ignores_autocast_and_matmul_precision(device, matmul_flags):
    first, second = chunks(batch((16, 9)).to(torch.float32).to(device), 2)
    expected = first.merge(second)
    torch.set_float32_matmul_precision("medium")
    with torch.autocast(device, torch.bfloat16):
        merged = first.merge(second)
    assert torch.equal(merged.covariances, expected.covariances)
    assert merged.covariances.dtype == torch.float32


def test_merging_keeps_local(device):
    first, second = chunks(batch((3, 2, 5)).to(device), 2, local="rows")
    assert first.merge(second).local == "rows"


def test_to_moves_every_tensor():
    moments = ClassMoments.from_features(torch.randn(4, 3, 2, 2), local="rows")
    moved = moments.to("meta")
    assert {tensor.device.type for tensor in (moved.counts, moved.means, moved.covariances)} == {"meta"}
    assert (moved.local, moved.means.shape) == ("rows", (1, 6, 2))
    assert torch.equal(moments.to("cpu").covariances, moments.covariances)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_and_pickles(duplicate):
    moments = ClassMoments.from_features(torch.randn(4, 3, 2, 2), local="rows")
    other = duplicate(moments)
    assert torch.equal(other.counts, moments.counts)
    assert torch.equal(other.means, moments.means)
    assert torch.equal(other.covariances, moments.covariances)
    assert other.local == "rows"


F = torch.randn(6, 3, 4, 2)
M = ClassMoments.from_features(F)
WRONG = {
    "array": (lambda: ClassMoments.from_features(F.numpy()), TypeError, "features must be a tensor, got ndarray"),
    "integers": (
        lambda: ClassMoments.from_features(F.int()),
        TypeError,
        "features must be float32, float64, bfloat16 or float16, got torch.int32",
    ),
    "one dimension": (
        lambda: ClassMoments.from_features(F[0, 0, 0]),
        ValueError,
        "features must have shape (N, C, H, W), (N, C, P) or (N, E), got (2,)",
    ),
    "five dimensions": (
        lambda: ClassMoments.from_features(F[None]),
        ValueError,
        "features must have shape (N, C, H, W), (N, C, P) or (N, E), got (1, 6, 3, 4, 2)",
    ),
    "rows of vectors": (
        lambda: ClassMoments.from_features(F.flatten(2), local="rows"),
        ValueError,
        'features must have shape (N, C, H, W) for local="rows", got (6, 3, 8)',
    ),
    "local": (
        lambda: ClassMoments.from_features(F, local="columns"),
        ValueError,
        "local must be one of 'channels', 'rows', got 'columns'",
    ),
    "precision": (
        lambda: ClassMoments.from_features(F, precision="high"),
        ValueError,
        "precision must be one of None, 'tf32', got 'high'",
    ),
    "backend": (
        lambda: ClassMoments.from_features(F, backend="eager"),
        ValueError,
        "backend must be one of reference, cpp, triton, cuda, got 'eager'",
    ),
    "labels for segments": (
        lambda: ClassMoments.from_features(F, torch.zeros(6)),
        TypeError,
        "segments must be a ClassSegments, got Tensor",
    ),
    "segments of other rows": (
        lambda: ClassMoments.from_features(F, ClassSegments.uniform(2, 4)),
        ValueError,
        "segments must describe the 6 rows of the features, got 8 rows",
    ),
    "segments elsewhere": (
        lambda: ClassMoments.from_features(F, ClassSegments.from_labels(torch.arange(6)).to("meta")),
        ValueError,
        "segments must be on the device of the features, cpu, got meta",
    ),
    "merging a tensor": (lambda: M.merge(M.means), TypeError, "other must be a ClassMoments, got Tensor"),
    "merging other shapes": (
        lambda: M.merge(ClassMoments.from_features(F[:, :2])),
        ValueError,
        "other must have means of shape torch.Size([1, 3, 8]), got torch.Size([1, 2, 8])",
    ),
    "merging other classes": (
        lambda: M.merge(ClassMoments.from_features(F, ClassSegments.uniform(2, 3))),
        ValueError,
        "other must have means of shape torch.Size([1, 3, 8]), got torch.Size([2, 3, 8])",
    ),
    "merging other dtypes": (
        lambda: M.merge(ClassMoments.from_features(F.double())),
        ValueError,
        "other must have means of dtype torch.float32, got torch.float64",
    ),
    "merging other devices": (
        lambda: M.merge(M.to("meta")),
        ValueError,
        "other must have means of device cpu, got meta",
    ),
    "merging another local": (
        lambda: ClassMoments.from_features(F[:, :, :1], local="rows").merge(ClassMoments.from_features(F[:, :, :1])),
        ValueError,
        "other must have local='rows', got 'channels'",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
