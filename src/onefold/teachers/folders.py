"""Folders as teachers: which family a folder holds, read from what it says about itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL.Image import Image

from onefold.denoiser import Denoiser
from onefold.errors import UserError, suggest
from onefold.files import atomic_folder, read_json
from onefold.recipes import PHI
from onefold.teachers.chains import WHOLE, as_told
from onefold.teachers.own import WEIGHTS as OWN_WEIGHTS
from onefold.teachers.parts import CARD, Parts, read_index

# a pipeline's class -> (the module of its family, the part that denoises)
FAMILIES: dict[str, tuple[str, str]] = {
    "DDPMPipeline": ("pixels", "unet"),
    "DDIMPipeline": ("pixels", "unet"),
    "ConsistencyModelPipeline": ("pixels", "unet"),
    "LDMPipeline": ("latents", "unet"),
    "DiTPipeline": ("dit", "transformer"),
    "StableDiffusionPipeline": ("texts", "unet"),
    "StableDiffusionXLPipeline": ("texts", "unet"),
}
MOST_LETTERS = 255  # of a name, as of a folder's
EDM_CARD = "edm.json"  # of what was an EDM checkpoint
Load = Callable[[Parts, Mapping[str, Any]], Denoiser]


def load_folder(folder: Path) -> Denoiser:
    """A teacher from a folder as diffusers saves it, from a student's, or from a converted EDM checkpoint."""
    card = read_json(folder / CARD) if os.path.lexists(folder / CARD) else {}
    if "exported" in card:
        raise UserError(
            f"{folder} was exported for plain diffusers, its network's time is changed; give the folder it was exported from"
        )
    if (folder / EDM_CARD).is_file():
        return as_told(load_edm(folder, card), card, folder)
    parts, load = family_of(folder, card)
    teacher = load(parts, card)
    weights = parts.fingerprint
    if card and weights != card.get("sha256"):
        raise UserError(
            f"the weights in {folder} do not match their checksum; the folder is damaged or was edited, restore it"
        )
    teacher.name, teacher.home, teacher.form = name_of(card, folder), folder, parts
    teacher.card = {**card, "index": dict(parts.index), "sha256": weights}
    return as_told(teacher, card, folder)


def load_edm(folder: Path, card: Mapping[str, Any]) -> Denoiser:
    """A converted checkpoint, or a student of one, whose card says how it is called."""
    from onefold.teachers.edm import load_edm_folder

    teacher = load_edm_folder(folder)
    teacher.name = name_of(card, folder, teacher.name)
    return teacher


def name_of(card: Mapping[str, Any], folder: Path, usual: str | None = None) -> str:
    """It stands in tables and file names."""
    name = card.get("name", folder.name if usual is None else usual)
    if not isinstance(name, str) or len(name) > MOST_LETTERS or not name.isprintable():
        raise UserError(
            f"{folder} calls itself {name!r}; expected a name of up to {MOST_LETTERS} letters, restore {CARD}"
        )
    return name


def family_of(folder: Path, card: Mapping[str, Any]) -> tuple[Parts, Load]:
    index = read_index(folder, card)
    kind = index.get("_class_name", "DDIMPipeline" if (folder / "unet").is_dir() else None)
    if kind is None:
        if (folder / OWN_WEIGHTS).is_file():
            raise UserError(
                f"{folder} holds weights of a network of your own, which only its student knows how to load; give "
                "load_student(folder, teacher=...) in a function of yours"
            )
        raise UserError(
            f"{folder} is no model: it has neither model_index.json nor unet/; give a folder that diffusers saved"
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{folder} holds a {kind}, which is not supported{suggest(str(kind), FAMILIES)}")
    module, network = FAMILIES[kind]
    load: Load = import_module(f"onefold.teachers.{module}").load
    return Parts(folder, index, network), load


def save_like(
    teacher: Denoiser,
    folder: Path,
    texts: Mapping[str, str],
    pictures: Mapping[str, Image],
    others: Mapping[str, Callable[[Path], object]] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """A network in the form of the folder its teacher came from, with further files; `others` write themselves, and `more`
    goes into its card."""
    if teacher.form is None:
        raise UserError(
            f"{teacher.name!r} did not come from a folder, so there is no form to save it in; load it from one"
        )
    with atomic_folder(folder) as draft:
        weights = teacher.form.write(teacher, draft)
        inherited = {key: value for key, value in teacher.card.items() if key not in (WHOLE, PHI)}
        own = {} if teacher.continuous_time else {WHOLE: True}
        facts = {"format": 1, **inherited, **own, **(more or {}), "name": teacher.name, "sha256": weights}
        (draft / CARD).write_text(json.dumps(facts, indent=1) + "\n")
        for name, text in texts.items():
            (draft / name).write_text(text)
        for name, picture in pictures.items():
            picture.save(draft / name)
        for name, write in (others or {}).items():
            (draft / name).parent.mkdir(exist_ok=True)
            write(draft / name)
