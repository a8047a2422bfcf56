"""What can be wrong with a teacher: one small function a check, in the order of causes.

A check finds nothing, or says in one sentence what is wrong and what to do. Where what it found makes all further images
meaningless, the checks after it are left out, so that one mistake gives one warning.

Several checks rest on one fact. D(x, sigma) = E[x0 | x] is the best denoiser there is: read in another way (another kind of
output, the time of another noise level) the same network denoises worse. The images are the user's where there are any,
otherwise the teacher's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onefold.bench.evidence import FINE, Evidence, Pictures
from onefold.losses import root_mean_square
from onefold.process import Prediction, Process

# Where a warning begins. In brackets: what both bundled teachers and the exact ones of the tests have; what broken ones have.
BETTER = 0.95  # the error read as another kind of output, over the declared one's (1.03 and more; 0.37 and less)
WELL = 0.8  # the error of a reading that is right, over the trivial one (0.2 to 0.45; 0.83)
FITS = 1.03  # the error over that with the time that fits best (1.000; 1.04 and more)
MATTERS = 1.15  # the error with the worst of the times over that with the best (1.6 and more for images; 1.10 and less)
WORSE = 1.05  # the error on data over the better of the trivial ones (0.8; 1.2)
APART = 0.05  # two fine solutions (0.002, 0.02 from sigma = inf; 0.07 and more)
OUTSIDE = 0.1  # RMS of what lies outside [-1, 1] (0.07 and less; 0.24)
CONTRAST = 1.4  # between the spread of the samples and that of the data (1.1; 2)
SHOWS = 0.5  # the image at the start over the noise there (0.11 and less; 0.86)
LABELS = 0.01  # relative change of the denoised images with the class (0.1 and more; 0)
ROUNDING = 0.03  # change of the samples in low precision (0.005; NaN)


def finite_numbers(seen: Evidence) -> str | None:
    nothing = Pictures(torch.zeros(2, *seen.teacher.shape), None if seen.turns is None else seen.turns[:2])
    for sigma in sorted({seen.process.sigma_min, *seen.levels, seen.process.sigma_top}):
        if not bool(seen.denoised(seen.teacher, nothing, sigma).isfinite().all()):
            return f"it gives NaN or infinite numbers at sigma {sigma:.3g} in fp32; take an earlier checkpoint, or check the weights"
    return None


def kind_of_output(seen: Evidence) -> str | None:
    """The declared kind must denoise best, each reading on images of its own. Another is named only if it denoises well, and
    is told the time so; a network with a wrong time may agree with itself in any reading."""
    if not seen.readings:
        return None
    errors = {kind: seen.error(seen.teacher.replace(prediction=kind), seen.clean(kind)) for kind in seen.readings}
    best, own = min(errors, key=lambda kind: errors[kind]), errors[seen.teacher.prediction]
    if not errors[best] < min(WELL, BETTER * own) or misfit(errors_told(seen, best)):
        return None
    return (
        f"its output is read as {seen.teacher.prediction!r}, but read as {best!r} it denoises {own / errors[best]:.3g} times "
        f"better; load it with prediction={best!r}{IN_CONFIG.get(best, '')}"
    )


IN_CONFIG: Mapping[Prediction, str] = {
    "eps": ' ("prediction_type": "epsilon" in scheduler_config.json)',
    "x0": ' ("prediction_type": "sample" in scheduler_config.json)',
    "v": ' ("prediction_type": "v_prediction" in scheduler_config.json)',
}

FACTORS = (0.25, 0.5, 2**-0.5, 1.0, 2**0.5, 2.0, 4.0)


class Told(Process):
    """A process whose network is told the time of another noise level."""

    def __init__(self, process: Process, factor: float, *, whole: bool) -> None:
        self.process, self.factor, self.whole = process, factor, whole
        self.sigma_min, self.sigma_max, self.sigma_data = process.sigma_min, process.sigma_max, process.sigma_data
        self.predictions = process.predictions

    def alpha(self, sigma: Tensor) -> Tensor:
        return self.process.alpha(sigma)

    def time(self, sigma: Tensor) -> Tensor:
        time = self.process.time(self.factor * sigma)
        return time.round() if self.whole else time

    def sigma(self, time: Tensor) -> Tensor:
        return self.process.sigma(time)

    def scales(self, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        return self.process.scales(sigma)


def errors_told(seen: Evidence, kind: Prediction) -> dict[float, float]:
    """The error of denoising when the network is told the time of so many times the noise that is there."""
    whole, clean = not seen.teacher.continuous_time, seen.clean(kind)
    told = {factor: Told(seen.process, factor, whole=whole) for factor in FACTORS}
    return {
        factor: seen.error(seen.teacher.replace(prediction=kind, process=process), clean)
        for factor, process in told.items()
    }


def misfit(errors: Mapping[float, float]) -> str | None:
    """A network that ignores its time denoises alike with all, and one of the others is best by chance."""
    best, worst = min(errors, key=lambda factor: errors[factor]), max(errors.values())
    if best != 1 and worst < MATTERS * errors[best]:
        return (
            "it hardly matters which time the network is told (between a quarter of the noise and four times as much its error "
            f"changes by {worst / errors[best] - 1:.1%}); check that the time reaches it, its scale (to 1 or to 999), its "
            "direction, and the scale of the network's input, and that the network is trained"
        )
    if errors[1.0] < FITS * errors[best]:
        return None
    return (
        f"told {best:.2g} times the noise that is there, it denoises {errors[1.0] / errors[best]:.3g} times better; "
        "check the beta schedule, the scale of the time and that of the network's input"
    )


def time_told(seen: Evidence) -> str | None:
    """Told the time of the noise that is there, a network must denoise better than told another."""
    return misfit(errors_told(seen, seen.teacher.prediction)) if seen.readings else None


def denoises_the_data(seen: Evidence) -> str | None:
    """A denoiser must beat both the noisy image and the data's mean, at any level."""
    bad = [row for row in seen.table if not row.network < WORSE * min(row.mean, row.noisy)]
    if not bad:
        return None
    return (
        f"at sigma {', '.join(f'{row.sigma:.2g}' for row in bad)} it denoises the data worse than the noisy image or the data's "
        "mean would; check that it was trained on such data, and that both are in [-1, 1]"
    )


def solutions_agree(seen: Evidence) -> str | None:
    comparison, *_ = seen.solved
    if comparison.accuracy < APART:
        return None
    return (
        f"two solvers of {FINE} calls end {comparison.accuracy:.3f} apart, so there is no solution to come near to; "
        "check that the network depends smoothly on its time, and that it is told fractions of it"
    )


def pixels_in_range(seen: Evidence) -> str | None:
    images = seen.whole.images(seen.samples)
    low, high = float(images.min()), float(images.max())
    outside = float((images.abs() - 1).clamp(min=0).square().mean().sqrt())
    if outside > OUTSIDE:
        return (
            f"its samples reach from {low:.2f} to {high:.2f}, {outside:.2f} (RMS) outside of [-1, 1]; check the range of the data it "
            "was trained on, the scales of the network's input and time, and that guidance is moderate"
        )
    if low > -0.1 and high > 0.5:
        return f"its samples lie between {low:.2f} and {high:.2f}, as data in [0, 1] does; here images are in [-1, 1], train it so"
    return None


def contrast_of_the_data(seen: Evidence) -> str | None:
    if seen.data is None:
        return None
    ratio = float(seen.samples.std() / seen.data.images.std())
    if 1 / CONTRAST < ratio < CONTRAST:
        return None
    return (
        f"the spread of its samples is {ratio:.2f} times the data's; check that it was trained on this data in the range [-1, 1], "
        "and the scale of its input"
    )


def start_is_noise(seen: Evidence) -> str | None:
    """What is left of an image at the highest level, along the direction in which images are strongest, over the noise.
    A shift by d standard deviations is seen in 2 Phi(d / 2) - 1 of the starts."""
    top, images = seen.process.sigma_max, seen.samples.double().flatten(1)
    if math.isinf(top):
        return None
    strongest = float(torch.linalg.svdvals(images)[0]) / math.sqrt(len(images))
    shift = strongest / top
    if shift < SHOWS:
        return None
    return (
        f"at its highest level, sigma {top:.3g}, images still show: they are {shift:.1f} standard deviations away from the noise "
        f"it is started from ({math.erf(shift / 2 / math.sqrt(2)):.0%} of the starts are wrong), so brightness and contrast drift; "
        "give it the whole schedule, train to zero terminal SNR, or start from noised images"
    )


def conditions_matter(seen: Evidence) -> str | None:
    choices, changes = seen.teacher.choices, list[float]()
    if choices is None or choices < 2:
        return None
    right = seen.samples_read_as(seen.teacher.prediction)
    wrong = replace(right, labels=None if right.labels is None else (right.labels + 1) % choices)
    for sigma in seen.levels[-2:]:
        one, other = (seen.denoised(seen.teacher, clean, sigma) for clean in (right, wrong))
        changes.append(root_mean_square(one, other) / float(one.std()))
    if max(changes) > LABELS:
        return None
    what = "class" if seen.teacher.prompts is None else "prompt"
    return (
        f"its images hardly change with the {what} ({max(changes):.1%}); check that it reaches the network, and that the network was "
        "trained with it"
    )


def low_precision(seen: Evidence) -> str | None:
    """The samples that a GPU would give by default."""
    plain = seen.samples_read_as(seen.teacher.prediction).images
    for precision in seen.low_precisions:
        off = root_mean_square(seen.samples_read_as(seen.teacher.prediction, precision).images, plain)
        if not off < ROUNDING:
            what = "gives NaN or infinite numbers" if not math.isfinite(off) else f"changes its samples by {off:.2f}"
            return f"in {precision} it {what}; use --precision fp32 with it, in training too"
    return None


@dataclass(frozen=True)
class Check:
    """`find` gives a sentence where something is wrong; a check that `stops` makes those after it meaningless then."""

    name: str
    find: Callable[[Evidence], str | None]
    stops: bool = False


CHECKS = (
    Check("finite numbers", finite_numbers, stops=True),
    Check("kind of output", kind_of_output, stops=True),
    Check("time", time_told, stops=True),
    Check("denoising of the data", denoises_the_data),
    Check("solvers agree", solutions_agree),
    Check("range of pixels", pixels_in_range),
    Check("contrast of the data", contrast_of_the_data),
    Check("start", start_is_noise),
    Check("conditions", conditions_matter),
    Check("low precision", low_precision),
)


@dataclass(frozen=True)
class Finding:
    check: str
    sentence: str


def run_checks(seen: Evidence) -> tuple[list[Finding], list[str]]:
    """What was found, and the names of the checks that were made."""
    findings, made = list[Finding](), list[str]()
    for check in CHECKS:
        sentence = check.find(seen)
        made.append(check.name)
        if sentence is not None:
            findings.append(Finding(check.name, sentence))
            if check.stops:
                break
    return findings, made
