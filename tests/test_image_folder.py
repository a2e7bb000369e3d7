"""Folders of image files, found and refused, and through the commands."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine import NO_PICTURES, SMALL, Outcome, ddfast, options
from pictures import CLASSES, Heard, picture, pixels, refused, save, save_image_folder
from rich.console import Console

from ddfast.data import load
from ddfast.distill.config import Config
from ddfast.distill.setup import load_data
from ddfast.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache"))
    return save_image_folder(tmp_path / "insects")


class TestImageFolder:
    def test_classes_are_folders_and_images_are_sorted(self, folder: Path) -> None:
        dataset = load(str(folder))
        assert (dataset.name, dataset.classes, dataset.size, dataset.channels) == ("insects", CLASSES, (6, 6), 3)
        assert (dataset.train.counts, dataset.test.counts) == ((4, 4, 4), (2, 2, 2))
        for k in range(3):
            for number in range(4):
                assert torch.equal(dataset.train.images[4 * k + number], pixels(picture(100 + 10 * k + number)))
            assert torch.equal(dataset.test.images[2 * k + 1], pixels(picture(10 * k + 1)))

    @pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "webp", "jpg", "JPEG", "gif", "tif", "tiff", "ppm"])
    def test_files_by_their_ending(self, folder: Path, ending: str) -> None:
        save(folder / "train" / "bee" / f"x.{ending}", picture(7))
        assert load(str(folder)).train.counts == (4, 5, 4)

    def test_files_lie_anywhere_below_the_class(self, folder: Path) -> None:
        image = save(folder / "train" / "bee" / "a" / "b" / "x.png", picture(7))
        dataset = load(str(folder))
        assert dataset.train.counts == (4, 5, 4)
        assert torch.equal(dataset.train.images[8], pixels(image))

    def test_classes_and_files_may_be_links_but_a_ring_of_folders_is_not_walked(self, folder: Path) -> None:
        (folder / "train" / "bee").rename(folder / "elsewhere")
        (folder / "train" / "bee").symlink_to("../elsewhere")
        (folder / "elsewhere" / "9.png").symlink_to("0.png")
        (folder / "elsewhere" / "ring").symlink_to("../elsewhere")
        assert load(str(folder)).train.counts == (4, 5, 4)

    def test_hidden_and_other_files_are_left_out(self, folder: Path) -> None:
        for name in ("notes.txt", ".hidden.png", ".thumbs/x.png", "png"):
            path = folder / "train" / "bee" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("no image")
        (folder / "train" / ".cache").mkdir()
        (folder / "train" / "README").write_text("no class")
        assert load(str(folder)).train.counts == (4, 4, 4)

    def test_val_is_the_test_split_where_there_is_no_test(self, folder: Path) -> None:
        test = load(str(folder)).test.images
        (folder / "test").rename(folder / "val")
        assert torch.equal(load(str(folder)).test.images, test)
        save_image_folder(folder, "val")
        save(folder / "test" / "cat" / "x.png", picture(7))
        assert load(str(folder)).test.counts == (0, 0, 1)

    def test_also_where_test_has_no_labels(self, folder: Path) -> None:
        save_image_folder(folder, "val")
        (folder / "test").rename(folder / "elsewhere")
        save(folder / "test" / "0.png", picture(7))
        assert load(str(folder)).test.counts == (2, 2, 2)
        save(folder / "test" / "images" / "0.png", picture(7))
        assert load(str(folder)).test.counts == (2, 2, 2)
        save(folder / "test" / "cat" / "0.png", picture(7))
        refused(folder, "insects/test/images is a class that ")

    def test_npz_files_come_first(self, folder: Path) -> None:
        (folder / "train.npz").write_text("hello")
        refused(folder, "insects/train.npz is not an npz file")

    @pytest.mark.parametrize("name", ["valid", "validation", "Test", "TESTING"])
    def test_splits_by_other_names(self, folder: Path, name: str) -> None:
        before = load(str(folder))
        (folder / "test").rename(folder / name)
        (folder / "train").rename(folder / "Train")
        after = load(str(folder))
        assert torch.equal(after.test.images, before.test.images)
        assert torch.equal(after.train.images, before.train.images)

    def test_which_of_two_tests_is_taken_is_said(self, folder: Path) -> None:
        save_image_folder(folder, "val")
        ear = Heard()
        load(str(folder), progress=ear)
        assert ear.lines == [f"{folder} has test and val: test is the test split"]

    def test_folders_of_classes_without_splits_can_be_held_out(self, folder: Path) -> None:
        dataset = load(str(folder / "train"))
        assert (dataset.classes, dataset.train.counts, dataset.has_test) == (CLASSES, (4, 4, 4), False)
        held = load(str(folder / "train"), holdout=0.25)
        assert (held.train.counts, held.test.counts) == ((3, 3, 3), (1, 1, 1))
        with pytest.raises(UserError, match=r"train has no test images: --holdout 0\.1 tests on a tenth"):
            dataset.check_test()

    def test_a_training_folder_alone_can_be_held_out(self, folder: Path) -> None:
        (folder / "test").rename(folder.parent / "elsewhere")
        assert not load(str(folder)).has_test
        assert load(str(folder), holdout=0.25).test.counts == (1, 1, 1)

    def test_folders_called_by_numbers_are_in_the_order_of_numbers(self, tmp_path: Path, folder: Path) -> None:
        for name in ("10", "9", "2"):
            save(tmp_path / "numbers" / name / "0.jfif", picture(int(name)))
        assert load(str(tmp_path / "numbers")).classes == ("2", "9", "10")


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            for path in sorted((folder / name).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (folder / name).rmdir()

    return remove


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown class": (
        lambda folder: save(folder / "test" / "unicorn" / "0.png", picture(0)),
        "insects/test/unicorn is a class that ",
    ),
    "no train": (without("train"), "insects has no train.npz: it holds test; expected train.npz"),
    "empty train": (without("train/ant", "train/bee", "train/cat"), "insects/train has no folder in it"),
    "empty test": (without("test/ant", "test/bee", "test/cat"), "insects/test has no folder in it"),
    "emptied test": (
        lambda folder: [without("test/ant", "test/bee", "test/cat")(folder), (folder / "test" / "images").mkdir()],
        "insects/test has no folder in it: expected one for every class",
    ),
    "empty class": (lambda folder: (folder / "train" / "dog").mkdir(), "insects/train/dog has no image in it"),
    "empty test class": (lambda folder: [p.unlink() for p in folder.glob("test/bee/*")], "insects/test/bee has no"),
    "dangling link": (
        lambda folder: (folder / "train" / "bee" / "x.png").symlink_to("nowhere.png"),
        "insects/train/bee/x.png cannot be read: No such file or directory",
    ),
}


@pytest.mark.parametrize(("break_it", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_folders_are_refused_in_one_sentence(
    folder: Path, break_it: Callable[[Path], object], sentence: str
) -> None:
    break_it(folder)
    refused(folder, sentence)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide pictures, for the commands."""
    place = tmp_path_factory.mktemp("commands")
    save_image_folder(place / "wide", width=11, height=9)
    return place


def command(place: Path, *words: str) -> Outcome:
    setup = f"{NO_PICTURES}\nimport os; os.environ['DDFAST_CACHE'] = {str(place / 'cache')!r}"
    return ddfast(*words, cwd=place, setup=setup)


class TestCommands:
    def test_a_pool_a_run_and_its_evaluation_see_the_same_data(self, place: Path) -> None:
        mean, std = (0.25, 0.5, 0.75), (0.5, 0.25, 0.125)
        data = ["--data", "./wide", "--image-size", "8", "--mean", "0.25,0.5,0.75", "--std", "0.5,0.25,0.125"]
        data += ["--holdout", "0.25", "--device", "cpu"]
        small = options({"count": 1, "epochs": 1, "network": "convnet", "width": 4, "depth": 1})
        assert command(place, "pretrain", *data, *small, "--out", "pool").code == 0
        about = json.loads((place / "pool" / "pool.json").read_text())
        assert (about["classes"], about["mean"], about["std"]) == (list(CLASSES), list(mean), list(std))
        keys = options({**SMALL, "ipc": 1, "batch_real": 2, "iterations": 1, "cmi_weight": 1, "pool": "pool"})
        outcome = command(place, "distill", *data, *keys, "--out", "run")
        assert (outcome.code, outcome.err) == (0, "")
        stored = Config.load(place / "run" / "config.toml")
        assert (stored.image_size, stored.mean, stored.std, stored.holdout) == (8, mean, std, 0.25)
        outcome = command(place, "evaluate", "run", "--epochs", "1")
        assert (outcome.code, outcome.err) == (0, "")

    def test_mistakes(self, place: Path) -> None:
        said = command(place, "distill", "--data", "./wide", "--image-size", "0", "--out", "new").mistake(2)
        assert said == "image_size must be at least 1, got 0"
        pretrain = ["pretrain", "--data", "./wide", "--count", "1", "--out", "new", "--image-size", "8"]
        assert command(place, *pretrain, "--mean", "1,2").mistake(2).startswith("mean must have one number a channel")
        assert command(place, *pretrain, "--std", "a").mistake(2) == "std must be numbers separated by commas, got 'a'"
        assert command(place, *pretrain, "--holdout", "1").mistake(2).startswith("holdout must lie between")
        assert not (place / "new").exists()

    def test_decoding_shows_on_the_console(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = Config(data=str(folder), image_size=4)
        assert load_data(config, torch.device("cpu"), Console(force_terminal=True)).size == (4, 4)
        assert "decode insects" in capsys.readouterr().out
        (folder / "train" / "ant" / "0.png").unlink()
        load_data(config, torch.device("cpu"), Console())
        said = f"{folder} has changed since it was decoded, and is decoded again\n"
        assert capsys.readouterr().out == said
