"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write to; on success it is synced and takes the place of `path` in one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        sync(draft)
        os.replace(draft, path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; on success it takes the place of `path`, whose former content is removed last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, former = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "former"))
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        for item in draft.rglob("*"):
            if item.is_file():
                item.chmod(0o644)  # safetensors writes for the owner only
            sync(item)
        sync(draft)
        if path.exists():
            os.replace(path, former)
        os.replace(draft, path)
        sync(path.parent)
    finally:
        for leftover in (draft, former):
            shutil.rmtree(leftover, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove the drafts that killed writers left in a folder."""
    if folder.is_dir():
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
