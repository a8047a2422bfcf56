"""Which of its teacher's steps a student keeps: each sub-sequence with its own training, its own levels and its own sampling.

python benchmarks/subsequences.py digits8 --calls 16 --budget 5k

For every phi: the teacher strided over it (DDIM and ancestral), and an SFDDM student that was trained for just these levels. The published
ablation loads one student's weights, levels included, into all others; here a student of another phi is refused.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from pairs import save
from rich.progress import track
from sfddm import UNSEEN, data_of, frechet

import onefold
from onefold.bench.ways import FINE
from onefold.grids import Grid
from onefold.losses import root_mean_square

# 9, 5 and 3 of 16 steps in the middle are those of the published runs (S1, S2, S3)
WAYS = ["uniform", "start", "quadratic", "karras", "logsnr", "gits"]
WAYS += ["concentrated:0.5625", "concentrated:0.3125", "concentrated:0.1875", "scattered"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--calls", type=int, default=16)
    parser.add_argument("--budget", default="5k", help="of each student")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--phi", nargs="+", default=WAYS)
    arguments = parser.parse_args()
    teacher = onefold.load_teacher(arguments.teacher, device="cpu", precision="fp32")
    how: dict[str, Any] = {"count": arguments.count, "first": UNSEEN}
    fine = onefold.sample(teacher, solver=FINE[0], calls=FINE[1], **how)
    rows: list[dict[str, Any]] = []
    for phi in track(arguments.phi, description="phi"):
        with tempfile.TemporaryDirectory() as out:
            student = onefold.distill(
                teacher,
                "sfddm",
                out=Path(out) / "run",
                calls=arguments.calls,
                budget=arguments.budget,
                preset="paper",
                data=data_of(teacher),
                phi=phi,
                device="cpu",
                watched=4,
            )
        grid: Grid = student.grid
        ddim, ancestral = (
            onefold.sample(teacher, solver=name, grid=teachers(grid), **how) for name in ("euler", "ancestral")
        )
        images = student.sample(**how)
        rows.append(
            {
                "phi": phi,
                "steps": list(grid.phi or ()),
                "ddim_to_fine": root_mean_square(ddim, fine),
                "student_to_ddim": root_mean_square(images, ddim),
                "fd": {
                    name: frechet(teacher, drawn)["scores"]
                    for name, drawn in (("ddim", ddim), ("ancestral", ancestral), ("student", images))
                },
            }
        )
        print(rows[-1], flush=True)
        result = {
            "what": __doc__.splitlines()[0],
            "calls": arguments.calls,
            "budget": arguments.budget,
            "count": arguments.count,
            "rows": rows,
        }
        save(f"subsequences_{teacher.name}_{arguments.calls}", result, show=False)
    print("\n".join(markdown(rows)))


def teachers(grid: Grid) -> Grid:
    """Without the student's own times."""
    return Grid(grid.sigmas, phi=grid.phi)


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| phi | DDIM to fine | student to DDIM | FD: DDIM | ancestral | student |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["ddim_to_fine"]):
        scores = [next(iter(row["fd"][kind].values())) for kind in ("ddim", "ancestral", "student")]
        told = " | ".join(f"{score['value']:.2f} ± {score['spread']:.2f}" for score in scores)
        lines.append(f"| {row['phi']} | {row['ddim_to_fine']:.4f} | {row['student_to_ddim']:.4f} | {told} |")
    return lines


if __name__ == "__main__":
    main()
