"""What is said while an audit runs: a bar with what is left on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flows import terminal
from flows.terminal import Display
from pipeline.sandbox import Progress


class Clock:
    """The time, as told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(terminal.time, "monotonic", one)
    return one


def display(clock: Clock, *, is_terminal: bool) -> tuple[Display, io.StringIO]:
    """A display that writes into memory, with the clock for its bar too."""
    said = io.StringIO()
    one = Display(quiet=False)
    one.console = one.progress.live.console = Console(file=said, force_terminal=is_terminal, highlight=False, width=120)
    one.progress.get_time = clock
    return one, said


def moved(done: int, total: int = 150) -> Progress:
    return Progress(stage="purify", text="awm, step", done=done, total=total, metrics={"loss": 0.5})


def twenty_steps(one: Display, clock: Clock) -> None:
    """One every ten seconds."""
    for step in range(20):
        clock.now = 10.0 * step
        one.moved(moved(done=step))


def test_without_a_terminal_long_work_says_once_a_minute_how_far_it_is(clock: Clock) -> None:
    one, said = display(clock, is_terminal=False)
    one.started("purify")
    twenty_steps(one, clock)
    one.ended("purify", "ran", 200.0)
    lines = said.getvalue().splitlines()
    assert [line.split(",")[1] for line in lines[:3]] == [" step 6 of 150", " step 12 of 150", " step 18 of 150"]
    assert lines[0] == "purify: awm, step 6 of 150, some 24 min left of this, loss 0.5", "144 steps of 10 seconds"
    assert len(lines) == 4 and "200.0 s" in lines[3]


def test_a_stage_that_does_not_know_how_much_there_is_says_what_it_does(clock: Clock) -> None:
    one, said = display(clock, is_terminal=False)
    one.started("detect")
    clock.now = 61.0
    one.moved(Progress(stage="detect", text="searching", done=0, total=0, metrics={}))
    assert said.getvalue() == "detect: searching\n"


def test_short_work_says_nothing_but_that_it_ended(clock: Clock) -> None:
    one, said = display(clock, is_terminal=False)
    one.started("measure")
    for second in range(50):
        clock.now = float(second)
        one.moved(moved(done=second))
    one.ended("measure", "ran", 50.0)
    assert len(said.getvalue().splitlines()) == 1


def test_a_new_stage_has_its_own_minute(clock: Clock) -> None:
    one, said = display(clock, is_terminal=False)
    one.started("import")
    clock.now = 59.0
    one.started("purify")
    clock.now = 100.0
    one.moved(moved(done=1))
    assert said.getvalue() == ""
    clock.now = 119.0
    one.moved(moved(done=2))
    assert "step 2 of 150" in said.getvalue()


def test_on_a_terminal_there_is_a_bar_with_what_is_left_and_no_lines(clock: Clock) -> None:
    one, said = display(clock, is_terminal=True)
    one.started("purify")
    twenty_steps(one, clock)
    assert said.getvalue() == ""
    one.console.print(one.progress)
    assert "purify: awm, step" in said.getvalue() and "19/150" in said.getvalue() and "0:21:50" in said.getvalue(), "131 steps of 10 seconds"
