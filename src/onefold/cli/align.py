"""onefold align: a student and its teacher from the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from onefold.cli.common import say, say_json, table, tell
from onefold.files import must_be_writable

if TYPE_CHECKING:
    from onefold.bench.alignment import Alignment


def register(app: typer.Typer) -> None:
    app.command("align")(align_command)


def align_command(
    student: Annotated[
        str, typer.Argument(help="The run folder of `onefold distill`, or a student's folder.", show_default=False)
    ],
    teacher: Annotated[
        str | None, typer.Option(help="Its teacher; default: the one it names.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="Images of each, from the same noise.")] = 64,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of noises to interpolate between.")] = 4,
    frames: Annotated[int, typer.Option(min=2, help="Images from one noise of a pair to the other.")] = 9,
    path: Annotated[
        str,
        typer.Option(
            help="Between noises: slerp (along the great circle), linear (shorter noise in the middle), or slerp,linear."
        ),
    ] = "slerp",
    calls: Annotated[
        int | None,
        typer.Option(help="One of the student's numbers of calls; the largest, if not told.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Names the noise; image i depends on the seed and i only.")] = 0,
    prompts: Annotated[
        Path | None, typer.Option(help="For models of texts: a file with one a line, in turn.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps; auto says why.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, fp32, bf16 or fp16; the teacher's fine solution is always fp32.")
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the pictures: align.png and interpolation_slerp.png or _linear.png.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show how a student follows its teacher: the same noise, and paths between two noises.

    The student stands beside its teacher's fine solution and beside DDIM of the teacher on the student's own grid, the
    control: a student that imitates its teacher level by level reaches that at best. The distance of images from other
    noise is the scale for the rest.
    """
    if out is not None:
        must_be_writable(out)
    from onefold.bench.alignment import align
    from onefold.progress import terminal_progress

    with terminal_progress("aligning", "calls") as progress:
        found = align(
            student,
            teacher,
            count=count,
            pairs=pairs,
            frames=frames,
            path=cast(Any, [word.strip() for word in path.split(",") if word.strip()]),
            calls=calls,
            prompts=prompts,
            seed=seed,
            batch_size=batch_size,
            out=out,
            device=device,
            precision=precision,
            progress=progress,
            tell=tell,
        )
    if as_json:
        say_json(found.as_dict())
    else:
        show(found)


def show(found: Alignment) -> None:
    guided = f", guided by {found.guidance:g}" if found.guidance != 1 else ""
    say(f"\n{found.student}, {found.calls} call{'s' * (found.calls != 1)}, and its teacher {found.teacher}{guided}")
    say(f"{found.count} images each, from the same noise (seed {found.seed})\n")
    distances = {
        "student to the teacher on the same grid (DDIM)": found.student_to_strided,
        "student to the teacher's fine solution": found.student_to_fine,
        "teacher on the same grid to its fine solution": found.strided_to_fine,
        "student from other noise to the fine solution": found.other_noise_to_fine,
    }
    rows = [[name, f"{one.rmse:.4f}", f"{one.psnr:.1f} dB"] for name, one in distances.items()]
    say(table(("", "RMSE", "PSNR"), rows, right=(1, 2)))
    say(f"\nBetween two noises: {found.pairs} pairs, {found.frames} frames\n")
    paths = [
        [f"{kind}, {who}", *(("-", "-") if even is None else (f"{even.length:.2f}", f"{even.jump:.2f}"))]
        for kind, both in found.interpolations.items()
        for who, even in (("teacher", both.teacher), ("student", both.student))
    ]
    say(table(("", "length", "jump"), paths, right=(1, 2)))
    say("\nlength: of the way over the distance of its ends; jump: the largest step over the mean one.")
    say(f"The fine solution: {found.fine}. RMSE and PSNR (peak 2) are of pixels in [-1, 1].")
    if found.pictures:
        say("\nPictures: " + ", ".join(found.pictures))
