"""onefold evaluate and onefold compare: the measuring bench."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from onefold.cli.common import read_numbers, say, say_json, table, tell

References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        help="Real images, or statistics of them (.npz with mu and sigma); repeat it for several extractors. Default: what lies in the teacher's folder.",
        show_default=False,
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        help="fd, kid, precision, recall, density, coverage, accuracy, class-score, rmse, median, psnr, feature-distance (clip for `evaluate`); fd[inception] names another extractor. Default: the usual ones that can be measured.",
        show_default=False,
    ),
]
ExtractorName = Annotated[
    str | None,
    typer.Option(
        "--extractor",
        help="digits-cnn, fashion-cnn, inception, clip, dinov2, or yours as module:function. Default: the reference's.",
        show_default=False,
    ),
]
Weights = Annotated[Path | None, typer.Option(help="The extractor's weights, a file or folder.", show_default=False)]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="A file with one text a line: for models of texts, in turn, and for the metric clip.", show_default=False
    ),
]
Count = Annotated[int, typer.Option(min=2, help="Images of each.")]
Seed = Annotated[int, typer.Option(help="Names the noise; image i depends on the seed and i only.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps; auto says why.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate_command)
    app.command("compare")(compare_command)


def evaluate_command(
    source: Annotated[
        str, typer.Argument(help="A teacher, a student, or images (a folder or .npz).", show_default=False)
    ],
    reference: References = None,
    metrics: Metrics = None,
    teacher: Annotated[
        str | None, typer.Option(help="A student's teacher; default: the one it names.", show_default=False)
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Of a teacher (ipndm3).", show_default=False)] = None,
    calls: Annotated[
        int | None,
        typer.Option(min=1, help="Of a teacher (10), or which of a student's (its most).", show_default=False),
    ] = None,
    grid: Annotated[str | None, typer.Option(help="Of a teacher (auto, by process).", show_default=False)] = None,
    count: Annotated[
        int | None, typer.Option(min=2, help="Images; 512, or all that are given.", show_default=False)
    ] = None,
    seed: Seed = 0,
    extractor: ExtractorName = None,
    weights: Weights = None,
    prompts: Prompts = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Measure a teacher, a student or images.

    Each value comes with its spread (standard error) and the floor: what as many real images get.
    """
    from onefold.bench.evaluate import evaluate
    from onefold.progress import terminal_progress

    with terminal_progress("measuring", "calls") as progress:
        found = evaluate(
            source,
            reference=reference or (),
            metrics=words(metrics),
            teacher=teacher,
            solver=solver,
            calls=calls,
            grid=grid,
            count=count,
            seed=seed,
            extractor=extractor,
            weights=weights,
            prompts=prompts,
            batch_size=batch_size,
            device=device,
            precision=precision,
            progress=progress,
            tell=tell,
        )
    if as_json:
        say_json(found)
        return
    say(f"{found['source']}: {found.get('how', 'images')}, {found['count']:,} images")
    rows = [[key, *numbers(score), floor_text(score["floor"])] for key, score in found["scores"].items()]
    say(table(["metric", "value", "spread", "floor"], rows, right=(1, 2)))
    if "steps" in found:
        say()
        steps = [[f"{step['sigma']:.4g}", f"{step['rmse']:.4f}"] for step in found["steps"]]
        say(table(["at sigma", "RMSE to the teacher's path"], steps, right=(0, 1)))


def compare_command(
    models: Annotated[list[str], typer.Argument(help="Teachers (names or folders) and students.", show_default=False)],
    calls: Annotated[str, typer.Option(help="Network calls of the teachers' solvers.")] = "1,2,3,4,6,8,12",
    solvers: Annotated[str, typer.Option(help="How teachers step.")] = "euler,dpmpp2m,ipndm3",
    grids: Annotated[
        str, typer.Option(help="Where they step; auto by process, gits is tuned to the teacher.")
    ] = "auto,gits",
    count: Count = 512,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for results.json, pictures and report.html.")] = Path("comparison"),
    metrics: Metrics = None,
    reference: References = None,
    extractor: ExtractorName = None,
    weights: Weights = None,
    prompts: Prompts = None,
    published: Annotated[
        str | None,
        typer.Option(
            help="Draw shipped numbers of papers beside, if the data are the same: cifar10.", show_default=False
        ),
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Compare solvers and students from the same noise, and write a report to open.

    The same command goes on where it stopped; what was measured before is reused.
    """
    from onefold.bench.compare import compare
    from onefold.progress import terminal_progress

    with terminal_progress("comparing", "calls") as progress:
        comparison = compare(
            models,
            out=out,
            calls=read_numbers(calls, "--calls") or (),
            solvers=words(solvers) or (),
            grids=words(grids) or (),
            count=count,
            seed=seed,
            metrics=words(metrics),
            reference=reference or (),
            extractor=extractor,
            weights=weights,
            prompts=prompts,
            published=published,
            batch_size=batch_size,
            device=device,
            precision=precision,
            command=shlex.join(["onefold", *sys.argv[1:]]),
            progress=progress,
            tell=tell,
        )
    if as_json:
        say_json(comparison.results)
        return
    print_comparison(comparison.results)
    say("\n" + "".join(f"{line}\n" for line in verdicts(comparison.results)) + f"Open {comparison.report}")


def print_comparison(results: Any, calls: int | None = None) -> None:
    """By calls, then the best by the first metric; the extractor's name stands below where all metrics share it. With
    `calls` only rows of as many, and the teacher at its best."""
    from onefold.bench.picture import rank

    metrics = results["metrics"]
    extractors = {one["key"].partition("[")[2].rstrip("]") for one in metrics} - {""}
    names = [one["key"].partition("[")[0] if len(extractors) == 1 else one["key"] for one in metrics]
    wanted = [row for row in results["rows"] if calls in (None, row["calls"]) or row["kind"] == "best"]
    ordered = sorted(wanted, key=lambda row: (row["calls"], rank(row, metrics[0])))
    rows = [
        [
            row["label"] + (f" (fails: {row['broken']} images NaN)" if row["broken"] else ""),
            f"{row['nfe']:g}",
            *(cell(row["scores"].get(one["key"])) for one in metrics),
            milliseconds(row),
        ]
        for row in ordered
    ]
    rows.append(["floor: real images", "", *(floor_cell(one["floor"], results["count"]) for one in metrics), ""])
    say(table(["", "calls", *names, "ms/image"], rows, right=range(1, len(names) + 3)))
    told = [f"{results['count']:,} images each, from the same noise (seed {results['seed']}); +- is a standard error"]
    told += [f"features: {', '.join(extractors)}"] if len(extractors) == 1 else []
    told += [f"rmse, median: to the fine solution ({results['fine']})"] if "rmse" in names else []
    say("\n" + ";\n".join(told))


def verdicts(results: Any) -> Iterator[str]:
    """The best student at each number of calls beside the best solver, by the first metric and by the distance to the teacher."""
    from onefold.bench.picture import rank

    metrics = [one for place, one in enumerate(results["metrics"]) if not place or one["key"] == "rmse"]
    for calls, metric in product(sorted({row["calls"] for row in results["rows"]}), metrics):
        told = [
            row
            for row in results["rows"]
            if row["calls"] == calls and metric["key"] in row["scores"] and not row["broken"]
        ]
        students, solvers = ([row for row in told if row["kind"] == kind] for kind in ("student", "solver"))
        if students and solvers:
            ours, free = (min(rows, key=lambda row: rank(row, metric)) for rows in (students, solvers))
            names = [f"{row['label'].rpartition(', ')[0]} {cell(row['scores'][metric['key']])}" for row in (ours, free)]
            yield f"{calls} call{'s' * (calls != 1)}, {metric['key']}: {names[0]}; best solver {names[1]}"


def words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def cell(score: Any) -> str:
    """A value with as many decimals as its spread knows, and the spread."""
    if score is None:
        return ""
    value, spread = score["value"], score["spread"]
    if not spread:
        return significant(value, 3) + ("" if spread is None else " +-0")
    power = math.floor(math.log10(spread))
    digits = min(max((1 if spread / 10**power < 2.95 else 0) - power, 0), 6)  # a second one behind a leading 1 or 2
    return f"{value:.{digits}f} +-{spread:.{digits}f}"


def floor_cell(floor: Any, count: int) -> str:
    """With the number of real images where there are not as many."""
    if floor is None:
        return ""
    return significant(floor["value"], 3) + ("" if floor["count"] == count else f" of {floor['count']:,}")


def numbers(score: Any) -> tuple[str, str]:
    return significant(score["value"]), "" if score["spread"] is None else significant(score["spread"], 2)


def significant(value: float, digits: int = 4) -> str:
    return f"{value:#.{digits}g}".rstrip(".")


def milliseconds(row: Any) -> str:
    return "" if row["seconds_per_image"] is None else significant(1000 * row["seconds_per_image"], 3)


def floor_text(floor: Any) -> str:
    return "" if floor is None else f"{significant(floor['value'])} ({floor['about']})"
