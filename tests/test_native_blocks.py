"""The native blocks on every instruction set, with any number of threads, at the sizes of networks."""

from dataclasses import replace

import pytest
import torch
from oracle import DTYPES, assert_accurate, capabilities_to_test
from test_blocks import BLOCKS, LAYOUTS, away_from_the_kink

from ddfast.operators import backends, native
from ddfast.operators.library import overload

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(native.module is None, reason=backends.absent.get("cpp", "")),
]

# Strips of channels, registers and a rest; rows of two registers, of one and of less.
SIZES = {False: [(2, 87, 5, 6), (1, 64, 16, 34)], True: [(2, 3, 12, 37), (1, 2, 18, 16)]}


@pytest.fixture(params=capabilities_to_test())
def capability(request):
    before = native.module.build_info()["in use"]
    native.module.set_capability(request.param)
    yield request.param
    native.module.set_capability(before)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_instruction_set_is_accurate(capability, block, layout):
    for dtype in DTYPES:
        for shape in SIZES[block.conv]:
            sized = replace(block, shape=shape)
            inputs = [it.to(dtype) for it in sized.inputs(layout=layout)]
            exact_inputs = [it.double() for it in inputs]
            upstream = away_from_the_kink(sized, exact_inputs, dtype)
            exact = sized.differentiate(sized.modules, exact_inputs, upstream)
            eager = sized.differentiate(sized.modules, inputs, upstream.to(dtype))
            actual = sized.differentiate(lambda *it, run=sized: run(*it, backend="cpp"), inputs, upstream.to(dtype))
            for triple in zip(actual, eager, exact, strict=True):
                assert_accurate([triple], dtype, "cpp")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("spread", [1.0, 0.01])
def test_statistics_far_from_zero(capability, spread, layout):
    """The mean is right to its last bit, and the deviation loses none of the digits that the pixels have."""
    x = 1e4 + spread * torch.randn(3, 21, 48, 48, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=layout)
    _, mean, rstd = overload("norm_block", "cpp", x)(x, None, None, None, 0.0, True, False, True)
    exact = x.double().flatten(2)
    assert (mean - exact.mean(2)).abs().max() <= 2**-10  # one unit in the last place of 1e4
    torch.testing.assert_close(rstd.double(), 1 / exact.std(2, correction=0), rtol=2e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_any_number_of_threads_gives_the_same(block, layout):
    """Since each image is one thread's alone; sums over the images are PyTorch's, and may differ in the last bit."""
    before = torch.get_num_threads()
    sized = replace(block, shape=(9, 3, 16, 18) if block.conv else (9, 70, 16, 18))
    inputs = [it.float() for it in sized.inputs(layout=layout)]
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(sized.differentiate(lambda *it: sized(*it, backend="cpp"), inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        assert torch.equal(results[0][1], other[1])
        for one, two in zip(results[0][2:], other[2:], strict=True):
            torch.testing.assert_close(one, two)
