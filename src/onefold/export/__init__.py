"""Export: out of the house, as a folder that plain diffusers loads and samples.

A stock pipeline where one reproduces the student, otherwise the same pipeline class as a file in the folder. What was
written is loaded again and compared with the student before anybody gets it.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold import card, seeds
from onefold.errors import UserError
from onefold.export.hosts import CHAIN, PIXELS, Host, Stock, host_of, parts_of
from onefold.export.steps import evaluated, start_scale, steps_of
from onefold.export.stock import has_guidance, shipped_network, stock_form, stock_network
from onefold.files import atomic_folder, read_json
from onefold.networks.edm import EDMNetwork
from onefold.networks.lora import FILE
from onefold.networks.transformers import quiet
from onefold.networks.unet import import_diffusers
from onefold.pictures import labelled_rows
from onefold.sampling import labels_for
from onefold.student import RECIPE, Student
from onefold.teachers.parts import CARD, INDEX, LEFT_OUT, fingerprint

FACTS = CARD
CLOSE = 1e-4  # of pixels in [-1, 1]: an export gives the student's own images
CHECKED = 4  # images
USAGE_OF_EACH = """One student for several numbers of calls, and a folder for each: {folders}. Each is a whole pipeline, whose page has its call:
```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}/{most}")
```"""
CHECKED_TEXTS = ("a red boat on a lake", "", "two birds", "a portrait of an old woman, oil on canvas")


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: `custom` says why the folder brings its own pipeline file; None: it is a stock pipeline."""

    folder: str
    pipeline: str
    scheduler: str | None
    custom: str | None
    largest_difference: float
    by_calls: Mapping[int, str] = field(default_factory=dict)  # of a student of several numbers: the folder of each

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def export(student: Student, folder: str | Path) -> Exported:
    """A new folder: pipeline, model card, picture, and the student's recipe as onefold.json; of a student of several numbers
    of calls one such folder for each."""
    target = Path(folder).expanduser()
    if target.exists():
        raise UserError(f"{target} exists already; choose another folder for the export, or remove it")
    return export_each(student, target) if student.variants else export_one(student, target)


def export_each(student: Student, target: Path) -> Exported:
    """A folder for each number of calls, and what holds for all of them beside."""
    folders = {calls: f"{calls}-calls" for calls in student.counts}
    with atomic_folder(target) as draft:
        parts = {calls: export_one(student.at(calls), draft / name) for calls, name in folders.items()}
        exported = replace(
            parts[student.calls],
            folder=str(target),
            largest_difference=max(part.largest_difference for part in parts.values()),
            by_calls={calls: str(target / name) for calls, name in folders.items()},
        )
        told = exported.as_dict() | {"folder": target.name, "by_calls": folders}
        facts = {**student.facts(), "exported": told}
        (draft / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        shutil.copyfile(draft / folders[student.calls] / card.PICTURE, draft / card.PICTURE)
        usage = USAGE_OF_EACH.format(name=target.name, most=folders[student.calls], folders=", ".join(folders.values()))
        (draft / "README.md").write_text(
            card.page(facts, target.name, usage, FACTS, {"export checked": checked(exported)})
        )
    return exported


def export_one(student: Student, target: Path) -> Exported:
    network = student.denoiser.module
    if not hasattr(network, "save_pretrained") and not isinstance(network, EDMNetwork):
        raise UserError(f"{student.name!r} is no network of diffusers, so it cannot be saved as one")
    form = stock_form(student)
    if isinstance(form, str) and host_of(student).told == "prompt":
        raise UserError(
            f"{student.name!r} cannot be exported: {form}; distil it with afs=ve, or with a grid that ends at zero"
        )
    with atomic_folder(target) as draft:
        save_pipeline(student, form, draft)
        difference = check(student, form, draft)
        exported = Exported(
            folder=str(target),
            pipeline="StudentPipeline" if isinstance(form, str) else form.host.pipeline,
            scheduler=None if isinstance(form, str) else type(form.scheduler).__name__,
            custom=form if isinstance(form, str) else None,
            largest_difference=difference,
        )
        describe(student, form, exported, draft)
    return exported


def save_pipeline(student: Student, form: Stock | str, draft: Path) -> None:
    if isinstance(form, str):
        save_own_pipeline(student, draft)
    elif host_of(student) is PIXELS:
        pipeline = getattr(import_diffusers(), form.host.pipeline)
        pipeline(unet=stock_network(student, form), scheduler=form.scheduler).save_pretrained(draft)
    else:
        save_in_host(student, form, draft)


def save_in_host(student: Student, form: Stock, draft: Path) -> None:
    """The teacher's own pipeline with the student's network and scheduler, and without what judges its images."""
    parts = parts_of(student)
    parts.link_frozen(draft)
    for config in draft.glob("*/config.json"):
        read_in_float32(config)
    stock_network(student, form).save_pretrained(draft / parts.network)
    form.scheduler.save_pretrained(draft / "scheduler")
    left_out = {name: [None, None] for name in LEFT_OUT if name in parts.index}
    told = {"requires_safety_checker": False} if "requires_safety_checker" in parts.index else {}
    scheduler = {"scheduler": ["diffusers", type(form.scheduler).__name__]}
    (draft / INDEX).write_text(json.dumps({**parts.index, **scheduler, **left_out, **told}, indent=1) + "\n")
    if student.adapter is not None:
        (draft / FILE).parent.mkdir()
        student.adapter(draft / FILE)


def read_in_float32(config: Path) -> None:
    """Text encoders load in the precision that their config names; beside a float32 network that must be the same."""
    said = read_json(config)
    named = {key: "float32" for key in ("dtype", "torch_dtype") if key in said}
    if named:
        config.unlink()  # it may be the teacher's own file
        config.write_text(json.dumps({**said, **named}, indent=1) + "\n")


def save_own_pipeline(student: Student, draft: Path) -> None:
    from onefold.export import edm, own_pipeline

    steps, codec, network = [list(step) for step in steps_of(student)], student.denoiser.codec, shipped_network(student)
    own_network = edm.edm_model(student, network) if isinstance(network, EDMNetwork) else network
    frozen = None if codec is None else codec.module
    pipeline = own_pipeline.StudentPipeline(own_network, frozen, start_scale(student), steps, student.denoiser.classes)
    pipeline.save_pretrained(draft)
    (draft / "pipeline.py").write_text(inspect.getsource(own_pipeline))
    index = draft / INDEX  # the pipeline's class is found in the folder's own file
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": ["pipeline", "StudentPipeline"]}))
    if own_network is not network:
        edm.bring_code(draft, index)


def check(student: Student, form: Stock | str, draft: Path) -> float:
    """The largest difference between the student's images and the pipeline's, for the same noise."""
    shipped = student.denoiser.replace(network=shipped_network(student), precision="fp32", guidance=1.0)
    if shipped.encode_texts is not None:
        shipped = shipped.with_prompts(CHECKED_TEXTS)
    ours = replace(student, denoiser=shipped).sample(CHECKED)
    theirs = draw(draft, student, told_to(student, form, CHECKED), custom=isinstance(form, str))
    difference = float((ours.clamp(-1, 1) - theirs).abs().max())
    if not difference < CLOSE:
        raise UserError(
            f"the export would differ from the student by {difference:.2g} (at most {CLOSE:g} is expected), so nothing was "
            f"written; please report it with the student's {RECIPE}"
        )
    return difference


def host_for(student: Student, form: Stock | str) -> Host:
    return host_of(student) if isinstance(form, str) else form.host


def told_to(student: Student, form: Stock | str, count: int) -> dict[str, Any]:
    """The pipeline's arguments for the first images of seed 0."""
    host, custom, labels = host_for(student, form), isinstance(form, str), labels_for(student.denoiser, 0, range(count))
    if host.told == "prompt":
        return {"prompt": [CHECKED_TEXTS[index % len(CHECKED_TEXTS)] for index in range(count)], **host.call}
    told: dict[str, Any] = {} if labels is None else {"class_labels": labels.tolist()}
    size = {"batch_size": count} if custom or host.takes_size else {}
    return {**size, **told, **({} if custom else host.call)}


def draw(folder: Path, student: Student, told: Mapping[str, Any], *, custom: bool) -> Tensor:
    """The first images of seed 0 through plain diffusers, in [-1, 1]."""
    diffusers = import_diffusers()
    diffusers.utils.logging.disable_progress_bar()
    with quiet() if host_of(student).told == "prompt" else nullcontext():
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=custom)
    diffusers.utils.logging.enable_progress_bar()
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seeds.image_seed(0, index)) for index in range(CHECKED)]
    images = pipe(**told, num_inference_steps=student.calls, generator=generators, output_type="np").images
    return 2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1


def describe(student: Student, form: Stock | str, exported: Exported, draft: Path) -> None:
    """The recipe, the picture and the model card."""
    name = Path(exported.folder).name
    told = exported.as_dict() | {"folder": name}
    stock = "unet" if host_of(student) is PIXELS else parts_of(student).network
    network = "network" if exported.custom else stock
    facts = {**student.facts(), "exported": told, "sha256": fingerprint(draft / network)}
    (draft / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    texts = None if student.denoiser.encode_texts is None else CHECKED_TEXTS
    picture = student.picture or labelled_rows([(f"{student.calls} calls", student.sample(CHECKED, prompts=texts))])
    picture.save(draft / card.PICTURE)
    text = card.page(facts, name, usage(student, form, name), FACTS, {"export checked": checked(exported)})
    (draft / "README.md").write_text(text)


def checked(exported: Exported) -> str:
    return f"images equal the student's own to {exported.largest_difference:.0e}, {CHECKED} images, float32 on the CPU"


def usage(student: Student, form: Stock | str, name: str) -> str:
    """One call that loads and samples, and what to know of it."""
    trust = ", trust_remote_code=True" if isinstance(form, str) else ""
    return f"""```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}"{trust})
images = pipe({", ".join(arguments(student, form))}).images
```
{" ".join(to_know(student, form))}{ancestrally(student, form)}{beside_the_base(student, form, name)}"""


def arguments(student: Student, form: Stock | str) -> list[str]:
    host, classes, steps = host_for(student, form), student.denoiser.classes, f"num_inference_steps={student.calls}"
    labels = [] if classes is None else [f"class_labels=[{', '.join(str(i % classes) for i in range(8))}]"]
    if isinstance(form, str):
        return ["batch_size=8", *labels]
    given = [f"{name}={value!r}" for name, value in host.call.items() if not has_guidance(student)]
    if host.told == "prompt":
        return ['["a red boat"] * 4', steps, *given]
    return [*(["batch_size=8"] if host.takes_size else []), *labels, steps, *given]


def to_know(student: Student, form: Stock | str) -> list[str]:
    host, classes, steps = host_for(student, form), student.denoiser.classes, f"num_inference_steps={student.calls}"
    if isinstance(form, str):
        said = [f"The folder brings its own `pipeline.py` (that is what `trust_remote_code` is for): {form}."]
    elif form.scheduler.config.num_train_timesteps == student.calls:
        said = [
            f"Keep `{steps}`: the network knows these levels only. More steps raise, fewer run and give wrong images."
        ]
    else:
        said = [f"Keep `{steps}`: the network knows these noise levels only, and the pipeline does not refuse others."]
    if classes is not None and (isinstance(form, str) or host.takes_size):
        said.append(f"Classes are 0 to {classes - 1}; without `class_labels` they are drawn at random.")
    if "guidance_scale" not in host.call or isinstance(form, str):
        return [*said, "No guidance: each step is one network call."]
    if has_guidance(student):
        folded = f"Guidance {student.recipe['settings']['guidance']:g} is folded into the network: each step is one network call"
        return [*said, f"{folded}, whatever `guidance_scale` says." if host.told == "prompt" else f"{folded}."]
    return [*said, "With `guidance_scale=1.0` each step is one network call; more guidance costs two."]


def ancestrally(student: Student, form: Stock | str) -> str:
    """The other way in which a chain is sampled."""
    if host_for(student, form) is not CHAIN:
        return ""
    return f"""

With new noise in each step (DDPM's ancestral sampling), after loading as above:
```python
from diffusers import DDPMPipeline, DDPMScheduler

scheduler = DDPMScheduler.from_config(pipe.scheduler.config, variance_type="fixed_small")
images = DDPMPipeline(pipe.unet, scheduler)(batch_size=8, num_inference_steps={student.calls}).images
```"""


def beside_the_base(student: Student, form: Stock | str, name: str) -> str:
    """How to put a LoRA on one's own copy of the teacher: there the noise levels are given with the call."""
    by_levels = not isinstance(form, str) and type(form.scheduler).__name__ == "EulerDiscreteScheduler"
    if student.adapter is None or host_of(student).told != "prompt" or not by_levels:
        return ""
    levels = ", ".join(f"{level:.8g}" for level in evaluated(student))
    return f"""

As a LoRA, on your own copy of the teacher:
```python
from diffusers import DiffusionPipeline, EulerDiscreteScheduler

pipe = DiffusionPipeline.from_pretrained("{student.recipe["settings"]["teacher"]}")
pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
pipe.load_lora_weights("{name}/{Path(FILE).parent}")
images = pipe(["a red boat"] * 4, sigmas=[{levels}], guidance_scale=1.0).images
```"""
