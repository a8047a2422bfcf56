"""A model as diffusers saves one: a folder for each part, and an index that names their classes.

Only classes that a family names are made, only safetensors are read, and nothing of what a folder holds is executed.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from onefold.denoiser import Denoiser
from onefold.errors import UserError, first_line
from onefold.files import must_be_plain, read_json, sha256
from onefold.networks.unet import import_diffusers
from onefold.teachers.chains import write_chain
from onefold.teachers.fitting import must_fit
from onefold.teachers.schedulers import read_scheduler
from onefold.weights import must_be_finite, shapes

INDEX = "model_index.json"
STEM = "diffusion_pytorch_model"
CARD = "onefold.json"  # what diffusers has no place for
READ = {".json", ".txt", ".model"}  # configs and vocabularies
MOST_BYTES = 64 * 2**20  # of one of these
LEFT_OUT = {"safety_checker", "feature_extractor", "image_encoder"}  # that no adapter asks


@dataclass(frozen=True)
class Parts:
    home: Path
    index: Mapping[str, Any]
    network: str = "unet"  # the part that denoises, and that students have of their own

    def config(self, part: str) -> dict[str, Any]:
        return read_json(self.folder(part) / "config.json")

    def folder(self, part: str) -> Path:
        folder = self.home / part
        if not folder.is_dir():
            raise UserError(
                f"{self.home} is not complete: {part}/ is missing; download it again, or save it again with save_pretrained"
            )
        for path in folder.iterdir():
            must_be_readable(path)
        return folder

    def load(self, part: str, *kinds: str) -> nn.Module:
        """A network of diffusers, if the part is one of these kinds."""
        folder, config = self.folder(part), self.config(part)
        kind = config.get("_class_name")
        if kind not in kinds:
            raise UserError(
                f"{folder} holds a {kind}; expected {' or '.join(kinds)} in a {self.index.get('_class_name')}"
            )
        must_be_whole(config, folder)
        made = getattr(import_diffusers(), str(kind))
        must_be_typed(config, made, folder)
        files, variant = weights_of(folder)
        must_fit(lambda: made.from_config(config), shapes(files), str(kind), folder)
        try:
            loaded, told = made.from_pretrained(
                folder, use_safetensors=True, variant=variant, local_files_only=True, output_loading_info=True
            )
        except UserError:
            raise
        except Exception as error:  # diffusers and its files break in many ways
            raise UserError(f"{folder} does not load as a {kind} ({first_line(error)}); restore it") from error
        if told["missing_keys"]:  # they would be drawn at random
            raise UserError(f"{folder} lacks weights of a {kind}, such as {min(told['missing_keys'])}; restore it")
        if told["unexpected_keys"]:  # what it would be is another network than its weights were learnt for
            raise UserError(
                f"{folder} holds weights that its config.json has no place for, such as {min(told['unexpected_keys'])}; restore it"
            )
        must_be_finite(loaded.state_dict(), folder)
        network: nn.Module = loaded.float().eval().requires_grad_(False)
        return network

    @property
    def fingerprint(self) -> str:
        """Of the network's weights: of the one file, or of all together."""
        return fingerprint(self.folder(self.network))

    def write(self, denoiser: Denoiser, draft: Path) -> str:
        """The same model with another network, and with the scheduler of its process; returns the network's fingerprint.

        Without an index: a stock pipeline would load it and sample it on a grid that is not its own.
        """
        self.link_frozen(draft)
        if not write_chain(denoiser, read_scheduler(self.folder("scheduler")), draft):
            link_files(self.folder("scheduler"), draft / "scheduler")
        saved: Any = denoiser.module
        saved.save_pretrained(draft / self.network)
        return fingerprint(draft / self.network)

    def link_frozen(self, draft: Path) -> None:
        """All other parts; their weights are linked where the disk allows it."""
        named = {name for name, kind in self.index.items() if isinstance(kind, list)}
        for name in sorted(named - LEFT_OUT - {self.network, "scheduler"}):
            if (self.home / name).is_dir():
                link_files(self.folder(name), draft / name)
                without_variant(draft / name)


def without_variant(folder: Path) -> None:
    """The only kind of weights goes by the plain name, which everybody looks for."""
    for path in folder.glob("*.*.safetensors"):
        stem = path.name.partition(".")[0]
        plain = path.with_name(f"{stem}.safetensors")
        if "-of-" not in stem and not plain.exists():
            path.rename(plain)


def link_files(source: Path, target: Path) -> None:
    """What belongs to a part, and nothing that merely lies or is linked beside it."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors" and path.is_file():
            link(path, target / path.name)
        elif path.suffix in READ and path.is_file():  # people edit these in place
            shutil.copyfile(path, target / path.name)


def link(source: Path, target: Path) -> None:
    """A second name of the same file, or a copy where there can be none."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def must_be_readable(path: Path) -> None:
    """By libraries that look at what lies in a folder themselves."""
    try:
        if not path.is_dir():
            must_be_plain(path, MOST_BYTES if path.suffix in READ else None)
    except FileNotFoundError:
        return  # a link to nothing; whoever needs it says what is missing
    except OSError as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); restore or remove it") from None


def must_be_typed(config: Mapping[str, Any], kind: Any, folder: Path) -> None:
    """Words where numbers are meant would be noticed at the first image, or never: "false" is true."""
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        usual, value = parameter.default, config.get(name)
        fits = isinstance(value, bool) if isinstance(usual, bool) else not isinstance(value, str | dict)
        if value is not None and isinstance(usual, bool | int | float) and not fits:
            raise UserError(
                f"{folder} names {name} {value!r}, expected something like {usual!r}; restore its config.json"
            )


def must_be_whole(config: Mapping[str, Any], folder: Path) -> None:
    """Quantised weights are read by other libraries, and cannot be trained."""
    if config.get("quantization_config") is not None:
        raise UserError(f"{folder} holds quantised weights; give the model with its full weights")


def weights_of(folder: Path, stem: str = STEM) -> tuple[list[Path], str | None]:
    """(files, variant): the plain weights, or the only variant there is. Shards are named by an index."""
    kind = re.compile(rf"{stem}(\.\w+)?\.safetensors|{stem}(\.\w+)?\.safetensors\.index(\.\w+)?\.json")
    found = [(path, match) for path in sorted(folder.glob(f"{stem}.*")) if (match := kind.fullmatch(path.name))]
    if not found:
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        what = f"only {pickles[0]}, whose loading can execute code" if pickles else f"no {stem}.safetensors"
        raise UserError(
            f"{folder} has {what}; download it again with its safetensors, or save it with save_pretrained(safe_serialization=True)"
        )
    variants = {"".join(group or "" for group in match.groups()).strip("."): path for path, match in found}
    variant = min(variants)  # the plain one is ""
    head = variants[variant]
    paths = [head] if head.suffix == ".safetensors" else shards(head)
    missing = next((path for path in (head, *paths) if not path.is_file()), None)
    if missing:
        raise UserError(f"{folder} is not complete: {missing.name} is missing; download it again")
    return paths, variant or None


def shards(index: Path) -> list[Path]:
    """The files that an index names, beside it."""
    listed = read_json(index).get("weight_map")
    names = (
        set(listed.values()) if isinstance(listed, dict) and all(isinstance(n, str) for n in listed.values()) else set()
    )
    outside = [name for name in names if Path(name).name != name]
    if outside or not names:
        raise UserError(f"{index} names {outside[0] if outside else 'no files'}, expected files beside it; restore it")
    return sorted(index.parent / name for name in names)


def fingerprint(folder: Path) -> str:
    files = weights_of(folder)[0]
    if len(files) == 1:
        return sha256(files[0])
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def read_index(home: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """As the folder, or the card of a student, tells it. Folders without one hold a pixel U-Net."""
    index = read_json(home / INDEX) if os.path.lexists(home / INDEX) else card.get("index", {})
    if not isinstance(index, dict):
        raise UserError(f"the index of {home} is a {type(index).__name__}, expected an object; restore onefold.json")
    outside = [name for name, kind in index.items() if isinstance(kind, list) and not re.fullmatch(r"\w+", name)]
    if outside:  # a student's folder has its parts by these names
        raise UserError(f"the index of {home} names a part {outside[0]!r}, expected plain names; restore it")
    return index
