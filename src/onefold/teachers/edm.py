"""EDM checkpoints (Karras et al. 2022): in from their pickles, and a folder of our own that they are converted to.

edm.safetensors    the network's tensors, by the names they have in the checkpoint
edm.json           its preconditioning, its constructor's arguments, the hash of the tensors
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from onefold.conditions import Conditions
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.files import atomic_folder, read_json, sha256
from onefold.networks.edm import EDMNetwork, build_edm
from onefold.teachers.chains import with_chain, write_chain
from onefold.teachers.edm_process import Preconditioning, preconditioning
from onefold.teachers.edm_records import read_records
from onefold.teachers.folders import name_of
from onefold.teachers.pickled_tensors import opened
from onefold.weights import must_be_finite, read_tensors

FORMAT = 1
CARD, WEIGHTS = "edm.json", "edm.safetensors"
NO_CLASS = -1


def read_checkpoint(path: str | Path) -> Denoiser:
    """The averaged network of a `.pkl`, without running anything that the file says."""
    path = Path(path).expanduser()
    with opened(path) as checkpoint, naming(path):
        found = read_records(checkpoint.content)
        wrapped = preconditioning(*found.preconditioning)
        network = fill(empty(*found.network), found.tensors, checkpoint.load)
        denoiser = edm_denoiser(network, wrapped, path.stem)
    denoiser.card = {**denoiser.card, "source": path.name, "sha256": sha256(path)}
    denoiser.form = EDMForm(denoiser.card)
    return denoiser


def convert(path: str | Path, folder: str | Path) -> Denoiser:
    """A checkpoint as a new folder without pickles, written whole or not at all."""
    if Path(folder).exists():
        raise UserError(f"{folder} exists already; choose another folder, or remove it")
    save_edm(teacher := read_checkpoint(path), folder)
    return teacher


def edm_denoiser(network: EDMNetwork, wrapped: Preconditioning, name: str = "edm") -> Denoiser:
    """A network in its preconditioning. Without a class the label is -1, where training has hidden labels."""
    plan = network.architecture
    wrapped.check(plan.in_channels, plan.out_channels)
    denoiser = Denoiser(
        network.eval().requires_grad_(False),
        wrapped.process(),
        prediction=wrapped.prediction,
        shape=(plan.in_channels, plan.img_resolution, plan.img_resolution),
        call=CALLS[wrapped.output],
        classes=plan.label_dim or None,
        null={"labels": NO_CLASS} if plan.label_dim and plan.label_dropout else None,
    )
    denoiser.name = name
    denoiser.card = {"name": name, "classes": denoiser.classes, "preconditioning": wrapped.facts()}
    return denoiser


def call_edm(network: Any, z: Tensor, time: Tensor, cond: Conditions) -> Tensor:
    """The adapter of the EDM networks."""
    labels, plan = cond.get("labels"), network.architecture
    if labels is None and plan.label_dim and not plan.label_dropout:
        raise UserError("this network is class-conditional; give cond={'labels': a tensor of class numbers}")
    output: Tensor = network(z, time, labels)
    return output


def call_negated(network: Any, z: Tensor, time: Tensor, cond: Conditions) -> Tensor:
    return -call_edm(network, z, time, cond)


def call_mean(network: Any, z: Tensor, time: Tensor, cond: Conditions) -> Tensor:
    """Networks that also predict a variance have it in the later channels."""
    return call_edm(network, z, time, cond)[:, : z.shape[1]]


CALLS = {"plain": call_edm, "negated": call_negated, "mean": call_mean}


@dataclass(frozen=True)
class EDMForm:
    """The two files; `facts` is what edm.json says beside the network."""

    facts: Mapping[str, Any]

    def write(self, denoiser: Denoiser, draft: Path) -> str:
        """Into a folder that is being made; returns the tensors' hash."""
        network = denoiser.module
        if not isinstance(network, EDMNetwork):
            raise UserError(f"a {type(network).__name__} is not an EDM network; save it in the form of its own folder")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        save_file(tensors, draft / WEIGHTS)
        weights = sha256(draft / WEIGHTS)
        described = {"kind": type(network).__name__, **network.architecture.model_dump(mode="json")}
        facts = {"format": FORMAT, **self.facts, "network": described, "sha256": weights}
        (draft / CARD).write_text(json.dumps(facts, indent=1) + "\n")
        wrapped = preconditioning(*named(self.facts, "preconditioning"))
        write_chain(denoiser, (wrapped.process(), wrapped.prediction), draft)
        return weights


def save_edm(denoiser: Denoiser, folder: str | Path) -> None:
    """A teacher or student with an EDM network as a folder, whole or not at all."""
    if not isinstance(denoiser.form, EDMForm):
        raise UserError(f"{denoiser.name!r} is not an EDM network; save it in the form of the folder it came from")
    with atomic_folder(Path(folder)) as draft:
        EDMForm({**denoiser.card, "name": denoiser.name}).write(denoiser, draft)


def load_edm_folder(folder: str | Path) -> Denoiser:
    """A teacher or student from a folder that `convert` or `save_edm` made."""
    folder = Path(folder).expanduser()
    card = read_json(folder / CARD)
    if card.get("format") != FORMAT:
        raise UserError(
            f"{folder / CARD} has format {card.get('format')!r}, this version reads {FORMAT}; use the version that wrote it"
        )
    weights = folder / WEIGHTS
    if not weights.is_file() or sha256(weights) != card.get("sha256"):
        raise UserError(
            f"{weights} is missing or does not match its checksum; the folder is damaged or was edited, restore it"
        )
    tensors, _ = read_tensors(weights)
    with naming(folder):
        wrapped = preconditioning(*named(card, "preconditioning"))
        network = fill(empty(*named(card, "network")), tensors, lambda tensor: tensor)
        denoiser = with_chain(edm_denoiser(network, wrapped, name_of(card, folder)), folder)
    denoiser.card, denoiser.home = {**card, **denoiser.card}, folder
    denoiser.form = EDMForm(denoiser.card)
    return denoiser


@contextmanager
def naming(place: Path) -> Iterator[None]:
    """What is wrong inside of a file or folder, with its name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def named(card: Mapping[str, Any], part: str) -> tuple[str, dict[str, Any]]:
    """(kind, arguments) of a part."""
    facts = card.get(part)
    if not isinstance(facts, dict) or not isinstance(facts.get("kind"), str):
        raise UserError(f"{CARD} must say under {part!r} of which kind it is; restore it")
    return facts["kind"], {name: value for name, value in facts.items() if name != "kind"}


def empty(family: str, arguments: Mapping[str, Any]) -> EDMNetwork:
    """The network without memory for its tensors, which come from the file."""
    with torch.device("meta"):
        return build_edm(family, arguments)


def fill(network: EDMNetwork, tensors: Mapping[str, Any], load: Callable[[Any], Tensor]) -> EDMNetwork:
    """Every tensor by its name, none left out and none left over; looked at before any is read."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    off = sorted(wanted.items() ^ found.items())
    if off:
        name = off[0][0]
        raise UserError(
            f"the tensors do not fit the description of the network: {name} has shape {found.get(name)}, expected {wanted.get(name)}, "
            f"and is one of {len({name for name, _ in off})} such tensors; get an undamaged copy"
        )
    loaded = {name: as_float(load(tensors[name])) for name in wanted}
    must_be_finite(loaded)
    network.load_state_dict(loaded, assign=True)
    return network


def as_float(tensor: Tensor) -> Tensor:
    """Weights are kept in float32, whatever they were saved in."""
    return tensor.to(torch.float32)
