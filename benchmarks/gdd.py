"""GDD's variants beside their teacher and SFD's second stage, by distances to the data.

python benchmarks/gdd.py digits8 --data digits --budget 128k --seeds 0 1 2
python benchmarks/gdd.py digits8 --table          # what is known, as Markdown
python benchmarks/gdd.py digits8 --curves docs/gdd.png

All students make one call. Images come from noise that no training has seen, and features from a network that no discriminator has seen.
`--share 0.1` learns from a tenth of the real images. What the result file holds is skipped, so the table grows over several calls.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from pairs import save
from sfd_family import forwards as of_sfd
from sfddm import known, spread

import onefold
from onefold.bench.ways import BEST
from onefold.data import load_data
from onefold.metrics.references import NAME
from onefold.pictures import labelled_rows, save_png
from onefold.settings import parse_assignments
from onefold.student import Student, load_student
from onefold.training.budget import Budget

UNSEEN = 1_000_000  # the seed of the comparison
SHOWN = 20
METRICS = ("fd", "precision", "recall", "fd[pixels]")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gdd": ("GDD, teacher's features", {}),
    "gdd_i": ("GDD-I, teacher's features", {"freeze": "gdd_i"}),
    "scratch": ("GDD, discriminator from scratch", {"discriminator": "scratch"}),
    "scratch_i": ("GDD-I, discriminator from scratch", {"discriminator": "scratch", "freeze": "gdd_i"}),
    "random": ("GDD, features of random weights", {"discriminator": "random"}),
    "drawn": ("GDD, teacher's features, without data", {"data": None}),
    "two": ("GDD, two calls", {"calls": 2}),
}
STAGES = "second"  # SFD of four calls, then its second stage
TEACHER = (1, 2, 4, 10, 40)  # calls


class Table:
    """What was measured, kept as it grows."""

    def __init__(self, teacher: str, arguments: argparse.Namespace) -> None:
        self.teacher, self.given, self.name = teacher, arguments, f"gdd_{Path(teacher).name}"
        self.pictures: dict[str, Any] = {}

    @property
    def references(self) -> list[str]:
        """Statistics of features, and images for the distance in pixels."""
        home = onefold.load_teacher(self.teacher, device="cpu").home
        return [self.given.reference or str(home / NAME), self.given.data]

    def has(self, **names: Any) -> bool:
        return any(names.items() <= row.items() for row in known(self.name))

    def add(self, model: Any, **facts: Any) -> None:
        given = self.given
        how: dict[str, Any] = {"calls": facts["calls"], "solver": BEST[0]} if facts["kind"] == "teacher" else {}
        found = onefold.evaluate(
            model,
            reference=self.references,
            metrics=METRICS,
            count=given.count,
            seed=UNSEEN,
            device=given.device,
            **how,
        )
        row = {**facts, "scores": found["scores"]}
        save(
            self.name,
            {"what": __doc__.splitlines()[0], "count": given.count, "rows": [*known(self.name), row]},
            show=False,
        )
        print(
            facts["kind"],
            facts.get("seed"),
            {key: score["value"] for key, score in found["scores"].items()},
            flush=True,
        )

    def distil(self, folder: Path, teacher: str, method: str, **how: Any) -> Student:
        if (folder / "student").is_dir():
            return load_student(folder, device=self.given.device, precision="fp32")
        return onefold.distill(teacher, method, out=folder, device=self.given.device, watched=4, **how)

    def learn(self, kind: str, seed: int, folder: Path) -> None:
        given, images = self.given, Budget.parse(self.given.budget).images
        names = {"kind": kind, "seed": seed, "images": images, "share": given.share}
        if self.has(**names):
            return
        out = folder / "_".join(map(str, names.values()))
        settings = {"data": data_of(given.data, given.share, folder), **VARIANTS[kind][1], **given.set}
        how = {"seed": seed, "budget": given.budget, "sample_every": given.every, "calls": 1, **settings}
        student = self.distil(out, self.teacher, "gdd", **how)
        self.pictures[VARIANTS[kind][0]] = student.sample(SHOWN, seed=UNSEEN)
        chosen = {key: student.recipe["settings"][key] for key in told_of(settings)}
        self.add(
            student,
            **names,
            calls=student.calls,
            cost=student.recipe["cost"],
            settings=chosen,
            curve=curve(out),
            evidence=student.recipe["evidence"],
        )

    def second_stage(self, seed: int, folder: Path) -> None:
        if self.has(kind=STAGES, seed=seed):
            return
        how = {"batch_size": 64, "seed": seed, "sample_every": "10h"}
        first = folder / f"first_{seed}"
        self.distil(first, self.teacher, "sfd", calls=4, budget=self.given.trajectories, grid="gits", pieces=4, **how)
        student = self.distil(
            folder / f"second_{seed}", str(first), "sfd_second", calls=1, budget=self.given.trajectories, **how
        )
        self.pictures["SFD's second stage"] = student.sample(SHOWN, seed=UNSEEN)
        self.add(student, kind=STAGES, seed=seed, calls=1, cost=student.recipe["cost"])


def told_of(settings: dict[str, Any]) -> list[str]:
    return [
        *(key for key in settings if key != "data"),
        "lr",
        "lr_discriminator",
        "batch_size",
        "penalty_weight",
        "schedule",
    ]


def data_of(source: str, share: float, folder: Path) -> str:
    """The same share of the images for every seed."""
    if share == 1:
        return source
    data = load_data(source)
    order = np.random.default_rng(0).permutation(len(data))[: max(2, round(share * len(data)))]
    images, labels = data.fetch(order.tolist())
    path = folder / f"{share:g}.npz"
    np.savez(path, images=images.numpy(), **({} if labels is None else {"labels": labels.numpy()}))
    return str(path)


def curve(out: Path) -> list[list[float]]:
    """(images seen, distance to the data, diversity) along the run."""
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    seen = [(row["images"], row["validation"]) for row in rows if "validation" in row]
    return [[images, *list(numbers.values())[:2]] for images, numbers in seen]


# --- the table --------------------------------------------------------------------------------------------------------


def markdown(name: str) -> Iterator[str]:
    rows = known(name)
    (fd, *others) = rows[0]["scores"]
    floor = rows[0]["scores"][fd]["floor"]
    yield f"Real images have {fd} {floor['value']:.2f} ({floor['about']})."
    yield ""
    yield f"| model | calls | {fd} | " + " | ".join(others) + " | images | forwards | seconds | seeds |"
    yield "|---" * (7 + len(others)) + "|"
    for group in grouped(rows):
        first = group[0]
        values = [spread([row["scores"][key]["value"] for row in group], 2) for key in (fd, *others)]
        values[0] += f" ± {mean(row['scores'][fd]['spread'] for row in group):.2f}"
        yield "| " + " | ".join([label(first), str(first["calls"]), *values, *costs(group), str(len(group))]) + " |"


def grouped(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row.get("images"), row.get("share"), row["calls"]), []).append(row)
    order = ["teacher", STAGES, *VARIANTS]
    return sorted(
        groups.values(),
        key=lambda group: (order.index(group[0]["kind"]), -group[0].get("share", 1.0), group[0]["calls"]),
    )


def label(row: dict[str, Any]) -> str:
    if row["kind"] == "teacher":
        return f"teacher, {BEST[0]}"
    if row["kind"] == STAGES:
        return "SFD's second stage, without data"
    return VARIANTS[row["kind"]][0] + (f", {row['share']:.0%} of the data" if row["share"] < 1 else "")


def costs(group: list[dict[str, Any]]) -> list[str]:
    spent = [row["cost"] for row in group if "cost" in row]
    if not spent:
        return ["-"] * 3
    return [
        f"{mean(cost['images'] for cost in spent):,.0f}",
        f"{mean(map(of_sfd if group[0]['kind'] == STAGES else forwards, spent)):,.0f}",
        f"{mean(cost['seconds'] for cost in spent):,.0f}",
    ]


def forwards(cost: dict[str, Any]) -> int:
    """Of two calls of the generator one is trained, which is about three; the teacher's encoder counts as all of it, heads do not."""
    return 2 * int(cost["calls"]["student"]) + int(cost["calls"].get("teacher", 0))


def plot(name: str, path: Path) -> None:
    """Distance against images seen, all seeds of each variant, from the runs' own validation."""
    import matplotlib.pyplot as plt

    # of a part of the data the runs measured the distance to that part
    rows = [row for row in known(name) if "curve" in row and row["share"] == 1]
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for number, group in enumerate(grouped(rows)):
        for row in group:
            images, distances, _ = zip(*row["curve"], strict=True)
            axes.plot(images, distances, color=f"C{number}", alpha=0.8, label=label(row) if row is group[0] else None)
    beside = rows[0]["evidence"]["teacher"]
    axes.axhline(beside["value"], color="0.6", ls="--", lw=1)
    axes.annotate(
        f"teacher, {beside['calls']} calls",
        (0.99, beside["value"]),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
        color="0.4",
    )
    axes.set(
        xlabel="real images seen",
        ylabel="distance to the data",
        yscale="log",
        title=f"{name.removeprefix('gdd_')}: one call, by a discriminator alone",
    )
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--reference", help="statistics of features, if not those beside the teacher")
    parser.add_argument("--kinds", nargs="+", default=["gdd", "gdd_i", "scratch", "random", "drawn", STAGES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", default="128k")
    parser.add_argument("--every", default="8k", help="images between validations")
    parser.add_argument("--trajectories", default="9600", help="of each of SFD's stages")
    parser.add_argument("--share", type=float, default=1.0, help="of the real images")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of all students, KEY=VALUE")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder of the runs, to go on with; a temporary one without it")
    parser.add_argument("--picture", type=Path, help="file for a picture of the last seed's students")
    parser.add_argument("--curves", type=Path, help="plot what is known against images seen, and do nothing else")
    parser.add_argument("--table", action="store_true", help="print the table and do nothing else")
    given = parser.parse_args()
    given.set = parse_assignments(given.set)
    table = Table(given.teacher, given)
    if given.table:
        print("\n".join(markdown(table.name)))
        return
    if given.curves:
        plot(table.name, given.curves)
        return
    with tempfile.TemporaryDirectory() as temporary:
        run(table, given.out or Path(temporary))


def run(table: Table, folder: Path) -> None:
    given = table.given
    folder.mkdir(parents=True, exist_ok=True)
    teacher = onefold.load_teacher(given.teacher, device=given.device, precision="fp32")
    for calls in TEACHER:
        if not table.has(kind="teacher", calls=calls):
            table.add(teacher, kind="teacher", calls=calls)
    for seed in given.seeds:
        for kind in given.kinds:
            table.second_stage(seed, folder) if kind == STAGES else table.learn(kind, seed, folder)
    if given.picture:
        images = {
            f"teacher\n{calls} calls": onefold.sample(teacher, SHOWN, solver=BEST[0], calls=calls, seed=UNSEEN)
            for calls in (1, 40)
        }
        save_png(
            labelled_rows(
                list((images | table.pictures).items()), title=f"{teacher.name}: the same noise in each column"
            ),
            given.picture,
        )


if __name__ == "__main__":
    main()
