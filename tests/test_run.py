"""A run folder: what it holds, and that a run which was ended anywhere goes on as if nothing had happened."""

import io
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from engine import ALL, POOL, SMALL, contents, make_pool, run_here, save_npz, toy
from rich.console import Console

import ddfast
from ddfast.distill import run
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder, State
from ddfast.distill.loop import Distiller
from ddfast.distill.plan import Plan
from ddfast.errors import RunFailed, UserError


class Crash(BaseException):
    """The end of a process, as far as it can be had without ending this one."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_npz(tmp_path_factory.mktemp("data") / "toy", toy())


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    make_pool(folder, toy(), 2)
    return folder


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "save_grid", lambda *_: None)
    monkeypatch.setattr(run, "save_curve", lambda *_, **__: None)


@pytest.fixture
def config(data: Path, pool: Path) -> Config:
    keys = {**SMALL, **ALL, "data": str(data), "pool": str(pool), "epochs": 1}
    return Config(**keys, ipc=2, batch_real=8, iterations=6, checkpoint_every=2, eval_every=0)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestFolder:
    @pytest.fixture
    def finished(self, config: Config, tmp_path: Path) -> Path:
        config = config.replace(eval_every=None, log_every=2, whole_epochs=1, repeats=2, recipe="my/recipe")
        run_here(config, tmp_path / "run")
        return tmp_path / "run"

    def test_holds_these_files_and_no_others(self, config: Config, tmp_path: Path, finished: Path) -> None:
        usual = {"config.toml", "metrics.jsonl", "synthetic.safetensors", "checkpoint.safetensors"}
        assert set(contents(finished)) == usual | {"evaluation.json"}
        run_here(config, tmp_path / "no evaluation")
        assert set(contents(tmp_path / "no evaluation")) == usual
        run_here(config.replace(eval_every=3), tmp_path / "curve")
        assert set(contents(tmp_path / "curve")) == usual | {"evaluation.json", "curve.jsonl"}

    def test_config_is_what_ran(self, config: Config, finished: Path) -> None:
        config = config.replace(eval_every=None, log_every=2, whole_epochs=1, repeats=2, recipe="my/recipe")
        assert Config.load(finished / "config.toml") == config

    def test_metrics_have_every_term(self, finished: Path) -> None:
        logged = lines(finished / "metrics.jsonl")
        assert [line["iteration"] for line in logged] == [2, 4, 6]
        terms = (
            "distribution_matching",
            "covariance_matching",
            "class_centralization",
            "conditional_mutual_information",
        )
        for line in logged:
            assert list(line) == ["iteration", "loss", *terms]
            loss = sum(line[term] * weight for term, weight in zip(terms, ALL.values(), strict=True))
            assert line["loss"] == pytest.approx(loss)
            assert all(line[term] > 0 for term in terms)

    def test_the_synthetic_set_explains_itself(self, finished: Path) -> None:
        dataset = toy()
        with safetensors.safe_open(finished / "synthetic.safetensors", "pt") as file:
            images, labels, about = file.get_tensor("images"), file.get_tensor("labels"), file.metadata()
        assert (images.dtype, images.shape) == (torch.float32, (6, 1, 8, 8))
        assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 0, 1, 1, 2, 2])
        assert json.loads(about["classes"]) == ["c0", "c1", "c2"]
        assert json.loads(about["mean"]) == list(dataset.mean)
        assert json.loads(about["std"]) == list(dataset.std)
        assert (about["recipe"], about["version"]) == ("my/recipe", ddfast.__version__)
        assert torch.equal(images, RunFolder(finished).load_state(torch.device("cpu")).images)

    def test_evaluation_has_a_row_for_each_set(self, finished: Path) -> None:
        table = json.loads((finished / "evaluation.json").read_text())
        assert {row: (len(table[row]["runs"]), table[row]["images"]) for row in table} == {
            "random": (2, 6),
            "distilled": (2, 6),
            "whole": (2, 36),
        }
        for row in table.values():
            mean = sum(row["runs"]) / 2
            assert row["mean"] == pytest.approx(mean)
            assert row["std"] == pytest.approx(abs(row["runs"][0] - mean))
            assert all(0 <= accuracy <= 100 for accuracy in row["runs"])

    def test_images_start_real_or_as_noise(self, config: Config, tmp_path: Path) -> None:
        dataset = toy()
        everything = dataset.normalise(dataset.train.images)
        for init in ("real", "noise"):
            run_here(config.replace(init=init, iterations=1, image_lr=0.0), tmp_path / init)
        states = {init: RunFolder(tmp_path / init).load_state(torch.device("cpu")) for init in ("real", "noise")}
        found = (states["real"].images[:, None] == everything).flatten(2).all(2)
        rows = found.nonzero()[:, 1]
        assert found.sum(1).tolist() == [1] * 6
        assert dataset.train.labels[rows].tolist() == [0, 0, 1, 1, 2, 2]
        assert len(rows.unique()) == 6
        assert abs(states["noise"].images.mean()) < 0.2
        assert abs(states["noise"].images.std() - 1) < 0.1

    def test_more_real_images_than_there_are_is_refused(self, config: Config, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="ipc must be at most 12, the images of the smallest class"):
            run_here(config.replace(ipc=13), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_line_that_does_not_fit_on_the_disk_is_an_error(self, tmp_path: Path) -> None:
        """Even if a part of it does."""
        RunFolder(tmp_path).log({"iteration": 1})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 5, hard))
        try:
            with pytest.raises(RunFailed, match="cannot be written: File too large"):
                RunFolder(tmp_path).log({"iteration": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert RunFolder(tmp_path).lines("metrics.jsonl") == [{"iteration": 1}]


class TestEvaluationChangesNothing:
    def test_in_the_images_or_the_metrics(self, config: Config, tmp_path: Path) -> None:
        for every in (0, 1, None):
            torch.manual_seed(every or 0)
            run_here(config.replace(eval_every=every), tmp_path / str(every))
        with_, without, end = (contents(tmp_path / str(every)) for every in (1, 0, None))
        for name in ("checkpoint.safetensors", "synthetic.safetensors", "metrics.jsonl"):
            assert with_[name] == without[name] == end[name]

    def test_and_makes_a_point_at_every_nth_iteration(self, config: Config, tmp_path: Path) -> None:
        run_here(config.replace(eval_every=4), tmp_path / "run")
        table = json.loads((tmp_path / "run" / "evaluation.json").read_text())
        curve = lines(tmp_path / "run" / "curve.jsonl")
        assert [point["iteration"] for point in curve] == [0, 4, 6]
        assert curve[-1] == {key: table["distilled"][key] for key in ("iteration", "mean", "std", "runs")}
        assert table["best"] in curve
        assert table["best"]["mean"] == max(point["mean"] for point in curve)
        run_here(config.replace(iterations=4, eval_every=None), tmp_path / "shorter")
        shorter = json.loads((tmp_path / "shorter" / "evaluation.json").read_text())
        assert shorter["distilled"]["runs"] == curve[1]["runs"]


@contextmanager
def ended(before: int) -> Iterator[None]:
    """Ends a run before its n-th deed: an iteration, a line of the metrics, a new file in the place of an old one."""
    left = [before]

    def deed(do: Callable[..., Any]) -> Callable[..., Any]:
        def count_down(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return do(*arguments, **keywords)

        return count_down

    with pytest.MonkeyPatch.context() as patch, suppress(Crash):
        patch.setattr(Distiller, "iterate", deed(Distiller.iterate))
        patch.setattr(RunFolder, "log", deed(RunFolder.log))
        patch.setattr("ddfast.files.os.replace", deed(os.replace))
        yield


class TestResume:
    def test_from_anywhere_equals_the_uninterrupted_run(self, config: Config, tmp_path: Path) -> None:
        config = config.replace(eval_every=4)
        run_here(config, tmp_path / "whole")
        whole = contents(tmp_path / "whole")
        for before in range(2, 99):  # from the first that leaves a config.toml
            path = tmp_path / str(before)
            with ended(before):
                run_here(config, path)
                break
            run_here(Config.load(path / "config.toml"), path, resume=True)
            assert contents(path) == whole
        assert before > 6 + 6 + 2 * 5, "every iteration, line and checkpoint was a place to end at"

    def test_again_and_again_equals_the_uninterrupted_run(self, config: Config, tmp_path: Path) -> None:
        run_here(config, tmp_path / "whole")
        with ended(5):
            run_here(config, tmp_path / "often")
        for _ in range(4):
            with ended(9):
                run_here(config, tmp_path / "often", resume=True)
        run_here(config, tmp_path / "often", resume=True)
        assert contents(tmp_path / "often") == contents(tmp_path / "whole")

    def test_makes_the_pool_of_the_run_first(self, config: Config, tmp_path: Path) -> None:
        config = config.replace(pool="", **POOL)
        run_here(config, tmp_path / "whole")
        for before in (2, 3, 5, 9):
            with ended(before):
                run_here(config, tmp_path / str(before))
            run_here(config, tmp_path / str(before), resume=True)
            assert contents(tmp_path / str(before)) == contents(tmp_path / "whole")

    def test_cuts_the_metrics_back_to_the_checkpoint(self, config: Config, tmp_path: Path) -> None:
        run_here(config, tmp_path / "whole")
        whole = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
        with ended(8):
            run_here(config.replace(checkpoint_every=99), tmp_path / "run")
        metrics = tmp_path / "run" / "metrics.jsonl"
        assert len(metrics.read_bytes().splitlines()) == 2
        for torn in (b"", whole[len(metrics.read_bytes()) :][:30], b'{"iteration": 9'):
            metrics.write_bytes(metrics.read_bytes() + torn)
            with ended(3):  # after its cut
                run_here(config.replace(checkpoint_every=99), tmp_path / "run", resume=True)
            assert metrics.read_bytes() in (b"", whole[: whole.index(b"\n") + 1])
        run_here(config.replace(checkpoint_every=99), tmp_path / "run", resume=True)
        assert metrics.read_bytes() == whole

    def test_of_a_finished_run_changes_nothing(self, config: Config, tmp_path: Path) -> None:
        config = config.replace(eval_every=4)
        first = run_here(config, tmp_path / "run")
        raw = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        assert run_here(config, tmp_path / "run", resume=True) == first
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == raw

    @pytest.mark.parametrize("every", [0, None, 2])
    def test_with_more_iterations_equals_a_longer_run(self, config: Config, tmp_path: Path, every: int | None) -> None:
        config = config.replace(eval_every=every)
        run_here(config, tmp_path / "long")
        run_here(config.replace(iterations=4), tmp_path / "run")
        run_here(config, tmp_path / "run", resume=True)
        assert contents(tmp_path / "run") == contents(tmp_path / "long")

    def test_keeps_the_plan_of_chunks(self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        used = []

        def iterate(self: Distiller, state: State) -> Any:
            used.append(self.plan)
            return original(self, state)

        original = Distiller.iterate
        monkeypatch.setattr(Distiller, "iterate", iterate)
        with pytest.MonkeyPatch.context() as patch, ended(9):
            patch.setattr(run, "make_plan", lambda *_, **__: Plan(2, 5))
            run_here(config, tmp_path / "run")
        assert len(used) == 2
        run_here(config, tmp_path / "run", resume=True)
        assert set(used) == {Plan(2, 5)}
        state = RunFolder(tmp_path / "run").load_state(torch.device("cpu"))
        assert (state.classes, state.rows) == (2, 5)

    def test_uses_the_threads_of_before(self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """... and says so. Only the number is asked for and set here: this machine may not have so many."""
        wanted = []
        with pytest.MonkeyPatch.context() as patch, ended(9):
            patch.setattr(torch, "get_num_threads", lambda: 7)
            run_here(config, tmp_path / "run")
        monkeypatch.setattr(torch, "set_num_threads", wanted.append)
        console = Console(quiet=False, record=True, file=io.StringIO())
        run.Run(config, tmp_path / "run", True, console)()
        assert wanted == [7]
        assert "using 7 threads, as this run did before" in console.export_text()
        assert RunFolder(tmp_path / "run").load_state(torch.device("cpu")).threads == 7

    def test_starts_over_where_there_is_no_checkpoint_yet(self, config: Config, tmp_path: Path) -> None:
        run_here(config, tmp_path / "whole")
        with ended(2):
            run_here(config, tmp_path / "run")
        assert set(contents(tmp_path / "run")) == {"config.toml"}
        run_here(config, tmp_path / "run", resume=True)
        assert contents(tmp_path / "run") == contents(tmp_path / "whole")

    def test_names_a_broken_checkpoint(self, config: Config, tmp_path: Path) -> None:
        run_here(config, tmp_path / "run")
        path = tmp_path / "run" / "checkpoint.safetensors"
        for content in (path.read_bytes()[:100], b"", b"{}", (tmp_path / "run" / "synthetic.safetensors").read_bytes()):
            path.write_bytes(content)
            with pytest.raises(UserError, match=r"checkpoint\.safetensors is not a checkpoint of ddfast"):
                run_here(config, tmp_path / "run", resume=True)

    def test_is_asked_for_and_possible(self, config: Config, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"holds no run$"):
            run_here(config, tmp_path / "run", resume=True)
        run_here(config, tmp_path / "run")
        before = contents(tmp_path / "run")
        with pytest.raises(UserError, match=r"already holds a run; --resume continues it"):
            run_here(config, tmp_path / "run")
        assert contents(tmp_path / "run") == before
