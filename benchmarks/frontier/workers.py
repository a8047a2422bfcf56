"""Processes that make cells one after the other, so that nothing is loaded for each anew."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Worker:
    """One process with one cell in work, or none."""

    def __init__(self, folder: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe()
        os.environ["OMP_NUM_THREADS"] = str(threads)  # which the process inherits
        self.process = context.Process(target=serve, args=(theirs, folder), daemon=True)
        self.process.start()
        theirs.close()
        self.cell: Any = None

    def begin(self, cell: Any, bench: Any) -> None:
        self.cell = cell
        self.ours.send((cell, bench))

    def ended(self) -> bool:
        """Whether the cell is done; a cell that broke ends all."""
        if self.cell is None or not self.ours.poll():
            return False
        name, self.cell = self.cell.name, None
        try:
            trouble = self.ours.recv()
        except EOFError:
            trouble = f"its process ended with {self.process.exitcode}"
        if trouble:
            sys.exit(f"{name} failed: {trouble}")
        return True

    def stop(self) -> None:
        """A run in work keeps a checkpoint and goes on in the next call."""
        self.process.terminate()
        self.process.join()


def serve(line: Connection, folder: Path) -> None:
    from cells import make

    while True:
        cell, bench = line.recv()
        try:
            make(cell, bench, folder)
        except Exception:  # noqa: BLE001 - whatever it is, the parent tells it
            line.send(traceback.format_exc())
            return
        line.send(None)
