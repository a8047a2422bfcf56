"""The SFD family beside the best of all solvers at as many calls: SFD, SFD-v and the second stage, in one table.

python benchmarks/sfd_family.py digits8 --budget 3200 --seeds 0 1 2
python benchmarks/sfd_family.py digits8 --table          # what is known, as Markdown

A student of SFD gets `--budget` trajectories; SFD-v, one student for four numbers of calls, four times as many; the second stage, which begins
with that one, four times as many of its own, which cost far less each. Images come from noise that no training has seen. What the result file
holds is skipped, so the table grows over several calls.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from pairs import save
from sfddm import SHOWN, UNSEEN, frechet, known, spread
from torch import Tensor

import onefold
from onefold.bench.ways import BEST, FINE, way
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.gits import FINE as TUNED_FROM
from onefold.gits import fine_levels, measure_jumps
from onefold.losses import root_mean_square
from onefold.methods.base import in_calls
from onefold.pictures import labelled_rows, save_png
from onefold.solvers import SOLVERS, get_solver
from onefold.student import Student, load_student

TOGETHER = [2, 3, 4, 5]
# As the searches found them: tuned levels, a teacher wider than its student, and a faster rate for few calls.
SETTINGS: dict[str, Any] = {"grid": "gits", "batch_size": 64, "pieces": 4}
FEW, FASTER = 2, 2e-4
SECOND: dict[str, dict[str, Any]] = {"second": {}, "perceived": {"perceptual": "teacher"}}
NAMES = {
    "sfd": "SFD",
    "sfd_v": "SFD-v, one model",
    "second": "second stage",
    "perceived": "second stage, features of the teacher too",
}


class Family:
    """What was measured, kept as it grows."""

    def __init__(self, teacher: Denoiser, count: int, budget: int, out: Path, device: str) -> None:
        self.teacher, self.count, self.budget, self.out, self.device = teacher, count, budget, out, device
        self.name = f"sfd_family_{teacher.name}"
        self.fine = onefold.sample(teacher, count, solver=FINE[0], calls=FINE[1], first=UNSEEN)
        self.drawn: dict[str, Tensor] = {}

    def has(self, **names: Any) -> bool:
        return any(names.items() <= row.items() for row in known(self.name))

    def add(self, drawn: Tensor, **facts: Any) -> None:
        ((key, score),) = frechet(self.teacher, drawn)["scores"].items()
        row = {**facts, "distance": root_mean_square(drawn, self.fine), "fd": {"key": key, **score}}
        rows = [*known(self.name), row]
        save(self.name, {"what": __doc__.splitlines()[0], "count": self.count, "rows": rows}, show=False)
        print({key: value for key, value in row.items() if key not in ("fd", "cost")}, row["fd"]["value"], flush=True)

    def sampled(self, **how: Any) -> Tensor:
        return onefold.sample(self.teacher, self.count, first=UNSEEN, **how)

    def solvers(self, names: list[str], counts: list[int]) -> None:
        """Those without noise of their own, on the usual and on a tuned grid, whose jumps are measured once."""
        steps = [(name, calls, grid) for calls in counts for name in names for grid in ("auto", "gits")]
        wanted = [
            {"kind": "solver", "calls": calls, "solver": name, "grid": grid}
            for name, calls, grid in steps
            if not get_solver(name).stochastic and not self.has(kind="solver", calls=calls, solver=name, grid=grid)
        ]
        jumps = measure_jumps(self.teacher, fine_levels(self.teacher, TUNED_FROM, "zero")) if wanted else None
        for facts in wanted:
            try:
                made = way(self.teacher, facts["solver"], facts["calls"], facts["grid"], jumps=jumps)
            except UserError:  # solvers of two calls a step cannot make one
                continue
            self.add(self.sampled(solver=facts["solver"], grid=made.plan.grid), **facts)

    def best(self) -> None:
        if not self.has(kind="best"):
            self.add(self.sampled(solver=BEST[0], calls=BEST[1]), kind="best", calls=BEST[1])

    def distil(self, kind: str, teacher: Any, method: str, seed: int, **settings: Any) -> Student:
        out = self.out / f"{kind}_{settings['calls']}_{seed}".replace(", ", "-")
        if (out / "student").is_dir():
            return load_student(out, device=self.device, precision="fp32")
        rest: dict[str, Any] = {"seed": seed, "device": self.device, "watched": 4, "sample_every": "10h"}
        return onefold.distill(teacher, method, out=out, **settings, **rest)

    def student(self, kind: str, student: Student, seed: int) -> None:
        for calls in student.counts:
            names = {"kind": kind, "calls": calls, "seed": seed}
            drawn = student.sample(self.count, first=UNSEEN, calls=calls)
            self.drawn[f"{NAMES[kind]}\n{in_calls(calls)}"] = drawn
            if not self.has(**names):
                self.add(drawn, **names, cost=student.recipe["cost"], settings=settings_of(student))

    def run(self, kind: str, calls: list[int], seed: int) -> None:
        name = str(self.teacher.name)
        if kind == "sfd":
            for one in calls:
                if not self.has(kind=kind, calls=one, seed=seed):
                    rate = {"lr": FASTER} if one <= FEW else {}
                    how = {**SETTINGS, **rate, "calls": one, "budget": self.budget}
                    self.student(kind, self.distil(kind, name, "sfd", seed, **how), seed)
        elif not self.has(kind=kind, seed=seed):
            how = {**SETTINGS, "calls": TOGETHER, "budget": len(TOGETHER) * self.budget}
            first = self.distil("sfd_v", name, "sfd", seed, **how)
            self.student("sfd_v", first, seed)
            if kind in SECOND:
                folder = str(self.out / f"sfd_v_{TOGETHER}_{seed}".replace(", ", "-"))
                how = {**SECOND[kind], "calls": 1, "budget": len(TOGETHER) * self.budget}
                self.student(kind, self.distil(kind, folder, "sfd_second", seed, **how), seed)


def settings_of(student: Student) -> dict[str, Any]:
    left_out = ("out", "device", "teacher", "root")
    return {key: value for key, value in student.recipe["settings"].items() if key not in left_out}


# --- the table --------------------------------------------------------------------------------------------------------


def markdown(name: str) -> Iterator[str]:
    rows = known(name)
    yield "| calls | model | RMSE to the fine solution | FD | forwards | seconds | seeds |"
    yield "|---|---|---|---|---|---|---|"
    for calls in sorted({row["calls"] for row in rows}):
        here = [row for row in rows if row["calls"] == calls]
        for kind, label in (("best", f"teacher, {BEST[0]}"), *NAMES.items()):
            group = [row for row in here if row["kind"] == kind]
            if group:
                yield f"| {calls} | {label} | " + " | ".join(cells(group)) + " |"
        solvers = [row for row in here if row["kind"] == "solver"]
        if solvers:
            near, fair = min(solvers, key=lambda row: row["distance"]), min(solvers, key=lambda row: row["fd"]["value"])
            words = f"nearest: {near['solver']} on {near['grid']}; least FD: {fair['solver']} on {fair['grid']}"
            value = f"{near['distance']:.4f} | {fair['fd']['value']:.2f} ± {fair['fd']['spread']:.2f}"
            yield f"| {calls} | best of {len(solvers)} solvers ({words}) | {value} | - | - | - |"


def cells(group: list[dict[str, Any]]) -> list[str]:
    scores = [row["fd"] for row in group]
    fd = f"{spread([score['value'] for score in scores], 2)} ± {mean(score['spread'] for score in scores):.2f}"
    costs = [row["cost"] for row in group if "cost" in row]
    told = ["-", "-"]
    if costs:
        told = [f"{mean(map(forwards, costs)):,.0f}", f"{mean(cost['seconds'] for cost in costs):,.0f}"]
    return [spread([row["distance"] for row in group], 4), fd, *told, str(len(group))]


def forwards(cost: dict[str, Any]) -> int:
    """A training step of the student is about three."""
    return sum(count * (3 if name == "student" else 1) for name, count in cost["calls"].items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--kinds", nargs="+", default=list(NAMES))
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=3200)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder of the runs, to go on with; a temporary one without it")
    parser.add_argument("--picture", type=Path, help="file for a picture of the last seed's students")
    parser.add_argument("--table", action="store_true", help="print the table and do nothing else")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n".join(markdown(f"sfd_family_{arguments.teacher}")))
        return
    teacher = onefold.load_teacher(arguments.teacher, device=arguments.device, precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        family = Family(teacher, arguments.count, arguments.budget, arguments.out or Path(folder), arguments.device)
        family.best()
        family.solvers(arguments.solvers, arguments.calls)
        for seed in arguments.seeds:
            for kind in arguments.kinds:
                family.run(kind, arguments.calls, seed)
        if arguments.picture:
            rows = [(f"teacher\n{FINE[1]} calls", family.fine), *family.drawn.items()]
            shown = [(label, images[:SHOWN]) for label, images in rows]
            save_png(labelled_rows(shown, title=f"{teacher.name}: the same noise in each column"), arguments.picture)


if __name__ == "__main__":
    main()
