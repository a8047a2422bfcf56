"""SFD's teacher wider than its student, and its trajectories on disk: the same numbers by a cheaper way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onefold.card import described
from onefold.conditions import Prompts
from onefold.distilling import plan
from onefold.errors import UserError
from onefold.methods.sfd import SFD
from onefold.training.contract import Batch, Draw
from test_sfd import exact_teacher, sfd
from toys import inputs_seen

SIZE = 12


def known(**settings: Any) -> SFD:
    return sfd(exact_teacher(), batch_size=SIZE, **settings)


def batch_of(method: SFD, rows: range = range(SIZE), step: int = 0) -> Batch:
    return Batch(step, 0.0, method.prepare(Draw(method.settings.seed, step, rows, SIZE)))


def losses(method: SFD, batch: Batch) -> list[Tensor]:
    return [update.loss.detach() for update in method.updates(batch)]


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_a_piece_is_learned_as_a_batch_of_its_rows() -> None:
    """N updates a piece, whose mean over the pieces is the whole batch's, since nothing is learned in between here."""
    whole, parts = known(), known(pieces=3)
    together, apart = losses(whole, batch_of(whole)), losses(parts, batch_of(parts))
    steps = len(together)
    assert len(apart) == 3 * steps
    for n in range(steps):
        assert torch.stack(apart[n::steps]).mean() == pytest.approx(float(together[n]), rel=1e-5)


def test_the_teacher_walks_once_with_all_rows() -> None:
    whole, parts = known(), known(pieces=3)
    for method in (whole, parts):
        losses(method, batch_of(method))
    assert whole.target.calls == parts.target.calls == 4 * 3  # K x N, however many pieces


def test_processes_and_micro_batches_make_the_same_pieces() -> None:
    """Every third row, whoever has it: the union of what two halves learn from is what one whole learns from."""

    def first_inputs(rows: range) -> list[Tensor]:
        method = known(pieces=3)
        seen = inputs_seen(method)
        losses(method, batch_of(method, rows))
        return seen[::2]  # the first trained step of each piece

    whole = first_inputs(range(SIZE))
    halves = [first_inputs(range(6)), first_inputs(range(6, SIZE))]
    for piece in range(3):
        torch.testing.assert_close(torch.cat([half[piece] for half in halves]), whole[piece])


def test_averages_follow_once_a_batch() -> None:
    method = known(pieces=3)
    assert [update.ema for update in method.updates(batch_of(method))] == [False] * 5 + [True]


def test_pieces_that_do_not_divide_the_rows() -> None:
    method = known(pieces=5)
    with pytest.raises(UserError, match="pieces is 5, but a process has 12 trajectories at a time.*multiple"):
        losses(method, batch_of(method))


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_trajectories_from_disk_are_those_of_the_teacher(tmp_path: Path) -> None:
    plain, first, second = known(), known(cache=str(tmp_path)), known(cache=str(tmp_path))
    expected = losses(plain, batch_of(plain))
    assert torch.equal(torch.stack(losses(first, batch_of(first))), torch.stack(expected))
    assert torch.equal(torch.stack(losses(second, batch_of(second))), torch.stack(expected))
    assert first.target.calls == plain.target.calls > 0 and second.target.calls == 0
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("other", [{"parts": 2}, {"seed": 1}, {"solver": "euler"}, {"calls": 3}], ids=str)
def test_what_decides_a_trajectory_has_a_folder_of_its_own(tmp_path: Path, other: dict[str, Any]) -> None:
    for settings in ({}, other):
        method = known(cache=str(tmp_path), **settings)
        losses(method, batch_of(method))
        assert method.target.calls > 0
    assert len(list(tmp_path.iterdir())) == 2


def test_another_teacher_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Also one that no card tells apart: its weights and its precision are looked at."""
    teachers = [exact_teacher(), exact_teacher(), exact_teacher().replace(precision="bf16")]
    next(teachers[1].module.parameters()).data += 1
    folders = {sfd(teacher, batch_size=SIZE, cache=str(tmp_path)).kept.folder for teacher in teachers}  # type: ignore[union-attr]
    assert len(folders) == 3


def test_which_prompts_are_learned_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """As many as are watched are left out."""
    texts = tuple(f"text {number}" for number in range(40))
    prompts = Prompts(texts, {"told": torch.zeros(40, 1)}, {"told": torch.zeros(1, 1)})
    teacher = exact_teacher().replace(prompts=prompts)
    folders = {sfd(teacher, watched=watched, cache=str(tmp_path)).kept.folder for watched in (1, 2)}  # type: ignore[union-attr]
    assert len(folders) == 2


def test_a_plan_keeps_no_trajectories(tmp_path: Path) -> None:
    plan("small:teacher", calls=1, budget="32", batch_size=4, device="cpu", cache=str(tmp_path / "kept"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", [{"lr": 1e-2}, {"loss": "l2"}, {"pieces": 3}, {"walk": "teacher"}], ids=str)
def test_what_the_student_does_with_it_does_not_matter(tmp_path: Path, other: dict[str, Any]) -> None:
    for settings in ({}, other):
        method = known(cache=str(tmp_path), **settings)
        losses(method, batch_of(method))
    assert method.target.calls == 0


def test_the_page_says_that_the_cost_is_not_all(tmp_path: Path) -> None:
    cost = {"images": 8, "steps": 1, "seconds": 1.0, "calls": {}, "processes": 1, "device": "cpu"}
    for settings, kept in (({"cache": str(tmp_path)}, True), ({"cache": None}, False)):
        method = known(**settings)
        facts = method.as_student(method.networks).facts() | {"cost": cost}
        assert ("that a cache had" in described(facts)["cost"]) is kept


def test_damaged_trajectories_are_named(tmp_path: Path) -> None:
    method = known(cache=str(tmp_path))
    losses(method, batch_of(method))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"0000000-0-12\.safetensors of the cache is damaged.*delete it"):
        batch_of(known(cache=str(tmp_path)))


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache is .*file.*cannot be written.*another folder"):
        known(cache=str(tmp_path / "file"))
