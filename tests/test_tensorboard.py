"""What TensorBoard gets to see: the same as metrics.jsonl and curve.jsonl, once, whatever ended the run in between.

The quick tests put a writer in the place of TensorBoard's that keeps the two things they rest on: what is not flushed
is lost with its process, and a writer hides what others wrote from its purge_step on.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine import contents, make_config, run_here

from ddfast.distill import run
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder
from ddfast.distill.loop import Distiller
from ddfast.errors import UserError

Event = tuple[str, int, Any]


class Killed(BaseException):
    """The end of a process, as far as it can be had without ending this one."""


class Writer:
    """Of every folder, the events on its disk."""

    disk: dict[Path, list[Event]] = {}  # noqa: RUF012 - shared, as a disk is

    def __init__(self, path: str, purge_step: int) -> None:
        self.path, self.buffer = Path(path), []
        self.disk[self.path] = [event for event in self.disk.get(self.path, []) if event[1] < purge_step]

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.buffer.append((tag, step, value))

    def add_image(self, tag: str, pixels: np.ndarray, step: int, dataformats: str) -> None:
        assert (pixels.dtype, pixels.shape[2], dataformats) == (np.uint8, 3, "HWC")
        self.buffer.append((tag, step, pixels.tobytes()))

    def flush(self) -> None:
        self.disk[self.path] += self.buffer
        self.buffer = []

    def close(self) -> None:
        if not isinstance(sys.exc_info()[1], Killed):
            self.flush()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[Path, list[Event]]:
    monkeypatch.setattr(Writer, "disk", {})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    return Writer.disk


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_config(tmp_path_factory.mktemp("given")).replace(tensorboard=True, checkpoint_every=3)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "save_grid", lambda *_: None)
    monkeypatch.setattr(run, "save_curve", lambda *_, **__: None)


@contextmanager
def killed(before: int) -> Iterator[None]:
    """Ends a run before its n-th deed: an iteration, or a new file in the place of an old one."""
    left = [before]

    def deed(do: Any) -> Any:
        def count_down(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return do(*arguments, **keywords)

        return count_down

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(Distiller, "iterate", deed(Distiller.iterate))
        patch.setattr("ddfast.files.os.replace", deed(os.replace))
        yield


def expected(path: Path) -> set[Event]:
    """The scalars that the files of a run have."""
    folder = RunFolder(path)
    metrics = {
        (f"metrics/{k}", line["iteration"], v) for line in folder.lines("metrics.jsonl") for k, v in line.items()
    }
    points = folder.lines("curve.jsonl") or [folder.evaluation()["distilled"]]
    accuracy = {(f"accuracy/{k}", point["iteration"], point[k]) for point in points for k in ("mean", "std")}
    return {event for event in metrics | accuracy if event[0] != "metrics/iteration"}


def scalars(events: list[Event]) -> list[Event]:
    return [event for event in events if event[0] != "images"]


class TestBoard:
    @pytest.mark.parametrize("every", [None, 2])
    def test_has_what_the_files_have(
        self, disk: dict[Path, list[Event]], config: Config, tmp_path: Path, every: int | None
    ) -> None:
        run_here(config.replace(eval_every=every), tmp_path / "run")
        events = disk[tmp_path / "run" / "tensorboard"]
        assert set(scalars(events)) == expected(tmp_path / "run")
        assert len(set(events)) == len(events)
        pictures = {step: pixels for tag, step, pixels in events if tag == "images"}
        assert list(pictures) == ([6] if every is None else [0, 2, 4, 6])
        assert len(set(pictures.values())) == len(pictures)

    def test_has_metrics_once_after_a_kill_anywhere(
        self, disk: dict[Path, list[Event]], config: Config, tmp_path: Path
    ) -> None:
        config = config.replace(eval_every=4)
        run_here(config, tmp_path / "whole")
        whole = disk[tmp_path / "whole" / "tensorboard"]
        for before in range(2, 99):
            path = tmp_path / str(before)
            with killed(before):
                run_here(config, path)
                break
            run_here(Config.load(path / "config.toml"), path, resume=True)
            events = disk[path / "tensorboard"]
            assert set(events) == set(whole)
            metrics = [event for event in events if event[0].startswith("metrics")]
            assert len(metrics) == len(set(metrics))
        assert before > 6 + 2 * 4, "every iteration and file was a place to end at"

    def test_of_a_finished_run_gets_nothing_more(
        self, disk: dict[Path, list[Event]], config: Config, tmp_path: Path
    ) -> None:
        run_here(config, tmp_path / "run")
        before = list(disk[tmp_path / "run" / "tensorboard"])
        run_here(config, tmp_path / "run", resume=True)
        assert disk == {tmp_path / "run" / "tensorboard": before}

    def test_is_not_there_unless_it_is_wanted(
        self, disk: dict[Path, list[Event]], config: Config, tmp_path: Path
    ) -> None:
        run_here(config.replace(tensorboard=False, eval_every=3), tmp_path / "run")
        assert not disk

    def test_changes_no_other_file(self, disk: dict[Path, list[Event]], config: Config, tmp_path: Path) -> None:
        for wanted in (True, False):
            run_here(config.replace(tensorboard=wanted), tmp_path / str(wanted))
        with_, without = contents(tmp_path / "True"), contents(tmp_path / "False")
        assert [name for name in without if with_[name] != without[name]] == ["config.toml"]

    @pytest.mark.parametrize("missing", ["torch.utils.tensorboard", "PIL"])
    def test_without_its_packages(
        self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
    ) -> None:
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(UserError, match=r"^tensorboard needs packages .* pip install 'ddfast\[tensorboard\]'$"):
            run_here(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_with_tensorboard_itself(config: Config, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = tmp_path / "run"
    config = config.replace(eval_every=4, checkpoint_every=99)
    with killed(8):
        run_here(config, path)
    folder = RunFolder(path)
    assert len(folder.lines("metrics.jsonl")) > folder.load_state(torch.device("cpu")).iteration, "some come twice"
    run_here(config, path, resume=True)
    assert len(list((path / "tensorboard").iterdir())) == 2
    found = accumulator.EventAccumulator(str(path / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    events = [(tag, it.step, it.value) for tag in found.Tags()["scalars"] for it in found.Scalars(tag)]
    assert {(tag, step): value for tag, step, value in events} == pytest.approx(
        {(tag, step): value for tag, step, value in expected(path)}
    )
    assert len([it for it in events if it[0].startswith("metrics")]) == 6 * 5
    assert {image.step for image in found.Images("images")} == {0, 4, 6}
