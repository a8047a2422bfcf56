"""Which way should I ship, and what does it cost? Solvers and students side by side, from the same noise.

out/results.json    everything, as the report reads it
out/report.html     the page to open
out/comparison.png  the picture to show
out/pictures/       what it shows
out/cache/          rows and fine solutions by content: a comparison goes on where it stopped, and another one reuses them
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from onefold.bench.gathering import GROUPS, PAIRED, Fine, Gathered, Meter, Request, gather, warm_up
from onefold.bench.judging import Judge, make_judge
from onefold.bench.picture import NAME, save_picture
from onefold.bench.processes import Processes
from onefold.bench.published import check_measured, read_published
from onefold.bench.report import write_report
from onefold.bench.texts import told
from onefold.bench.ways import BEST, CALLS, FINE, GRIDS, SOLVERS, Way, best_way, fine_way, student_way, teacher_ways
from onefold.denoiser import Denoiser
from onefold.errors import UserError, suggest
from onefold.files import atomic_file
from onefold.metrics.interpolation import Path as Along
from onefold.metrics.interpolation import between, evenness
from onefold.metrics.references import shape_text
from onefold.pictures import picture_grid, save_png
from onefold.progress import Progress, Tell, silent
from onefold.sampling import chosen_labels
from onefold.seeds import ImageNoise
from onefold.solvers import get_solver
from onefold.student import Student, is_student, load_student
from onefold.teachers import load_teacher
from onefold.version import hardware, versions

FORMAT = "onefold.comparison/1"
SHOWN = 64
COLUMNS = 8
LARGEST = 128  # pixels of an image in the report's pictures
PAIRS, FRAMES = 4, 10  # of the interpolation strips
PATHS: tuple[Along, ...] = ("slerp", "linear")
FOLLOWED = 4  # images whose states are shown


@dataclass(frozen=True)
class Comparison:
    results: Mapping[str, Any]
    folder: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self.results["rows"])

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def picture(self) -> Path:
        return self.folder / NAME


def compare(
    models: Sequence[str | Path | Denoiser | Student],
    *,
    out: str | Path = "comparison",
    calls: Sequence[int] = CALLS,
    solvers: Sequence[str] = SOLVERS,
    grids: Sequence[str] = GRIDS,
    count: int = 512,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
    lead: str | None = None,
    published: str | None = None,
    reference: Sequence[str | Path] = (),
    extractor: str | None = None,
    weights: Path | None = None,
    prompts: Path | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
    command: str | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Comparison:
    """Teachers with every solver on every grid at every number of `calls`, each teacher at its best, and students.

    All get the same noise. Without `metrics` the usual ones that the reference allows are measured; `lead` is the one
    that the report opens with. `published` names shipped numbers of the same data set, which it draws beside.
    Models of texts are told `prompts`, in turn.
    """
    if count < 1:
        raise UserError(f"count is {count}, expected 1 or more images")
    begin, say, folder, processes = time.perf_counter(), tell or (lambda _: None), Path(out), Processes(device)
    loaded = [told(model, prompts, say) for model in load_models(models, device, precision, say)]
    teachers = [model for model in loaded if isinstance(model, Denoiser)]
    first = teachers[0]
    beside = read_published(published, first.image_shape) if published else None
    judge = make_judge(
        metrics,
        reference,
        home=first.home,
        shape=first.image_shape,
        classes=first.classes,
        paired=True,
        count=count,
        extractor=extractor,
        weights=weights,
        prompts=prompts if extractor == "clip" else None,
        device=str(first.device),
        batch_size=batch_size,
        progress=progress,
        students=[model for model in loaded if isinstance(model, Student)],
        tell=say,
    )
    keys = [metric.key(name) for metric, name in judge.asked]
    if beside:
        check_measured(beside, keys)
    if lead is not None and lead not in keys:
        raise UserError(f"the report cannot open with {lead!r}{suggest(lead, keys)}; it is not measured here")
    ways = ways_of(loaded, teachers, solvers, grids, calls, processes)
    tell_lonely(ways, teachers, say)
    shown = min(count, SHOWN if max(first.image_shape[1:]) <= LARGEST // 2 else SHOWN // 4)
    request = Request(count, seed, batch_size, list(judge.extractors.values()), judge.keep_vectors, judge.gaps, shown)
    bench = Bench(judge, request, teachers, folder, processes, progress or silent)
    rows = [{"id": f"r{number:02}"} | row for number, row in enumerate(bench.rows(ways))]
    if all(row["broken"] for row in rows):
        raise UserError("no way gives images without NaN; look at the teacher with `onefold inspect`")
    results = {
        "format": FORMAT,
        "title": title(teachers, loaded),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - begin,
        "count": count,
        "seed": seed,
        "shown": request.shown,
        "image": image_facts(first),
        "fine": f"{FINE[0]}, {FINE[1]} calls, for the first {min(count, PAIRED)} images",
        "best": f"{BEST[0]}, {BEST[1]} calls: fixed in advance",
        "metrics": sorted(judge.about(count), key=lambda metric: metric["key"] != lead),
        "rows": rows,
        **bench.shows(featured(list(zip(ways, rows, strict=True)))),
        "published": beside,
        "provenance": provenance(command, loaded, judge),
    }
    if processes.first:
        write_json(results, folder / "results.json")
        save_picture(results, folder)
        write_report(folder)
    processes.wait()
    return Comparison(results, folder)


def load_models(
    models: Sequence[str | Path | Denoiser | Student], device: str, precision: str, tell: Tell
) -> list[Denoiser | Student]:
    """At least one of them a teacher: it is the measure; and all of one image shape, since they get the same noise."""
    loaded: list[Denoiser | Student] = []
    for model in models:
        if isinstance(model, (Denoiser, Student)):
            loaded.append(model)
        else:
            how: dict[str, Any] = {"device": device, "precision": precision, "tell": None if loaded else tell}
            own = next((one for one in loaded if isinstance(one, Denoiser)), None)  # of students of one's own network
            loaded.append(load_student(model, teacher=own, **how) if is_student(model) else load_teacher(model, **how))
    teachers = [model for model in loaded if isinstance(model, Denoiser)]
    if not teachers:
        raise UserError("a comparison needs a teacher, whose solvers are the students' control; name it first")
    made = teachers[0].image_shape
    if len(made) != 3 or made[0] not in (1, 3):
        raise UserError(
            f"{teachers[0].name!r} makes no pictures but {shape_text(made)}; a comparison shows images of 1 or 3 channels"
        )
    for model in loaded:
        other = model.denoiser if isinstance(model, Student) else model
        if other.shape != teachers[0].shape:
            raise UserError(
                f"{other.name!r} makes images of {shape_text(other.shape)}, {teachers[0].name!r} of {shape_text(teachers[0].shape)}; "
                "compare models of one shape, since all get the same noise"
            )
    return loaded


def ways_of(
    loaded: Sequence[Denoiser | Student],
    teachers: Sequence[Denoiser],
    solvers: Sequence[str],
    grids: Sequence[str],
    calls: Sequence[int],
    processes: Processes,
) -> list[Way]:
    """Each row once, under a name of its own."""
    ways = []
    for teacher, name in zip(teachers, unique([teacher.name for teacher in teachers]), strict=True):
        own = [*teacher_ways(teacher, solvers, grids, calls, processes), best_way(teacher)]
        ways += [replace(way, name=name) for way in own] if len(teachers) > 1 else own
    students = [model for model in loaded if isinstance(model, Student)]
    for student, name in zip(students, unique([student.name for student in students]), strict=True):
        ways += [replace(student_way(student.at(calls)), name=name) for calls in student.counts]
    return ways


def unique(names: Sequence[str]) -> list[str]:
    """Equal names are numbered."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]


def tell_lonely(ways: Sequence[Way], teachers: Sequence[Denoiser], tell: Tell) -> None:
    known = {teacher.card.get("sha256") for teacher in teachers}
    for way in ways:
        if way.kind == "student" and way.owner not in known:
            tell(f"the teacher of {way.name} is not among the models, so its distance to it is left out")
        elif way.guidance != 1:
            tell(f"{way.name} has guidance {way.guidance:g} folded in, which the solvers beside it have not")


def title(teachers: Sequence[Denoiser], loaded: Sequence[object]) -> str:
    students = len(loaded) - len(teachers)
    names = ", ".join(teacher.name for teacher in teachers)
    return names + (f" and {students} student{'s' * (students > 1)}" if students else "")


def image_facts(teacher: Denoiser) -> dict[str, int]:
    """As the report's pictures hold them."""
    channels, height, width = teacher.image_shape
    scale = min(1.0, LARGEST / max(height, width))
    return {"channels": channels, "height": max(1, round(height * scale)), "width": max(1, round(width * scale))}


class Bench:
    """Measures ways one after the other; what was measured before is read."""

    def __init__(
        self,
        judge: Judge,
        request: Request,
        teachers: Sequence[Denoiser],
        folder: Path,
        processes: Processes,
        progress: Progress,
    ) -> None:
        self.judge, self.request, self.folder, self.processes = judge, request, folder, processes
        self.progress, self.teachers, self.place = progress, teachers, [hardware(), versions()]
        self.fine: dict[tuple[int, float], Fine] = {}
        self.warm: set[int] = set()  # models by identity

    def rows(self, ways: Sequence[Way]) -> list[dict[str, Any]]:
        """As results.json holds them. What is known already is decided by the first process, whose disk it is."""
        known = self.processes.agree([self.known(way) for way in ways])
        todo = [way for way, there in zip(ways, known, strict=True) if not there]
        fine = {id(found): found for way in todo if (found := self.fine_for(way))}
        calls = self.request.count * sum(way.calls for way in todo)
        meter = Meter(self.progress, self.processes, calls + sum(one.way.calls * one.count for one in fine.values()))
        return [self.row(way, meter, known=there) for way, there in zip(ways, known, strict=True)]

    def kept(self, way: Way) -> Path:
        return self.folder / "cache" / f"{self.key(way)}.json"

    def known(self, way: Way) -> bool:
        return way.repeatable and self.kept(way).exists() and (self.folder / self.picture(way)).exists()

    def picture(self, way: Way, what: str = "") -> str:
        return f"pictures/{self.key(way)}{what}.png"

    def row(self, way: Way, meter: Meter, *, known: bool) -> dict[str, Any]:
        if known:
            measured = self.processes.agree(json.loads(self.kept(way).read_text()) if self.processes.first else {})
        else:
            measured = self.measure(way, meter)
            if self.processes.first:
                write_json(measured, self.kept(way))
        teacher = self.owner(way)
        return {
            "label": way.label,
            "series": way.series,
            "kind": way.kind,
            "model": way.model.name,
            "teacher": teacher.name if teacher else None,
            "method": way.recipe.get("method"),
            "solver": way.plan.solver,
            "grid": way.grid,
            "calls": way.calls,
            "cost": way.cost,
            **measured,
        }

    def key(self, way: Way) -> str:
        """Of all that a row holds, its latency included."""
        asked = [self.request.count, self.request.seed, self.request.shown, GROUPS, self.judge.identity]
        speed = [self.request.batch_size, self.processes.world, self.place, way.model.device.type, way.model.precision]
        fine = self.fine_for(way)
        facts = [FORMAT, way.fingerprint, asked, fine.way.fingerprint if fine else None, speed]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]

    def fine_for(self, way: Way) -> Fine | None:
        """Of the teacher itself, or of a student's teacher with the guidance that the student has folded in."""
        target = self.owner(way)
        if target is None or not self.judge.paired:
            return None
        place = (id(target), way.guidance)
        if place not in self.fine:
            found = fine_way(target.replace(guidance=way.guidance) if way.kind == "student" else target)
            self.fine[place] = Fine(found, self.request.seed, min(PAIRED, self.request.count), self.folder / "cache")
        return self.fine[place]

    def owner(self, way: Way) -> Denoiser | None:
        if way.kind != "student":
            return way.model
        return next((one for one in self.teachers if one.card.get("sha256") == way.owner), None)

    def measure(self, way: Way, meter: Meter) -> dict[str, Any]:
        if id(way.model) not in self.warm:
            warm_up(way, self.request)
            self.warm.add(id(way.model))
        gathered = gather(way, self.request, self.fine_for(way), meter, self.processes)
        if self.processes.first:
            save_sprite(gathered, self.folder / self.picture(way))
        scores = {} if gathered.broken else self.judge.scores(gathered)
        return {
            "nfe": gathered.nfe,
            "broken": gathered.broken,
            "scores": {key: asdict(score) for key, score in scores.items()},
            "seconds_per_image": gathered.seconds_per_image,
            "picture": self.picture(way),
        }

    def shows(self, chosen: Sequence[tuple[Way, dict[str, Any]]]) -> dict[str, Any]:
        """Paths between noises and states on the way, for the rows that people will look at."""
        paths, trajectories = [], []
        for way, row in chosen if self.processes.first else ():
            if not get_solver(way.plan.solver).stochastic:
                paths += [
                    {"row": row["id"], "kind": kind, **self.remembered(way, f"-{kind}", partial(self.path, kind=kind))}
                    for kind in PATHS
                ]
            if way.calls <= max(CALLS):
                trajectories.append({"row": row["id"], **self.remembered(way, "-steps", self.trajectory)})
        return {"interpolations": paths, "trajectories": trajectories}

    def remembered(self, way: Way, what: str, draw: Callable[[Way], dict[str, Any]]) -> dict[str, Any]:
        path = self.folder / "cache" / f"{self.key(way)}{what}.json"
        if way.repeatable and path.exists() and (self.folder / self.picture(way, what)).exists():
            return dict(json.loads(path.read_text()))
        write_json(found := draw(way), path)
        return found

    def path(self, way: Way, kind: Along) -> dict[str, Any]:
        """Images between the noises of the first images; the class is the first one's."""
        noises = ImageNoise(self.request.seed, range(2 * PAIRS), way.model.shape)()
        frames = between(kind, noises[:PAIRS], noises[PAIRS:], FRAMES)
        labels = chosen_labels(way.model, self.request.seed, range(PAIRS), None)
        repeated = None if labels is None else labels.repeat_interleave(FRAMES)
        parts = []
        for part in torch.arange(PAIRS * FRAMES).split(min(FRAMES, self.request.batch_size)):
            own = None if repeated is None else repeated[part]
            noise = frames.flatten(0, 1)[part]
            state = way.plan.solve(way.model, partial(Tensor.clone, noise), own)[-1]
            parts.append(way.model.images(state).float().cpu())
        images = torch.cat(parts)
        picture = self.picture(way, f"-{kind}")
        save_png(picture_grid(small(images), FRAMES, 1, 0), self.folder / picture)
        found = evenness(images.unflatten(0, (PAIRS, FRAMES)))
        return {
            "picture": picture,
            "columns": FRAMES,
            "evenness": asdict(found) if found else None,
        }

    def trajectory(self, way: Way) -> dict[str, Any]:
        """The states with a spread of about one at any level, as x / sqrt(1 + sigma^2); at inf they are unit noise."""
        count = min(FOLLOWED, self.request.count, self.request.batch_size)
        labels = chosen_labels(way.model, self.request.seed, range(count), None)
        noise = ImageNoise(self.request.seed, range(count), way.model.shape)
        states = way.plan.solve(way.model, noise, labels, trajectory=True)
        sigmas = way.plan.grid.sigmas
        seen = [
            way.model.images(state / (math.sqrt(1 + float(sigma) ** 2) if torch.isfinite(sigma) else 1)).float().cpu()
            for state, sigma in zip(states, sigmas, strict=True)
        ]
        picture = self.picture(way, "-steps")
        columns = small(torch.stack(seen, 1).flatten(0, 1))
        save_png(picture_grid(columns, len(seen), 1, 0), self.folder / picture)
        return {
            "picture": picture,
            "columns": len(seen),
            "sigmas": [float(sigma) if torch.isfinite(sigma) else None for sigma in sigmas],
        }


def write_json(value: Any, path: Path) -> None:
    """Numbers that are none (a student's recipe may hold them) become null, as JSON has no NaN."""
    text = json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None), indent=1)
    with atomic_file(path) as draft:
        draft.write_text(text + "\n")


def save_sprite(gathered: Gathered, path: Path) -> None:
    assert gathered.shown is not None
    save_png(picture_grid(small(gathered.shown), COLUMNS, 1, 0), path)


def small(images: Tensor) -> Tensor:
    """No larger than the report's pictures are."""
    images, largest = images.clamp(-1, 1), max(images.shape[-2:])
    if largest <= LARGEST:
        return images
    size = [max(1, round(side * LARGEST / largest)) for side in images.shape[-2:]]
    return interpolate(images, size=size, mode="area")


def featured(rows: Sequence[tuple[Way, dict[str, Any]]]) -> list[tuple[Way, dict[str, Any]]]:
    """Students, the teacher at its best, and the solver of that at as many calls as a student makes."""
    calls = {way.calls for way, _ in rows if way.kind == "student"} or {min(way.calls for way, _ in rows)}
    usual = next(way.grid for way, _ in rows if way.kind == "best")
    return [
        (way, row)
        for way, row in rows
        if not row["broken"]
        and (way.kind != "solver" or (way.calls in calls and way.plan.solver == BEST[0] and way.grid == usual))
    ]


def provenance(command: str | None, loaded: Sequence[Denoiser | Student], judge: Judge) -> dict[str, Any]:
    models: dict[str, Any] = {}
    for model in loaded:
        if isinstance(model, Student):
            models[model.name] = {"student": dict(model.recipe)}
        else:
            models[model.name] = {"teacher": repr(model), "sha256": model.card.get("sha256")}
    return {
        "commands": [command] if command else [],
        "versions": versions(),
        "hardware": hardware(),
        "models": models,
        "references": {name: {"images": one.count or None, **one.provenance} for name, one in judge.references.items()},
        "extractors": {name: one.about for name, one in judge.extractors.items()},
    }
