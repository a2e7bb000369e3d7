"""A run and its data: other data than it was begun with are refused, the same data may lie elsewhere."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine import NO_PICTURES, SMALL, Outcome, contents, ddfast, options
from pictures import picture, save, save_image_folder

KEYS = {**SMALL, "ipc": 1, "batch_real": 2, "iterations": 2, "augmentation": "none"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    save_image_folder(place / "insects")
    assert command(place, "distill", "--data", "insects", "--out", "run", *options(KEYS)).code == 0
    return place


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """The data and the run, moved together: the run's config.toml names the folder of before, which is gone."""
    shutil.copytree(place, tmp_path / "copy")
    config = tmp_path / "copy" / "run" / "config.toml"
    config.write_text(config.read_text().replace(str(place), str(tmp_path / "copy")))
    return tmp_path / "copy"


def command(place: Path, *words: str, cwd: str = ".") -> Outcome:
    setup = f"{NO_PICTURES}\nimport os; os.environ['DDFAST_CACHE'] = {str(place / 'cache')!r}"
    return ddfast(*words, cwd=place / cwd, setup=setup)


def renamed(place: Path) -> None:
    for split in ("train", "test"):
        (place / "insects" / split / "cat").rename(place / "insects" / split / "aardvark")


def reordered(place: Path) -> None:
    """Every class has the images of another one."""
    for split in ("train", "test"):
        folder = place / "insects" / split
        for old, new in (("ant", "spare"), ("cat", "ant"), ("spare", "cat")):
            (folder / old).rename(folder / new)


def one_class_more(place: Path) -> None:
    for split in ("train", "test"):
        for number in range(4):
            save(place / "insects" / split / "dog" / f"{number}.png", picture(500 + number))


def one_image_less(place: Path) -> None:
    (place / "insects" / "train" / "bee" / "0.png").unlink()


def larger(place: Path) -> None:
    shutil.rmtree(place / "insects")
    save_image_folder(place / "insects", width=9, height=9)


OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another name": (
        renamed,
        "its classes are others: it has aardvark, which the run does not have and it lacks cat",
    ),
    "one class more": (one_class_more, "its classes are others: it has dog, which the run does not have"),
    "other images": (reordered, "the mean pixel of class "),
    "one image less": (one_image_less, "class bee has 3 and not 4 train images"),
    "other sizes": (larger, "its images are 3x9x9 and not 3x6x6 (channels, height, width)"),
}


@pytest.mark.parametrize(("change", "sentence"), OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("words", [("evaluate", "run"), ("distill", "--resume", "--out", "run", "--iterations", "4")])
def test_other_data_are_refused_before_anything_is_written(
    copied: Path, change: Callable[[Path], None], sentence: str, words: tuple[str, ...]
) -> None:
    change(copied)
    before = contents(copied / "run")
    mine = ("--data", "insects") if words[0] == "distill" else ()
    said = command(copied, *words, *mine).mistake(2)
    assert said.startswith(f"insects is not the data that run was begun with: {sentence}")
    assert said.endswith("; --data names where these are now, --accept-data takes the others")
    assert contents(copied / "run") == before


def test_other_data_are_taken_where_the_user_says_so(copied: Path) -> None:
    one_image_less(copied)
    outcome = command(copied, "evaluate", "run", "--accept-data")
    assert (outcome.code, "they are taken all the same" in outcome.out) == (0, True)
    words = ("distill", "--resume", "--out", "run", "--data", "insects", "--iterations", "3", "--accept-data")
    outcome = command(copied, *words)
    assert (outcome.code, "they are taken all the same" in outcome.out) == (0, True)
    assert command(copied, "evaluate", "run").code == 0, "the run knows them from now on"


def test_accept_data_is_for_a_run_that_is_continued(place: Path) -> None:
    said = command(place, "distill", "--data", "insects", "--out", "new", "--accept-data").mistake(2)
    assert said.startswith("accept_data is for --resume")


def test_a_run_is_used_from_any_folder(place: Path) -> None:
    (place / "elsewhere").mkdir(exist_ok=True)
    assert command(place, "evaluate", "../run", cwd="elsewhere").code == 0


def test_the_same_data_may_lie_elsewhere_now(copied: Path) -> None:
    (copied / "insects").rename(copied / "beetles")
    assert "No such file" in command(copied, "evaluate", "run").mistake(2)
    assert command(copied, "evaluate", "run", "--data", "beetles").code == 0
    words = ("distill", "--resume", "--out", "run", "--data", "beetles", "--iterations", "3")
    assert command(copied, *words).code == 0
    assert command(copied, "evaluate", "run").code == 0, "the run knows the new place"


def test_a_run_of_an_earlier_version_is_compared_by_what_it_holds(copied: Path) -> None:
    words = ("distill", "--resume", "--out", "run", "--data", "insects", "--iterations", "3")
    known = (copied / "run" / "data.json").read_text()
    (copied / "run" / "data.json").unlink()
    assert command(copied, *words).code == 0
    assert (copied / "run" / "data.json").read_text() == known, "it has a fingerprint from now on"
    (copied / "run" / "data.json").unlink()
    one_image_less(copied)
    assert "begun with: its mean is 0.4997, " in command(copied, *words).mistake(2)
    renamed(copied)
    assert "its classes are others" in command(copied, *words).mistake(2)


def test_images_that_another_decoder_read_are_the_same_data(copied: Path) -> None:
    known = json.loads((copied / "run" / "data.json").read_text())
    known["train"]["pixels"] = "0" * 64
    known["train"]["means"] = [mean + 0.4 for mean in known["train"]["means"]]
    (copied / "run" / "data.json").write_text(json.dumps(known))
    outcome = command(copied, "evaluate", "run")
    assert (outcome.code, "decoded a little differently" in outcome.out) == (0, True)
    known["train"]["means"][1] += 0.2
    (copied / "run" / "data.json").write_text(json.dumps(known))
    assert "the mean pixel of class bee in its train images is" in command(copied, "evaluate", "run").mistake(2)


def test_data_without_a_test_part_are_distilled_and_not_evaluated(place: Path) -> None:
    data = ("--data", "insects/train", *options(KEYS))
    outcome = command(place, "distill", *data, "--out", "untested")
    assert outcome.code == 0
    assert "train has no test images, so the result is not evaluated; --holdout 0.1 tests on" in outcome.out
    assert not (place / "untested" / "evaluation.json").exists()
    for words in (
        ("distill", *data, "--out", "new", "--eval-every", "1"),
        ("evaluate", "untested"),
        ("evaluate", "untested/synthetic.safetensors", "--data", "insects/train"),
        ("pretrain", "--data", "insects/train", "--count", "1", "--out", "new"),
    ):
        assert command(place, *words).mistake(2).startswith("train has no test images: --holdout 0.1"), words
        assert not (place / "new").exists()
    assert command(place, "distill", *data, "--out", "held", "--holdout", "0.25").code == 0
    assert np.isfinite(json.loads((place / "held" / "evaluation.json").read_text())["distilled"]["mean"])
