"""Runs of several methods side by side, and the table of what they reached."""

import json
from pathlib import Path

import pytest
from engine import make_pool, save_npz, toy

from benchmarks import accuracy, report
from benchmarks.accuracy import Result
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Keys of a run that is over at once, as one writes them for the command."""
    folder, dataset = tmp_path_factory.mktemp("given"), toy(channels=3)
    make_pool(folder / "pool", dataset, 2)
    written = {"data": str(save_npz(folder / "data", dataset)), "pool": str(folder / "pool"), "batch_real": 4}
    written |= {"mean": list(dataset.mean), "std": list(dataset.std), "width": 4, "depth": 2, "ipc": 2}
    written |= {"epochs": 1, "repeats": 2, "eval_every": 2, "iterations": 4, "augmentation": "none"}
    return [f"{name}={json.dumps(value)}" for name, value in written.items()]


def command(folder: Path, methods: str, keys: list[str], *more: str) -> None:
    accuracy.main([str(folder), "--recipe", "cifar10-ipc10", "--methods", methods, *keys, *more])


def test_methods_differ_by_their_losses_and_go_on(
    tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m" / "1" / "accuracy-toy"
    command(folder, "all,random,dm", keys)
    command(folder, "cm", keys, "--label", "sweep", "covariance_weight=0.5")
    printed = capsys.readouterr().out
    found = accuracy.results(folder)
    assert [it.folder.name for it in found] == ["random", "dm", "cm@sweep", "all"]
    assert [list(RunFolder(it.folder).lines("metrics.jsonl")[0])[2:] for it in found[1:]] == [
        ["distribution_matching"],
        ["distribution_matching", "covariance_matching"],
        ["distribution_matching", "covariance_matching", "class_centralization", "conditional_mutual_information"],
    ]
    rows = list(accuracy.table(folder))[2:]
    assert rows == printed.splitlines()[-4:]
    assert rows[0].startswith("| random real images | – | – | – | ")
    assert rows[2].startswith("| DM + CM (sweep) | CM 0.5 | 4 | 0.0 min | ")
    assert "CM 0.01, CC 0.05, CMI 8000" in rows[3]
    pool = json.loads((folder / "all" / "pool.json").read_text())
    assert [network["network"] for network in pool["networks"]] == ["network-0000", "network-0001"]
    assert (folder / "accuracy.png").stat().st_size > 0

    shown = list(report.accuracies(tmp_path, tmp_path))
    commit = found[-1].environment["commit"]
    assert "at IPC 2: convnet of width 4, float32; 4 real images of a class" in shown[0]
    assert "a pool of 2 convnet of width 4 and 1 epochs" in shown[0]
    assert f"commit {commit} ([results](m/1/accuracy-toy)" in shown[0]
    assert shown[2:-1] == list(accuracy.table(folder))

    before = RunFolder(folder / "dm").lines("metrics.jsonl")
    command(folder, "dm", keys, "iterations=6")
    assert RunFolder(folder / "dm").lines("metrics.jsonl")[:4] == before
    assert [point["iteration"] for point in Result(folder / "dm").course()] == [0, 2, 4, 6]
    (folder / "dm" / "curve.jsonl").unlink()
    assert [point["iteration"] for point in Result(folder / "dm").course()] == [6]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["image_lr=3.0"], "dm is a run of other keys; --label tells them apart"),
        (["image_lr="], "'image_lr=' must be KEY=VALUE, the value as in TOML"),
        (["image_rate=3.0"], "unknown key 'image_rate'"),
        (["--methods", "mtt"], "--methods must be some of random,dm,cm,cc,cmi,iid-dm,all,idm,iid-idm, got 'mtt'"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, keys: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(tmp_path / "dm").open()
    RunFolder(tmp_path / "dm").save_config(Config(covariance_weight=0.01))
    with pytest.raises(SystemExit):
        command(tmp_path, "dm", keys, *words)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_difference_is_to_dm_alike_and_has_the_error_of_both(tmp_path: Path) -> None:
    reached = {
        "dm": [40.0, 42.0],
        "cm": [43.0, 43.0, 46.0],
        "cm@sweep": [42.0, 42.0],
        "dm@again": [50.0, 50.0],
        "cm@again": [53.0, 53.0],
    }
    for name, runs in reached.items():
        row = {"iteration": 1000, "distill_seconds": 90.0, "mean": sum(runs) / len(runs), "std": 1.0, "runs": runs}
        RunFolder(tmp_path / name).open()
        RunFolder(tmp_path / name).save_config(Config(covariance_weight=0.01))
        RunFolder(tmp_path / name).write_json("evaluation.json", {"distilled": row})
    rows = list(accuracy.cells(accuracy.results(tmp_path)))
    assert [row[0] for row in rows] == ["DM", "DM (again)", "DM + CM", "DM + CM (again)", "DM + CM (sweep)"]
    assert rows[0][2:] == ("1,000", "1.5 min", "41.0 ± 1.0 %", "2", "–")
    assert rows[2][-2:] == ("3", "+3.0 ± 1.4")  # variances of the means: 2 / 2 and 3 / 3
    assert [row[-1] for row in rows] == ["–", "–", "+3.0 ± 1.4", "+3.0 ± 0.0", "+1.0 ± 1.0"]
