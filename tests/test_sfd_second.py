"""SFD's second stage: what its one call is taught by, what it begins with, what comes out, and on what it cannot begin."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import plane
import small
from onefold import seeds
from onefold.cli import distill as commands
from onefold.cli import main
from onefold.denoiser import Denoiser
from onefold.distilling import choose, distill, plan
from onefold.errors import UserError
from onefold.losses import distance
from onefold.methods import base, sfd_second
from onefold.methods.sfd import SFD, SFDSettings
from onefold.methods.sfd_second import SecondSettings, SecondStage
from onefold.perceptual import TeacherFeatures
from onefold.sampling import sample
from onefold.settings import build
from onefold.student import load_student
from onefold.targets import rollout
from onefold.teachers import load_teacher
from onefold.teachers.own import with_form
from onefold.training.contract import Batch, Draw
from onefold.training.loop import Engine
from plane import WATCHED, sfd, teacher_states, train
from toys import inputs_seen

QUICK: dict[str, Any] = {"budget": "32", "batch_size": 16, "device": "cpu", "watched": 3}
PIXELS = 64  # of the digits


@pytest.fixture(scope="module", autouse=True)
def untuned() -> Iterator[None]:
    """Controls on usual grids alone: tuning one takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "MOST_TUNED", 0)
        yield


def begun(folder: Path, calls: Any = 3, **settings: Any) -> Path:
    """A student of the first stage in a folder, with weights as if it had learned."""
    values = {"teacher": "digits8", "out": str(folder), "calls": calls, **settings}
    method = SFD(load_teacher("digits8", device="cpu"), build(SFDSettings, values))
    for number, parameter in enumerate(method.networks["student"].eval().parameters()):
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=seeds.generator(number))
    method.as_student(method.networks).save(folder)
    return folder


def second(folder: Path, **settings: Any) -> SecondStage:
    values = {"teacher": str(folder), "method": "sfd_second", "out": "x", "batch_size": 4, "watched": 2}
    return SecondStage(load_teacher(folder, device="cpu"), build(SecondSettings, {**values, "calls": 1, **settings}))


def batch_of(method: SecondStage, size: int = 4, rows: range | None = None) -> Batch:
    return Batch(0, 0.0, method.prepare(Draw(0, 0, rows or range(size), size)))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begun(tmp_path_factory.mktemp("first") / "sfd3")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begun(tmp_path_factory.mktemp("first") / "sfd234", [2, 3, 4], step_init="official")


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """(output, target) of each loss."""
    seen = list[tuple[Tensor, Tensor]]()

    def spy(kind: Any, output: Tensor, target: Tensor, reduction: Any = "sum") -> Tensor:
        seen.append((output, target))
        return distance(kind, output, target, reduction)

    monkeypatch.setattr(sfd_second, "distance", spy)
    return seen


# --- the target -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("afs", ["ve", "vp", None])
def test_the_target_is_what_the_first_stage_samples(
    afs: Any, tmp_path: Path, compared: list[tuple[Tensor, Tensor]]
) -> None:
    """O1: bit for bit for the same noise, as it is deployed, its analytic step included."""
    folder = begun(tmp_path / "first", afs=afs)
    method, student = second(folder), load_student(folder, device="cpu")
    batch = batch_of(method)
    list(method.updates(batch))
    expected = student.sample(4, noise=batch["z"], labels=batch.conditions["labels"].tolist())
    ((_, target),) = compared
    assert torch.equal(target, expected) and not target.requires_grad


def test_of_several_numbers_the_largest_is_the_teacher(several: Path, compared: list[tuple[Tensor, Tensor]]) -> None:
    method, student = second(several), load_student(several, device="cpu")
    batch = batch_of(method)
    list(method.updates(batch))
    labels = batch.conditions["labels"].tolist()
    assert torch.equal(compared[0][1], student.sample(4, noise=batch["z"], labels=labels, calls=4))
    assert not torch.allclose(compared[0][1], student.sample(4, noise=batch["z"], labels=labels, calls=3), atol=1e-3)
    assert method.teacher.calls == 4 and method.first.grid == student.grid


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("calls", "middle"), [(2, 1), (3, 2), (4, 2), (5, 3)])
def test_the_one_call_is_at_the_middle_level(calls: int, middle: int, tmp_path: Path) -> None:
    """Published: 80, 3.107, 0.006 of six steps; all three levels are the first stage's."""
    how = {"grid": "karras", "sigma_min": 0.01, "sigma_max": 80.0}
    folder = begun(tmp_path / "first", calls, **how)
    method, levels = second(folder), load_student(folder, device="cpu").grid.sigmas.tolist()
    assert method.grid.sigmas.tolist() == [levels[0], levels[middle], levels[-1]] and method.calls == 1
    assert method.grid.start == "ve" and method.grid.end == "sigma_min"
    if calls == 5:
        expected = (80 ** (1 / 7) + (0.01 ** (1 / 7) - 80 ** (1 / 7)) / 2) ** 7
        assert float(method.grid.sigmas[1]) == pytest.approx(expected)


def test_without_an_analytic_step_the_one_call_is_at_the_top(tmp_path: Path) -> None:
    folder = begun(tmp_path / "first", afs=None)
    levels = load_student(folder, device="cpu").grid.sigmas.tolist()
    for level in ("auto", levels[0]):
        method = second(folder, level=level)
        assert method.grid.sigmas.tolist() == [levels[0], levels[-1]] and method.afs is None and method.calls == 1
    with pytest.raises(UserError, match=f"the first stage's are {levels[0]:.4g}$"):
        second(folder, level=levels[1])


def test_a_level_of_one_s_own_is_one_of_the_first_stage_s(first: Path) -> None:
    start, *able, end = load_student(first, device="cpu").grid.sigmas.tolist()
    for level in able:
        shown = float(f"{level:.4g}")  # as the refusal prints it
        assert second(first, level=shown).grid.sigmas.tolist() == [start, level, end]
    names = ", ".join(f"{level:.4g}" for level in able)
    for level in (start, able[0] * 1.01, 1e-9):
        with pytest.raises(UserError, match=f"level is .*, which is none .*; the first stage's are {names}$"):
            second(first, level=level)


# --- one call ---------------------------------------------------------------------------------------------------------


def test_an_image_costs_one_call(first: Path) -> None:
    """O2: in training, and of the student."""
    method = second(first, perceptual="none")
    updates = list(method.updates(batch_of(method)))
    assert len(updates) == 1 and updates[0].ema
    assert (method.student.calls, method.teacher.calls) == (1, 3)
    student = method.sampler(method.networks)
    student.denoiser.calls = 0
    student.sample(4)
    assert student.denoiser.calls == student.calls == 1 and student.counts == [1]


def test_training_takes_the_step_that_sampling_takes(first: Path, compared: list[tuple[Tensor, Tensor]]) -> None:
    """From z alone: x = AFS(z), y = r x + (1 - r) D(x)."""
    method = second(first)
    batch, seen = batch_of(method), inputs_seen(method)
    list(method.updates(batch))
    sigma, to = method.grid.sigmas.tolist()[1:]
    assert torch.allclose(seen[0], sigma * batch["z"], rtol=1e-4) and not seen[0].requires_grad  # ve
    denoised = method.student.denoise(seen[0], sigma, batch.conditions)
    by_hand = to / sigma * seen[0] + (1 - to / sigma) * denoised
    assert torch.allclose(compared[0][0], by_hand, atol=1e-5)
    labels = batch.conditions["labels"].tolist()
    drawn = method.sampler({"student": method.networks["student"].eval()}).sample(4, noise=batch["z"], labels=labels)
    assert torch.equal(compared[0][0].detach(), drawn)


@pytest.mark.parametrize("which", ["first", "several"])
def test_it_begins_with_the_first_stage_s_weights(which: str, request: pytest.FixtureRequest) -> None:
    """O4: of several numbers those of the largest, as they were folded."""
    folder = request.getfixturevalue(which)
    method, student = second(folder), load_student(folder, device="cpu")
    weights, begun_with = student.denoiser.module.state_dict(), method.networks["student"].state_dict()
    assert weights.keys() == begun_with.keys()
    assert all(torch.equal(value, begun_with[name]) for name, value in weights.items())
    assert method.networks["student"] is not method.frozen["teacher"] is not method.frozen["root"]
    original = load_teacher("digits8", device="cpu").module.state_dict()
    assert all(torch.equal(value, original[name]) for name, value in method.frozen["root"].state_dict().items())


def test_only_the_student_learns(first: Path) -> None:
    method = second(first)
    for network in method.frozen.values():
        network.requires_grad_(True)
    (update,) = method.updates(batch_of(method))
    update.loss.backward()
    assert all(p.grad is None for network in method.frozen.values() for p in network.parameters())
    assert all(p.grad is not None for p in method.networks["student"].parameters())
    assert not method.frozen["teacher"].training and not method.frozen["root"].training


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_of_means_that_weigh_the_same(first: Path, compared: list[tuple[Tensor, Tensor]]) -> None:
    """O3: sum |y - y*| / B + CHW d = CHW (mean |y - y*| + d), on the one step that there is."""
    for weight in (1.0, 0.25):
        compared.clear()
        method = second(first, loss="l1", perceptual="teacher", perceptual_weight=weight)
        batch = batch_of(method)
        (update,) = method.updates(batch)
        ((output, target),) = compared
        features = TeacherFeatures(load_teacher("digits8", device="cpu"), method.settings.perceptual_level)
        seen, off = features(output, target, batch.conditions), (output - target).abs().mean()
        assert torch.allclose(update.loss, PIXELS * (off + weight * seen), rtol=1e-5)
        assert torch.allclose(update.logs["loss"], PIXELS * off, rtol=1e-5) and float(seen.detach()) > 0
        assert torch.allclose(update.logs["perceptual"], seen)


@pytest.mark.parametrize(
    ("loss", "reduction", "scale"),
    [("l1", "sum", PIXELS), ("l2", "sum", PIXELS), ("pseudo_huber", "sum", math.sqrt(PIXELS)), ("l1", "mean", 1)],
)
def test_the_perceptual_distance_stands_beside_a_mean(loss: str, reduction: str, scale: float, first: Path) -> None:
    method = second(first, loss=loss, reduction=reduction, perceptual="teacher", perceptual_weight=0.5)
    (update,) = method.updates(batch_of(method))
    expected = update.logs["loss"] + 0.5 * scale * update.logs["perceptual"]
    assert torch.allclose(update.loss, expected, rtol=1e-5)


def test_none_leaves_the_perceptual_distance_out(first: Path) -> None:
    method = second(first, perceptual="none")
    (update,) = method.updates(batch_of(method))
    assert torch.equal(update.loss, update.logs["loss"]) and set(update.logs) == {"loss"}
    assert method.standard.calls == 0


def test_micro_batches_have_the_gradient_of_the_whole(first: Path) -> None:
    gradients = []
    for shares in ([range(6)], [range(3), range(3, 6)]):
        method = second(first, loss="l1", perceptual="teacher")
        for rows in shares:
            (update,) = method.updates(batch_of(method, 6, rows))
            (update.loss / len(shares)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in method.networks["student"].parameters()]))  # type: ignore[union-attr]
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-3)


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages by the commands, the first with guidance."""
    home = tmp_path_factory.mktemp("stages")
    words = [
        f"--set={key}={value}" if key == "watched" else f"--{key.replace('_', '-')}={value}"
        for key, value in QUICK.items()
    ]
    told = ["--calls", "2", "--set", "guidance=2.0"]
    assert main(["distill", "digits8", *told, *words, "--out", str(home / "first")]) == 0
    told = ["--method", "sfd_second", "--calls", "1"]
    assert main(["distill", str(home / "first"), *told, *words, "--out", str(home / "one")]) == 0
    return home


def test_its_recipe_is_of_both_stages(home: Path) -> None:
    before, student = load_student(home / "first", device="cpu"), load_student(home / "one", device="cpu")
    recipe, root = student.recipe, load_teacher("digits8", device="cpu")
    assert student.calls == 1 and recipe["method"] == "sfd_second"
    assert recipe["teacher"] == {"name": "digits8", "sha256": root.card["sha256"]}
    assert recipe["settings"]["root"] == "digits8" and recipe["settings"]["guidance"] == 2.0
    assert recipe["first_stage"]["method"] == "sfd"
    assert recipe["first_stage"]["sha256"] == before.denoiser.card["sha256"] != root.card["sha256"]


def test_its_cost_is_that_of_both_stages(home: Path) -> None:
    cost = load_student(home / "one", device="cpu").recipe["cost"]
    one = load_student(home / "first", device="cpu").recipe["cost"]
    assert [(stage["calls"], stage["images"], stage["steps"]) for stage in cost["stages"]] == [(2, 32, 2), (1, 32, 2)]
    assert (cost["images"], cost["steps"]) == (64, 4)
    assert cost["seconds"] == pytest.approx(one["seconds"] + cost["stages"][1]["seconds"], abs=0.11)
    # with guidance the first stage asks twice; the second one its student of two calls
    assert one["calls"] == {"teacher": 32 * 2 * 6, "student": 32 * 2}
    assert cost["calls"] == {"teacher": 32 * (12 + 2), "student": 32 * (2 + 1)}


def test_it_is_measured_against_the_root_with_its_guidance(home: Path) -> None:
    """The first stage's student stands beside it, by the same measure."""
    student = load_student(home / "one", device="cpu")
    fine = sample("digits8", 3, guidance=2.0, solver="dpmpp3m_exact", calls=64)
    off = (student.sample(3) - fine).square().mean().sqrt()
    assert student.recipe["evidence"]["student"] == pytest.approx(float(off), rel=1e-3)
    first = (load_student(home / "first", device="cpu").sample(3) - fine).square().mean().sqrt()
    assert student.recipe["first_stage"]["distance"] == pytest.approx(float(first), rel=1e-3)
    rows = [json.loads(line) for line in (home / "one" / "metrics.jsonl").read_text().splitlines()]
    looks = [row["validation"] for row in rows if "validation" in row]
    assert all(list(look) == ["distance_to_teacher", "distance_to_first_stage"] for look in looks)


def test_its_page_names_both_stages(home: Path) -> None:
    page = (home / "one" / "student" / "README.md").read_text()
    assert "`digits8` in 1 network call, distilled with SFD and its second stage" in page
    assert "first stage" in page and "2, folded into the network" in page


def test_it_goes_on_where_it_began(home: Path, tmp_path: Path) -> None:
    """Saved, sampled, exported, and no first stage for another."""
    student = load_student(home / "one", device="cpu")
    student.save(tmp_path / "copy")
    assert torch.equal(load_student(tmp_path / "copy", device="cpu").sample(3), student.sample(3))
    assert student.export(tmp_path / "shipped").largest_difference < 1e-4
    with pytest.raises(UserError, match="'one' makes one call already; give a student of more calls"):
        second(home / "one" / "student")


def test_the_recipe_s_command_makes_the_same_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(load_student(home / "one", device="cpu").recipe["command"])
    seen = list[dict[str, Any]]()
    monkeypatch.setattr(commands, "run", lambda values, as_json: seen.append(values))
    assert main(words[1:]) == 0
    settings = choose(seen[0])
    values = {"teacher": str(home / "first"), "method": "sfd_second", "calls": 1, "out": str(home / "one")}
    assert settings == choose({**QUICK, **values, "device": "auto"})
    assert dict(pairwise(words))["--method"] == "sfd_second"


def test_a_plan_tells_its_calls(first: Path) -> None:
    outlook = plan(first, "sfd_second", calls=1, **{**QUICK, "perceptual": "none"})
    assert outlook.calls == {"teacher": 3, "student": 1}


def own_first(folder: Path) -> Denoiser:
    """A first stage on a network of one's own, as a denoiser."""
    how = {**QUICK, "calls": [1, 2], "step_layers": ["inner.0"], "lr": 1e-2}
    return distill("small:teacher", "sfd", out=folder, **how).denoiser


def test_stopping_and_going_on_is_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network of one's own too, whose root is a function: no file makes it run."""
    before, step = own_first(tmp_path / "first"), Engine.train_step
    how: dict[str, Any] = {**QUICK, "calls": 1, "perceptual": "none", "checkpoint_every": "16", "budget": "64"}
    how["ema_half_life"] = 16.0
    with pytest.raises(UserError, match="a function of your own, and nothing that a file names is imported; give it"):
        distill(before, "sfd_second", out=tmp_path / "unnamed", **how)
    how["root"] = "small:teacher"
    straight = distill(before, "sfd_second", out=tmp_path / "straight", **how)
    assert straight.recipe["settings"]["root"] == "small:teacher"

    def stop(self: Engine, drawn: Any) -> None:
        if self.step == 2:
            raise KeyboardInterrupt
        step(self, drawn)

    monkeypatch.setattr(Engine, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(before, "sfd_second", out=tmp_path / "halved", **how)
    monkeypatch.undo()
    again = distill(before, "sfd_second", out=tmp_path / "halved", **how)
    a, b, begun_with = (one.module.state_dict() for one in (straight.denoiser, again.denoiser, before))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], begun_with[key]) for key in a)
    loaded = load_student(tmp_path / "straight", teacher="small:teacher", device="cpu")
    assert torch.equal(loaded.sample(2), straight.sample(2))


# --- what it is worth -------------------------------------------------------------------------------------------------


def in_the_plane(first: SFD, folder: Path, **settings: Any) -> SecondStage:
    """A second stage on a student in the plane, which has no picture, by its folder."""
    student = first.as_student({"student": first.networks["student"].eval()})
    replace(student, picture=Image.new("L", (1, 1))).save(folder)
    teacher = load_student(folder, teacher="plane:teacher", device="cpu").denoiser
    published = {"loss": "l1", "dropout": True, "schedule": "drop", "perceptual": "none", "root": "plane:teacher"}
    values = {"teacher": str(folder), "method": "sfd_second", "calls": 1, "out": "x", **published, **settings}
    return SecondStage(teacher, build(SecondSettings, values))


def off_from(method: SecondStage | SFD, expected: Tensor) -> float:
    ends = method.sampler({"student": method.networks["student"].eval()}).sample(
        len(WATCHED), noise=WATCHED, batch_size=512
    )
    method.networks["student"].train()
    return float((ends - expected).norm(dim=1).mean())


def two_stages_and_one(folder: Path, batches: tuple[int, int], lr: float) -> tuple[float, float, float]:
    """Mean distances to the exact end point of one call: untrained, of SFD, and after two stages."""
    teacher = with_form(plane.teacher())
    how: dict[str, Any] = {"afs": "vp", "lr": lr, "grid": "karras", "end": "sigma_min"}
    fine = sfd(teacher, calls=5, parts=32, **how)
    exact = teacher_states(fine, WATCHED)[-1]
    direct = sfd(teacher, calls=1, **how)
    untrained = off_from(direct, exact)
    train(direct, batches[1])
    first = sfd(teacher, calls=5, **how)
    train(first, batches[0])
    one = in_the_plane(first, folder, lr=lr)
    assert one.grid.sigmas.tolist() == pytest.approx(direct.grid.sigmas.tolist())  # 80, 3.107, 0.006
    train(one, batches[1])
    return untrained, off_from(direct, exact), off_from(one, exact)


def test_two_stages_beat_one(tmp_path: Path) -> None:
    """O5 in small: where there are two intervals, a teacher of four steps in each is coarse; six steps of four are not."""
    untrained, direct, both = two_stages_and_one(tmp_path / "first", (80, 200), 5e-3)
    assert both < 0.7 * direct < 0.35 * untrained


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_stages_beat_one_by_far(tmp_path: Path) -> None:
    """O5 at length."""
    _, direct, both = two_stages_and_one(tmp_path / "first", (1500, 3000), 5e-3)
    assert both < 0.4 * direct


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_teacher_that_is_no_student_is_refused(tmp_path: Path) -> None:
    for teacher in (load_teacher("digits8", device="cpu"), with_form(small.teacher())):
        with pytest.raises(UserError, match="is no student, and the second stage begins with one of the first; distil"):
            SecondStage(teacher, build(SecondSettings, {"teacher": "x", "out": "x"}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"guidance": 2.0}, "guidance is 2, but the student of the first stage has its own folded in; leave it at 1"),
        ({"calls": 2}, "the second stage gives a student of one call, not 2; for more of them take method sfd"),
        ({"calls": [1, 2]}, "this method makes a student of one number of calls"),
        ({"level": -1.0}, "level is -1, which is none"),
        ({"level": "middle"}, "level"),
        ({"perceptual": "lpips"}, "perceptual weights missing: LPIPS needs a file of them and none is named"),
        ({"perceptual": "lpips", "lpips_weights": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
        (
            {"perceptual_weight": 2.0},
            "perceptual_weight is given, but perceptual is none; set perceptual=teacher or lpips",
        ),
        ({"perceptual": "vgg"}, "perceptual='vgg' does not fit: it should be 'none', 'teacher' or 'lpips'"),
        ({"perceptual": "teacher", "perceptual_layers": ["nowhere"]}, "nowhere"),
        ({"perceptual": "teacher", "perceptual_level": 1e6}, "features are asked for at sigma = 1e"),
        ({"perceptual_weight": 0.0}, "perceptual_weight=0.0 does not fit: it should be greater than 0"),
        (
            {"root": "nowhere"},
            "the first stage's teacher 'nowhere' is needed to measure against: .*; give it with root",
        ),
        (
            {"root": "fashion28"},
            "'fashion28' is not the teacher of 'sfd3': their weights differ; give that one with root",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(settings: dict[str, Any], said: str, first: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        second(first, **settings)
    assert "\n" not in str(error.value)


def test_a_root_that_is_gone_can_be_given(tmp_path: Path) -> None:
    """The first stage names a folder that was moved; a folder with other weights is not taken for it."""
    teacher = begun(tmp_path / "teacher")  # a student is a folder with a model too
    root = load_teacher(teacher, device="cpu")
    made = SFD(root, build(SFDSettings, {"teacher": str(teacher), "out": "x", "calls": 2}))
    made.as_student(made.networks).save(tmp_path / "first")
    shutil.move(teacher, tmp_path / "moved")
    with pytest.raises(UserError, match="is needed to measure against: .*; give it with root"):
        second(tmp_path / "first")
    method = second(tmp_path / "first", root=str(tmp_path / "moved"))
    assert method.as_student(method.networks).recipe["settings"]["root"] == str(tmp_path / "moved")
    assert method.as_student(method.networks).recipe["teacher"]["sha256"] == root.card["sha256"]
    with pytest.raises(UserError, match="their weights differ"):
        second(tmp_path / "first", root="digits8")


def test_a_first_stage_without_a_cost_has_none_to_add(first: Path) -> None:
    method = second(first)
    assert method.first.cost == {}


def test_a_first_stage_that_does_not_say_its_teacher_is_told(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path / "copy")
    path = tmp_path / "copy" / "student.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in facts.items() if key != "settings"}))
    with pytest.raises(UserError, match="the first stage does not say what its teacher was; give it with root"):
        second(tmp_path / "copy")
    assert second(tmp_path / "copy", root="digits8").first.guidance == 1


def test_the_plain_teacher_s_rollout_is_not_the_target(first: Path, compared: list[tuple[Tensor, Tensor]]) -> None:
    method = second(first)
    batch = batch_of(method)
    list(method.updates(batch))
    start = method.first.grid.start_state(method.teacher.process, batch["z"])
    way: dict[str, Any] = {"solver": "euler", "cond": batch.conditions, "afs": method.first.afs}
    states = rollout(method.standard, start, method.first.grid, 1, **way)
    assert not torch.allclose(compared[0][1], states[-1], atol=1e-3)
