"""Keyed random numbers: what they are a function of, that nothing else matters, and that they look random."""

import itertools
import zlib
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddfast import keyed

MASK = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15
CLASSES = torch.arange(7)


def finalise(x: int) -> int:
    """SplitMix64's finaliser, in integers that do not wrap by themselves."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def plain(seed: int, iteration: int, label: int, purpose: str, count: int) -> list[int]:
    key = seed & MASK
    for part in (zlib.crc32(purpose.encode()), iteration, label):
        key = finalise((key + STEP + part) & MASK)
    return [signed(finalise((key + number * STEP) & MASK)) for number in range(1, count + 1)]


def test_the_finaliser_written_here_is_splitmix64s() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [finalise((1234567 + number * STEP) & MASK) for number in range(1, 5)] == published


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    st.integers(-(2**70), 2**70),
    st.integers(0, 2**40),
    st.lists(st.integers(0, 2**40), max_size=4),
    st.text(max_size=9),
)
def test_equals_plain_integers_that_are_cut_to_64_bits(
    seed: int, iteration: int, labels: list[int], purpose: str
) -> None:
    drawn = keyed.bits(seed, iteration, torch.tensor(labels, dtype=torch.int64), purpose, 5)
    assert drawn.tolist() == [plain(seed, iteration, label, purpose, 5) for label in labels]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(-(2**70), 2**70), st.integers(0, 2**40), st.text(max_size=9))
def test_integers_are_the_bits_of_class_0(seed: int, iteration: int, purpose: str) -> None:
    assert keyed.integers(seed, iteration, purpose, 5) == plain(seed, iteration, 0, purpose, 5)
    assert keyed.key(seed, iteration, purpose) == plain(seed, iteration, 0, purpose, 1)[0]


def test_a_choice_is_the_first_uniform_number_times_the_count() -> None:
    """In float32: all runs that anybody has made chose their networks so."""
    none = torch.zeros(1, dtype=torch.int64)
    for number, count in itertools.product(range(500), (1, 2, 3, 7, 100)):
        expected = int(keyed.uniform(3, number, none, "a", 1) * count)
        assert keyed.choice(3, number, "a", count) == expected < count


def test_a_choice_rounds_as_float32_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the product is next to an integer, float64 would choose another one."""
    found = 0
    for number, count in itertools.combinations(range(1, 101), 2):
        upper = (number << 24) // count  # the largest draw of which `count` is at most `number`
        monkeypatch.setattr(keyed, "integers", lambda *_, upper=upper: [upper << 40 | 123])
        expected = int(torch.tensor(upper / (1 << 24), dtype=torch.float32) * count)
        assert keyed.choice(0, 0, "a", count) == expected
        found += expected != int(upper / (1 << 24) * count)
    assert found


def test_many_iterations_at_once_are_each_by_itself() -> None:
    numbers = torch.arange(40, 56)[:, None]
    for draw in (keyed.bits, keyed.uniform):
        block = draw(-7, numbers, CLASSES, "augmentation", 4)
        each = [draw(-7, number, CLASSES, "augmentation", 4) for number in range(40, 56)]
        assert torch.equal(block, torch.stack(each))
        assert torch.equal(draw(-7, torch.tensor(41), CLASSES, "augmentation", 4), each[1])


def test_known_values() -> None:
    """Pinned: a change here changes every run that anybody has made."""
    assert keyed.bits(0, 0, torch.tensor([0, 1]), "real images", 2).tolist() == [
        [-8031589483357050062, 9199492811080601567],
        [777021690815381643, -8873719580309509988],
    ]
    assert keyed.uniform(7, 3, torch.tensor([4]), "augmentation", 4).tolist() == [
        [0.7520275115966797, 0.2292357087135315, 0.96016526222229, 0.5256504416465759]
    ]
    generator = keyed.generator(0, 0, "matching network", torch.device("cpu"))
    assert torch.rand(2, generator=generator).tolist() == pytest.approx([0.3485652804374695, 0.8086259961128235], abs=0)


def test_chunks_do_not_matter() -> None:
    whole = keyed.bits(5, 9, CLASSES, "real images", 11)
    for size in (1, 2, 3, 7):
        parts = [keyed.bits(5, 9, chunk, "real images", 11) for chunk in CLASSES.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(keyed.bits(5, 9, CLASSES.flip(0), "real images", 11).flip(0), whole)


def test_more_numbers_begin_with_the_fewer() -> None:
    assert torch.equal(keyed.bits(5, 9, CLASSES, "a", 20)[:, :6], keyed.bits(5, 9, CLASSES, "a", 6))


def test_nothing_repeats_between_keys() -> None:
    """Seeds x iterations x classes x purposes, and the numbers of each: all of them differ."""
    keys = itertools.product((0, 1, 2, -1, 2**63), range(20), ("a", "b", "augmentation", "real images"))
    drawn = torch.stack([keyed.bits(seed, iteration, CLASSES, purpose, 6) for seed, iteration, purpose in keys])
    assert len(drawn.unique()) == drawn.numel() == 5 * 20 * 4 * 7 * 6


def test_iteration_and_class_do_not_stand_in_for_each_other() -> None:
    one, two = (keyed.bits(0, a, torch.tensor([b]), "a", 1) for a, b in ((3, 5), (5, 3)))
    assert one.item() != two.item()


def test_seeds_are_taken_modulo_two_to_the_64() -> None:
    draw = partial(keyed.bits, iteration=1, classes=CLASSES, purpose="a", count=3)
    assert torch.equal(draw(-1), draw(MASK))
    assert torch.equal(draw(-(2**63)), draw(2**63))
    assert torch.equal(draw(3 + (5 << 64)), draw(3))
    assert not torch.equal(draw(-1), draw(1))


def test_uniform_is_the_upper_24_bits() -> None:
    bits = keyed.bits(3, 1, CLASSES, "a", 500)
    expected = [[((value & MASK) >> 40) / 2**24 for value in row] for row in bits.tolist()]
    assert keyed.uniform(3, 1, CLASSES, "a", 500).tolist() == expected


def test_uniform_never_reaches_one() -> None:
    drawn = keyed.uniform(0, 0, torch.arange(1000), "a", 1000)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() < 1e-5
    assert 1 - 1e-5 < drawn.max() < 1


SAMPLES = {
    "counter": lambda: keyed.uniform(1, 2, torch.tensor([3]), "a", 1 << 16).flatten(),
    "class": lambda: keyed.uniform(1, 2, torch.arange(1 << 16), "a", 1).flatten(),
    "iteration": lambda: torch.cat([keyed.uniform(1, n, torch.arange(4), "a", 4).flatten() for n in range(4096)]),
    "seed": lambda: torch.cat([keyed.uniform(n, 1, torch.arange(4), "a", 4).flatten() for n in range(4096)]),
}


@pytest.mark.parametrize("along", SAMPLES)
def test_moments_are_those_of_a_uniform_distribution(along: str) -> None:
    drawn = SAMPLES[along]().double()
    root = len(drawn) ** 0.5
    for power in range(1, 5):
        deviation = (1 / (2 * power + 1) - 1 / (power + 1) ** 2) ** 0.5
        assert abs(drawn.pow(power).mean() - 1 / (power + 1)) < 4 * deviation / root


def chi_square(cells: Tensor, count: int) -> float:
    """Of equally likely cells, in standard deviations from what is expected."""
    expected = len(cells) / count
    value = (torch.bincount(cells, minlength=count) - expected).square().sum() / expected
    return ((value - (count - 1)) / (2 * (count - 1)) ** 0.5).item()


@pytest.mark.parametrize("along", SAMPLES)
def test_values_and_neighbours_fill_their_cells_evenly(along: str) -> None:
    drawn = SAMPLES[along]()
    assert abs(chi_square((drawn * 256).long(), 256)) < 4
    cells = (drawn * 16).long()
    for distance in (1, 2, 4):
        pairs = cells[:-distance] * 16 + cells[distance:]
        assert abs(chi_square(pairs, 256)) < 4


@pytest.mark.parametrize("along", SAMPLES)
def test_neighbouring_keys_are_not_correlated(along: str) -> None:
    drawn = SAMPLES[along]().double() - 0.5
    for distance in (1, 2, 4, 16):
        correlation = 12 * (drawn[:-distance] * drawn[distance:]).mean()
        assert abs(correlation) < 4 / len(drawn) ** 0.5


def test_every_bit_is_a_coin() -> None:
    drawn = keyed.bits(0, 0, torch.arange(200), "a", 200).flatten()
    for bit in range(64):
        heads = ((drawn >> bit) & 1).double().mean()
        assert abs(heads - 0.5) < 4 * 0.5 / 200


def test_one_changed_bit_of_a_key_changes_half_of_the_bits() -> None:
    for bit in range(20):
        plain_, other = (keyed.bits(seed, 0, torch.arange(2000), "a", 1).flatten() for seed in (0, 1 << bit))
        changed = sum(((plain_ ^ other) >> place) & 1 for place in range(64)).double().mean()
        assert abs(changed - 32) < 0.5


def numbers(seed: int, iteration: int, purpose: str) -> list[float]:
    return torch.rand(5, generator=keyed.generator(seed, iteration, purpose, torch.device("cpu"))).tolist()


def test_generators_differ_by_every_part_of_their_key() -> None:
    keys = list(itertools.product((0, 1, -1, 2**64 - 7), range(5), ("a", "b")))
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)
    assert all(numbers(*key) == numbers(*key) for key in keys)


def test_no_global_state_is_read_or_written() -> None:
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), (keyed.bits(1, 2, CLASSES, "a", 3), numbers(1, 2, "a"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(keyed.bits(1, 2, CLASSES, "a", 3), first[0])
    assert numbers(1, 2, "a") == first[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_device_gives_the_same_bits() -> None:
    assert torch.equal(keyed.bits(1, 2, CLASSES.cuda(), "a", 99).cpu(), keyed.bits(1, 2, CLASSES, "a", 99))
    assert torch.equal(keyed.uniform(1, 2, CLASSES.cuda(), "a", 99).cpu(), keyed.uniform(1, 2, CLASSES, "a", 99))
