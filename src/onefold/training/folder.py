"""The run folder: settings, log, pictures and checkpoints of one run, owned by one process at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from onefold.errors import UserError
from onefold.files import atomic_file, must_be_writable, sweep
from onefold.settings import read_yaml
from onefold.training.checkpoint import Checkpoints
from onefold.training.logs import Journal

# Settings that may change between an interruption and the restart without making it another run.
CHANGEABLE = {"out", "budget", "device", "checkpoint_every", "sample_every", "trackers"}
CHANGEABLE |= {"micro_batches", "gradient_checkpointing", "compile"}


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.journal = Journal(path / "metrics.jsonl")
        self.lock: IO[str] | None = None

    def check(self, config: Mapping[str, Any]) -> list[str]:
        """Refuse a folder of another run; returns what changed but may."""
        must_be_writable(self.path)
        if not self.config.exists():
            if self.path.exists() and any(not item.name.startswith(".") for item in self.path.iterdir()):
                raise UserError(
                    f"{self.path} exists and is no run folder (it has no config.yaml); choose another --out"
                )
            return []
        before = read_yaml(self.config)
        if before.keys() != config.keys():
            raise UserError(f"{self.path} holds a run of another command or version; choose another --out")
        differing = [k for k in sorted(config) if before[k] != config[k]]
        fixed = [k for k in differing if k not in CHANGEABLE]
        if fixed:
            told = ", ".join(f"{k}: {before[k]!r} there, {config[k]!r} now" for k in fixed)
            raise UserError(
                f"{self.path} holds a run with other settings ({told}); choose another --out or the same settings"
            )
        return [f"{k}: {before[k]} -> {config[k]}" for k in differing if k != "out"]

    def open(self, config: Mapping[str, Any]) -> None:
        """Take possession: lock, clear drafts, write the complete settings."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.acquire()
        for folder in (self.path, self.path / "samples", self.checkpoints.folder):
            sweep(folder)
        with atomic_file(self.config) as draft:
            draft.write_text(yaml.safe_dump(dict(config), sort_keys=False))

    def acquire(self) -> None:
        lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(
                f"{self.path} is in use by a running process; wait for it or choose another --out"
            ) from None
        self.lock = lock

    def close(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None
