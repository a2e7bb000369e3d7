"""The command line as a newcomer meets it: a mistake is one plain line, and leaves nothing that blocks the next try."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine import NO_PICTURES, SMALL, Outcome, contents, ddfast, ddfast_here, make_pool, options, save_npz, toy

QUICK = options({**SMALL, "ipc": 2, "batch_real": 8, "iterations": 2})
CC = ["--centralization-weight", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good data and all kinds of bad, a pool, a finished run, a file."""
    folder = tmp_path_factory.mktemp("cli")
    save_npz(folder / "data", toy())
    make_pool(folder / "pool", toy())
    make_pool(folder / "other pool", toy(seed=5))
    for name in ("empty", "truncated", "no labels", "no pool"):
        (folder / name).mkdir()
    for name in ("train.npz", "test.npz"):
        (folder / "truncated" / name).write_bytes((folder / "data" / name).read_bytes()[:500])
        np.savez(folder / "no labels" / name, images=np.zeros((4, 8, 8), np.uint8))
    (folder / "file").write_text("hello")
    assert ddfast("distill", "--data", "./data", *QUICK, "--out", "run", cwd=folder, setup=NO_PICTURES).code == 0
    return folder


DISTILL: dict[str, tuple[list[str], str]] = {
    "missing data": (["--data", "./nowhere"], "nowhere: No such file or directory; expected a folder with train.npz"),
    "data of no name": (["--data", "digit"], "data 'digit' is neither a folder nor a known data set (digits, "),
    "empty data": (["--data", "./empty"], "empty has no train.npz: it is empty"),
    "data is a file": (["--data", "./file"], "file: Not a directory"),
    "broken data": (["--data", "./truncated"], "train.npz is not an npz file, or is damaged or cut short"),
    "data without labels": (["--data", "./no labels"], "train.npz: no array called labels, it holds images"),
    "no images": (["--ipc", "0"], "ipc must be at least 1, got 0"),
    "fewer than none": (["--ipc", "-1"], "ipc must be at least 1, got -1"),
    "more than there are": (["--ipc", "13"], "ipc must be at most 12, the images of the smallest class of "),
    "no iterations": (["--iterations", "0"], "iterations must be at least 1, got 0"),
    "no batch": (["--batch-real", "0"], "batch_real must be at least 1, got 0"),
    "no number": (["--ipc", "ten"], "--ipc"),
    "half a number": (["--ipc", "1.5"], "--ipc"),
    "no rate": (["--image-lr", "fast"], "--image-lr"),
    "not a rate": (["--image-lr", "nan"], "image_lr must be finite, got nan"),
    "a negative rate": (["--image-lr", "-1"], "image_lr must be at least 0, got -1.0"),
    "no value": (["--ipc"], "--ipc"),
    "unknown recipe": (["--recipe", "digit"], "there is no recipe 'digit', only those that ddfast recipes lists; did"),
    "unknown network": (["--network", "convnets"], "there is no network 'convnets', only convnet, "),
    "unknown norm": (["--norm", "batch"], "norm must not be 'batch'"),
    "too deep": (["--depth", "9"], "depth must leave at least one pixel of 8x8 images, got 9"),
    "unknown device": (["--device", "gpu"], "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    "absent device": (["--device", "cuda:99"], "device cuda:99 is not here: PyTorch sees "),
    "unknown augmentation": (["--augmentation", "color_zoom"], "no operation 'zoom'"),
    "unknown option": (["--iteration", "3"], "--iteration"),
    "unknown argument": (["./data"], "./data"),
    "unknown start": (["--init", "zeros"], "init must be real or untiled or noise, got 'zeros'"),
    "a mean too many": (["--mean", "0.5,0.5"], "mean must have one number a channel: 1 for data, not 2"),
    "a mean of words": (["--mean", "a,b"], "mean must be numbers separated by commas, got 'a,b'"),
    "a mean that is none": (["--mean", "nan"], "mean must be finite"),
    "no deviation": (["--std", "0"], "std must be positive"),
    "hardly a deviation": (["--std", "1e-40"], "the normalised images are not finite; check mean and std"),
    "all held out": (["--holdout", "1"], "holdout must lie between 0 and 1"),
    "lots of memory": (["--memory-budget", "lots"], "memory_budget must be a size such as 512MiB or 4GiB, got 'lots'"),
    "no memory": (["--memory-budget", "0"], "memory_budget must be positive"),
    "no loss": (["--mean-weight", "0", "--covariance-weight", "0"], "at least one of the four weights"),
    "no pool": (CC, "centralization_weight needs pre-trained networks: give --pool"),
    "missing pool": ([*CC, "--pool", "nowhere"], "nowhere is not a pool: it must hold pool.json"),
    "empty pool": ([*CC, "--pool", "no pool"], "no pool is not a pool"),
    "pool of other data": ([*CC, "--pool", "other pool"], "other pool is a pool for other data: its mean is "),
    "pool that cannot be built": ([*CC, "--pool-count", "1", "--pool-network", "vgg"], "there is no network 'vgg'"),
    "beta alone": ([*CC, "--pool", "pool", "--beta", "1"], "beta needs alpha"),
    "a file as folder": (["--out", "file"], "file is not a folder; --out must name one"),
    "a folder below a file": (["--out", "file/run"], "file/run cannot be written: Not a directory"),
    "a run that is there": (
        ["--out", "run"],
        "run already holds a run; --resume continues it, --out starts another one",
    ),
    "nothing to resume": (["--resume"], "new holds no run"),
}

RESUME: dict[str, tuple[list[str], str]] = {
    "other images": (["--ipc", "3"], "ipc is 2 in this run, not 3; --resume continues a run as it was begun"),
    "another rate": (["--image-lr", "2"], "image_lr is 1.0 in this run, not 2.0"),
    "another seed": (["--seed", "7"], "seed is 0 in this run, not 7"),
    "another recipe": (["--recipe", "digits"], " in this run, not "),
    "fewer iterations": (["--iterations", "1"], "iterations is 2 in this run, not 1"),
    "an unknown device": (["--device", "cuda:99"], "device is 'cpu' in this run, not 'cuda:99'"),
}

OTHERS: dict[str, tuple[list[str], str]] = {
    "unknown command": (["distil"], "'distil'"),
    "unknown option": (["--bogus"], "--bogus"),
    "report of nothing": (["report", "nowhere"], "nowhere holds no run"),
    "report of a file": (["report", "file"], "file is not a folder"),
    "report without a run": (["report"], "Missing argument"),
    "evaluation of nothing": (["evaluate", "nowhere"], "nowhere holds no run and is no file of images"),
    "evaluation of no images": (["evaluate", "empty"], "empty holds no run, and for images --data must name the data"),
    "evaluation of bad images": (
        ["evaluate", "no labels/train.npz", "--data", "./data"],
        "no labels/train.npz: no labels, it holds images",
    ),
    "evaluation of a run on other data": (
        ["evaluate", "run", "--data", "digits"],
        "digits is not the data that run was begun with: its classes are others",
    ),
    "evaluation of a run at another size": (
        ["evaluate", "run", "--image-size", "9"],
        "image_size must not be given with a run: run has its own",
    ),
    "evaluation of a run elsewhere": (
        ["evaluate", "run", "--out", "new"],
        "out must not be given with a run: run has its own",
    ),
    "evaluation by a deep network": (
        ["evaluate", "run", "--networks", "convnet,vgg11", "--depth", "2"],
        "depth must be None for vgg11, got 2",
    ),
    "evaluation by an unknown network": (["evaluate", "run", "--networks", "vgg99"], "there is no network 'vgg99'"),
    "no networks": (["evaluate", "run", "--repeats", "0"], "repeats must be at least 1, got 0"),
    "no epochs": (["evaluate", "run", "--epochs", "0"], "epochs must be at least 1, got 0"),
    "unknown recipe": (["recipes", "nothing"], "there is no recipe 'nothing'"),
    "pretrain without data": (["pretrain", "--count", "1", "--out", "new"], "--data"),
    "pretrain on nothing": (
        ["pretrain", "--data", "./nowhere", "--count", "1", "--out", "new"],
        "nowhere: No such file",
    ),
    "pretrain no network": (["pretrain", "--data", "./data", "--count", "0", "--out", "new"], "--count"),
    "pretrain an unknown one": (
        ["pretrain", "--data", "./data", "--count", "1", "--network", "vgg", "--out", "new"],
        "there is no network 'vgg'",
    ),
    "pretrain into a file": (
        ["pretrain", "--data", "./data", "--count", "1", "--out", "file"],
        "file cannot be written",
    ),
}


def refused(outcome: Outcome, said: str) -> None:
    line = outcome.mistake(2)
    assert said in line
    assert not set(line) & set("╭╮╰╯│─┌┐└┘|"), "no box"


@pytest.fixture
def unchanged(folder: Path) -> Iterator[None]:
    before = contents(folder), sorted(folder.rglob("*"))
    yield
    assert (contents(folder), sorted(folder.rglob("*"))) == before


@pytest.mark.usefixtures("unchanged")
class TestMistakes:
    @pytest.mark.parametrize("mistake", DISTILL)
    def test_of_distill(self, folder: Path, mistake: str) -> None:
        words, said = DISTILL[mistake]
        out = [] if "--out" in words else ["--out", "new"]
        refused(ddfast_here("distill", "--data", "./data", *QUICK, *out, *words, cwd=folder), said)

    @pytest.mark.parametrize("mistake", RESUME)
    def test_of_resume(self, folder: Path, mistake: str) -> None:
        words, said = RESUME[mistake]
        refused(ddfast_here("distill", "--out", "run", "--resume", *words, cwd=folder), said)

    @pytest.mark.parametrize("mistake", OTHERS)
    def test_of_the_other_commands(self, folder: Path, mistake: str) -> None:
        words, said = OTHERS[mistake]
        refused(ddfast_here(*words, cwd=folder), said)


@pytest.mark.parametrize("command", [[sys.executable, "-m", "ddfast"], [str(Path(sys.executable).parent / "ddfast")]])
def test_true_processes(folder: Path, command: list[str]) -> None:
    """What the processes of the other tests stand for."""
    environment = {**os.environ, "FORCE_COLOR": "", "COLUMNS": "80"}
    wrong = subprocess.run([*command, "distil"], cwd=folder, capture_output=True, text=True, env=environment)
    refused(Outcome(wrong.returncode, wrong.stdout, wrong.stderr), "'distil'")
    right = subprocess.run([*command, "recipes"], cwd=folder, capture_output=True, text=True, env=environment)
    assert right.stdout == ddfast("recipes", cwd=folder).out
