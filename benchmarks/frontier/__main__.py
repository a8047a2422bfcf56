"""Which method pays at which budget: every method at 1, 2, 4 and 8 calls, for equal work, chosen by successive halving.

python benchmarks/frontier digits8 --data digits                     # makes and measures; goes on where it stopped
python benchmarks/frontier digits8 --table                           # what is known, as Markdown
python benchmarks/frontier digits8 --report page --pictures docs     # as a page, and as pictures for it and the documents

A budget is work in forward passes of the teacher: a training step of a network is three, and a trajectory of N teacher calls N. Images come from
noise that no training and no choice of settings has seen. With --like digits8 only the best methods there are made, with their best settings.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cells import CELL, RESULT, Bench, Cell, fines_of, measured
from controls import controls
from entries import ENTRIES
from halving import Known, Plan, Result, cells
from pairs import RESULTS, save

import onefold
from onefold.metrics.references import NAME
from onefold.progress import duration
from onefold.training.budget import Budget


class Frontier:
    """What is known, kept as it grows, and the cells in work, each a process of its own."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.name = given, f"frontier_{Path(given.teacher).name}"
        self.known: dict[str, Any] = read(self.name)
        self.working: dict[Cell, subprocess.Popen[bytes]] = {}
        self.begin = time.monotonic()

    @property
    def bench(self) -> Bench:
        given = self.given
        home = onefold.load_teacher(given.teacher, device="cpu").home
        references = tuple(given.reference) or (str(home / NAME), given.data)
        return Bench(
            given.teacher, given.data, references, given.count, given.device, given.extractor, given.extractor_weights
        )

    @property
    def plan(self) -> Plan:
        given = self.given
        return Plan(given.calls, given.budgets, given.seeds, given.entries, given.keep)

    @property
    def late(self) -> bool:
        return self.given.minutes is not None and time.monotonic() - self.begin > 60 * self.given.minutes

    def keep(self) -> None:
        told = {"what": __doc__.splitlines()[0], "plan": asdict(self.plan), "count": self.given.count}
        save(self.name, {**self.known, **told}, show=False)

    def run(self) -> None:
        self.given.out.mkdir(parents=True, exist_ok=True)
        bench = self.bench
        self.gather()
        if "controls" not in self.known:
            fines = fines_of(bench, self.given.out)
            self.known["controls"] = controls(bench, self.given.calls, fines, measured)
            self.keep()
        while not self.late:
            for cell in self.ready()[: self.given.jobs - len(self.working)]:
                self.start(cell, bench)
            if not self.working:
                return
            time.sleep(0.5)
            self.gather()
        self.stop()

    def ready(self) -> list[Cell]:
        known = Known(self.known.get("cells", []))
        return [cell for cell in cells(self.plan, known) if cell not in self.working]

    def start(self, cell: Cell, bench: Bench) -> None:
        folder = self.given.out / cell.name
        folder.mkdir(exist_ok=True)
        (folder / CELL).write_text(json.dumps({"cell": asdict(cell), "bench": asdict(bench)}))
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.given.jobs))}
        command = [sys.executable, str(Path(__file__).parent / "cells.py"), str(folder)]
        with (folder / "log.txt").open("ab") as log:
            self.working[cell] = subprocess.Popen(command, env={**os.environ, **threads}, stdout=log, stderr=log)

    def gather(self) -> None:
        """Results of processes that ended, and of those of an earlier call."""
        ended = [cell for cell, process in self.working.items() if process.poll() is not None]
        for cell in ended:
            if self.working.pop(cell).returncode:
                self.stop()
                sys.exit(f"{cell.name} failed; its log is {self.given.out / cell.name / 'log.txt'}")
        has = {Cell(*(result[name] for name in asdict_names())) for result in self.known.get("cells", [])}
        for path in sorted(self.given.out.glob(f"*/{RESULT}")):
            result: Result = json.loads(path.read_text())
            cell = Cell(*(result[name] for name in asdict_names()))
            if cell not in has:
                self.known["cells"] = [*self.known.get("cells", []), result]
                self.tell(cell, result)
                self.keep()

    def tell(self, cell: Cell, result: Result) -> None:
        values = [f"{row['calls']}: {fd_of(row):.3f} {row['rmse']:.4f}" for row in result.get("rows", [])]
        spent = duration(time.monotonic() - self.begin)
        number = len(self.known["cells"])
        print(f"{spent} {number} {cell.name}", *values, result.get("failed", ""), flush=True)

    def stop(self) -> None:
        """Runs keep a checkpoint and go on in the next call."""
        for process in self.working.values():
            process.send_signal(signal.SIGTERM)
        for process in self.working.values():
            process.wait()


def asdict_names() -> list[str]:
    return list(Cell.__dataclass_fields__)


def fd_of(row: dict[str, Any]) -> float:
    return float(next(iter(row["scores"].values()))["value"])


def read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {key: found[key] for key in ("controls", "cells") if key in found}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--data", default="digits", help="the images that the teacher learned from")
    parser.add_argument(
        "--reference", action="append", default=[], help="statistics; default: those beside the teacher, and the data"
    )
    parser.add_argument("--extractor", help="of the features, as module:function; default: the reference's")
    parser.add_argument("--extractor-weights")
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--budgets", type=images, nargs="+", default=[16_000, 64_000, 256_000], help="forward passes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--entries", nargs="+", choices=ENTRIES, default=list(ENTRIES), metavar="ENTRY")
    parser.add_argument("--keep", type=int, default=2, help="of each number of calls and measure, at the last budget")
    parser.add_argument("--count", type=int, default=1000, help="images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="students made at the same time")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"), help="folder of the runs, to go on with")
    return parser.parse_args()


def images(text: str) -> int:
    found = Budget.parse(text).images
    assert found is not None
    return found


def main() -> None:
    given = parse()
    Frontier(given).run()


if __name__ == "__main__":
    main()
