"""From files to pixels: colours, sizes, orientation, and files that are none."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import CLASSES, picture, pixels, refused, save, save_image_folder
from PIL import Image
from torch.nn.functional import interpolate

from ddfast.data import Dataset, decode, load


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache"))
    return save_image_folder(tmp_path / "insects")


def all_of(folder: Path, image: Image.Image, suffix: str = ".png") -> Dataset:
    """A data set of one image over and over."""
    for split in ("train", "test"):
        for name in CLASSES:
            save(folder / split / name / f"0{suffix}", image)
    return load(str(folder))


def png(kind: int, channels: int) -> bytes:
    """6x6 pixels of 16 bits a channel."""
    rows = zlib.compress(bytes(6 * (1 + 12 * channels)))
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 6, 6, 16, kind, 0, 0, 0), b"IDAT": rows, b"IEND": b""}
    parts = (
        struct.pack(">I", len(it)) + name + it + struct.pack(">I", zlib.crc32(name + it)) for name, it in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff() -> bytes:
    """6x6 pixels in RGB of 16 bits a channel: twice as many rows of 8 bits, with another head."""
    buffer = io.BytesIO()
    picture(0, 6, 12).save(buffer, "tiff")
    return (
        buffer.getvalue()
        .replace(struct.pack("<HHH", 8, 8, 8), struct.pack("<HHH", 16, 16, 16))
        .replace(struct.pack("<HHII", 257, 4, 1, 12), struct.pack("<HHII", 257, 4, 1, 6))
    )


DEEP = {
    "grey.png": png(0, 1),
    "rgb.png": png(2, 3),
    "la.png": png(4, 2),
    "rgba.png": png(6, 4),
    "rgb.tif": tiff(),
    "rgb.ppm": b"P6 6 6 65535\n" + bytes(216),
    "plain.ppm": b"P3 6 6 1023\n" + b"0 " * 108,
}


class TestColours:
    @pytest.mark.parametrize("mode", ["L", "1"])
    def test_one_channel_if_all_are_grey(self, tmp_path: Path, folder: Path, mode: str) -> None:
        image = picture(0, 6, 4, mode)
        dataset = all_of(tmp_path / "grey", image)
        assert dataset.train.images.shape == (3, 1, 4, 6)
        assert torch.equal(dataset.train.images[1], pixels(image.convert("L")))
        assert mode == "L" or dataset.test.images.unique().tolist() == [0, 255]

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_three_channels_if_one_is_not(self, tmp_path: Path, folder: Path, split: str) -> None:
        grey, coloured = picture(0, mode="L"), picture(1)
        all_of(tmp_path / "grey", grey)
        save(tmp_path / "grey" / split / "bee" / "0.png", coloured)
        dataset = load(str(tmp_path / "grey"))
        assert torch.equal(dataset.train.images[0], pixels(grey).expand(3, 6, 6))
        assert torch.equal(getattr(dataset, split).images[1], pixels(coloured))

    @pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK"])
    def test_everything_else_is_rgb(self, tmp_path: Path, folder: Path, mode: str) -> None:
        image = picture(0, mode=mode)
        dataset = all_of(tmp_path / "odd", image, ".tif")
        assert torch.equal(dataset.train.images[0], pixels(image.convert("RGB")))

    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
    def test_more_than_8_bits_are_refused(self, folder: Path, dtype: type) -> None:
        save(folder / "train" / "bee" / "0.tif", Image.fromarray(np.full((6, 6), 300, dtype)))
        refused(folder, "train/bee/0.tif has more than 8 bits a channel, which would be lost")

    @pytest.mark.parametrize("name", DEEP)
    def test_also_where_pillow_keeps_8_of_them(self, folder: Path, name: str) -> None:
        (folder / "train" / "bee" / name).write_bytes(DEEP[name])
        refused(folder, f"train/bee/{name} has more than 8 bits a channel, which would be lost")

    @pytest.mark.parametrize("white", [15, 255])
    @pytest.mark.parametrize("kind", [b"P1", b"P2", b"P3", b"P5", b"P6"])
    def test_fewer_are_not(self, folder: Path, kind: bytes, white: int) -> None:
        values = b"0 1 " * 54 if kind < b"P4" else bytes(108)
        head = b"%s 6 6 " % kind + (b"" if kind == b"P1" else b"%d " % white)
        (folder / "train" / "bee" / "0.ppm").write_bytes(head + values)
        assert load(str(folder)).train.counts == (4, 5, 4)


class TestSizes:
    def test_the_first_of_another_size_is_named(self, folder: Path) -> None:
        for name in ("bee/3.png", "cat/1.png"):
            save(folder / "train" / name, picture(0, 8, 5))
        refused(
            folder, f"{folder}/train/bee/3.png is 8x5 pixels but {folder}/train/ant/0.png 6x6: images must have one"
        )
        assert load(str(folder), image_size=4).size == (4, 4)

    def test_of_the_test_images_too(self, folder: Path) -> None:
        save(folder / "test" / "ant" / "0.png", picture(0, 6, 7))
        refused(folder, "test/ant/0.png is 6x7 pixels but ")

    @pytest.mark.parametrize(("width", "height"), [(40, 40), (60, 40), (40, 61), (9, 7), (16, 16), (16, 17)])
    def test_the_shorter_side_is_scaled_and_the_middle_cut_out(
        self, tmp_path: Path, folder: Path, width: int, height: int
    ) -> None:
        """Against PyTorch's antialiased interpolation, which rounds once where Pillow rounds twice."""
        image = picture(0, width, height)
        all_of(tmp_path / "large", image)
        got = load(str(tmp_path / "large"), image_size=16).train.images[0]
        wide, high = 16 * width // min(width, height), 16 * height // min(width, height)
        whole = interpolate(pixels(image)[None].double(), (high, wide), mode="bilinear", antialias=True)[0]
        left, top = round((wide - 16) / 2), round((high - 16) / 2)
        expected = whole[:, top : top + 16, left : left + 16]
        assert got.shape == (3, 16, 16)
        assert (got.double() - expected).abs().max() <= 1.5

    def test_arrays_are_not_scaled(self, tmp_path: Path) -> None:
        refused("digits", "image_size is for image files; digits holds arrays of 8x8 pixels", image_size=16)
        assert load("digits", image_size=8).size == (8, 8)


def test_photographs_are_turned_as_their_exif_says(tmp_path: Path, folder: Path) -> None:
    upright = Image.new("RGB", (16, 8), "black")
    upright.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise
    path = tmp_path / "turned"
    all_of(path, upright, ".jpg")
    for file in path.rglob("*.jpg"):
        upright.rotate(90, expand=True).save(file, exif=exif, quality=95)
    dataset = load(str(path))
    assert dataset.size == (8, 16)
    assert (dataset.train.images[..., :7].float().mean(), dataset.train.images[..., 9:].float().mean()) == (255, 0)


def test_images_stay_in_order_from_batch_to_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_BATCH", 5)
    images = [save(folder / "train" / "ant" / f"x{number:02}.png", picture(number)) for number in range(20)]
    got = load(str(folder)).train.images
    assert torch.equal(got[4:24], torch.stack([pixels(image) for image in images]))


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    picture(0, 60, 60).save(buffer, kind)
    return buffer.getvalue()


class TestBrokenImages:
    @pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
    @pytest.mark.parametrize("keep", [0.3, 0.9])
    def test_cut_short(self, folder: Path, kind: str, keep: float) -> None:
        whole = encoded(kind)
        (folder / "train" / "bee" / f"0.{kind}").write_bytes(whole[: int(len(whole) * keep)])
        refused(folder, f"{folder}/train/bee/0.{kind} ", image_size=6)

    @pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
    def test_no_image_at_all(self, folder: Path, content: bytes) -> None:
        (folder / "test" / "cat" / "1.png").write_bytes(content)
        refused(folder, f"{folder}/test/cat/1.png ")

    def test_text_is_said_to_be_none(self, folder: Path) -> None:
        (folder / "test" / "cat" / "1.png").write_text("hello")
        refused(folder, f"{folder}/test/cat/1.png is not an image")

    def test_damaged_in_the_middle(self, folder: Path) -> None:
        whole = bytearray(encoded("png"))
        whole[len(whole) // 2] ^= 255
        (folder / "train" / "bee" / "0.png").write_bytes(whole)
        refused(folder, f"{folder}/train/bee/0.png cannot be decoded: ", image_size=6)

    def test_a_folder_that_looks_like_one(self, folder: Path) -> None:
        (folder / "train" / "bee" / "0.png").unlink()
        (folder / "train" / "bee" / "0.png").mkdir()
        assert load(str(folder)).train.counts == (4, 3, 4)


def test_without_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(folder, "image files are read by Pillow, which is missing: pip install 'ddfast[images]'")
