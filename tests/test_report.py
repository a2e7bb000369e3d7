import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from ddfast.errors import UserError
from ddfast.report import class_table, evaluation_table, save_curve, save_grid

VERMILION, GREEN, BLUE = (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0x00, 0x72, 0xB2)
EVALUATION: dict[str, Any] = {
    "random": {"mean": 83.14, "std": 1.2, "runs": [82.0, 84.2], "images": 100, "per_class": [90.04, 76.2]},
    "distilled": {"mean": 96.9, "std": 0.31, "runs": [96.5, 97.0, 97.2], "images": 100, "per_class": [99.0, 94.8]},
    "whole": {"mean": 98.2, "std": 0.1, "runs": [98.1, 98.3]},
}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def grid(path: Path, shape: tuple[int, ...], classes: int, per_class: int) -> np.ndarray:
    """The picture of grey images, every one of its own brightness below white."""
    values = torch.arange(classes * per_class).remainder(250).div(255)
    save_grid(values[:, None, None, None].expand(-1, *shape), [str(k) for k in range(classes)], per_class, path)
    return pixels(path)


def cells(picture: np.ndarray, corner: tuple[int, int], cell: int, rows: int, columns: int) -> np.ndarray:
    """The brightness in the middle of every image, of a picture whose first image begins at `corner`."""
    centres = [
        np.arange(count) * (cell + 4) + cell // 2 + start for count, start in zip((rows, columns), corner, strict=True)
    ]
    return picture[centres[0]][:, centres[1], 0]


def left_of_images(picture: np.ndarray) -> int:
    """The first column of the images: black in the first row of the first one."""
    return int(np.flatnonzero((picture[16] == 0).all(-1))[0])


class TestGrid:
    @pytest.mark.parametrize(("size", "cell"), [(8, 64), (28, 56), (32, 64), (64, 64), (96, 96)])
    def test_enlarges_by_a_whole_factor(self, tmp_path: Path, size: int, cell: int) -> None:
        picture = grid(tmp_path / "images.png", (1, size, size), 3, 4)
        left = left_of_images(picture)
        assert picture.shape == (16 + 3 * cell + 2 * 4 + 16, left + 4 * cell + 3 * 4 + 16, 3)
        assert np.array_equal(cells(picture, (16, left), cell, 3, 4), np.arange(12).reshape(3, 4))

    def test_every_pixel_becomes_a_square(self, tmp_path: Path) -> None:
        images = torch.rand(4, 3, 8, 8)
        images[0, :, 0] = 0
        save_grid(images, ["a", "b"], 2, tmp_path / "images.png")
        picture = pixels(tmp_path / "images.png")
        left = left_of_images(picture)
        last = picture[16 + 68 : 16 + 68 + 64, left + 68 : left + 68 + 64]
        expected = images[3].mul(255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(last, expected.repeat(8, 0).repeat(8, 1))

    def test_gaps_and_margins_are_white_and_names_are_written(self, tmp_path: Path) -> None:
        picture = grid(tmp_path / "images.png", (1, 8, 8), 2, 2)
        left = left_of_images(picture)
        assert (picture[16 + 64 : 16 + 68, left:] == 255).all()
        assert (picture[:, left + 64 : left + 68] == 255).all()
        for top in (16, 16 + 68):
            assert picture[top : top + 64, 16 : left - 16].min() < 128
        assert (picture[:, left - 16 : left] == 255).all()

    def test_shows_20_images_a_class_and_says_so(self, tmp_path: Path) -> None:
        picture = grid(tmp_path / "images.png", (1, 64, 64), 3, 50)
        left = left_of_images(picture)
        assert picture.shape[1] == left + 20 * 68 - 4 + 16
        first = np.arange(3)[:, None] * 50 + np.arange(20)
        assert np.array_equal(cells(picture, (16, left), 64, 3, 20), first % 250)
        assert picture[16 + 3 * 68 :, left:].min() < 160

    def test_shows_1000_images_and_says_so(self, tmp_path: Path) -> None:
        picture = grid(tmp_path / "images.png", (1, 64, 64), 60, 30)
        left = left_of_images(picture)
        assert picture.shape == (16 + 25 * 68 - 4 + 48, 2 * (left + 20 * 68 - 4) + 16, 3)
        first = np.arange(50)[:, None] * 30 + np.arange(20)
        for column, part in enumerate(np.split(first % 250, 2)):
            corner = (16, left + column * (left + 20 * 68 - 4))
            assert np.array_equal(cells(picture, corner, 64, 25, 20), part)
        assert picture[16 + 25 * 68 :, left:].min() < 160

    @pytest.mark.parametrize(("classes", "columns"), [(1, 1), (2, 2), (3, 2), (10, 3), (200, 11)])
    def test_is_no_higher_than_wide(self, tmp_path: Path, classes: int, columns: int) -> None:
        picture = grid(tmp_path / "images.png", (1, 64, 64), classes, 1)
        rows = -(-classes // columns)
        assert picture.shape[0] == rows * 68 - 4 + 32 <= picture.shape[1]
        names = (picture[:, :, 0] < 250).any(0)
        assert names[-16:].sum() == 0
        assert names[-17]

    def test_long_names_leave_room_for_the_images(self, tmp_path: Path) -> None:
        save_grid(torch.zeros(1, 3, 8, 8), ["European fire salamander, Salamandra salamandra"], 1, tmp_path / "i.png")
        assert left_of_images(pixels(tmp_path / "i.png")) <= 192

    def test_takes_images_that_need_a_gradient_and_stray_from_0_and_1(self, tmp_path: Path) -> None:
        images = torch.tensor([-0.5, 1.5]).view(2, 1, 1, 1).expand(2, 1, 8, 8).requires_grad_()
        save_grid(images, ["a"], 2, tmp_path / "images.png")
        picture = pixels(tmp_path / "images.png")
        left = left_of_images(picture)
        assert cells(picture, (16, left), 64, 1, 2).tolist() == [[0, 255]]

    def test_without_pillow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(UserError, match=r"images.png .* pip install 'ddfast\[plot\]'"):
            save_grid(torch.zeros(1, 1, 8, 8), ["a"], 1, tmp_path / "images.png")


def logged(count: int, **terms: float) -> list[dict[str, Any]]:
    return [{"iteration": i, "seconds": 0.1 * i, **{k: v / (i + 1) for k, v in terms.items()}} for i in range(count)]


def plotted(path: Path, **changes: Any) -> np.ndarray:
    arguments: dict[str, Any] = {"metrics": [], "curve": [], "evaluation": {}, "title": "digits"} | changes
    save_curve(path, **arguments)
    return pixels(path)


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[bool, bool]:
    """Whether a colour is in the left and in the right panel."""
    found = (picture == colour).all(-1)
    half = picture.shape[1] // 2
    return bool(found[:, :half].any()), bool(found[:, half:].any())


POINTS = [{"iteration": i, "mean": 80 + i / 10, "std": 1.0} for i in range(0, 101, 20)]


class TestCurve:
    def test_draws_the_curve_the_baselines_and_the_terms(self, tmp_path: Path) -> None:
        metrics = logged(100, loss=9.0, distribution_matching=8.0, covariance_matching=100.0)
        picture = plotted(tmp_path / "curve.png", metrics=metrics, curve=POINTS, evaluation=EVALUATION)
        assert picture.shape == (600, 1440, 3)
        assert has(picture, BLUE) == (True, True)
        assert has(picture, VERMILION) == (True, True)
        assert has(picture, GREEN) == (True, False)

    @pytest.mark.parametrize(
        ("changes", "drawn"),
        [
            ({}, (False, False)),
            ({"curve": POINTS}, (True, False)),
            ({"curve": POINTS[:1]}, (True, False)),
            ({"evaluation": EVALUATION}, (False, False)),
            ({"evaluation": {"random": EVALUATION["random"]}}, (False, False)),
            ({"metrics": logged(3, loss=1.0, matching=2.0)}, (False, True)),
            ({"metrics": logged(1, loss=1.0, matching=2.0)}, (False, True)),
            ({"metrics": logged(500, loss=1.0, matching=-2.0)}, (False, True)),
            ({"metrics": logged(500, loss=1.0, matching=float("nan"))}, (False, True)),
            ({"metrics": [{"iteration": 0, "seconds": 1.0}]}, (False, False)),
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_whatever_is_missing_is_left_out(
        self, tmp_path: Path, changes: dict[str, Any], drawn: tuple[bool, bool]
    ) -> None:
        assert has(plotted(tmp_path / "curve.png", **changes), BLUE) == drawn

    def test_a_term_may_be_missing_from_some_lines(self, tmp_path: Path) -> None:
        metrics = logged(30, loss=1.0)
        metrics[10]["cross_entropy"] = 2.0
        metrics[20]["cross_entropy"] = 1.0
        assert has(plotted(tmp_path / "curve.png", metrics=metrics), BLUE) == (False, True)

    def test_twenty_thousand_iterations_of_ten_terms(self, tmp_path: Path) -> None:
        terms = {f"term_{i}": 10.0**i for i in range(10)}
        assert has(plotted(tmp_path / "curve.png", metrics=logged(20_000, **terms)), VERMILION) == (False, True)

    def test_a_title_is_no_formula(self, tmp_path: Path) -> None:
        plotted(tmp_path / "curve.png", title="$^a$ folder_$")

    def test_without_matplotlib(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(UserError, match=r"curve.png .* pip install 'ddfast\[plot\]'"):
            plotted(tmp_path / "curve.png")

    def test_leaves_pyplot_alone(self, tmp_path: Path) -> None:
        sys.modules.pop("matplotlib.pyplot", None)
        plotted(tmp_path / "curve.png")
        assert "matplotlib.pyplot" not in sys.modules


class TestAtomicWrites:
    def test_leave_one_file(self, tmp_path: Path) -> None:
        for _ in range(2):
            plotted(tmp_path / "curve.png")
            grid(tmp_path / "images.png", (1, 8, 8), 1, 1)
        assert sorted(os.listdir(tmp_path)) == ["curve.png", "images.png"]

    def test_that_fail_keep_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "images.png").write_text("old")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("ddfast.files.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            grid(tmp_path / "images.png", (1, 8, 8), 1, 1)
        assert os.listdir(tmp_path) == ["images.png"]
        assert (tmp_path / "images.png").read_text() == "old"


def text(table: Table) -> list[list[str]]:
    """The words of every line, cut where two spaces are."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in capture.get().splitlines()]


class TestTables:
    def test_evaluation(self) -> None:
        best = {"iteration": 1800, "mean": 97.0, "std": 0.2}
        assert text(evaluation_table(EVALUATION | {"best": best})) == [
            ["trained on", "images", "accuracy", "networks"],
            ["random real images", "100", "83.1 ± 1.2 %", "2"],
            ["distilled images", "100", "96.9 ± 0.3 %", "3"],
            ["whole training set", "–", "98.2 ± 0.1 %", "2"],
            ["best (iteration 1,800, picked on test images)", "–", "97.0 ± 0.2 %", "–"],
        ]

    def test_evaluation_shows_what_there_is(self) -> None:
        assert len(text(evaluation_table({"distilled": EVALUATION["distilled"]}))) == 2
        assert len(text(evaluation_table({}))) == 1

    def test_classes(self) -> None:
        assert text(class_table(EVALUATION, ["cat", "dog"])) == [
            ["class", "random real images", "distilled images"],
            ["cat", "90.0", "99.0"],
            ["dog", "76.2", "94.8"],
        ]
