"""A run folder: what it holds, and that an evaluation changes none of it."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import torch
from engine import ALL, contents, make_config, run_here, toy

import ddfast
from ddfast.distill import run
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder
from ddfast.distill.loop import Distiller
from ddfast.errors import RunFailed, UserError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_config(tmp_path_factory.mktemp("given"))


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "save_grid", lambda *_: None)
    monkeypatch.setattr(run, "save_curve", lambda *_, **__: None)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestFolder:
    @pytest.fixture
    def finished(self, config: Config, tmp_path: Path) -> Path:
        config = config.replace(eval_every=None, log_every=2, whole_epochs=1, repeats=2, recipe="my/recipe")
        run_here(config, tmp_path / "run")
        return tmp_path / "run"

    def test_holds_these_files_and_no_others(self, config: Config, tmp_path: Path, finished: Path) -> None:
        usual = {"config.toml", "data.json", "metrics.jsonl", "synthetic.safetensors", "checkpoint.safetensors"}
        assert set(contents(finished)) == usual | {"evaluation.json", "curve.jsonl"}
        run_here(config, tmp_path / "no evaluation")
        assert set(contents(tmp_path / "no evaluation")) == usual

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

    def test_the_synthetic_set_explains_itself(self, config: Config, finished: Path) -> None:
        dataset = toy()
        with safetensors.safe_open(finished / "synthetic.safetensors", "pt") as file:
            images, labels, about = file.get_tensor("images"), file.get_tensor("labels"), file.metadata()
        assert (images.dtype, images.shape) == (torch.float32, (6, 1, 8, 8))
        assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 0, 1, 1, 2, 2])
        assert json.loads(about["classes"]) == ["c0", "c1", "c2"]
        assert json.loads(about["mean"]) == list(dataset.mean)
        assert json.loads(about["std"]) == list(dataset.std)
        assert (about["recipe"], about["version"]) == ("my/recipe", ddfast.__version__)
        run_here(config.replace(iterations=1), finished.parent / "no recipe")
        with safetensors.safe_open(finished.parent / "no recipe" / "synthetic.safetensors", "pt") as file:
            assert file.metadata()["recipe"] == "data", "its name, and not where it lay"
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

    @pytest.mark.parametrize("init", ["real", "noise"])
    def test_images_start_by_the_seed(self, config: Config, tmp_path: Path, init: str) -> None:
        starts = []
        for path, seed in (("a", 0), ("b", 1), ("c", 0)):
            run_here(config.replace(init=init, seed=seed, iterations=1, image_lr=0.0), tmp_path / path)
            starts.append(RunFolder(tmp_path / path).load_state(torch.device("cpu")).images)
        assert torch.equal(starts[0], starts[2])
        assert not torch.equal(starts[0], starts[1])

    def test_the_plan_knows_how_many_real_images_there_are(self, config: Config, tmp_path: Path) -> None:
        config = config.replace(memory_budget="128KiB", iterations=1)
        plans = []
        for batch in (12, 13, 10**6):
            run_here(config.replace(batch_real=batch), tmp_path / str(batch))
            state = RunFolder(tmp_path / str(batch)).load_state(torch.device("cpu"))
            plans.append(state.plan)
        assert plans[0] == plans[1] == plans[2]
        assert plans[0].real <= 12

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
        recorded = ("iteration", "distill_seconds", "mean", "std", "runs")
        assert curve[-1] == {key: table["distilled"][key] for key in recorded}
        assert table["best"] in curve
        assert table["best"]["mean"] == max(point["mean"] for point in curve)
        run_here(config.replace(iterations=4, eval_every=None), tmp_path / "shorter")
        shorter = json.loads((tmp_path / "shorter" / "evaluation.json").read_text())
        assert shorter["distilled"]["runs"] == curve[1]["runs"]

    def test_whose_seconds_do_not_count(self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each iteration takes one of a clock that evaluations set forward by many."""
        now = [1000.0]

        def slow(do: Callable[..., Any], seconds: float) -> Callable[..., Any]:
            def done(*arguments: Any) -> Any:
                now[0] += seconds
                return do(*arguments)

            return done

        monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(run, "evaluate_distilled", slow(run.evaluate_distilled, 100.0))
        monkeypatch.setattr(Distiller, "iterate", slow(Distiller.iterate, 1.0))
        run_here(config.replace(iterations=3, eval_every=2), tmp_path)
        run_here(config.replace(eval_every=2), tmp_path, resume=True)
        assert [point["distill_seconds"] for point in lines(tmp_path / "curve.jsonl")] == [0, 2, 3, 4, 6]
        table = json.loads((tmp_path / "evaluation.json").read_text())
        assert table["distilled"]["distill_seconds"] == 6
