import io

import pytest
from rich.console import Console

from ddfast.report import progress
from ddfast.report.progress import meter


class Clock:
    """time.monotonic that moves when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def screen(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def test_plain_lines_come_every_ten_seconds_with_rate_time_left_and_note(clock):
    console = screen(terminal=False)
    with meter(console, "distil", 100, begun=20) as bar:
        for _ in range(40):
            clock.now += 0.5
            bar.step("loss 1.5")
    lines = console.file.getvalue().splitlines()
    assert lines == ["distil 41/100  2.00/s  0:29 left  loss 1.5"]


def test_a_pause_is_no_part_of_the_rate(clock):
    console = screen(terminal=False)
    with meter(console, "distil", 10) as bar:
        clock.now += 1
        bar.step()
        with bar.paused():
            clock.now += 1000
        clock.now += 10
        bar.step()
    assert console.file.getvalue() == "distil 2/10  0.18/s  0:44 left\n"


def test_a_bar_makes_room_for_the_bar_of_other_work():
    console = screen(terminal=True)
    with meter(console, "distil", 2) as bar:
        bar.step("loss 1.5")
        with bar.paused(), meter(console, "evaluate", 1) as other:
            other.step()
        bar.step("loss 1.25")
    shown = console.file.getvalue()
    assert shown.index("distil") < shown.index("evaluate") < shown.rindex("loss 1.25")
