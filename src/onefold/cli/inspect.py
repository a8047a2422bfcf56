"""onefold inspect: the check of a teacher before anyone trains with it, and two closer looks at it or at its student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold.cli.common import given, say, say_json, table, tell
from onefold.errors import UserError
from onefold.files import must_be_writable

if TYPE_CHECKING:
    from onefold.bench.inspection import Facts, Inspection
    from onefold.bench.layers import Layers
    from onefold.bench.spectrum import Spectrum


def register(app: typer.Typer) -> None:
    app.command("inspect")(inspect_command)


def inspect_command(
    model: Annotated[
        str,
        typer.Argument(
            help="A bundled teacher's name, a folder with a model, an EDM .pkl, a name on the Hugging Face hub, or package.module:function; "
            "for --layers and --spectrum also a student's folder or its run's.",
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
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Instead of the checks: how active each block of the network is by noise level."),
    ] = False,
    spectrum: Annotated[
        bool,
        typer.Option(
            "--spectrum", help="Instead of the checks: the power of its images by frequency, beside --data's."
        ),
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="Of a student; default: the one it names.", show_default=False)
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="For models of texts: a file with one a line.", show_default=False)
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="How many images to look at; default 16, 64 for --layers, 256 for --spectrum.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Names the noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps; auto says why.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16 or auto; whether low precision suits it is a check of its own.")
    ] = "fp32",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for inspect.png, layers.png or spectrum.png.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Check a model before training with it: what it is, how fast solvers converge on it, and what may be wrong.

    Needs no data; with data it also shows the denoising error by noise level. --layers and --spectrum look closer instead,
    at a student beside its teacher too.
    """
    if out is not None:
        must_be_writable(out)
    how: dict[str, Any] = given({"data": data, "prompts": prompts, "count": count, "out": out})
    how |= {"seed": seed, "device": device, "precision": precision, "tell": tell}
    if layers or spectrum:
        look_closer(model, layers, spectrum, as_json, how | given({"teacher": teacher}))
        return
    from onefold.bench.inspection import inspect
    from onefold.progress import terminal_progress

    if teacher is not None:
        raise UserError(
            f"--teacher {teacher} is a student's, for --layers or --spectrum; add one of these, or leave it out"
        )
    with terminal_progress("inspecting", "calls") as progress:
        inspection = inspect(model, progress=progress, **how)
    if as_json:
        say_json(inspection.as_dict())
    else:
        show(inspection)


def look_closer(model: str, layers: bool, spectrum: bool, as_json: bool, how: dict[str, Any]) -> None:
    from onefold.bench.layers import inspect_layers
    from onefold.bench.spectrum import inspect_spectrum
    from onefold.progress import terminal_progress

    if spectrum and "data" not in how:
        raise UserError("--spectrum compares with real images, and there is no --data; name some, or leave it out")
    with terminal_progress("inspecting", "calls") as progress:
        blocks = inspect_layers(model, progress=progress, **how) if layers else None
        spectra = inspect_spectrum(model, progress=progress, **how) if spectrum else None
    if as_json:
        found = {"layers": blocks, "spectrum": spectra}
        say_json({name: one.as_dict() for name, one in found.items() if one is not None})
        return
    if blocks is not None:
        show_layers(blocks)
    if spectra is not None:
        show_spectrum(spectra)


def show_layers(found: Layers) -> None:
    say(f"\n{found.model}: how active each block is, in the network's order")
    say("The size of its residual branch over that of its skip path (RMS), by noise level sigma:\n")
    header = found.header()
    say(table(header, found.cells(), right=range(1, len(header))))
    source = f"images of {found.data}" if found.data else f"samples of {found.teacher or 'its own'}"
    say(f"\nOf {found.count} {source}, noised with seed {found.seed}.")
    if found.changed is not None:
        shown, levels = len(found.shown), len(found.activity.sigmas)
        some = f"{shown} of the student's {levels} levels" if shown < levels else "the student's levels"
        say(f"Each cell: the teacher {found.teacher}, then the student, at {some}.")
        whole, elsewhere = found.changed.whole, found.changed.elsewhere
        say(f"Weights that are not bitwise the teacher's: {whole:.1%}; of those outside of blocks {elsewhere:.1%}.")
    if found.picture is not None:
        say(f"\nThe picture: {found.picture}")


def show_spectrum(found: Spectrum) -> None:
    say(f"\n{found.model}: power by spatial frequency, beside {found.count} images of {found.data} (decibel)\n")
    header = ["cycles a side", "data's power", *(line.name for line in found.lines)]
    say(table(header, found.cells(), right=range(1, len(header))))
    say(f"\n0 is the mean brightness; what is above {min(found.size) // 2} lies in the corners of the frequency plane.")
    say("The data's power is variance of pixels in [-1, 1]: of white noise it would be the same in each row.")
    if found.picture is not None:
        say(f"\nThe picture: {found.picture}")


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
