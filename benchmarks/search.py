"""A written-down search of a method's settings: every configuration that was tried, at the same cost, on the same noise.

python benchmarks/search.py digits8 --budget 6400 --method sfd lr=5e-4 "lr=1e-3 dropout=false"

Each positional argument after the teacher is one configuration; what the result file already holds at this budget is
skipped, so that a search grows over several calls and goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from pairs import RESULTS, save
from rich.progress import track

from onefold.bench.evaluate import evaluate
from onefold.distilling import distill
from onefold.settings import parse_assignments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("configurations", nargs="+", metavar="'KEY=VALUE ...'")
    parser.add_argument("--method", default="sfd")
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--budget", default="6400", help="for each, in images")
    parser.add_argument("--watched", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--fd", type=int, default=0, help="also the Fréchet distance, of so many images")
    arguments = parser.parse_args()
    name = f"search_{arguments.method}_{Path(arguments.teacher).name}"
    common = {"calls": arguments.calls, "budget": arguments.budget, "watched": arguments.watched}
    tried = read(name)
    wanted = [
        {**common, "seed": seed, **parse_assignments(text.split())}
        for text in arguments.configurations
        for seed in arguments.seeds
    ]
    for settings in track(wanted, description=name):
        if not any(settings.items() <= row["settings"].items() for row in tried):
            tried.append(run(arguments.teacher, arguments.method, settings, arguments.fd))
            save(name, {"what": "RMSE to the teacher's fine solution, same noise", "tried": tried}, show=False)
            print(json.dumps(tried[-1]), flush=True)


def read(name: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{name}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())["tried"] if path.exists() else []
    return found


def run(teacher: str, method: str, settings: dict[str, Any], count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        student = distill(teacher, method, out=Path(out) / "run", device="cpu", **settings)
        lines = map(json.loads, (Path(out) / "run" / "metrics.jsonl").read_text().splitlines())
        looks = [(line["images"], line["validation"]) for line in lines if "validation" in line]
        scores = evaluate(student, metrics=["fd"], count=count, device="cpu")["scores"] if count else {}
    evidence, cost = student.recipe["evidence"], student.recipe["cost"]
    best = evidence["solvers"][evidence["best_solver"]]
    left_out = {"out", "teacher", "method", "device"}
    return {
        "settings": {name: value for name, value in student.recipe["settings"].items() if name not in left_out},
        "student": round(evidence["student"], 5),
        "validation": {name: round(value, 5) for name, value in looks[-1][1].items()},
        "along": [[images, round(next(iter(numbers.values())), 4)] for images, numbers in looks],
        "solvers": {name: round(value, 5) for name, value in evidence["solvers"].items()},
        "best_solver": round(best, 5),
        "ratio": round(best / evidence["student"], 3),
        "seconds": cost["seconds"],
        **{name: round(score["value"], 4) for name, score in scores.items()},
    }


if __name__ == "__main__":
    main()
