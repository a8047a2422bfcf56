"""Native teachers leave through stock diffusers and come back; what is not a teacher gets one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.grids import Grid, uniform
from onefold.networks.unet import build_unet
from onefold.sampling import sample
from onefold.seeds import ImageNoise
from onefold.solvers import SOLVERS
from onefold.teachers import bundled, load_teacher
from onefold.teachers.native import WEIGHTS, Noising, save_teacher
from onefold.teachers.parts import CARD


def tiny(folder: Path, noising: Noising, classes: int | None = None) -> Denoiser:
    torch.manual_seed(1)
    unet = build_unet((1, 8, 8), widths=[8, 16], layers=1, classes=classes)
    save_teacher(folder, unet, noising, {"name": "tiny", "classes": classes})
    return load_teacher(folder, device="cpu")


STOCK = """
import sys, torch, diffusers
assert "onefold" not in sys.modules
folder, noise, out, steps, labelled = sys.argv[1], torch.load(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5] == "yes"
pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
name = type(pipe).__module__ + ".randn_tensor"
module = sys.modules[type(pipe).__module__]
module.randn_tensor = lambda *a, **k: noise  # the only thing replaced: where the noise comes from
more = {"class_labels": torch.arange(len(noise)) % 10} if labelled else {}
images = pipe(batch_size=len(noise), num_inference_steps=steps, output_type="pt" if labelled else "np", **more).images
images = torch.as_tensor(images)
torch.save(images if images.shape[-1] == 8 else images.permute(0, 3, 1, 2), out)
"""


def stock_images(tmp_path: Path, folder: Path, noise: torch.Tensor, steps: int, labelled: bool) -> torch.Tensor:
    """Images of plain diffusers in a process that does not know onefold, as [0, 1]."""
    torch.save(noise, tmp_path / "noise.pt")
    arguments = [
        str(folder),
        str(tmp_path / "noise.pt"),
        str(tmp_path / "out.pt"),
        str(steps),
        "yes" if labelled else "no",
    ]
    done = subprocess.run([sys.executable, "-c", STOCK, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    images: torch.Tensor = torch.load(tmp_path / "out.pt")
    return images


@pytest.mark.parametrize("classes", [None, 10])
def test_vp_teachers_are_stock_pipelines(tmp_path: Path, classes: int | None) -> None:
    teacher = tiny(tmp_path / "t", Noising(), classes)
    noise = ImageNoise(0, range(4), teacher.shape)()
    theirs = stock_images(tmp_path, tmp_path / "t", noise, steps=5, labelled=classes is not None)
    # trailing spacing of 1000 steps in 5: indices 999, 799, ...
    times = torch.tensor([999, 799, 599, 399, 199])
    process = teacher.process
    grid = Grid(torch.cat([process.sigma(times.double()), torch.zeros(1, dtype=torch.float64)]))
    ours = sample(teacher, 4, solver="euler", grid=grid, labels=[0, 1, 2, 3] if classes else None)
    assert torch.allclose((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4)


def test_edm_teachers_are_stock_pipelines(tmp_path: Path) -> None:
    teacher = tiny(tmp_path / "t", Noising("edm", "edm"), 10)
    noise = ImageNoise(0, range(4), teacher.shape)()
    theirs = stock_images(tmp_path, tmp_path / "t", noise, steps=5, labelled=True)
    ramp = torch.linspace(0, 1, 5, dtype=torch.float64)
    sigmas = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    grid = Grid(torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)]))
    # EDMEulerScheduler starts at sqrt(80^2 + 1) z
    ours = SOLVERS["euler"](teacher, noise * (80**2 + 1) ** 0.5, grid.sigmas, cond={"labels": torch.arange(4)})
    assert torch.allclose((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4)


def test_flow_parts_are_stock(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

    teacher = tiny(tmp_path / "t", Noising("flow", "flow"))
    unet = UNet2DModel.from_pretrained(tmp_path / "t" / "unet").eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "t" / "scheduler")
    noise = ImageNoise(0, range(4), teacher.shape)()
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    x = noise
    with torch.no_grad():
        for time in scheduler.timesteps:
            x = scheduler.step(unet(x, time.expand(4)).sample, time, x).prev_sample
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    ours = sample(teacher, 4, solver="euler", grid=Grid(t / (1 - t)))
    assert torch.allclose(ours, x, atol=1e-4)


def test_bundled_teachers_are_small_and_told_of() -> None:
    cards = bundled()
    assert {"digits8", "fashion28"} <= cards.keys()
    for name, card in cards.items():
        folder = Path(sys.modules["onefold"].__file__ or "").parent / "assets" / name
        files = [p for p in folder.rglob("*") if p.is_file() and p.name != "reference.npz"]  # which has its own bound
        assert sum(p.stat().st_size for p in files) <= 4_000_000
        assert (folder / "README.md").is_file() and (folder / "samples.png").is_file()
        assert {"data", "command", "cost", "parameters", "versions"} <= card.keys()


@pytest.mark.parametrize("name", ["digits8", "fashion28"])
def test_bundled_teachers_denoise(name: str) -> None:
    """They remove noise: from a noisy sample of their own, what is left is nearer to it than any other sample is."""
    teacher = load_teacher(name, device="cpu")
    images = sample(teacher, 8, calls=12, labels=list(range(8)))
    assert images.shape == (8, *teacher.shape) and bool(torch.isfinite(images).all())
    assert float(images.abs().max()) < 1.5
    noisy = images + 0.5 * ImageNoise(1, range(8), teacher.shape)()
    with torch.no_grad():
        back = teacher(noisy, 0.5, {"labels": torch.arange(8)})
    distances = torch.cdist(back.flatten(1), images.flatten(1))
    assert distances.argmin(1).tolist() == list(range(8))
    assert float((back - images).square().mean()) < 0.25 * float((noisy - images).square().mean())


def test_weights_are_checked(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    tiny(folder, Noising())
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        load_teacher(folder)


@pytest.mark.parametrize("missing", [WEIGHTS, Path("scheduler/scheduler_config.json")])
def test_a_missing_part_is_named(tmp_path: Path, missing: Path) -> None:
    folder = tmp_path / "t"
    tiny(folder, Noising())
    (folder / missing).unlink()
    with pytest.raises(UserError, match=missing.name):
        load_teacher(folder)


def test_unknown_teachers_and_schedulers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'digits8'"):
        load_teacher("digit8")
    folder = tmp_path / "t"
    tiny(folder, Noising())
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "RePaintScheduler"}))
    with pytest.raises(UserError, match="RePaintScheduler"):
        load_teacher(folder)
    config.write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        load_teacher(folder)


def test_any_unet_folder_of_diffusers_is_a_teacher(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    unet = build_unet((3, 16, 16), widths=[8, 8], layers=1, classes=None)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "t")
    teacher = load_teacher(tmp_path / "t", device="cpu")
    assert (teacher.prediction, teacher.shape, teacher.classes) == ("eps", (3, 16, 16), None)
    expected = ((1 - scheduler.alphas_cumprod.double()) / scheduler.alphas_cumprod.double()).sqrt()
    time = torch.arange(999, dtype=torch.float64)
    assert torch.allclose(teacher.process.sigma(time), expected[:999], rtol=1e-3)
    assert sample(teacher, 2, grid=uniform(teacher.process, 4)).shape == (2, 3, 16, 16)


def test_a_broken_torchvision_gets_one_sentence(tmp_path: Path) -> None:
    """As it stands beside a torch that it was not built for; diffusers imports it because it is there."""
    package, about = tmp_path / "torchvision", tmp_path / "torchvision-0.99.0.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport importlib.machinery\nfrom onefold.cli import main\nsys.argv[1:] = ['sample', 'digits8', '--count', '1', '--out', {str(tmp_path / 'x.png')!r}]\nsys.exit(main())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "pip uninstall torchvision" in done.stderr


def test_saving_replaces_the_folder_whole(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    tiny(folder, Noising())
    (folder / "stale.txt").write_text("old")
    tiny(folder, Noising())
    assert not (folder / "stale.txt").exists() and (folder / CARD).exists()
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    shutil.rmtree(folder)
