"""Teachers: in from everywhere, as denoisers."""

from __future__ import annotations

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
    source: str | Path, *, device: str = "auto", precision: str = "auto", tell: Tell | None = None
) -> Denoiser:
    """A bundled name or a folder (made by `onefold teach`, or a diffusers folder with a UNet2DModel)."""
    from onefold.devices import choose
    from onefold.teachers.folders import load_folder

    folder = ASSETS / source if str(source) in bundled() else Path(source).expanduser()
    if (folder / "teacher").is_dir():  # a run folder
        folder = folder / "teacher"
    if not str(source) or not folder.is_dir():
        raise UserError(
            f"unknown teacher {str(source)!r}: neither bundled nor a folder{suggest(str(source), bundled())}"
        )
    runs = [] if (folder / "unet").is_dir() else runs_inside(folder)
    if runs:
        raise UserError(f"{source} holds runs, not a model; give one of them: {', '.join(map(str, runs[:5]))}")
    place, chosen = choose(device, precision, tell or (lambda _: None))
    return load_folder(folder).replace(precision=chosen).to(place)


def runs_inside(folder: Path) -> list[Path]:
    return sorted(run for run in folder.iterdir() if (run / "teacher").is_dir() or (run / "student").is_dir())
