"""onefold: diffusion models in 1 to 8 network calls.

Names are imported when they are first used, so that `import onefold` and `onefold --help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onefold.bench.advise import advise as advise
    from onefold.bench.alignment import align as align
    from onefold.bench.compare import compare as compare
    from onefold.bench.evaluate import evaluate as evaluate
    from onefold.bench.inspection import inspect as inspect
    from onefold.data import load_data as load_data
    from onefold.denoiser import Denoiser as Denoiser
    from onefold.distilling import distill as distill
    from onefold.distilling import plan as plan
    from onefold.errors import UserError as UserError
    from onefold.grids import Grid as Grid
    from onefold.methods import methods as methods
    from onefold.sampling import sample as sample
    from onefold.student import Student as Student
    from onefold.student import load_student as load_student
    from onefold.teachers import load_teacher as load_teacher
    from onefold.teaching import teach as teach

__version__ = "0.1.0"

HOME = {
    "Denoiser": "onefold.denoiser",
    "Grid": "onefold.grids",
    "Student": "onefold.student",
    "UserError": "onefold.errors",
    "advise": "onefold.bench.advise",
    "align": "onefold.bench.alignment",
    "compare": "onefold.bench.compare",
    "distill": "onefold.distilling",
    "evaluate": "onefold.bench.evaluate",
    "inspect": "onefold.bench.inspection",
    "load_data": "onefold.data",
    "load_student": "onefold.student",
    "load_teacher": "onefold.teachers",
    "methods": "onefold.methods",
    "plan": "onefold.distilling",
    "sample": "onefold.sampling",
    "teach": "onefold.teaching",
}


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'onefold' has no attribute {name!r}; public are: {', '.join(sorted(HOME))}")
    value = getattr(import_module(HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOME})
