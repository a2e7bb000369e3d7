"""Terms that are read some iterations late: the same files as if they were read at once, whatever ends the run."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import (
    ALL,
    NO_PICTURES,
    POOL,
    SMALL,
    at_call,
    contents,
    ddfast,
    make_config,
    options,
    run_here,
    save_npz,
    toy,
)
from rich.console import Console
from test_resume import ended
from torch import Tensor

from ddfast.distill import late as lates
from ddfast.distill import run
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder, State
from ddfast.distill.late import LATE, Late
from ddfast.distill.loop import Distiller
from ddfast.errors import RunFailed
from ddfast.report.progress import Meter
from ddfast.signals import Interrupted

CPU = torch.device("cpu")


class TestRows:
    def put(self, late: Late, numbers: range, every: int = 1) -> list[list[int]]:
        """Iterations of the rows that are due after each of `numbers`; the place of the terms is always the same."""
        terms, due = torch.zeros(5), []
        for number in numbers:
            terms.fill_(number)
            if number % every == 0:
                late.put(number, terms)
            rows = late.due(number)
            assert all(values == [iteration] * 5 for iteration, values in rows)
            due.append([iteration for iteration, _ in rows])
        return due

    def test_are_due_at_once_on_a_cpu(self) -> None:
        late = Late(CPU)
        assert self.put(late, range(1, 4)) == [[1], [2], [3]]
        assert late.rest() == []

    def test_are_due_a_fixed_number_of_iterations_later(self) -> None:
        late = Late(CPU, 3)
        assert self.put(late, range(1, 7)) == [[], [], [], [1], [2], [3]]
        assert late.rest() == [(number, [number] * 5) for number in (4, 5, 6)]
        assert late.rest() == late.due(99) == []

    def test_are_late_by_iterations_where_few_are_logged(self) -> None:
        late = Late(CPU, 3)
        assert self.put(late, range(1, 12), every=4) == [[]] * 6 + [[4]] + [[]] * 3 + [[8]]

    def test_wait_for_their_own_copy_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a GPU, by an event behind it."""
        log: list[str] = []

        class Event:
            made = 0

            def __init__(self) -> None:
                self.number, Event.made = Event.made, Event.made + 1

            def record(self) -> None:
                log.append(f"record {self.number}")

            def synchronize(self) -> None:
                log.append(f"wait for {self.number}")

        monkeypatch.setattr(torch.cuda, "Event", Event)
        late = Late(torch.device("cuda"))
        self.put(late, range(LATE + 1))
        assert log == [*(f"record {number}" for number in range(LATE + 1)), "wait for 0"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Ten iterations, a checkpoint after every fifth."""
    return make_config(tmp_path_factory.mktemp("given")).replace(iterations=10, checkpoint_every=5)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "save_grid", lambda *_: None)
    monkeypatch.setattr(run, "save_curve", lambda *_, **__: None)


@pytest.fixture
def whole(config: Config, tmp_path: Path) -> dict[str, Any]:
    """The files of a run that reads its terms at once."""
    run_here(config, tmp_path / "whole")
    return contents(tmp_path / "whole")


def delay(patch: pytest.MonkeyPatch, iterations: int) -> None:
    patch.setattr(run, "Late", partial(Late, delay=iterations))


def at_iteration(patch: pytest.MonkeyPatch, number: int, action: Callable[[State], object]) -> None:
    """Does `action` before the iteration of that number, counted from 1."""
    original = Distiller.iterate

    def iterate(self: Distiller, state: State) -> Tensor:
        if state.iteration == number - 1:
            action(state)
        return original(self, state)

    patch.setattr(Distiller, "iterate", iterate)


@pytest.mark.parametrize("iterations", [1, 3, 99])
@pytest.mark.parametrize("keys", [{}, {"log_every": 3}, {"eval_every": 4}, {"checkpoint_every": 1}], ids=str)
def test_the_files_are_those_of_a_run_that_reads_at_once(
    iterations: int, keys: dict[str, Any], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.replace(**keys)
    run_here(config, tmp_path / "whole")
    delay(monkeypatch, iterations)
    late = []
    original = RunFolder.log

    def log(self: RunFolder, line: dict[str, Any]) -> None:
        late.append(line["iteration"])
        original(self, line)

    monkeypatch.setattr(RunFolder, "log", log)
    run_here(config, tmp_path / "late")
    assert contents(tmp_path / "late") == contents(tmp_path / "whole")
    every = config.log_every
    assert late == list(range(every, 11, every)), "each line once, and in order"


@pytest.mark.parametrize("iterations", [2, 99])
def test_a_checkpoint_has_its_lines_and_a_point_of_the_curve_too(
    iterations: int, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delay(monkeypatch, iterations)
    seen = []

    def save(self: RunFolder, state: State, *_: Any) -> None:
        seen.append(("checkpoint", state.iteration, len(self.lines("metrics.jsonl"))))

    def evaluate(*_: Any) -> dict[str, Any]:
        seen.append(("point", seen[-1][1], len(RunFolder(tmp_path).lines("metrics.jsonl"))))
        return {"mean": 0.0, "std": 0.0, "runs": [0.0]}

    monkeypatch.setattr(RunFolder, "save_state", save)
    monkeypatch.setattr(run, "evaluate_distilled", evaluate)
    monkeypatch.setattr(run, "evaluate_all", lambda *_: {"distilled": evaluate()})
    run_here(config.replace(eval_every=4, tensorboard=False), tmp_path)
    assert [(what, done) for what, done, _ in seen if what == "checkpoint"] == [
        ("checkpoint", done) for done in (0, 4, 5, 8, 10)
    ]
    assert all(lines == done for _, done, lines in seen)


@pytest.mark.parametrize("number", [2, 5, 7])
def test_a_loss_that_is_not_finite_is_named_by_its_iteration_and_kept_out_of_checkpoints(
    number: int, config: Config, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed before the next checkpoint, whose images would not be finite either."""
    with pytest.MonkeyPatch.context() as patch:
        delay(patch, 99)
        at_iteration(patch, number, lambda state: state.images.fill_(float("nan")))
        with pytest.raises(RunFailed) as failed:
            run_here(config, tmp_path / "run")
    kept = 5 if number > 5 else 0
    assert str(failed.value).startswith(f"the loss of iteration {number} is not finite (loss nan, ")
    assert f"the last good checkpoint, of iteration {kept}, is kept in" in str(failed.value)
    held = RunFolder(tmp_path / "run").load_state(CPU)
    assert held.iteration == kept
    assert held.images.isfinite().all()
    assert [line["iteration"] for line in RunFolder(tmp_path / "run").lines("metrics.jsonl")] == [*range(1, number)]
    delay(monkeypatch, 3)
    run_here(config, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == whole


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_loses_no_line(signum: signal.Signals, config: Config, whole: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        delay(patch, 99)
        at_iteration(patch, 3, lambda state: os.kill(os.getpid(), signum))
        with pytest.raises(Interrupted) as stopped:
            run_here(config, tmp_path / "run")
    assert stopped.value.exit_code == 128 + signum
    folder = RunFolder(tmp_path / "run")
    assert folder.load_state(CPU).iteration == 3
    assert [line["iteration"] for line in folder.lines("metrics.jsonl")] == [1, 2, 3]
    run_here(config, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == whole


def test_a_signal_after_a_loss_that_is_not_finite_leaves_no_checkpoint_of_it(config: Config, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        delay(patch, 99)

        def both(state: State) -> None:
            state.images.fill_(float("nan"))
            os.kill(os.getpid(), signal.SIGTERM)

        at_iteration(patch, 3, both)
        with pytest.raises(RunFailed, match="the loss of iteration 3 is not finite"):
            run_here(config, tmp_path / "run")
    assert RunFolder(tmp_path / "run").load_state(CPU).iteration == 0


def test_an_end_anywhere_is_made_good_by_resuming(
    config: Config, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill loses comes after the last checkpoint."""
    delay(monkeypatch, 3)
    places = 0
    for before in range(2, 99, 2):
        path = tmp_path / str(before)
        with ended(before):
            run_here(config, path)
            break
        places += 1
        lines, state = RunFolder(path).lines("metrics.jsonl"), RunFolder(path).load_state(CPU)
        assert len(lines) >= (state.iteration if state else 0)
        run_here(Config.load(path / "config.toml"), path, resume=True)
        assert contents(path) == whole
    assert places > 10


def test_the_board_and_the_meter_show_what_is_logged(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delay(monkeypatch, 3)
    shown: list[Any] = []
    monkeypatch.setattr(run.Board, "scalars", lambda self, tag, step, values: shown.append((step, values)))
    notes: list[str] = []
    monkeypatch.setattr(Meter, "step", lambda self, note="": notes.append(note))
    run.Run(config, tmp_path / "run", False, Console(quiet=True))()
    lines = RunFolder(tmp_path / "run").lines("metrics.jsonl")
    assert shown == [(line["iteration"], {key: line[key] for key in line if key != "iteration"}) for line in lines]
    expected = [f"loss {line['loss']:.4g}" for line in lines]
    found = [note.split("  ")[0] for note in notes]
    # A checkpoint after the fifth has read all that there was.
    assert found == ["", "", "", expected[0], expected[1], *[expected[4]] * 3, expected[5], expected[6]]


def test_processes_end_as_they_do_where_terms_are_read_at_once(tmp_path: Path) -> None:
    """By a loss that is not finite with 3, by SIGTERM with 143; and what they leave goes on as if nothing had been."""
    save_npz(tmp_path / "data", toy())
    keys = {**SMALL, **ALL, **POOL, "ipc": 2, "batch_real": 8, "iterations": 8, "checkpoint_every": 3, "eval_every": 0}
    late = "import functools, ddfast.distill.run as run\nrun.Late = functools.partial(run.Late, delay=4)\n"
    ends = {
        "whole": (0, ""),
        "nan": (3, "arguments[1].images.fill_(float('nan'))"),
        "term": (143, "os.kill(os.getpid(), 15)"),
        "kill": (-9, "os.kill(os.getpid(), 9)"),
    }
    for out, (code, action) in ends.items():
        words = ["distill", "--data", "./data", "--out", out, *options(keys)]
        setup = at_call(5 if action else 99, "ddfast.distill.loop:Distiller.iterate", action or "pass")
        outcome = ddfast(*words, cwd=tmp_path, setup=setup + late)
        assert outcome.code == code, outcome.err
        if out == "nan":
            assert outcome.mistake(3).startswith("the loss of iteration 5 is not finite")
        resumed = ddfast("distill", "--resume", "--out", out, cwd=tmp_path, setup=NO_PICTURES + late)
        assert (resumed.code, resumed.err) == (0, "")
        assert contents(tmp_path / out) == contents(tmp_path / "whole")


def test_the_delay_is_that_of_a_gpu_alone() -> None:
    assert lates.LATE >= 1
    assert (Late(torch.device("cuda"))._delay, Late(CPU)._delay) == (LATE, 0)
