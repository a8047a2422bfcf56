"""What `import onefold` costs beside `import torch`: the bound is 1.2 times.

python benchmarks/import_time.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from pairs import interleave, save, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    arguments = parser.parse_args()

    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    # every public name but those that need diffusers, so that laziness alone cannot pass
    names = "import onefold; onefold.Grid, onefold.Denoiser, onefold.UserError"
    seconds = interleave(lambda: run(names), lambda: run("import torch"), arguments.pairs)
    save("import_time", {"what": "import onefold with its core / import torch", **summary(seconds, 1.2)})


if __name__ == "__main__":
    main()
