"""Time of a run, and what is due: agreed between processes without a synchronisation on every step."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType

import torch
import torch.distributed as dist

from onefold.training.budget import Budget

AGREE_EVERY = 1.0  # seconds, about


class Stopped(Exception):
    """A signal asked the run to end; a checkpoint has been written."""


class Pace:
    """Seconds used so far and the events that are due.

    Events counted in images are known to every process. Time is the first process's: with several, it is told to the
    others about once a second, at a step that all know beforehand; in between `seconds` stands still for all.
    """

    def __init__(self, world: int, device: torch.device) -> None:
        self.world, self.device = world, device
        self.seconds_before = self.seconds = self.began = 0.0
        self.stop = False
        self.steps, self.next_agreement = 0, 1
        self.every: dict[str, Budget] = {}
        self.done: dict[str, int] = {}

    def start(self, images: int, every: Mapping[str, Budget]) -> None:
        self.began, self.first_images, self.seconds = time.monotonic(), images, self.seconds_before
        self.every = dict(every)
        self.done = {name: self.count(name, images) for name in every}

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Time that is no part of the run's budget."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.began += time.monotonic() - begin

    def count(self, name: str, images: int) -> int:
        """How often an event has come due since the run began."""
        return int(self.every[name].progress(images, self.seconds))

    def tick(self, images: int) -> set[str]:
        """After a step: the names of the events that came due with it."""
        self.steps += 1
        stop = False
        if self.world == 1:
            self.seconds, stop = self.clock(), self.stop
        elif self.steps == self.next_agreement:
            stop = self.agree()
        due = {"stop"} if stop else set()
        for name, done in self.done.items():
            if self.count(name, images) > done:
                self.done[name] = self.count(name, images)
                due.add(name)
        return due

    def clock(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def agree(self) -> bool:
        """All take over the first process's clock, anybody's wish to stop, and how many steps to go until the next time."""
        now = self.clock()
        ahead = max(1, int(AGREE_EVERY * self.steps / max(now - self.seconds_before, 1e-6)))
        # float32 holds 2^24 whole milliseconds only: send whole seconds and the rest apart
        said = torch.tensor([now // 1, now % 1, 0.0, float(min(ahead, self.steps * 2))], device=self.device)
        said *= dist.get_rank() == 0
        said[2] = float(self.stop)
        dist.all_reduce(said)  # the first one's clock, and anybody's wish to stop
        whole, rest, stop, ahead = said.tolist()
        self.seconds, self.next_agreement = whole + rest, self.steps + int(ahead)
        return bool(stop)

    def rate(self, images: int) -> float:
        """Images a second since this process began."""
        return (images - self.first_images) / max(self.clock() - self.seconds_before, 1e-6)

    @contextlib.contextmanager
    def catching_signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the run after the step in hand; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {kind: signal.signal(kind, self.on_signal) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for kind, handler in former.items():
                signal.signal(kind, handler)

    def on_signal(self, _: int, __: FrameType | None) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True
