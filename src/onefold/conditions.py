"""What a network is told beside the state: one of so many things, named by a number.

A class is its own number. A prompt is a row of a table that the text encoder has filled once, so that training and sampling
draw prompts as they draw classes, and the encoder need not stay in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import save_file
from torch import Tensor

from onefold.errors import UserError, first_line
from onefold.files import read_text
from onefold.weights import Damaged, read_tensors

Conditions = Mapping[str, Tensor]
TEXTS = "texts"  # in the header of a file of encoded prompts
MOST_BYTES = 256 * 2**20  # of a file of texts
MOST_LETTERS = 20_000  # of one of them


@dataclass(frozen=True)
class Prompts:
    """Texts and what the network is told for each: tensors with a row a text. `nothing` has the one row of no text."""

    texts: tuple[str, ...]
    table: Conditions
    nothing: Conditions

    def __len__(self) -> int:
        return len(self.texts)

    def to(self, device: torch.device | str) -> Prompts:
        """What every batch needs goes along; the table stays where there is room for it."""
        return replace(self, nothing={key: row.to(device) for key, row in self.nothing.items()})

    def rows(self, numbers: Tensor) -> dict[str, Tensor]:
        return {key: rows[numbers] for key, rows in self.table.items()}

    def part(self, rows: Sequence[int]) -> Prompts:
        """These texts alone."""
        texts = tuple(self.texts[row] for row in rows)
        return replace(self, texts=texts, table=self.rows(torch.tensor(rows)))

    @cached_property
    def fingerprint(self) -> str:
        """Of the texts and what is told of each. Not of its values: devices round them differently."""
        shapes = {key: list(row.shape) for key, row in sorted(self.nothing.items())}
        return hashlib.sha256(json.dumps([self.texts, shapes]).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Encoded once and for all: `prompts=` takes this file as it takes a file of texts."""
        tensors = {f"table.{key}": rows for key, rows in self.table.items()}
        tensors |= {f"nothing.{key}": row for key, row in self.nothing.items()}
        save_file(
            {key: value.contiguous() for key, value in tensors.items()}, path, metadata={TEXTS: json.dumps(self.texts)}
        )


def load_prompts(path: Path) -> Prompts:
    """What `Prompts.save` wrote."""
    try:
        tensors, metadata = read_tensors(path)
        texts = json.loads(metadata[TEXTS])
    except (Damaged, ValueError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path} holds no encoded prompts ({first_line(error)}); give a text file, or what Prompts.save wrote"
        ) from None
    parts: dict[str, dict[str, Tensor]] = {"table": {}, "nothing": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        parts.setdefault(kind, {})[name] = value
    if not fit(texts, parts):
        raise UserError(f"{path} holds no encoded prompts; give a text file, or what Prompts.save wrote")
    return Prompts(tuple(texts), parts["table"], parts["nothing"])


def fit(texts: Any, parts: Mapping[str, Conditions]) -> bool:
    """A row a text in every table, one of the same shape for no text, and nothing else."""
    if (
        not isinstance(texts, list)
        or not texts
        or not all(isinstance(text, str) for text in texts)
        or parts.keys() != {"table", "nothing"}
        or not parts["table"]
        or parts["table"].keys() != parts["nothing"].keys()
    ):
        return False
    pairs = [(rows, parts["nothing"][key]) for key, rows in parts["table"].items()]
    return all(
        rows.shape == (len(texts), *row.shape[1:])
        and row.shape[:1] == (1,)
        and bool(rows.isfinite().all() & row.isfinite().all())
        for rows, row in pairs
    )


def read_texts(source: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Prompts from a list, or from a file with one a line."""
    if not isinstance(source, (str, Path)):
        texts = tuple(source)
    else:
        path = Path(source).expanduser()
        try:
            texts = tuple(line.strip() for line in read_text(path, MOST_BYTES).splitlines() if line.strip())
        except (OSError, ValueError) as error:
            raise UserError(
                f"prompts {str(source)!r} are not readable ({first_line(error)}); give a text file with one prompt a line"
            ) from None
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{'no prompts' if not texts else 'prompts that are no texts'} in {source!r}; give one or more")
    longest = max(texts, key=len)
    if len(longest) > MOST_LETTERS:
        raise UserError(
            f"a prompt in {source!r} has {len(longest):,} letters, expected up to {MOST_LETTERS:,}; encoders read a hundred words"
        )
    return texts


def stand_in(value: Tensor, nothing: int | Tensor) -> Tensor:
    """What stands for no condition, for as many rows as `value` has."""
    return torch.full_like(value, nothing) if isinstance(nothing, int) else nothing.to(value).expand_as(value)


def texts_of(source: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Of a list, a file with one a line, or encoded prompts."""
    return load_prompts(Path(source)).texts if is_encoded(source) else read_texts(source)


def divided(texts: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """(to learn from, to look at): a tenth at the end, `most` at most, and nothing of it among the others; fewer than ten
    texts serve for both."""
    kept = min(most, len(texts) // 10)
    shown = list(texts[len(texts) - kept :])
    learned = [text for text in texts if text not in set(shown)]
    return (learned, shown) if kept and learned else (list(texts), list(texts))


def texts_hash(texts: Sequence[str]) -> str:
    """Whatever their order and number."""
    return hashlib.sha256(json.dumps(sorted(set(texts))).encode()).hexdigest()


def is_encoded(source: object) -> TypeGuard[str | Path]:
    return isinstance(source, (str, Path)) and Path(source).suffix == ".safetensors"
