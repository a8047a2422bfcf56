"""What loading an EDM checkpoint costs: seconds and memory, for NCSN++ of 64 pixels with 62.8 million parameters.

    python benchmarks/edm_load.py

The bounds are 5 seconds and 1.5 times the file's size. The checkpoint has the published record form and random weights;
every load is a process of its own. Beside it: what Python takes to only read the bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pairs import save

from onefold.networks.edm_plan import NCSNPP

TESTS = Path(__file__).parents[1] / "tests"
LOAD = """
import json, resource, sys, time
import onefold.teachers.edm as edm
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, begin = peak(), time.perf_counter()
teacher = edm.read_checkpoint(sys.argv[1])
seconds, after = time.perf_counter() - begin, peak()
begin = time.perf_counter()
open(sys.argv[1], "rb").read()
count = sum(p.numel() for p in teacher.module.parameters())
print(json.dumps([seconds, after - before, time.perf_counter() - begin, count]))
"""


def write_checkpoint(folder: Path) -> Path:
    sys.path.insert(0, str(TESTS))
    from edm_pickles import write

    size = {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "channel_mult": [1, 2, 2, 2]}
    case: dict[str, Any] = {
        "path": str(folder / "ncsnpp.pkl"),
        "network": {"kind": "SongUNet", **NCSNPP, **size},
        "preconditioning": {"kind": "EDMPrecond", "sigma_min": 0.0, "sigma_max": float("inf"), "sigma_data": 0.5},
    }
    write([case], folder)
    return folder / "ncsnpp.pkl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder))
        size = path.stat().st_size
        runs = []
        for _ in range(arguments.runs):
            done = subprocess.run([sys.executable, "-c", LOAD, str(path)], check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout))
            print(f"{runs[-1][0]:.2f} s, memory {runs[-1][1] / size:.2f} of the file's size", flush=True)
    seconds, memory, reading, counts = (list(column) for column in zip(*runs, strict=True))
    result = {
        "what": "read_checkpoint of NCSN++ at 64 pixels, each in a fresh process after the imports",
        "parameters": counts[0],
        "file_bytes": size,
        "seconds": {"median": round(statistics.median(seconds), 3), "all": [round(value, 3) for value in seconds]},
        "seconds_to_read_the_bytes": round(statistics.median(reading), 3),
        "memory_by_file_size": round(max(memory) / size, 3),
        "bounds": {"seconds": 5, "memory_by_file_size": 1.5},
        "holds": max(seconds) < 5 and max(memory) / size < 1.5,
    }
    save("edm_load", result)


if __name__ == "__main__":
    main()
