"""Runs that are killed, stopped, or run out of disk, as true processes: what is left, and that they go on from it."""

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from engine import ALL, NO_PICTURES, POOL, SMALL, Outcome, at_call, contents, ddfast, options, save_npz, start, toy

from ddfast.distill.folder import RunFolder

KEYS = {**SMALL, **ALL, **POOL, "ipc": 2, "batch_real": 8, "iterations": 8, "checkpoint_every": 3, "eval_every": 5}
ITERATE = "ddfast.distill.loop:Distiller.iterate"
REPLACE, FSYNC = "ddfast.files:os.replace", "ddfast.files:os.fsync"
NO_SPACE = "raise OSError(28, 'No space left on device')"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes run: with the data, and a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs")
    save_npz(folder / "data", toy())
    assert distill(folder, "whole").code == 0
    return folder


def words(out: str | Path, **keys: object) -> list[str]:
    return ["distill", "--data", "./data", "--out", str(out), *options({**KEYS, **keys})]


def distill(folder: Path, out: str, setup: str = NO_PICTURES, **keys: object) -> Outcome:
    return ddfast(*words(out, **keys), cwd=folder, setup=setup)


def resume(folder: Path, out: str, setup: str = NO_PICTURES) -> Outcome:
    return ddfast("distill", "--resume", "--out", out, cwd=folder, setup=setup)


def goes_on(folder: Path, out: str) -> None:
    """Resumed, it becomes the run that nothing interrupted."""
    outcome = resume(folder, out)
    assert (outcome.code, outcome.err) == (0, "")
    got, whole = contents(folder / out), contents(folder / "whole")
    assert set(got) == set(whole)
    assert [name for name in whole if got[name] != whole[name]] in ([], ["config.toml"])


def iteration(folder: Path, out: str) -> int:
    """Of the checkpoint, which must be there and whole."""
    state = RunFolder(folder / out).load_state(torch.device("cpu"))
    assert state is not None
    assert state.images.isfinite().all()
    return state.iteration


def leftovers(path: Path) -> list[str]:
    return [name for name in contents(path) if Path(name).name.startswith(".")]


class TestKilled:
    def test_at_random_moments(self, folder: Path) -> None:
        """Again and again, until it is through."""
        out, rng = folder / "random", random.Random()
        for _ in range(8):
            begun = out.joinpath("config.toml").exists()
            arguments = ["distill", "--resume", "--out", "random"] if begun else words("random")
            child = start(*arguments, cwd=folder, setup=NO_PICTURES)
            time.sleep(rng.uniform(0.05, 0.4))
            child.end(signal.SIGKILL)
        if not out.joinpath("config.toml").exists():
            distill(folder, "random")
        goes_on(folder, "random")

    @pytest.mark.parametrize("number", [3, 9, 10, 14])
    def test_in_the_middle_of_a_write(self, folder: Path, number: int) -> None:
        """What is half written then stands beside what was there before."""
        half = "os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)"
        setup = at_call(number, FSYNC, f"{half}; os.kill(os.getpid(), 9)")
        out = f"half-{number}"
        assert distill(folder, out, setup).code == -signal.SIGKILL
        assert len(leftovers(folder / out)) == 1
        goes_on(folder, out)

    @pytest.mark.parametrize("number", [4, 10, 15])
    def test_between_two_files(self, folder: Path, number: int) -> None:
        out = f"between-{number}"
        assert distill(folder, out, at_call(number, FSYNC, "os.kill(os.getpid(), 9)")).code == -signal.SIGKILL
        goes_on(folder, out)


@pytest.mark.parametrize("signum", CODES)
class TestStopped:
    def stop(self, folder: Path, out: str, signum: signal.Signals, target: str, number: int, **keys: object) -> None:
        outcome = distill(folder, out, at_call(number, target, f"os.kill(os.getpid(), {int(signum)})"), **keys)
        assert outcome.mistake(CODES[signum]) == f"stopped by {signum.name}"
        assert not leftovers(folder / out)

    def test_in_distillation(self, folder: Path, signum: signal.Signals) -> None:
        out = f"distil-{signum.name}"
        self.stop(folder, out, signum, ITERATE, 2)
        assert iteration(folder, out) == 2, "a checkpoint at once, whatever --checkpoint-every says"
        goes_on(folder, out)

    def test_in_the_training_of_the_pool(self, folder: Path, signum: signal.Signals) -> None:
        out = f"pool-{signum.name}"
        self.stop(folder, out, signum, "ddfast.distill.pretrain:Steps.epoch", 4)
        names = {path.name for path in (folder / out / "pool").iterdir()}
        assert names == {"pool.json", "network-0000.safetensors", "network-0001.partial"}
        goes_on(folder, out)

    def test_in_an_evaluation_on_the_way(self, folder: Path, signum: signal.Signals) -> None:
        out = f"point-{signum.name}"
        self.stop(folder, out, signum, "ddfast.evaluate.protocol.train_epoch", 5)
        assert iteration(folder, out) == 5
        goes_on(folder, out)

    def test_in_the_last_evaluation(self, folder: Path, signum: signal.Signals) -> None:
        out = f"last-{signum.name}"
        self.stop(folder, out, signum, "ddfast.evaluate.protocol.train_epoch", 8)
        assert iteration(folder, out) == 8
        assert not (folder / out / "evaluation.json").exists()
        goes_on(folder, out)

    def test_in_ddfast_evaluate(self, folder: Path, signum: signal.Signals) -> None:
        before = contents(folder / "whole")
        setup = at_call(2, "ddfast.evaluate.protocol.train_epoch", f"os.kill(os.getpid(), {int(signum)})")
        outcome = ddfast("evaluate", "whole", cwd=folder, setup=setup)
        assert outcome.mistake(CODES[signum]) == f"stopped by {signum.name}"
        assert contents(folder / "whole") == before

    def test_in_ddfast_pretrain(self, folder: Path, signum: signal.Signals) -> None:
        keys = {
            "data": "./data",
            "count": 2,
            "epochs": 2,
            "network": "convnet",
            "width": 4,
            "depth": 2,
            "device": "cpu",
        }
        command = ["pretrain", *options(keys), "--out", f"pretrain-{signum.name}"]
        setup = at_call(4, "ddfast.distill.pretrain:Steps.epoch", f"os.kill(os.getpid(), {int(signum)})")
        outcome = ddfast(*command, cwd=folder, setup=setup)
        assert outcome.mistake(CODES[signum]) == f"stopped by {signum.name}"
        assert ddfast(*command, cwd=folder).code == 0
        assert contents(folder / command[-1]) == contents(folder / "whole" / "pool")

    def test_a_second_signal_does_not_wait(self, folder: Path, signum: signal.Signals) -> None:
        out, kill = f"twice-{signum.name}", f"os.kill(os.getpid(), {int(signum)})"
        outcome = distill(folder, out, at_call(2, ITERATE, f"{kill}; {kill}"))
        assert (outcome.code, outcome.err) == (-signum, "")
        goes_on(folder, out)


class TestFailed:
    def failed(self, outcome: Outcome) -> str:
        return outcome.mistake(3)

    def test_by_a_loss_that_is_not_finite(self, folder: Path) -> None:
        said = self.failed(distill(folder, "nan", at_call(5, ITERATE, "arguments[1].images.fill_(float('nan'))")))
        assert said.startswith("the loss of iteration 5 is not finite (loss nan, distribution_matching nan")
        assert said.endswith("the last good checkpoint, of iteration 3, is kept in nan")
        assert iteration(folder, "nan") == 3
        goes_on(folder, "nan")

    def test_by_images_that_are_not_finite(self, folder: Path) -> None:
        """Nobody has looked at the loss."""
        setup = at_call(5, ITERATE, "arguments[1].images.fill_(float('inf'))")
        said = self.failed(distill(folder, "inf", setup, log_every=99))
        assert said.startswith("the images are not finite after iteration 5; the last good checkpoint, of iteration 3")
        assert iteration(folder, "inf") == 3

    def test_by_a_step_too_large(self, folder: Path) -> None:
        for outcome in (distill(folder, "large", image_lr=1e38, mean_weight=1e4), resume(folder, "large")):
            said = self.failed(outcome)
            assert "is not finite" in said
            assert "the last good checkpoint, of iteration 0, is kept in large" in said
            assert iteration(folder, "large") == 0

    @pytest.mark.parametrize("more", [0, 25])
    def test_by_a_disk_that_is_full_for_the_metrics(self, folder: Path, more: int) -> None:
        """Or takes a part of a line."""
        limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize('{{}}/metrics.jsonl') + {more},) * 2)"
        out = f"metrics-{more}"
        said = self.failed(distill(folder, out, at_call(6, ITERATE, limit.format(out))))
        assert said == f"{out} cannot be written: File too large; the last checkpoint is kept for --resume"
        assert iteration(folder, out) == 5
        assert not leftovers(folder / out)
        goes_on(folder, out)

    def test_by_a_disk_that_is_full_for_a_checkpoint(self, folder: Path) -> None:
        setup = at_call(4, ITERATE, "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))")
        said = self.failed(distill(folder, "checkpoint", setup, log_every=99, eval_every=0))
        assert said == "checkpoint cannot be written: File too large; the last checkpoint is kept for --resume"
        assert iteration(folder, "checkpoint") == 3
        assert not leftovers(folder / "checkpoint")

    @pytest.mark.parametrize("number", [11, 14, 17, 20, 21, 22])
    def test_by_a_disk_that_is_full_at_any_time(self, folder: Path, number: int) -> None:
        out = f"full-{number}"
        said = self.failed(distill(folder, out, at_call(number, REPLACE, NO_SPACE)))
        assert said == f"{out} cannot be written: No space left on device; the last checkpoint is kept for --resume"
        assert not leftovers(folder / out)
        goes_on(folder, out)

    def test_by_a_disk_that_is_full_for_the_pool(self, folder: Path) -> None:
        said = self.failed(distill(folder, "full-pool", at_call(5, REPLACE, NO_SPACE)))
        assert said == "full-pool/pool/network-0000.partial: No space left on device"
        goes_on(folder, "full-pool")

    def test_by_lack_of_memory(self, folder: Path) -> None:
        error = 'raise RuntimeError("[enforce fail] DefaultCPUAllocator: can\'t allocate memory: you tried 1 byte")'
        said = self.failed(distill(folder, "memory", at_call(3, ITERATE, error)))
        assert said.startswith("out of memory, in distill a smaller --memory-budget may help")
        goes_on(folder, "memory")
