"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from onefold.errors import UserError
from onefold.files import atomic_file, atomic_folder, sha256, sweep


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def write_folder(path: Path, text: str) -> None:
    with atomic_folder(path) as draft:
        (draft / "a").write_text(text)
        (draft / "sub").mkdir()
        (draft / "sub" / "b").write_text(text)


def test_written_and_replaced(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_folder(tmp_path / "deep" / "x", text)
        with atomic_file(tmp_path / "deep" / "f.txt") as draft:
            draft.write_text(text)
        assert content(tmp_path / "deep") == {"x/a": text, "x/sub/b": text, "f.txt": text}


def test_a_failure_inside_leaves_what_was_there(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", "old")

    def half() -> None:
        with atomic_folder(tmp_path / "x") as draft:
            (draft / "a").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert content(tmp_path) == {"x/a": "old", "x/sub/b": "old"}


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    write_folder(tmp_path / "x", "old")
    renames, replace = [0], os.replace

    def sometimes(source: Any, target: Any) -> None:
        renames[0] += 1
        if renames[0] == failing:
            raise OSError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr("os.replace", sometimes)
    with pytest.raises(UserError, match="Permission denied.*mend the rights"):
        write_folder(tmp_path / "x", "new")
    assert content(tmp_path) == {"x/a": "old", "x/sub/b": "old"}


def test_sweeping_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    """As a killed writer leaves it: the former content moved aside, the new one not yet in place."""
    for name, text in ((".x.77.former", "old"), (".x.77.part", "half")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(text)
    (tmp_path / ".f.txt.77.part").write_text("half")
    sweep(tmp_path)
    assert content(tmp_path) == {"x/a": "old"}
    sweep(tmp_path / "nowhere")


def test_checksums_see_a_bit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0" * 1000)
    before = sha256(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"\0" * 999 + b"\1")
    assert sha256(tmp_path / "a") != before
