"""How near solvers come to a teacher's own fine solution at few calls: a table and a picture.

python benchmarks/solvers.py fashion28 --picture docs/solvers.png
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from pairs import save

import onefold
from onefold.bench.solvers import compare_solvers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="where to keep the picture")
    arguments = parser.parse_args()
    teacher = onefold.load_teacher(arguments.teacher, device="cpu", precision="fp32")
    with tempfile.TemporaryDirectory() as out:
        comparison = compare_solvers(teacher, count=arguments.count, seed=arguments.seed, out=out)
        if arguments.picture:
            shutil.copyfile(comparison.picture, arguments.picture)
    facts = {key: value for key, value in comparison.as_dict().items() if key not in ("picture", "seconds")}
    save(f"solvers_{teacher.name}", {"what": "RMSE to the fine solution, same noise", "seed": arguments.seed, **facts})


if __name__ == "__main__":
    main()
