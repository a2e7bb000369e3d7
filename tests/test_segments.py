import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import DEVICES, many

import ddfast.functional as DF
from ddfast import ClassSegments

labelled = st.lists(st.integers(0, 6), max_size=40)


def rows_of(segments, k):
    return segments.index[segments.offsets[k] : segments.offsets[k + 1]].tolist()


@many
@given(labels=labelled, spare=st.integers(0, 3))
def test_each_class_owns_its_rows_in_their_own_order(labels, spare):
    classes = max(labels, default=0) + 1 + spare
    segments = ClassSegments.from_labels(torch.tensor(labels, dtype=torch.int64), classes)
    for k in range(classes):
        assert rows_of(segments, k) == [row for row, label in enumerate(labels) if label == k]
    counts = [labels.count(k) for k in range(classes)]
    assert segments.counts("cpu").tolist() == counts
    assert segments.offsets.tolist() == [sum(counts[:k]) for k in range(classes + 1)]
    assert (segments.num_classes, segments.num_rows, segments.largest) == (classes, len(labels), max(counts))
    assert segments.offsets.dtype == segments.index.dtype == segments.counts("cpu").dtype == torch.int64


def test_the_largest_label_gives_the_number_of_classes():
    assert ClassSegments.from_labels(torch.tensor([4, 1, 1])).num_classes == 5
    assert ClassSegments.from_labels(torch.tensor([4, 1, 1]), 9).counts("cpu").tolist() == [0, 2, 0, 0, 1, 0, 0, 0, 0]


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_of_every_integer_dtype(dtype):
    segments = ClassSegments.from_labels(torch.tensor([2, 0, 2], dtype=torch.int64).to(dtype))
    assert [rows_of(segments, k) for k in range(3)] == [[1], [], [0, 2]]


def test_labels_may_be_strided_and_are_left_alone():
    labels = torch.tensor([2, 9, 0, 9, 2, 9])[::2]
    segments = ClassSegments.from_labels(labels)
    assert [rows_of(segments, k) for k in range(3)] == [[1], [], [0, 2]]
    assert labels.tolist() == [2, 0, 2]


def test_no_rows():
    segments = ClassSegments.from_labels(torch.zeros(0, dtype=torch.int64), 3)
    assert (segments.num_rows, segments.largest, segments.counts("cpu").tolist()) == (0, 0, [0, 0, 0])


def test_many_classes():
    labels = torch.randint(1000, (5000,), generator=torch.Generator().manual_seed(0))
    segments = ClassSegments.from_labels(labels, 1000)
    assert torch.equal(segments.counts("cpu"), torch.bincount(labels, minlength=1000))
    assert torch.equal(segments.index, labels.argsort(stable=True))
    assert segments.largest == torch.bincount(labels).max()


def test_uniform_is_what_its_labels_say():
    uniform = ClassSegments.uniform(3, 4)
    ragged = ClassSegments.from_labels(torch.arange(3).repeat_interleave(4))
    assert (uniform.num_classes, uniform.num_rows, uniform.largest) == (3, 12, 4)
    assert (uniform.offsets, uniform.index) == (None, None)
    assert torch.equal(uniform.counts("cpu"), ragged.counts("cpu"))
    assert uniform.counts("cpu").dtype == torch.int64
    features = torch.randn(12, 5, dtype=torch.float64)
    torch.testing.assert_close(
        DF.class_complexity(features, uniform), DF.class_complexity(features, ragged), rtol=1e-13, atol=0
    )


def test_numpy_integers_count_as_integers():
    assert ClassSegments.uniform(np.int64(3), np.int32(2)).num_rows == 6
    assert ClassSegments.from_labels(torch.tensor([0]), np.int64(2)).num_classes == 2


@pytest.mark.parametrize("device", DEVICES)
def test_segments_live_where_their_labels_do(device):
    segments = ClassSegments.from_labels(torch.tensor([1, 0, 1], device=device))
    assert segments.index.device.type == segments.offsets.device.type == segments.counts(device).device.type == device
    back = segments.to("cpu")
    assert (back.index.tolist(), back.offsets.tolist()) == ([1, 0, 2], [0, 1, 3])


def test_to_moves_the_tensors_and_keeps_the_numbers():
    segments = ClassSegments.from_labels(torch.tensor([1, 0, 1]), 4)
    moved = segments.to("meta")
    assert moved.index.device.type == moved.offsets.device.type == "meta"
    assert (moved.num_classes, moved.num_rows, moved.largest) == (4, 3, 2)
    assert segments.counts("meta").device.type == "meta"
    uniform = ClassSegments.uniform(2, 3)
    assert uniform.to("meta") is uniform
    assert uniform.counts("meta").device.type == "meta"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
@pytest.mark.parametrize("segments", [ClassSegments.uniform(2, 3), ClassSegments.from_labels(torch.tensor([1, 0] * 3))])
def test_copies_and_pickles(duplicate, segments):
    features = torch.randn(6, 4)
    assert torch.equal(
        DF.class_complexity(features, duplicate(segments)),
        DF.class_complexity(features, segments),
    )


def test_segments_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClassSegments.uniform(2, 3).num_classes = 4


def integers(*values):
    return torch.tensor(values, dtype=torch.int64)


WRONG = {
    "no classes": (lambda: ClassSegments.uniform(0, 3), ValueError, "num_classes must be at least 1, got 0"),
    "negative": (lambda: ClassSegments.uniform(-2, 3), ValueError, "num_classes must be at least 1, got -2"),
    "no rows": (lambda: ClassSegments.uniform(3, 0), ValueError, "per_class must be at least 1, got 0"),
    "float": (lambda: ClassSegments.uniform(2.0, 3), TypeError, "num_classes must be an integer, got float"),
    "string": (lambda: ClassSegments.uniform(2, "3"), TypeError, "per_class must be an integer, got str"),
    "truth": (lambda: ClassSegments.uniform(True, 3), TypeError, "num_classes must be an integer, got bool"),
    "list": (lambda: ClassSegments.from_labels([0, 1]), TypeError, "labels must be an integer tensor, got list"),
    "float labels": (
        lambda: ClassSegments.from_labels(torch.zeros(3)),
        TypeError,
        "labels must be an integer tensor, got torch.float32",
    ),
    "complex labels": (
        lambda: ClassSegments.from_labels(torch.zeros(3, dtype=torch.complex64)),
        TypeError,
        "labels must be an integer tensor, got torch.complex64",
    ),
    "a mask": (
        lambda: ClassSegments.from_labels(torch.zeros(3, dtype=torch.bool)),
        TypeError,
        "labels must be an integer tensor, got torch.bool",
    ),
    "one-hot": (
        lambda: ClassSegments.from_labels(torch.eye(3).long()),
        ValueError,
        "labels must have shape (N,), got (3, 3)",
    ),
    "a scalar": (
        lambda: ClassSegments.from_labels(torch.tensor(1)),
        ValueError,
        "labels must have shape (N,), got ()",
    ),
    "zero classes": (
        lambda: ClassSegments.from_labels(integers(0), 0),
        ValueError,
        "num_classes must be at least 1, got 0",
    ),
    "float classes": (
        lambda: ClassSegments.from_labels(integers(0), 2.0),
        TypeError,
        "num_classes must be an integer, got float",
    ),
    "too large": (
        lambda: ClassSegments.from_labels(integers(0, 3, 2), 3),
        ValueError,
        "labels must lie in 0 .. 2, got 3",
    ),
    "below zero": (
        lambda: ClassSegments.from_labels(integers(0, -1, 2), 3),
        ValueError,
        "labels must lie in 0 .. 2, got -1",
    ),
    "below zero, no classes": (
        lambda: ClassSegments.from_labels(integers(0, -1, 2)),
        ValueError,
        "labels must lie in 0 .. 2, got -1",
    ),
    "nothing known": (
        lambda: ClassSegments.from_labels(integers()),
        ValueError,
        "num_classes must be given where labels is empty",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
