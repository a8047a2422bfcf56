"""The wheel as users get it: built, installed into a fresh environment, and used from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import onefold

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "onefold"


def run(*words: str | Path, folder: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel. Its dependencies are lent by the running one, so nothing is downloaded."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    site = run(folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    lent = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    Path(site, "lent.pth").write_text("\n".join(lent))
    return folder


def test_wheel_holds_the_whole_package(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"onefold/{path.relative_to(SOURCE).as_posix()}" for path in wanted} <= inside
    assert not [name for name in inside if name.startswith(("tests", "src", "."))]
    assert wheel.stat().st_size < 12_000_000


def test_installed_wheel_works_from_elsewhere(environment: Path, tmp_path: Path) -> None:
    where = run(environment / "bin" / "python", "-c", "import onefold; print(onefold.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    assert (
        run(environment / "bin" / "onefold", "--version", folder=tmp_path).strip() == f"onefold {onefold.__version__}"
    )
    cards = json.loads(run(environment / "bin" / "onefold", "teachers", "--json", folder=tmp_path))
    assert {"digits8", "fashion28"} <= set(cards)


def test_installed_wheel_samples(environment: Path, tmp_path: Path) -> None:
    words = ("sample", "digits8", "--count", "4", "--calls", "4", "--out", "four.png")
    run(environment / "bin" / "onefold", *words, folder=tmp_path)
    assert (tmp_path / "four.png").stat().st_size > 0
