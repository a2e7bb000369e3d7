"""Launches are planned once for a shape, and a plan is used for nothing else: in a process with a fake GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def seen():
    """What `launching.py` saw, in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", ROOT / "tests" / "launching.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_call_of_the_same_shape_plans_nothing_and_needs_no_binder(seen):
    for name, work in seen["second"].items():
        assert work == {"launches": seen["first"][name]["launches"], "bound": 0, "plans": 0}, name


def test_the_first_call_goes_by_tritons_binder(seen):
    for name, work in seen["first"].items():
        backward = 1 if name == "moment_matching to moments" else 0  # planned with moment_matching's already
        assert work["bound"] == work["launches"] - backward > 0, name
        assert work["plans"] > 0, name


def test_a_planned_launch_is_the_one_that_triton_would_have_made(seen):
    assert seen["both ways"]["wrong"] == []
    assert seen["both ways"]["compared"] >= 18


def test_another_alignment_dtype_or_device_has_another_kernel(seen):
    functions = {name: {it["function"] for it in seen["variants"][name]} for name in ("plain", "shifted", "double")}
    functions["device"] = {it["function"] for it in seen["variants"]["device"]}
    assert all(len(it) == 1 for it in functions.values()), functions
    assert len(set.union(*functions.values())) == 4, functions


def test_another_stride_is_another_plan(seen):
    for variant in ("plain", "shifted", "double"):
        assert [it["strides"] for it in seen["variants"][variant]] == [[576, 192, 64, 8, 1]] * 2
    last = seen["variants"]["strides"]
    assert last == [576, 192, 1, 24, 3]
    assert [it["strides"] for it in seen["variants"]["last"]] == [last] * 2


def test_the_stream_is_that_of_the_call(seen):
    assert seen["stream"] == 7


def test_a_profilers_hooks_are_told_of_planned_launches(seen):
    assert seen["hooked"] == {"launches": 2, "bound": 2, "plans": 0, "told": ["augment_kernel"], "afterwards": 0}


def test_what_is_remembered_is_bounded(seen):
    assert seen["bounds"] == {"plans": 256, "most": True}
    assert 0 < seen["alignments"] <= 64


def test_threads_share_plans(seen):
    assert seen["threads"] == []


def test_an_unknown_triton_is_said_once_and_launches_by_its_binder(seen):
    assert seen["unknown"]["bound"] == seen["unknown"]["launches"] == 2
    (said,) = seen["unknown"]["said"]
    assert "3.6 to 3.9" in said
