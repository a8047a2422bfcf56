"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from onefold.errors import UserError, first_line

MOST_BYTES = (
    4 * 2**20
)  # of facts, as JSON or YAML; a file of a few bytes an object becomes twenty times as much in memory


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write to; on success it is synced and takes the place of `path` in one rename."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            sync(draft)
            os.replace(draft, path)
            sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; on success it takes the place of `path`, whose former content is removed last."""
    draft, former = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "former"))
    try:
        with told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            yield draft
            for item in draft.rglob("*"):
                if item.is_file() and item.stat().st_nlink == 1:  # a linked file is another's too
                    item.chmod(0o644)  # safetensors writes for the owner only
                sync(item)
            sync(draft)
            if path.exists():
                os.replace(path, former)
            os.replace(draft, path)
            sync(path.parent)
    finally:
        bring_back(former, path)
        for leftover in (draft, former):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """What keeps a file from being written, as one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {path} ({first_line(error)}); make room or mend the rights, then run the same command again"
        ) from error


def bring_back(former: Path, path: Path) -> None:
    """A content whose successor never came keeps its place."""
    if former.exists() and not path.exists():
        former.rename(path)


def sweep(folder: Path) -> None:
    """Remove the drafts that killed writers left in a folder."""
    for former in folder.glob(".*.former"):
        bring_back(former, folder / former.name[1:].rsplit(".", 2)[0])
    for leftover in (*folder.glob(".*.part"), *folder.glob(".*.former")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def must_be_writable(folder: Path) -> None:
    """Asked before the work: the nearest folder that exists takes new files."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file, so nothing can be written below it; choose another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"no permission to write in {nearest}; choose another --out or change its permissions")


def place_of(source: str | Path) -> Path:
    """A path as a user writes it; what cannot be one is told as such."""
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{str(source)[:200]!r} cannot be a path ({why}); check its spelling") from None
    return path


def must_be_plain(path: Path, most: int | None = None) -> None:
    """Of a pipe nothing may ever come, of a device there is no end, and not every file is to be held in memory."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is a folder, a pipe or a device, not a file")
    if most is not None and found.st_size > most:
        raise OSError(f"it has {found.st_size:,} bytes, more than the {most:,} that are read of such a file")


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """What is no such text is an OSError or a ValueError, for the caller to name."""
    must_be_plain(path, most)
    with path.open("rb") as file:
        return file.read(most).decode()


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({first_line(error)}); restore it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(values).__name__}; restore it")
    return values
