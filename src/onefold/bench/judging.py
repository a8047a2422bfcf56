"""What is measured, with which extractors and against which reference: decided once, the same for every way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.bench.gathering import Gathered
from onefold.bench.leakage import UNRELATED, warnings
from onefold.errors import UserError
from onefold.imports import find_function, is_function_name
from onefold.metrics.extractors import Extractor, find_extractor
from onefold.metrics.references import NAME, load_reference, maker_of, shape_text
from onefold.metrics.scores import METRICS, USUAL, Evidence, Metric, Need, Score, asked_metrics, title_of
from onefold.metrics.statistics import Statistics
from onefold.progress import Progress, Tell
from onefold.student import Student

TAKES_WEIGHTS = ("inception", "clip", "dinov2")
REMEDY: dict[Need, str] = {
    "reference": "give --reference with statistics (.npz) or images",
    "real": "give --reference with images, or statistics that carry features",
    "logits": "use an extractor that classifies",
    "labels": "use a model with classes, and an extractor that knows the same number of them",
    "texts": "give --prompts with one text a line for each image, and --extractor clip with --weights",
    "fine": "measure a model, or a student of the teacher that stands beside it",
    "gaps": "measure a model, with an extractor",
}


@dataclass(frozen=True)
class Judge:
    asked: Sequence[tuple[Metric, str]]  # with the extractor's name, "" for metrics that need none
    extractors: Mapping[str, Extractor]
    references: Mapping[str, Statistics]
    texts: Tensor | None = None  # features of the prompts

    @property
    def keep_vectors(self) -> bool:
        return any(metric.vectors for metric, _ in self.asked)

    @property
    def paired(self) -> bool:
        return any("fine" in metric.needs for metric, _ in self.asked)

    @property
    def gaps(self) -> bool:
        return any("gaps" in metric.needs for metric, _ in self.asked)

    def scores(self, gathered: Gathered) -> dict[str, Score]:
        """Of a way; what it cannot be measured by (a student of another teacher by the distance to this one) is left out."""
        found, evidence = {}, {name: self.evidence(gathered, name) for _, name in self.asked}
        for metric, name in self.asked:
            seen = evidence[name]
            if not any(seen.lacks(need) for need in metric.needs):
                found[metric.key(name)] = metric.score(seen)
        return found

    def evidence(self, gathered: Gathered, name: str) -> Evidence:
        return Evidence(
            groups=gathered.groups.get(name, ()),
            vectors=gathered.vectors.get(name),
            logits=gathered.logits.get(name),
            labels=gathered.labels,
            texts=self.texts,
            reference=self.references.get(name),
            errors=gathered.errors,
            gaps=gathered.gaps.get(name),
        )

    def about(self, count: int) -> list[dict[str, Any]]:
        """Each metric for a reader, with what real images would get."""
        return [
            {
                "key": metric.key(name),
                "name": title_of(metric, name),
                "about": metric.about,
                "better": metric.better,
                "floor": self.floor(metric, name, count),
            }
            for metric, name in self.asked
        ]

    def floor(self, metric: Metric, name: str, count: int) -> dict[str, Any] | None:
        reference = self.references.get(name)
        found = metric.floor(reference, count) if reference and metric.extracted else None
        return asdict(found) if found else None

    @cached_property
    def identity(self) -> list[Any]:
        """What decides a score beside the images."""
        return [
            sorted(metric.key(name) for metric, name in self.asked),
            {name: extractor.identity for name, extractor in self.extractors.items()},
            {name: digest(statistics) for name, statistics in self.references.items()},
        ]


def make_judge(
    metrics: Sequence[str] | None,
    references: Sequence[str | Path],
    *,
    home: Path | None,
    shape: Sequence[int],
    classes: int | None,
    paired: bool,
    count: int,
    extractor: str | None = None,
    weights: Path | None = None,
    prompts: Path | None = None,
    device: str = "cpu",
    batch_size: int = 64,
    progress: Progress | None = None,
    students: Sequence[Student] = (),
    tell: Tell | None = None,
) -> Judge:
    """`home` is the model's folder, which may hold a reference of its own; without `metrics` all usual ones that can be
    measured with what there is. Where a discriminator of the `students` knows an extractor, an unrelated distance is added."""
    sources = list(references) or ([home / NAME] if home and (home / NAME).is_file() else [])
    asked = with_extractors(metrics, extractor or next(filter(None, map(maker_of, sources)), None))
    extractors = find_extractors([name for _, name in asked if name], weights, shape, device)
    asked = [(metric, extractors[name].name if name else "") for metric, name in asked]
    if told := warnings(students, [name for _, name in asked]):
        asked, added = beside(asked, sources, shape)
        extractors |= added
        remedy = "" if UNRELATED in keys(asked) else "; give --reference with images to see it"
        for line in told:
            (tell or ignored)(line + remedy)
    chosen = {name: source for name in extractors if (source := source_for(name, sources))}
    refuse_unused([source for source in references if source not in chosen.values()], extractors)
    how: dict[str, Any] = {"shape": shape, "batch_size": batch_size, "progress": progress}
    found = {name: load_reference(source, extractors[name], **how) for name, source in chosen.items()}
    texts = read_texts(prompts, count, weights, device) if prompts else None
    kept = []
    for metric, name in asked:
        reference, one = found.get(name), extractors.get(name)
        have: dict[Need, object] = {
            "reference": reference,
            "real": reference.features if reference else None,
            # a user's function may classify without saying so, and is believed where it is asked for
            "logits": (one and (one.classes or (":" in one.name and metrics is not None))) or None,
            "labels": (one and classes and (one.classes is None or one.classes == classes)) or None,
            "texts": texts,
            "fine": paired or None,
            "gaps": (paired and one) or None,
        }
        trouble = obstacle(metric, name, have, count)
        if trouble is None:
            kept.append((metric, name))
        elif metrics is not None:
            raise UserError(trouble)
    if not kept:
        raise UserError(f"nothing can be measured here; {REMEDY['reference']} (metrics: {', '.join(METRICS)})")
    used = {name for _, name in kept}
    return Judge(
        kept,
        {name: one for name, one in extractors.items() if name in used},
        {name: one for name, one in found.items() if name in used},
        texts,
    )


def find_extractors(
    names: Sequence[str], weights: Path | None, shape: Sequence[int], device: str
) -> dict[str, Extractor]:
    """By the names they were asked by; other weights than Inception's own give another name."""
    wanted = list(dict.fromkeys(names))
    found = {}
    for name in wanted:
        # those that bring their own leave the weights to another of them
        given = weights if len(wanted) == 1 or takes_weights(name) else None
        one = find_extractor(name, weights=given, device=device)
        if one.shape is not None and tuple(one.shape) != tuple(shape):
            raise UserError(
                f"extractor {name!r} takes images of {shape_text(one.shape)}, these are of {shape_text(shape)}; choose another"
            )
        found[name] = one
    return found


def takes_weights(name: str) -> bool:
    from onefold.metrics.extractors.user import wants_weights

    return name in TAKES_WEIGHTS or (is_function_name(name) and wants_weights(find_function(name, "extractor")))


def beside(
    asked: Sequence[tuple[Metric, str]], sources: Sequence[str | Path], shape: Sequence[int]
) -> tuple[list[tuple[Metric, str]], dict[str, Extractor]]:
    """What is asked, and the unrelated distance, if images are there to measure it with."""
    ((metric, name),) = with_extractors([UNRELATED], None)
    if UNRELATED in keys(asked) or source_for(str(name), sources) is None:
        return list(asked), {}
    return [*asked, (metric, name)], find_extractors([name], None, shape, "cpu")


def ignored(_line: str) -> None:
    pass


def keys(asked: Sequence[tuple[Metric, str]]) -> list[str]:
    return [metric.key(name) for metric, name in asked]


def refuse_unused(unused: Sequence[str | Path], extractors: Mapping[str, Extractor]) -> None:
    """A reference that is given counts, or is refused."""
    for source in unused:
        maker = maker_of(source)
        if not extractors:
            raise UserError(f"nothing says through which network to look at {source}; name an --extractor")
        raise UserError(
            f"--reference {source} {f'holds statistics of {maker!r}' if maker else 'comes'} beside others, and nothing is measured "
            f"against it with {', '.join(extractors)}; leave it out, or name its metrics, such as fd[{maker or 'extractor'}]"
        )


def read_texts(prompts: Path, count: int, weights: Path | None, device: str) -> Tensor:
    """CLIP's features of the first lines of a file, one for each image."""
    from onefold.conditions import read_texts as read_lines
    from onefold.metrics.extractors.clip import text_features

    if weights is None:
        raise UserError(f"--prompts {prompts} are read by CLIP; give its folder with --weights")
    lines = list(read_lines(prompts))
    if len(lines) < count:
        raise UserError(f"{prompts} has {len(lines)} texts for {count} images; give one a line for each image")
    return text_features(weights, torch.device(device))(lines[:count])


def with_extractors(metrics: Sequence[str] | None, usual: str | None) -> list[tuple[Metric, str]]:
    """Each metric with its extractor's name, "" where it needs none; without a usual one what needs it is left out, but
    not where it was asked for."""
    asked = [(metric, own or metric.only or usual) for metric, own in asked_metrics(metrics or USUAL)]
    for metric, name in asked:
        if metrics is not None and metric.extracted and not name:
            raise UserError(f"metric {metric.name!r} needs an extractor; {REMEDY['reference']}, or name an --extractor")
    named = [(metric, (name or "") if metric.extracted else "") for metric, name in asked]
    return list(dict.fromkeys((metric, name) for metric, name in named if name or not metric.extracted))


def obstacle(metric: Metric, name: str, have: Mapping[Need, object], count: int) -> str | None:
    """Why it cannot be measured, and what would help."""
    missing = next((need for need in metric.needs if have[need] is None), None)
    if missing:
        return f"metric {metric.key(name)} cannot be measured here; {REMEDY[missing]}"
    if count < metric.least:
        return f"metric {metric.key(name)} needs {metric.least} images or more, not {count}; give a larger --count"
    real = have["real"]
    if "real" in metric.needs and isinstance(real, Tensor) and len(real) < metric.least_real:
        return (
            f"metric {metric.key(name)} needs {metric.least_real} held-out real images or more, the reference has {len(real)}; "
            f"give one of {5 * metric.least_real} images, of which a fifth is held out"
        )
    return None


def digest(reference: Statistics) -> str:
    parts = [reference.mean, reference.covariance, *([] if reference.features is None else [reference.features])]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def source_for(name: str, sources: Sequence[str | Path]) -> str | Path | None:
    """Statistics of just this extractor first, then what fits any: images, and files that do not say."""
    fitting = [source for source in sources if maker_of(source) in (name, "")]
    return next((source for source in fitting if maker_of(source) == name), next(iter(fitting), None))
