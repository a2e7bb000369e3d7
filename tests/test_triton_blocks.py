"""What is the Triton kernels' own: tiles of any shape, planes of several tiles, and how work is cut."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import INTERPRETED, assert_close, distance, many, runnable
from test_blocks import BLOCKS, CONVS, LAYOUTS, NORMS, Block, away_from_the_kink, on
from truncation import truncating

from ddfast.kernels import blocks_tiling, tables
from ddfast.kernels.tiling import Chip
from ddfast.operators import norm_block, triton_blocks

pytestmark = pytest.mark.usefixtures("poisoned")
DEVICE = next((device for backend, device in runnable("norm_block") if backend == "triton"), None)
on_triton = pytest.mark.skipif(DEVICE is None, reason="triton needs a GPU, or TRITON_INTERPRET=1")
NAMED = {block.name: block for block in BLOCKS}
EACH_WAY = [NAMED[name] for name in ("pool", "residual", "plain", "conv", "grey")]


def check(block, layout=LAYOUTS[0], seed=0):
    """Result and gradients against PyTorch's own modules, in float64."""
    inputs = on(DEVICE, block.inputs(seed, layout=layout))
    expected = block.differentiate(block.modules, inputs)
    actual = block.differentiate(lambda *it: block(*it, backend="triton"), inputs)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, 1e-10)


def sized(block, *shape):
    return Block(**{**vars(block), "shape": shape})


@pytest.fixture(scope="module")
def cut():
    """Sets the shape of all tiles, and in how many parts channels are added up."""
    with pytest.MonkeyPatch.context() as patch:

        def force(side, rows, columns, splits=1):
            def chosen(channels, height, width, *_):
                return blocks_tiling._cut(channels, height, width, side, rows, columns, 32)

            def product(*sizes):
                cut = chosen(*sizes)
                terms = max(blocks_tiling.power_of_two(9 * sizes[3]), 16)
                return cut._replace(options=cut.options | {"TERMS": terms})

            for name in ("block_cut", "conv_cut", "tap_cut"):
                patch.setattr(triton_blocks, name, chosen)
            patch.setattr(triton_blocks, "product_cut", product)
            patch.setattr(triton_blocks, "splits_of", lambda *_: splits)

        yield force


@on_triton
@many
@given(
    block=st.sampled_from(EACH_WAY),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(2, 9), st.integers(2, 11)),
    tile=st.tuples(*[st.sampled_from(sizes) for sizes in ([1, 2, 4], [2, 4, 8], [2, 4, 8], [1, 2, 4])]),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_tile_and_any_number_of_tiles(cut, block, shape, tile, layout):
    """Tiles may stick out of the map, and parts of the channels may be empty."""
    n, channels, height, width = shape
    cut(*tile)
    if block.conv:
        channels, height, width = channels % 4 + 1, height + 2, width + 2
    check(sized(block, n, channels, height, width), layout)


@on_triton
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(1, 9, 6, 300), (1, 2, 260, 3), (1, 1, 1, 5)], ids=str)
def test_planes_beyond_a_tile(shape, layout):
    """As they are cut on a GPU: rows wider than a tile, many rows, and hardly a pixel."""
    check(sized(NAMED["pool" if shape[2] > 1 else "relu"], *shape), layout)


@on_triton
@pytest.mark.parametrize("block", CONVS, ids=lambda block: block.name)
def test_convolved_planes_beyond_a_tile(block):
    check(sized(block, 1, block.shape[1], 5, 270))


@on_triton
def test_tiles_merge_without_losing_digits(cut):
    """Means a thousand times the spread, and tiles whose means differ by as much again."""
    cut(2, 2, 4)
    generator = torch.Generator().manual_seed(0)
    x = 1e3 + torch.randn(2, 3, 7, 9, generator=generator)
    x[..., 4:, :] += 1e3
    for shift in (0, -1e3):
        part = x[..., :4, :] + shift if shift else x
        exact = F.group_norm(part.double(), 3)
        eager = F.group_norm(part, 3)
        ours = norm_block(part.to(DEVICE), None, None, eps=1e-5, relu=False, pool=False, backend="triton")
        assert distance(ours, exact) <= max(2 * distance(eager, exact), 4 * torch.finfo(torch.float32).eps)


@on_triton
@pytest.mark.parametrize("block", [NORMS[0], CONVS[0]], ids=lambda block: block.name)
def test_several_tiles_give_the_same_bits_again(cut, block):
    cut(4, 4, 8, splits=2)
    inputs = on(DEVICE, [it.float() for it in block.inputs()])
    runs = [block.differentiate(lambda *it: block(*it, backend="triton"), inputs) for _ in "12"]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@on_triton
def test_affine_gradients_add_up_many_images():
    """More than one step of them."""
    check(sized(NAMED["relu"], 150, 3, 2, 2))


@given(
    channels=st.integers(1, 600),
    height=st.integers(1, 300),
    width=st.integers(1, 700),
    itemsize=st.sampled_from([2, 4, 8]),
    kind=st.sampled_from(["nchw", "channels_last", "conv", "sums", "tap", "product", "products"]),
)
def test_a_cut_covers_the_map_and_fits_the_registers(channels, height, width, itemsize, kind):
    double = itemsize == 8
    if kind in ("nchw", "channels_last"):
        cut = blocks_tiling.block_cut(channels, height, width, kind == "channels_last", itemsize)
    elif kind == "tap":
        cut = blocks_tiling.tap_cut(channels, height, width, itemsize)
    elif kind.startswith("product"):
        cut = blocks_tiling.product_cut(channels, height, width, 3, min(itemsize, 4), kind == "products")
        assert min(cut.options["CHANNELS"], cut.options["ROWS"] * cut.options["WIDTH"], cut.options["TERMS"]) >= 16
        double = False
    else:
        cut = blocks_tiling.conv_cut(channels, height, width, double, kind == "sums")
    side, rows, columns, warps = (cut.options[name] for name in ("CHANNELS", "ROWS", "WIDTH", "num_warps"))
    assert all(size & (size - 1) == 0 for size in (side, rows, columns, warps))
    assert min(rows, columns) >= 2
    assert (cut.programs - 1) * side < channels <= cut.programs * side
    assert cut.tiles == -(-height // rows) * -(-width // columns)
    assert cut.options["WHOLE"] == (cut.tiles == 1)
    full = width == columns and height % rows == 0 and channels % side == 0
    assert cut.options["FULL"] == full
    assert side * rows * columns * (1 + double) <= 64 * 32 * warps
    if kind == "channels_last":
        assert side * itemsize >= min(32, channels * itemsize)


def test_usual_cuts():
    """A warp for a plane of 32x32 in NCHW; the planes of eight channels in channels_last; and where few images leave
    multiprocessors idle, two parts of the channels."""
    nchw, last = (blocks_tiling.block_cut(64, 32, 32, it, 4) for it in (False, True))
    assert (nchw.programs, nchw.tiles, nchw.options["num_warps"]) == (64, 1, 1)
    assert (last.programs, last.tiles, last.options["num_warps"]) == (8, 1, 16)
    assert not blocks_tiling.block_cut(64, 256, 256, False, 4).options["WHOLE"]
    assert [blocks_tiling.splits_of(images, 4, Chip(90, 132)) for images in (32, 33)] == [2, 1]


def check_way(block, dtype, mean, layout):
    """Result and gradient: twice the error of PyTorch's modules, or 1e-5 for the split products of float32."""
    inputs = [it.to(dtype) for it in block.inputs(0, mean, layout)]
    wide = [it.double() for it in inputs]
    upstream = away_from_the_kink(block, wide, dtype)
    exact = block.differentiate(block.modules, wide, upstream)
    eager = block.differentiate(block.modules, inputs, upstream.to(dtype))
    ours = block.differentiate(lambda *it: block(*it, backend="triton"), on(DEVICE, inputs), upstream.to(DEVICE, dtype))
    for one, other, right in zip(ours, eager, exact, strict=True):
        error, usual = ((it.cpu().double() - right).norm() / right.norm() for it in (one, other))
        assert error <= max(2 * usual, 1e-5 if dtype == torch.float32 else 0)


@on_triton
@pytest.mark.parametrize("way", ["fma", "product"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "mean"), [(torch.float32, 0.0), (torch.float32, 1e3), (torch.bfloat16, 0.0)], ids=str
)
@pytest.mark.parametrize("block", CONVS, ids=lambda block: block.name)
def test_both_ways_of_a_convolution_are_as_accurate_as_modules(monkeypatch, block, dtype, mean, layout, way):
    """Also where the images' mean is a thousand times their spread, which the pivot takes off a product."""
    monkeypatch.setattr(triton_blocks, "conv_path", lambda *_: way)
    monkeypatch.setattr(triton_blocks, "precision_of", lambda x: "half" if x.itemsize == 2 else "float32")
    check_way(block, dtype, mean, layout)


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter is given the tensor cores of a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block", CONVS, ids=lambda block: block.name)
def test_tensor_cores_that_truncate_sums_do_not_matter_to_a_convolution(monkeypatch, block, dtype):
    """A product has 64 terms at most, and products are added up by ordinary additions."""
    monkeypatch.setattr(triton_blocks, "conv_path", lambda *_: "product")
    monkeypatch.setattr(triton_blocks, "precision_of", lambda x: "half" if x.itemsize == 2 else "float32")
    with truncating() as lengths:
        check_way(block, dtype, 0.0, LAYOUTS[0])
    assert max(lengths) <= 64


@on_triton
@pytest.mark.parametrize("tile", [(16, 4, 4, 1), (2, 4, 8, 2), (4, 2, 2, 1)], ids=str)
@pytest.mark.parametrize("block", CONVS, ids=lambda block: block.name)
def test_products_of_any_tile(monkeypatch, cut, block, tile):
    """Tiles that stick out of the map, and several of them; two parts of the channels."""
    monkeypatch.setattr(triton_blocks, "conv_path", lambda *_: "product")
    monkeypatch.setattr(triton_blocks, "precision_of", lambda x: "half" if x.itemsize == 2 else "float32")
    cut(*tile)
    check_way(block, torch.float32, 0.0, LAYOUTS[0])


@pytest.mark.parametrize("precision", ["half", "tf32", "float32"])
def test_the_table_of_a_card_decides_which_way_a_convolution_goes(monkeypatch, precision):
    """By the nearest plane, for each operator and precision by itself; without a row, the prediction."""
    rows = [
        {"kernel": "conv_block", "p": 1024, "precision": precision, "path": "plain"},
        {"kernel": "conv_block", "p": 4096, "precision": precision, "path": "fma"},
    ]
    monkeypatch.setattr(blocks_tiling, "table", lambda name: rows if name == "card" else tables.table(name))
    card, other = Chip(90, 132, "card"), Chip(90, 132, "another card")
    assert [blocks_tiling.fastest("conv_block", p, precision, card) for p in (900, 4096)] == ["plain", "fma"]
    assert blocks_tiling.fastest("conv_block_backward", 1024, precision, card) == "product"
    assert blocks_tiling.fastest("conv_block", 1024, precision, other) == "product"
    assert blocks_tiling.fastest("conv_block", 1024, "float64", card) == "fma"
