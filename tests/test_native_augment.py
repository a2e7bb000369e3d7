"""What is particular to augmentation in C++: instruction sets, planes that do not fill a register, a wrong table."""

import pytest
import torch
from oracle import assert_close, capabilities_to_test, differentiate

from ddfast import operators
from ddfast.operators import backends, native
from ddfast.operators.schemas import COLOR, CUT, MIRROR, SAMPLE, SHIFT

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(native.module is None, reason=backends.absent.get("cpp", "")),
]
TABLE = torch.tensor(
    [
        (COLOR, 0.8, 0.3, -0.2, 0, 0.4),
        (SAMPLE, 0.95, 0.25, -0.25, 0.95, 0),
        (SHIFT, -1, 2, 0, 0, 0),
        (CUT, 1, 3, -2, 2, 0),
        (MIRROR, 0, 0, 0, 0, 0),
        (SAMPLE, 1.2, 0, 0, 0.85, 0),
    ],
    dtype=torch.float64,
)


@pytest.fixture
def capability(request):
    """Runs the test on one of the instruction sets of this machine."""
    before = native.module.build_info()["in use"]
    native.module.set_capability(request.param)
    yield request.param
    native.module.set_capability(before)


def run(backend, images, upstream):
    return differentiate(lambda leaf: operators.augment(leaf, TABLE, backend=backend), images, upstream)


@pytest.mark.parametrize("capability", capabilities_to_test(), indirect=True)
@pytest.mark.parametrize("n", [1, 4, 11])
@pytest.mark.parametrize("size", [(1, 3, 5), (3, 9, 37), (2, 16, 16), (19, 4, 18)], ids=str)
def test_every_instruction_set(capability, n, size):
    """Fewer planes than lanes, as many and more; rows of several registers and a rest."""
    generator = torch.Generator().manual_seed(0)
    images, upstream = (torch.randn(6, n, *size, generator=generator, dtype=torch.float64) for _ in "12")
    right = run("reference", images, upstream)
    for dtype in (torch.float64, torch.float32):
        tolerance = 1e-11 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
        images, upstream = images.float().double(), upstream.float().double()  # the same numbers in both
        right = run("reference", images, upstream)
        for one, other in zip(run("cpp", images.to(dtype), upstream.to(dtype)), right, strict=True):
            assert one.dtype == dtype
            assert_close(one, other, tolerance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.float(), "contiguous float64"),
        (lambda table: table[:5], r"of shape \(6, 6\)"),
        (lambda table: table.T.contiguous().T, "contiguous float64"),
        (lambda table: table.index_fill(1, torch.tensor(0), 5), "operations from 0 to 4"),
        (lambda table: table.index_fill(1, torch.tensor(3), torch.nan), "finite"),
    ],
    ids=["dtype", "groups", "strides", "operation", "NaN"],
)
def test_a_wrong_table_is_refused(change, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.ddfast.augment.cpp(torch.zeros(6, 1, 1, 4, 4), change(TABLE))


def test_images_of_another_kind_are_refused():
    with pytest.raises(RuntimeError, match="images must be float32 or float64"):
        torch.ops.ddfast.augment.cpp(torch.zeros(6, 1, 1, 4, 4, dtype=torch.float16), TABLE)
    with pytest.raises(RuntimeError, match=r"grad must have shape \(G, n, C, H, W\)"):
        torch.ops.ddfast.augment_backward.cpp(torch.zeros(6, 1, 4, 4), TABLE)
