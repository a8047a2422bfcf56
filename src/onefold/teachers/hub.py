"""A model of the Hugging Face hub, by the name that the user gave. What its family needs is downloaded, once, and no more."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from onefold.errors import UserError, first_line
from onefold.progress import Tell
from onefold.teachers.parts import CARD, INDEX, LEFT_OUT, READ

NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # org/model, or org/model@revision
FACTS = {INDEX, CARD, "student.json", "samples.png", "edm.json", "edm.safetensors", "reference.npz"}
WEIGHTS = ".safetensors"


def looks_like_hub(source: str) -> bool:
    return NAME.fullmatch(source) is not None and not source.startswith((".", "~"))


def fetch(source: str, tell: Tell) -> Path:
    """The folder of a model in the hub's cache, complete. Without a network, what the cache holds."""
    from huggingface_hub import HfApi, errors, snapshot_download

    unknown = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)
    # whatever a network has to say: the client's HTTP library has its own root of errors
    network = (errors.HfHubHTTPError, getattr(errors, "HTTPError", OSError), OSError, RuntimeError)

    name, _, revision = source.partition("@")
    try:
        known = HfApi().model_info(name, revision=revision or None, files_metadata=True)
    except unknown as error:
        raise UserError(
            f"{source!r} is no folder here, and no model on the hub that you may see ({first_line(error)}); check the name, or log in with `hf auth login`"
        ) from None
    except network as error:
        return cached(name, revision, error)
    sizes = {file.rfilename: file.size or 0 for file in known.siblings or []}
    files = wanted(sizes, source)
    tell(
        f"{source}: {sum(sizes[file] for file in files) / 1e9:.2f} GB in {len(files)} files, from the hub or its cache"
    )
    try:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=[literal(file) for file in files])
        )
    except network as error:
        raise UserError(
            f"{source} could not be downloaded ({first_line(error)}); run the same command again, it goes on where it stopped"
        ) from error


def cached(name: str, revision: str, reason: Exception) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (OSError, ValueError, RuntimeError) as error:
        there = getattr(error, "snapshot_path", None)  # without the files of a repository that were not wanted
        if there:
            return Path(there)
        raise UserError(
            f"{name!r} is no folder here, the hub cannot be reached ({first_line(reason)}) and its cache does not hold it; connect, or give a folder"
        ) from None


def wanted(names: Iterable[str], source: str) -> list[str]:
    """Facts, configs, vocabularies, and of each part's weights one kind: the plain ones, else the only variant."""
    chosen, weights = list[str](), dict[str, list[str]]()
    for name in sorted(names):
        path = PurePosixPath(name)
        if name in FACTS:
            chosen.append(name)
        elif len(path.parts) == 2 and path.parts[0] not in LEFT_OUT:
            if path.suffix == WEIGHTS or name.endswith(f"{WEIGHTS}.index.json"):
                weights.setdefault(path.parts[0], []).append(name)
            elif path.suffix in READ:
                chosen.append(name)
    if not {INDEX, CARD, "edm.json"} & set(chosen):
        raise UserError(
            f"{source} is no diffusers model: it has no {INDEX}; give a model that diffusers' pipelines load"
        )
    for files in weights.values():
        chosen += one_kind(files)
    return chosen


def one_kind(files: list[str]) -> list[str]:
    """Of diffusion_pytorch_model.fp16.safetensors and its like those without a variant, or all of the first variant."""

    def variant(name: str) -> str:
        stem = PurePosixPath(name).name.removesuffix(".index.json").removesuffix(WEIGHTS)
        return re.sub(r"-\d+-of-\d+", "", stem.partition(".")[2] or stem.partition(".")[1])

    kinds = sorted({variant(name) for name in files if "non_ema" not in name})
    return [name for name in files if "non_ema" not in name and variant(name) == kinds[0]] if kinds else []


def literal(name: str) -> str:
    """A file's name as a pattern that fits nothing else."""
    return re.sub(r"([*?[])", r"[\1]", name)
