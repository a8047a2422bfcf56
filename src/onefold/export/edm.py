"""EDM networks leave with their own code, since diffusers has none of them: one file that needs torch and diffusers only."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from onefold.networks import edm, edm_layers
from onefold.networks.edm import EDMNetwork
from onefold.student import Student
from onefold.teachers.edm import call_negated

FILE = "edm_model"
NOT_NEEDED = {"FAMILIES", "build_edm"}  # they check what a user wrote


def edm_model(student: Student, network: EDMNetwork) -> nn.Module:
    """The network in the form in which diffusers saves and loads it."""
    from onefold.export.edm_model import EDMModel

    plan = network.architecture
    with torch.device("meta"):
        made: Any = EDMModel(
            family=type(network).__name__,
            sample_size=plan.img_resolution,
            in_channels=plan.in_channels,
            sign=-1 if student.denoiser.call is call_negated else 1,
            plan=plan.model_dump(mode="json"),
        )
    made.network = network
    model: nn.Module = made.eval()
    return model


def bring_code(draft: Path, index: Path) -> None:
    """Beside the weights, and named in the index as diffusers wants it."""
    (draft / "network" / f"{FILE}.py").write_text(source())
    facts = json.loads(index.read_text())
    index.write_text(json.dumps({**facts, "network": [FILE, "EDMModel"]}))


def source() -> str:
    """The layers, the networks and the model as one file."""
    from onefold.export import edm_model as model

    parts = [part for module in (edm_layers, edm, model) for part in statements(module)]
    imports = sorted({part for part in parts if part.startswith(("import ", "from "))})
    rest = [part for part in parts if part not in imports]
    head = '"""The network of this folder, for `trust_remote_code=True`. Made with onefold (Apache-2.0)."""'
    return "\n".join(
        [head, "", "from __future__ import annotations", "", *imports, "", *("\n" + part + "\n" for part in rest)]
    )


def statements(module: ModuleType) -> list[str]:
    """A module's own, without its docstring and what it takes from this package."""
    text = inspect.getsource(module)
    found = []
    for node in ast.parse(text).body[1:]:
        ours = isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("onefold", "__future__")
        names = {getattr(node, "name", None), getattr(getattr(node, "target", None), "id", None)}
        if not ours and not names & NOT_NEEDED:
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
            found.append("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
    return found
