"""The frontier as a page: pictures, table and images in one HTML file that asks nothing of any network."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

from drawn import drawn_by_students, drawn_by_teacher
from plots import plot
from tables import heading, markdown

from onefold.pictures import labelled_rows

PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap }
.wide { overflow-x: auto }
code { font-size: 12px }
h2 { margin-top: 2.5rem }
small { color: #666 }
</style>
<h1>$title</h1>
<p>$what</p>
<p>$heading</p>
<h2>Like the data</h2><img alt="distance to the data" src="$fd">
<h2>Like the teacher, from the same noise</h2><img alt="RMSE to the teacher's fine solution" src="$rmse">
<h2>All numbers</h2>
<p>Distance to the data / RMSE; means over the seeds, with half of their range. Bold is on the frontier of its measure: nothing is better for as few calls and as little
training. Seconds and recall are those of the largest budget.</p>
<div class="wide">$table</div>
<h2>Images</h2><p>The same noise in each column; every method at its largest budget, with its distance to the data.</p>
$images
<p><small><code>$command</code><br>$machine</small></p>
</html>
""")


def write_page(known: dict[str, Any], runs: Path, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    values = {
        "title": f"{html.escape(known['teacher'])}: which method pays at which budget",
        "what": html.escape(known["what"]),
        "heading": code(heading(known)),
        "table": "\n".join(table(known)),
        "images": "\n".join(images(known, runs)),
        "command": html.escape(known["command"]),
        "machine": html.escape(
            ", ".join(f"{key} {value}" for key, value in {**known["versions"], **known["machine"]}.items())
        ),
        **{measure: picture_of(known, measure) for measure in ("fd", "rmse")},
    }
    path = out / "frontier.html"
    path.write_text(PAGE.substitute(values), encoding="utf-8")
    return path


def picture_of(known: dict[str, Any], measure: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plot.svg"
        plot(known, measure, path)
        return inline(path.read_bytes(), "svg+xml")


def inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def code(text: str) -> str:
    """Markdown's spans of code and bold, as HTML."""
    for mark, tag in (("`", "code"), ("**", "b")):
        parts = text.split(mark)
        text = "".join(part if not number % 2 else f"<{tag}>{part}</{tag}>" for number, part in enumerate(parts))
    return text


def table(known: dict[str, Any]) -> Iterator[str]:
    rows = [line for line in markdown(known) if line.startswith("|") and not line.startswith("|---")]
    yield "<table>"
    for number, row in enumerate(rows):
        cell = "td" if number else "th"
        yield (
            "<tr>"
            + "".join(f"<{cell}>{code(html.escape(text.strip()))}</{cell}>" for text in row.strip("|").split("|"))
            + "</tr>"
        )
    yield "</table>"


def images(known: dict[str, Any], runs: Path) -> Iterator[str]:
    """A picture for each number of calls."""
    for calls in known["plan"]["calls"]:
        rows = [*drawn_by_teacher(known, runs), *drawn_by_students(known, runs, calls)]
        if rows:
            buffer = io.BytesIO()
            labelled_rows(rows).save(buffer, "PNG")
            yield f'<h3>{calls} call{"s" * (calls != 1)}</h3><img alt="images of {calls} calls" src="{inline(buffer.getvalue(), "png")}">'
