"""The format of a comparison's results.json, checked before anything is drawn from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeFloat, PositiveInt, ValidationError

from onefold.errors import UserError, first_line, suggest

FILE = "results.json"
FORMAT = "onefold.comparison/1"
AGAIN = "write the comparison again with `onefold compare`"

Amount = Annotated[NonNegativeFloat, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """Unknown keys are left alone: a comparison may say more than the report draws."""

    model_config = ConfigDict(strict=True)


class Size(Part):
    channels: PositiveInt
    height: PositiveInt
    width: PositiveInt


class Floor(Part):
    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    count: PositiveInt
    about: str


class Metric(Part):
    key: Text
    name: Text
    about: str
    better: Literal["lower", "higher"]
    floor: Floor | None


class Score(Part):
    value: FiniteFloat
    spread: Amount | None


class Cost(Part):
    seconds: Amount
    images: Amount
    calls: Amount


class Row(Part):
    id: Text
    label: Text
    series: Text
    kind: Literal["solver", "student", "best"]
    model: str
    method: str | None
    solver: str | None
    grid: str | None
    calls: PositiveInt
    nfe: Amount
    scores: dict[str, Score]
    seconds_per_image: Amount | None
    cost: Cost | None
    picture: Text


class Strip(Part):
    """Lines of `columns` images."""

    row: str
    picture: Text
    columns: PositiveInt


class Evenness(Part):
    length: Amount
    jump: Amount


class Interpolation(Strip):
    kind: Literal["slerp", "linear"]
    evenness: Evenness | None


class Trajectory(Strip):
    sigmas: list[FiniteFloat | None]  # one a column; null is infinite


class PublishedSeries(Part):
    label: Text
    points: list[Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]]


class Published(Part):
    title: str
    metric: str
    source: str
    images: PositiveInt
    series: list[PublishedSeries]


class Provenance(Part):
    """Commands that make the comparison again, and any nesting of facts besides."""

    commands: list[str]


class Results(Part):
    format: Literal["onefold.comparison/1"]
    title: Text
    made: str
    seconds: Amount
    count: PositiveInt
    seed: int
    shown: PositiveInt
    image: Size
    metrics: Annotated[list[Metric], Field(min_length=1)]
    rows: Annotated[list[Row], Field(min_length=1)]
    interpolations: list[Interpolation]
    trajectories: list[Trajectory]
    published: Published | None
    provenance: Provenance


def read_results(folder: str | Path) -> dict[str, Any]:
    """What results.json says, after every part of it and every picture it names has been found in order."""
    path = Path(folder) / FILE
    values = read_values(path)
    try:
        results = Results.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where} does not fit ({first['msg'].lower()}); {AGAIN}") from None
    check_references(path, results)
    for name, columns in named_pictures(results):
        check_picture(path, name, results, columns)
    return values


def read_values(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(values, allow_nan=False)  # JSON itself knows no NaN; Python's reader lets it pass
    except FileNotFoundError:
        raise UserError(
            f"there is no {FILE} in {path.parent}; give the folder that `onefold compare` has written"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON ({first_line(error)}); {AGAIN}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise UserError(f"{path} has the format {found!r}, this version of onefold reads {FORMAT!r}; {AGAIN}")
    return values


def strips_of(results: Results) -> list[Strip]:
    return [*results.interpolations, *results.trajectories]


def check_references(path: Path, results: Results) -> None:
    """Names that stand for something else stand for something that is there, once."""
    metrics, rows = [metric.key for metric in results.metrics], [row.id for row in results.rows]
    for kind, names in (("metric", metrics), ("row", rows)):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path}: the {kind} {twice!r} occurs more than once; {AGAIN}")
    uses = [("metric", key, metrics) for row in results.rows for key in row.scores]
    uses += [("row", strip.row, rows) for strip in strips_of(results)]
    for kind, name, known in uses:
        if name not in known:
            raise UserError(f"{path}: unknown {kind} {name!r}{suggest(name, known)}")
    for strip in results.trajectories:
        if len(strip.sigmas) != strip.columns:
            raise UserError(
                f"{path}: a trajectory of {strip.row!r} has {len(strip.sigmas)} sigmas for {strip.columns} columns; {AGAIN}"
            )


def named_pictures(results: Results) -> Iterator[tuple[str, int | None]]:
    """Each picture with its number of columns, where the results fix it."""
    yield from ((row.picture, None) for row in results.rows)
    yield from ((strip.picture, strip.columns) for strip in strips_of(results))


def check_picture(path: Path, name: str, results: Results, columns: int | None) -> None:
    """A PNG beside the results, made of whole images, as many as it should hold."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UserError(f"{path}: picture {name!r} is not beside the results; {AGAIN}")
    try:
        with Image.open(path.parent / name, formats=["PNG"]) as picture:
            across, left = divmod(picture.width, results.image.width)
            down, over = divmod(picture.height, results.image.height)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"picture {path.parent / name} is not readable ({first_line(error)}); {AGAIN}") from None
    fits = across * down >= results.shown if columns is None else across == columns
    if left or over or not fits:
        wanted = f"{results.shown} images" if columns is None else f"rows of {columns} images"
        size = f"{results.image.width}x{results.image.height}"
        raise UserError(
            f"picture {path.parent / name} is {picture.width}x{picture.height}, expected {wanted} of {size}; {AGAIN}"
        )
