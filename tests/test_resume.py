"""A run that was ended anywhere goes on as if nothing had happened: the same bits in the same files."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import POOL, contents, make_config, run_here
from rich.console import Console

from ddfast.distill import run
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder, State
from ddfast.distill.loop import Distiller
from ddfast.distill.plan import Plan
from ddfast.errors import UserError


class Crash(BaseException):
    """The end of a process, as far as it can be had without ending this one."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_config(tmp_path_factory.mktemp("given"))


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "save_grid", lambda *_: None)
    monkeypatch.setattr(run, "save_curve", lambda *_, **__: None)


@contextmanager
def ended(before: int) -> Iterator[None]:
    """Ends a run before its n-th deed: an iteration, a line of the metrics, a new file in the place of an old one.

    The fingerprint of the data, which only a new run writes, is not counted.
    """
    left = [before]

    def deed(do: Callable[..., Any]) -> Callable[..., Any]:
        def count_down(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= not str(arguments[-1]).endswith("data.json")
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

    def test_goes_on_with_the_networks_of_the_queue(self, config: Config, tmp_path: Path) -> None:
        keys = {"method": "idm", "partition": 2, "cross_entropy_weight": 0.1, "queue_every": 2, "queue_steps": 1}
        config = config.replace(**keys)
        run_here(config, tmp_path / "whole")
        for before in (3, 4, 7, 10, 11, 13, 16):
            with ended(before):
                run_here(config, tmp_path / str(before))
            run_here(config, tmp_path / str(before), resume=True)
            assert contents(tmp_path / str(before)) == contents(tmp_path / "whole")

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
        extended = contents(tmp_path / "run")
        if every is None:
            assert extended["curve.jsonl"].pop(0)["iteration"] == 4  # where it ended at first, and was evaluated
        assert extended == contents(tmp_path / "long")

    def test_keeps_the_plan_of_chunks(self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        used = []

        def iterate(self: Distiller, state: State) -> Any:
            used.append(self.plan)
            return original(self, state)

        original = Distiller.iterate
        monkeypatch.setattr(Distiller, "iterate", iterate)
        with pytest.MonkeyPatch.context() as patch, ended(9):
            patch.setattr(run, "make_plan", lambda *_, **__: Plan(2, 5, 1, 7))
            run_here(config, tmp_path / "run")
        assert len(used) == 2
        run_here(config, tmp_path / "run", resume=True)
        assert set(used) == {Plan(2, 5, 1, 7)}
        state = RunFolder(tmp_path / "run").load_state(torch.device("cpu"))
        assert state.plan == Plan(2, 5, 1, 7)

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

    def test_makes_no_point_of_the_curve_again(
        self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = config.replace(eval_every=2, iterations=4)
        with ended(16):
            run_here(config, tmp_path / "run")
        made = [point["iteration"] for point in RunFolder(tmp_path / "run").lines("curve.jsonl")]
        assert made == [0, 2]
        evaluated = []
        original = run.evaluate_distilled
        monkeypatch.setattr(run, "evaluate_distilled", lambda *args: evaluated.append(1) or original(*args))
        run_here(config, tmp_path / "run", resume=True)
        assert not evaluated, "the last one is a part of the table"

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
