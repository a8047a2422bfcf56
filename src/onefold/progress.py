"""How far a long job is: a bar with rate and time left on a terminal, a plain line now and then elsewhere.

Whoever works calls `progress(done, total, **facts)` as often as it likes; who shows it decides how often to show it.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

Clock = Callable[[], float]
Tell = Callable[[str], None]  # a sentence for people while the work goes on
RECENT = 30.0  # seconds over which the rate is taken
SILENCE = 10.0  # seconds between plain lines


class Progress(Protocol):
    def __call__(self, done: int, total: int | None, **facts: object) -> None:
        """`done` of `total` (None: not known) units, said once before the work begins and then after each piece of it.

        Facts are shown as they are; `images_per_second` and `seconds_left` replace what is estimated from the calls,
        `begin=True` says that other work begins.
        """


def silent(done: int, total: int | None, **facts: object) -> None:
    """Progress that nobody watches."""


def process_rank() -> int | None:
    """This process's number when there are several, as torchrun and accelerate tell it."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


@contextmanager
def terminal_progress(label: str, unit: str = "images", stream: TextIO | None = None) -> Iterator[Progress]:
    """Shows progress on stderr while the block runs; with several processes the first one shows it."""
    stream = sys.stderr if stream is None else stream
    if process_rank():
        yield silent
    elif stream.isatty() and os.environ.get("TERM") != "dumb":
        with bar(label, unit, stream) as progress:
            yield progress
    else:
        lines = PlainLines(label, unit, stream)
        try:
            yield lines
        finally:
            lines.end()


class Speed:
    """Rate over the recent past. A resumed job starts above zero, so the first report counts as the start."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.begin: tuple[float, int] | None = None
        self.seen: deque[tuple[float, int]] = deque()

    def add(self, done: int, *, begin: bool = False) -> None:
        now = self.clock()
        if begin or self.begin is None or done < self.seen[-1][1]:  # the first piece of work, or the next one
            self.begin = (now, done)
            self.seen.clear()
        self.seen.append((now, done))
        while len(self.seen) > 2 and now - self.seen[1][0] > RECENT:
            self.seen.popleft()

    def rate(self) -> float | None:
        """Units a second lately; None before there is anything to divide."""
        (then, before), (now, after) = self.seen[0], self.seen[-1]
        return (after - before) / (now - then) if now > then and after > before else None

    def total(self) -> tuple[int, float]:
        """Units and seconds since the first report."""
        if self.begin is None:
            return 0, 0.0
        return self.seen[-1][1] - self.begin[1], self.seen[-1][0] - self.begin[0]


class PlainLines:
    """One line at most every ten seconds, and one at the end."""

    def __init__(self, label: str, unit: str, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self.label, self.unit, self.stream, self.pace = label, unit, stream, Speed(clock)
        self.last, self.text, self.printed = clock(), "", ""

    def __call__(self, done: int, total: int | None, **facts: object) -> None:
        self.pace.add(done, begin=bool(facts.pop("begin", False)))
        self.text = f"{self.label}: {status(done, total, self.unit, self.pace, facts)}"
        if self.pace.clock() - self.last >= SILENCE:
            self.show()

    def show(self) -> None:
        self.last, self.printed = self.pace.clock(), self.text
        print(self.text, file=self.stream, flush=True)

    def end(self) -> None:
        if self.text != self.printed:
            self.show()


@contextmanager
def bar(label: str, unit: str, stream: TextIO) -> Iterator[Progress]:
    """rich's bar; numbers come from the same `status` as the plain lines."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    pace = Speed()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Bars(*columns, console=Console(file=stream)) as bars:
        task = bars.add_task(label, total=None, text="starting")

        def show(done: int, total: int | None, **facts: object) -> None:
            pace.add(done, begin=bool(facts.pop("begin", False)))
            bars.update(task, completed=done, total=total, text=status(done, total, unit, pace, facts))

        yield show


def status(done: int, total: int | None, unit: str, pace: Speed, facts: dict[str, object]) -> str:
    """`320/640 images  231 images/s  0:42 left  loss 0.0123`; at the end the time it took and the mean rate."""
    parts = [f"{done:,}{'' if total is None else f'/{total:,}'} {unit}"]
    rate, left = facts.pop("images_per_second", None) or pace.rate(), facts.pop("seconds_left", None)
    if total is not None and done >= total:
        worked, seconds = pace.total()
        rate = worked / seconds if seconds > 0 and worked else rate
        parts.append(f"in {f'{seconds:.1f} s' if seconds < 60 else clock_time(seconds)}")
    elif isinstance(rate, (int, float)) and total is not None and left is None:
        left = (total - done) / rate
    if isinstance(rate, (int, float)):
        parts.append(f"{rate:,.{0 if rate >= 100 else 3 if rate < 1 else 1}f} {unit}/s")
    if isinstance(left, (int, float)):
        parts.append(f"{clock_time(left)} left")
    return "  ".join(
        parts + [f"{key.replace('_', ' ')} {fact(value)}" for key, value in facts.items() if value is not None]
    )


def fact(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def clock_time(seconds: float) -> str:
    """0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """In words: 50 s, 12 minutes, 3.5 hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
