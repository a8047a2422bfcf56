"""Whole runs of SFDDM, and the folders that its students lie in: of tables, of continuous levels, of networks of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edm_pickles import TINY
from onefold.denoiser import Denoiser
from onefold.distilling import distill
from onefold.errors import UserError
from onefold.methods.sfddm import SFDDM, SFDDMSettings
from onefold.networks.edm import build_edm
from onefold.networks.unet import build_unet
from onefold.process import EDM, VE, ContinuousVP, DiscreteVP, Flow, Indexed, Process
from onefold.sampling import sample
from onefold.settings import build
from onefold.student import load_student
from onefold.teachers import load_teacher
from onefold.teachers.edm import EDMForm, edm_denoiser, save_edm
from onefold.teachers.edm_process import preconditioning
from onefold.teachers.native import Noising, save_teacher
from onefold.teachers.own import with_form
from onefold.training.contract import Batch, Draw
from test_export_chain import network

PHI = [20, 300, 1000]
SMALL: dict[str, Any] = {
    "budget": "24", "batch_size": 6, "watched": 4, "device": "cpu", "sample_every": "1h", "checkpoint_every": "12",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("teachers") / "tiny"
    save_teacher(place, network(), Noising(), {"name": "tiny"})
    return place


def method_of(teacher: Denoiser, **settings: Any) -> SFDDM:
    return SFDDM(teacher, build(SFDDMSettings, {"teacher": "t", "out": "x", "watched": 4, "calls": 3, **settings}))


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


class Own(nn.Module):
    """Of a user: pictures of four pixels, and a time of sines as U-Nets have it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time_proj, self.body = Sines(), nn.Linear(4, 16)
        self.time_embedding = nn.ModuleDict({"linear_1": nn.Linear(16, 16)})
        self.out = nn.Linear(16, 4)

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        heard = self.time_embedding["linear_1"](self.time_proj(time))
        out: Tensor = self.out(torch.tanh(self.body(z.flatten(1)) + heard))
        return out.reshape(z.shape)


class Sines(nn.Module):
    def forward(self, time: Tensor) -> Tensor:
        angle = time.float().unsqueeze(1) * torch.logspace(0, -3, 8)
        return torch.cat([angle.sin(), angle.cos()], 1)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_from_teacher_to_student(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    student = distill(str(folder), "sfddm", out=out, preset="paper", data="digits", phi=PHI, calls=3, **SMALL)
    assert student.grid.phi == tuple(PHI) and student.recipe["settings"]["phi"] == PHI
    again = load_student(out, device="cpu")
    assert torch.equal(again.sample(4), student.sample(4))
    assert torch.equal(again.sample(4, eta=1.0), student.sample(4, eta=1.0))
    process: Any = again.denoiser.process
    table: Any = load_teacher(folder, device="cpu").process
    assert torch.allclose(process.alphas_cumprod, table.alphas_cumprod[torch.tensor(PHI) - 1], rtol=1e-9)
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    numbers = [row["validation"] for row in log if "validation" in row]
    assert [list(row) for row in numbers] == [["distance_to_strided", "distance_to_teacher"]] * 2
    assert student.recipe["cost"]["calls"] == {"teacher": 24, "student": 24}
    assert "euler on the same levels" in student.recipe["evidence"]["solvers"]
    with pytest.raises(UserError, match="phi: .*there"):
        distill(str(folder), "sfddm", out=out, preset="paper", data="digits", phi=[20, 301, 1000], calls=3, **SMALL)
    assert torch.equal(load_student(out, device="cpu").sample(4), student.sample(4))


def test_a_checkpoint_of_another_chain_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 14: the same settings, but the checkpoint tells of other levels; as it is, it goes on bit for bit."""
    teacher = with_form(Denoiser(Own(), ContinuousVP(), prediction="v", shape=(1, 2, 2)))
    how = {"levels": 1000, "parts": 2, "calls": 3, "phi": PHI, **SMALL}
    straight = distill(teacher, "sfddm", out=tmp_path / "straight", **how)
    out, prepare = tmp_path / "halved", SFDDM.prepare

    def stop(self: SFDDM, draw: Draw) -> dict[str, Tensor]:
        if draw.step == 3:
            raise KeyboardInterrupt
        return prepare(self, draw)

    monkeypatch.setattr(SFDDM, "prepare", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, "sfddm", out=out, **how)
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr("onefold.methods.phi.kept_steps", lambda *_, **__: (20, 301, 1000))
        with pytest.raises(UserError, match="the grid of this run changed since it was interrupted"):
            distill(teacher, "sfddm", out=out, **how)
    said: list[str] = []
    again = distill(teacher, "sfddm", out=out, tell=said.append, **how)
    assert any("going on after 12 images" in line for line in said)
    assert torch.equal(again.sample(4), straight.sample(4))


@pytest.mark.parametrize(
    "settings",
    [
        {"widths": [8, 16]},
        {"layers": 2},
        {"begin": "random"},
        {"time": "teacher", "lora": 2},
        {"time": "teacher"},
        {"preset": "official", "data": "digits", "phi": "start", "batch_size": 4},
        {"feature_weight": 1.0, "widths": [8, 16], "data": "digits", "parts": 1},
    ],
    ids=str,
)
def test_students_of_all_kinds_come_back_from_their_folders(
    folder: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    method = method_of(load_teacher(folder, device="cpu"), **{"phi": PHI, "batch_size": 4, "lr": 1e-2, **settings})
    drawn = method.prepare(Draw(0, 0, range(4), 4))
    for update in method.updates(Batch(0, 0.0, drawn)):
        method.optimizers["main"].zero_grad()
        update.loss.backward()
        method.optimizers["main"].step()
    method.networks["student"].eval()
    student = method.as_student(method.networks)
    student.save(tmp_path / "student")
    again = load_student(tmp_path / "student", device="cpu")
    assert gap(again.sample(4), student.sample(4)) < 1e-5 and again.grid.phi == student.grid.phi
    assert again.denoiser.continuous_time == (settings.get("time") == "teacher")
    teacher = load_teacher(folder, device="cpu")
    assert gap(student.sample(4), sample(teacher, 4, solver="euler", grid=method.strided)) > 1e-3
    sizes = [sum(p.numel() for p in made.module.parameters()) for made in (again.denoiser, teacher)]
    assert (sizes[0] < sizes[1]) == ("widths" in settings) and (sizes[0] > sizes[1]) == ("layers" in settings)


# --- continuous levels ------------------------------------------------------------------------------------------------


PROCESSES: list[tuple[Process, Any]] = [
    (EDM(), "edm"), (EDM(), "x0"), (EDM(floor=0.002), "edm"), (VE(0.02, 50.0), "eps"), (Flow(), "flow"),
    (ContinuousVP(), "v"), (ContinuousVP(), "eps"),
]  # fmt: skip


@pytest.mark.parametrize(("process", "prediction"), PROCESSES, ids=lambda value: type(value).__name__)
def test_continuous_teachers_are_divided(process: Process, prediction: Any, tmp_path: Path) -> None:
    """Into `levels` steps, of which the student keeps some and knows them by their number, also when it comes back."""
    teacher = with_form(Denoiser(Own(), process, prediction=prediction, shape=(1, 2, 2)))
    with pytest.raises(
        UserError, match="'unnamed' has continuous noise levels, and SFDDM keeps steps of a table; set levels"
    ):
        method_of(teacher)
    method = method_of(teacher, levels=100, parts=1, begin="folded", phi=[10, 60, 100])
    own = method.student.process
    assert isinstance(own, DiscreteVP if isinstance(process, ContinuousVP) else Indexed)
    assert len(own.sigmas) == 3 and float(own.sigmas[-1]) == pytest.approx(process.sigma_max, rel=1e-12)
    assert not method.student.continuous_time
    assert torch.allclose(own.sigmas, method.grid.sigmas[:-1].flip(0), rtol=1e-12, atol=0)
    batch = Batch(0, 0.0, method.prepare(Draw(0, 0, range(6), 6)))
    losses = [float(update.loss.detach()) for update in method.updates(batch)]
    assert len(losses) == 3 and max(losses) < 1e-6
    student = method.as_student(method.networks)
    images = student.sample(4)
    strided = sample(teacher, 4, solver="euler", grid=method.strided)
    assert gap(images, strided) < 1e-4 * max(1.0, float(strided.abs().max()))
    student.save(tmp_path / "student")
    again = load_student(tmp_path / "student", teacher=teacher, device="cpu")
    assert torch.allclose(again.denoiser.process.sigmas, own.sigmas, rtol=1e-9, atol=0)  # type: ignore[attr-defined]
    assert gap(again.sample(4), images) < 1e-5 and again.grid.phi == (10, 60, 100)


def test_the_paper_s_levels_of_edm_are_the_table() -> None:
    """Division is EDM's own: rho = 7 between its ends."""
    teacher = with_form(Denoiser(Own(), EDM(), prediction="edm", shape=(1, 2, 2)))
    method = method_of(teacher, levels=18, phi=list(range(1, 19)), calls=18, begin="teacher", parts=1)
    steps = torch.arange(18, dtype=torch.float64) / 17
    wanted = (80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert torch.allclose(method.levels, wanted, rtol=1e-9)


@pytest.mark.parametrize("parts", [1, 3])
def test_students_of_edm_networks(parts: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build_edm("SongUNet", {**TINY, "model_channels": 16})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    made = edm_denoiser(net, preconditioning("EDMPrecond", {}), "ddpmpp")
    made.form = EDMForm(made.card)
    save_edm(made, tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher", device="cpu")
    method = method_of(teacher, levels=100, parts=parts, batch_size=3)
    student = method.as_student(method.networks)
    assert gap(student.sample(2), sample(teacher, 2, solver="euler", grid=method.strided)) < 1e-3
    student.save(tmp_path / "student")
    again = load_student(tmp_path / "student", device="cpu")
    assert isinstance(again.denoiser.process, Indexed) and gap(again.sample(2), student.sample(2)) < 1e-5
    with pytest.raises(UserError, match="widths and layers change a U-Net of diffusers"):
        method_of(teacher, levels=100, widths=[8, 16])


def test_students_of_flows(tmp_path: Path) -> None:
    """A U-Net of a continuous process: the levels lie in the student's card, inf among them."""
    torch.manual_seed(0)
    unet = build_unet((1, 8, 8), widths=(8, 16), layers=1, classes=None).eval()
    save_teacher(tmp_path / "teacher", unet, Noising("flow", "flow"), {"name": "flow"})
    teacher = load_teacher(tmp_path / "teacher", device="cpu")
    method = method_of(teacher, levels=50, phi="uniform", calls=2)
    student = method.as_student(method.networks)
    student.save(tmp_path / "student")
    again = load_student(tmp_path / "student", device="cpu")
    assert torch.equal(again.sample(3), student.sample(3)) and student.grid.phi == (25, 50)
    process: Any = again.denoiser.process
    assert isinstance(process, Indexed) and process.sigmas.tolist() == [1.0, float("inf")]
    assert json.loads((tmp_path / "student" / "onefold.json").read_text())["levels"] == [1.0, "inf"]
