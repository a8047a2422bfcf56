"""Distilling: teacher + method + engine -> student; the one place where they meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onefold import devices
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.imports import is_function_name
from onefold.methods import METHODS, find
from onefold.progress import Progress, Tell, duration, process_rank
from onefold.settings import build, read_yaml
from onefold.student import Student, load_student
from onefold.teachers import load_teacher
from onefold.teachers.own import with_form
from onefold.training.folder import RunFolder
from onefold.training.loop import Engine, ignore
from onefold.training.outlook import Outlook, in_all
from onefold.training.start import start_processes


def distill(
    teacher: str | Path | Denoiser | None = None,
    method: str | None = None,
    *,
    out: str | Path | None = None,
    config: Path | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
    **settings: Any,
) -> Student:
    """A fast student of a teacher; the run folder then holds it as `student/`. The same call goes on where it stopped."""
    named = {"teacher": teacher.name if isinstance(teacher, Denoiser) else teacher, "method": method, "out": out}
    given = {key: str(value) for key, value in named.items() if value is not None}
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    chosen = choose({**(read_yaml(config) if config else {}), **settings, **given})
    teacher = with_form(teacher) if isinstance(teacher, Denoiser) else teacher
    engine = run_stages(chosen, teacher, progress, tell or ignore)
    how: dict[str, Any] = {"device": str(engine.device), "precision": engine.precision}
    del engine  # and with it the networks of the training
    return load_student(Path(chosen.out) / "student", teacher=own_teacher(teacher, chosen.teacher), **how)


def run_stages(chosen: Any, teacher: str | Path | Denoiser | None, progress: Progress | None, say: Tell) -> Engine:
    """Every stage is a run of its own, and begins with the student of the one before; finished ones are left as they are."""
    *earlier, last = chosen.stages()
    folder, count = RunFolder(Path(last.out)), len(earlier) + 1
    folder.check(last.model_dump(mode="json"))
    before: Path | None = None
    for number, stage in enumerate(earlier, 1):
        result = Path(stage.out) / "student"
        RunFolder(Path(stage.out)).check(stage.model_dump(mode="json"))
        if result.is_dir():
            say(f"stage {number} of {count}: finished before, {result}")
        else:
            say(f"stage {number} of {count}")
            engine = build_engine(stage, teacher, progress, say, before)
            if not process_rank():  # the stage's folder lies in it; settings that do not fit leave nothing behind
                folder.open(last.model_dump(mode="json"))
                folder.close()
            cost = engine.run()
            del engine
            say(f"finished: {cost['images']:,} images in {duration(cost['seconds'])}, {result}")
        before = result
    if earlier:
        say(f"stage {count} of {count}")
    engine = build_engine(last, teacher, progress, say, before)
    engine.run()
    return engine


def own_teacher(given: str | Path | Denoiser | None, name: str) -> Denoiser | str | None:
    """What a student of one's own network is loaded with."""
    return given if isinstance(given, Denoiser) else name if is_function_name(name) else None


def plan(teacher: str | Path | Denoiser, method: str = "sfd", *, tell: Tell | None = None, **settings: Any) -> Outlook:
    """What `distill` with these settings would cost, from a few of its steps; nothing is kept or written."""
    name = teacher.name if isinstance(teacher, Denoiser) else str(teacher)
    own = {key: value for key, value in settings.items() if key != "cache"}  # which would be written, or hide a cost
    chosen = choose({"out": "plan", **own, "teacher": name, "method": method, "trackers": []})
    first, *later = chosen.stages()
    # of a later stage nothing is there yet; its networks are like the first one's, and guidance is in them by then
    stages = [first, *(stage.model_copy(update={"guidance": 1.0}) for stage in later)]
    return in_all([build_engine(stage, teacher, None, tell or ignore).rehearse() for stage in stages])


def choose(values: dict[str, Any]) -> Any:
    """The settings class of the method, filled."""
    method = values.get("method", "sfd")
    kind = find(method)[1]
    for key in values.keys() - kind.model_fields.keys():
        knowing = [name for name in METHODS if key in find(name)[1].model_fields]
        if knowing:
            raise UserError(f"method {method!r} has no setting {key!r}; leave it out, or use {' or '.join(knowing)}")
    return build(kind, values)


def build_engine(
    chosen: Any,
    teacher: str | Path | Denoiser | None,
    progress: Progress | None,
    say: Tell,
    before: Path | None = None,
) -> Engine:
    device, precision = devices.choose(chosen.device, chosen.precision, say)
    loaded = teacher if isinstance(teacher, Denoiser) else load_teacher(chosen.teacher, device=str(device))
    ready = loaded.replace(precision=precision).to(device)
    ready = ready if chosen.prompts is None else ready.with_prompts(chosen.prompts)
    ready.check_told()
    method = find(chosen.method)[0](ready, chosen, *([] if before is None else [before]))
    for note in method.notes:
        say(note)
    return Engine(
        method,
        chosen,
        chosen.model_dump(mode="json"),
        start_processes(device, chosen),
        precision=precision,
        result="student",
        identity=method.identity,
        progress=progress,
        tell=say,
    )
