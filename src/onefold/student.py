"""Student: a network, its own grid, and where it comes from. A folder that samples, goes on and is shipped.

unet/ + scheduler/        the network in its teacher's own form
onefold.json              what the teacher's folder says of classes and hashes
student.json              method, grid, solver, analytic first step, guidance, teacher, cost, versions
calls.safetensors         where it makes several numbers of calls: what the network has of its own for each, beside the largest
README.md + samples.png   the same for people, beside the teacher's images from the same noise
lora/                     where it was trained as one: the adapter that was merged into the network, for a copy of the teacher
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from PIL.Image import Image
from torch import Tensor

from onefold.card import PICTURE, page
from onefold.clipping import Clip
from onefold.data import open_picture
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.grids import Grid
from onefold.networks.lora import FILE
from onefold.pictures import labelled_rows
from onefold.progress import Progress, Tell
from onefold.recipes import PHI
from onefold.sampling import sample
from onefold.solvers import AFS
from onefold.variants import FILE as VARIANTS
from onefold.variants import Variant, load_variants, packed, with_tensors

if TYPE_CHECKING:
    from onefold.export import Exported

RECIPE = "student.json"
VARIANTS_HASH = "further_sha256"  # of the file for further numbers of calls
FORMAT = 1
USAGE = """With onefold:
```python
import onefold

student = onefold.load_student("{folder}"{teacher})
images = student.sample({told}, seed=0)
{export}```"""

ADAPTER = f"`{FILE}` is the difference to the teacher alone, for `load_lora_weights` of diffusers"


@dataclass(frozen=True, repr=False)
class Student:
    """`denoiser` on `grid`, one Euler step a call; `recipe` says how it was made."""

    denoiser: Denoiser
    grid: Grid
    afs: AFS | None
    recipe: Mapping[str, Any]
    picture: Image | None = None  # beside its control
    adapter: Callable[[Path], object] | None = None  # writes the file of a LoRA student
    variants: Mapping[int, Variant] = field(default_factory=dict)  # by further numbers of calls

    def __repr__(self) -> str:
        return f"<student {self.name}: {' or '.join(map(str, self.counts))} calls, {self.recipe.get('method')} of {self.recipe.get('teacher', {}).get('name')}>"

    @property
    def name(self) -> str:
        return self.denoiser.name

    @property
    def calls(self) -> int:
        """Network calls an image costs, without guidance."""
        return self.grid.calls - (self.afs is not None)

    @property
    def counts(self) -> list[int]:
        """All numbers of calls that it was trained for; `calls` is the largest."""
        return sorted({self.calls, *self.variants})

    def at(self, calls: int) -> Student:
        """The student of one of its numbers of calls, an ordinary one of a network of its own."""
        if calls not in self.counts:
            known = " or ".join(map(str, self.counts))
            raise UserError(
                f"student {self.name!r} makes {known} call{'s' * (known != '1')}, not {calls}; distil another one for {calls}"
            )
        if not self.variants:
            return self
        evidence = self.recipe.get("by_calls", {}).get(str(calls), {})
        recipe = {key: value for key, value in self.recipe.items() if key != "by_calls"} | {"evidence": evidence}
        if calls == self.calls:
            return replace(self, recipe=recipe, variants={})
        chosen = self.variants[calls]
        denoiser = self.denoiser.replace(network=with_tensors(self.denoiser.module, chosen.tensors), home=None)
        return replace(self, denoiser=denoiser, grid=chosen.grid, recipe=recipe, picture=None, variants={})

    @property
    def imitates(self) -> bool:
        """Whether it was asked for its teacher's image from the same noise; otherwise for images like the data's."""
        return not self.recipe.get("evidence", {}).get("teacher")

    @property
    def way(self) -> dict[str, Any]:
        """How to sample it, as arguments of `onefold.sample`."""
        return {"solver": "euler", "grid": self.grid, "afs": self.afs}

    def way_with(self, eta: float) -> dict[str, Any]:
        """The same with fresh noise in each step: eta = 1 is ancestral sampling, 0 the student's own way."""
        return self.way if eta == 0 else {**self.way, "solver": "ddim", "eta": eta}

    @overload
    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        prompts: str | Path | Sequence[str] | None = None,
        guidance: float | None = None,
        calls: int | None = None,
        eta: float = 0.0,
        clip: Clip | None = None,
        noise: Tensor | None = None,
        trajectory: Literal[False] = False,
        batch_size: int = 64,
        first: int = 0,
        progress: Progress | None = None,
    ) -> Tensor: ...

    @overload
    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        prompts: str | Path | Sequence[str] | None = None,
        guidance: float | None = None,
        calls: int | None = None,
        eta: float = 0.0,
        clip: Clip | None = None,
        noise: Tensor | None = None,
        trajectory: Literal[True],
        batch_size: int = 64,
        first: int = 0,
        progress: Progress | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        prompts: str | Path | Sequence[str] | None = None,
        guidance: float | None = None,
        calls: int | None = None,
        eta: float = 0.0,
        clip: Clip | None = None,
        noise: Tensor | None = None,
        trajectory: bool = False,
        batch_size: int = 64,
        first: int = 0,
        progress: Progress | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Images as floats, the data's range being [-1, 1], N C H W; image i depends on (seed, i) only. `calls` is one
        of the student's numbers, the largest if it is not told. `eta` adds fresh noise in each step (1: ancestral); `clip`, `noise` and `trajectory` are those of
        `onefold.sample`."""
        student = self if calls is None else self.at(calls)
        how: dict[str, Any] = {
            "seed": seed,
            "labels": labels,
            "prompts": prompts,
            "guidance": guidance,
            "clip": clip,
            "noise": noise,
            "batch_size": batch_size,
            "first": first,
            "progress": progress,
            **student.way_with(eta),
        }
        drawn: Tensor | tuple[Tensor, Tensor]
        if trajectory:
            drawn = sample(student.denoiser, count, trajectory=True, **how)
        else:
            drawn = sample(student.denoiser, count, **how)
        if student.denoiser is not self.denoiser:
            self.denoiser.calls += student.denoiser.calls
        return drawn

    def with_prompts(self, source: str | Path | Sequence[str]) -> Student:
        """Told these texts, for several calls of `sample`: the encoder runs once."""
        return replace(self, denoiser=self.denoiser.with_prompts(source))

    def facts(self) -> dict[str, Any]:
        grids = {str(calls): variant.grid.to_dict() for calls, variant in self.variants.items()}
        further = {"further_grids": grids} if grids else {}
        own = {"calls": self.calls, "grid": self.grid.to_dict(), "afs": self.afs}
        return {"format": FORMAT, **self.recipe, **own, **further}

    def save(self, folder: str | Path) -> None:
        """Whole or not at all, over what was there."""
        from onefold.teachers.folders import save_like

        folder, facts, more_calls = Path(folder), self.facts(), packed(self.variants)
        facts |= {VARIANTS_HASH: hashlib.sha256(more_calls).hexdigest()} if self.variants else {}
        texts = {RECIPE: json.dumps(facts, indent=1) + "\n"}
        told = {} if self.adapter is None else {"LoRA": ADAPTER}
        texts["README.md"] = page(facts, self.name, self.usage(folder), RECIPE, told)
        picture = self.picture or labelled_rows([(f"{self.calls} calls", self.sample(10))])
        others: dict[str, Callable[[Path], object]] = {} if self.adapter is None else {FILE: self.adapter}
        if self.variants:
            others[VARIANTS] = partial(Path.write_bytes, data=more_calls)
        more = {} if self.grid.phi is None else {PHI: list(self.grid.phi)}
        save_like(self.denoiser, folder, texts, {PICTURE: picture}, others, more)

    def usage(self, folder: Path) -> str:
        from onefold.teachers.own import OwnForm

        own, texts = isinstance(self.denoiser.form, OwnForm), self.denoiser.encode_texts is not None
        calls = f", calls={self.counts[0]}" if self.variants else ""
        return USAGE.format(
            folder=folder,
            teacher=', teacher="package.module:function"' if own else "",
            told=('4, prompts=["a red boat on a lake"]' if texts else "64") + calls,
            export="" if own else 'student.export("my-student")  # a folder for plain diffusers\n',
        )

    def export(self, folder: str | Path) -> Exported:
        """A new folder that plain diffusers loads and samples, checked against this student."""
        from onefold.export import export

        return export(self, folder)


def is_student(source: str | Path) -> bool:
    from onefold.files import place_of

    path = place_of(source)
    return (path / RECIPE).is_file() or (path / "student" / RECIPE).is_file()


def load_student(
    folder: str | Path,
    *,
    teacher: Denoiser | str | None = None,
    device: str = "auto",
    precision: str = "auto",
    tell: Tell | None = None,
) -> Student:
    """A student folder, or the run folder that holds one. Where its network is your own, so is the `teacher` to be given: a
    Denoiser or `package.module:function`."""
    from onefold.files import place_of, read_json
    from onefold.teachers import load_teacher
    from onefold.teachers.own import WEIGHTS, load_own_student
    from onefold.teachers.parts import CARD

    path = place_of(folder)
    path = path / "student" if (path / "student").is_dir() else path
    if not (path / RECIPE).is_file():
        raise UserError(
            f"{folder} is no student: {RECIPE} is missing; give the run folder of `onefold distill` or its student/"
        )
    facts = read_json(path / RECIPE)
    if facts.get("format") != FORMAT or isinstance(facts["format"], bool):
        raise UserError(
            f"{path / RECIPE} has format {facts.get('format')!r}, this version reads {FORMAT}; use the version that wrote it"
        )
    from onefold.recipes import check_recipe, further_grids, must_fit_the_network

    own_facts = ("format", "calls", "grid", "afs", "further_grids", VARIANTS_HASH)
    recipe = {key: value for key, value in facts.items() if key not in own_facts}
    grid, afs = check_recipe(facts, path / RECIPE)
    further = further_grids(facts, grid.calls - (afs is not None), afs, path / RECIPE)
    how: dict[str, Any] = {"device": device, "precision": precision, "tell": tell}
    own = (path / WEIGHTS).is_file()
    denoiser = load_own_student(path, teacher, **how) if own else load_teacher(path, **how)
    card = read_json(path / CARD) if (path / CARD).is_file() else {}
    must_fit_the_network(grid, afs, denoiser, card, path / RECIPE)
    for one in further.values():  # the card names the steps of the largest number alone
        must_fit_the_network(one, afs, denoiser, {}, path / RECIPE)
    checked = facts.get(VARIANTS_HASH)
    variants = load_variants(further, denoiser.module, path / VARIANTS, checked) if further else {}
    adapter = partial(shutil.copyfile, path / FILE) if (path / FILE).is_file() else None
    return Student(denoiser, grid, afs, recipe, read_picture(path / PICTURE), adapter, variants)


def read_picture(path: Path) -> Image | None:
    """None where there is no picture, or a damaged one: a student is complete without it."""
    try:
        with open_picture(path) as image:
            return image.copy()
    except Exception:  # noqa: BLE001  (decoders raise nearly anything for a broken file)
        return None
