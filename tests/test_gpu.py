"""The commands for a GPU, on the CPU: nothing that a case does stops them, and what they leave can be read."""

import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import report
from benchmarks.gpu import archive, arrival, bundle, images, reading, smoke, steps
from benchmarks.gpu.case import Given, Step
from benchmarks.gpu.session import Session
from benchmarks.results import Results

ROOT = Path(__file__).parents[1]
PATIENT = {"limit": 60.0, "least": 1.0}


def planted(name: str, **keys: object) -> Step:
    return Step(f"tests.planted:{name}", f"tests.planted:{name}", **{"wish": 60.0, **PATIENT, **keys})


def conduct(folder: Path, *chosen: Step, seconds: float = 240.0) -> list[archive.Record]:
    return Session("first", chosen, seconds, folder / "out", folder / "work", toy=True)()


def cases(found: list[archive.Record]) -> dict[str, archive.Record]:
    return {it["case"]: it for it in found if it["kind"] == "case"}


def test_a_session_survives_whatever_a_case_does(tmp_path):
    found = conduct(tmp_path, planted("cases"), planted("good"))
    seen = cases(found)
    assert {name: it["status"] for name, it in seen.items()} == {
        "first": "passed",
        "raises": "failed",
        "is wrong": "failed",
        "cannot run here": "not run",
        "kills itself": "died",
        "after the kill": "passed",
        "hangs": "hung",
        "after the hang": "passed",
        "breaks CUDA": "failed",
        "after the broken CUDA": "passed",
        "exits": "died",
        "last": "passed",
        "good": "passed",
    }
    assert "ZeroDivisionError: planted" in seen["raises"]["error"]
    assert seen["is wrong"]["number"] == 3
    assert "SIGKILL" in seen["kills itself"]["error"]
    assert "exit code 3" in seen["exits"]["error"]
    assert seen["after the hang"]["process"] != seen["after the broken CUDA"]["process"], "CUDA needs a new process"

    into = tmp_path / "read"
    assert archive.read(tmp_path / "out" / "first.tar.xz", into) == found
    assert (into / "good.txt").read_text() == "kept"
    table = (into / "summary.md").read_text()
    for name in ("raises", "is wrong", "kills itself", "hangs", "exits"):
        assert f"| tests.planted:cases | {name} |" in table
    assert "6 of 13 cases failed." in table


def test_what_cannot_be_prepared_ends_its_step_alone(tmp_path):
    found = conduct(tmp_path, planted("unpreparable"), planted("dead_at_import"), planted("missing"), planted("good"))
    statuses = [(it["step"].partition(":")[2], it["status"]) for it in found if it["kind"] == "case"]
    assert statuses == [
        ("unpreparable", "passed"),
        ("unpreparable", "failed"),
        ("dead_at_import", "died"),
        ("missing", "failed"),
        ("good", "passed"),
    ]


def test_a_step_without_time_is_cut_short_and_says_so(tmp_path):
    begun = time.monotonic()
    found = conduct(tmp_path, planted("slow"), planted("good", needs=("no-such-program",)), seconds=14.0)
    assert time.monotonic() - begun < 30, "20 seconds of cases, and a worker's start"
    slow, refused = (it for it in found if it["kind"] == "step")
    assert "time" in slow["reason"]
    passed = sum(it["status"] == "passed" for it in cases(found).values())
    assert passed < 100
    assert passed == 0 or len(slow["untried"]) == 100 - passed
    assert refused["reason"] == "no-such-program is not here"


def test_a_step_in_the_background_lets_the_others_go_on(tmp_path):
    behind = planted("slow", beside=True, wish=120.0)
    after = replace(planted("good"), after=(behind.name,))
    found = conduct(tmp_path, behind, planted("unpreparable"), after)
    order = [it["step"].partition(":")[2] for it in found if it["kind"] == "step"]
    assert order.index("unpreparable") < order.index("slow") < order.index("good")


def shares(tmp_path: Path, left: float, *chosen: Step) -> list[float | None]:
    session = Session("first", chosen, 1000.0, tmp_path / "out", tmp_path / "work")
    given = []
    for number in range(len(chosen)):
        session.deadline = time.monotonic() + left
        given.append(session.share(number))
        left -= given[-1] or 0
    return [None if it is None else round(it, 1) for it in given]


def test_time_is_shared_by_value(tmp_path):
    chosen = [Step("a", "", wish=60, least=10), Step("b", "", wish=30, least=20), Step("c", "", wish=10, least=5)]
    assert shares(tmp_path, 100.0, *chosen) == [60, 30, 10]
    assert shares(tmp_path, 200.0, *chosen) == [120, 60, 20], "what is left over belongs to all"
    assert shares(tmp_path, 70.0, *chosen) == [45, 20, 5], "the last ones keep their least"
    assert shares(tmp_path, 36.0, *chosen) == [11, 20, 5]
    assert shares(tmp_path, 31.0, *chosen) == [10, 20, None], "what comes first is worth more"
    assert shares(tmp_path, 12.0, *chosen) == [10, None, None]


def test_a_step_that_is_refused_takes_no_share(tmp_path):
    chosen = [Step("a", "", wish=60, least=10), Step("b", "", wish=60, least=20, needs=("no-such-program",))]
    assert shares(tmp_path, 60.0, *chosen)[0] == 60


def test_the_steps_are_those_of_the_commands():
    names = [step.name for step in steps.STEPS]
    assert len(set(names)) == len(names)
    for command in steps.COMMANDS.values():
        behind = {step.name for step in command if step.beside}
        assert all(set(step.after) <= behind for step in command)
        assert all(step.least <= step.wish for step in command)
        for step in command:
            assert callable(step.load())
    assert sum(step.wish for step in steps.FIRST) <= 300
    assert [step.name for step in steps.FIRST[:2]] == ["probe", "smoke"]


def test_only_what_failed_is_done_again(tmp_path):
    given = Given(torch.device("cpu"), True, tmp_path, 60.0, ("smoke: mm small float32 reference", "probe: a launch"))
    again = list(smoke.again(given))
    assert [case.name for case in again] == ["probe: a launch", "smoke: mm small float32 reference"]
    assert "error" in again[1].run()


def test_a_wrong_result_a_gap_and_a_second_result_are_found(monkeypatch):
    wide = torch.randn(8, dtype=torch.float64)
    near = wide.float()
    assert smoke.judge([[(near, near, wide)]], torch.float32, "triton")["error"] < 1e-6
    with pytest.raises(smoke.Wrong, match="off by"):
        smoke.judge([[(near + 1e-3, near, wide)]], torch.float32, "triton")
    with pytest.raises(smoke.Wrong, match="off by"):
        smoke.judge([[(torch.full_like(near, torch.nan), near, wide)]], torch.float32, "triton")
    numbers = iter((near, near + 1e-7))
    with pytest.raises(smoke.Wrong, match="other bits"):
        smoke.twice(lambda: [next(numbers)])
    assert smoke.twice(lambda: [torch.empty(3)])[0].isnan().all()


def test_the_archive_stays_small_and_says_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "LARGEST", 50_000)
    kept = archive.Archive(tmp_path / "kept", tmp_path / "out" / "a.tar.xz")
    kept.append({"kind": "case", "step": "s", "case": "c", "status": "passed"})
    (tmp_path / "kept" / "large.bin").write_bytes(os.urandom(60_000))
    (tmp_path / "kept" / "small.bin").write_bytes(os.urandom(20_000))
    kept.write()
    assert kept.file.stat().st_size < 50_000
    with tarfile.open(kept.file) as packed:
        assert sorted(packed.getnames()) == ["left-out.json", "records.jsonl", "small.bin"]
        assert json.load(packed.extractfile("left-out.json")) == {"large.bin": 60_000}


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"kind": "step"}\n{"kind": "ca')
    assert archive.records(tmp_path) == [{"kind": "step"}]


# What is carried.


def test_images_come_back_from_a_bundle(tmp_path):
    draw = np.random.default_rng(0)
    for split, count in (("train", 230), ("test", 50)):
        smooth = np.cumsum(draw.integers(-3, 4, (count, 32, 32, 3)), 2).clip(-100, 100) + 128
        np.savez(tmp_path / f"{split}.npz", images=smooth.astype(np.uint8), labels=np.arange(count) % 10)
    (tmp_path / "classes.txt").write_text("a\nb")
    about = images.pack(tmp_path, tmp_path / "packed.npz", test=20)
    assert (about["train"]["images"], about["test"]["images"]) == (230, 20)
    folder = images.unpack(tmp_path / "packed.npz", tmp_path / "back")
    before, after = np.load(tmp_path / "train.npz"), np.load(folder / "train.npz")
    assert np.array_equal(before["labels"], after["labels"])
    far = np.abs(before["images"].astype(int) - after["images"])
    assert far.mean() < 4, "of 256 levels; an image in another one's place would be tens of levels away"
    exact, test = np.load(tmp_path / "test.npz"), np.load(folder / "test.npz")
    assert np.array_equal(exact["images"][:20], test["images"]), "test images have no loss"
    assert np.bincount(test["labels"]).tolist() == [2] * 10
    assert (folder / "classes.txt").read_text() == "a\nb"


def test_groups_name_the_files_where_they_are_now(tmp_path):
    folder = tmp_path / "cache" / "KEY"
    folder.mkdir(parents=True)
    (folder / "k.cubin").write_bytes(b"code")
    (folder / "k.ttir").write_text("not carried")
    paths = {name: f"/elsewhere/KEY/{name}" for name in ("k.cubin", "k.ttir")}
    (folder / "__grp__k.json").write_text(json.dumps({"child_paths": paths}))
    bundle.pack_cache(tmp_path / "cache", tmp_path / "cache.tar.xz")
    arrived = arrival.unpack_cache(tmp_path / "cache.tar.xz", tmp_path / "new")
    group = json.loads((arrived / "KEY" / "__grp__k.json").read_text())
    assert group["child_paths"] == {"k.cubin": str(arrived / "KEY" / "k.cubin")}
    assert Path(group["child_paths"]["k.cubin"]).read_bytes() == b"code"


@pytest.mark.full
def test_a_cache_that_was_carried_is_hit_in_another_folder(tmp_path):
    pytest.importorskip("triton")

    def launched(folder: Path) -> dict[str, int]:
        command = [sys.executable, "-m", "benchmarks.gpu.cache", "--only", "dm-vectors small torch.float32"]
        variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        variables |= {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])["H100"]
        assert found["failed"] == {}
        return {name: found[name] for name in ("hits", "misses")}

    filled = launched(tmp_path / "cache")
    assert filled["misses"] > 0
    bundle.pack_cache(tmp_path / "cache", tmp_path / "cache.tar.xz")
    (tmp_path / "cache").rename(tmp_path / "gone")
    again = launched(arrival.unpack_cache(tmp_path / "cache.tar.xz", tmp_path / "elsewhere"))
    assert again == {"hits": filled["misses"] + filled["hits"], "misses": 0}


# What is read.


def test_an_archive_becomes_results_that_readme_shows(tmp_path, monkeypatch):
    chosen = [step for step in steps.FIRST if step.name in ("probe", "iteration times", "iteration memory")]
    bench = Step("benchmarks.gpu.timing:operator_cases", "benchmarks.gpu.timing:operator_cases", wish=100, **PATIENT)
    conduct(tmp_path, *chosen, bench, seconds=900)
    monkeypatch.setattr(reading, "BUNDLE", tmp_path / "bundle")
    (tmp_path / "bundle").mkdir()
    file, root = str(tmp_path / "out" / "first.tar.xz"), tmp_path / "results"
    with pytest.raises(SystemExit):
        reading.main([file])  # a rehearsal's times mean nothing
    assert reading.main([file, "--into", str(root)]) == 0
    (folder,) = root.glob("*/*")
    results = Results(folder)
    assert {key[0] for key in results.groups} >= {"moment_matching", "class_complexity", "augment", "iteration"}
    ours = results.ours(("moment_matching", "tiny-rows-ipc10", "both"))
    assert set(ours["times_as_fast_as"]) == {"eager", "loop"}, "from two cases"
    shown = "\n".join(report.table(root, tmp_path))
    assert "| moment_matching | tiny-rows-ipc10, quick |" in shown
    assert "c10-ipc10 iid-dm" in shown
    assert json.loads((tmp_path / "bundle" / "again.json").read_text()) == []


@pytest.mark.full
def test_the_rehearsal_runs_every_step_and_nothing_in_it_fails(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for name, expected in steps.COMMANDS.items():
        found = archive.read(tmp_path / f"{name}.tar.xz", tmp_path / name)
        ran = {it["step"]: it for it in found if it["kind"] == "step"}
        assert set(ran) == {step.name for step in expected}
        assert all(it["status"] == "run" and not it.get("untried") for it in ran.values()), ran
    runs = tmp_path / "second" / "runs" / "accuracy-cifar10-ipc10"
    assert (runs / "iid-dm" / "evaluation.json").exists()
