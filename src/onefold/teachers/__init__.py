"""Teachers: in from everywhere, as denoisers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from onefold.denoiser import Denoiser
from onefold.errors import UserError, suggest
from onefold.progress import Tell

ASSETS = Path(str(files("onefold"))) / "assets"


def bundled() -> dict[str, dict[str, Any]]:
    """The teachers inside the package: name -> card."""
    from onefold.files import read_json
    from onefold.teachers.parts import CARD

    folders = sorted(p for p in ASSETS.glob("*") if (p / CARD).is_file())
    return {folder.name: read_json(folder / CARD) for folder in folders}


def load_teacher(
    source: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    prompts: str | Path | Sequence[str] | None = None,
    tell: Tell | None = None,
) -> Denoiser:
    """A bundled name, a folder (of `onefold teach`, of a diffusers pipeline, of a student), a name on the Hugging Face hub, an
    EDM checkpoint (.pkl, read without executing anything in it), or your own function, `package.module:function`, that
    returns a Denoiser.

    Models of texts are told `prompts`: a list, a file with one a line, or a file that `Prompts.save` wrote.
    """
    from onefold.devices import choose
    from onefold.imports import is_function_name
    from onefold.teachers.folders import load_folder
    from onefold.teachers.own import load_own

    say = tell or (lambda _: None)
    own = str(source) if is_function_name(str(source)) else None
    found = Path() if own else find(source, say)
    place, chosen = choose(device, precision, say)
    loaded = load_own(own) if own else load_folder(found) if found.is_dir() else read_file(found)
    teacher = loaded.replace(precision=chosen).to(place)
    return teacher if prompts is None else teacher.with_prompts(prompts)


def read_file(path: Path) -> Denoiser:
    """A checkpoint. Files of other kinds are told apart by their name."""
    from onefold.teachers.edm import read_checkpoint

    if path.suffix != ".pkl":
        raise UserError(
            f"{path} is a file, expected an EDM checkpoint (.pkl) or the folder of a model; give one of these"
        )
    return read_checkpoint(path)


def find(source: str | Path, tell: Tell) -> Path:
    """Where a model lies; one of the hub is fetched."""
    from onefold.files import place_of
    from onefold.teachers.hub import fetch, looks_like_hub

    folder = ASSETS / source if str(source) in bundled() else place_of(source)
    result = next((name for name in ("teacher", "student") if (folder / name).is_dir()), None)
    folder = folder / result if result else folder  # of a run
    if not str(source) or not folder.exists():
        if looks_like_hub(str(source)) and not folder.parent.is_dir():  # runs/typo is no name of a model
            return fetch(str(source), tell)
        if "/" in str(source):
            raise UserError(
                f"unknown teacher {str(source)!r}: neither bundled nor a folder, as there is none; check the path"
            )
        raise UserError(
            f"unknown teacher {str(source)!r}: neither bundled nor a folder{suggest(str(source), bundled())}"
        )
    runs = [] if not folder.is_dir() or (folder / "unet").is_dir() else runs_inside(folder)
    if runs:
        raise UserError(f"{source} holds runs, not a model; give one of them: {', '.join(map(str, runs[:5]))}")
    return folder


def runs_inside(folder: Path) -> list[Path]:
    return sorted(run for run in folder.iterdir() if (run / "teacher").is_dir() or (run / "student").is_dir())
