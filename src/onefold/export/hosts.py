"""The stock pipelines that students leave through, and how each is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onefold.student import Student
from onefold.teachers.parts import Parts


@dataclass(frozen=True)
class Host:
    """A pipeline of diffusers. `told` is its argument for classes or texts."""

    pipeline: str
    told: str | None
    call: Mapping[str, Any]  # what has to be given besides, so that one step is one network call
    takes_size: bool = True  # batch_size; others count what they are told
    scales_start: bool = True  # by the scheduler's own start; otherwise it begins at unit noise with a DDIM scheduler


@dataclass(frozen=True)
class Stock:
    """A scheduler in its host, and what makes the network hear the right times from it."""

    scheduler: Any
    host: Host
    adapt: Callable[[Any], Any]


PIXELS = Host("ConsistencyModelPipeline", "class_labels", {})
CHAIN = Host("DDIMPipeline", None, {"eta": 0.0})  # of pixels without classes, with a DDIM scheduler of just its levels
NO_GUIDANCE = {"guidance_scale": 1.0}
HOSTS = {
    host.pipeline: host
    for host in (
        Host("LDMPipeline", None, {}),
        Host("DiTPipeline", "class_labels", NO_GUIDANCE, takes_size=False, scales_start=False),
        Host("StableDiffusionPipeline", "prompt", NO_GUIDANCE, takes_size=False),
        Host("StableDiffusionXLPipeline", "prompt", NO_GUIDANCE, takes_size=False),
    )
}


def host_of(student: Student) -> Host:
    form = student.denoiser.form
    kind = form.index.get("_class_name") if isinstance(form, Parts) else None
    return HOSTS.get(str(kind), PIXELS)


def parts_of(student: Student) -> Parts:
    """Of a student with frozen parts beside its network."""
    assert isinstance(student.denoiser.form, Parts)
    return student.denoiser.form
