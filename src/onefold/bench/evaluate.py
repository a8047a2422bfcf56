"""How good one model's images, or given images, are: measured as in a comparison, without the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from onefold.bench.gathering import PAIRED, Fine, Gathered, Meter, Request, Share, gather, joined
from onefold.bench.judging import Judge, make_judge
from onefold.bench.processes import Processes
from onefold.bench.ways import BEST, Way, fine_way, student_way, way
from onefold.data import ImageData, load_data, to_float
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.metrics.fidelity import by_step
from onefold.progress import Progress, Tell, silent
from onefold.sampling import batches, chosen_labels
from onefold.seeds import ImageNoise
from onefold.student import Student, is_student, load_student
from onefold.targets import fine_grid, rollout
from onefold.teachers import bundled, load_teacher

COUNT = 512  # images of a model
FOLLOWED = 64  # images whose states are compared step by step
PARTS = 16  # the teacher's steps in one of the student's, for states that are exact enough to compare with


def evaluate(
    source: str | Path | Denoiser | Student,
    *,
    reference: str | Path | Sequence[str | Path] = (),
    metrics: Sequence[str] | None = None,
    teacher: str | Path | Denoiser | None = None,
    solver: str = BEST[0],
    calls: int = 10,
    grid: str = "auto",
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
    """A teacher (with `solver`, `calls` and `grid`), a student, or images (a folder, an .npz, as `load_data` reads them).

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
    data = open_images(source)
    if data is not None:
        return images_measured(data, min(count or len(data), len(data)), ask, bench) | {"source": str(source)}
    chosen = chosen_way(source, solver, calls, grid, device, precision, say)
    return way_measured(chosen, teacher_of(chosen, teacher, say), count or COUNT, ask, bench)


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
    judge = ask(home=None, classes=data.labels is not None, paired=False, count=count)
    request, processes = bench.request(judge, count), bench.processes
    share, parts = Share(), list(batches(0, count, bench.batch_size))[processes.rank :: processes.world]
    bench.progress(0, len(parts), begin=True)
    for done, indices in enumerate(parts, start=1):
        images, labels = data.fetch(list(indices))
        share.add(request, indices, to_float(images), labels, None)
        bench.progress(done, len(parts))
    return answer(judge, joined(processes.everyone(share)), count)


def way_measured(
    chosen: Way, teacher: Denoiser | None, count: int, ask: Callable[..., Judge], bench: Run
) -> dict[str, Any]:
    model = chosen.model
    judge = ask(
        home=(teacher or model).home,
        classes=bool(model.classes),
        paired=teacher is not None,
        count=count,
        device=str(model.device),
    )
    fine = (
        Fine(fine_way(teacher), bench.seed, min(PAIRED, count), None) if teacher is not None and judge.paired else None
    )
    total = count * chosen.calls + (fine.count * fine.way.calls if fine else 0)
    meter = Meter(bench.progress, bench.processes, total)
    gathered = gather(chosen, bench.request(judge, count), fine, meter, bench.processes)
    facts = {"source": model.name, "how": chosen.label, "seed": bench.seed, "nfe": gathered.nfe}
    facts |= {"seconds_per_image": gathered.seconds_per_image, "cost": chosen.cost}
    if chosen.kind == "student" and teacher is not None:
        facts["steps"] = steps(chosen, teacher, bench.seed, min(FOLLOWED, count))
    return answer(judge, gathered, count) | facts


def open_images(source: str | Path | Denoiser | Student) -> ImageData | None:
    """None for a model: bundled, or a folder that holds one."""
    if isinstance(source, (Denoiser, Student)) or str(source) in bundled() or is_student(source):
        return None
    folder = Path(source).expanduser()
    if any((folder / inside).exists() for inside in ("unet", "teacher", "onefold.json", "model_index.json")):
        return None
    return load_data(str(source))


def chosen_way(
    source: str | Path | Denoiser | Student,
    solver: str,
    calls: int,
    grid: str,
    device: str,
    precision: str,
    tell: Tell,
) -> Way:
    if not isinstance(source, (Denoiser, Student)):
        load = load_student if is_student(source) else load_teacher
        source = load(source, device=device, precision=precision, tell=tell)
    return student_way(source) if isinstance(source, Student) else way(source, solver, calls, grid)


def teacher_of(chosen: Way, given: str | Path | Denoiser | None, tell: Tell) -> Denoiser | None:
    """Whose fine solution the images are compared with: a teacher's own, or the student's teacher's."""
    if chosen.kind != "student":
        return chosen.model
    named = chosen.recipe.get("teacher", {})
    if given is None and str(named.get("name")) not in bundled() and not Path(str(named.get("name"))).is_dir():
        tell(
            f"its teacher {named.get('name')!r} is not here, so the distance to it is left out; name it with --teacher"
        )
        return None
    source = given if given is not None else str(named["name"])
    model = source if isinstance(source, Denoiser) else load_teacher(source, device=str(chosen.model.device))
    if model.card.get("sha256") != named.get("sha256"):
        raise UserError(
            f"{chosen.model.name!r} was distilled from other weights than those of {model.name!r}; name its own teacher"
        )
    return model.replace(guidance=chosen.guidance)


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


@torch.inference_mode()
def steps(chosen: Way, teacher: Denoiser, seed: int, count: int) -> list[dict[str, float]]:
    """How far the student is from its teacher's path at each of its levels, both from the same noise."""
    grid = chosen.plan.grid
    labels = chosen_labels(chosen.model, seed, range(count), None)
    states = chosen.plan.solve(chosen.model, ImageNoise(seed, range(count), teacher.shape), labels, trajectory=True)
    noise = ImageNoise(seed, range(count), teacher.shape)().to(teacher.device)
    cond = {} if labels is None else {"labels": labels.to(teacher.device)}
    start = grid.start_state(teacher.process, noise)
    fine = rollout(teacher, start, fine_grid(teacher, grid, PARTS), PARTS, solver="dpmpp3m_exact", cond=cond)
    return by_step(states, fine, grid.sigmas.tolist())
