"""What the profiles say: phases add up, bytes are those that were held, and ddfast's do not grow with the classes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import record_function

from benchmarks import host_cost, profile_iteration, profile_memory
from benchmarks.iterations import LOSSES, Setting, contender
from benchmarks.phases import PHASES, profiled

CPU = torch.device("cpu")
TINY = Setting(classes=2, size=16, ipc=2, real=4, width=4, depth=2, pool_width=4, budget="256KiB")
OPTIONS = ["--ipc", "2", "--real", "4", "--size", "16", "--width", "4", "--depth", "2", "--pool-width", "4"]


def held(amount: int) -> torch.Tensor:
    return torch.empty(amount, dtype=torch.uint8)


class TestProfiled:
    def test_finds_peaks_and_their_phases(self) -> None:
        def call() -> None:
            with record_function("losses"):
                kept = held(1_000_000)
                with record_function("augment"):
                    beside = held(500_000)
                    del beside
                more = held(300_000)
            with record_function("step"):
                del kept, more
                held(200_000)

        memory = profiled(call, CPU).memory
        assert memory.peak == 1_500_000
        named = {phase: peak for phase, peak in memory.peak_by_phase.items() if peak}
        # a phase begins with what there is already: step has what losses leaves behind
        assert named == {"augment": 1_500_000, "losses": 1_300_000, "step": 1_300_000, "other": 1_300_000}
        assert 0 < memory.average < memory.peak

    def test_times_add_up_and_belong_to_the_innermost(self) -> None:
        matrix = torch.rand(300, 300)

        def work(times: int) -> None:
            for _ in range(times):
                matrix @ matrix

        def call() -> None:
            with record_function("losses"):
                work(10)
                with record_function("augment"):
                    work(400)
            with record_function("losses"):
                work(10)

        profile = profiled(call, CPU)
        assert sum(profile.seconds_by_phase.values()) == pytest.approx(profile.seconds)
        assert profile.seconds_by_phase["augment"] > 2 * profile.seconds_by_phase["losses"] > 0
        assert profile.seconds_by_phase["step"] == 0
        assert profile.kernels["aten::mm"][1] == 420
        assert "losses" not in profile.kernels


@pytest.mark.parametrize("name", ["published", "float32", "bf16"])
def test_an_iteration_has_every_phase_and_little_else(name: str) -> None:
    with contender(name, replace(TINY, losses="all"), CPU) as iterate:
        iterate()
        profile = profiled(iterate, CPU)
    assert sum(profile.seconds_by_phase.values()) == pytest.approx(profile.seconds)
    assert all(profile.seconds_by_phase[phase] > 0 for phase in PHASES)
    assert profile.memory.peak == max(profile.memory.peak_by_phase.values())


@pytest.mark.parametrize("name", ["published", "float32", "bf16"])
def test_the_published_loop_grows_with_the_classes_and_ddfast_does_not(name: str) -> None:
    """Over some iterations: what augmentation takes is left to chance, and in small networks it shows."""
    setting = replace(TINY, width=16, pool_width=8, budget="512KiB", losses="dm")

    def peak(classes: int) -> int:
        with contender(name, replace(setting, classes=classes), CPU) as iterate:
            iterate()
            return max(profiled(iterate, CPU).memory.peak for _ in range(6))

    few, many = peak(6), peak(24)
    assert many > 3 * few if name == "published" else many < 1.05 * few


def test_profile_memory_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    arguments = [*OPTIONS, "--classes", "2", "3", "--contenders", "float32", "--out", str(tmp_path)]
    rows = profile_memory.main(arguments)
    recorded = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert [row["setting"]["classes"] for row in recorded] == [2, 3]
    assert [row["peak_bytes"] for row in recorded] == [row.peak_bytes for row in rows]
    assert all(0 < row.average_bytes < row.peak_bytes < row.resident_bytes for row in rows)
    assert (tmp_path / "memory.png").stat().st_size > 0
    printed = capsys.readouterr().out
    assert f"{rows[1].peak_bytes / 2**20:.1f}" in printed
    assert f"{rows[1].peak_bytes_by_phase['real features'] / 2**20:.1f}" in printed
    assert profile_memory.main(["--show", str(tmp_path / "memory.json")]) == rows
    assert printed.startswith(capsys.readouterr().out)


def test_profile_memory_of_the_resident_set_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    arguments = [*OPTIONS, "--classes", "2", "--contenders", "float32", "--resident", "--out", str(tmp_path)]
    (row,) = profile_memory.main(arguments)
    assert row.peak_bytes is None
    data, images = 3 * 16**2 * 2 * (2 * 4 + 1), 3 * 16**2 * 2 * 2 * 4
    assert row.beside_bytes == row.resident_bytes - data - 2 * images > 0
    assert f"{row.beside_bytes / 2**20:.1f}" in capsys.readouterr().out


def test_profile_iteration_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*OPTIONS, "--classes", "2", "--losses", "all", "--out", str(tmp_path)]
    profiles = profile_iteration.main(arguments)
    assert list(profiles) == ["published", "float32", "bf16"]
    recorded = json.loads((tmp_path / "profile.json").read_text())
    assert recorded["setting"]["classes"] == 2
    assert recorded["profiles"]["float32"]["seconds"] == profiles["float32"].seconds
    for name in profiles:
        trace = json.loads((tmp_path / f"iteration-{name}.trace.json").read_text())
        assert set(PHASES[:-1]) <= {event["name"] for event in trace["traceEvents"]}
    printed = capsys.readouterr().out
    assert f"{1e3 * profiles['bf16'].seconds:.1f}" in printed
    assert "aten::mkldnn_convolution" in printed


@pytest.mark.parametrize("script", [profile_memory, profile_iteration])
def test_help(script: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(losses in printed for losses in LOSSES)
    assert "--pool-width" in printed


def test_the_host_calls_few_operators_beside_a_replay(capsys: pytest.CaptureFixture[str]) -> None:
    """It called 121 to 245 to draw for an iteration, 3,312 in an iteration of IDM and 435 for a pool network's step."""
    found = host_cost.main(["--iterations", "16"])
    printed = capsys.readouterr().out
    for name in ("DM", "IID-DM", "CMI-DM"):
        parts = found[name]
        assert parts["draw"].operators < 9
        assert parts["iterate and log"].operators < 18
        assert parts["iterate"].replays == 1
        assert parts["iterate"].as_written > 100, "what is replayed is all the rest"
    assert found["IDM"]["iterate"].operators < 110
    assert found["IDM"]["iterate"].replays == 1 + 2 * 10, "a step of each of two networks, ten times"
    assert found["IDM"]["iterate"].as_written > 2000
    for step in found["pool"].values():
        assert step.replays == 1
        assert step.operators < 13
        assert step.as_written > 400
    assert f"{found['IDM']['iterate'].operators:.1f}" in printed
