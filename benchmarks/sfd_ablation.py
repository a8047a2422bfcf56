"""SFD's ablation: from vanilla trajectory distillation to our defaults factor by factor, and from the defaults one factor at a time.

python benchmarks/sfd_ablation.py digits8 --images 2400 --calls 3 --seeds 0
python benchmarks/sfd_ablation.py digits8 --table          # what is known, as Markdown
python benchmarks/sfd_ablation.py digits8 --plot           # and as docs/sfd_ablation.png

Every student costs as many forwards (teacher's calls and three times the student's) as the defaults do with --images trajectories. It learns at
each of the rates, and the one that is nearer to the teacher on its own validation noise counts. Images that are compared come from noise that no
training has seen. What the result file holds is skipped, so the table grows over several calls.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from pairs import RESULTS, save
from sfddm import UNSEEN, frechet, spread
from torch import Tensor
from vanilla import SFDSettings

import onefold
from onefold.bench.ways import BEST, FINE
from onefold.denoiser import Denoiser
from onefold.distilling import build_engine, choose
from onefold.grids import explicit, karras
from onefold.losses import root_mean_square
from onefold.methods.base import CONTROL
from onefold.solvers import get_solver
from onefold.student import load_student
from onefold.training.loop import ignore

PICTURE = Path(__file__).parents[1] / "docs" / "sfd_ablation.png"
CENTRE = {"parts": 3}  # the table is about this one; that K = 2 is better is its result, and the default since
DEFAULTS = {name: field.default for name, field in SFDSettings.model_fields.items()} | CENTRE
WATCHED = 128  # images of a run's own validation, by which its rate is chosen

Changes = dict[str, Any]

START: Changes = {
    "method": "vanilla",
    "walk": "teacher",
    "solver": "euler",
    "parts": 4,
    "grid": "karras",
    "end": "sigma_min",
    "sigma_min": 0.002,
    "afs": None,
    "loss": "l2",
    "schedule": "drop",
    "dropout": True,
}
# each changes one thing in the row before; the second half leads from the paper's settings to ours
PATH: list[tuple[str, Changes]] = [
    ("vanilla: all stamps", {}),
    ("only sampling's stamps", {"method": "sfd"}),
    ("from its own states", {"walk": "own"}),
    ("teacher DPM-Solver++(3M)", {"solver": "dpmpp3m"}),
    ("ends at sigma 0.006", {"sigma_min": 0.006}),
    ("analytic first step, vp", {"afs": "vp"}),
    ("L1 (SFD as published)", {"loss": "l1"}),
    ("pseudo-Huber", {"loss": "pseudo_huber"}),
    ("cosine rate", {"schedule": "cosine"}),
    ("no dropout", {"dropout": False}),
    ("teacher iPNDM-3", {"solver": "ipndm3"}),
    ("K = 3", {"parts": 3}),
    ("usual grid, to zero", {"grid": "auto", "end": "auto", "sigma_min": None}),
    ("first step ve (our defaults, K = 3)", {"afs": "ve"}),
    ("tuned grid", {"grid": "gits"}),
]
RHO = "rho"  # no setting of SFD: karras grids as lists of levels
SINGLE: list[tuple[str, str, Changes]] = [
    ("walk", "teacher's states", {"walk": "teacher"}),
    ("walk", "through all steps", {"walk": "through"}),
    ("teacher", "Euler", {"solver": "euler"}),
    ("teacher", "Heun", {"solver": "heun"}),
    ("teacher", "DPM-Solver++(2M)", {"solver": "dpmpp2m"}),
    ("teacher", "DPM-Solver++(3M)", {"solver": "dpmpp3m"}),
    ("teacher", "UniPC-2", {"solver": "unipc2"}),
    ("K", "1", {"parts": 1}),
    ("K", "2", {"parts": 2}),
    ("K", "4", {"parts": 4}),
    ("K", "6", {"parts": 6}),
    ("grid", "karras", {"grid": "karras"}),
    ("grid", "logsnr", {"grid": "logsnr"}),
    ("grid", "uniform", {"grid": "uniform"}),
    ("grid", "gits", {"grid": "gits"}),
    ("karras, ends at", "0.002", {"grid": "karras", "sigma_min": 0.002}),
    ("karras, ends at", "0.006", {"grid": "karras", "sigma_min": 0.006}),
    ("karras, ends at", "0.02", {"grid": "karras", "sigma_min": 0.02}),
    ("karras, rho", "5", {RHO: 5.0}),
    ("karras, rho", "9", {RHO: 9.0}),
    ("first step", "a call", {"afs": None}),
    ("first step", "vp", {"afs": "vp"}),
    ("loss", "L1", {"loss": "l1"}),
    ("loss", "L2", {"loss": "l2"}),
    ("loss", "Huber", {"loss": "huber"}),
    ("loss", "on x0", {"domain": "x0"}),
    ("training", "drop at half", {"schedule": "drop"}),
    ("training", "dropout", {"dropout": True}),
    ("training", "averaged weights", {"ema_share": 0.05}),
]


@dataclass(frozen=True)
class Row:
    """A line of a table: what is changed, and the settings it amounts to."""

    block: str
    label: str
    changes: Changes  # from the defaults

    @property
    def method(self) -> str:
        return str(self.changes.get("method", "sfd"))

    @property
    def settings(self) -> Changes:
        return {key: value for key, value in self.changes.items() if key != "method"}


def from_defaults(changes: Changes) -> Changes:
    return {key: value for key, value in changes.items() if value != DEFAULTS.get(key)}


def path() -> list[Row]:
    settings, rows = START, []
    for label, step in PATH:
        settings = settings | step
        rows.append(Row("path", label, from_defaults(settings)))
    return rows


def singles() -> list[Row]:
    default = Row("single", "our defaults, K = 3", {})
    return [default, *(Row("single", f"{factor}: {label}", from_defaults(step)) for factor, label, step in SINGLE)]


def price(row: Row, calls: int) -> int:
    """Forwards of a trajectory: K N teacher's calls and three for each step that is trained."""
    whole = DEFAULTS | row.settings
    steps, each = calls + (whole["afs"] is not None), get_solver(whole["solver"]).calls_per_step
    # a solver of two calls a step makes one in the last, to zero
    return int(whole["parts"] * steps * each - (each - 1) + 3 * calls)


class Ablation:
    """What was measured, kept as it grows."""

    def __init__(self, teacher: Denoiser, name: str, calls: int, images: int, count: int) -> None:
        self.teacher, self.name, self.calls, self.count = teacher, name, calls, count
        self.forwards = images * price(singles()[0], calls)
        self.watched: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}  # by seed: fine solution, best solvers
        self.fine = self.sampled(solver=FINE[0], calls=FINE[1])

    def sampled(self, **how: Any) -> Tensor:
        return onefold.sample(self.teacher, self.count, first=UNSEEN, **how)

    def scores(self, images: Tensor) -> dict[str, Any]:
        score = next(iter(frechet(self.teacher, images)["scores"].values()))
        fd = {"name": score["name"], **{key: round(score[key], 4) for key in ("value", "spread")}}
        return {"to_fine": round(root_mean_square(images, self.fine), 5), "fd": fd}

    def controls(self) -> None:
        if known(self.name)["controls"]:
            return
        ways = [
            (f"{solver} on {grid}, {self.calls} calls", {"solver": solver, "grid": grid, "calls": self.calls})
            for solver in CONTROL
            for grid in ("auto", "gits")
        ]
        ways.append((f"{BEST[0]} on auto, {BEST[1]} calls", {"solver": BEST[0], "calls": BEST[1]}))
        self.keep(controls=[{"way": way, **self.scores(self.sampled(**how))} for way, how in ways])

    def keep(self, **found: list[dict[str, Any]]) -> None:
        before = known(self.name)
        result = {key: [*before[key], *found.get(key, [])] for key in ("controls", "runs")}
        facts = {"calls": self.calls, "forwards": self.forwards, "count": self.count, "watched": WATCHED}
        save(self.name, {"what": __doc__.splitlines()[0], **facts, **result}, show=False)

    def student(self, row: Row, seed: int, rate: float) -> None:
        if runs_of(known(self.name)["runs"], row, seed=seed, lr=rate):
            return
        batch = DEFAULTS["batch_size"]
        images = max(1, round(self.forwards / price(row, self.calls) / batch)) * batch
        with tempfile.TemporaryDirectory() as out:
            chosen = choose(
                {
                    **CENTRE,
                    **levels(row.settings, self.teacher, self.calls),
                    "teacher": self.teacher.name,
                    "method": row.method,
                    "calls": self.calls,
                    "budget": str(images),
                    "lr": rate,
                    "seed": seed,
                    "watched": WATCHED,
                    "sample_every": str(images),
                    "device": "cpu",
                    "out": str(Path(out) / "run"),
                }
            )
            engine = build_engine(chosen, self.teacher, None, ignore)
            method: Any = engine.method
            if seed in self.watched:  # the same for all rows
                method.reference, method.control = self.watched[seed]
            engine.run()
            self.watched[seed] = method.reference, method.control
            student = load_student(Path(out) / "run" / "student", device="cpu", precision="fp32")
        cost = student.recipe["cost"]
        found = {
            "method": row.method,
            "settings": row.settings,
            "seed": seed,
            "lr": rate,
            "validation": round(student.recipe["evidence"]["student"], 5),
            **self.scores(student.sample(self.count, first=UNSEEN)),
            "images": cost["images"],
            "forwards": cost["calls"]["teacher"] + 3 * cost["calls"]["student"],
            "seconds": cost["seconds"],
            "levels": [round(level, 5) for level in student.grid.sigmas.tolist()],
        }
        self.keep(runs=[found])
        print(f"{row.label}: {found}", flush=True)


def levels(settings: Changes, teacher: Denoiser, calls: int) -> Changes:
    """The karras grid of another rho, with the teacher's own ends and the analytic first step."""
    if RHO not in settings:
        return settings
    grid = karras(teacher.process, calls + 1, rho=settings[RHO], end="sigma_min").sigmas
    assert explicit(grid, end="sigma_min").calls == calls + 1
    return {"grid": grid.tolist(), "end": "sigma_min"}


def known(name: str) -> dict[str, list[dict[str, Any]]]:
    file = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return {key: found.get(key, []) for key in ("controls", "runs")}


def runs_of(runs: list[dict[str, Any]], row: Row, **facts: Any) -> list[dict[str, Any]]:
    wanted = {"method": row.method, "settings": row.settings, **facts}
    return [run for run in runs if wanted.items() <= run.items()]


def chosen_runs(runs: list[dict[str, Any]], row: Row, rates: int) -> list[dict[str, Any]]:
    """For each seed that has learned at all rates, the run that its own validation prefers."""
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for run in runs_of(runs, row):
        by_seed.setdefault(run["seed"], []).append(run)
    return [min(tried, key=lambda run: run["validation"]) for tried in by_seed.values() if len(tried) == rates]


def best_control(controls: list[dict[str, Any]], calls: int) -> dict[str, Any]:
    return min((one for one in controls if one["way"].endswith(f", {calls} calls")), key=lambda one: one["to_fine"])


# --- shown ------------------------------------------------------------------------------------------------------------


def markdown(name: str, calls: int, rates: int) -> Iterator[str]:
    found = known(name)
    for title, rows in (("one after the other", path()), ("from the defaults, K = 3", singles())):
        yield f"| {title} | RMSE to fine | change | FD | rate | trajectories | forwards | seconds | seeds |"
        yield "|---|---|---|---|---|---|---|---|---|"
        before: float | None = None
        for row in rows:
            group = chosen_runs(found["runs"], row, rates)
            if group:
                now = mean(run["to_fine"] for run in group)
                change = "" if before is None else f"{now / before - 1:+.0%}"
                yield f"| {row.label} | " + " | ".join(cells(group, change)) + " |"
                before = now if before is None or row.block == "path" else before
        for one in (best_control(found["controls"], calls), best_control(found["controls"], BEST[1])):
            yield f"| solver: {one['way']} | {one['to_fine']:.4f} |  | {fd_cell([one])} | - | - | - | - | - |"
        yield ""


def cells(group: list[dict[str, Any]], change: str) -> list[str]:
    text = spread([run["to_fine"] for run in group], 4)
    rate = ", ".join(f"{one:.0e}".replace("e-0", "e-") for one in sorted({run["lr"] for run in group}))
    costs = [f"{mean(run[key] for run in group):,.0f}" for key in ("images", "forwards", "seconds")]
    return [text, change, fd_cell(group), rate, *costs, str(len(group))]


def fd_cell(group: list[dict[str, Any]]) -> str:
    return f"{mean(one['fd']['value'] for one in group):.2f} ± {mean(one['fd']['spread'] for one in group):.2f}"


def picture(name: str, teacher: str, calls: int, rates: int) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = known(name)
    best = best_control(found["controls"], calls)["to_fine"]
    figure, panels = plt.subplots(1, 2, figsize=(13, 9), layout="constrained")
    titles = (
        "From vanilla distillation to our defaults, one change after the other",
        "One change to our defaults, K = 3",
    )
    for axes, rows, title in zip(panels, (path(), singles()), titles, strict=True):
        groups = [(row, [run["to_fine"] for run in chosen_runs(found["runs"], row, rates)]) for row in rows]
        groups = [(row, values) for row, values in groups if values]
        panel(axes, groups, best, calls)
        axes.set_title(title, fontsize=11.5)
    lines = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
    figure.suptitle(f"{teacher}, {calls} calls, every student at the same cost", fontsize=14)
    figure.savefig(PICTURE, dpi=110)


def panel(axes: Any, groups: list[tuple[Row, list[float]]], best: float, calls: int) -> None:
    """A row for each change: the path as a line, single changes as bars beside the defaults, which come first."""
    means, places = [mean(values) for _, values in groups], spaced([row for row, _ in groups])
    if groups[0][0].block == "path":
        axes.plot(means, places, "o-", color="tab:blue", zorder=2)
    else:
        colours = ["black", *("tab:blue" if value < means[0] else "tab:gray" for value in means[1:])]
        axes.barh(places, means, color=colours, height=0.75, zorder=2)
        axes.axvline(means[0], color="black", linestyle=":", linewidth=1.2, label="our defaults", zorder=3)
    axes.axvline(best, color="tab:red", linestyle="--", linewidth=1.2, label=f"best solver, {calls} calls", zorder=1)
    for place, (_, values) in zip(places, groups, strict=True):
        if len(values) > 1:
            axes.plot(values, [place] * len(values), "|", color="tab:orange", markersize=9, label="each seed", zorder=4)
        where, plain = (max(values), place), {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.annotate(
            f"{mean(values):.3f}",
            where,
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            bbox=plain,
            zorder=3,
        )
    axes.set_yticks(places, [row.label for row, _ in groups], fontsize=9.5)
    axes.set_ylim(places[-1] + 0.7, -0.7)
    axes.set_xlim(0, 1.15 * max(*(max(values) for _, values in groups), best))
    axes.set_xlabel("RMSE to the teacher's fine solution, same noise (less is better)")
    axes.grid(axis="x", alpha=0.3, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def spaced(rows: list[Row]) -> list[float]:
    """Where rows stand: factors of the single changes apart from each other."""
    places, factors = [0.0], [row.label.partition(":")[0] if row.block == "single" else "" for row in rows]
    for before, now in pairwise(factors):
        places.append(places[-1] + 1 + 0.5 * (before != now))
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--images", type=int, default=2400, help="trajectories of the defaults; the others' follow")
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4], help="of Adam, of which one is kept")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--table", action="store_true", help="print what is known and do nothing else")
    parser.add_argument(
        "--plot", action="store_true", help=f"draw what is known, docs/{PICTURE.name}, and do nothing else"
    )
    arguments = parser.parse_args()
    name = f"sfd_ablation_{arguments.teacher}_{arguments.calls}_{arguments.images}"
    if arguments.table:
        print("\n".join(markdown(name, arguments.calls, len(arguments.rates))))
    if arguments.plot:
        picture(name, arguments.teacher, arguments.calls, len(arguments.rates))
    if arguments.table or arguments.plot:
        return
    teacher = onefold.load_teacher(arguments.teacher, device="cpu", precision="fp32")
    ablation = Ablation(teacher, name, arguments.calls, arguments.images, arguments.count)
    ablation.controls()
    for seed in arguments.seeds:
        for row in [*path(), *singles()]:
            for rate in arguments.rates:
                ablation.student(row, seed, rate)


if __name__ == "__main__":
    main()
