"""Students with the default settings beside the teacher's best solver at as many calls, for several seeds.

python benchmarks/students.py digits8 --budget 20k --seeds 0 1 2

The images that are compared come from noise that neither training nor the choice of settings has seen.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from pairs import save

import onefold
from onefold.bench.ways import FINE
from onefold.losses import root_mean_square
from onefold.methods.base import CONTROL
from onefold.progress import terminal_progress
from onefold.settings import parse_assignments

UNSEEN = 1_000_000  # the first image of the comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--method", default="sfd")
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--budget", default="20k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    teacher = onefold.load_teacher(arguments.teacher, device=arguments.device, precision="fp32")
    with terminal_progress("fine solution") as progress:
        how: dict[str, Any] = {"first": UNSEEN, "batch_size": 64}
        reference = onefold.sample(teacher, arguments.count, solver=FINE[0], calls=FINE[1], progress=progress, **how)
    solvers = {
        f"{solver} on {grid}": root_mean_square(
            onefold.sample(teacher, arguments.count, solver=solver, grid=grid, calls=arguments.calls, **how), reference
        )
        for solver in CONTROL
        for grid in ("auto", "gits")
    }
    best = min(solvers, key=solvers.__getitem__)
    runs = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as out, terminal_progress(f"seed {seed}") as progress:
            student = onefold.distill(
                teacher,
                arguments.method,
                out=Path(out) / "run",
                calls=arguments.calls,
                budget=arguments.budget,
                seed=seed,
                device=arguments.device,
                progress=progress,
                **parse_assignments(arguments.set),
            )
            distance = root_mean_square(student.sample(arguments.count, **how), reference)
        cost = student.recipe["cost"]
        runs.append({"seed": seed, "distance": distance, "ratio": solvers[best] / distance, "cost": cost})
        result = {
            "what": "RMSE to the teacher's fine solution, same noise; ratio = best solver / student",
            "settings": {k: v for k, v in student.recipe["settings"].items() if k not in ("out", "seed")},
            "images": arguments.count,
            "solvers": solvers,
            "best_solver": best,
            "runs": runs,
            "smallest_ratio": min(run["ratio"] for run in runs),
        }
        save(f"students_{arguments.method}_{teacher.name}_{arguments.calls}_{arguments.budget}", result, show=False)
        print(runs[-1], flush=True)


if __name__ == "__main__":
    main()
