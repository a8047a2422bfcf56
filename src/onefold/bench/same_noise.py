"""A student beside its teacher: the three ways that alignment compares, each from any noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from onefold.bench.evaluate import teacher_of
from onefold.bench.texts import told, told_teacher
from onefold.bench.ways import FINE, student_way
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.metrics.interpolation import Path as Along
from onefold.metrics.interpolation import between
from onefold.progress import Progress, Tell
from onefold.sampling import chosen_labels, sample
from onefold.seeds import ImageNoise
from onefold.student import Student, load_student

Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Trio:
    """`teacher` is guided as the student has it folded in."""

    student: Student
    teacher: Denoiser
    seed: int
    batch_size: int
    meter: Meter

    def by_student(self, count: int, **how: Any) -> Tensor:
        return self.drawn(self.student.denoiser, count, self.student.calls, {**self.student.way, **how})

    def strided(self, count: int, **how: Any) -> Tensor:
        """DDIM of the teacher on the student's own grid: what a student that imitates it level by level can reach at best."""
        teacher = self.teacher.replace(precision=self.student.denoiser.precision)
        return self.drawn(teacher, count, self.student.calls, {**self.student.way, **how})

    def fine(self, count: int, **how: Any) -> Tensor:
        """Always in float32: rounding is no part of the truth."""
        solver, calls = FINE
        model = self.teacher.replace(precision="fp32")
        return self.drawn(model, count, calls, {"solver": solver, "calls": calls, **how})

    def drawn(self, model: Denoiser, count: int, calls: int, how: dict[str, Any]) -> Tensor:
        settings: dict[str, Any] = {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "progress": self.meter.part(calls),
        }
        images: Tensor = sample(model, count, **settings, **how)
        if not bool(images.isfinite().all()):
            raise UserError(
                f"{model.name!r} makes images with NaN or infinite numbers, so nothing can be compared; look at it with `onefold inspect`"
            )
        return images.float()

    def along(self, kind: Along, pairs: int, frames: int, draw: Draw) -> Tensor:
        """Images (pairs, frames, ...) between noise i and noise pairs + i of the seed; the class or text is the first one's."""
        noises = ImageNoise(self.seed, range(2 * pairs), self.teacher.shape)()
        path = between(kind, noises[:pairs], noises[pairs:], frames)
        labels = chosen_labels(self.teacher, self.seed, range(pairs), None)
        repeated = None if labels is None else labels.repeat_interleave(frames).tolist()
        images = draw(pairs * frames, noise=path.flatten(0, 1), labels=repeated)
        return images.reshape(pairs, frames, *images.shape[1:])


class Meter:
    """One progress over several samplings, in network calls."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0
        progress(0, total, begin=True)

    def part(self, calls: int) -> Progress:
        begun = self.done

        def report(done: int, total: int | None, **facts: object) -> None:  # noqa: ARG001  (a Progress)
            self.done = begun + calls * done
            self.progress(self.done, self.total)

        return report


def open_pair(
    student: str | Path | Student,
    teacher: str | Path | Denoiser | None,
    prompts: Path | None,
    *,
    device: str,
    precision: str,
    tell: Tell,
) -> tuple[Student, Denoiser]:
    """The student and the teacher that it names, or the given one; other weights than it was made from are refused."""
    if not isinstance(student, Student):
        own = str(teacher) if isinstance(teacher, Path) else teacher  # matters to networks of one's own
        student = load_student(student, teacher=own, device=device, precision=precision, tell=tell)
    owner = teacher_of(student_way(student), teacher, lambda _: None)
    if owner is None:
        named = student.recipe.get("teacher", {}).get("name")
        raise UserError(
            f"teacher {named!r} of student {student.name!r} is not here, or has other weights now; name its folder with --teacher or teacher="
        )
    heard = told(student, prompts, tell)
    assert isinstance(heard, Student)
    return heard, told_teacher(owner, prompts)
