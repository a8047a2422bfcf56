"""GDD: what its generator begins with, whose turn moves what, what stays as the teacher's, and that it learns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import onefold
import plane
import small
from onefold import seeds
from onefold.bench.evaluate import tell_apart
from onefold.cli import distill as commands
from onefold.denoiser import Denoiser
from onefold.distilling import choose, distill, plan
from onefold.errors import UserError
from onefold.methods import base
from onefold.methods.gdd import GDD, GDDSettings, drawn_from
from onefold.metrics.toys import sliced_wasserstein
from onefold.process import EDM, DiscreteVP, Flow, beta_table
from onefold.progress import silent
from onefold.settings import build
from onefold.student import load_student
from onefold.teachers import load_teacher
from onefold.training.contract import Batch, Draw

QUICK: dict[str, Any] = {"data": "digits", "budget": "16", "batch_size": 8, "device": "cpu", "watched": 2, "judged": 20}


@pytest.fixture(scope="module", autouse=True)
def untuned() -> Iterator[None]:
    """Controls on usual grids alone: tuning one takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "MOST_TUNED", 0)
        yield


@pytest.fixture(scope="module")
def teacher() -> Denoiser:
    return load_teacher("digits8", device="cpu")


def gdd(teacher: Denoiser, **settings: Any) -> GDD:
    values = {"teacher": "digits8", "method": "gdd", "out": "x", "data": "digits", "batch_size": 4, "width": 16}
    return GDD(teacher, build(GDDSettings, {**values, **settings}))


def batch_of(method: GDD, step: int = 0, size: int = 4, rows: range | None = None) -> Batch:
    return Batch(step, 0.0, method.prepare(Draw(0, step, rows or range(size), size)))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run(method: GDD, steps: int, size: int = 4) -> None:
    """The engine's part, in short."""
    for step in range(steps):
        for update in method.updates(batch_of(method, step, size)):
            take(method, update)


def take(method: GDD, update: Any) -> None:
    method.optimizers[update.optimizer].zero_grad(set_to_none=True)
    update.loss.backward()
    method.optimizers[update.optimizer].step()


# -- the generator -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "process", [EDM(), Flow(), DiscreteVP.from_betas(beta_table("linear"))], ids=["edm", "flow", "vp"]
)
def test_the_generator_begins_as_its_teacher_at_the_highest_level(process: Any) -> None:
    """Bit for bit, with the teacher's own preconditioning, whatever its process."""
    prediction = {"EDM": "edm", "Flow": "flow", "DiscreteVP": "v"}[type(process).__name__]
    teacher = small.teacher().replace(process=process, prediction=prediction)
    method = gdd(teacher, discriminator_layers=["inner.0"])
    batch = batch_of(method)
    z, top = batch["z"][:, 0], process.sigma_max
    made = method.generate(z, batch)
    assert torch.equal(made, teacher.denoise(process.prior(z), float(top), batch.conditions))
    assert float(method.grid.sigmas[0]) == top and method.grid.calls == 1


class Silent(nn.Module):
    """A network that gives one number everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        return self.value.expand_as(z)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_published_preconditioning_is_the_teachers_at_the_top(value: float) -> None:
    """Consistency models' coefficients differ from EDM's by 5e-5 and 2.5e-5 at sigma = 80, where the skip has 0.003 of z."""
    z = torch.randn(4000, 2, generator=seeds.generator(0))
    own, published = (
        Denoiser(Silent(value), EDM(floor=floor), prediction="edm", shape=(2,)).denoise(80 * z, 80.0).detach()
        for floor in (0.0, 0.002)
    )
    assert float((own - published).abs().max()) <= 5e-5 * float(own.abs().max())
    assert float((own - 0.5 * value).std()) == pytest.approx(0.00312, rel=0.03)


def test_one_call_at_the_highest_level(teacher: Denoiser) -> None:
    method = gdd(teacher)
    levels: list[Tensor] = []
    network = method.networks["student"]
    network.register_forward_pre_hook(lambda _, given: levels.append(given[1].clone()))
    student = method.sampler(method.networks)
    images = student.sample(5, seed=3)
    assert len(levels) == 1 and len(set(levels[0].tolist())) == 1
    assert float(levels[0][0]) == float(teacher.process.time(torch.tensor([teacher.process.sigma_max]).double()))
    torch.testing.assert_close(student.sample(5, seed=3, batch_size=2), images, rtol=1e-4, atol=1e-5)


def test_at_first_it_gives_the_mean(teacher: Denoiser) -> None:
    """One call of a teacher is nearly the mean of the data: of a class, far less varied than its images."""
    method = gdd(teacher)
    made = method.sampler(method.networks).sample(64, labels=[3] * 64)
    images, labels = onefold.data.load_data("digits").fetch(range(1797))
    threes = onefold.data.to_float(images[labels == 3])
    assert float((made.mean(0) - threes.mean(0)).square().mean().sqrt()) < 0.15
    assert float(made.std(0).mean()) < 0.5 * float(threes.std(0).mean())


# -- whose turn --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [{}, {"discriminator": "scratch", "penalty": "r1", "penalty_every": 2}], ids=["teacher", "scratch"]
)
def test_each_turn_moves_its_own_network_alone(teacher: Denoiser, how: dict[str, Any]) -> None:
    method = gdd(teacher, **how)
    moved, before = [], {name: state(network) for name, network in method.networks.items()}
    looked_through = state(teacher.module)
    for step in range(2):
        for update in method.updates(batch_of(method, step)):
            take(method, update)
            after = {name: state(network) for name, network in method.networks.items()}
            moved.append(
                [update.optimizer, update.ema, *(name for name in after if not same(before[name], after[name]))]
            )
            before = after
    turns = [["main", True, "student"], ["discriminator", False, "discriminator"]]
    lazily = [["discriminator", False, "discriminator"]] if how else []
    assert moved == [*turns, *lazily, *turns]
    assert same(looked_through, state(teacher.module))
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.module.parameters())


def test_the_generator_hears_through_the_frozen_teacher(teacher: Denoiser) -> None:
    method = gdd(teacher)
    batch = batch_of(method)
    made = method.real(batch).clone().requires_grad_(True)
    method.adversary.convince(made, method.real(batch), batch).backward()
    assert made.grad is not None and float(made.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in method.networks["discriminator"].parameters())


def test_real_and_made_are_seen_alike(teacher: Denoiser) -> None:
    """At the same levels and classes; in the penalty's pair with the same noise, so without a shift nothing is to pay."""
    method = gdd(teacher, penalty_shift=1e-12)
    batch = batch_of(method)
    _, logs = method.adversary.tell_apart(method.real(batch), method.real(batch) + 1, batch)
    assert float(logs["penalty"]) < 1e-9
    rows = method.adversary.judge(
        [method.real(batch)] * 2, [batch["noise_of_real"]] * 2, batch["host.sigma"], batch.conditions
    )
    for first, second in zip(*rows, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", ["lognormal", "karras"])
def test_levels_that_the_teacher_knows(teacher: Denoiser, noise: str) -> None:
    sigmas = batch_of(gdd(teacher, noise=noise, batch_size=64), size=64)["host.sigma"]
    process = teacher.process
    assert sigmas.min() >= process.sigma_min and sigmas.max() <= process.sigma_max
    known = batch_of(gdd(teacher.replace(continuous_time=False), noise=noise))["host.sigma"]
    time = process.time(known)
    torch.testing.assert_close(time, time.round(), rtol=0, atol=1e-6)


# -- what is frozen ----------------------------------------------------------------------------------------------------


def test_what_gdd_i_freezes_stays_the_teachers(teacher: Denoiser, tmp_path: Path) -> None:
    """In the student that is kept, whose weights are averaged, bit for bit; all else has moved."""
    student = distill("digits8", "gdd", out=tmp_path / "run", freeze="gdd_i", lr=1e-3, **QUICK)
    method = gdd(teacher, freeze="gdd_i")
    learning = {name for name, p in method.networks["student"].named_parameters() if p.requires_grad}
    in_optimizer = {id(p) for group in method.optimizers["main"].param_groups for p in group["params"]}
    own = {id(p) for p in method.networks["student"].parameters() if p.requires_grad}
    assert in_optimizer == own and 0 < len(learning)
    before, after = state(teacher.module), state(student.denoiser.module)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= learning
    assert len(changed) > 0.9 * len(learning)  # a bias before a norm may have no gradient
    assert any(note.startswith("frozen:") for note in method.notes)


def test_gdd_freezes_nothing(teacher: Denoiser) -> None:
    assert all(parameter.requires_grad for parameter in gdd(teacher).networks["student"].parameters())


def some_layers(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters() if name.startswith("conv_in")]


def test_a_rule_of_ones_own(teacher: Denoiser) -> None:
    method = gdd(teacher, freeze=some_layers)
    assert method.settings.freeze == f"{__name__}:some_layers"
    frozen = [name for name, p in method.networks["student"].named_parameters() if not p.requires_grad]
    assert frozen == ["conv_in.weight", "conv_in.bias"]
    with pytest.raises(UserError, match="no name at the top of a module"):
        gdd(teacher, freeze=lambda network: [])


# -- runs --------------------------------------------------------------------------------------------------------------


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(sorted((out / "checkpoints").iterdir())[-1] / "state.safetensors")


def test_a_run_that_was_interrupted_is_bit_equal(tmp_path: Path) -> None:
    """Generator, average, discriminator and both optimisers."""
    how = {**QUICK, "penalty": "r1", "penalty_every": 2}
    distill("digits8", "gdd", out=tmp_path / "whole", **{**how, "budget": "32"})
    distill("digits8", "gdd", out=tmp_path / "parts", **how)
    distill("digits8", "gdd", out=tmp_path / "parts", **{**how, "budget": "32"})
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    kinds = {name.split(".")[0] + "." + name.split(".")[1] for name in whole}
    assert {
        "network.student",
        "average.student",
        "network.discriminator",
        "optimizer.main",
        "optimizer.discriminator",
    } <= kinds
    assert same(whole, parts)


def test_micro_batches_give_the_gradient_of_the_whole(teacher: Denoiser) -> None:
    method = gdd(teacher, penalty="r1", penalty_every=1)
    parts = [batch_of(method, size=4, rows=rows) for rows in (range(2), range(2, 4))]
    for whole, *halves in zip(method.updates(batch_of(method)), *map(method.updates, parts), strict=True):
        name = whole.optimizer
        parameters = [p for group in method.optimizers[name].param_groups for p in group["params"]]
        wanted = torch.autograd.grad(whole.loss, parameters, allow_unused=True)
        each = [torch.autograd.grad(half.loss, parameters, allow_unused=True) for half in halves]
        for one, first, second in zip(wanted, *each, strict=True):
            if one is not None:
                torch.testing.assert_close((first + second) / 2, one, rtol=1e-3, atol=1e-5)


SLOW: dict[str, Any] = {
    **QUICK,
    "budget": "24",
    "width": 16,
    "lr": 1e-5,
    "lr_discriminator": 1e-5,
    "discriminator": "random",
}
SCRIPT = """
import sys
import onefold
from onefold.methods import base
base.MOST_TUNED = 0
onefold.distill("digits8", "gdd", out=sys.argv[1], **{settings})
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """With slow rates: Adam divides by the gradient's size, also where it is rounding."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{settings}", repr(SLOW)))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*start, str(script), str(tmp_path / "two")], capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    distill("digits8", "gdd", out=tmp_path / "one", **SLOW)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for kind in ("network.student.", "average.student.", "network.discriminator."):
        a, b = (
            torch.cat([v.flatten().double() for k, v in sorted(of.items()) if k.startswith(kind)]) for of in (one, two)
        )
        assert float((a - b).norm() / a.norm()) < 1e-4


def test_a_turn_that_breaks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in the turn of 'discriminator'"):
        distill("digits8", "gdd", out=tmp_path / "run", **{**QUICK, "penalty_weight": 1e38, "penalty_shift": 1e10})


def test_without_data_it_learns_from_the_teachers_images(tmp_path: Path) -> None:
    """Drawn once, kept in the run folder, and a part of the cost."""
    how = {**QUICK, "data": None, "drawn": 12}
    student = distill("digits8", "gdd", out=tmp_path / "run", **how)
    spent = json.loads((tmp_path / "run" / "teacher_images.json").read_text())
    assert spent["calls"] == 12 * 20
    logged = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert "fd[digits-cnn]" in logged["validation"]
    assert student.recipe["cost"]["calls"]["teacher"] > spent["calls"]
    begun = (tmp_path / "run" / "teacher_images.npz").stat().st_mtime_ns
    distill("digits8", "gdd", out=tmp_path / "run", **how)
    assert (tmp_path / "run" / "teacher_images.npz").stat().st_mtime_ns == begun
    teacher = load_teacher("digits8", device="cpu")
    data = drawn_from(teacher, 12, 0, tmp_path / "run", silent)
    assert data.classes == 10 and len(data) == 12
    watched = onefold.sample(teacher, 12, solver="ipndm3", calls=20)
    assert (
        float((onefold.data.to_float(data.fetch(range(12))[0]) - watched).abs().amax((1, 2, 3)).min()) > 0.1
    )  # other noise


def test_a_rehearsal_draws_a_batch_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outlook = plan("digits8", "gdd", batch_size=4, budget="40", device="cpu", watched=2, drawn=10**9)
    assert outlook.calls["student"] == 2 and outlook.images == 40
    assert list(tmp_path.iterdir()) == []


class Eyes(nn.Module):
    """Two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.first(x).relu()
        return [fine, self.second(fine)]


def eyes() -> nn.Module:
    return Eyes()


def test_a_network_of_ones_own_is_looked_through(teacher: Denoiser) -> None:
    """It stays as it is, and outside of the checkpoint; the heads learn."""
    method = gdd(teacher, discriminator=f"{__name__}:eyes")
    module = method.networks["discriminator"]
    assert len(module.heads) == 2 and not any("first" in name for name in module.state_dict())
    before = [tensor.clone() for network in module.features.networks for tensor in network.state_dict().values()]
    heads = state(module)
    run(method, 1)
    after = [tensor for network in module.features.networks for tensor in network.state_dict().values()]
    assert all(map(torch.equal, before, after)) and not same(heads, state(module))


def test_what_comes_out(tmp_path: Path) -> None:
    """A student like any other, whose evidence is the distance to the data, beside solvers and the teacher at its best."""
    distill("digits8", "gdd", out=tmp_path / "run", **QUICK)
    student = load_student(tmp_path / "run")
    evidence = student.recipe["evidence"]
    assert student.calls == 1 and evidence["measure"].startswith("Frechet distance, digits-cnn features")
    assert evidence["student"] > 0 and evidence["teacher"]["calls"] == 20
    assert evidence["teacher"]["value"] < evidence["solvers"][evidence["best_solver"]]
    student.export(tmp_path / "shipped")
    assert (tmp_path / "shipped" / "model_index.json").is_file()


def test_the_closing_lines_go_by_the_best_that_is_kept() -> None:
    fine = {"calls": 20, "value": 0.1}
    evidence = {
        "measure": "to the data",
        "images": 9,
        "student": 1.9,
        "best_solver": "euler",
        "solvers": {"euler": 0.7},
        "teacher": fine,
    }
    bad, earlier = commands.compared(evidence), {"best": 0.4, "images": 64, "folder": "runs/x/best"}
    assert "in 20 calls 0.1000" in bad and "free and comes nearer" in bad
    good = commands.compared(evidence, "", earlier)
    assert "runs/x/best holds that one" in good and "free and comes nearer" not in good


def test_a_student_that_does_not_imitate_says_so(teacher: Denoiser) -> None:
    said: list[str] = []
    method = gdd(teacher)
    student = method.sampler(method.networks)
    assert student.imitates
    told_apart = replace(student, recipe={"evidence": {"teacher": {"calls": 20, "value": 0.1}}})
    for one in (student, told_apart):
        tell_apart(one, said.append)
    assert len(said) == 1 and "do not judge it" in said[0]


def test_data_that_is_too_small_is_told_what_is_needed(teacher: Denoiser, tmp_path: Path) -> None:
    np.savez(tmp_path / "tiny.npz", images=np.zeros((4, 4, 4, 1), dtype=np.uint8))
    with pytest.raises(UserError, match="makes 8x8 images, give data at least as large"):
        gdd(teacher, data=str(tmp_path / "tiny.npz"))


def test_several_calls_take_turns(teacher: Denoiser) -> None:
    """Each step teaches one call, from the state that the calls before it lead to."""
    method = gdd(teacher, calls=3)
    assert method.turns == 3
    seen: list[float] = []
    network = method.networks["student"]
    network.register_forward_pre_hook(lambda _, given: seen.append(float(given[1][0])))
    for step in range(3):
        seen.clear()
        made = method.generate(batch_of(method, step)["z"][:, 0], batch_of(method, step))
        assert len(seen) == step + 1 and seen == sorted(seen, reverse=True)
        assert made.requires_grad
    batch = batch_of(method, 2)
    whole = method.sampler(method.networks).sample(
        4, noise=batch["z"][:, 0], labels=batch.conditions["labels"].tolist()
    )
    torch.testing.assert_close(whole, made, rtol=1e-4, atol=1e-5)


def test_no_call_is_spent_at_the_lowest_level() -> None:
    """EDM's usual grid of two calls would be 80 and 0.002."""
    edm = small.teacher().replace(process=EDM(), prediction="edm")
    two = gdd(edm, calls=2, discriminator_layers=["inner.0"]).grid.sigmas.tolist()
    assert two[0] == 80 and 0.3 < two[1] < 5 and two[2] == 0 and len(two) == 3
    whole = small.teacher().replace(continuous_time=False)
    method = gdd(whole, calls=3, discriminator_layers=["inner.0"])
    method.generate(batch_of(method, 2)["z"][:, 0], batch_of(method, 2))  # at times that the network takes


def test_the_data_has_no_distance_to_itself(teacher: Denoiser) -> None:
    gauge = gdd(teacher, extractor="pixels").measure()
    images = onefold.data.to_float(onefold.data.load_data("digits").fetch(range(1797))[0])
    assert gauge.key == "fd[pixels]" and gauge(images) < 1e-6
    assert gauge.diversity(images) == pytest.approx(1)
    assert gauge(images.clamp(max=0.0)) > 1
    assert gauge.diversity(images[:1].expand(8, -1, -1, -1)) == 0


def test_a_collapse_is_told_with_a_remedy(teacher: Denoiser) -> None:
    method = gdd(teacher)
    for diversity, warned in ((0.4, False), (0.9, False), (0.5, False), (0.3, True), (0.8, False)):
        method.watch_over(diversity)
        assert bool(method.concerns()) == warned
    method.watch_over(0.1)
    assert "raise penalty_weight" in method.concerns()[0]


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": 4, "freeze": "gdd_i"}, "lora trains beside frozen weights"),
        ({"guidance": 2.0}, "real images show none"),
        ({"data": None, "flip": True}, "flip mirrors data"),
        ({"discriminator": "scratch", "noise": "karras"}, "not told the level"),
        ({"discriminator": "timm:vgg16_bn", "noise": "karras"}, "image networks have seen none"),
        ({"discriminator": "scratch", "discriminator_layers": ["mid_block"]}, "does not look through it"),
        ({"discriminator_weights": ["a"]}, "is for timm's networks"),
        ({"schedule": "cosine"}, "should be 'constant' or 'linear'"),
        ({"freeze": "gddi"}, "gdd_i"),
        ({"preset": "paper"}, "paper_64|paper_cifar10"),
        ({"extractor": "fashion-cnn"}, "takes images of"),
        ({"discriminator": "techer"}, "did you mean 'teacher'"),
        ({"penalty": "none", "penalty_weight": 1.0}, "penalty_weight is given"),
        ({"penalty_every": 4}, "is for penalty=r1"),
        ({"discriminator_size": 64}, "is for timm's networks"),
        ({"drawn": 10}, "data is given"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_mistakes_are_told_in_one_sentence(teacher: Denoiser, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        gdd(teacher, **settings).measure()
    assert "\n" not in str(told.value)


def test_data_without_classes_teaches_no_classes(teacher: Denoiser, tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", images=onefold.data.load_data("digits").fetch(range(9))[0].numpy())
    with pytest.raises(UserError, match="nothing would teach it what a class looks like"):
        gdd(teacher, data=str(tmp_path / "plain.npz"))


def test_the_distance_is_to_the_data_that_is_given(teacher: Denoiser, tmp_path: Path) -> None:
    images, labels = onefold.data.load_data("digits").fetch(range(400))
    np.savez(tmp_path / "inverted.npz", images=255 - images.numpy(), labels=labels.numpy())
    gauge = gdd(teacher, data=str(tmp_path / "inverted.npz")).measure()
    assert gauge(onefold.data.to_float(255 - images)) < 1e-6 < 1 < gauge(onefold.data.to_float(images))


def test_published_settings() -> None:
    chosen = choose({"teacher": "t", "method": "gdd", "out": "x", "preset": "paper_64"})
    assert (chosen.freeze, chosen.lr, chosen.lr_discriminator, chosen.batch_size) == ("gdd_i", 2e-5, 4e-5, 256)
    assert chosen.penalty_weight == pytest.approx(1e-4 * 64**2 * 2 / 64)
    chosen = choose({"teacher": "t", "method": "gdd", "out": "x", "preset": "paper_cifar10", "freeze": "none"})
    assert chosen.penalty_weight == pytest.approx(1e-4 * 2 * ((484 + 64) / 2) ** 2 / 64, rel=1e-4)
    assert chosen.freeze == "none" and chosen.discriminator == "timm:vgg16_bn+tf_efficientnet_lite0"


# -- that it learns ----------------------------------------------------------------------------------------------------


class OnAPlane(GDD):
    """Real images drawn from the mixture that its exact teacher knows."""

    def data_rows(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        exact = self.teacher.module.exact
        return exact.draw(len(draw.rows), seeds.generator(draw.seed, draw.step))[0].float(), None


@pytest.mark.parametrize("adversarial", ["non_saturating", "relativistic"])
def test_one_call_comes_nearer_to_the_data(adversarial: str) -> None:
    """From the mean of a mixture, which is all that one call of the exact teacher knows, at least four times nearer."""
    values = {"teacher": "exact", "out": "x", "batch_size": 64, "discriminator": "scratch", "adversarial": adversarial}
    rates = {"lr": 1e-3, "lr_discriminator": 2e-3, "width": 64, "penalty_weight": 1.0}
    method = OnAPlane(plane.exact_teacher(), build(GDDSettings, {**values, **rates}))
    real = plane.CENTRED.draw(1000, seeds.generator(9))[0]

    def apart() -> float:
        student = method.sampler({"student": method.networks["student"]})
        return sliced_wasserstein(student.sample(1000, seed=1).detach(), real)

    begin = apart()
    run(method, 300, size=64)
    assert apart() < begin / 4
