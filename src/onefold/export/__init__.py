"""Export: out of the house, as a folder that plain diffusers loads and samples.

A stock pipeline where one reproduces the student, otherwise the same pipeline class as a file in the folder. What was
written is loaded again and compared with the student before anybody gets it.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold import card, seeds
from onefold.errors import UserError
from onefold.export.steps import start_scale, steps_of
from onefold.export.stock import Stock, shipped_network, stock_form, stock_network
from onefold.files import atomic_folder, sha256
from onefold.networks.unet import import_diffusers
from onefold.pictures import labelled_rows
from onefold.sampling import labels_for
from onefold.student import RECIPE, Student
from onefold.teachers.native import WEIGHTS

FACTS = "onefold.json"
CLOSE = 1e-4  # of pixels in [-1, 1]: an export gives the student's own images
CHECKED = 4  # images


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: `custom` says why the folder brings its own pipeline file; None: it is a stock pipeline."""

    folder: str
    pipeline: str
    scheduler: str | None
    custom: str | None
    largest_difference: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def export(student: Student, folder: str | Path) -> Exported:
    """A new folder: pipeline, model card, picture, and the student's recipe as onefold.json."""
    target = Path(folder).expanduser()
    if target.exists():
        raise UserError(f"{target} exists already; choose another folder for the export, or remove it")
    if not hasattr(student.denoiser.module, "save_pretrained"):
        raise UserError(f"{student.name!r} is no network of diffusers, so it cannot be saved as one")
    form = stock_form(student)
    with atomic_folder(target) as draft:
        save_pipeline(student, form, draft)
        difference = check(student, draft, custom=isinstance(form, str))
        exported = Exported(
            folder=str(target),
            pipeline="StudentPipeline" if isinstance(form, str) else "ConsistencyModelPipeline",
            scheduler=None if isinstance(form, str) else type(form.scheduler).__name__,
            custom=form if isinstance(form, str) else None,
            largest_difference=difference,
        )
        describe(student, exported, target.name, draft)
    return exported


def save_pipeline(student: Student, form: Stock | str, draft: Path) -> None:
    if isinstance(form, Stock):
        pipeline = import_diffusers().ConsistencyModelPipeline(stock_network(student, form), form.scheduler)
        pipeline.save_pretrained(draft)
        return
    from onefold.export import own_pipeline

    steps = [list(step) for step in steps_of(student)]
    own_pipeline.StudentPipeline(shipped_network(student), start_scale(student), steps).save_pretrained(draft)
    (draft / "pipeline.py").write_text(inspect.getsource(own_pipeline))
    index = draft / "model_index.json"  # the pipeline's class is found in the folder's own file
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": ["pipeline", "StudentPipeline"]}))


def check(student: Student, draft: Path, *, custom: bool) -> float:
    """The largest difference between the student's images and the pipeline's, for the same noise."""
    shipped = student.denoiser.replace(network=shipped_network(student), precision="fp32")
    ours = replace(student, denoiser=shipped).sample(CHECKED)
    theirs = draw(draft, student.calls, labels_for(shipped, 0, range(CHECKED)), custom=custom)
    difference = float((ours.clamp(-1, 1) - theirs).abs().max())
    if not difference < CLOSE:
        raise UserError(
            f"the export would differ from the student by {difference:.2g} (at most {CLOSE:g} is expected), so nothing was "
            f"written; please report it with the student's {RECIPE}"
        )
    return difference


def draw(folder: Path, calls: int, labels: Tensor | None, *, custom: bool) -> Tensor:
    """The first images of seed 0 through plain diffusers, in [-1, 1]."""
    diffusers = import_diffusers()
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=custom)
    diffusers.utils.logging.enable_progress_bar()
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seeds.image_seed(0, index)) for index in range(CHECKED)]
    how = {"num_inference_steps": calls, "generator": generators, "output_type": "pt"}
    images: Tensor = pipe(CHECKED, class_labels=labels, **how).images
    return 2 * images - 1


def describe(student: Student, exported: Exported, name: str, draft: Path) -> None:
    """The recipe, the picture and the model card."""
    told = exported.as_dict() | {"folder": name}
    facts = {**student.facts(), "exported": told, "sha256": sha256(draft / WEIGHTS)}
    (draft / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    picture = student.picture or labelled_rows([(f"{student.calls} calls", student.sample(10))])
    picture.save(draft / card.PICTURE)
    checked = (
        f"images equal the student's own to {exported.largest_difference:.0e}, {CHECKED} images, float32 on the CPU"
    )
    text = card.page(facts, name, usage(student, exported, name), FACTS, {"export checked": checked})
    (draft / "README.md").write_text(text)


def usage(student: Student, exported: Exported, name: str) -> str:
    """One call that loads and samples, and what to know of it."""
    classes, steps = student.denoiser.classes, f"num_inference_steps={student.calls}"
    given = [] if classes is None else [f"class_labels=[{', '.join(str(i % classes) for i in range(8))}]"]
    given += [] if exported.custom else [steps]
    trust = ", trust_remote_code=True" if exported.custom else ""
    if exported.custom:
        know = f"The folder brings its own `pipeline.py` (that is what `trust_remote_code` is for): {exported.custom}."
    else:
        know = f"Keep `{steps}`: the network knows these noise levels only, and the pipeline does not refuse others."
    labels = (
        "" if classes is None else f" Classes are 0 to {classes - 1}; without `class_labels` they are drawn at random."
    )
    return f"""```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}"{trust})
images = pipe({", ".join(["batch_size=8", *given])}).images
```
{know}{labels} No guidance: each step is one network call."""
