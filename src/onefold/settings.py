"""Settings: pydantic models that refuse what they do not know, and files that load as they were written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from onefold.errors import UserError, first_line, suggest
from onefold.files import read_text


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def build(kind: type[S], values: Mapping[str, Any]) -> S:
    """Settings from plain values; the first mistake becomes one sentence."""
    for key in values:
        if not isinstance(key, str):
            raise UserError(f"setting {key!r} is a {type(key).__name__}, expected a name; quote it or remove it")
        if key not in kind.model_fields:
            raise UserError(f"unknown setting {key!r}{suggest(key, kind.model_fields)}")
    try:
        return kind(**values)
    except ValidationError as error:  # a UserError raised by a validator passes through as it is
        raise UserError(first_mistake(error)) from None


def first_mistake(error: ValidationError, what: str = "setting") -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or f"{what}s"
    wish = first["msg"].replace("Input should", "it should")
    return f"{what} {where}={first['input']!r} does not fit: {wish}"


class PlainLoader(yaml.SafeLoader):
    """YAML without aliases: ten lines of them stand for more than any memory holds, and settings need none."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported, write it out", None)
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """Plain values; a tag cannot name code. What YAML's own types make of a bad value breaks in many ways."""
    try:
        return yaml.load(text, PlainLoader)  # noqa: S506  (it is a SafeLoader)
    except Exception as error:
        raise ValueError(first_line(error)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(read_text(path))
    except FileNotFoundError:
        raise UserError(f"there is no settings file {str(path)!r}; check the path") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable as YAML ({first_line(error)}); mend or delete it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` lines, not {type(values).__name__}")
    return values


def parse_assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """`--set key=value` arguments; values are read as YAML, so 1e-3, true and [1, 2] are what they look like."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set takes key=value, not {pair!r}")
        values[key.strip().replace("-", "_")] = read_value(key, text)
    return values


def read_value(key: str, text: str) -> Any:
    plain = number(text)
    try:
        return parse_yaml(text) if plain is None else plain
    except ValueError:
        raise UserError(
            f"the value of {key} is {text!r}, expected a number, a word or a [list]; close what is open"
        ) from None


def number(text: str) -> int | float | None:
    """YAML reads 1e-3 as a word; people mean the number."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def command_line(
    words: Sequence[str], settings: Settings, options: Container[str], said: set[str], left_out: set[str]
) -> str:
    """The command that gives these settings. `words` say those in `said`; what they do not imply follows, as an option or
    with --set, and where to."""
    line, values = list(words), settings.model_dump(mode="json")
    out = values.pop("out")
    implied = (
        type(settings).model_validate({"out": out} | {name: values[name] for name in said}).model_dump(mode="json")
    )
    for name, value in values.items():
        if value == implied[name] or name in left_out:
            continue
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        line += [f"--{name.replace('_', '-')}", text] if name in options else ["--set", f"{name}={text}"]
    return shlex.join([*line, "--out", out])


def described(kind: type[Settings]) -> list[tuple[str, str, str]]:
    """(name, default, description) of every setting, for help texts."""
    rows = []
    for name, field in kind.model_fields.items():
        default = "required" if field.is_required() else str(field.get_default(call_default_factory=True))
        rows.append((name, default, field.description or ""))
    return rows
