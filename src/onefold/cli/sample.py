"""onefold sample: images of a model, with any solver and number of calls."""

from __future__ import annotations

import inspect
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold.cli.common import given, must_be_new, read_numbers, say, say_json, tell
from onefold.cli.latents import check_latents, read_noise, save_latents, with_levels
from onefold.errors import UserError
from onefold.files import atomic_folder, must_be_writable

if TYPE_CHECKING:
    from torch import Tensor

OTHER_FILES = {".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".npy", ".pt", ".zip", ".safetensors"}

WAY = ("solver", "calls", "grid", "end", "afs")  # what a student brings by itself


def register(app: typer.Typer) -> None:
    app.command("sample")(sample_command)


def sample_command(
    teacher: Annotated[
        str,
        typer.Argument(
            help="A bundled teacher's name, a folder with a model, an EDM .pkl, a name on the Hugging Face hub, or package.module:function.",
            show_default=False,
        ),
    ],
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    calls: Annotated[
        int | None,
        typer.Option(
            help="Network calls for each image (10); of a student, one of its numbers (its most).", show_default=False
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help="How to step: euler (DDIM), heun, dpmpp2m, dpmpp3m, unipc2, ipndm3 (default), ...", show_default=False
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            help="Where to step: karras, logsnr, uniform, quadratic, gits (tuned to the model); auto (default) by process.",
            show_default=False,
        ),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(
            help="zero (default): a last denoise to clean images; sigma_min: stop at the lowest noise level.",
            show_default=False,
        ),
    ] = None,
    afs: Annotated[str | None, typer.Option(help="Spare the first call: ve or vp.", show_default=False)] = None,
    eta: Annotated[
        float | None,
        typer.Option(
            help="Fresh noise in each step, for --solver ddim and for students: 0 none (DDIM), 1 as DDPM.",
            show_default=False,
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            help="Bound the denoised image before each step: static, to [-1, 1], or dynamic, by its 99.5 % quantile.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Image i depends on the seed and i only.")] = 0,
    first: Annotated[int, typer.Option(min=0, help="The number i of the first image.")] = 0,
    noise: Annotated[
        Path | None,
        typer.Option(
            help="Start from this noise, not the seed's: a .npy of floats, COUNT x the network's shape, of standard deviation 1.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Classes, repeated over the images: 0,1,2 or 0-9.", show_default=False)
    ] = None,
    own: Annotated[
        str | None,
        typer.Option(
            "--teacher", help="Of a student of your own network: package.module:function.", show_default=False
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="For models of texts: a file with one a line, in turn.", show_default=False)
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="For models of texts: what to show; repeat it.", show_default=False)
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance; other than 1 it doubles the calls.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps; auto says why.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    out: Annotated[
        Path, typer.Option(help="X.png: one picture; X.npz: arrays; otherwise a folder of PNG files.")
    ] = Path("samples.png"),
    latents: Annotated[
        Path | None,
        typer.Option(
            help="X.npz: also write `states` (steps + 1, COUNT, ...), from the start to the clean one, as x0 + sigma eps, and their `sigmas`.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Sample images from a teacher or a student.

    A student brings its own solver, grid and calls; --eta adds noise to its steps.
    """
    targets = files(out, first, count)
    must_be_new(targets, overwrite=overwrite)
    must_be_writable(targets[0].parent)
    if latents is not None:
        check_latents(latents, out, overwrite=overwrite)
    wanted = read_numbers(labels, "--labels")
    starts = None if noise is None else read_noise(noise)
    from onefold.sampling import chosen_labels

    asked = given({"solver": solver, "calls": calls, "grid": grid, "end": end, "afs": afs, "eta": eta})
    model, way, told = load(teacher, device, precision, asked, own)
    model = model if guidance is None else model.replace(guidance=guidance)
    if prompt and prompts:
        raise UserError("--prompt and --prompts are two ways to say the same; give one of them")
    texts = prompt or prompts
    model = model if texts is None else model.with_prompts(texts)
    numbers = {"seed": seed, "first": first}
    way = {**way, "clip": clip, "noise": starts}
    if latents is not None:
        way = {**with_levels(model, way), "trajectory": True}
    drawn, facts = draw(model, count, labels=wanted, batch_size=batch_size, **way, **numbers)
    images = drawn if latents is None else drawn[0]
    write(images, chosen_labels(model, seed, range(first, first + count), wanted), out, targets)
    if latents is not None:
        save_latents(drawn[1], way["grid"].sigmas, latents)
    done = {"teacher": teacher, "count": count, **told, **numbers, "guidance": guidance, "clip": clip}
    done |= {"noise": noise, **facts, "out": str(out), "latents": latents}
    report(done, as_json=as_json)


def files(out: Path, first: int, count: int) -> list[Path]:
    """What will be written."""
    if out.suffix.lower() in OTHER_FILES:
        raise UserError(
            f"--out {out} ends in {out.suffix!r}; use .png for one picture, .npz for arrays or a folder's name"
        )
    if out.suffix.lower() in (".png", ".npz"):
        return [out]
    return [out / f"{first + index:06}.png" for index in range(count)]


def load(
    source: str, device: str, precision: str, asked: dict[str, Any], own: str | None = None
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(denoiser, how to sample it, how to tell that): a student brings its own way."""
    from onefold.grids import usual_schedule
    from onefold.sampling import sample
    from onefold.student import is_student, load_student
    from onefold.teachers import load_teacher

    if not is_student(source):
        if own is not None:
            raise UserError(f"{source} is no student, so it has no --teacher; leave it out")
        known = inspect.signature(sample).parameters
        way = {**{name: known[name].default for name in WAY}, **asked}
        teacher = load_teacher(source, device=device, precision=precision, tell=tell)
        return teacher, way, {**way, "grid": usual_schedule(teacher.process) if way["grid"] == "auto" else way["grid"]}
    student = load_student(source, teacher=own, device=device, precision=precision, tell=tell)
    if asked.keys() - {"calls", "eta"}:
        raise UserError(
            f"student {source} has its own solver and grid; leave out "
            + ", ".join(f"--{name}" for name in asked if name not in ("calls", "eta"))
        )
    student = student.at(asked.get("calls", student.calls))
    eta = asked.get("eta", 0.0)
    way = student.way_with(eta)
    told = {
        "solver": way["solver"],
        "calls": student.calls,
        "grid": "its own grid",
        "end": student.grid.end,
        "afs": student.afs,
        "eta": eta,
    }
    return student.denoiser, way, told


def draw(model: Any, count: int, *, batch_size: int, **how: Any) -> tuple[Any, dict[str, object]]:
    """What `sample` gives, and what it cost as it was counted."""
    from onefold.progress import terminal_progress
    from onefold.sampling import sample

    before, begin = model.calls, time.perf_counter()
    with terminal_progress("sampling") as progress:
        drawn = sample(model, count, batch_size=batch_size, progress=progress, **how)
    seconds = time.perf_counter() - begin
    counted = (model.calls - before) / math.ceil(count / batch_size)
    return drawn, {
        "counted_calls": counted,
        "seconds": round(seconds, 3),
        "images_per_second": round(count / seconds, 2),
    }


def write(images: Tensor, labels: Tensor | None, out: Path, targets: list[Path]) -> None:
    from onefold.pictures import picture_grid, save_png, to_pil

    if out.suffix.lower() == ".npz":
        save_arrays(images, labels, out)
    elif out.suffix.lower() == ".png":
        save_png(picture_grid(images), out)
    elif out.exists():
        for image, path in zip(images, targets, strict=True):
            save_png(to_pil(image), path)
    else:
        with atomic_folder(out) as draft:
            for image, path in zip(images, targets, strict=True):
                save_png(to_pil(image), draft / path.name)


def save_arrays(images: Tensor, labels: Tensor | None, out: Path) -> None:
    """`images` as uint8 (N, H, W, C), as the field's evaluation tools read them, and `labels` when there are any."""
    import numpy as np

    from onefold.data import to_uint8
    from onefold.files import atomic_file

    arrays: dict[str, Any] = {"images": to_uint8(images.cpu()).permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    with atomic_file(out) as draft, draft.open("wb") as file:
        np.savez_compressed(file, **arrays)


def report(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        say_json(facts)
        return
    beside = f"; the states on the way are in {facts['latents']}" if facts["latents"] else ""
    say(
        f"{facts['count']} images with {facts['counted_calls']:g} call{'s' * (facts['counted_calls'] != 1)} each ({facts['solver']} on {facts['grid']}), "
        f"{facts['seconds']:.1f} s, {facts['images_per_second']:.1f} images/s, are in {facts['out']}{beside}"
    )
