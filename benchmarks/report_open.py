"""How fast the report of 30 rows of 64 images opens in headless Chromium: the bound is a second.

    python benchmarks/report_open.py

Times are counted from the start of the navigation, in a browser that runs already, as the page's own clock gives them: the
first contentful paint, the load event, and the moment when all is drawn (charts, table and both panels of images, and two
frames more). The first opening stands beside the median and the slowest of the others. Pictures of 28x28 in grey and of 32x32
in colour, noise on all of them so that they do not compress.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pairs import save
from PIL import Image

from onefold.bench.report import write_report

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from chromium import Chromium, chromium, find_chromium
from comparisons import write_comparison

BOUND = 1.0
DRAWN = """new Promise((done) => {
  const paint = () => performance.getEntriesByName("first-contentful-paint")[0];
  const look = () => {
    const busy = document.querySelectorAll("[aria-busy=false]").length < 2 || !paint();
    if (busy) return requestAnimationFrame(look);
    requestAnimationFrame(() => requestAnimationFrame(() => done({
      first_paint: paint().startTime / 1000,
      load: performance.getEntriesByType("navigation")[0].loadEventEnd / 1000,
      drawn: performance.now() / 1000,
      nodes: document.querySelectorAll("*").length,
    })));
  };
  look();
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=15, help="how often each report is opened")
    times = parser.parse_args().times
    program = find_chromium()
    if program is None:
        sys.exit("Chromium is not installed; on Debian: apt install chromium")
    with tempfile.TemporaryDirectory() as folder, chromium(program, Path(folder) / "profile") as browser:
        browser.show(1280)
        reports = {
            f"{size[1]}x{size[2]}x{size[0]}": opened(browser, Path(folder) / f"{size[0]}", size, times)
            for size in ((1, 28, 28), (3, 32, 32))
        }
        version = browser.call("Browser.getVersion")["product"]
    what = "seconds until the report of 30 rows x 64 images is painted, loaded, drawn; medians and the slowest"
    holds = all(max(report["drawn"].values()) < BOUND for report in reports.values())
    save(
        "report_open",
        {"what": what, "bound": BOUND, "holds": holds, "times": times, "reports": reports, "browser": version},
    )


def opened(browser: Chromium, folder: Path, size: tuple[int, int, int], times: int) -> dict[str, Any]:
    folder.mkdir()
    roughen(folder, write_comparison(folder, size=size))
    report = write_report(folder)
    seen = []
    for _ in range(times + 1):
        browser.open(report)
        seen.append(browser.evaluate(DRAWN))
    facts = {"mebibytes": round(report.stat().st_size / 2**20, 2), "nodes": seen[0]["nodes"]}
    return facts | {name: summary([one[name] for one in seen]) for name in ("first_paint", "load", "drawn")}


def roughen(folder: Path, results: dict[str, Any]) -> None:
    """Pictures that a PNG cannot make small."""
    draw = np.random.default_rng(0)
    for row in results["rows"]:
        with Image.open(folder / row["picture"]) as picture:
            pixels = np.asarray(picture) // 2 + draw.integers(0, 128, np.asarray(picture).shape, np.uint8)
        Image.fromarray(pixels).save(folder / row["picture"])


def summary(seconds: list[float]) -> dict[str, float]:
    first, *rest = (round(second, 3) for second in seconds)
    return {"first": first, "median": statistics.median(rest), "slowest": max(rest)}


if __name__ == "__main__":
    main()
