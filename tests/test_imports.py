"""What is imported when: help without torch, the package without torchvision, floors that know nothing above them."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import onefold
from onefold.methods import METHODS

SOURCE = Path(onefold.__file__).parent
HEAVY = {"torch", "diffusers", "accelerate", "numpy", "matplotlib", "torchvision"}
COMMANDS = ["distill", "plan", "methods", "sample", "align", "export", "inspect", "teach", "teachers", "demo"]
FLOORS = {
    "errors",
    "files",
    "weights",
    "variants",
    "seeds",
    "process",
    "codec",
    "conditions",
    "denoiser",
    "subsequences",
    "grids",
    "kept",
    "posterior",
    "solvers",
    "targets",
    "losses",
    "adversarial",
    "imports",
}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    code = f"import sys; from onefold.cli import main; code = main({arguments!r}); print('LOADED', *sys.modules); sys.exit(code)"
    done = python(code)
    assert done.returncode == 0, done.stderr
    text, loaded = done.stdout.split("LOADED")
    assert text.strip()
    assert not HEAVY & set(loaded.split())


def test_help_is_there_at_once() -> None:
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "onefold", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 5  # with torch it is more, also where all is quick


def test_import_onefold_does_not_import_torch() -> None:
    done = python("import sys, onefold; print(*sys.modules)")
    assert not HEAVY & set(done.stdout.split()), done.stderr


def test_every_public_name_is_there() -> None:
    for name in onefold.HOME:
        assert getattr(onefold, name).__name__.rpartition(".")[2] == name
        assert name in dir(onefold)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = onefold.distil


def test_types_and_run_time_tell_the_same_names() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == onefold.HOME


BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')\n"


def test_a_broken_torchvision_stops_no_import(tmp_path: Path) -> None:
    """A torchvision made for CUDA beside a CPU torch fails on import; every module of onefold still loads."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(BROKEN)
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.28.0.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.28.0\n")
    found = {module.name for module in pkgutil.walk_packages([str(SOURCE)], "onefold.")}
    names = sorted(found - {"onefold.__main__", "onefold.export.own_pipeline"})  # the latter is a file for diffusers
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)\nprint(len({names!r}))"
    done = python(code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(names)


@pytest.mark.parametrize("floor", sorted(FLOORS))
def test_floors_import_nothing_above_them(floor: str) -> None:
    path = SOURCE / f"{floor}.py"
    if not path.exists():
        return
    for name in own_imports(path):
        assert name in FLOORS, f"{floor}.py imports onefold.{name}, which stands above it"


@pytest.mark.parametrize("path", sorted((SOURCE / "networks").glob("*.py")), ids=lambda path: path.stem)
def test_networks_know_no_method_and_no_run(path: Path) -> None:
    assert own_imports(path) <= FLOORS | {"networks", "settings"}


@pytest.mark.parametrize("path", sorted((SOURCE / "methods").glob("*.py")), ids=lambda path: path.stem)
def test_methods_know_neither_commands_nor_each_other(path: Path) -> None:
    """What several share has files of its own."""
    assert not own_imports(path) & {"cli", "distilling", "bench", "export", "demo", "teaching", "card"}
    named = {module for module, _, _ in METHODS.values()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in named | {"onefold.training.loop"}, f"{path.name} imports {node.module}"


def own_imports(path: Path) -> set[str]:
    """Modules of onefold that a file imports, by the first name below the package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("onefold.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "onefold":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onefold."):
            found.add(str(node.module).split(".")[1])
    return found


def test_diffusers_is_touched_in_few_places() -> None:
    allowed = ("teachers/", "export/", "networks/")
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).as_posix()
        text = path.read_text()
        if not place.startswith(allowed):
            assert "import diffusers" not in text, place
            assert "from diffusers" not in text, place
