"""How good one model's images, or given images, are: measured as in a comparison, without the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.bench.gathering import PAIRED, Fine, Gathered, Meter, Request, Share, gather, joined, warm_up
from onefold.bench.judging import Judge, make_judge
from onefold.bench.processes import Processes
from onefold.bench.texts import told, told_teacher
from onefold.bench.ways import BEST, Way, fine_way, student_way, way
from onefold.data import ImageData, load_data, to_float
from onefold.denoiser import Denoiser
from onefold.devices import choose_device
from onefold.errors import UserError
from onefold.files import place_of
from onefold.metrics.fidelity import squared_errors
from onefold.progress import Progress, Tell, silent
from onefold.sampling import batches, chosen_labels
from onefold.seeds import ImageNoise, generator
from onefold.student import Student, is_student, load_student
from onefold.targets import fine_grid, rollout
from onefold.teachers import bundled, load_teacher

COUNT, CALLS = 512, 10  # of a model
FOLLOWED = 64  # images whose states are compared step by step
TOGETHER = 16  # of them at a time, since all states are kept
PARTS = 16  # the teacher's steps in one of the student's, for states that are exact enough to compare with


def evaluate(
    source: str | Path | Denoiser | Student,
    *,
    reference: str | Path | Sequence[str | Path] = (),
    metrics: Sequence[str] | None = None,
    teacher: str | Path | Denoiser | None = None,
    solver: str | None = None,
    calls: int | None = None,
    grid: str | None = None,
    count: int | None = None,
    seed: int = 0,
    extractor: str | None = None,
    weights: Path | None = None,
    prompts: Path | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """A teacher (with `solver` (iPNDM-3), `calls` (10) and `grid`), a student, or images (a folder, an .npz, as `load_data`
    reads them; a `count` of them is drawn by lot).

    The answer's `scores` have a value, its spread (standard error) and the floor that real images have, by metric.
    `teacher` is the one that a student is compared with; without it the one it names, where that is still there.
    """
    say, bench = tell or (lambda _: None), Run(batch_size, seed, progress or silent, Processes(device))
    references = [reference] if isinstance(reference, (str, Path)) else list(reference)
    ask = partial(
        make_judge,
        metrics,
        references,
        extractor=extractor,
        weights=weights,
        prompts=prompts,
        batch_size=batch_size,
        progress=progress,
    )
    asked: dict[str, object] = {"solver": solver, "calls": calls, "grid": grid, "teacher": teacher}
    data = open_images(source)
    check_count(count, data, source)
    if data is not None:
        refuse(asked, f"{source} are images")
        number = len(data) if count is None else count
        place = str(choose_device(device)[0])
        return images_measured(data, number, partial(ask, device=place), bench) | {"source": str(source)}
    model = told(open_model(source, device, precision, say, teacher), prompts, say)
    hears = (model.denoiser if isinstance(model, Student) else model).prompts is not None
    ask = partial(ask, prompts=None) if hears and extractor != "clip" else ask  # for the model, not for CLIP
    if isinstance(model, Student):
        ask = partial(ask, students=[model], tell=say)
        tell_apart(model, say)
        refuse({**asked, "teacher": None, "calls": None}, f"student {model.name} has its own solver and grid")
        chosen = student_way(model.at(model.calls if calls is None else calls))
    else:
        refuse({"teacher": teacher}, f"{model.name} is a teacher")
        chosen = way(model, solver or BEST[0], CALLS if calls is None else calls, grid or "auto")
    owner = teacher_of(chosen, teacher, say)
    owner = None if owner is None else told_teacher(owner, prompts)
    return way_measured(chosen, owner, COUNT if count is None else count, ask, bench)


def tell_apart(student: Student, tell: Tell) -> None:
    """What distances to the teacher say of a student that does not imitate it."""
    if not student.imitates:
        tell(
            f"{student.name} learned to make images like the data's, not its teacher's from the same noise: distances to the teacher do not judge it"
        )


def check_count(count: int | None, data: ImageData | None, source: object) -> None:
    if count is not None and count < 1:
        raise UserError(f"count is {count}, expected 1 or more images")
    if count is not None and data is not None and count > len(data):
        raise UserError(f"count is {count:,}, but {source} has {len(data):,} images; leave it out to measure them all")


def refuse(asked: Mapping[str, object], why: str) -> None:
    given = [name for name, value in asked.items() if value is not None]
    if given:
        raise UserError(f"{why}; leave out {', '.join(given)}")


@dataclass(frozen=True)
class Run:
    """How the images are gone through."""

    batch_size: int
    seed: int
    progress: Progress
    processes: Processes

    def request(self, judge: Judge, count: int) -> Request:
        extractors = list(judge.extractors.values())
        return Request(count, self.seed, self.batch_size, extractors, judge.keep_vectors, judge.gaps, shown=0)


def images_measured(data: ImageData, count: int, ask: Callable[..., Judge], bench: Run) -> dict[str, Any]:
    judge = ask(home=None, shape=data.shape, classes=data.classes, paired=False, count=count)
    request, processes = bench.request(judge, count), bench.processes
    share, parts = Share(), list(batches(0, count, bench.batch_size))[processes.rank :: processes.world]
    # by lot: folders are often sorted by class; but texts belong to images by their place
    order = (
        torch.arange(len(data))
        if judge.texts is not None
        else torch.randperm(len(data), generator=generator(bench.seed))
    )
    bench.progress(0, len(parts), begin=True)
    for done, indices in enumerate(parts, start=1):
        images, labels = data.fetch(order[list(indices)])
        share.add(request, indices, to_float(images), labels, None)
        bench.progress(done, len(parts))
    return answer(judge, joined(processes.everyone(share)), count)


def way_measured(
    chosen: Way, teacher: Denoiser | None, count: int, ask: Callable[..., Judge], bench: Run
) -> dict[str, Any]:
    model = chosen.model
    judge = ask(
        home=(teacher or model).home,
        shape=model.image_shape,
        classes=model.classes,
        paired=teacher is not None,
        count=count,
        device=str(model.device),
    )
    fine = (
        Fine(fine_way(teacher), bench.seed, min(PAIRED, count), None) if teacher is not None and judge.paired else None
    )
    total = count * chosen.calls + (fine.count * fine.way.calls if fine else 0)
    meter = Meter(bench.progress, bench.processes, total)
    request = bench.request(judge, count)
    warm_up(chosen, request)
    gathered = gather(chosen, request, fine, meter, bench.processes)
    facts = {"source": model.name, "how": chosen.label, "seed": bench.seed, "nfe": gathered.nfe}
    facts |= {"seconds_per_image": gathered.seconds_per_image, "cost": chosen.cost}
    if chosen.kind == "student" and teacher is not None:
        facts["steps"] = steps(
            chosen, teacher, bench.seed, batches(0, min(FOLLOWED, count), min(TOGETHER, bench.batch_size))
        )
    return answer(judge, gathered, count) | facts


def open_images(source: str | Path | Denoiser | Student) -> ImageData | None:
    """None for a model: bundled, or a folder that holds one; and for a name that is nothing, which is told as a model's."""
    if isinstance(source, (Denoiser, Student)) or str(source) in bundled() or is_student(source):
        return None
    folder = place_of(source)
    if any((folder / inside).exists() for inside in ("unet", "teacher", "onefold.json", "model_index.json")):
        return None
    plain = str(source).isidentifier() and str(source) != "digits"
    return None if plain and not folder.exists() else load_data(str(source))


def open_model(
    source: str | Path | Denoiser | Student,
    device: str,
    precision: str,
    tell: Tell,
    teacher: str | Path | Denoiser | None,
) -> Denoiser | Student:
    """`teacher` matters to students of one's own network."""
    if isinstance(source, (Denoiser, Student)):
        return source
    how: dict[str, Any] = {"device": device, "precision": precision, "tell": tell}
    if not is_student(source):
        return load_teacher(source, **how)
    return load_student(source, teacher=str(teacher) if isinstance(teacher, Path) else teacher, **how)


def teacher_of(chosen: Way, given: str | Path | Denoiser | None, tell: Tell) -> Denoiser | None:
    """Whose fine solution the images are compared with: a teacher's own, or the student's teacher's."""
    if chosen.kind != "student":
        return chosen.model
    name = str(chosen.recipe.get("teacher", {}).get("name"))
    settings = chosen.recipe.get("settings", {})
    place = str(settings.get("root") or settings.get("teacher", name))  # as the student's command named it
    here = next((one for one in (place, name) if one in bundled() or Path(one).expanduser().is_dir()), None)
    source = here if given is None else given
    model = load_teacher(source, device=str(chosen.model.device)) if isinstance(source, (str, Path)) else source
    if model is not None and model.card.get("sha256") == chosen.owner:
        return model.replace(guidance=chosen.guidance)
    if given is not None and model is not None:
        raise UserError(
            f"{chosen.model.name!r} was distilled from other weights than those of {model.name!r}; name its own teacher"
        )
    tell(f"its teacher {place!r} is not here, so the distance to it is left out; name it with --teacher")
    return None


def answer(judge: Judge, gathered: Gathered, count: int) -> dict[str, Any]:
    if gathered.broken:
        raise UserError(
            f"{gathered.broken} of {count} images are NaN or infinite, so nothing can be measured; look at the model with `onefold inspect`"
        )
    about = {one["key"]: one for one in judge.about(count)}
    scores = {
        key: {**asdict(score), "floor": about[key]["floor"], "name": about[key]["name"]}
        for key, score in judge.scores(gathered).items()
    }
    return {"scores": scores, "count": count}


def steps(chosen: Way, teacher: Denoiser, seed: int, parts: Iterator[range]) -> list[dict[str, float]]:
    """How far the student is from its teacher's path at each of its levels, both from the same noise."""
    grid = chosen.plan.grid
    errors = [squared_errors_by_step(chosen, teacher.replace(precision="fp32"), seed, indices) for indices in parts]
    whole = torch.cat(errors, dim=1).mean(1).sqrt().tolist()
    return [{"sigma": sigma, "rmse": value} for sigma, value in zip(grid.sigmas.tolist()[1:], whole, strict=True)]


@torch.inference_mode()
def squared_errors_by_step(chosen: Way, teacher: Denoiser, seed: int, indices: range) -> Tensor:
    """(steps, images)"""
    grid = chosen.plan.grid
    labels = chosen_labels(chosen.model, seed, indices, None)
    states = chosen.plan.solve(chosen.model, ImageNoise(seed, indices, teacher.shape), labels, trajectory=True)
    cond = {key: value.to(teacher.device) for key, value in teacher.conditions(labels).items()}
    start = grid.start_state(teacher.process, ImageNoise(seed, indices, teacher.shape)().to(teacher.device))
    fine = rollout(teacher, start, fine_grid(teacher, grid, PARTS), PARTS, solver="dpmpp3m_exact", cond=cond)
    return torch.stack([squared_errors(state, true) for state, true in zip(states[1:], fine[1:], strict=True)])
