"""Progress: plain lines now and then, a bar on a terminal, nothing from the other processes."""

from __future__ import annotations

import io

import pytest

from onefold.progress import PlainLines, Speed, clock_time, status, terminal_progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_now_and_then_and_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    lines = PlainLines("sampling", "images", stream, clock)
    for done in range(0, 1001, 10):
        lines(done, 1000, loss=0.123456789)
        clock.now += 0.25
    lines.end()
    lines.end()
    shown = stream.getvalue().splitlines()
    assert shown == [
        "sampling: 400/1,000 images  40.0 images/s  0:15 left  loss 0.1235",
        "sampling: 800/1,000 images  40.0 images/s  0:05 left  loss 0.1235",
        "sampling: 1,000/1,000 images  in 25.0 s  40.0 images/s  loss 0.1235",
    ]


def test_a_resumed_job_is_not_taken_for_a_fast_one() -> None:
    clock = Clock()
    pace = Speed(clock)
    pace.add(1_000_000)
    clock.now = 10.0
    pace.add(1_000_050)
    assert pace.rate() == 5.0
    assert pace.total() == (50, 10.0)


def test_the_next_piece_of_work_starts_anew() -> None:
    clock = Clock()
    pace = Speed(clock)
    for now, done in ((0.0, 0), (1.0, 100), (2.0, 0), (4.0, 20)):
        clock.now = now
        pace.add(done)
    assert pace.rate() == 10.0


def test_what_the_worker_knows_better_is_taken() -> None:
    line = status(10, None, "images", Speed(), {"images_per_second": 250.0, "seconds_left": 3700.0, "loss": None})
    assert line == "10 images  250 images/s  1:01:40 left"


def test_clock_time() -> None:
    assert [clock_time(seconds) for seconds in (0.4, 65, 3600)] == ["0:00", "1:05", "1:00:00"]


def test_nothing_is_shown_before_there_is_something() -> None:
    stream = io.StringIO()
    with terminal_progress("sampling", stream=stream):
        pass
    assert not stream.getvalue()


def test_only_the_first_process_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, shown in (("0", "sampling: 5/5 images"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        stream = io.StringIO()
        with terminal_progress("sampling", stream=stream) as progress:
            progress(0, 5)
            progress(5, 5)
        assert stream.getvalue().startswith(shown)
        assert bool(stream.getvalue()) == bool(shown)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with terminal_progress("sampling", stream=stream) as progress:
        progress(0, 10)
        progress(10, 10, solver="euler")
    assert "━" in stream.getvalue()
    assert "10/10 images" in stream.getvalue()
    assert "solver euler" in stream.getvalue()
