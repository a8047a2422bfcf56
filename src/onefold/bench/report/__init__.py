"""The report of a comparison: one HTML file that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from onefold.bench.report.results import FILE, read_results
from onefold.files import atomic_file

__all__ = ["REPORT", "read_results", "write_report"]

REPORT = "report.html"
SCRIPTS = ("rows.js", "charts.js", "images.js", "script.js")  # one module, in this order


def write_report(folder: str | Path) -> Path:
    """`report.html`, drawn from the results.json of a folder and the pictures beside it."""
    folder = Path(folder)
    path = folder / REPORT
    text = page(read_results(folder), folder)
    with atomic_file(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


def page(results: dict[str, Any], folder: Path) -> str:
    style, script = source("style.css"), "\n".join(source(name) for name in SCRIPTS)
    return Template(source("page.html")).substitute(
        policy=policy(style, script),
        title=html.escape(results["title"]),
        style=style,
        script=script,
        data=inert({"file": FILE, **results, "pictures": pictures(results, folder)}),
    )


def source(name: str) -> str:
    return (files("onefold.bench.report") / name).read_text(encoding="utf-8")


def policy(style: str, script: str) -> str:
    """Nothing is loaded, and nothing runs but the page's own style and script, known by their hashes."""
    hashes = {f"{kind}-src": f"'sha256-{digest(text)}'" for kind, text in (("style", style), ("script", script))}
    rules = {"default-src": "'none'", **hashes, "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{rule} {value}" for rule, value in rules.items())


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def inert(values: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in: in a string `\\u003c` reads as `<` again."""
    return json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def pictures(results: dict[str, Any], folder: Path) -> dict[str, str]:
    """The bytes of every picture under its name, in base 64."""
    named = [part["picture"] for kind in ("rows", "interpolations", "trajectories") for part in results[kind]]
    return {name: base64.b64encode((folder / name).read_bytes()).decode() for name in dict.fromkeys(named)}
