"""Hostile files are opened in a process with little memory and little time, and must end there in one sentence."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import struct
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from onefold.errors import MOST_LETTERS, UserError

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
MEGABYTE = 2**20
ROOM = 300 * MEGABYTE  # beside what the test process has: nothing hostile here is larger than some megabytes
SECONDS = 20


def ending(action: Callable[[], object]) -> str:
    """The sentence in which `action` is refused; "" where it ends well. Anything else fails the test."""
    return endings([action])[0]


def endings(actions: Sequence[Callable[[], object]]) -> list[str]:
    """The same of several in one process, which saves time."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=confined, args=(actions, theirs))
    process.start()
    theirs.close()
    try:
        outcomes, grown = ours.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"ended without a word, by signal {-(process.exitcode or 0)}") from None
    process.join()
    for kind, text in outcomes:
        assert kind in ("", "UserError"), text
        assert kind == "" or (text.isprintable() and 10 < len(text) < 2 * MOST_LETTERS), text
    assert grown < ROOM, f"took {grown / MEGABYTE:.0f} MB: {outcomes}"
    return [text for _, text in outcomes]


def confined(actions: Sequence[Callable[[], object]], report: Connection) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # no handler of pytest's
    space = 4 * ROOM + resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (space, space))  # threads reserve address space that they never use
    before = peak()
    report.send(([outcome(action) for action in actions], peak() - before))


def outcome(action: Callable[[], object]) -> tuple[str, str]:
    signal.alarm(SECONDS)
    try:
        action()
    except UserError as error:
        return "UserError", str(error)
    except BaseException:  # noqa: BLE001  (it is what the test is about)
        return "another", traceback.format_exc()
    return "", ""


def peak() -> int:
    """Bytes of memory that were in use at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# Safetensors, byte by byte


def taken_apart(content: bytes) -> tuple[bytes, bytes]:
    """(header, data)"""
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length], content[8 + length :]


def put_together(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}
