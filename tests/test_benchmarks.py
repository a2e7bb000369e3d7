"""The measuring ground: baselines that are right, a gate that refuses, statistics that know noise from a change."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import report
from benchmarks.baselines import BASELINES
from benchmarks.cases import AUGMENT, COMPLEXITY, MATCHING, MOMENTS, Case, backends
from benchmarks.ceilings import Ceilings
from benchmarks.floors import Floor, floor
from benchmarks.gate import Gate
from benchmarks.intervals import median, ratio
from benchmarks.measure import measure, sets_beyond, take_turns
from benchmarks.memory import peak_bytes
from benchmarks.workloads import WORKLOADS
from ddfast.operators import closed_form

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


def tiny(operator: str, workload: str = "tiny-ipc50") -> Case:
    return Case(operator, WORKLOADS[workload].at("quick"), CPU)


def without_compile(contenders: Callable) -> Callable:
    """Compiling takes longer than all else here; `make bench-quick` does it."""
    return lambda case, only=None: {k: bind for k, bind in contenders(case, only).items() if k != "compile"}


def gate_of(case: Case) -> Gate:
    return Gate(case, [case.batch(seed) for seed in range(3)])


# what is compared


@pytest.mark.parametrize("workload", ["tiny-ipc50", "tiny-rows-ipc10"])
@pytest.mark.parametrize("operator", [*MOMENTS, *MATCHING, *COMPLEXITY, *AUGMENT])
def test_eager_loop_and_reference_pass_the_gate(operator, workload):
    case = tiny(operator, workload)
    gate, contenders = gate_of(case), case.contenders()
    assert {*BASELINES, "reference"} <= contenders.keys()
    assert {name: gate.refusal(name, contenders[name]) for name in ("loop", "eager", "reference")} == {
        "loop": None,
        "eager": None,
        "reference": None,
    }


@pytest.fixture
def wrong_sign(monkeypatch):
    """Of the covariances' part of the gradient: Delta (K, D, D), the one square factor, times the centred rows."""
    right = closed_form.product
    monkeypatch.setattr(closed_form, "product", lambda a, b: -right(a, b) if a.shape[1] == a.shape[2] else right(a, b))


def test_the_gate_refuses_a_wrong_sign(wrong_sign):
    case = tiny("moment_matching")
    reason = gate_of(case).refusal("reference", case.contenders()["reference"])
    assert reason.startswith("reference is wrong on tiny-ipc50: gradient of moment_matching off by")


def test_the_gate_refuses_a_wrong_gradient_and_a_nan():
    case = tiny("class_centralization")
    gate = gate_of(case)

    def half_gradient(batch):
        right = case.contenders()["eager"](batch)
        return lambda features: right(0.5 * features + 0.5 * features.detach())

    assert "gradient of class_centralization off by" in gate.refusal("ours", half_gradient)
    assert "off by nan" in gate.refusal("ours", lambda batch: lambda features: features.sum() * float("nan"))


def test_no_time_is_reported_of_a_wrong_operator(wrong_sign, monkeypatch):
    monkeypatch.setattr(Case, "contenders", without_compile(Case.contenders))
    measured = measure(tiny("covariance_matching"), 0.0, (2, 2))
    assert set(measured.refused) == {"reference"}
    assert set(measured.samples) == {"loop", "eager", *backends("covariance_matching", CPU)} - {"reference"}


# what is measured


def test_turns_give_every_contender_as_many_samples_and_keep_rounds_together():
    seen = []

    def turn(name):
        return lambda: seen.append(name) or {"forward": float(len(seen))}

    samples = take_turns({name: [turn(name)] for name in "abc"}, 0.0, (4, 4))
    rounds = [seen[start : start + 3] for start in range(3, 15, 3)]  # after the warm one
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1
    assert [samples[name]["forward"] for name in "abc"] == [
        [float(4 + 3 * r + order.index(name)) for r, order in enumerate(rounds)] for name in "abc"
    ]


def test_directions_and_peaks_of_a_case(monkeypatch):
    monkeypatch.setattr(Case, "contenders", without_compile(Case.contenders))
    measured = measure(tiny("class_complexity"), 0.0, (3, 3))
    for name, samples in measured.samples.items():
        assert {direction: len(seconds) for direction, seconds in samples.items()} == {
            "forward": 3,
            "backward": 3,
            "both": 3,
        }
        assert all(back < both for back, both in zip(samples["backward"], samples["both"], strict=True))
        assert measured.first_call[name].keys() == samples.keys()
        assert 0 < measured.peak[name]["forward"] <= measured.peak[name]["both"]


def test_peak_bytes_are_exact_and_beyond_what_was_there():
    held = torch.ones(1000)

    def call() -> None:
        first = held + 1  # 4,000 bytes
        second = torch.empty(3000)  # 12,000 beside them
        del first, second
        torch.empty(2000)

    call()
    assert peak_bytes(call, CPU) - 16_000 in range(32)  # a scalar operand may take a few bytes


def test_inputs_rotate_beyond_the_cache():
    assert sets_beyond(60 << 20, 20 << 20) == 6
    assert sets_beyond(60 << 20, 500 << 20) == 1
    assert sets_beyond(0, 1) == 0


# what is said about it


def test_floors_counted_by_hand():
    workload = WORKLOADS["c10-ipc10"]  # 10 classes, 256 + 10 images, 128 channels at 16 positions
    real, syn = 10 * 256 * 128 * 16, 10 * 10 * 128 * 16
    triangle = 128 * 129 // 2
    forward = Floor(4 * (real + syn), symmetric=2 * 10 * 266 * 16 * triangle)
    assert floor("moment_matching", workload, "forward") == forward
    product = 2 * 10 * 10 * 16 * 128 * 128
    assert floor("moment_matching", workload, "both") == Floor(4 * (real + 2 * syn), forward.symmetric, product)
    assert floor("distribution_matching", workload, "both") == Floor(4 * (real + 2 * syn))
    moments = 4 * (real + 10 * 128 * 16 + 10 * 128 * 128)
    assert floor("class_moments", workload, "forward") == Floor(moments, 2 * 10 * 256 * 16 * triangle)
    assert floor("class_complexity", workload, "both") == Floor(4 * 2 * 10 * 10 * 512)

    assert Floor(1000, symmetric=30).seconds(Ceilings(copy=100.0, float32=10.0)) == 10.0
    assert Floor(100, symmetric=30, general=10).seconds(Ceilings(copy=100.0, float32=10.0)) == 4.0
    assert Floor(0, symmetric=30, general=10).seconds(Ceilings(copy=1.0, float32=10.0, tf32=60.0)) == 2.0


def test_an_interval_covers_the_median_as_often_as_it_says():
    noise = np.random.default_rng(0).lognormal(sigma=0.3, size=(200, 2, 25))
    covered = sum(interval.low <= 1 <= interval.high for interval in (ratio(a, b) for a, b in noise))
    assert 180 <= covered <= 200
    assert median([3.0, 1.0, 2.0]).value == 2.0


def test_a_common_slowdown_does_not_widen_a_ratio():
    drift = np.linspace(1, 5, 30)
    assert ratio(2 * drift, drift).high == pytest.approx(2.0)


# what becomes of results


def write_results(folder: Path, seconds: dict[str, list[float]]) -> Path:
    """As a run of one benchmark leaves them."""
    info = {
        "operator": "class_complexity",
        "workload": "c10-ipc10",
        "scale": "full",
        "direction": "both",
        "fraction_of_floor": 0.5,
        "peak_bytes": 1 << 20,
    }
    rows = [
        {
            "extra_info": info
            | {
                "contender": name,
                "median_s": vars(median(samples)),
                "times_as_fast_as": {"eager": vars(ratio(seconds["eager"], samples))},
            },
            "stats": {"data": samples},
        }
        for name, samples in seconds.items()
    ]
    here = {"machine": "m", "gpu": None, "cpu": "c", "threads": 1, "commit": "abc", "time": folder.name}
    folder.mkdir(parents=True)
    (folder / "operators.json").write_text(json.dumps({"benchmarks": rows}))
    (folder / "environment.json").write_text(json.dumps(here | {"versions": {"torch": "2"}}))
    return folder


def timings(sleep: float) -> dict[str, list[float]]:
    """Real ones, in turns, of one function under two names, the second with a pause."""
    matrix = torch.rand(128, 128)

    def timed(pause: float) -> dict[str, float]:
        start = time.perf_counter()
        for _ in range(5):
            matrix @ matrix
        if pause:
            time.sleep(pause)
        return {"both": time.perf_counter() - start}

    turns = {"eager": [lambda: timed(0.0)], "reference": [lambda: timed(sleep)]}
    return {name: samples["both"] for name, samples in take_turns(turns, 0.0, (40, 40)).items()}


def test_compare_finds_a_slowdown_and_not_noise(tmp_path, capsys):
    before, same, slow = (
        write_results(tmp_path / name, timings(pause)) for name, pause in (("1", 0.0), ("2", 0.0), ("3", 0.005))
    )
    assert report.main(["--compare", str(before), str(same)]) == 0
    assert "SLOWER" not in capsys.readouterr().out
    assert report.main(["--compare", str(before), str(slow)]) == 1
    assert "class_complexity c10-ipc10 both reference  SLOWER" in capsys.readouterr().out
    assert report.main(["--compare", str(slow), str(before)]) == 0


def test_compare_refuses_what_cannot_be_compared(tmp_path, capsys):
    before, after = (write_results(tmp_path / name, {"eager": [1.0], "reference": [1.0]}) for name in ("1", "2"))
    (after / "environment.json").write_text('{"machine": "other", "gpu": null}')
    assert report.main(["--compare", str(before), str(after)]) == 2
    assert "different machines" in capsys.readouterr().err


def test_iterations_are_shown_against_the_published_loop(tmp_path):
    folder = write_results(tmp_path / "m" / "1", {"eager": [1.0], "reference": [1.0]})
    seconds = {"published": [6.0, 6.2, 6.1], "float32": [2.0, 2.0, 2.0], "bf16": [0.5, 0.5, 0.5]}
    info = {"operator": "iteration", "workload": "c10-ipc10 all", "direction": "iteration", "scale": "full"}
    rows = [
        {
            "extra_info": info
            | {
                "contender": name,
                "median_s": vars(median(samples)),
                "times_as_fast_as": {"published": vars(ratio(seconds["published"], samples))},
                "peak_bytes": 2**20 * len(name),
            },
            "stats": {"data": samples},
        }
        for name, samples in seconds.items()
    ]
    (folder / "operators-iterations.json").write_text(json.dumps({"benchmarks": rows}))
    write_results(tmp_path / "m" / "2", {"eager": [1.0], "reference": [1.0]})  # newer, without iterations
    shown = list(report.table(tmp_path, tmp_path))
    assert [line.partition("abc ")[2] for line in shown if "abc " in line] == ["([results](m/2),", "([results](m/1)):"]
    assert "| c10-ipc10 all | float32 | 2 s | 3.05× (3.00–3.10) | 7 MiB | 9 MiB |" in shown
    assert "| c10-ipc10 all | bf16 | 500 ms | 12.20× (12.00–12.40) | 4 MiB | 9 MiB |" in shown


def test_several_processes_are_shown_against_one(tmp_path):
    here = {"gpu": None, "cpu": "c", "threads": 1, "commit": "abc", "versions": {"torch": "2"}}
    travels = {"iteration": 96, "averaging": 131 << 10, "checkpoint": 24 << 20}
    for day, seconds in (("1", 9.0), ("2", 2.0)):
        row = {"name": "IDM", "processes": 2, "seconds": {"1": [seconds] * 3, "2": [1.0, 1.25, 1.5]}, "bytes": travels}
        folder = tmp_path / "m" / day
        folder.mkdir(parents=True)
        (folder / "ranks.json").write_text(json.dumps({"environment": here | {"time": day}, "rows": [row]}))
    shown = list(report.table(tmp_path, tmp_path))
    assert "c, 1 thread, PyTorch 2, commit abc ([results](m/2)):" in shown
    assert "| IDM | 2 | 2 s | 1.25 s | 1.60× (1.33–2.00) | 96 B | 131 KiB | 24 MiB |" in shown


@pytest.mark.full
def test_processes_count_what_travels(tmp_path):
    command = [sys.executable, "-m", "benchmarks.ranks", "--quick", "--processes", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "ranks.json").read_text())["rows"]}
    assert "all losses" in done.stdout
    images, first = 4 * 4 * 2 * 3 * 16 * 16, 4 * 1 * 2 * 3 * 16 * 16  # bytes of all, and of the first rank's class
    weights = 4 * 3 * 9 + 4 + 4 * 4 * 9 + 4 + 4 * 4 + 4 * 4 * 4 * 4 + 4  # kernels and biases, norms, the head
    for name, row in rows.items():
        assert {key: len(samples) for key, samples in row["seconds"].items()} == {"1": 2, "3": 2}
        assert min(map(min, row["seconds"].values())) > 0
        queue = 2 * 2 * (2 * 4 * weights + 2 * 8) + 3 * 2 * 8 if name == "IDM" else 0  # and that all are there
        taught = 2 * 10 * 4 * weights if name == "IDM" else 0
        assert row["bytes"] == {
            "iteration": 3 * 2 * 6 * 8 + queue,
            "averaging": 4 * (images + taught),
            "checkpoint": 2 * (images - first),
        }


def test_the_check_fails_on_a_tampered_readme(tmp_path):
    pytest.importorskip("matplotlib")
    readme, root = tmp_path / "README.md", tmp_path / "results"
    marks = "".join(f"{report.BEGIN.format(name)}\n{report.END.format(name)}\n" for name in report.TABLES)
    readme.write_text(f"before\n{marks}after\n")
    for day, eager in (("2", 2.0), ("1", 9.0)):
        write_results(root / "m" / day, {"eager": [eager] * 5, "reference": [1.0] * 5})
    assert report.update(readme, root, check=True) == 1
    assert report.update(readme, root, check=False) == 0
    assert (root / "m" / "2" / "operators.png").stat().st_size > 0
    assert report.update(readme, root, check=True) == 0
    shown = readme.read_text()
    assert shown.startswith("before\n")
    assert shown.endswith("\nafter\n")
    assert "2.00× (2.00–2.00)" in shown  # of the newest results
    readme.write_text(shown.replace("2.00×", "3.00×"))
    assert report.update(readme, root, check=True) == 1
