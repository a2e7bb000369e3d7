"""Sweeps: every point once, on held-out images alone, whatever ends the work in between; and what is shown of them."""

import itertools
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import (
    NO_PICTURES,
    POOL,
    SMALL,
    at_call,
    contents,
    ddfast,
    ddfast_here,
    make_pool,
    options,
    save_npz,
    toy,
)
from PIL import Image
from rich.console import Console

from ddfast.data import Dataset
from ddfast.distill import pretrain, sweep
from ddfast.distill.config import Config
from ddfast.distill.loop import Distiller
from ddfast.distill.sweep import Sweep, summary
from ddfast.errors import RunFailed, UserError
from ddfast.evaluate import protocol, table
from ddfast.options import parse_grid
from ddfast.report import options_line, save_sweep, sweep_table

KEYS = {**SMALL, **POOL, "ipc": 2, "batch_real": 8, "iterations": 3, "checkpoint_every": 2, "repeats": 2}
GRID = {"covariance_weight": (0.0, 0.1), "cmi_weight": (0.0, 5.0)}
WORDS = ["--grid", "covariance_weight=0,0.1", "--grid", "cmi-weight=0,5", "--seeds", "2", "--out", "sweep"]
NAMES = [
    f"covariance_weight={covariance},cmi_weight={cmi},seed={seed}"
    for covariance in ("0", "0.1")
    for cmi in ("0", "5")
    for seed in (0, 1)
]


def sweep_here(folder: Path, grid: dict[str, Any] = GRID, resume: bool = False, **given: Any) -> dict[str, Any]:
    """A sweep of two seeds in this process, without a word."""
    given = {**KEYS, "data": str(save_npz(folder / "data", toy())), **given}
    given = {name: value for name, value in given.items() if name not in grid}
    return Sweep(Config(), given, grid, 2, folder / "sweep", resume, Console(quiet=True))()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a sweep was, that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    save_npz(folder / "data", toy())
    outcome = ddfast("sweep", "--data", "./data", *options(KEYS), *WORDS, cwd=folder, setup=NO_PICTURES)
    assert (outcome.code, outcome.err) == (0, "")
    (folder / "out").write_text(outcome.out)
    return folder


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep" / "sweep.json").read_text())


def timeless(folder: Path) -> dict[str, Any]:
    """All that a sweep left, without seconds and the picture, which is drawn of the rest."""
    found = contents(folder / "sweep")
    found.pop("sweep.png")
    return {**found, "sweep.json": re.sub(rb'"seconds": [^,\n]*', b"", found["sweep.json"])}


class TestGrid:
    def test_has_the_types_of_its_keys(self) -> None:
        words = ["ipc=1,10", "cmi-weight=0, 1e-3,0.0", "local=rows,channels", "alpha=none,0.5", "graph=true,false"]
        grid = parse_grid(words)
        assert grid == {
            "ipc": (1, 10),
            "cmi_weight": (0.0, 0.001),
            "local": ("rows", "channels"),
            "alpha": (None, 0.5),
            "graph": (True, False),
        }
        assert parse_grid(["norm=none,group"]) == {"norm": ("none", "group")}, "a norm of its own is none of these"
        assert [type(value) for value in grid["cmi_weight"]] == [float, float]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["cmi_weigth=1"], "grid has an unknown key 'cmi_weigth'; did you mean 'cmi_weight'?"),
            (["cmi_weight"], "grid must be KEY=VALUE,VALUE and so on, got 'cmi_weight'"),
            (["cmi_weight="], "grid must be KEY=VALUE,VALUE and so on, got 'cmi_weight='"),
            (["seed=1,2"], "grid must not vary seed, which is the same for all points"),
            (["holdout=0.1,0.2"], "grid must not vary holdout"),
            (["ipc=1", "ipc=2"], "grid has ipc twice"),
        ],
    )
    def test_refuses(self, words: list[str], said: str) -> None:
        with pytest.raises(UserError, match=f"^{re.escape(said)}"):
            parse_grid(words)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown key": (["--grid", "widht=3,4"], "grid has an unknown key 'widht'; did you mean 'width'?"),
    "wrong type": (["--grid", "image_lr=1,fast"], "image_lr must be a number, got 'fast'"),
    "half a number": (["--grid", "ipc=1,1.5"], "ipc must be an integer, got '1.5'"),
    "out of bounds": (["--grid", "ipc=1,0"], "ipc must be at least 1, got 0"),
    "more than stay": (["--grid", "ipc=9,10"], "ipc must be at most 9, the images of the smallest class of ./data"),
    "given twice": (["--grid", "ipc=1,2", "--ipc", "3"], "ipc is given both as an option and in the grid"),
    "no grid": ([], "Missing option '--grid'"),
    "no seeds": (["--grid", "ipc=1", "--seeds", "0"], "--seeds"),
    "test images": (["--grid", "ipc=1", "--holdout", "0"], "holdout must not be 0 in a sweep"),
    "all held out": (["--grid", "ipc=1", "--holdout", "1"], "holdout must lie between 0 and 1"),
    "no evaluation": (["--grid", "eval_every=1,0"], "eval_every must not be 0 in a sweep"),
    "too deep": (["--grid", "depth=1,9"], "depth must leave at least one pixel of 8x8 images, got 9"),
    "no pool": (["--grid", "cmi_weight=0,1"], "cmi_weight needs pre-trained networks: give --pool"),
    "a pool that cannot be built": (
        ["--grid", "cmi_weight=0,1", "--pool-count", "1", "--pool-network", "vgg"],
        "there is no network 'vgg'",
    ),
    "a pool that saw what is held out": (
        ["--grid", "cmi_weight=0,1", "--pool", "pool"],
        "pool is a pool for other data: its holdout is 0.0, that of the run 0.25",
    ),
    "nothing to resume": (["--grid", "ipc=1", "--resume"], "new holds no sweep"),
    "a sweep that is there": (["--grid", "ipc=1", "--out", "sweep"], "sweep already holds a sweep; --resume continues"),
    "another sweep": (
        ["--grid", "cmi_weight=0,5", "--covariance-weight", "0", "--resume", "--out", "other"],
        "image_lr is 1.0 in other/cmi_weight=0,seed=0, not 0.5; another --out begins anew",
    ),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a pool of all training images, a sweep, and another one that holds a run."""
    folder = tmp_path_factory.mktemp("given")
    save_npz(folder / "data", toy())
    make_pool(folder / "pool", toy())
    for name in ("sweep", "other/cmi_weight=0,seed=0"):
        (folder / name).mkdir(parents=True)
    for name in ("sweep", "other"):
        (folder / name / "sweep.json").write_text(json.dumps(dict.fromkeys(sweep.WRITTEN)))
    keys = {**SMALL, **POOL, "data": "./data", "ipc": 2, "covariance_weight": 0.0, "holdout": 0.25}
    (folder / "other/cmi_weight=0,seed=0/config.toml").write_text(Config(**keys).dumps())
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_written(given: Path, mistake: str) -> None:
    words, said = MISTAKES[mistake]
    out = [] if "--out" in words else ["--out", "new"]
    keys = {**SMALL, "ipc": 2, **({**POOL, "image_lr": 0.5} if mistake == "another sweep" else {})}
    extra = options({name: value for name, value in keys.items() if f"{name}=" not in str(words)})
    before = sorted(given.rglob("*"))
    assert said in ddfast_here("sweep", "--data", "./data", *extra, *out, *words, cwd=given).mistake(2)
    assert sorted(given.rglob("*")) == before


class TestSweep:
    def test_runs_every_point_once_for_each_seed(self, whole: Path) -> None:
        assert sorted(path.name for path in (whole / "sweep").iterdir()) == sorted(
            [*NAMES, "pool", "sweep.json", "sweep.png"]
        )
        for name in NAMES:
            values = dict(word.split("=") for word in name.split(","))
            config = Config.load(whole / "sweep" / name / "config.toml")
            expected = {**KEYS, "data": "./data", "holdout": 0.25, "seed": int(values["seed"])}
            expected |= {key: float(values[key]) for key in GRID}
            expected |= {"pool": "sweep/pool" if values["cmi_weight"] != "0" else ""}
            assert config == Config(**expected)

    def test_writes_down_what_the_runs_found(self, whole: Path) -> None:
        found = results(whole)
        assert found["grid"] == {name: list(values) for name, values in GRID.items()}
        assert (found["seeds"], found["holdout"]) == ([0, 1], 0.25)
        assert [run["folder"] for point in found["points"] for run in point["runs"]] == NAMES
        for point in found["points"]:
            every = []
            for run in point["runs"]:
                evaluation = json.loads((whole / "sweep" / run["folder"] / "evaluation.json").read_text())
                assert list(evaluation) == ["distilled"], "what is the same for all points is not repeated"
                assert run["accuracies"] == evaluation["distilled"]["runs"]
                assert 0 < run["seconds"] < 60
                every += run["accuracies"]
            assert (point["mean"], point["std"]) == pytest.approx((np.mean(every), np.std(every)))

    def test_shows_it(self, whole: Path) -> None:
        lines = (whole / "out").read_text().splitlines()
        (head,) = (number for number, line in enumerate(lines) if line.startswith("covariance_weight "))
        shown = [line.split() for line in lines[head + 1 : head + 6]]
        points = sorted(results(whole)["points"], key=lambda point: -point["mean"])
        for words, point in zip(shown, points, strict=False):
            keys = [str(value).removesuffix(".0") for value in point["keys"].values()]
            assert words[:7] == [*keys, f"{point['mean']:.1f}", "±", f"{point['std']:.1f}", "%", "4"]
        assert shown[0][7:] == ["best"]
        random = results(whole)["random"]
        assert shown[4] == ["random", "real", "images", f"{random['mean']:.1f}", "±", f"{random['std']:.1f}", "%", "2"]
        error = f"within error: at most one standard error ({points[0]['error']:.1f}) below the best"
        assert error in lines
        assert f"the best: {options_line(points[0]['keys'])}" in lines
        assert lines[-1] == "picture: sweep/sweep.png"
        assert ddfast("report", "sweep", cwd=whole).out.splitlines() == lines[head:]

    def test_a_point_is_an_ordinary_run(self, whole: Path) -> None:
        outcome = ddfast("report", f"sweep/{NAMES[3]}", cwd=whole)
        assert (outcome.code, outcome.err) == (0, "")
        assert "distilled images" in outcome.out

    def test_trains_one_pool_and_one_set_of_random_networks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trained, random = [], []
        train, evaluate = pretrain._pretrain_one, table.evaluate_random
        monkeypatch.setattr(pretrain, "_pretrain_one", lambda *args: trained.append(1) or train(*args))
        monkeypatch.setattr(table, "evaluate_random", lambda *args: random.append(1) or evaluate(*args))
        sweep_here(tmp_path)
        assert (len(trained), len(random)) == (2, 1)

    def test_shows_no_random_images_where_points_differ_in_them(self, tmp_path: Path) -> None:
        found = sweep_here(tmp_path, {"ipc": (1, 2)}, iterations=1)
        assert found["random"] is None

    def test_trains_a_pool_for_each_value_of_a_key_of_pools(self, tmp_path: Path) -> None:
        sweep_here(tmp_path, {"pool_width": (2, 4)}, cmi_weight=1.0, iterations=1)
        for width in (2, 4):
            about = json.loads((tmp_path / "sweep" / f"pool,pool_width={width}" / "pool.json").read_text())
            assert (about["width"], about["holdout"]) == (width, 0.25)

    def test_takes_a_pool_of_the_same_holdout(self, tmp_path: Path) -> None:
        pool = tmp_path / "mine"
        make_pool(pool, toy().holdout(0.25))
        found = sweep_here(tmp_path, {"image_lr": (1.0,)}, cmi_weight=1.0, pool=str(pool), iterations=1)
        assert Config.load(tmp_path / "sweep" / "image_lr=1,seed=0" / "config.toml").pool == str(pool)
        assert found["points"][0]["mean"] is not None
        assert not (tmp_path / "sweep" / "pool").exists()

    def test_goes_on_beside_a_point_that_fails(self, tmp_path: Path) -> None:
        found = sweep_here(tmp_path, {"covariance_weight": (1e300, 0.01)})
        bad, good = found["points"]
        assert ["not finite" in run["failed"] for run in bad["runs"]] == [True, True]
        assert (bad["mean"], good["mean"]) == (None, pytest.approx(good["mean"]))
        lines = _lines(sweep_table(found))
        assert lines[1].split()[0] == "0.01"
        assert lines[2].split() == ["1e+300", "–", "0", "2", "of", "2", "runs", "failed"]
        with Image.open(tmp_path / "sweep" / "sweep.png") as picture:
            assert picture.size == (960, 600)

    def test_fails_where_every_point_fails(self, tmp_path: Path) -> None:
        save_npz(tmp_path / "data", toy())
        words = ["sweep", "--data", "./data", *options(KEYS), "--grid", "covariance_weight=1e300", "--out", "sweep"]
        outcome = ddfast(*words, cwd=tmp_path, setup=NO_PICTURES)
        assert outcome.mistake(3) == "no point of the grid came to its end"
        assert "2 of 2 runs failed" in outcome.out

    def test_varies_networks_of_any_kind(self, tmp_path: Path) -> None:
        """Of which one alone has a depth, and the base's width."""
        base, given = Config().replace(**KEYS), {"data": str(save_npz(tmp_path / "data", toy())), "iterations": 1}
        grid = {"network": ("convnet", "alexnet")}
        found = Sweep(base, given, grid, 1, tmp_path / "sweep", False, Console(quiet=True))()
        assert [point["mean"] is None for point in found["points"]] == [False, False]
        config = Config.load(tmp_path / "sweep" / "network=alexnet,seed=0" / "config.toml")
        assert (config.network, config.width, config.depth) == ("alexnet", None, None)

    def test_a_full_disk_ends_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        def iterate(*arguments: Any) -> torch.Tensor:
            monkeypatch.setattr("ddfast.files.os.fsync", full)
            return right(*arguments)

        right = Distiller.iterate
        monkeypatch.setattr(Distiller, "iterate", iterate)
        with pytest.raises(RunFailed, match="cannot be written: No space left on device"):
            sweep_here(tmp_path, {"image_lr": (0.5, 1.0)})
        assert [run for point in results(tmp_path)["points"] for run in point["runs"]] == []


def _inside(before: list[bool], do: Any) -> Any:
    """`do`, with a sign that it is at work."""

    def marked(*arguments: Any, **keywords: Any) -> Any:
        before.append(True)
        try:
            return do(*arguments, **keywords)
        finally:
            before.pop()

    return marked


def test_held_out_images_are_only_ever_tested_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image that is used is normalised first, and every image of the toy is another one."""
    testing: list[bool] = []
    used: dict[bool, set[bytes]] = {True: set(), False: set()}
    normalise = Dataset.normalise

    def look(self: Dataset, images: torch.Tensor) -> torch.Tensor:
        used[bool(testing)] |= {image.numpy().tobytes() for image in images.flatten(0, -4)}
        return normalise(self, images)

    monkeypatch.setattr(Dataset, "normalise", look)
    for module in (pretrain, protocol):
        monkeypatch.setattr(module, "accuracy", _inside(testing, module.accuracy))
    sweep_here(tmp_path, iterations=12)
    dataset = toy()
    train, test = ({image.numpy().tobytes() for image in split.images} for split in (dataset.train, dataset.test))
    held_out = {image.numpy().tobytes() for image in dataset.holdout(0.25).test.images}
    assert used[True] == held_out
    assert used[False] == train - held_out
    assert not test & (used[True] | used[False])


class TestGoingOn:
    @pytest.mark.parametrize(
        ("number", "target"),
        [
            (2, "ddfast.distill.pretrain:Steps.epoch"),
            (2, "ddfast.distill.loop:Distiller.iterate"),
            (9, "ddfast.distill.loop:Distiller.iterate"),
            (23, "ddfast.distill.loop:Distiller.iterate"),
            (4, "ddfast.evaluate.table.evaluate_images"),
        ],
    )
    def test_after_a_kill_becomes_what_was_not_interrupted(
        self, whole: Path, tmp_path: Path, number: int, target: str
    ) -> None:
        save_npz(tmp_path / "data", toy())
        words = ["sweep", "--data", "./data", *options(KEYS), *WORDS]
        setup = at_call(number, target, "os.kill(os.getpid(), 9)")
        assert ddfast(*words, cwd=tmp_path, setup=setup).code == -signal.SIGKILL
        done = {run["folder"] for point in results(tmp_path)["points"] for run in point["runs"]}
        before = {path: path.stat().st_mtime_ns for name in done for path in (tmp_path / "sweep" / name).iterdir()}
        assert len(done) < 8
        outcome = ddfast(*words, "--resume", cwd=tmp_path, setup=NO_PICTURES)
        assert (outcome.code, outcome.err) == (0, "")
        assert timeless(tmp_path) == timeless(whole)
        assert {path: path.stat().st_mtime_ns for path in before} == before, "what is done is not done again"

    def test_of_a_finished_sweep_does_nothing_but_draw(self, whole: Path) -> None:
        def changed() -> dict[Path, int]:
            paths = (path for path in (whole / "sweep").rglob("*") if path.is_file())
            return {path: path.stat().st_mtime_ns for path in paths if path.parent != whole / "sweep"}

        before, held = changed(), results(whole)
        words = ["sweep", "--data", "./data", *options(KEYS), *WORDS, "--resume"]
        setup = f"{NO_PICTURES}\nimport ddfast.training as t; t.Steps.epoch = None"
        assert ddfast(*words, cwd=whole, setup=setup).code == 0
        assert (changed(), results(whole)) == (before, held)

    def test_keeps_what_it_found_of_a_run_that_was_evaluated_otherwise(self, tmp_path: Path) -> None:
        before = sweep_here(tmp_path, {"image_lr": (1.0,)})
        run = "sweep/image_lr=1,seed=0"
        assert ddfast("evaluate", run, "--repeats", "3", cwd=tmp_path).code == 0
        assert len(json.loads((tmp_path / run / "evaluation.json").read_text())["distilled"]["runs"]) == 3
        assert sweep_here(tmp_path, {"image_lr": (1.0,)}, resume=True) == before

    def test_takes_more_values_and_seeds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sweep_here(tmp_path, {"image_lr": (1.0,)})
        iterations = []
        right = Distiller.iterate
        monkeypatch.setattr(Distiller, "iterate", lambda *args: iterations.append(1) or right(*args))
        found = sweep_here(tmp_path, {"image_lr": (0.5, 1.0)}, resume=True)
        assert len(iterations) == 2 * KEYS["iterations"]
        assert all(len(point["runs"]) == 2 for point in found["points"])

    def test_stops_at_a_signal(self, tmp_path: Path) -> None:
        save_npz(tmp_path / "data", toy())
        words = ["sweep", "--data", "./data", *options(KEYS), *WORDS]
        setup = at_call(5, "ddfast.distill.loop:Distiller.iterate", "os.kill(os.getpid(), signal.SIGTERM)")
        assert ddfast(*words, cwd=tmp_path, setup=setup).mistake(143) == "stopped by SIGTERM"
        assert len([run for point in results(tmp_path)["points"] for run in point["runs"]]) == 1

    @pytest.mark.parametrize("content", ["", "{", "[1]", "3", "{}", '{"version": "1"}'])
    def test_from_a_broken_file_is_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "sweep").mkdir()
        (tmp_path / "sweep" / "sweep.json").write_text(content)
        with pytest.raises(UserError, match=r"sweep\.json is not the result of a sweep: "):
            sweep_here(tmp_path, resume=True)
        assert os.listdir(tmp_path / "sweep") == ["sweep.json"]


class TestSummary:
    def test_is_over_all_networks(self) -> None:
        """Deviations 1 about 91 and 93: over four networks sqrt(10/3)/2 of error at the least, over two seeds 1."""
        found = summary([{"accuracies": [90.0, 92.0]}, {"accuracies": [92.0, 94.0]}], 2)
        assert found["mean"] == 92
        assert found["std"] == pytest.approx(2**0.5)
        assert found["error"] == pytest.approx(1.0)
        found = summary([{"accuracies": [90.0, 94.0]}, {"accuracies": [90.0, 94.0]}], 2)
        assert found["error"] == pytest.approx((16 / 3) ** 0.5 / 2), "two seeds that agree by chance are no certainty"

    def test_of_one_network_has_no_error(self) -> None:
        assert summary([{"accuracies": [90.0]}], 1) == {"mean": 90.0, "std": 0.0, "error": None}

    @pytest.mark.parametrize("runs", [[], [{"accuracies": [90.0]}], [{"accuracies": [90.0]}, {"failed": "nan"}]])
    def test_of_a_part_is_none(self, runs: list[dict[str, Any]]) -> None:
        assert summary(runs, 2) == {"mean": None, "std": None, "error": None}


def made(grid: dict[str, list[Any]], means: list[float | None], random: bool = True, error: float | None = 0.5) -> Any:
    """Results of one run of two networks a point."""
    points = []
    for values, mean in zip(itertools.product(*grid.values()), means, strict=True):
        runs = [] if mean is None else [{"seed": 0, "folder": "x", "accuracies": [mean - 1, mean + 1], "seconds": 1.0}]
        about = {"mean": mean, "std": 1.0, "error": error} if runs else summary([], 1)
        points.append({"keys": dict(zip(grid, values, strict=True)), "runs": runs, **about})
    row = {"mean": 70.0, "std": 2.0, "runs": [68.0, 72.0]}
    return {"grid": grid, "points": points, "random": row if random else None}


def _lines(table: Any) -> list[str]:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


class TestTable:
    def test_is_sorted_and_marks_what_cannot_be_told_from_the_best(self) -> None:
        lines = _lines(sweep_table(made({"alpha": [None, 0.1, 0.2, 0.3]}, [90.0, 90.4, 89.89, None])))
        assert [line.split() for line in lines] == [
            ["alpha", "held-out", "accuracy", "networks"],
            ["0.1", "90.4", "±", "1.0", "%", "2", "best"],
            ["none", "90.0", "±", "1.0", "%", "2", "within", "error"],
            ["0.2", "89.9", "±", "1.0", "%", "2"],
            ["0.3", "–", "0", "unfinished"],
            ["random", "real", "images", "70.0", "±", "2.0", "%", "2"],
        ]

    def test_says_nothing_of_an_error_that_nobody_knows(self) -> None:
        lines = _lines(sweep_table(made({"ipc": [1, 2]}, [90.0, 90.0], random=False, error=None)))
        assert [line.split()[0] for line in lines] == ["ipc", "1", "2"]
        assert "within" not in "".join(lines)

    def test_options_of_a_point(self) -> None:
        keys = {"cmi_weight": 0.0, "image_lr": 1e-5, "local": "rows", "graph": False, "alpha": None, "ipc": 10}
        assert options_line(keys) == "--cmi-weight 0 --image-lr 1e-05 --local rows --no-graph --ipc 10"


class TestPicture:
    @pytest.mark.parametrize(
        ("grid", "size"),
        [
            ({"cmi_weight": [0.0, 0.1, 1.0, 10.0]}, (960, 600)),
            ({"local": ["channels", "rows"]}, (960, 600)),
            ({"ipc": [1]}, (960, 600)),
            ({"cmi_weight": [0.0, 0.1, 1.0], "ipc": [1, 2]}, (684, 456)),
            ({"cmi_weight": [0.0, 0.1], "ipc": [1, 2], "local": ["channels", "rows"]}, (1200, 492)),
            ({"cmi_weight": list(range(10)), "ipc": list(range(10)), "local": ["rows"]}, (1200, 1680)),
        ],
    )
    @pytest.mark.parametrize(("random", "error"), [(True, 0.5), (False, None)])
    @pytest.mark.filterwarnings("error")
    def test_is_drawn_of_any_grid(
        self, tmp_path: Path, grid: dict[str, list[Any]], size: tuple[int, int], random: bool, error: float | None
    ) -> None:
        count = int(np.prod([len(values) for values in grid.values()]))
        means: list[float | None] = [80 + 7 * i % 11 for i in range(count)]
        if count > 4:
            means[1] = None
        save_sweep(tmp_path / "sweep.png", made(grid, means, random, error))
        with Image.open(tmp_path / "sweep.png") as picture:
            assert (picture.format, picture.size) == ("PNG", size)
            colours = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3)[::7]}
        assert len(colours) > 20

    def test_needs_matplotlib(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*_: Any) -> None:
            raise UserError("sweep.png is drawn by Matplotlib")

        monkeypatch.setattr(sweep, "save_sweep", missing)
        assert sweep_here(tmp_path, {"image_lr": (1.0,)}, iterations=1)["points"][0]["mean"] is not None
        assert not (tmp_path / "sweep" / "sweep.png").exists()
