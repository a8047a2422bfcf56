"""onefold inspect: the check of a teacher before anyone trains with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onefold.cli.common import say, say_json, table, tell
from onefold.files import must_be_writable

if TYPE_CHECKING:
    from onefold.bench.inspection import Facts, Inspection


def register(app: typer.Typer) -> None:
    app.command("inspect")(inspect_command)


def inspect_command(
    teacher: Annotated[
        str,
        typer.Argument(
            help="A bundled teacher's name, a folder with a model, an EDM .pkl, a name on the Hugging Face hub, or package.module:function.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="What it was trained on, for its denoising error: a folder, an .npz, hf:NAME or digits.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="For models of texts: a file with one a line.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="How many images to look at.")] = 16,
    seed: Annotated[int, typer.Option(help="Names the noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps; auto says why.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16 or auto; whether low precision suits it is a check of its own.")
    ] = "fp32",
    out: Annotated[Path | None, typer.Option(help="Folder for a picture.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Check a model before training with it: what it is, how fast solvers converge on it, and what may be wrong.

    Needs no data; with data it also shows the denoising error by noise level.
    """
    if out is not None:
        must_be_writable(out)
    from onefold.bench.inspection import inspect
    from onefold.progress import terminal_progress

    with terminal_progress("inspecting", "calls") as progress:
        inspection = inspect(
            teacher,
            data,
            prompts=prompts,
            count=count,
            seed=seed,
            out=out,
            device=device,
            precision=precision,
            progress=progress,
            tell=tell,
        )
    if as_json:
        say_json(inspection.as_dict())
    else:
        show(inspection)


def show(inspection: Inspection) -> None:
    facts = inspection.facts
    say(f"\n{facts.name}")
    say("\n".join(f"  {name:<13} {text}" for name, text in described(facts)))
    if inspection.denoising:
        say(f"\nDenoising of {inspection.data}: distance (RMSE, pixels in [-1, 1]) to the clean image.\n")
        rows = [
            [f"{row.sigma:.3g}", *map(distance, (row.network, row.mean, row.noisy))] for row in inspection.denoising
        ]
        say(table(("sigma", "this model", "the data's mean", "the noisy image"), rows, right=range(4)))
    if inspection.comparison is not None:
        comparison = inspection.comparison
        header = ("solver", "grid", *(f"{calls} calls " for calls in comparison.calls))
        say(
            f"\nSolvers: distance to its own fine solution ({comparison.reference}, accurate to {comparison.accuracy:.4f}).\n"
        )
        say(table(header, comparison.cells(), right=range(2, len(header))))
    say(f"\n{verdict(inspection)}")
    if inspection.picture is not None:
        say(f"\nThe picture: {inspection.picture}")


def described(facts: Facts) -> list[tuple[str, str]]:
    table = f"{facts.levels:,} in its table, " if facts.levels else ""
    time = "any time between" if facts.continuous_time else "those times only"
    without = "; also without, so that guidance works" if facts.without_class else "; no guidance"
    start = (
        "unit noise, at sigma inf"
        if facts.sigma_max == float("inf")
        else f"noise of standard deviation {facts.prior:.4g}"
    )
    latents = f", as latents of {' x '.join(map(str, facts.shape))}" if facts.shape != facts.image_shape else ""
    told = f"{facts.classes} classes" if facts.classes else f"texts, {facts.prompts} of them here"
    return [
        ("images", " x ".join(map(str, facts.image_shape)) + latents),
        ("parameters", "-" if facts.parameters is None else f"{facts.parameters:,}"),
        ("process", f"{facts.process}, predicts {facts.prediction}"),
        ("noise levels", f"sigma {facts.sigma_min:.4g} to {facts.sigma_max:.4g}; {table}{time}"),
        ("starts from", start),
        ("conditions", told + without if facts.classes or facts.prompts else "none"),
    ]


def distance(value: float) -> str:
    return f"{value:.4f}" if value < 10 else f"{value:.1f}"


def verdict(inspection: Inspection) -> str:
    found, lines = inspection.warnings, list[str]()
    lines += [f"Warning, {warning.check}: {warning.sentence}." for warning in found]
    lines += [] if found else ["No warning."]
    lines.append(f"Checked in {inspection.seconds:.0f} s: {', '.join(inspection.checks)}.")
    if inspection.left_out:
        lines.append(f"Not looked at before that is mended: {', '.join(inspection.left_out)}.")
    return "\n".join(lines)
