"""Several processes on one run: the result of one, and what is left of it when a rank is stopped, fails or dies.

Most are forked and find each other as under torchrun: in a store that this process keeps in torchrun's place. But
nobody ends the others with a rank that ended, as torchrun does.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine import (
    ALL,
    NO_PICTURES,
    POOL,
    SMALL,
    Outcome,
    at_call,
    contents,
    make_distiller,
    make_state,
    options,
    save_npz,
    start,
    toy,
)
from torch import Tensor

from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder, State
from ddfast.distill.loop import Distiller
from ddfast.distill.plan import Plan
from ddfast.distill.queue import Teacher
from ddfast.distill.setup import find_device
from ddfast.errors import RankLost, UserError
from ddfast.ranks import ALONE, Ranks
from ddfast.training import build_network

CPU = torch.device("cpu")
CLASSES = 4  # which neither three ranks nor the chunks below divide
KEYS = {**SMALL, **ALL, **POOL, "ipc": 2, "batch_real": 8, "iterations": 7, "checkpoint_every": 3, "eval_every": 4}
KEYS |= {"repeats": 3, "whole_epochs": 1, "pool_count": 3, "image_lr": 0.2}
IDM = {"method": "idm", "partition": 2, "cross_entropy_weight": 0.1, "queue_every": 2, "queue_steps": 2}
CASES: dict[str, dict[str, Any]] = {
    "all": KEYS,
    "all, in chunks, logged now and then": {**KEYS, "memory_budget": "64KiB", "log_every": 3, "init": "noise"},
    "idm": {**KEYS, **IDM},
}
ITERATE = "ddfast.distill.loop:Distiller.iterate"
TRAIN = "ddfast.evaluate.protocol.train_epoch"
HERE = f"{NO_PICTURES}\nimport torch, ddfast.ranks\ntorch.set_num_threads(1)\n"
HASTY = "ddfast.ranks._PATIENCE = 1"
KILL, TERM = "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)"

Setups = Mapping[int, str]


def run(size: int, *words: str | Path, cwd: Path, setups: Setups = {}, everywhere: str = "") -> list[Outcome]:  # noqa: B006
    """`ddfast WORDS` on `size` ranks, each with its own setup; how they ended. One process knows nothing of ranks."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    found = {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": str(size)}
    found |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    children = []
    for rank in range(size):
        own = found | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
        setup = f"import os; os.environ.update({own})\n{HERE}{everywhere}\n{setups.get(rank, '')}"
        children.append(start(*words, cwd=cwd, setup=setup))
    return [child.wait() for child in children]


def words(out: str, keys: dict[str, Any]) -> list[str]:
    return ["distill", "--data", "./data", "--out", out, *options(keys)]


def well(outcomes: list[Outcome]) -> str:
    """What the first of ranks says where all end well, which is all that is said."""
    assert [(it.code, it.err) for it in outcomes] == [(0, "")] * len(outcomes)
    assert [it.out for it in outcomes[1:]] == [""] * (len(outcomes) - 1)
    return outcomes[0].out


def mistake(outcomes: list[Outcome], code: int, speaker: int = 0) -> str:
    """The one line that `speaker` says; the others say nothing."""
    assert [it.err for it in outcomes if it is not outcomes[speaker]] == [""] * (len(outcomes) - 1)
    return outcomes[speaker].mistake(code)


def held(path: Path) -> State:
    state = RunFolder(path).load_state(CPU)
    assert state is not None
    return state


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def same_run(got: Path, expected: Path) -> None:
    """Equal to rounding; and what does not depend on the images bit for bit."""
    ours, theirs = held(got), held(expected)
    close(ours.images, theirs.images)
    close(ours.momentum, theirs.momentum)
    assert ours.iteration == theirs.iteration
    if theirs.queue is not None:
        for name, tensor in vars(theirs.queue).items():
            assert torch.equal(getattr(ours.queue, name), tensor)
    lines = [RunFolder(path).lines("metrics.jsonl") for path in (got, expected)]
    assert [list(line) for line in lines[0]] == [list(line) for line in lines[1]]
    for line, other in zip(*lines, strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    curves = [[point["iteration"] for point in RunFolder(path).lines("curve.jsonl")] for path in (got, expected)]
    assert curves[0] == curves[1]
    tables = [RunFolder(path).evaluation() for path in (got, expected)]
    assert list(tables[0]) == list(tables[1])
    for row in {"random", "whole"} & set(tables[1]):
        assert {**tables[0][row], "seconds": 0} == {**tables[1][row], "seconds": 0}
    files = [set(contents(path)) for path in (got, expected)]
    assert files[0] == files[1], "and nothing else is left"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    save_npz(folder / "data", toy(classes=CLASSES))
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Callable[[str], Path]:
    """A run of CASES in one process."""

    def made(case: str) -> Path:
        out = f"whole {case}"
        if not (folder / out).exists():
            well(run(1, *words(out, CASES[case]), cwd=folder))
        return folder / out

    return made


class TestTheSameRun:
    @pytest.mark.parametrize("size", [2, 3])
    @pytest.mark.parametrize("case", CASES)
    def test_on_several_ranks(self, case: str, size: int, folder: Path, whole: Callable[[str], Path]) -> None:
        out = f"{case} {size}"
        said = well(run(size, *words(out, CASES[case]), cwd=folder))
        assert "trained on" in said
        same_run(folder / out, whole(case))
        assert held(folder / out).ranks == size
        # The images of one run, evaluated by any number of ranks.
        before = contents(folder / out)
        well(run(1, "evaluate", out, "--whole-epochs", "1", cwd=folder))
        assert contents(folder / out)["evaluation.json"] == before["evaluation.json"]

    @pytest.mark.parametrize("case", ["all", "idm"])
    def test_bit_for_bit_when_as_many_resume_it(self, case: str, folder: Path) -> None:
        whole, out = f"{case} 3 at once", f"{case} 3 resumed"
        well(run(3, *words(whole, CASES[case]), cwd=folder))
        killed = {1: at_call(5, ITERATE, KILL)}
        run(3, *words(out, CASES[case]), cwd=folder, setups=killed)
        assert held(folder / out).iteration == 4, "the point of the curve comes after a checkpoint"
        said = well(run(3, "distill", "--resume", "--out", out, cwd=folder))
        assert "begun by" not in said
        assert contents(folder / out) == contents(folder / whole)

    def test_of_pretraining(self, folder: Path) -> None:
        keys = {"data": "./data", "count": 5, "epochs": 2, "network": "convnet", "width": 4, "depth": 2}
        for size in (1, 3):
            said = well(run(size, "pretrain", *options(keys), "--out", f"pool {size}", cwd=folder))
            assert said.splitlines()[-1] == f"5 networks in pool {size}"
        assert contents(folder / "pool 3") == contents(folder / "pool 1")

    def test_of_an_evaluation(self, folder: Path, whole: Callable[[str], Path]) -> None:
        whole("all")
        found = []
        for size in (1, 2, 3):
            shutil.copytree(folder / "whole all", folder / f"evaluated {size}")
            asked = ("--networks", "convnet,alexnet", "--width", "8", "--repeats", "4", "--epochs", "1")
            well(run(size, "evaluate", f"evaluated {size}", *asked, cwd=folder))
            found.append(contents(folder / f"evaluated {size}"))
        assert "evaluation-alexnet.json" in found[0]
        assert found[0] == found[1] == found[2]


class TestARankThatDies:
    @pytest.mark.parametrize("size", [1, 2])
    def test_ends_the_run_which_fewer_resume(self, size: int, folder: Path, whole: Callable[[str], Path]) -> None:
        out = f"killed {size}"
        outcomes = run(3, *words(out, CASES["all"]), cwd=folder, setups={2: at_call(6, ITERATE, KILL)})
        assert [it.code for it in outcomes] == [3, 3, -signal.SIGKILL]
        said = mistake(outcomes, 3)
        assert said.startswith("a rank is gone (")
        kept = f"the last good checkpoint, of iteration 4, is kept in {out}"
        assert said.endswith(f"; {kept}; --resume continues it with any number of ranks")
        assert held(folder / out).iteration == 4
        assert len(RunFolder(folder / out).lines("metrics.jsonl")) == 5
        said = well(run(size, "distill", "--resume", "--out", out, cwd=folder))
        assert f"begun by 3 and continued by {size} ranks" in said
        same_run(folder / out, whole("all"))
        assert held(folder / out).ranks == size

    def test_with_its_network_of_the_queue(self, folder: Path, whole: Callable[[str], Path]) -> None:
        setups = {1: at_call(9, "ddfast.distill.queue:Teacher._step", KILL)}
        outcomes = run(2, *words("killed idm", CASES["idm"]), cwd=folder, setups=setups)
        assert mistake(outcomes, 3).startswith("a rank is gone (")
        well(run(3, "distill", "--resume", "--out", "killed idm", cwd=folder))
        same_run(folder / "killed idm", whole("idm"))

    @pytest.mark.parametrize("number", [1, 4])
    def test_in_a_checkpoint(self, number: int, folder: Path, whole: Callable[[str], Path]) -> None:
        """The first and the third: of iteration 0, when there is none yet, and of 4."""
        out = f"killed in checkpoint {number}"
        setups = {1: at_call(number, "ddfast.ranks:Ranks.collected", KILL)}
        said = mistake(run(2, *words(out, CASES["all"]), cwd=folder, setups=setups), 3)
        kept = "the last good checkpoint, of iteration 0, is kept in" if number > 1 else f"{out} has no checkpoint yet"
        assert kept in said
        well(run(2, "distill", "--resume", "--out", out, cwd=folder))
        same_run(folder / out, whole("all"))

    @pytest.mark.parametrize("target", [TRAIN, "ddfast.distill.pretrain:Steps.epoch"])
    def test_in_an_evaluation_or_the_pool(self, target: str, folder: Path, whole: Callable[[str], Path]) -> None:
        out = f"killed in {target}"
        outcomes = run(2, *words(out, CASES["all"]), cwd=folder, setups={1: at_call(2, target, KILL)})
        assert mistake(outcomes, 3).startswith("a rank is gone (")
        well(run(2, "distill", "--resume", "--out", out, cwd=folder))
        same_run(folder / out, whole("all"))

    @pytest.mark.parametrize("killed", [1, 2])
    def test_that_was_the_first(self, killed: int, folder: Path, whole: Callable[[str], Path]) -> None:
        """Alone or with the second: one of those that are left speaks in its place."""
        out, setups = f"killed first {killed}", dict.fromkeys(range(killed), at_call(6, ITERATE, KILL))
        outcomes = run(3, *words(out, CASES["all"]), cwd=folder, setups=setups, everywhere=HASTY)
        assert [it.code for it in outcomes] == [-signal.SIGKILL] * killed + [3] * (3 - killed)
        (speaker,) = (rank for rank, outcome in enumerate(outcomes) if outcome.err)
        said = mistake(outcomes, 3, speaker)
        assert said.startswith(f"rank {speaker}: a rank is gone (")
        assert f"of iteration 4, is kept in {out}" in said
        well(run(1, "distill", "--resume", "--out", out, cwd=folder))
        same_run(folder / out, whole("all"))


class TestAStop:
    @pytest.mark.parametrize("log_every", [1, 99])
    def test_is_after_the_same_iteration(self, log_every: int, folder: Path) -> None:
        """Wherever the signal reaches a rank, and if it reaches only one."""
        for name, setups, stopped in (
            ("one", {1: at_call(2, ITERATE, TERM)}, 2),
            ("all", {0: at_call(6, ITERATE, TERM), 1: at_call(5, ITERATE, TERM), 2: at_call(5, ITERATE, TERM)}, 5),
        ):
            out, keys = f"stopped {name} {log_every}", {**CASES["all"], "log_every": log_every}
            outcomes = run(3, *words(out, keys), cwd=folder, setups=setups)
            assert [it.code for it in outcomes] == [143] * 3
            assert mistake(outcomes, 143) == "stopped by SIGTERM"
            assert held(folder / out).iteration == stopped
        well(run(2, "distill", "--resume", "--out", out, cwd=folder))
        assert held(folder / out).iteration == 7

    @pytest.mark.parametrize("target", [TRAIN, "ddfast.distill.pretrain:Steps.epoch"])
    def test_in_an_evaluation_or_the_pool(self, target: str, folder: Path, whole: Callable[[str], Path]) -> None:
        out = f"stopped in {target}"
        interrupt = "os.kill(os.getpid(), 2)"
        outcomes = run(2, *words(out, CASES["all"]), cwd=folder, setups={1: at_call(2, target, interrupt)})
        assert [it.code for it in outcomes] == [130] * 2
        assert mistake(outcomes, 130) == "stopped by SIGINT"
        well(run(2, "distill", "--resume", "--out", out, cwd=folder))
        same_run(folder / out, whole("all"))


class TestAFailure:
    def test_of_the_user_is_said_once(self, folder: Path) -> None:
        for name, keys, said in (
            ("ipc", {"ipc": 13}, "ipc must be at most 12, the images of the smallest class of "),
            ("pool", {"pool": "./data"}, "data is not a pool"),
        ):
            outcomes = run(2, *words(name, {**CASES["all"], **keys}), cwd=folder)
            assert [it.code for it in outcomes] == [2, 2]
            assert said in mistake(outcomes, 2)
            assert not (folder / name).exists()

    def test_of_more_ranks_than_classes(self, folder: Path) -> None:
        outcomes = run(CLASSES + 1, *words("many", CASES["all"]), cwd=folder)
        said = mistake(outcomes, 2)
        assert said.startswith("ranks must be at most 4, the classes of /")
        assert said.endswith("/data, got 5")
        assert not (folder / "many").exists()

    def test_of_a_run_that_is_there(self, folder: Path, whole: Callable[[str], Path]) -> None:
        before = contents(whole("all"))
        outcomes = run(2, *words("whole all", CASES["all"]), cwd=folder)
        assert mistake(outcomes, 2).startswith("whole all already holds a run")
        assert contents(whole("all")) == before

    @pytest.mark.parametrize("command", [["sweep", "--grid", "ipc=1,2"], ["info"], []], ids=str)
    def test_of_a_command_for_one_process(self, command: list[str], folder: Path) -> None:
        said = mistake(run(2, *command, cwd=folder), 2)
        name = command[0] if command else "ddfast"
        assert said == f"torchrun is for distill, pretrain, evaluate; {name} takes a single process"

    def test_of_another_rank_is_told_by_the_first(self, folder: Path) -> None:
        outcomes = run(
            3, *words("memory", CASES["all"]), cwd=folder, setups={2: at_call(5, ITERATE, "raise MemoryError")}
        )
        assert [it.code for it in outcomes] == [3, 3, 3]
        said = mistake(outcomes, 3)
        assert said.startswith("rank 2: out of memory, in distill a smaller --memory-budget may help")
        assert "; the last good checkpoint, of iteration 4, is kept in memory; --resume" in said

    def test_of_ddfast_shows_where(self, folder: Path) -> None:
        outcomes = run(2, *words("bug", CASES["all"]), cwd=folder, setups={1: at_call(2, ITERATE, "1 / 0")})
        assert "Traceback" in outcomes[1].err
        assert outcomes[0].mistake(3).startswith("rank 1: ZeroDivisionError('division by zero'); the last good")

    def test_of_the_loss_is_said_once(self, folder: Path) -> None:
        """Though only one rank has it."""
        setups = {1: at_call(5, ITERATE, "arguments[1].images.fill_(float('nan'))")}
        outcomes = run(2, *words("nan", CASES["all"]), cwd=folder, setups=setups)
        assert [it.code for it in outcomes] == [3, 3]
        assert mistake(outcomes, 3).startswith("the loss of iteration 5 is not finite (loss nan")
        keys = {**CASES["all"], "log_every": 99}
        outcomes = run(2, *words("nan unseen", keys), cwd=folder, setups=setups)
        assert mistake(outcomes, 3).startswith("the images are not finite after iteration 6; the last good")
        assert held(folder / "nan unseen").iteration == 4

    def test_of_the_disk_is_said_once(self, folder: Path) -> None:
        full = {0: at_call(12, "ddfast.files:os.replace", "raise OSError(28, 'No space left on device')")}
        outcomes = run(2, *words("full", CASES["all"]), cwd=folder, setups=full)
        said = mistake(outcomes, 3)
        assert said == "full cannot be written: No space left on device; the last checkpoint is kept for --resume"

    def test_of_a_silent_first_rank_is_told_by_the_other(self, folder: Path) -> None:
        setups = {0: at_call(3, ITERATE, "import time; time.sleep(2)"), 1: at_call(3, ITERATE, "raise MemoryError")}
        outcomes = run(2, *words("slow", CASES["all"]), cwd=folder, setups=setups, everywhere=HASTY)
        assert mistake(outcomes, 3, speaker=1).startswith("rank 1: out of memory")

    def test_of_a_pool_that_ranks_see_differently(self, folder: Path, whole: Callable[[str], Path]) -> None:
        fewer = """
from ddfast.distill.pool import Pool
load = Pool.load
def part(*arguments):
    pool = load(*arguments)
    pool.networks = pool.networks[1:]
    return pool
Pool.load = part
"""
        pool = str(whole("all") / "pool")
        outcomes = run(2, *words("pools", {**CASES["all"], "pool": pool}), cwd=folder, setups={1: fewer})
        assert mistake(outcomes, 2) == f"{pool} must be the same for all ranks, but they find 2 to 3 networks"

    def test_of_a_gpu_is_the_rank_s_own(self) -> None:
        for error in (torch.OutOfMemoryError("of the GPU"), torch.AcceleratorError("an illegal access")):
            with pytest.raises(type(error), match=str(error)), Ranks(1, 2)._others():
                raise error
        with pytest.raises(RankLost, match="a rank is gone"), Ranks(1, 2)._others():
            raise RuntimeError("[gloo] Connection closed by peer")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
    def test_of_the_gpu_of_a_run_that_several_resume(self, folder: Path, whole: Callable[[str], Path]) -> None:
        """Begun on cuda:1, it is continued on each rank's own: of this machine, which has none."""
        RunFolder(folder / "gpu").open()
        RunFolder(folder / "gpu").save_config(Config(device="cuda:1"))
        for size, number in ((1, 1), (2, 0)):
            for more in ([], ["--device", "auto"], ["--device", "cuda"]):
                outcomes = run(size, "distill", "--resume", "--out", "gpu", *more, cwd=folder)
                assert mistake(outcomes, 2) == f"device cuda:{number} is not here: PyTorch sees 0 CUDA devices"


def test_the_first_loads_the_data_before_the_others(folder: Path) -> None:
    """What is downloaded or decoded is so once."""
    slowly = """
import time, ddfast.distill.setup as setup
load = setup.load
def loading(*arguments, **keywords):
    time.sleep(0.3)
    found = load(*arguments, **keywords)
    open("loaded", "w").close()
    return found
setup.load = loading
"""
    after = at_call(1, "ddfast.distill.setup.load", "assert os.path.exists('loaded')")
    keys = {**CASES["all"], "iterations": 1, "eval_every": 0}
    well(run(3, *words("loading", keys), cwd=folder, setups={0: slowly, 1: after, 2: after}))


class TestWithoutProcesses:
    """What a rank computes needs no other rank, so it can be had here."""

    @pytest.mark.parametrize(("count", "size"), [(10, 3), (4, 4), (7, 2), (5, 1)])
    def test_everything_is_done_once(self, count: int, size: int) -> None:
        ranks = [Ranks(rank, size) for rank in range(size)]
        parts = ranks[0].parts(count, 6)
        rows = [list(range(6 * count))[part] for part in parts]
        assert [row for part in rows for row in part] == list(range(6 * count))
        assert {len(it) % 6 for it in rows} == {0}
        assert max(map(len, rows)) - min(map(len, rows)) <= 6
        assert sorted(turn for rank in ranks for turn in rank.turns(count)) == list(range(count))

    @pytest.mark.parametrize("keys", [{}, {"method": "idm", "image_momentum": 0.6}], ids=str)
    def test_a_rank_steps_its_classes_as_one_process_does(self, keys: dict[str, Any]) -> None:
        dataset = toy(classes=CLASSES, channels=3)
        config = Config(ipc=2, batch_real=8, width=8, depth=2, **keys)
        state, whole = make_state(config, dataset), make_distiller(config, dataset)
        parts = Ranks(0, 3).parts(CLASSES, 2)
        states = [State(state.images[it].clone(), state.momentum[it].clone(), 0, 1, state.plan) for it in parts]
        terms = whole.iterate(state)
        shares = []
        for rank, own in enumerate(states):
            distiller = Distiller(config, dataset, whole.network, None, Plan(2, 5, 2, 9), Ranks(rank, 3))
            if distiller.teacher is not None:
                distiller.teacher = Teacher(config, dataset, whole.network)  # alone, for no other rank would answer
            shares.append(distiller.iterate(own))
        close(torch.cat([it.images for it in states]), state.images)
        close(torch.cat([it.momentum for it in states]), state.momentum)
        torch.testing.assert_close(sum(shares), terms, rtol=1e-4, atol=1e-6)

    def test_each_network_is_taught_by_one_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dataset, config = toy(), Config(method="idm", width=4, depth=2, queue_steps=2)
        network = build_network(config, dataset)
        alone = Teacher(config, dataset, network)
        expected = alone.admit(None, 0)
        before = [tensor.clone() for tensor in vars(expected).values()]
        alone.teach(expected, 0)
        told: list[tuple[Tensor, int]] = []
        monkeypatch.setattr(Ranks, "meet", lambda self: None)
        monkeypatch.setattr(Ranks, "spread", lambda self, tensor, source: told.append((tensor.clone(), source)))
        taught = []
        for rank in range(3):
            queue = Teacher(config, dataset, network, Ranks(rank, 3)).admit(None, 0)
            Teacher(config, dataset, network, Ranks(rank, 3)).teach(queue, 0)
            changed = [number for number in range(4) if not torch.equal(queue.weights[number], before[0][number])]
            taught.append(changed)
            for number in changed:
                assert torch.equal(queue.weights[number], expected.weights[number])
        assert list(map(len, taught)) == [1, 1, 0]
        assert taught[0] != taught[1]
        assert [source for _, source in told] == 3 * [*[0] * 4, *[1] * 4], "all ranks take part in all that travels"
        sent = sum(tensor.numel() * tensor.element_size() for tensor, _ in told) / 3
        assert sent == 2 * (2 * 4 * before[0].shape[1] + 2 * 8)

    def test_a_gpu_for_each(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        assert find_device("auto", Ranks(3, 4, 1)) == find_device("cuda", Ranks(3, 4, 1)) == torch.device("cuda", 1)
        assert find_device("cuda:1") == torch.device("cuda", 1)
        assert chosen == [torch.device("cuda", 1)] * 3
        assert find_device("auto") == torch.device("cuda")
        with pytest.raises(UserError, match="device must be auto, cpu or cuda where every rank takes its own GPU, got"):
            find_device("cuda:1", Ranks(0, 2))
        with pytest.raises(UserError, match="device cuda:2 is not here: PyTorch sees 2 CUDA devices"):
            find_device("auto", Ranks(2, 3, 2))

    def test_one_process_is_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Ranks.join() is ALONE
        monkeypatch.setenv("WORLD_SIZE", "8")  # of a cluster, and nobody said torchrun
        assert Ranks.join() is ALONE
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert Ranks.join() is ALONE
        assert not dist.is_initialized()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("case", ["all", "idm"])
def test_on_gpus(case: str, folder: Path) -> None:
    """NCCL brings IDM's networks and the images of an evaluation."""
    keys = {**CASES[case], "device": "cuda"}
    well(run(1, *words(f"cuda {case} 1", keys), cwd=folder))
    well(run(2, *words(f"cuda {case} 2", keys), cwd=folder))
    assert Config.load(folder / f"cuda {case} 2" / "config.toml").device == "cuda"
    same_run(folder / f"cuda {case} 2", folder / f"cuda {case} 1")


def torchrun(size: int, *words: str | Path, cwd: Path, setups: Setups = {}) -> subprocess.CompletedProcess[str]:  # noqa: B006
    """`ddfast WORDS` by torchrun, on ranks that each do their setup before."""
    setup = f"exec({dict(setups)}.get(int(os.environ['RANK']), ''), {{}})"
    (cwd / "rank.py").write_text(f"import os\nfrom ddfast.cli import main\n{NO_PICTURES}\n{setup}\nmain()\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), "rank.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([*command, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=100)


def ours(err: str) -> list[str]:
    """Of all that torchrun and its ranks say, the lines of ddfast."""
    return [line for line in err.splitlines() if line.startswith("ddfast: ")]


class TestTorchrun:
    def test_ends_all_with_a_clear_line_when_one_is_killed(self, folder: Path) -> None:
        """It sends the others SIGTERM, and what they do then must harm nothing."""
        keys = {**CASES["all"], "pool_count": 1, "pool_epochs": 1, "eval_every": 0}
        done = torchrun(2, *words("run killed", keys), cwd=folder, setups={1: at_call(6, ITERATE, KILL)})
        assert done.returncode == 1
        (line,) = ours(done.stderr)
        assert line.startswith("ddfast: a rank is gone (")
        assert "of iteration 3, is kept in run killed" in line
        well(run(1, "distill", "--resume", "--out", "run killed", cwd=folder))
        assert held(folder / "run killed").iteration == 7

    def test_ends_all_with_a_clear_line_when_one_is_killed_before_it_works(self, folder: Path) -> None:
        """As for want of memory: the data are each rank's own."""
        setups = {0: at_call(1, "ddfast.distill.run.build_network", "import time; time.sleep(60)")}
        setups |= {1: at_call(1, "ddfast.distill.setup.load", KILL)}
        done = torchrun(2, *words("run unborn", CASES["all"]), cwd=folder, setups=setups)
        (line,) = ours(done.stderr)
        assert line == "ddfast: torchrun ended the rank, as it does when it is told to or another rank is gone"
        assert not (folder / "run unborn").exists()

    def test_of_which_all_processes_get_a_signal(self, folder: Path) -> None:
        """Each rank gets it twice, the second time from torchrun: as of a scheduler that ends a job."""
        keys = {**CASES["all"], "iterations": 10**6, "checkpoint_every": 10**6, "eval_every": 0}
        meanwhile = f"{TERM}; import time; time.sleep(1)"
        setups = {0: at_call(3, ITERATE, f"os.kill(os.getppid(), 15); {meanwhile}"), 1: at_call(3, ITERATE, meanwhile)}
        done = torchrun(2, *words("run job", keys), cwd=folder, setups=setups)
        assert ours(done.stderr) == ["ddfast: stopped by SIGTERM"]
        assert held(folder / "run job").iteration >= 3

    @pytest.mark.full
    def test_of_three_of_which_one_is_killed_and_two_resume(self, folder: Path, whole: Callable[[str], Path]) -> None:
        torchrun(3, *words("run three", CASES["all"]), cwd=folder, setups={1: at_call(6, ITERATE, KILL)})
        assert held(folder / "run three").iteration == 4
        done = torchrun(2, "distill", "--resume", "--out", "run three", cwd=folder)
        assert (done.returncode, ours(done.stderr)) == (0, [])
        same_run(folder / "run three", whole("all"))

    @pytest.mark.full
    def test_says_a_mistake_once(self, folder: Path) -> None:
        done = torchrun(3, *words("run wrong", {**CASES["all"], "ipc": 13}), cwd=folder)
        (line,) = ours(done.stderr)
        assert line.startswith("ddfast: ipc must be at most 12")

    @pytest.mark.full
    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_passes_a_signal_on(self, signum: signal.Signals, folder: Path) -> None:
        """To itself, from a rank: as Ctrl-C in its terminal does."""
        out = f"run {signum.name}"
        parent = at_call(3, ITERATE, f"os.kill(os.getppid(), {int(signum)})")
        keys = {**CASES["all"], "iterations": 10**6, "checkpoint_every": 10**6, "eval_every": 0}
        done = torchrun(2, *words(out, keys), cwd=folder, setups={0: parent})
        assert ours(done.stderr) == [f"ddfast: stopped by {signum.name}"]
        assert held(folder / out).iteration >= 3
        last = json.loads((folder / out / "metrics.jsonl").read_text().splitlines()[-1])
        assert held(folder / out).iteration == last["iteration"]
