"""Does a student give its teacher's images from the same noise, and move as evenly between two noises?

What it can be told from: the teacher on the student's own grid (the optimum of imitating it level by level), the teacher's
fine solution, and, as a scale for both, the distance of images that come from other noise.

out/align.png                 teacher, teacher on the student's grid, student; the same noise in each column
out/interpolation_slerp.png   the teacher's path between two noises above the student's, pair by pair
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from onefold.bench.evaluate import tell_apart
from onefold.bench.same_noise import Meter, Trio, open_pair
from onefold.bench.ways import FINE
from onefold.denoiser import Denoiser
from onefold.errors import UserError, suggest
from onefold.metrics.fidelity import psnr, rmse, squared_errors
from onefold.metrics.interpolation import Evenness, evenness
from onefold.metrics.interpolation import Path as Along
from onefold.metrics.references import shape_text
from onefold.pictures import COLUMNS, labelled_rows, save_png
from onefold.progress import Progress, Tell, silent
from onefold.seeds import ImageNoise
from onefold.student import Student

PICTURE = "align.png"


@dataclass(frozen=True)
class Distance:
    """Over all pixels of all images, in the range [-1, 1]."""

    rmse: float
    psnr: float  # dB, peak 2; equal images get what rounding leaves


@dataclass(frozen=True)
class Interpolation:
    """None where a path's ends gave the same image."""

    teacher: Evenness | None
    student: Evenness | None


@dataclass(frozen=True)
class Alignment:
    student: str
    teacher: str
    calls: int
    guidance: float  # folded into the student; the teacher is guided alike
    fine: str  # how the teacher's fine solution is made
    count: int
    seed: int
    pairs: int
    frames: int
    student_to_strided: Distance
    student_to_fine: Distance
    strided_to_fine: Distance
    other_noise_to_fine: Distance  # the student's images of the same classes from the next image's noise
    interpolations: Mapping[Along, Interpolation]
    pictures: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"pictures": list(self.pictures)}


def align(
    student: str | Path | Student,
    teacher: str | Path | Denoiser | None = None,
    *,
    count: int = 64,
    pairs: int = 4,
    frames: int = 9,
    path: Along | Sequence[Along] = "slerp",
    calls: int | None = None,
    prompts: Path | None = None,
    seed: int = 0,
    batch_size: int = 64,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Alignment:
    """How near a student (or its folder) is to its teacher from the same noise, and how evenly both interpolate.

    `teacher` is the one that the student names, where that is still there. `path` is "slerp", "linear" or both. `out` is a
    folder for the pictures. `calls` is one of a student's numbers, the largest if not told. Models of texts are told `prompts`, in turn.
    """
    begin, kinds = time.perf_counter(), paths_of(path)
    check_numbers(count, pairs, frames)
    how: dict[str, Any] = {"device": device, "precision": precision, "tell": tell or (lambda _: None)}
    pupil, owner = open_pair(student, teacher, prompts, **how)
    pupil = pupil if calls is None else pupil.at(calls)
    tell_apart(pupil, how["tell"])
    if out is not None and (len(owner.image_shape) != 3 or owner.image_shape[0] not in (1, 3)):
        raise UserError(f"{owner.name!r} makes no pictures but {shape_text(owner.image_shape)}; leave the folder out")
    work = count * (3 * pupil.calls + FINE[1]) + len(kinds) * pairs * frames * (pupil.calls + FINE[1])
    trio = Trio(pupil, owner, seed, batch_size, Meter(progress or silent, work))
    rows = {"fine": trio.fine(count), "strided": trio.strided(count), "student": trio.by_student(count)}
    others = trio.by_student(count, noise=ImageNoise(seed, range(count), owner.shape)().roll(-1, 0))
    moved = {kind: moving(trio, kind, pairs, frames) for kind in kinds}
    return Alignment(
        student=pupil.name,
        teacher=owner.name,
        calls=pupil.calls,
        guidance=owner.guidance,
        fine=f"{FINE[0]}, {FINE[1]} calls",
        count=count,
        seed=seed,
        pairs=pairs,
        frames=frames,
        student_to_strided=distance(rows["student"], rows["strided"]),
        student_to_fine=distance(rows["student"], rows["fine"]),
        strided_to_fine=distance(rows["strided"], rows["fine"]),
        other_noise_to_fine=distance(others, rows["fine"]),
        interpolations={kind: Interpolation(*map(evenness, images)) for kind, images in moved.items()},
        pictures=() if out is None else save_pictures(Path(out), rows, moved, pupil.calls),
        seconds=round(time.perf_counter() - begin, 1),
    )


def paths_of(path: str | Sequence[str]) -> list[Along]:
    known: tuple[Along, ...] = get_args(Along)
    asked = [path] if isinstance(path, str) else list(path)
    for name in asked:
        if name not in known:
            raise UserError(
                f"unknown path {name!r}{suggest(name, known)}; between two noises lead {' and '.join(known)}"
            )
    if not asked:
        raise UserError(f"no path is named; give {' or '.join(known)}")
    return [name for name in known if name in asked]


def check_numbers(count: int, pairs: int, frames: int) -> None:
    if count < 2:
        raise UserError(f"count is {count}, expected 2 or more images; one has no other noise to be compared with")
    if pairs < 1 or frames < 2:
        raise UserError(f"pairs is {pairs} and frames {frames}, expected 1 or more pairs of 2 or more frames")


def distance(images: Tensor, reference: Tensor) -> Distance:
    errors = squared_errors(images, reference)
    return Distance(rmse(errors)[0], psnr(errors)[0])


def moving(trio: Trio, kind: Along, pairs: int, frames: int) -> tuple[Tensor, Tensor]:
    """Of the teacher's fine solution and of the student."""
    teacher, student = (trio.along(kind, pairs, frames, draw) for draw in (trio.fine, trio.by_student))
    return teacher, student


def save_pictures(
    out: Path, rows: Mapping[str, Tensor], moved: Mapping[Along, tuple[Tensor, Tensor]], calls: int
) -> tuple[str, ...]:
    of_calls = f"{calls} call{'s' * (calls != 1)}"
    labels = {
        "fine": f"teacher\n{FINE[1]} calls",
        "strided": f"teacher\nDDIM, {of_calls}",
        "student": f"student\n{of_calls}",
    }
    same = [(labels[name], images[:COLUMNS]) for name, images in rows.items()]
    saved = [save_png(labelled_rows(same, title="the same noise in each column"), out / PICTURE)]
    for kind, (teacher, student) in moved.items():
        strips = [
            strip
            for above, below in zip(teacher, student, strict=True)
            for strip in ((labels["fine"], above), (labels["student"], below))
        ]
        title = f"between two noises, {kind}"
        saved.append(save_png(labelled_rows(strips, title=title), out / f"interpolation_{kind}.png"))
    return tuple(map(str, saved))
