"""SFD-v: one student for several numbers of calls, from its settings over a batch to its folder, its commands and its exports."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import onefold
import small
from onefold import seeds
from onefold.bench.compare import compare
from onefold.cli import distill as commands
from onefold.cli import main
from onefold.conditions import Conditions
from onefold.distilling import choose, distill, plan
from onefold.errors import UserError
from onefold.files import sha256
from onefold.methods import base
from onefold.methods.sfd import PUBLISHED_TOGETHER, SFD, SFDSettings
from onefold.networks.step_condition import StepCondition
from onefold.sampling import sample
from onefold.settings import build
from onefold.student import Student, load_student
from onefold.teachers import load_teacher
from onefold.teachers.own import with_form
from onefold.training.contract import Draw
from onefold.training.ema import Averages
from onefold.training.loop import Engine
from onefold.variants import FILE
from plane import OVERLAPPING, SHIFTED, TOLD, batch_of, end_distance, exact_teacher, gradient, sfd, small_network, train
from test_export import sample_elsewhere

COUNTS = [2, 3, 5]
QUICK = ("--budget", "64", "--batch-size", "16", "--device", "cpu", "--set", "watched=3", "--set", "lr=0.01")
OWN: dict[str, Any] = {
    "calls": [1, 2, 3],
    "step_layers": ["inner.0"],
    "budget": "96",
    "batch_size": 16,
    "watched": 2,
    "device": "cpu",
    "lr": 1e-2,
}


@pytest.fixture(scope="module", autouse=True)
def untuned() -> Iterator[None]:
    """Controls on usual grids alone: tuning one takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "MOST_TUNED", 0)
        yield


def several(**settings: Any) -> SFD:
    """On a teacher in the plane whose correction says something."""
    correction = small_network()
    torch.nn.init.normal_(correction[-1].weight, std=0.1, generator=seeds.generator(7))
    return sfd(exact_teacher(SHIFTED, correction), **{"calls": COUNTS, "step_layers": list(TOLD), **settings})


def condition(method: SFD) -> StepCondition:
    network = method.networks["student"]
    assert isinstance(network, StepCondition)
    return network


def spread(method: SFD) -> SFD:
    """With a step condition that says something."""
    for number, row in enumerate(condition(method).rows.values()):
        torch.nn.init.normal_(row.weight, std=0.3, generator=seeds.generator(number))
    return method


def chosen(**settings: Any) -> SFDSettings:
    return build(SFDSettings, {"teacher": "digits8", "out": "x", **settings})


# --- where it begins --------------------------------------------------------------------------------------------------


def test_for_every_number_it_begins_as_its_teacher() -> None:
    """V1: bit for bit; with the official start it does not."""
    x = torch.randn(16, 2, generator=seeds.generator(0))
    zero, official = several(), several(step_init="official")
    for calls in COUNTS:
        for method in (zero, official):
            condition(method).told(calls)
        for sigma in (0.01, 0.7, 20.0):
            expected = zero.teacher.denoise(x * sigma, sigma)
            assert torch.equal(zero.student.denoise(x * sigma, sigma), expected)
            assert not torch.allclose(official.student.denoise(x * sigma, sigma), expected, atol=1e-4)


@pytest.mark.parametrize("walk", ["own", "teacher", "through"])
@pytest.mark.parametrize(("step", "calls"), list(enumerate(COUNTS)))
def test_the_first_batch_of_a_number_has_the_losses_of_a_student_of_it_alone(step: int, calls: int, walk: Any) -> None:
    """V1: at all of its steps, bit for bit."""
    together, alone = several(walk=walk), several(calls=calls, step_layers=None, walk=walk)
    ours, theirs = (list(method.updates(batch_of(method, step))) for method in (together, alone))
    assert len(ours) == len(theirs) == (1 if walk == "through" else calls)
    assert all(torch.equal(a.loss, b.loss) and float(a.loss.detach()) > 0 for a, b in zip(ours, theirs, strict=True))
    assert [update.ema for update in ours] == [update.ema for update in theirs]


def test_a_student_of_one_number_has_no_step_condition() -> None:
    """Nor where the one number comes as a list."""
    assert chosen(calls=[3]) == chosen(calls=3)
    method = several(calls=[3], step_layers=None)
    assert not any(isinstance(module, StepCondition) for module in method.networks["student"].modules())
    assert not method.notes and not method.sampler(method.networks).variants
    told = several().notes
    assert len(told) == 1 and told[0].startswith("step condition for 2, 3, 5 calls at 2 layers")


def test_its_grids_and_those_of_its_teacher_are_those_of_students_of_one_number() -> None:
    together = several()
    assert list(together.grids) == COUNTS and together.calls == max(COUNTS)
    for calls in COUNTS:
        alone = several(calls=calls, step_layers=None)
        assert together.courses[calls].grid == alone.grid and together.grids[calls] == alone.grid
        assert together.courses[calls].fine == alone.courses[calls].fine


# --- a batch ----------------------------------------------------------------------------------------------------------


def heard(method: SFD) -> list[tuple[int | None, float]]:
    """(the number that the network is told, the level) of each call of the student, filled as it is asked."""
    seen, denoise, network = list[tuple[int | None, float]](), method.student.denoise, condition(method)

    def spy(x: Tensor, sigma: float | Tensor, cond: Conditions | None = None) -> Tensor:
        seen.append((network.calls, float(sigma)))
        return denoise(x, sigma, cond)

    method.student.denoise = spy  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("afs", [None, "ve"])
def test_numbers_take_turns_by_the_step(afs: Any) -> None:
    """V2: a trajectory keeps its number, and walks that one's levels."""
    method = several(afs=afs)
    seen = heard(method)
    for step, calls in enumerate([*COUNTS, *COUNTS, COUNTS[0]]):
        seen.clear()
        updates = list(method.updates(batch_of(method, step)))
        levels = method.grids[calls].sigmas.tolist()[afs is not None : -1]
        assert seen == [(calls, level) for level in levels] and len(updates) == calls
        assert [update.ema for update in updates] == [False] * (calls - 1) + [True]
        assert all(name.startswith(f"loss_of_{calls}_") for update in updates for name in update.logs)


def test_the_number_is_of_the_step_alone() -> None:
    """V2: not of the seed, the rows or what came before: processes, micro-batches and runs that go on agree."""
    one, other = several(), several(seed=5)
    list(one.updates(batch_of(one, 3)))
    assert [one.turn(step) for step in range(7)] == [other.turn(step) for step in range(7)] == [2, 3, 5, 2, 3, 5, 2]


@pytest.mark.parametrize("step", range(3))
def test_micro_batches_have_the_gradient_of_the_whole(step: int) -> None:
    """V2, T5: shares in lockstep are of the same number."""
    whole, split = spread(several()), spread(several())
    shares = [split.updates(batch_of(split, step, 12, range(k, k + 4))) for k in (0, 4, 8)]
    for update, *parts in zip(whole.updates(batch_of(whole, step, 12)), *shares, strict=True):
        for method, loss in ((whole, update.loss), (split, sum(part.loss for part in parts) / 3)):
            method.optimizers["main"].zero_grad()
            torch.as_tensor(loss).backward()
        assert torch.allclose(gradient(whole), gradient(split), rtol=1e-3, atol=1e-5)
        for method in (whole, split):
            method.optimizers["main"].step()


def test_all_weights_of_the_step_condition_learn() -> None:
    method = several()
    before = {name: value.clone() for name, value in condition(method).state_dict().items()}
    train(method, 6)
    after = condition(method).state_dict()
    own = [name for name in after if name.startswith(("mlp.", "rows."))]
    assert len(own) == 6 and not any(torch.equal(before[name], after[name]) for name in own)


# --- what comes of it -------------------------------------------------------------------------------------------------


def test_each_number_is_sampled_with_its_own_row_on_its_own_grid() -> None:
    """V2: what the student folds into biases is what the network was told in training."""
    method = spread(several())
    student = method.sampler(method.networks)
    assert student.counts == COUNTS and student.calls == 5
    noise = torch.randn(8, 2, generator=seeds.generator(1))
    drawn = {}
    for calls in COUNTS:
        told = method.student.replace(network=condition(method))
        condition(method).told(calls)
        expected = sample(told, 8, solver="euler", grid=method.grids[calls], afs=method.afs, noise=noise)
        drawn[calls] = student.sample(8, calls=calls, noise=noise)
        assert torch.allclose(drawn[calls], expected, atol=1e-5)
        for other in {*COUNTS} - {calls}:
            condition(method).told(other)
            wrong = sample(told, 8, solver="euler", grid=method.grids[calls], afs=method.afs, noise=noise)
            assert not torch.allclose(drawn[calls], wrong, atol=1e-2)
    assert torch.equal(student.sample(8, noise=noise), drawn[5])


def test_a_student_of_one_of_the_numbers_is_an_ordinary_one() -> None:
    method = spread(several())
    student = method.sampler(method.networks)
    network = {name: value.clone() for name, value in student.denoiser.module.state_dict().items()}
    for calls in COUNTS:
        one = student.at(calls)
        assert (one.calls, one.counts, dict(one.variants)) == (calls, [calls], {})
        assert one.grid == method.grids[calls] and one.at(calls) is one
        before, images = student.denoiser.calls, student.sample(4, calls=calls)
        assert student.denoiser.calls - before == calls
        assert torch.equal(one.sample(4), images)
        with pytest.raises(UserError, match=f"makes {calls} calls, not 7; distil another one for 7"):
            one.sample(1, calls=7)
    assert all(torch.equal(value, network[name]) for name, value in student.denoiser.module.state_dict().items())


def test_its_variants_share_all_but_their_biases() -> None:
    student = several().sampler(several().networks)
    one, most = (dict(student.at(calls).denoiser.module.named_parameters()) for calls in (2, 5))
    own = {f"{name}.bias" for name in TOLD}
    assert set(student.variants[2].tensors) == own
    assert all((one[name] is most[name]) == (name not in own) for name in most)


def test_other_numbers_are_refused() -> None:
    student = several().sampler(several().networks)
    for ask in (lambda calls: student.sample(1, calls=calls), student.at):
        for calls in (7, 4, 0):
            with pytest.raises(
                UserError, match=f"makes 2 or 3 or 5 calls, not {calls}; distil another one for {calls}"
            ):
                ask(calls)
    assert repr(student).startswith("<student exact: 2 or 3 or 5 calls")


def test_averaged_weights_are_folded_for_each_number() -> None:
    method = spread(several(ema_half_life=32.0))
    averages = Averages({"student": method.networks["student"]}, 32.0, None)
    for row in condition(method).rows.values():
        row.weight.data.mul_(3)
    averages.update(32, 32)
    half = spread(several())
    for row in condition(half).rows.values():
        row.weight.data.mul_(2)
    ours, expected = method.sampler(averages.networks), half.sampler(half.networks)
    for calls in COUNTS:
        assert torch.allclose(ours.sample(4, calls=calls), expected.sample(4, calls=calls), atol=1e-4)
        assert not torch.allclose(
            ours.sample(4, calls=calls), method.sampler(method.networks).sample(4, calls=calls), atol=1e-2
        )


# --- what it is worth -------------------------------------------------------------------------------------------------


def test_the_number_that_it_is_told_matters() -> None:
    """V2b in small: the right row comes at least twice as near to the teacher as a wrong one."""
    method = sfd(exact_teacher(OVERLAPPING), calls=[1, 3], step_layers=list(TOLD), afs="vp", lr=5e-3, end="sigma_min")
    untrained = {calls: end_distance(method, calls) for calls in (1, 3)}
    train(method, 250)
    for calls, other in ((1, 3), (3, 1)):
        right, wrong = end_distance(method, calls), end_distance(method, calls, told=other)
        assert right < 0.5 * wrong and right < 0.4 * untrained[calls]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_student_for_four_numbers_is_as_good_as_four() -> None:
    """V2b: as near to the teacher as students of one number with as many batches of it; wrong rows are far off."""
    counts, steps = [2, 3, 4, 5], 3000
    how: dict[str, Any] = {"afs": "vp", "lr": 5e-3, "end": "sigma_min"}
    method = sfd(exact_teacher(SHIFTED), calls=counts, step_layers=list(TOLD), **how)
    train(method, steps)
    far = 0
    for calls in counts:
        right = end_distance(method, calls)
        wrong = [end_distance(method, calls, told=other) for other in counts if other != calls]
        assert right < min(wrong)
        far += sum(right <= 0.5 * one for one in wrong)
        alone = sfd(exact_teacher(SHIFTED), calls=calls, **how)
        train(alone, steps // len(counts))
        assert right < 1.5 * end_distance(alone)
    assert far >= 10  # of 12


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"calls": [2, 2]}, r"calls is \[2, 2\], expected different numbers of 1 or more, such as 2,3,4,5"),
        ({"calls": [0, 3]}, r"calls is \[0, 3\], expected different numbers of 1 or more"),
        ({"calls": [-1, 3]}, r"calls is \[-1, 3\], expected different numbers of 1 or more"),
        ({"calls": []}, r"calls is \[\], expected different numbers of 1 or more"),
        ({"calls": ["a"]}, r"calls is \['a'\], expected different numbers of 1 or more"),
        ({"calls": [2, 2.5]}, r"calls is \[2, 2.5\], expected different numbers"),
        ({"calls": [True, 2]}, r"calls is \[True, 2\], expected different numbers"),
        ({"calls": [[2], 3]}, r"calls is \[\[2\], 3\], expected different numbers"),
        ({"calls": [2, 20_000]}, "calls=20000 does not fit: it should be less than or equal to 10000"),
        ({"calls": 2, "also": [3]}, "calls is 2, but also has 3; give the largest number as calls"),
        ({"calls": 3, "also": [3]}, r"also is \[3\], expected different numbers .* and not calls=3 again"),
        ({"calls": 3, "also": [1, 1]}, r"also is \[1, 1\], expected different numbers"),
        ({"calls": 3, "also": [0]}, r"also is \[0\], expected different numbers of 1 or more"),
        ({"calls": [2, 3], "lora": 4}, "lora adapts a student of one number of calls; leave lora or the further"),
        (
            {"calls": 3, "step_layers": ["a"]},
            "step_init and step_layers are for several numbers of calls; give --calls",
        ),
        ({"calls": 3, "step_init": "official"}, "step_init and step_layers are for several numbers of calls"),
        ({"calls": [2, 3], "step_init": "ones"}, "step_init='ones' does not fit: it should be 'zero' or 'official'"),
        ({"method": "sfddm", "calls": [2, 3]}, "this method makes a student of one number of calls; give one, or take"),
        ({"method": "progressive", "calls": [2, 4]}, "this method makes a student of one number of calls"),
        ({"method": "sfd_second", "calls": [1, 2]}, "this method makes a student of one number of calls"),
        (
            {"method": "sfddm", "step_layers": ["a"]},
            "method 'sfddm' has no setting 'step_layers'; leave it out, or use",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        choose({"teacher": "digits8", "out": "x", **settings})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"step_layers": ["nowhere"]}, "the network has no linear layer with a bias called nowhere .* set step_layers"),
        ({"step_layers": ["correction.0", "nowhere"]}, "called nowhere that could hear"),
        ({"step_layers": []}, "set step_layers"),
        ({"step_layers": None}, "set step_layers: name linear layers by the ends of their names, of: "),
        (
            {"grid": [80.0, 5.0, 1.0, 0.2, 0.1, 0.05, 0.006]},
            "grid is a list of 7 levels, which fits one number of calls, not 3; name a schedule",
        ),
    ],
    ids=str,
)
def test_teachers_and_grids_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        several(**settings)


# --- runs -------------------------------------------------------------------------------------------------------------


def own_run(out: Path, **settings: Any) -> Student:
    return distill("small:teacher", "sfd", out=out, **{**OWN, **settings})


def weights_of(student: Student) -> dict[str, Tensor]:
    variants = {
        f"{n}/{name}": value for n, variant in student.variants.items() for name, value in variant.tensors.items()
    }
    return {**student.denoiser.module.state_dict(), **variants}


def test_stopping_and_going_on_is_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two numbers, with averaged weights, also in micro-batches."""
    how = {"checkpoint_every": "16", "ema_half_life": 32.0, "micro_batches": 2}
    straight = own_run(tmp_path / "straight", **how)
    for stop_at in (1, 4):
        step = Engine.train_step

        def stop(self: Engine, drawn: Any, at: int = stop_at, step: Callable[..., None] = step) -> None:
            if self.step == at:
                raise KeyboardInterrupt
            step(self, drawn)

        monkeypatch.setattr(Engine, "train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            own_run(tmp_path / f"halved{stop_at}", **how)
        monkeypatch.undo()
        a, b = weights_of(straight), weights_of(own_run(tmp_path / f"halved{stop_at}", **how))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["1/inner.0.bias"], a["2/inner.0.bias"])


def test_averages_of_a_long_half_life_stay_with_the_teacher(tmp_path: Path) -> None:
    student = own_run(tmp_path / "run", ema_half_life=1e12)
    for calls in (1, 2, 3):
        one = student.at(calls)
        begun = sample(small.teacher(), 4, **one.way)
        assert torch.allclose(one.sample(4), begun, atol=1e-4)
    assert not torch.allclose(own_run(tmp_path / "plain").sample(4), begun, atol=1e-2)


def test_a_student_of_one_s_own_network_comes_back(tmp_path: Path) -> None:
    student = own_run(tmp_path / "run")
    again = load_student(tmp_path / "run", teacher="small:teacher", device="cpu")
    assert all(torch.equal(again.sample(3, calls=n), student.sample(3, calls=n)) for n in (1, 2, 3))
    assert student.recipe["cost"]["calls"] == {"teacher": 32 * 2 * (2 + 3 + 4), "student": 32 * (1 + 2 + 3)}


def test_what_a_longer_run_cost_is_of_whole_rounds(tmp_path: Path) -> None:
    """Of which the first few steps would be no mean: 1, 2, 3, 1, 2."""
    cost = own_run(tmp_path / "run", budget="192").recipe["cost"]
    assert cost["calls"] == {"teacher": 192 * 2 * 3, "student": 192 * 2}


def test_a_number_that_lacks_what_others_have_is_told(tmp_path: Path) -> None:
    own_run(tmp_path / "run", step_layers=["inner.0", "inner.2"], budget="16")
    folder = tmp_path / "run" / "student"
    tensors = load_file(folder / FILE)
    for lost in ({"2/inner.2.bias"}, {"2/inner.0.bias", "2/inner.2.bias"}):
        write_tensors({name: value for name, value in tensors.items() if name not in lost}, folder)
        with pytest.raises(UserError, match=r"lacks inner\.[02]\.bias for 2 calls; restore it"):
            load_student(tmp_path / "run", teacher="small:teacher", device="cpu")


def test_a_changed_set_of_numbers_is_another_run(tmp_path: Path) -> None:
    own_run(tmp_path / "run", budget="16")
    for changed in ({"calls": [1, 3]}, {"calls": 3, "step_layers": None}):
        with pytest.raises(UserError, match="holds a run with other settings .*also"):
            own_run(tmp_path / "run", budget="16", **changed)


def test_a_plan_is_of_all_numbers() -> None:
    """Whole rounds are watched, or the mean would be that of the first few."""
    for counts in ([2, 3], [1, 2, 6]):
        outlook = plan("small:teacher", "sfd", **{**OWN, "calls": counts, "afs": None, "parts": 3})
        mean = sum(counts) / len(counts)
        assert outlook.images == 96 and outlook.calls == {"teacher": 3 * mean, "student": mean}


# --- folders and commands ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """By the command, and what it printed; a high rate, so that its numbers differ."""
    out, said = tmp_path_factory.mktemp("several") / "digits23", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["distill", "digits8", "--calls", "3,2", *QUICK, "--out", str(out)]) == 0
    return out, said.getvalue()


@pytest.fixture(scope="module")
def run(made: tuple[Path, str]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def student(run: Path) -> Student:
    return load_student(run, device="cpu")


def test_saving_and_loading_keeps_every_number_bit_for_bit(student: Student, tmp_path: Path) -> None:
    """V2, P1."""
    student.save(tmp_path / "copy")
    again = load_student(tmp_path / "copy", device="cpu")
    assert again.counts == student.counts == [2, 3] and again.calls == 3 and again.recipe == student.recipe
    images = {calls: student.sample(4, seed=7, calls=calls) for calls in (2, 3)}
    assert all(torch.equal(again.sample(4, seed=7, calls=calls), images[calls]) for calls in (2, 3))
    assert torch.equal(again.sample(4, seed=7), images[3])
    assert again.at(2).grid == student.at(2).grid != student.grid
    two, three = student.at(2).denoiser.module.state_dict(), student.denoiser.module.state_dict()
    assert sum(not torch.equal(two[name], three[name]) for name in three) == 8  # or nothing was told apart


def test_a_student_of_whole_times_comes_back(tmp_path: Path) -> None:
    """Each number has steps of its own, of which its folder's card names the largest's."""
    teacher = load_teacher("digits8", device="cpu").replace(continuous_time=False)
    method = SFD(teacher, chosen(calls=[2, 3]))
    student = replace(method.as_student(method.networks), picture=Image.new("L", (1, 1)))
    student.save(tmp_path / "student")
    again = load_student(tmp_path / "student", device="cpu")
    phi = {calls: again.at(calls).grid.phi for calls in (2, 3)}
    assert None not in phi.values() and phi == {calls: method.grids[calls].phi for calls in (2, 3)}


def test_one_of_its_numbers_is_saved_and_loaded_alone(student: Student, tmp_path: Path) -> None:
    for calls in (2, 3):
        one = student.at(calls)
        one.save(tmp_path / str(calls))
        alone = load_student(tmp_path / str(calls), device="cpu")
        assert (alone.counts, alone.calls) == ([calls], calls) and not (tmp_path / str(calls) / FILE).exists()
        assert torch.equal(alone.sample(4, seed=7), student.sample(4, seed=7, calls=calls))
        assert alone.recipe["evidence"] == student.recipe["by_calls"][str(calls)] and "by_calls" not in alone.recipe
        page = (tmp_path / str(calls) / "README.md").read_text()
        assert f"`digits8` in {calls} network calls" in page and "by the same" not in page


def test_the_evidence_is_of_each_number(student: Student) -> None:
    """Its own distance, beside solvers of as many calls."""
    teacher = load_teacher("digits8", device="cpu")
    fine = sample(teacher, 3, solver="dpmpp3m_exact", calls=64)
    for calls in (2, 3):
        told = student.recipe["by_calls"][str(calls)]
        off = (student.sample(3, calls=calls) - fine).square().mean().sqrt()
        assert told["student"] == pytest.approx(float(off), rel=1e-3)
        solver = (sample(teacher, 3, solver="euler", calls=calls) - fine).square().mean().sqrt()
        assert told["solvers"]["euler"] == pytest.approx(float(solver), rel=1e-3)
    assert student.recipe["evidence"] == student.recipe["by_calls"]["3"]


def test_the_log_has_a_distance_for_each_number(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    looks = [row["validation"] for row in rows if "validation" in row]
    assert looks and all(set(look) == {"distance_to_teacher", "distance_of_2", "distance_of_3"} for look in looks)
    for look in looks:
        assert look["distance_to_teacher"] == pytest.approx((look["distance_of_2"] + look["distance_of_3"]) / 2)
    assert next(iter(looks[0])) == "distance_to_teacher"  # which decides what is best


def test_its_page_is_of_all_numbers(run: Path) -> None:
    page = (run / "student" / "README.md").read_text()
    assert "`digits8` in 2 or 3 network calls" in page and "--calls 2,3" in page
    assert "evidence, 2 calls" in page and "evidence, 3 calls" in page
    assert "student.sample(64, calls=2, seed=0)" in page


def test_what_the_command_prints(made: tuple[Path, str]) -> None:
    _, said = made
    assert "A student of 2 or 3 calls is in" in said
    assert re.search(r"^2 calls\. Distance .*^3 calls\. Distance ", said, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("calls", ["2,2", "0,3", "2,x", "", ","])
def test_numbers_that_the_command_refuses(calls: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "digits8", "--calls", calls, *QUICK, "--out", "x"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "calls" in errors[0]
    assert not Path("x").exists()


def test_sampling_by_command(run: Path, student: Student, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", str(run), "--count", "4", "--device", "cpu", "--json", "--out"]
    for given, calls in (([], 3), (["--calls", "2"], 2), (["--calls", "3"], 3)):
        assert main([*words, str(tmp_path / f"{len(given)}{calls}.npz"), *given]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["calls"], told["counted_calls"]) == (calls, calls)
    assert main([*words, str(tmp_path / "y.npz"), "--calls", "7"]) == 2
    assert "makes 2 or 3 calls, not 7; distil another one for 7" in capsys.readouterr().err


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several") / "own"
    own_run(out)
    return out


def test_evaluating_by_command(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(own), "--teacher", "small:teacher", "--count", "8", "--metrics", "rmse", "--json"]
    words += ["--device", "cpu"]
    values = []
    for calls in (1, 3):
        assert main([*words, "--calls", str(calls)]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["nfe"] == calls and f"{calls} call" in told["how"]
        values.append(told["scores"]["rmse"]["value"])
    assert values[0] != values[1]
    assert main([*words]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["rmse"]["value"] == values[1]
    assert main([*words, "--calls", "4"]) == 2
    assert "makes 1 or 2 or 3 calls, not 4" in capsys.readouterr().err


def test_a_comparison_has_a_row_for_each_number(own: Path, tmp_path: Path) -> None:
    teacher = with_form(small.teacher())
    student = load_student(own, teacher=teacher, device="cpu")
    how: dict[str, Any] = {"calls": (1,), "solvers": ("euler",), "grids": ("auto",), "count": 8, "metrics": ["rmse"]}
    found = compare([teacher, student], out=tmp_path / "compared", device="cpu", **how)
    rows = [row for row in found.rows if row["kind"] == "student"]
    assert [row["label"] for row in rows] == [f"student own, {n} call{'s' * (n > 1)}" for n in (1, 2, 3)]
    assert [(row["calls"], row["nfe"]) for row in rows] == [(1, 1), (2, 2), (3, 3)]
    for row in rows:
        alone = onefold.evaluate(student.at(row["calls"]), teacher=teacher, metrics=["rmse"], count=8, device="cpu")
        assert row["scores"]["rmse"]["value"] == pytest.approx(alone["scores"]["rmse"]["value"], rel=1e-3)


def test_an_export_has_a_folder_for_each_number(
    run: Path, student: Student, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain diffusers, in a process without onefold, gives the student's own images."""
    assert main(["export", str(run), "--out", str(tmp_path / "shipped"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["largest_difference"] < 1e-4 and set(told["by_calls"]) == {"2", "3"}
    labels = [3, 1, 4]
    jobs: list[dict[str, Any]] = [
        {
            "folder": told["by_calls"][str(calls)],
            "custom": False,
            "seeds": [seeds.image_seed(5, index) for index in range(3)],
            "call": {"batch_size": 3, "class_labels": labels, "num_inference_steps": calls},
        }
        for calls in (2, 3)
    ]
    sample_elsewhere(tmp_path, jobs)
    for calls, job in zip((2, 3), jobs, strict=True):
        images = student.sample(3, seed=5, labels=labels, calls=calls).clamp(-1, 1)
        assert float((2 * torch.load(f"{job['folder']}.pt") - 1 - images).abs().max()) < 1e-4
    page = (tmp_path / "shipped" / "README.md").read_text()
    assert "2-calls, 3-calls" in page and 'from_pretrained("shipped/3-calls")' in page
    assert "num_inference_steps=2" in (tmp_path / "shipped" / "2-calls" / "README.md").read_text()
    assert main(["export", str(run), "--out", str(tmp_path / "shipped")]) == 2


def test_one_of_its_numbers_is_exported_alone(student: Student, tmp_path: Path) -> None:
    exported = student.at(2).export(tmp_path / "two")
    assert not exported.by_calls and exported.largest_difference < 1e-4
    assert (tmp_path / "two" / "model_index.json").is_file()


@pytest.mark.parametrize(
    "given",
    [
        {"calls": [2, 3, 4, 5]},
        {"calls": [1, 6], "step_init": "official", "preset": "paper_cifar10"},
        {"calls": [2, 4], "step_layers": ["time_emb_proj"], "parts": 2, "budget": "2m", "guidance": 2.0},
    ],
    ids=str,
)
def test_the_recipe_s_command_makes_the_same_settings(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = chosen(out="a folder/run", **given)
    made = object.__new__(SFD)
    made.settings = settings
    words, seen = shlex.split(made.command), list[dict[str, Any]]()
    monkeypatch.setattr(commands, "run", lambda values, as_json: seen.append(values))
    assert main(words[1:]) == 0
    assert choose(seen[0]) == settings
    options = dict(pairwise(words))
    assert options["--calls"] == ",".join(map(str, given["calls"])) and "also=" not in made.command


def test_the_recipe_s_command_makes_the_same_student(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = load_student(own, teacher="small:teacher", device="cpu")
    words = shlex.split(student.recipe["command"])
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert main([*words[1:], "--device", "cpu", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["by_calls"]) == {"1", "2", "3"}
    a, b = (weights_of(one) for one in (student, load_student(tmp_path / "again", teacher="small:teacher")))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_published_numbers_are_those_of_one_student_for_all() -> None:
    def said(preset: str, calls: Any) -> str | None:
        made = object.__new__(SFD)
        made.settings = chosen(preset=preset, calls=calls)
        return made.published()

    assert said("paper_cifar10", [2, 3, 4, 5]) == (
        "FID 4.28 at 2, 3.5 at 3, 3.18 at 4, 2.95 at 5 calls after 4.26 A100 hours in all (paper_cifar10, SFD-v; "
        "the paper's own teacher)"
    )
    assert PUBLISHED_TOGETHER["paper_imagenet64"] == ({2: 9.47, 3: 5.78, 4: 4.72, 5: 4.21}, 23.62)
    assert "no number of the paper is known" in str(said("paper_cifar10", [2, 3]))
    assert "no number of the paper is known" in str(said("sd15", [2, 3, 4, 5]))


# --- damaged folders --------------------------------------------------------------------------------------------------


def without_file(folder: Path) -> None:
    (folder / FILE).unlink()


def no_tensors(folder: Path) -> None:
    (folder / FILE).write_bytes(b"nothing")


def edited(folder: Path) -> None:
    save_file({name: tensor + 1 for name, tensor in load_file(folder / FILE).items()}, folder / FILE)


def write_tensors(tensors: dict[str, Tensor], folder: Path) -> None:
    """With the checksum that they have now."""
    save_file(tensors, folder / FILE)
    facts = json.loads((folder / "student.json").read_text())
    (folder / "student.json").write_text(json.dumps({**facts, "further_sha256": sha256(folder / FILE)}))


def tensors_changed(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    return lambda folder: write_tensors(change(load_file(folder / FILE)), folder)


def recipe_changed(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "student.json"
        facts = json.loads(path.read_text())
        first = facts["further_grids"]["2"]
        given = {key: value(facts) if callable(value) else value for key, value in changes.items()}
        path.write_text(json.dumps({**facts, **given, "kept": first}))

    return spoil


def first(tensors: dict[str, Tensor]) -> str:
    return min(tensors)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no file": (without_file, "holds what the student's numbers of calls differ in, and cannot be read"),
    "no tensors": (no_tensors, "cannot be read .*; restore it"),
    "other tensors that fit": (edited, "does not match its checksum; it is damaged or was edited, restore it"),
    "no checksum": (recipe_changed(further_sha256=None), "does not match its checksum"),
    "a foreign tensor": (
        tensors_changed(lambda t: {**t, "2/nowhere.bias": torch.zeros(2)}),
        "holds '2/nowhere.bias', which does not fit the student's network and grids",
    ),
    "a foreign number": (
        tensors_changed(lambda t: {**t, f"4/{first(t)[2:]}": t[first(t)].clone()}),
        "holds '4/.*', which does not fit",
    ),
    "no number": (tensors_changed(lambda t: {**t, "bias": torch.zeros(2)}), "holds 'bias', which does not fit"),
    "another shape": (
        tensors_changed(lambda t: {**t, first(t): t[first(t)][:-1].clone()}),
        "which does not fit the student's network",
    ),
    "no tensor at all": (tensors_changed(lambda t: {}), "lacks tensors for 2 calls; restore it"),
    "not a number": (tensors_changed(lambda t: {**t, first(t): t[first(t)] * torch.nan}), "NaN or infinite"),
    "grids as a list": (recipe_changed(further_grids=[1]), r"further_grids \[1\], expected one by number of calls"),
    "grids as a word": (recipe_changed(further_grids="2"), "further_grids '2', expected one by number of calls"),
    "no grids": (recipe_changed(further_grids=None), "further_grids None, expected one by number of calls"),
    "a number in letters": (
        recipe_changed(further_grids=lambda facts: {"two": facts["further_grids"]["2"]}),
        "further_grids .*, expected one by number of calls",
    ),
    "a grid that is none": (recipe_changed(further_grids={"2": 5}), "is damaged"),
    "a grid of other length": (
        recipe_changed(further_grids=lambda facts: {"2": facts["grid"]}),
        "has a grid of 4 levels for 2 calls, expected fewer than the student's 3",
    ),
    "a larger number": (
        recipe_changed(further_grids=lambda facts: {"3": facts["grid"]}),
        "for 3 calls, expected fewer than the student's 3",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_told(damage: str, run: Path, tmp_path: Path) -> None:
    spoil, said = DAMAGES[damage]
    shutil.copytree(run / "student", tmp_path / "copy")
    spoil(tmp_path / "copy")
    with pytest.raises(UserError, match=said) as error:
        load_student(tmp_path / "copy", device="cpu")
    assert "\n" not in str(error.value) and str(tmp_path / "copy") in str(error.value)


def test_numbers_of_other_processes_agree(student: Student) -> None:
    """V2: what a process draws for its rows does not decide the number."""
    method = SFD(load_teacher("digits8", device="cpu"), chosen(calls=[2, 3], watched=4))
    draws = [method.prepare(Draw(0, 1, rows, 8)) for rows in (range(4), range(4, 8))]
    assert not torch.equal(draws[0]["z"], draws[1]["z"]) and method.turn(1) == 3
