"""Networks of the user's own: a function that makes a Denoiser, and folders of students that hold the weights alone.

Such a folder cannot say by itself how its network is built, since nothing that a file names is ever imported; the teacher
that it came from is given with it.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from onefold.denoiser import Denoiser
from onefold.errors import UserError, first_line
from onefold.files import read_json, sha256
from onefold.imports import find_function
from onefold.progress import Tell
from onefold.teachers.chains import Noised, as_told, with_chain, write_chain
from onefold.teachers.parts import CARD

WEIGHTS = "network.safetensors"


@dataclass(frozen=True)
class OwnForm:
    """The network's tensors, and its levels where they are not the teacher's."""

    usual: Noised

    def write(self, denoiser: Denoiser, draft: Path) -> str:
        state = denoiser.module.state_dict()
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
        save_file(tensors, draft / WEIGHTS)
        write_chain(denoiser, self.usual, draft)
        return sha256(draft / WEIGHTS)


def load_own(source: str) -> Denoiser:
    """What the user's `package.module:function` returns."""
    function = find_function(source, "teacher")
    try:
        made = function()
    except TypeError as error:
        raise UserError(
            f"teacher {source!r} cannot be called without arguments ({first_line(error)}); give it none"
        ) from error
    if not isinstance(made, Denoiser):
        raise UserError(f"{source} gives a {type(made).__name__}, expected a Denoiser; see docs/adding-a-teacher.md")
    made.name = source.rpartition(":")[2] if made.name == Denoiser.name else made.name
    return with_form(made)


def with_form(teacher: Denoiser) -> Denoiser:
    """A teacher that came from no folder, ready to have students."""
    if teacher.form is not None:
        return teacher
    return teacher.replace(
        form=OwnForm((teacher.process, teacher.prediction)), card={**teacher.card, "sha256": weights_hash(teacher)}
    )


def weights_hash(teacher: Denoiser) -> str:
    """Its own or its folder's, whichever there is."""
    known = teacher.card.get("sha256")
    if known:
        return str(known)
    digest = hashlib.sha256()
    for name, value in sorted(teacher.module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_own_student(
    folder: Path, teacher: Denoiser | str | None, *, device: str, precision: str, tell: Tell | None
) -> Denoiser:
    """The teacher's network with the weights of its student's folder."""
    from onefold.devices import choose

    if teacher is None:
        raise UserError(
            f"{folder} holds weights of a network of your own, and nothing that a file names is imported; give its teacher: "
            "load_student(folder, teacher=...), a Denoiser or package.module:function"
        )
    made = with_form(load_own(teacher) if isinstance(teacher, str) else teacher)
    place, chosen = choose(device, precision, tell or (lambda _: None))
    student = made.replace(network=with_weights(made, folder), home=folder, precision=chosen, guidance=1.0).to(place)
    card = read_json(folder / CARD)
    student.name, student.card = str(card.get("name", folder.name)), card
    return as_told(with_chain(student, folder), card, folder)


def with_weights(teacher: Denoiser, folder: Path) -> nn.Module:
    network = copy.deepcopy(teacher.module)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder / WEIGHTS} does not fit the network of {teacher.name!r} ({first_line(error)}); give the teacher it came from"
        ) from None
    return network.eval().requires_grad_(False)
