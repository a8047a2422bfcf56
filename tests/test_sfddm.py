"""SFDDM against its specification: what a student begins as, what a batch does, and what it must leave alone."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pipelines
from onefold.conditions import Conditions
from onefold.denoiser import Denoiser, Gaussian
from onefold.errors import UserError
from onefold.grids import subsequence
from onefold.losses import root_mean_square
from onefold.methods import examples
from onefold.methods.chain import STRIDED
from onefold.methods.sfddm import SFDDM, SFDDMSettings
from onefold.networks.unet import build_unet, call_unet
from onefold.process import DiscreteVP, Prediction, beta_table, zero_terminal_snr
from onefold.sampling import sample
from onefold.settings import build
from onefold.targets import rollout, step_target
from onefold.teachers import load_teacher
from onefold.teachers.own import with_form
from onefold.training.contract import Batch, Draw
from toys import inputs_seen

PHI = [20, 300, 610, 1000]
LINEAR = DiscreteVP.from_betas(beta_table("linear"))
ZERO = "the loss is zero from the start"


def unet(classes: int | None = None, dropout: float = 0.0) -> Any:
    torch.manual_seed(2)
    network = build_unet((1, 8, 8), widths=(16, 32), layers=1, classes=classes, dropout=dropout)
    with torch.no_grad():
        for name, parameter in network.named_parameters():  # the time must be heard
            parameter.add_((0.3 if "time_emb_proj" in name else 0.02) * torch.randn_like(parameter))
    return network.eval().requires_grad_(False)


@pytest.fixture(autouse=True, scope="module")
def _data_is_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "load_data", functools.cache(examples.load_data))
        yield


@functools.cache
def teacher_of(
    prediction: Prediction = "v",
    process: DiscreteVP = LINEAR,
    *,
    network: Any = None,
    classes: int | None = None,
    whole: bool = False,
) -> Denoiser:
    teacher = Denoiser(
        network or unet(None if classes is None else classes + 1),
        process,
        prediction=prediction,
        shape=(1, 8, 8),
        call=call_unet,
        classes=classes,
        null=None if classes is None else {"labels": classes},
        continuous_time=not whole,
    )
    teacher.name = "tiny"
    return with_form(teacher)


def sfddm(teacher: Denoiser | None = None, **settings: Any) -> SFDDM:
    """The paper's, but for what is given."""
    published = {"preset": "paper", "data": "digits", "states": "auto", "phi": PHI, "calls": 4}
    values = {"teacher": "tiny", "out": "x", "watched": 4, "batch_size": 8, **published, **settings}
    return SFDDM(teacher or teacher_of(), build(SFDDMSettings, values))


def copied(teacher: Denoiser | None = None, **settings: Any) -> SFDDM:
    return sfddm(teacher, **{"time": "teacher", **settings})


def batch_of(method: SFDDM, step: int = 0, size: int = 8, rows: range | None = None) -> Batch:
    return Batch(step, 0.0, method.prepare(Draw(0, step, rows or range(size), size)))


def train(method: SFDDM, steps: int, size: int = 8) -> list[float]:
    """The engine's part, in short."""
    losses = []
    for index in range(steps):
        for update in method.updates(batch_of(method, index, size)):
            optimizer = method.optimizers["main"]
            for group in optimizer.param_groups:
                group["lr"] = method.settings.lr * group.get("scale", 1.0)
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()
            losses.append(float(update.loss.detach()))
    return losses


def backward(method: SFDDM, **batch: Any) -> float:
    """The loss of the first update, with its gradients."""
    method.optimizers["main"].zero_grad()
    loss = next(iter(method.updates(batch_of(method, **batch)))).loss
    loss.backward()
    return float(loss.detach())


def gradients(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def images_of(method: SFDDM, eta: float = 0.0, count: int = 4, seed: int = 5) -> Tensor:
    return method.as_student({**method.networks, "student": method.networks["student"].eval()}).sample(
        count, seed=seed, eta=eta
    )


def strided(method: SFDDM, eta: float = 0.0, count: int = 4, seed: int = 5) -> Tensor:
    """The teacher itself on the same steps."""
    grid = subsequence(method.teacher.process, list(method.strided.phi or ()))
    solver: dict[str, Any] = {"solver": "ddim", "eta": eta} if eta else {"solver": "euler"}
    images: Tensor = sample(method.teacher, count, seed=seed, grid=grid, **solver)
    return images


# --- a student that is its teacher ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction", "weight"), [("v", "output"), ("eps", "elbo"), ("x0", "truncated")])
def test_a_copy_with_the_teacher_s_time_has_nothing_to_learn(prediction: Prediction, weight: Any) -> None:
    """Invariant 6: no loss, no gradient, not even a rounding; and Adam does not move."""
    method = copied(teacher_of(prediction), weight=weight)
    before = copy.deepcopy(method.networks["student"].state_dict())
    assert backward(method) == 0
    found = gradients(method.networks["student"])
    assert len(found) > 10_000 and not found.any()
    method.optimizers["main"].step()
    after = method.networks["student"].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_copy_samples_as_its_teacher_on_the_same_steps(eta: float) -> None:
    """Invariant 6, for every eta and seed."""
    method = copied()
    for seed in (0, 7):
        assert torch.equal(images_of(method, eta, seed=seed), strided(method, eta, seed=seed))


@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_a_copy_told_its_own_index_must_learn(prediction: Prediction) -> None:
    """Invariant 6: the published code's student hears another time than its teacher."""
    method = sfddm(teacher_of(prediction))
    assert backward(method) > 1e-4 and gradients(method.networks["student"]).any()


@pytest.mark.parametrize(("prediction", "phi"), [("v", PHI), ("eps", PHI), ("x0", [250, 500, 1000]), ("v", [7])])
def test_a_folded_student_begins_where_the_paper_s_ends(prediction: Prediction, phi: list[int]) -> None:
    method = sfddm(teacher_of(prediction), begin="folded", phi=phi, calls=len(phi))
    assert method.settings.begin == "folded" and backward(method) < 1e-9
    expected = strided(method)
    assert float((images_of(method) - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("settings", "zero"),
    [
        ({"begin": "folded"}, True),
        ({"begin": "auto"}, True),
        ({"time": "teacher"}, True),
        ({"time": "teacher", "begin": "auto", "lora": 2}, True),
        ({"time": "teacher", "states": "teacher", "data": None}, True),
        ({}, False),
        ({"begin": "random"}, False),
        ({"begin": "auto", "widths": [8, 16]}, False),
        ({"begin": "folded", "parts": 4}, False),
        ({"time": "teacher", "states": "teacher", "data": None, "solver": "ipndm3"}, False),
    ],
    ids=str,
)
def test_a_note_warns_of_a_loss_that_is_zero(settings: dict[str, Any], zero: bool) -> None:
    """Where it says so it is, and elsewhere it is not."""
    method = sfddm(**settings)
    assert any(ZERO in note for note in method.notes) == zero
    assert any("our extension" in note for note in method.notes) == (method.parts > 1)
    losses = [float(update.loss.detach()) for update in method.updates(batch_of(method))]
    assert all(loss < 1e-9 for loss in losses) == zero


def test_guidance_leaves_something_to_learn_and_no_warning() -> None:
    method = copied(teacher_of(classes=10), guidance=3.0)
    assert backward(method) > 1e-6 and not any(ZERO in note for note in method.notes)


def test_all_steps_are_the_teacher_s_chain() -> None:
    """Invariant 5: phi = 1..T, whose indices are the teacher's own times."""
    process = DiscreteVP.from_betas(beta_table("linear", 8, 0.02, 0.6))
    teacher = teacher_of(process=process, whole=True)
    for method in (sfddm(teacher, phi=list(range(1, 9)), calls=8), sfddm(teacher, phi="uniform", calls=8)):
        own: Any = method.student.process
        assert torch.equal(own.alphas_cumprod, process.alphas_cumprod) and torch.equal(own.sigmas, process.sigmas)
        assert torch.equal(method.grid.sigmas[:-1].flip(0), process.sigmas)
        assert method.grid.times is not None and method.grid.times.tolist() == [7.0, 6, 5, 4, 3, 2, 1, 0]
        assert backward(method) == 0
        for eta in (0.0, 1.0):
            assert torch.equal(images_of(method, eta), strided(method, eta))


# --- its chain --------------------------------------------------------------------------------------------------------


def test_a_student_knows_its_levels_alone_by_their_number() -> None:
    method = sfddm()
    own: Any = method.student.process
    kept = LINEAR.alphas_cumprod[torch.tensor(PHI) - 1]
    assert isinstance(own, DiscreteVP) and torch.equal(own.alphas_cumprod, kept)
    assert method.grid.phi == tuple(PHI) and method.grid.times is not None
    assert method.grid.times.tolist() == [3, 2, 1, 0] and not method.student.continuous_time
    assert torch.equal(method.grid.sigmas, method.strided.sigmas) and method.strided.times is not None
    assert method.strided.times.tolist() == pytest.approx([step - 1 for step in reversed(PHI)])
    heard = times_heard(method)
    next(iter(method.updates(batch_of(method))))
    assert set(heard["student"]) == {0.0, 1, 2, 3}
    assert set(heard["teacher"]) == {step - 1.0 for step in PHI}


def times_heard(method: SFDDM) -> dict[str, list[float]]:
    """What the networks are told, filled as they are called."""
    heard: dict[str, list[float]] = {"student": [], "teacher": []}

    def listen(name: str, denoiser: Denoiser) -> None:
        call = denoiser.call

        def spy(network: Any, z: Tensor, time: Tensor, cond: Conditions) -> Tensor:
            heard[name] += [round(float(each), 3) for each in time]
            return call(network, z, time, cond)

        denoiser.call = spy

    listen("student", method.student)
    listen("teacher", method.shown)
    return heard


@pytest.mark.parametrize(("name", "phi"), [("uniform", [250, 500, 750, 1000]), ("start", [1, 251, 501, 751])])
def test_the_published_anchors(name: str, phi: list[int]) -> None:
    assert sfddm(phi=name).grid.phi == tuple(phi)


@pytest.mark.parametrize("phi", ["auto", "logsnr", "karras", "gits", "concentrated:0.5", "scattered"])
def test_named_chains_are_steps_of_the_teacher(phi: str) -> None:
    method = sfddm(phi=phi, calls=5)
    steps = list(method.grid.phi or ())
    assert len(steps) == 5 and torch.equal(method.levels.flip(0), LINEAR.sigmas[torch.tensor(steps) - 1])


class Exact(nn.Module):
    """The closed form for one Gaussian, and a parameter that an optimiser can hold."""

    def __init__(self, exact: Gaussian) -> None:
        super().__init__()
        self.exact, self.none = exact, nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        sigma = LINEAR.sigma(time.double())
        x = z * (1 + sigma**2).sqrt().to(z).reshape(-1, 1, 1, 1)
        return self.exact.closed_form(x, sigma) + self.none


def test_more_steps_are_nearer_to_the_data() -> None:
    """Invariant 7: with the exact score the student is the strided teacher, and its error falls with T'."""
    mean = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
    exact = Gaussian(mean, 0.1 + mean.abs() / 2)
    teacher = with_form(Denoiser(Exact(exact), LINEAR, prediction="x0", shape=(1, 4, 4)))
    errors = []
    for calls in (2, 4, 8, 16, 32, 64):
        method = copied(teacher, phi="uniform", calls=calls, data=None, states="teacher")
        images = images_of(method, count=16)
        assert torch.equal(images, strided(method, count=16)) and backward(method) < 1e-9
        _, states = sample(teacher, 16, seed=5, grid=method.strided, solver="euler", trajectory=True)
        errors.append(root_mean_square(images, exact.flow(states[0].double(), float(method.levels[0]), 0.0)))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1 * errors[0]


# --- its targets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "solver"), [(1, "auto"), (3, "auto"), (3, "euler")])
@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_a_batch_is_the_loss_that_is_written_out(parts: int, solver: str, loss: Any) -> None:
    method = sfddm(parts=parts, solver=solver, loss=loss, weight="truncated")
    batch = batch_of(method)
    updates = list(method.updates(batch))
    assert len(updates) == 1 and updates[0].ema and updates[0].optimizer == "main"
    images = batch["images"]
    expected = []
    for row in range(8):
        level = int(batch["host.level"][row])
        sigma = float(method.levels[level])
        x = images[row : row + 1] + sigma * batch["z"][row : row + 1]
        inner = method.parts_of_steps[level].unsqueeze(0)
        target = step_target(method.teacher, x, inner, cond={}, second_order=parts == 3 and solver == "auto")
        off = (method.student.denoise(x, sigma) - target).abs() * max(1.0, sigma**-2) ** 0.5
        expected.append((off if loss == "l1" else off**2).mean())
    assert updates[0].loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)


def test_parts_lie_between_the_student_s_levels() -> None:
    method = sfddm(parts=4, begin="auto")
    assert method.parts_of_steps.shape == (4, 5)
    assert torch.equal(method.parts_of_steps[:, 0], method.strided.sigmas[:-1])
    assert torch.equal(method.parts_of_steps[:, -1], method.strided.sigmas[1:])
    assert bool((method.parts_of_steps.diff(dim=1) < 0).all())
    whole = sfddm(teacher_of(whole=True), parts=4, begin="auto")
    inner = whole.parts_of_steps[whole.parts_of_steps > 0]
    assert bool(torch.isin(inner, LINEAR.sigmas).all())


@pytest.mark.parametrize("calls", [2, 4])
def test_all_levels_are_in_every_update(calls: int) -> None:
    """T' updates a batch on trajectories, one with data; the averages follow once."""
    phi = PHI[-calls:]
    free = sfddm(phi=phi, calls=calls, data=None, states="teacher")
    heard = times_heard(free)
    marks = []
    for update in free.updates(batch_of(free)):
        assert sorted(heard["student"]) == sorted(list(range(calls)) * (8 // calls))
        heard["student"].clear()
        marks.append(update.ema)
    assert marks == [False] * (calls - 1) + [True]
    assert len(heard["teacher"]) == 8 * calls  # a trajectory, whatever the number of updates
    told = sfddm(phi=phi, calls=calls)
    for step in range(3):
        assert sorted(batch_of(told, step)["host.level"].tolist()) == sorted(list(range(calls)) * (8 // calls))


def test_states_are_the_teacher_s_own_or_noised_data() -> None:
    free, told = (sfddm(**how, begin="random") for how in ({"data": None, "states": "teacher"}, {}))
    assert free.solver == told.solver == "euler" and free.examples is None and told.examples is not None
    seen = inputs_seen(free)
    batch = batch_of(free)
    list(free.updates(batch))
    start = free.strided.start_state(free.teacher.process, batch["z"])
    path = rollout(free.teacher, start, free.fine, 1, solver="euler", cond={})
    for turn, x in enumerate(seen):
        wanted = torch.stack([path[(row + turn) % 4][row] for row in range(8)])
        assert torch.equal(x, wanted)
    seen, batch = inputs_seen(told), batch_of(told)
    list(told.updates(batch))
    sigma = told.levels[batch["host.level"]].float().reshape(-1, 1, 1, 1)
    assert len(seen) == 1 and torch.equal(seen[0], batch["images"] + sigma * batch["z"])
    assert -1 <= batch["images"].min() and batch["images"].max() <= 1 and batch["images"].std() > 0.3


@pytest.mark.parametrize("settings", [{}, {"data": None, "states": "teacher"}, {"feature_weight": 1.0}], ids=str)
def test_micro_batches_have_the_gradient_of_the_whole(settings: dict[str, Any]) -> None:
    whole, split = (sfddm(parts=2, **settings) for _ in range(2))
    shares = [split.updates(batch_of(split, rows=range(k, k + 4))) for k in (0, 4)]
    for update, *parts in zip(whole.updates(batch_of(whole)), *shares, strict=True):
        for method, loss in ((whole, update.loss), (split, sum(part.loss for part in parts) / 2)):
            method.optimizers["main"].zero_grad()
            torch.as_tensor(loss).backward()
        first, second = (gradients(method.networks["student"]) for method in (whole, split))
        assert torch.allclose(first, second, rtol=1e-3, atol=1e-5 * float(first.abs().max()))


def test_a_row_does_not_depend_on_the_others_drawn_with_it() -> None:
    method = sfddm()
    whole, part = batch_of(method), batch_of(method, rows=range(4, 8))
    assert all(torch.equal(whole[name][4:], part[name]) for name in part.tensors)


# --- the teacher, and who learns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"data": None, "states": "teacher"}, {"feature_weight": 1.0, "widths": [8, 16], "begin": "auto"}],
    ids=str,
)
def test_training_leaves_the_teacher_and_its_gradients(settings: dict[str, Any]) -> None:
    """Invariant 13: also where its weights could be trained and its dropout be on."""
    teacher = teacher_of(network=unet(dropout=0.3))
    teacher.module.requires_grad_(True)
    before = copy.deepcopy(teacher.module.state_dict())
    method = sfddm(teacher, dropout=True, **settings)
    train(method, 2)
    after = teacher.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert not teacher.module.training and all(p.grad is None for p in teacher.module.parameters())
    held = {id(p) for group in method.optimizers["main"].param_groups for p in group["params"]}
    learning = {id(p) for network in method.networks.values() for p in network.parameters()}
    assert held == learning and not held & {id(p) for p in teacher.module.parameters()}
    assert set(method.networks) == ({"student", "projection"} if "widths" in settings else {"student"})


def test_dropout_is_the_student_s_alone_and_only_where_it_is_wished() -> None:
    teacher = teacher_of(network=unet(dropout=0.3))
    assert backward(copied(teacher)) == 0
    assert backward(copied(teacher, dropout=True)) > 1e-4


def test_training_brings_a_student_to_the_strided_teacher() -> None:
    """Invariant 12 in small: told its index, with the teacher's weights."""
    method = sfddm(batch_size=16, lr=5e-4, time_lr=5.0)
    apart = [root_mean_square(images_of(method), strided(method))]
    losses = train(method, 25, 16)
    apart.append(root_mean_square(images_of(method), strided(method)))
    assert losses[-1] < 0.5 * losses[0] and apart[1] < 0.7 * apart[0]
    again = sfddm(batch_size=16, lr=5e-4, time_lr=5.0)
    assert train(again, 3, 16) == losses[:3]


def test_what_reads_the_time_may_learn_faster() -> None:
    method = sfddm(time_lr=7.0)
    first, second = method.optimizers["main"].param_groups
    reads = {id(p) for p in method.networks["student"].time_embedding.parameters()}  # type: ignore[union-attr, operator]
    assert {id(p) for p in second["params"]} == reads and second["scale"] == 7
    assert len(first["params"]) + len(reads) == len(list(method.networks["student"].parameters()))
    assert len(sfddm(time_lr=1.0).optimizers["main"].param_groups) == 1


def test_a_table_of_indices_learns_at_the_rate_of_the_time() -> None:
    method, usual = sfddm(begin="table", time_lr=7.0), sfddm(begin="teacher")
    rows: Any = method.networks["student"].time_proj
    first, second = method.optimizers["main"].param_groups
    assert rows.weight.shape[0] == 4 and id(rows.weight) in set(map(id, second["params"])) and second["scale"] == 7
    assert id(rows.weight) not in set(map(id, first["params"]))
    assert backward(method) == pytest.approx(backward(usual), rel=1e-4)  # the same function at first
    with pytest.raises(UserError, match="begin=table is for time=index"):
        sfddm(begin="table", time="teacher")


def test_it_is_watched_beside_the_strided_teacher() -> None:
    """The first number decides what is kept: to the strided teacher for the paper's, to the fine one beyond it."""
    method = copied()
    numbers = method.validate(method.networks)
    assert list(numbers) == ["distance_to_strided", "distance_to_teacher"] and numbers["distance_to_strided"] == 0
    assert torch.equal(method.strided_images(), strided(method, seed=0))
    further = copied(parts=4)
    assert list(further.validate(further.networks)) == ["distance_to_teacher", "distance_to_strided"]
    evidence = method.evidence(method.networks, method.calls)
    assert evidence["student"] == evidence["solvers"][STRIDED] == pytest.approx(numbers["distance_to_teacher"])
    assert [label.splitlines()[0] for label, _ in method.rows(method.networks)] == ["teacher"] * 3 + ["student"]


# --- other networks ---------------------------------------------------------------------------------------------------


def test_random_weights_follow_the_seed() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (sfddm(begin="random", seed=seed).networks["student"] for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    rows = zip(one.parameters(), same.parameters(), other.parameters(), teacher_of().module.parameters(), strict=True)
    matrices = [row for row in rows if row[0].ndim > 1]
    assert all(torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, t) for a, b, c, t in matrices)
    assert all(p.requires_grad for p in one.parameters())


@pytest.mark.parametrize(("change", "fewer"), [({"widths": [8, 16]}, True), ({"layers": 2}, False)], ids=str)
def test_students_of_other_sizes(change: dict[str, Any], fewer: bool) -> None:
    method = sfddm(begin="auto", lr=1e-3, **change)
    own, teacher = (sum(p.numel() for p in network.parameters()) for network in (method.student.module, unet()))
    assert (own < teacher) == fewer and method.student.card["parameters"] == own
    before = backward(method)
    train(method, 4)
    assert backward(method) < before and images_of(method).shape == (4, 1, 8, 8)


def test_adapters_learn_beside_the_teacher_s_weights_and_time() -> None:
    method = copied(lora=2, parts=3, begin="auto", lr=1e-2)
    before = copy.deepcopy(method.teacher.module.state_dict())
    assert float((images_of(method) - strided(method)).abs().max()) < 1e-5
    losses = train(method, 6)
    after = method.teacher.module.state_dict()
    assert min(losses[1:]) < losses[0] and all(torch.equal(before[key], after[key]) for key in before)
    assert float((images_of(method) - strided(method)).abs().max()) > 1e-4
    assert method.as_student(method.networks).adapter is not None


def test_guidance_is_folded_in() -> None:
    """The student that is told its class alone learns what the guided teacher shows."""
    method = copied(teacher_of(classes=10), guidance=2.0, lr=2e-3)
    batch = batch_of(method)
    assert batch.conditions.keys() == {"labels"} and len(set(batch.conditions["labels"].tolist())) > 1
    assert set(batch.conditions["labels"].tolist()) <= set(range(10))
    x, level = batch["z"], torch.tensor([0, 1, 2, 3] * 2)
    guided = method.teacher.replace(guidance=2.0).denoise(x, method.levels[level], batch.conditions)
    assert torch.equal(method.aim(x, level, batch.conditions), guided)
    assert not torch.allclose(method.teacher.denoise(x, method.levels[level], batch.conditions), guided, atol=1e-3)
    list(method.updates(batch))
    assert method.student.guidance == 1 and method.student.calls == 1


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [None, [8, 16]])
def test_features_teach_the_student_alone(widths: list[int] | None) -> None:
    """The published code's second term: the input of the last convolution, through a linear map where the widths differ."""
    method = sfddm(teacher_of(network=unet()), feature_weight=0.5, begin="auto" if widths else "random", widths=widths)
    batch, seen = batch_of(method), {}
    for name, network in (("teacher", method.teacher.module), ("student", method.student.module)):
        network.conv_out.register_forward_pre_hook(  # type: ignore[union-attr, operator]
            lambda _, given, name=name: seen.update({name: given[0]})
        )
    update = next(iter(method.updates(batch)))
    assert ("projection" in method.networks) == (widths is not None)
    student = method.networks["projection"](seen["student"]) if widths else seen["student"]
    apart = (student - seen["teacher"]).abs().mean()
    assert update.logs["loss_features"].item() == pytest.approx(apart.item())
    assert update.loss.item() == pytest.approx(update.logs["loss_output"].item() + 0.5 * apart.item())
    update.logs["loss_features"].backward()
    assert gradients(method.networks["student"]).any() and all(
        p.grad is None for p in method.teacher.module.parameters()
    )
    assert not seen["teacher"].requires_grad and method.networks["student"].conv_out.weight.grad is None  # type: ignore[union-attr]
    if widths:
        again = sfddm(feature_weight=0.5, begin="auto", widths=widths).networks["projection"]
        assert torch.equal(again.weight, method.networks["projection"].weight)  # type: ignore[arg-type]
        assert gradients(method.networks["projection"]).any()
        assert "projection" not in method.as_student(method.networks).denoiser.module._modules


def test_features_of_a_copy_are_its_teacher_s() -> None:
    method = copied(feature_weight=1.0)
    assert backward(method) == 0 and not gradients(method.networks["student"]).any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conv_outt", "no layer 'conv_outt' .*did you mean 'conv_out'"),
        ("conv_norm_out", "features=conv_norm_out is a GroupNorm; name a Conv2d"),
        ("", "no layer ''"),
    ],
)
def test_layers_that_give_no_features(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sfddm(feature_weight=1.0, features=name)


# --- latents and texts ------------------------------------------------------------------------------------------------


def test_latents(tmp_path: Path) -> None:
    """With data its images are encoded; without, trajectories lie among latents."""
    pipelines.latent_pipeline().save_pretrained(tmp_path / "t")
    teacher = load_teacher(tmp_path / "t", device="cpu")
    free = sfddm(teacher, data=None, states="teacher", batch_size=2)
    assert train(free, 1, 2)[-1] > 0 and images_of(free, count=2).shape == (2, *teacher.image_shape)
    codec: Any = teacher.codec
    told = sfddm(teacher, data=str(pictures(tmp_path, codec.shape)), batch_size=2)
    seen, batch = inputs_seen(told), batch_of(told, size=2)
    assert tuple(batch["images"].shape[1:]) == codec.shape
    list(told.updates(batch))
    noise = told.levels[batch["host.level"]].float().reshape(-1, 1, 1, 1) * batch["z"]
    assert torch.allclose(seen[0], codec.latents(batch["images"]) + noise, atol=1e-5)


def pictures(folder: Path, shape: tuple[int, ...]) -> Path:
    import numpy as np

    channels, height, width = shape
    images = np.random.default_rng(0).integers(0, 256, (4, height, width, channels), dtype=np.uint8)
    np.savez(folder / "pictures.npz", images=images)
    return folder / "pictures.npz"


def test_texts_come_without_data(tmp_path: Path) -> None:
    texts = [f"a {word}" for word in ("cat", "dog", "boat", "hat", "tree", "lake")]
    pipelines.text_pipeline(tmp_path / "words").save_pretrained(tmp_path / "t")
    teacher = load_teacher(tmp_path / "t", device="cpu").with_prompts(texts)
    method = sfddm(teacher, data=None, states="teacher", begin="folded", batch_size=2, watched=2)
    batch = batch_of(method, size=2)
    assert batch.conditions and all(float(u.loss.detach()) < 1e-7 for u in method.updates(batch))
    with pytest.raises(UserError, match="is told a text with each image, and data has none"):
        sfddm(teacher, batch_size=2, watched=2)


# --- presets and mistakes ---------------------------------------------------------------------------------------------


def chosen(**settings: Any) -> SFDDMSettings:
    return build(SFDDMSettings, {"teacher": "x", "out": "y", "data": "digits", **settings})


def test_presets_hold_the_published_settings() -> None:
    """1.8 of the specification; what is given besides comes first."""
    paper, official = chosen(preset="paper"), chosen(preset="official")
    assert (paper.phi, paper.time, paper.begin, paper.parts, paper.states) == ("uniform", "index", "teacher", 1, "data")
    assert (paper.loss, paper.weight, paper.feature_weight) == ("l2", "output", 0)
    assert (paper.ema_half_life, paper.ema_share) == (None, None)
    assert (official.phi, official.time, official.begin, official.parts) == ("start", "index", "random", 1)
    assert (official.loss, official.weight, official.feature_weight) == ("l1", "output", 1)
    assert (official.features, official.lr, official.schedule, official.batch_size) == (
        "conv_out",
        2e-4,
        "constant",
        50,
    )
    assert (official.dropout, official.clip, official.ema_half_life) == (True, 0, None)
    mine = chosen(preset="official", lr=1e-3, begin="teacher", feature_weight=0.0)
    assert (mine.lr, mine.begin, mine.feature_weight, mine.loss) == (1e-3, "teacher", 0, "l1")
    usual = chosen()
    assert (usual.phi, usual.time, usual.beginning, usual.parts) == ("auto", "index", "folded", 4)
    assert sfddm(preset="official", phi="start").averaged == () and sfddm(ema_share=0.05).averaged == ("student",)
    with pytest.raises(UserError, match="unknown preset 'papr'; did you mean 'paper'"):
        chosen(preset="papr")


def test_the_official_preset_learns() -> None:
    method = sfddm(preset="official", phi="start", batch_size=8, lr=2e-3)
    losses = train(method, 5)
    assert losses[-1] < losses[0] and method.learning_rate("main", 0, 0.9) == 2e-3
    assert method.networks["student"].training and method.grid.phi == (1, 251, 501, 751)


def test_rates_fall_as_chosen() -> None:
    rates = [
        [sfddm(schedule=name, lr=1e-3).learning_rate("main", 0, progress) for progress in (0.0, 0.5, 1.0)]
        for name in ("constant", "linear", "cosine")
    ]
    assert rates == [[1e-3] * 3, pytest.approx([1e-3, 5e-4, 0]), pytest.approx([1e-3, 5e-4, 0])]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phi": [300, 20, 610, 1000]}, "step 20 follows step 300"),
        ({"phi": [20, 20, 610, 1000]}, "step 20 follows step 20"),
        ({"phi": [20, 300, 610, 1001]}, "step 1001 lies beyond the teacher's 1000"),
        ({"phi": [0, 300, 610, 1000]}, "a step of the sub-sequence is 0"),
        ({"phi": [20, 300.5, 610, 1000]}, "a step of the sub-sequence is 300.5"),
        ({"phi": PHI, "calls": 3}, "has 4 steps, but calls is 3"),
        ({"phi": []}, "is empty"),
        ({"phi": "unifrom"}, "unknown sub-sequence 'unifrom'; did you mean 'uniform'"),
        ({"phi": "uniform", "calls": 1001}, "1001 steps do not fit into the teacher's 1000"),
        ({"levels": 100}, "'tiny' has a table of 1000 steps of its own; leave levels out"),
        ({"data": None, "states": "data"}, "states=data needs images"),
        ({"states": "teacher"}, "states=teacher needs no data, and 'digits' is given"),
        ({"data": None, "flip": True}, "flip mirrors data"),
        ({"data": "digit"}, "there is no data 'digit'"),
        ({"parts": 2, "solver": "heun"}, "solver 'heun' adds noise or makes two calls"),
        ({"parts": 2, "solver": "ancestral"}, "solver 'ancestral' adds noise"),
        ({"parts": 2, "solver": "ipndm3"}, "solver 'ipndm3' goes on from its own earlier steps"),
        ({"solver": "eulr"}, "unknown solver 'eulr'; did you mean 'euler'"),
        ({"weight": "snr"}, "weight='snr' does not fit"),
        ({"widths": [8, 16]}, "begin=teacher takes the teacher's weights"),
        ({"begin": "folded", "layers": 2}, "begin=folded takes the teacher's weights"),
        ({"begin": "auto", "widths": [8]}, r"widths are \[8\]; the teacher has \[16, 32\]"),
        ({"begin": "auto", "widths": [8, 12]}, r"widths are \[8, 12\].*multiples of 8"),
        ({"begin": "auto", "widths": [8, 0]}, r"widths are \[8, 0\]"),
        ({"time": "teacher", "begin": "folded"}, "begin=folded is for time=index"),
        ({"lora": 2}, "lora trains beside the teacher's own weights and time"),
        ({"lora": 2, "time": "teacher", "begin": "random"}, "lora trains beside"),
        ({"lora": 2, "time": "teacher", "begin": "auto", "widths": [8, 16]}, "lora trains beside"),
        ({"feature_weight": 1.0, "compile": True}, "compiled networks do not have"),
        ({"feature_weight": 1.0, "guidance": 2.0}, "set feature_weight=0 or guidance=1"),
        ({"feature_weight": 1.0, "lora": 2, "time": "teacher", "begin": "auto"}, "set feature_weight=0 or lora=0"),
        ({"guidance": 2.0}, "guidance is 2, but 'tiny' knows no images without a condition"),
        ({"calls": 0}, "calls=0 does not fit"),
        ({"parts": 0}, "parts=0 does not fit"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_get_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        sfddm(**settings)
    assert "\n" not in str(error.value)


def test_a_table_needs_a_level_with_signal() -> None:
    table = zero_terminal_snr((1 - beta_table("linear")).cumprod(0))
    teacher = teacher_of(process=DiscreteVP(table))
    with pytest.raises(UserError, match="set time=teacher"):
        sfddm(teacher, phi="uniform", calls=1, begin="auto")
    assert math.isinf(float(sfddm(teacher, phi="uniform", calls=1, begin="auto", time="teacher").grid.sigmas[0]))


def test_parts_that_a_teacher_of_few_steps_has_not() -> None:
    whole = teacher_of(process=DiscreteVP.from_betas(beta_table("linear", 8)), whole=True)
    method = sfddm(whole, phi="uniform", calls=2, parts=4, begin="auto")
    assert method.fine.phi == tuple(range(1, 9)) and method.fine_way["calls"] == 8
    assert STRIDED in method.controls(2) and method.validate(method.networks)
    with pytest.raises(UserError, match="parts=3 steps in each .* set parts=1"):
        sfddm(whole, phi="uniform", calls=4, parts=3, begin="auto")


def test_data_without_the_teacher_s_classes(tmp_path: Path) -> None:
    source, teacher = str(pictures(tmp_path, (1, 8, 8))), teacher_of(classes=4)
    assert any("without a class alone" in note for note in sfddm(teacher, data=source).notes)
    with pytest.raises(UserError, match="nothing is guided"):
        sfddm(teacher, data=source, guidance=2.0)


def test_data_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"6"):
        sfddm(data=str(pictures(tmp_path, (1, 6, 6))))


def test_the_caller_s_list_stays() -> None:
    mine = list(PHI)
    method = sfddm(phi=mine)
    assert mine == PHI and method.grid.phi == tuple(mine)
    with pytest.raises(UserError, match="step 3 follows"):
        sfddm(phi=(wrong := [9, 3]), calls=2)
    assert wrong == [9, 3]
