"""Which stock scheduler reproduces a student, with its levels in the config, and the network's time folded to match.

Stock schedulers tell a network whole time steps of a table. The table here has the student's levels at every `stride`-th
entry, and the first layer of the time embedding is solved again so that the sinusoid of such an entry gives what the
sinusoid of the student's real time gave. Nothing else about the network changes.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import nn

from onefold.export.chain import can_learn_indices, chain_form, knows_indices
from onefold.export.hosts import PIXELS, Stock, host_of
from onefold.export.steps import evaluated, start_scale, steps_of
from onefold.networks.edm import EDMNetwork
from onefold.networks.folding import WORST, condition, fold_time
from onefold.networks.unet import import_diffusers
from onefold.process import EDM, ContinuousVP, DiscreteVP
from onefold.student import Student
from onefold.teachers.schedulers import DIFFUSERS_NAMES

TOLD_OF_GUIDANCE = 4  # numbers, the fewest that the pipelines can make
TABLE = 1000  # entries at most, as in the field's own schedulers


def stock_form(student: Student) -> Stock | str:
    """The stock form, or why there is none."""
    why, process = obstacle(student), student.denoiser.process
    if why is not None:
        return why
    if isinstance(process, (DiscreteVP, ContinuousVP)):
        return vp_form(student)
    if isinstance(process, EDM):
        return edm_form(student)
    return f"no stock pipeline for pixels samples {type(process).__name__} models"


def obstacle(student: Student) -> str | None:
    """What no scheduler can help with."""
    network: Any = student.denoiser.module
    if isinstance(network, EDMNetwork):
        return "diffusers has no such network, so the folder brings it"
    config, host = network.config, host_of(student)
    if host.told is None and student.denoiser.classes is not None:
        return f"its stock pipeline, {host.pipeline}, takes no classes"
    if not isinstance(config.sample_size, int):
        return "its images are not square"
    return None


def embedding_of(network: Any) -> str:
    kind: str = network.config.get("time_embedding_type", "positional")
    return kind


def vp_form(student: Student) -> Stock | str:
    levels, start, host = evaluated(student), start_scale(student), host_of(student)
    stride = None if knows_indices(student) else best_stride(student.denoiser.module, len(levels) - 1)
    if stride is None:
        return form_of_indices(student)
    diffusers, end = import_diffusers(), student.grid.end
    common = {
        "num_train_timesteps": stride * (len(levels) - 1),
        "trained_betas": table_of_betas(levels, stride),
        "prediction_type": DIFFUSERS_NAMES[student.denoiser.prediction],
    }
    entries = [float(entry) for entry in entries_of(len(levels) - 1, stride)]
    adapt = partial(folded, real=[step.time for step in steps_of(student)], told=entries)
    trailing: dict[str, Any] = {"timestep_spacing": "trailing", "steps_offset": 1}
    # both spacings come to the same entries; "trailing" starts at sigma z, "leading" at sqrt(1 + sigma^2) z
    at_sigma = math.isclose(start, levels[0], rel_tol=1e-9)
    at_prior = math.isinf(levels[0]) or math.isclose(start, math.hypot(1, levels[0]), rel_tol=1e-9)
    if at_sigma and host.scales_start and not math.isinf(levels[0]):
        return Stock(diffusers.EulerDiscreteScheduler(**common, **trailing, final_sigmas_type=end), host, adapt)
    if not at_prior:
        return no_such_start(student)
    if host is PIXELS and not math.isinf(levels[0]):
        how = {"timestep_spacing": "leading", "steps_offset": stride - 1}
        return Stock(diffusers.EulerDiscreteScheduler(**common, **how, final_sigmas_type=end), host, adapt)
    if end != "zero":  # DDIM would end in its own coordinates, a x
        return "no stock scheduler goes from unit noise to sigma_min"
    return Stock(diffusers.DDIMScheduler(**common, **trailing, clip_sample=False), host, adapt)


def form_of_indices(student: Student) -> Stock | str:
    if knows_indices(student) or can_learn_indices(student):
        return chain_form(student)
    if embedding_of(student.denoiser.module) != "positional":
        return f"its network has a {embedding_of(student.denoiser.module)} time embedding"
    return f"its time embedding is too small to tell {student.calls} steps apart"


def no_such_start(student: Student) -> str:
    if student.afs == "vp":
        return "no stock scheduler starts with the published analytic first step (afs=vp)"
    return f"its stock pipeline, {host_of(student).pipeline}, starts at unit noise (as with afs=null)"


def edm_form(student: Student) -> Stock | str:
    levels, process = evaluated(student), student.denoiser.process
    if embedding_of(student.denoiser.module) != "positional":
        return f"its network has a {embedding_of(student.denoiser.module)} time embedding"
    if student.denoiser.prediction != "edm":
        return "stock schedulers for EDM networks know EDM's own prediction only"
    if len(levels) > 2 or student.grid.end != "zero" or not math.isclose(start_scale(student), levels[0], rel_tol=1e-9):
        return "stock schedulers for EDM networks have no such grid and start, except for one call"
    # c_skip and c_out of this scheduler are EDM's own when its sigma_min is 0
    scheduler = import_diffusers().CMStochasticIterativeScheduler(
        sigma_min=0.0, sigma_max=levels[0], sigma_data=process.sigma_data, clip_denoised=False
    )
    return Stock(scheduler, host_of(student), partial(folded, real=[steps_of(student)[0].time], told=None))


def entries_of(calls: int, stride: int) -> tuple[int, ...]:
    """Where the scheduler looks, from the highest level to the lowest."""
    return tuple(stride * (calls - n) - 1 for n in range(calls))


def table_of_betas(levels: list[float], stride: int) -> list[float]:
    """Zero between the levels, so that the float32 product in the scheduler rounds once a level only. The first entry is
    where sampling ends; at an end of 0 it is the lowest level, and not used."""
    alphas = [0.0 if math.isinf(level) else 1 / (1 + level**2) for level in reversed(levels)]
    if levels[-1] == 0:
        alphas[0] = alphas[1]
    betas = [0.0] * (stride * (len(levels) - 1))
    betas[0] = 1 - alphas[0]
    for n in range(1, len(alphas)):
        betas[stride * n - 1] = 1 - alphas[n] / alphas[n - 1] if alphas[n - 1] else 0.0
    return betas


def best_stride(unet: Any, calls: int) -> int | None:
    """The stride whose sinusoids are told apart best; None when none are."""

    def hardness(stride: int) -> float:
        return condition(unet, [float(entry) for entry in entries_of(calls, stride)])

    if embedding_of(unet) != "positional":
        return None
    stride = min(range(2, TABLE // calls + 1), key=hardness, default=None)
    return stride if stride is not None and hardness(stride) < WORST else None


@torch.no_grad()
def shipped_network(student: Student) -> Any:
    """A copy in float32 on the CPU, without the class that stands for no class: a pipeline would draw it at random."""
    network: Any = copy.deepcopy(student.denoiser.module)
    network = network.cpu().float().eval().requires_grad_(False)
    classes, layer = student.denoiser.classes, getattr(network, "class_embedding", None)
    if classes is not None and isinstance(layer, nn.Embedding) and layer.num_embeddings > classes:
        network.class_embedding = nn.Embedding.from_pretrained(layer.weight[:classes].clone())
        network.register_to_config(num_class_embeds=classes)
    return network


def folded(network: Any, real: list[float], told: list[float] | None) -> Any:
    fold_time(network, real, told)
    return network


def stock_network(student: Student, form: Stock) -> Any:
    network = form.adapt(shipped_network(student))
    if host_of(student).told == "prompt" and has_guidance(student):
        switch_guidance_off(network)
    return network


def has_guidance(student: Student) -> bool:
    """Folded in by its training."""
    return float(student.recipe.get("settings", {}).get("guidance", 1.0)) != 1.0


def switch_guidance_off(unet: Any) -> None:
    """The stock pipelines of texts make one call a step, whatever guidance is asked for, where a network is told of it; what
    it is told of it is multiplied by zero here."""
    layer = nn.Linear(TOLD_OF_GUIDANCE, unet.time_embedding.linear_1.in_features, bias=False)
    unet.time_embedding.cond_proj = nn.Linear.requires_grad_(layer, False)
    nn.init.zeros_(layer.weight)
    unet.register_to_config(time_cond_proj_dim=TOLD_OF_GUIDANCE)
