"""Models of texts on the bench: all are told the same prompts, image i the i-th of them in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onefold.conditions import divided, texts_hash, texts_of
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.progress import Tell
from onefold.student import Student


def told(model: Denoiser | Student, prompts: Path | None, tell: Tell) -> Denoiser | Student:
    """With the prompts, where it is told any."""
    if isinstance(model, Denoiser):
        return told_teacher(model, prompts)
    tell_trained(model.recipe, prompts, tell)
    return replace(model, denoiser=told_teacher(model.denoiser, prompts))


def told_teacher(model: Denoiser, prompts: Path | None) -> Denoiser:
    if prompts is not None and model.encode_texts is not None:
        return model.with_prompts(prompts)
    model.check_told()
    return model


def tell_trained(recipe: Mapping[str, Any], prompts: Path | None, tell: Tell) -> None:
    """What a student was trained with flatters it. A file that changed since says nothing."""
    own = recipe.get("settings", {}).get("prompts")
    if prompts is None or own is None:
        return
    try:
        given, asked = texts_of(own), texts_of(prompts)
    except UserError:  # the file of the training is not here any more
        return
    trained, _ = divided(given, int(recipe["settings"]["watched"]))
    known = sum(text in set(trained) for text in asked) if texts_hash(trained) == recipe.get("trained_on") else 0
    if known:
        tell(
            f"{known} of the {len(asked)} prompts stand in {own}, which the student was trained with; others are fairer"
        )
