"""What was decoded once is not decoded again, unless its source has changed or the cache is damaged."""

import fcntl
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import Heard, picture, refused, save, save_image_folder

from ddfast.data import Dataset, cache, load


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache" / "below"))
    return tmp_path / "cache" / "below"


@pytest.fixture
def folder(tmp_path: Path, kept: Path) -> Path:
    return save_image_folder(tmp_path / "insects")


def heard(folder: Path, **keys: object) -> tuple[Dataset, Heard]:
    ear = Heard()
    return load(str(folder), progress=ear, **keys), ear


def same(one: Dataset, other: Dataset) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in ((one.train, other.train), (one.test, other.test))
        for name in ("images", "labels", "offsets")
    )


class TestKeeping:
    def test_the_second_time_nothing_is_decoded(self, folder: Path) -> None:
        (first, ear), (second, silence) = heard(folder), heard(folder)
        assert ear.meters == [["decode insects", 18, 18]]
        assert (ear.lines, silence.meters, silence.lines) == ([], [], [])
        assert same(first, second)
        assert (first.classes, first.mean, first.std) == (second.classes, second.mean, second.std)

    def test_without_pillow_what_is_kept_is_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first, _ = heard(folder)
        monkeypatch.setitem(sys.modules, "PIL", None)
        assert same(heard(folder)[0], first)

    def test_every_size_is_kept_by_itself(self, folder: Path, kept: Path) -> None:
        sizes = [heard(folder, image_size=size)[0].size for size in (None, 4, 3)]
        assert sizes == [(6, 6), (4, 4), (3, 3)]
        assert len(list(kept.glob("insects-*.npz"))) == 3
        assert not any(heard(folder, image_size=size)[1].meters for size in (None, 4, 3))

    def test_folders_of_one_name_are_told_apart(self, folder: Path, tmp_path: Path, kept: Path) -> None:
        other = save_image_folder(tmp_path / "elsewhere" / "insects", width=5)
        assert [heard(path)[0].size for path in (folder, other, folder, other)] == [(6, 6), (6, 5), (6, 6), (6, 5)]
        assert len(list(kept.glob("insects-*.npz"))) == 2

    def test_a_folder_is_the_same_however_it_is_called(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heard(folder)
        (tmp_path / "link").symlink_to("insects")
        monkeypatch.chdir(folder.parent)
        for name in ("./insects", "insects/../insects", "link"):
            dataset, ear = heard(Path(name))
            assert (dataset.name, ear.meters, ear.lines) == ("insects", [], [])

    @pytest.mark.parametrize("name", ["x" * 255, "蟻" * 85], ids=["ascii", "utf-8"])
    def test_the_name_may_be_as_long_as_the_disk_allows(self, folder: Path, kept: Path, name: str) -> None:
        assert heard(folder.rename(folder.parent / name))[0].name == name
        assert heard(folder.parent / name)[1].meters == []
        (path,) = kept.glob("*.npz")
        assert name.startswith(path.name[:30])

    def test_of_nobody_s_home_folder(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DDFAST_CACHE", "~nobody at all/cache")
        refused(folder, "~nobody at all/cache lies in a home folder that is unknown; DDFAST_CACHE names another folder")

    def test_lies_below_the_home_folder(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DDFAST_CACHE")
        monkeypatch.setenv("HOME", str(tmp_path))
        heard(folder)
        assert len(list((tmp_path / ".cache" / "ddfast" / "decoded").glob("insects-*.npz"))) == 1


def rewritten(folder: Path, content: bytes, later: int) -> None:
    """Other bytes in a file, `later` nanoseconds after the old ones."""
    path = folder / "train" / "bee" / "0.png"
    time = path.stat().st_mtime_ns + later
    path.write_bytes(content)
    os.utime(path, ns=(time, time))


def same_size(folder: Path) -> None:
    rewritten(folder, (folder / "train" / "bee" / "0.png").read_bytes()[:-1] + b"\x81", 1)


def same_time(folder: Path) -> None:
    rewritten(folder, (folder / "train" / "bee" / "0.png").read_bytes() + b"more", 0)


def same_size_and_time(folder: Path) -> None:
    rewritten(folder, (folder / "train" / "bee" / "0.png").read_bytes()[:-1] + b"\x81", 0)


def exchanged(folder: Path) -> None:
    """Two files of one size and time: BMP from an archive."""
    one, other, third = (folder / "train" / "bee" / name for name in ("0.bmp", "1.bmp", "2.bmp"))
    one.rename(third)
    other.rename(one)
    third.rename(other)


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda folder: save(folder / "train" / "bee" / "9.png", picture(9)),
    "removed": lambda folder: (folder / "test" / "bee" / "0.png").unlink(),
    "renamed": lambda folder: (folder / "train" / "bee" / "3.png").rename(folder / "train" / "bee" / "7.png"),
    "moved to another class": lambda folder: (folder / "train" / "bee" / "0.png").rename(folder / "train/cat/8.png"),
    "of the same size": same_size,
    "of the same time": same_time,
    "of the same size and time": same_size_and_time,
    "exchanged": exchanged,
    "a class renamed": lambda folder: [(folder / it / "ant").rename(folder / it / "ape") for it in ("train", "test")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_source_is_decoded_again_with_a_word(
    folder: Path, change: str, kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(2):
        save(folder / "train" / "bee" / f"{number}.bmp", picture(number))
        os.utime(folder / "train" / "bee" / f"{number}.bmp", ns=(0, 0))
    heard(folder)
    CHANGES[change](folder)
    dataset, ear = heard(folder)
    assert ear.lines == [f"{folder} has changed since it was decoded, and is decoded again"]
    assert len(ear.meters) == 1
    assert heard(folder)[1].meters == []
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "fresh"))
    assert same(dataset, heard(folder)[0])
    assert len(list(kept.glob("*.npz"))) == 1


def test_another_version_of_decoding_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard(folder)
    monkeypatch.setattr(cache, "_FORMAT", cache._FORMAT + 1)
    assert len(heard(folder)[1].meters) == 1


class TestDamage:
    @pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
    def test_cut_short(self, folder: Path, kept: Path, keep: float) -> None:
        first, _ = heard(folder)
        (path,) = kept.glob("*.npz")
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
        again, ear = heard(folder)
        assert same(first, again)
        (line,) = ear.lines
        assert line.startswith(f"{path} is not an npz file, or is damaged or cut short: {folder} is decoded again")
        assert path.read_bytes()[-100:] == whole[-100:]

    def test_no_damaged_byte_reaches_a_run(self, folder: Path, kept: Path) -> None:
        first, _ = heard(folder)
        (path,) = kept.glob("*.npz")
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        for place in rng.choice(len(whole), 60, replace=False):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            assert same(heard(folder)[0], first)

    def test_another_file_in_its_place(self, folder: Path, kept: Path) -> None:
        first, _ = heard(folder)
        (path,) = kept.glob("*.npz")
        with path.open("wb") as file:
            np.savez(file, checksum=np.array(["other", "shape"]))
        assert same(heard(folder)[0], first)


class TestDisk:
    def test_a_full_disk_leaves_what_was_kept(self, folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        heard(folder)
        (path,) = kept.glob("*.npz")
        held = path.read_bytes()
        save(folder / "train" / "bee" / "9.png", picture(9))

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("ddfast.files.os.fsync", full)
            with pytest.raises(OSError, match="No space left") as caught:
                heard(folder)
        assert caught.value.filename == str(path)
        assert path.read_bytes() == held
        assert sorted(kept.iterdir()) == sorted([path, path.with_suffix(".lock")])

    def test_a_broken_image_leaves_nothing(self, folder: Path, kept: Path) -> None:
        (folder / "train" / "bee" / "0.png").write_text("hello")
        refused(folder, "train/bee/0.png is not an image")
        assert not list(kept.glob("*.npz"))

    def test_a_folder_that_cannot_be_written(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("no folder")
        monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "file"))
        refused(folder, f"{tmp_path}/file cannot be written: File exists; DDFAST_CACHE names another folder")


def test_of_several_processes_one_decodes_and_the_others_wait(folder: Path, kept: Path, tmp_path: Path) -> None:
    first, _ = heard(folder)
    (path,) = kept.glob("*.npz")
    shutil.move(path, tmp_path / "made elsewhere")
    said = threading.Event()

    class Ear(Heard):
        def say(self, line: str) -> None:
            super().say(line)
            said.set()

    ear, found = Ear(), []
    other = threading.Thread(target=lambda: found.append(load(str(folder), progress=ear)))
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a process that is decoding has it
        other.start()
        assert said.wait(20)
        shutil.move(tmp_path / "made elsewhere", path)
    other.join(20)
    assert ear.lines == [f"waiting for another process, which decodes {folder}"]
    assert ear.meters == []
    assert same(found[0], first)
