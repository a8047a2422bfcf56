"""Which method pays at which budget: every method at 1, 2, 4 and 8 calls, for equal work, chosen by successive halving.

python benchmarks/frontier digits8 --data digits                     # makes and measures; goes on where it stopped
python benchmarks/frontier digits8 --table                           # what is known, as Markdown
python benchmarks/frontier digits8 --report page --pictures docs     # as a page, and its pictures for the documents
python benchmarks/frontier digits8 --publish                         # what `onefold advise` is to know

A budget is work in forward passes of the teacher: a training step of a network is three, and a trajectory of N teacher calls N. Images come from
noise that no training and no choice of settings has seen. With --like digits8 only the best methods there are made, with their best settings
(--keep of each number of calls and measure).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cells import RESULT, Bench, Cell, fines_of, measured
from controls import controls
from drawn import all_drawn
from entries import ENTRIES
from halving import Known, Plan, Result, cell_of, current, finalists, upcoming
from page import write_page
from pairs import RESULTS, save
from plots import overview, plot
from publish import publish
from tables import markdown, short
from workers import Worker

import onefold
from onefold.metrics.references import NAME
from onefold.pictures import labelled_rows, save_png
from onefold.progress import duration
from onefold.training.budget import Budget

MORE = 3  # exit code: the minutes are over, and the same command goes on


class Frontier:
    """What is known, kept as it grows, and the processes that make it grow."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.name = given, f"frontier_{Path(given.teacher).name}"
        self.known: dict[str, Any] = read(self.name)
        self.begin = time.monotonic()

    @property
    def bench(self) -> Bench:
        given = self.given
        home = onefold.load_teacher(given.teacher, device="cpu").home
        references = tuple(given.reference) or (f"{home}/{NAME}", given.data)
        return Bench(
            given.teacher, given.data, references, given.count, given.device, given.extractor, given.extractor_weights
        )

    @cached_property
    def plan(self) -> Plan:
        given = self.given
        plan = Plan(given.calls, given.budgets, given.seeds, given.entries, given.keep)
        if given.like is None:
            return plan
        there = whole(f"frontier_{given.like}")
        found = finalists(replace(Plan(**there["plan"]), keep=given.keep), Known(there["cells"]))
        return replace(plan, chosen=found)

    @property
    def late(self) -> bool:
        return self.given.minutes is not None and time.monotonic() - self.begin > 60 * self.given.minutes

    def keep(self) -> None:
        told = {
            "what": __doc__.splitlines()[0],
            "teacher": Path(self.given.teacher).name,
            "plan": {**asdict(self.plan), "entries": self.entries},
            "count": self.given.count,
        }
        save(self.name, {**self.known, **told}, show=False)

    def run(self) -> bool:
        """Whether all is done."""
        given, bench = self.given, self.bench
        given.out.mkdir(parents=True, exist_ok=True)
        check_same(given.out / "bench.json", bench)
        self.gather()
        if not {*given.calls} <= {row["calls"] for row in self.known.get("controls", [])}:
            fines = fines_of(bench, given.out)
            self.known["controls"] = controls(bench, given.calls, fines, measured)
            self.keep()
        workers = [Worker(given.out, max(1, (os.cpu_count() or 1) // given.jobs)) for _ in range(given.jobs)]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on"))
        try:
            while not self.late and self.busy(workers, bench):
                time.sleep(0.2)
        finally:
            for worker in workers:
                worker.stop()
            self.gather()
        return next(upcoming(self.plan, Known(self.results)), None) is None

    def busy(self, workers: list[Worker], bench: Bench) -> bool:
        """Everyone who is free gets the next cell; False once nothing is left to do."""
        ended = [worker.ended() for worker in workers]
        if any(ended):
            self.gather()
        for worker in workers:
            cell = None if worker.cell else self.next_cell({one.cell for one in workers})
            if cell is not None:
                worker.begin(cell, bench)
        return any(worker.cell for worker in workers)

    def next_cell(self, working: set[Cell | None]) -> Cell | None:
        return next((cell for cell in upcoming(self.plan, Known(self.results)) if cell not in working), None)

    @property
    def entries(self) -> list[str]:
        """What is asked for and what is known."""
        known = {result["entry"] for result in self.results}
        return [name for name in ENTRIES if name in known or name in self.plan.entries]

    @property
    def results(self) -> list[Result]:
        found: list[Result] = self.known.setdefault("cells", [])
        return found

    def gather(self) -> None:
        """Results that lie there, of this call and of earlier ones."""
        known = Known(self.results)
        self.known["cells"] = list(known.by_cell.values())
        for path in sorted(self.given.out.glob(f"*/{RESULT}"), key=lambda path: path.stat().st_mtime):
            result: Result = json.loads(path.read_text())
            if current(result) and not known.has(cell_of(result)):
                self.results.append(result)
                self.tell(cell_of(result), result)
        self.keep()

    def tell(self, cell: Cell, result: Result) -> None:
        values = [f"{row['calls']}: {fd_of(row):.3f} {row['rmse']:.4f}" for row in result.get("rows", [])]
        spent = duration(time.monotonic() - self.begin)
        print(f"{spent} {len(self.results)} {cell.name}", *values, result.get("failed", ""), flush=True)


def check_same(path: Path, bench: Bench) -> None:
    """What lies in a folder was made with one teacher, data and number of images."""
    told = {**asdict(bench), "references": list(bench.references), "device": ""}
    if not path.exists():
        path.write_text(json.dumps(told) + "\n")
    elif json.loads(path.read_text()) != told:
        sys.exit(f"{path.parent} holds runs with another teacher, data or count ({path}); choose another --out")


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
    parser.add_argument("--like", metavar="TEACHER", help="make the best methods there alone, with their best settings")
    parser.add_argument("--count", type=int, default=1000, help="images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="students made at the same time")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--table", action="store_true", help="print the table and do nothing else")
    parser.add_argument("--short", action="store_true", help="print the best of each number of calls, and nothing else")
    parser.add_argument("--report", type=Path, help="folder for the page, and do nothing else")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures as files, and do nothing else")
    parser.add_argument("--publish", action="store_true", help="write what `onefold advise` knows, and do nothing else")
    parser.add_argument("--out", type=Path, help="folder of the runs, to go on with; runs/frontier_TEACHER")
    given = parser.parse_args()
    given.out = given.out or Path(f"runs/frontier_{Path(given.teacher).name}")
    return given


def images(text: str) -> int:
    found = Budget.parse(text).images
    assert found is not None
    return found


def main() -> None:
    given = parse()
    if not (given.table or given.short or given.report or given.pictures or given.publish):
        sys.exit(0 if Frontier(given).run() else MORE)
    known = whole(f"frontier_{Path(given.teacher).name}")
    if given.table:
        print("\n".join(markdown(known)))
    if given.short:
        print("\n".join(short(known)))
    if given.report:
        print(write_page(known, given.out, given.report))
    if given.pictures:
        write_pictures(known, given.out, f"{given.pictures}/frontier_{known['teacher']}")
    if given.publish:
        publish()


def write_pictures(known: dict[str, Any], runs: Path, begin: str) -> None:
    """Images only of those runs that are at hand."""
    overview(known, Path(f"{begin}.png"))
    for measure in ("fd", "rmse"):
        plot(known, measure, Path(f"{begin}_{measure}.png"))
    if rows := all_drawn(known, runs):
        save_png(labelled_rows(rows), f"{begin}_images.png")


def whole(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


if __name__ == "__main__":
    main()
