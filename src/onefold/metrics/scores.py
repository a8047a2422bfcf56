"""The registry: what can be measured of a set of images, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from onefold import seeds
from onefold.errors import UserError, suggest
from onefold.metrics import fidelity
from onefold.metrics.classes import class_accuracy, class_score
from onefold.metrics.clip import clip_score
from onefold.metrics.frechet import floor, frechet_distance, jackknife
from onefold.metrics.kid import kernel_distance, kernel_spread
from onefold.metrics.neighbours import Neighbours, neighbours
from onefold.metrics.statistics import Moments, Statistics

Need = Literal["reference", "real", "logits", "labels", "texts", "fine", "gaps"]
SPLITS = 10  # of a class score
SUBSETS, SUBSET = 100, 1000  # of a kernel distance, and the images of one at most


@dataclass(frozen=True)
class Score:
    value: float
    spread: float | None = None  # standard error


@dataclass(frozen=True)
class Floor:
    """What real images would get in the place of generated ones, at the same number, or as many as there are."""

    value: float
    low: float
    high: float
    count: int
    about: str


@dataclass(frozen=True)
class Evidence:
    """What is known of a set of images through one extractor; tensors in the order of the images' numbers."""

    groups: Sequence[Moments] = ()
    vectors: Tensor | None = None
    logits: Tensor | None = None
    labels: Tensor | None = None
    reference: Statistics | None = None
    texts: Tensor | None = None  # features of the texts that the images were made from
    errors: Tensor | None = None  # mean square of each image's difference to the teacher's fine solution
    gaps: Tensor | None = None  # squared length of the difference of their features

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """Generated and real features."""
        assert self.vectors is not None
        assert self.reference is not None
        assert self.reference.features is not None
        return self.vectors, self.reference.features

    @cached_property
    def among_neighbours(self) -> dict[str, Score]:
        """Precision, recall, density and coverage at once, from as many real images as there are generated ones: the
        distances between neighbours shrink with the number."""
        made, real = self.both
        real = real[: len(made)]
        values = neighbours(made, real)
        spreads = without_each_group(lambda kept: neighbours(made[kept], real), len(made))
        return {
            name: Score(value, spread) for name, value, spread in zip(Neighbours._fields, values, spreads, strict=True)
        }

    def lacks(self, need: Need) -> bool:
        real = self.reference.features if self.reference else None
        have: dict[Need, object] = {
            "reference": self.reference,
            "real": real,
            "logits": self.logits,
            "labels": self.labels,
            "texts": self.texts,
            "fine": self.errors,
            "gaps": self.gaps,
        }
        return have[need] is None


@dataclass(frozen=True)
class Metric:
    name: str
    title: str
    about: str
    better: Literal["lower", "higher"]
    needs: tuple[Need, ...]
    score: Callable[[Evidence], Score]
    floor: Callable[[Statistics, int], Floor | None] = lambda _reference, _count: None
    vectors: bool = False  # needs every image's features, not their moments alone
    least: int = 20  # images; fewer say nothing
    least_real: int = 20  # whose features are needed one by one
    only: str = ""  # the one extractor that fits

    @property
    def extracted(self) -> bool:
        """Measured through an extractor, whose name it carries."""
        return self.needs != ("fine",)

    def key(self, extractor: str) -> str:
        return f"{self.name}[{extractor}]" if self.extracted else self.name


# --- how each is computed ---------------------------------------------------------------------------------------------


def without_each_group(compute: Callable[[Tensor], Sequence[float]], count: int, groups: int = 10) -> list[float]:
    """Standard errors by the jackknife: `compute` of the kept numbers, leaving out one group after the other."""
    numbers = torch.arange(count)
    left = torch.tensor([list(compute(numbers[numbers % groups != group])) for group in range(groups)]).double()
    errors: list[float] = ((groups - 1) / groups * (left - left.mean(0)).square().sum(0)).sqrt().tolist()
    return errors


def frechet_score(seen: Evidence) -> Score:
    assert seen.reference is not None
    whole = reduce(Moments.merge, seen.groups, Moments())
    value = frechet_distance(whole.statistics(seen.reference.extractor), seen.reference)
    return Score(value, jackknife(seen.groups, seen.reference))


def frechet_floor(reference: Statistics, count: int) -> Floor:
    return Floor(*floor(reference, count))


def kernel_score(seen: Evidence) -> Score:
    """The value is the mean of random subsets, so its variance is that of all images' distance and that of the lot."""
    made, real = seen.both
    found = kernel_distance(made, real, subsets=SUBSETS, subset_size=min(SUBSET, len(real), len(made)))
    return Score(found.mean, math.hypot(kernel_spread(made, real), found.std / math.sqrt(SUBSETS)))


def kernel_floor(reference: Statistics, count: int) -> Floor | None:
    return real_against_real(
        lambda made, real: kernel_distance(made, real, subset_size=min(SUBSET, len(made), len(real)), subsets=20).mean,
        reference,
        count,
    )


def neighbour_score(name: str) -> Callable[[Evidence], Score]:
    return lambda seen: seen.among_neighbours[name]


def neighbour_floor(name: str) -> Callable[[Statistics, int], Floor | None]:
    def compute(made: Tensor, real: Tensor) -> float:
        return float(getattr(neighbours(made, real[: len(made)]), name))

    return lambda reference, count: real_against_real(compute, reference, count)


def real_against_real(
    compute: Callable[[Tensor, Tensor], float], reference: Statistics, count: int, draws: int = 5
) -> Floor | None:
    """The floor of a metric that looks at features: some real images in the place of the generated, others as real."""
    features = reference.features
    if features is None or len(features) < 40:
        return None
    taken = min(count, len(features) // 2)
    values = []
    for draw in range(draws):
        order = torch.randperm(len(features), generator=seeds.generator(draw))
        values.append(compute(features[order[:taken]], features[order[taken:]]))
    about = f"{draws} draws of {taken:,} real images against others" + (
        ", as there are no more" if taken < count else ""
    )
    return Floor(fmean(values), min(values), max(values), taken, about)


def accuracy_score(seen: Evidence) -> Score:
    assert seen.logits is not None
    assert seen.labels is not None
    share = class_accuracy(seen.logits, seen.labels)
    return Score(share, math.sqrt(share * (1 - share) / len(seen.labels)))


def inception_style_score(seen: Evidence) -> Score:
    assert seen.logits is not None
    mean, deviation = class_score(seen.logits, splits=SPLITS)
    return Score(mean, deviation / math.sqrt(SPLITS - 1))  # of the splits' mean


def text_score(seen: Evidence) -> Score:
    assert seen.vectors is not None
    assert seen.texts is not None
    mean, error = clip_score(seen.vectors, seen.texts)
    return Score(mean, None if math.isnan(error) else error)


def errors_score(measure: Callable[[Tensor], tuple[float, float | None]]) -> Callable[[Evidence], Score]:
    def score(seen: Evidence) -> Score:
        assert seen.errors is not None
        return Score(*measure(seen.errors))

    return score


def gap_score(seen: Evidence) -> Score:
    assert seen.gaps is not None
    return Score(*fidelity.rmse(seen.gaps))


def metric(name: str, title: str, about: str, *, better: Literal["lower", "higher"], **how: object) -> None:
    METRICS[name] = Metric(name, title, about, better, **how)  # type: ignore[arg-type]


METRICS: dict[str, Metric] = {}
metric(
    "fd",
    "Fréchet distance",
    "between Gaussians fitted to the features of generated and of real images; falls with the number of images",
    better="lower",
    needs=("reference",),
    score=frechet_score,
    floor=frechet_floor,
)
metric(
    "kid",
    "kernel distance",
    "unbiased squared kernel distance of features; needs fewer images than the Fréchet distance, and may be below 0",
    better="lower",
    needs=("real",),
    vectors=True,
    score=kernel_score,
    floor=kernel_floor,
)
for name, about in {
    "precision": "share of generated images that lie among the real ones",
    "recall": "share of real images that lie among the generated ones",
    "density": "how densely real images surround the generated ones; 1 is as densely as they surround each other",
    "coverage": "share of real images that have a generated one near them",
}.items():
    metric(
        name,
        name,
        about,
        better="higher",
        needs=("real",),
        vectors=True,
        score=neighbour_score(name),
        floor=neighbour_floor(name),
    )
metric(
    "accuracy",
    "class accuracy",
    "share of images that the extractor takes for the class they were asked to be",
    better="higher",
    needs=("logits", "labels"),
    score=accuracy_score,
)
metric(
    "class-score",
    "class score",
    "inception-style score with this extractor: sure of each image's class, and many classes",
    better="higher",
    needs=("logits",),
    score=inception_style_score,
)
metric(
    "clip",
    "CLIP score",
    "how well images fit the texts they were made from: 100 times the cosine of their CLIP features",
    better="higher",
    needs=("texts",),
    vectors=True,
    only="clip",
    least=1,
    score=text_score,
)
metric(
    "rmse",
    "RMSE to the teacher",
    "to the teacher's fine solution from the same noise, in pixels from -1 to 1",
    better="lower",
    needs=("fine",),
    least=1,
    score=errors_score(fidelity.rmse),
)
metric(
    "median",
    "median RMSE to the teacher",
    "the median image's; a few images that go another way weigh most in the RMSE of all, not here",
    better="lower",
    needs=("fine",),
    least=1,
    score=errors_score(fidelity.typical),
)
metric(
    "psnr",
    "PSNR to the teacher",
    "the same in dB, the peak being 2",
    better="higher",
    needs=("fine",),
    least=1,
    score=errors_score(fidelity.psnr),
)


metric(
    "feature-distance",
    "feature distance to the teacher",
    "to the features of the teacher's fine solution from the same noise: root mean square of the differences' lengths",
    better="lower",
    needs=("fine", "gaps"),
    least=1,
    score=gap_score,
)


# --- which are asked for ----------------------------------------------------------------------------------------------

USUAL = ("fd", "precision", "recall", "accuracy", "rmse", "median")


def asked_metrics(names: Sequence[str]) -> list[tuple[Metric, str | None]]:
    """Metrics with the extractor in their name, if any: `fd`, `fd[inception]`."""
    return [one_metric(name.strip()) for name in names]


def one_metric(text: str) -> tuple[Metric, str | None]:
    name, bracket, extractor = text.partition("[")
    if name.lower() in ("fid", "is"):
        plain = {"fid": "fd", "is": "class-score"}[name.lower()]
        raise UserError(f"metric {text!r} is written {plain}[inception] here, as metrics carry their extractor's name")
    if name not in METRICS or (bracket and not extractor.endswith("]")):
        raise UserError(f"unknown metric {text!r}{suggest(name, METRICS)}")
    found = METRICS[name]
    if bracket and not found.extracted:
        raise UserError(f"metric {name!r} uses no extractor; write it without [{extractor}")
    return found, extractor[:-1] if bracket else None


def title_of(found: Metric, extractor: str) -> str:
    """Only with the Inception network may a Fréchet distance be called FID, and a class score IS."""
    known: Mapping[str, str] = {"fd": "FID", "kid": "KID", "class-score": "IS"}
    if extractor == "inception" and found.name in known:
        return known[found.name]
    return f"{found.title}, {extractor} features" if found.extracted else found.title
