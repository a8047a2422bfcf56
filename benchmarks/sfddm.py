"""SFDDM, its extension and progressive distillation beside their teacher strided over the same steps: one table.

python benchmarks/sfddm.py digits8 --calls 64 32 16 8 4 2 --seeds 0 1 2
python benchmarks/sfddm.py digits8 --table          # what is known, as Markdown

Every student keeps the same steps phi_t = round(t T / T') of the teacher, so all of a row group differ in training alone. Images come from noise
that no training has seen. What the result file holds is skipped, so the table grows over several calls.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from pairs import RESULTS, save
from torch import Tensor

import onefold
from onefold.bench.ways import BEST, FINE
from onefold.data import to_uint8
from onefold.denoiser import Denoiser
from onefold.grids import subsequence
from onefold.kept import kept_steps
from onefold.losses import root_mean_square
from onefold.pictures import labelled_rows, save_png
from onefold.student import Student, load_student

UNSEEN = 1_000_000  # the first image of the comparison
SHOWN = 10  # images of a row in the picture
ROWS = {
    "teacher at its best": "teacher, iPNDM-3, 40 calls",
    "ddim": "teacher strided, DDIM",
    "ancestral": "teacher strided, ancestral",
    "paper": "SFDDM, paper",
    "table": "SFDDM, paper, begin=table",
    "official": "SFDDM, official",
    "smaller": "SFDDM, smaller student",
    "rollout": "roll-out (ours), with data",
    "trajectories": "roll-out (ours), without data",
    "progressive": "progressive distillation",
}


class Table:
    """What was measured, kept as it grows."""

    def __init__(self, teacher: Denoiser, count: int, start: int, images: dict[str, float]) -> None:
        self.teacher, self.count, self.start, self.images = teacher, count, start, images
        self.name = f"sfddm_{teacher.name}"
        self.rows = known(self.name)
        self.drawn: dict[tuple[str, int], Tensor] = {}

    def has(self, **names: Any) -> bool:
        return any(names.items() <= row.items() for row in self.rows)

    def sampled(self, **how: Any) -> Tensor:
        return onefold.sample(self.teacher, self.count, first=UNSEEN, **how)

    def fine(self) -> Tensor:
        key = ("fine", 0)
        if key not in self.drawn:
            self.drawn[key] = self.sampled(solver=FINE[0], calls=FINE[1])
        return self.drawn[key]

    def strided(self, calls: int) -> Tensor:
        key = ("ddim", calls)
        if key not in self.drawn:
            self.drawn[key] = self.sampled(solver="euler", grid=phi_grid(self.teacher, calls))
        return self.drawn[key]

    def add(self, row: str, calls: int, seed: int, drawn: Tensor, **facts: Any) -> None:
        strided, fine = self.strided(calls), self.fine()
        found = {
            "row": row,
            "calls": calls,
            "seed": seed,
            "to_strided": root_mean_square(drawn, strided),
            "to_fine": root_mean_square(drawn, fine),
            "strided_to_fine": root_mean_square(strided, fine),
            "fd": frechet(self.teacher, drawn),
            **facts,
        }
        self.rows = [*known(self.name), found]  # another process may have added some
        save(self.name, {"what": __doc__.splitlines()[0], "count": self.count, "rows": self.rows}, show=False)
        print({name: value for name, value in found.items() if name != "cost"}, flush=True)
        if seed == 0:
            self.drawn[row, calls] = drawn

    def controls(self, calls: int) -> None:
        if not self.has(row="teacher at its best", calls=calls):
            best = self.sampled(solver=BEST[0], calls=BEST[1])
            self.add("teacher at its best", calls, 0, best)
        for row, solver in (("ddim", "euler"), ("ancestral", "ancestral")):
            if not self.has(row=row, calls=calls):
                self.add(row, calls, 0, self.sampled(solver=solver, grid=phi_grid(self.teacher, calls)))

    def student(self, row: str, student: Student, seed: int) -> None:
        cost = student.recipe["cost"]
        self.add(
            row,
            student.calls,
            seed,
            student.sample(self.count, first=UNSEEN),
            images=cost["images"],
            seconds=cost["seconds"],
            forwards=cost["calls"]["teacher"] + 3 * cost["calls"]["student"],
            parameters=sum(p.numel() for p in student.denoiser.module.parameters()),
            settings={
                k: v for k, v in student.recipe["settings"].items() if k not in ("out", "data", "device", "teacher")
            },
        )

    def distil(self, row: str, calls: int, seed: int, out: Path) -> None:
        if self.has(row=row, calls=calls, seed=seed):
            return
        method = "progressive" if row == "progressive" else "sfddm"
        student = onefold.distill(
            self.teacher,
            method,
            out=out / f"{row}_{calls}_{seed}",
            calls=calls,
            seed=seed,
            device="cpu",
            watched=4,
            **self.settings(row, calls),
        )
        for folder in sorted((out / f"{row}_{calls}_{seed}" / "folds").glob("*/student"), reverse=True):
            self.student(row, load_student(folder, device="cpu", precision="fp32"), seed)
        self.student(row, student, seed)

    def settings(self, row: str, calls: int) -> dict[str, Any]:
        """As the searches that are written down found them; budgets in images."""
        data, budgets = data_of(self.teacher), self.images
        folds = (self.start // calls).bit_length() - 1
        third = budgets["progressive"] * 5 * folds / 3 / 7  # images that cost a third of what PD's folds to here cost
        common: dict[str, Any] = {"phi": "uniform"}
        match row:
            case "paper":
                return {"preset": "paper", "data": data, "budget": round(budgets["paper"])}
            case "table":
                return {"preset": "paper", "begin": "table", "data": data, "budget": round(budgets["paper"])}
            case "official":
                return {"preset": "official", "data": data, "budget": round(budgets["paper"])}
            case "smaller":
                small = {
                    "widths": smaller(self.teacher),
                    "begin": "random",
                    "lr": 1e-3,
                    "time_lr": 1.0,
                    "ema_share": 0.05,
                }
                return {"preset": "paper", "data": data, "budget": round(budgets["paper"]), **small}
            case "rollout":
                return {**common, **rollout_settings(calls), "data": data, "budget": round(third)}
            case "trajectories":
                return {**common, **rollout_settings(calls), "budget": max(16, round(third / calls))}
            case "progressive":
                start = {"start": self.start, "grid": "subsequence"}
                return {**start, "data": data, "budget": round(budgets["progressive"])}
        raise KeyError(row)


def rollout_settings(calls: int) -> dict[str, Any]:
    """From the search: many steps have little to change and want small rates."""
    if calls <= 8:
        return {"lr": 3e-4, "loss": "pseudo_huber", "weight": "x0"}
    return {"lr": 1e-4, "loss": "l2", "weight": "truncated"}


def known(name: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{name}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return found


def phi_grid(teacher: Denoiser, calls: int) -> Any:
    return subsequence(teacher.process, kept_steps(teacher.process, calls, "uniform"))


def smaller(teacher: Denoiser) -> list[int]:
    """Two thirds as wide: less than half of the parameters."""
    network: Any = teacher.module
    return [max(8, width * 5 // 8 // 8 * 8) for width in network.config["block_out_channels"]]


def data_of(teacher: Denoiser) -> str:
    given = os.environ.get("ONEFOLD_DATA")
    if given is None and teacher.card["data"]["source"] != "digits":
        raise SystemExit("set ONEFOLD_DATA to what the teacher was trained on, a folder or an .npz")
    return given or "digits"


def frechet(teacher: Denoiser, images: Tensor) -> dict[str, Any]:
    assert teacher.home is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        np.savez(path, images=to_uint8(images).permute(0, 2, 3, 1).numpy())
        found = onefold.evaluate(path, reference=teacher.home / "reference.npz", metrics=["fd"], device="cpu")
    return {"scores": found["scores"], "metrics": found.get("metrics")}


def picture(table: Table, calls: list[int], out: Path) -> None:
    for steps in calls:
        rows = [(f"teacher\n{FINE[1]} calls", table.fine()), (f"teacher, DDIM\n{steps} steps", table.strided(steps))]
        rows += [(ROWS[row], table.drawn[row, steps]) for row in ROWS if (row, steps) in table.drawn and row != "ddim"]
        labelled = [(label.replace(", ", ",\n"), images[:SHOWN]) for label, images in rows]
        save_png(
            labelled_rows(labelled, title=f"{table.teacher.name}: the same noise in each column"),
            out / f"{table.name}_{steps}.png",
        )


def markdown(name: str) -> Iterator[str]:
    rows = known(name)
    yield "| T' | model | RMSE to strided | RMSE to fine | FD | forwards | seconds | seeds |"
    yield "|---|---|---|---|---|---|---|---|"
    for calls in sorted({row["calls"] for row in rows}, reverse=True):
        for kind, label in ROWS.items():
            group = [row for row in rows if row["calls"] == calls and row["row"] == kind]
            if group:
                yield f"| {calls} | {label} | " + " | ".join(cells(group)) + " |"


def spread(values: list[float], digits: int) -> str:
    """Of all seeds: the mean and the range."""
    text = f"{mean(values):.{digits}f}"
    return text + (f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else "")


def cells(group: list[dict[str, Any]]) -> list[str]:
    costs = [mean(row[key] for row in group) if key in group[0] else None for key in ("forwards", "seconds")]
    scores = [next(iter(row["fd"]["scores"].values())) for row in group]
    told = ["-" if cost is None else f"{cost:,.0f}" for cost in costs]
    distances = [spread([row[key] for row in group], 4) for key in ("to_strided", "to_fine")]
    fd = spread([score["value"] for score in scores], 2)
    return [*distances, f"{fd} ± {mean(score['spread'] for score in scores):.2f}", *told, str(len(group))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--calls", type=int, nargs="+", default=[64, 32, 16, 8, 4, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS)[3:])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--start", type=int, default=128, help="steps of progressive distillation's first teacher")
    parser.add_argument("--paper", type=float, default=20_000, help="images for each SFDDM student")
    parser.add_argument(
        "--fold",
        type=float,
        default=10_000,
        help="images for each fold; a roll-out student gets a third of all folds' cost",
    )
    parser.add_argument("--out", type=Path, help="folder of the runs, to go on with; a temporary one without it")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each number of calls")
    parser.add_argument("--table", action="store_true", help="print the table and do nothing else")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n".join(markdown(f"sfddm_{arguments.teacher}")))
        return
    teacher = onefold.load_teacher(arguments.teacher, device="cpu", precision="fp32")
    table = Table(teacher, arguments.count, arguments.start, {"paper": arguments.paper, "progressive": arguments.fold})
    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder)
        for seed in arguments.seeds:
            for calls in arguments.calls:
                table.controls(calls)
                for row in arguments.rows:
                    if row != "progressive":
                        table.distil(row, calls, seed, out)
            if "progressive" in arguments.rows:
                table.distil("progressive", min(arguments.calls), seed, out)
        if arguments.pictures:
            picture(table, arguments.calls, arguments.pictures)


if __name__ == "__main__":
    main()
