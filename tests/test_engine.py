"""The engine's side of the contract, on a toy method whose numbers can be computed by hand."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from onefold.errors import UserError
from onefold.settings import build
from onefold.training.budget import Budget
from onefold.training.contract import Batch, Draw, Update
from onefold.training.ema import Averages
from onefold.training.settings import RunSettings
from onefold.training.sharing import rows_of
from toys import Duel, engine, rows


def by_hand(
    steps: int, batch_size: int = 16, clip: float = 0.0, half_life: float = 50_000, share: float = 0.05
) -> Duel:
    """What the engine should do, as a plain loop."""
    method = Duel()
    method.ema = {k: v.clone() for k, v in method.networks["left"].state_dict().items()}  # type: ignore[attr-defined]
    for step in range(steps):
        draw = Draw(0, step, range(batch_size), batch_size)
        progress = step / steps
        for update in method.updates(Batch(step, progress, method.prepare(draw))):
            optimizer = method.optimizers[update.optimizer]
            optimizer.zero_grad()
            update.loss.backward()
            parameters = optimizer.param_groups[0]["params"]
            if clip:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            for group in optimizer.param_groups:
                group["lr"] = method.learning_rate("", 0, progress)
            optimizer.step()
            if update.ema:
                decay = 0.5 ** (batch_size / min(half_life, share * (step + 1) * batch_size))
                for key, value in method.networks["left"].state_dict().items():
                    method.ema[key] = decay * method.ema[key] + (1 - decay) * value  # type: ignore[attr-defined]
    return method


def same(a: torch.nn.Module, b: torch.nn.Module, tolerance: float = 0.0) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, rtol=0, atol=tolerance) for x, y in pairs)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_equals_a_loop_written_by_hand(tmp_path: Path, clip: float) -> None:
    method, expected = Duel(), by_hand(10, clip=clip)
    run = engine(tmp_path / "run", method, clip=clip)
    cost = run.run()
    assert cost["images"] == 160 and cost["steps"] == 10
    for name in ("left", "right"):
        assert same(method.networks[name], expected.networks[name], 1e-14)
    for key, value in run.averages.networks["left"].state_dict().items():
        assert torch.allclose(value, expected.ema[key], rtol=0, atol=1e-14)  # type: ignore[attr-defined]


def test_micro_batches_give_the_same_weights(tmp_path: Path) -> None:
    one, four = Duel(), Duel()
    engine(tmp_path / "one", one).run()
    engine(tmp_path / "four", four, micro_batches=4).run()
    assert {size for _, size in four.seen} == {4}
    assert all(same(one.networks[n], four.networks[n], 1e-14) for n in one.networks)
    logged = [
        [
            {k: v for k, v in row.items() if k in ("loss", "loss_right", "grad_norm", "distance")}
            for row in rows(tmp_path / d)
        ]
        for d in ("one", "four")
    ]
    for a, b in zip(*logged, strict=True):
        assert a.keys() == b.keys()
        assert all(
            a[k] == pytest.approx(b[k], rel=1e-5) for k in a if k != "distance"
        )  # a mean of roots is not a root of means


def test_rows_split_the_batch_without_gap_or_overlap() -> None:
    parts = [row for rank in range(3) for part in rows_of(24, 3, rank, 2) for row in part]
    assert parts == list(range(24))
    with pytest.raises(UserError, match="multiple of 6"):
        rows_of(25, 3, 0, 2)


def test_draws_do_not_depend_on_the_split() -> None:
    whole = Draw(5, 7, range(8), 8)
    parts = [Draw(5, 7, range(k, k + 2), 8) for k in range(0, 8, 2)]
    assert torch.equal(whole.noise((3, 2)), torch.cat([p.noise((3, 2)) for p in parts]))
    assert torch.equal(whole.stratified(), torch.cat([p.stratified() for p in parts]))
    assert torch.equal(whole.integers(10), torch.cat([p.integers(10) for p in parts]))
    assert not torch.equal(whole.noise((3,)), Draw(5, 8, range(8), 8).noise((3,)))
    assert not torch.equal(whole.noise((3,)), Draw(6, 7, range(8), 8).noise((3,)))
    assert not torch.equal(whole.noise((3,)), whole.noise((3,), stream=1))
    cells = (whole.stratified() * 8).long()
    assert cells.tolist() == list(range(8))


class Apart(Duel):
    """Breaks the contract: the number of updates depends on the data."""

    def updates(self, batch: Batch) -> Iterator[Update]:
        for update in super().updates(batch):
            yield update
            if batch["x"][0, 0] > 0:
                return


def test_micro_batches_that_go_apart_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="micro-batches"):
        engine(tmp_path / "run", Apart(), micro_batches=2).run()


class Poisoned(Duel):
    def prepare(self, draw: Draw) -> dict[str, torch.Tensor]:
        tensors = super().prepare(draw)
        return {"x": tensors["x"] * (float("nan") if draw.step == 6 else 1.0)}


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    run = engine(tmp_path / "run", Poisoned(), checkpoint_every="32", log_every=1)
    with pytest.raises(UserError, match="NaN by step 7.*last good checkpoint"):
        run.run()
    tensors, facts = run.folder.checkpoints.read_newest(print)  # type: ignore[misc]
    assert facts["step"] == 6
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())


class Single(Duel):
    """The toy in single precision, as the scaler of fp16 wants it."""

    def __init__(self) -> None:
        super().__init__()
        for network in self.networks.values():
            network.float()

    def prepare(self, draw: Draw) -> dict[str, torch.Tensor]:
        return {"x": super().prepare(draw)["x"].float()}


def test_the_scaler_of_fp16_serves_two_optimisers(tmp_path: Path) -> None:
    plain, scaled = Single(), Single()
    engine(tmp_path / "plain", plain).run()
    engine(tmp_path / "scaled", scaled, precision="fp16").run()
    assert all(same(plain.networks[name], scaled.networks[name], 1e-5) for name in plain.networks)


def test_a_run_of_nans_stops_with_fp16_too(tmp_path: Path) -> None:
    class Bad(Single):
        def prepare(self, draw: Draw) -> dict[str, torch.Tensor]:
            return {"x": super().prepare(draw)["x"] * (float("nan") if draw.step > 2 else 1.0)}

    with pytest.raises(UserError, match="NaN"):
        engine(tmp_path / "run", Bad(), precision="fp16", budget="1600", log_every=10).run()
    assert all("NaN" not in line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())


def test_two_marks_for_the_averages_are_refused(tmp_path: Path) -> None:
    class Twice(Duel):
        def updates(self, batch: Batch) -> Iterator[Update]:
            for update in super().updates(batch):
                update.ema = True
                yield update

    with pytest.raises(RuntimeError, match="mark one"):
        engine(tmp_path / "run", Twice()).run()


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    engine(out, checkpoint_every="48", budget="112").run()
    damage(sorted((out / "checkpoints").iterdir())[-1] / "state.safetensors", "flipped")
    engine(out, checkpoint_every="48", budget="144").run()
    assert [p.name for p in sorted((out / "checkpoints").iterdir())] == ["step-0000000006", "step-0000000009"]


def test_tied_weights_and_plain_numbers_survive(tmp_path: Path) -> None:
    from onefold.training.checkpoint import Checkpoints, optimizer_tensors

    network = torch.nn.Linear(3, 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, {"a": network.weight, "b": network.weight}, {})
    tensors, _ = checkpoints.read(1)
    assert torch.equal(tensors["a"], network.weight) and torch.equal(tensors["b"], network.weight)
    optimizer = torch.optim.ASGD(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.state[network.weight]["number"] = 0.1
    assert float(optimizer_tensors(optimizer, "")["0.number"]) == 0.1


def test_the_log_has_means_of_every_window(tmp_path: Path) -> None:
    engine(tmp_path / "each", log_every=1).run()
    engine(tmp_path / "four", log_every=4).run()
    each = [row for row in rows(tmp_path / "each") if "loss" in row]
    four = [row for row in rows(tmp_path / "four") if "loss" in row]
    assert [row["step"] for row in each] == list(range(1, 11))
    assert [row["step"] for row in four] == [4, 8, 10]
    assert four[0]["loss"] == pytest.approx(sum(row["loss"] for row in each[:4]) / 4, rel=1e-6)
    assert four[2]["distance"] == pytest.approx(sum(row["distance"] for row in each[8:]) / 2, rel=1e-6)
    assert each[-1]["lr"] == {"main": pytest.approx(0.01), "right": pytest.approx(0.01)}


def test_run_folder_holds_what_people_look_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = engine(out, sample_every="48")
    run.run()
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert build(RunSettings, config) == run.settings
    assert sorted(p.name for p in (out / "samples").iterdir()) == [f"{n:010d}.png" for n in (0, 48, 96, 144, 160)]
    assert [row["images"] for row in rows(out) if "validation" in row] == [0, 48, 96, 144, 160]
    assert (out / "result" / "cost.json").exists() and (out / "best" / "cost.json").exists()
    assert not [p for p in out.rglob(".*") if p.name != ".lock"]


def test_running_again_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    engine(out).run()
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".pt" and p.name != "state.json"}
    engine(out).run()
    assert {p: p.read_bytes() for p in before} == before


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    engine(out).run()
    with pytest.raises(UserError, match=r"seed: 0 there, 1 now"):
        engine(out, seed=1).run()
    engine(out, budget="320").run()  # a larger budget goes on
    assert max(row["step"] for row in rows(out)) == 20
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="no run folder"):
        engine(other).run()
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = engine(out)
    first.open()
    with pytest.raises(UserError, match="in use"):
        engine(out).run()
    first.folder.close()
    engine(out).run()


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "flipped":
        content[-3] ^= 1
    elif kind == "empty":
        content = bytearray()
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, name: str, kind: str) -> None:
    straight, out = Duel(), tmp_path / "run"
    engine(tmp_path / "straight", straight).run()
    engine(out, checkpoint_every="48", budget="112").run()
    checkpoints = sorted((out / "checkpoints").iterdir())
    assert [p.name for p in checkpoints] == ["step-0000000006", "step-0000000007"]
    damage(checkpoints[-1] / name, kind)
    method, said = Duel(), []
    run = engine(out, method, budget="160")
    run.tell = said.append
    run.run()
    assert any("step-0000000007 is damaged" in sentence for sentence in said)
    assert any("going on after 96 images" in sentence for sentence in said)


def test_all_checkpoints_damaged_is_an_error_that_deletes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    engine(out, checkpoint_every="48").run()
    for path in (out / "checkpoints").iterdir():
        damage(path / "state.safetensors", "truncated")
    log = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="all 2 checkpoints.*damaged"):
        engine(out, budget="320").run()
    assert (out / "metrics.jsonl").read_bytes() == log and len(list((out / "checkpoints").iterdir())) == 2


def test_a_checkpoint_that_cannot_be_written_leaves_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    engine(out, budget="80").run()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onefold.training.checkpoint.save_file", full)
    with pytest.raises(UserError, match=r"No space left.*run the same command again; step-0000000005 is intact"):
        engine(out, budget="160").run()
    monkeypatch.undo()
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-0000000005"]
    method = Duel()
    engine(out, method, budget="160").run()
    assert max(row["step"] for row in rows(out)) == 10


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_going_on_is_bit_equal(tmp_path: Path, optimizer: type[torch.optim.Optimizer]) -> None:
    class Interrupted(Duel):
        def prepare(self, draw: Draw) -> dict[str, torch.Tensor]:
            if draw.step == 8:
                raise KeyboardInterrupt
            return super().prepare(draw)

    straight, again = Duel(0.01, optimizer), Duel(0.01, optimizer)
    settings = {"checkpoint_every": "48", "log_every": 4, "sample_every": "32"}
    engine(tmp_path / "straight", straight, **settings).run()
    with pytest.raises(KeyboardInterrupt):
        engine(tmp_path / "broken", Interrupted(0.01, optimizer), **settings).run()
    engine(tmp_path / "broken", again, **settings).run()
    assert all(same(straight.networks[n], again.networks[n]) for n in straight.networks)
    files = [sorted((tmp_path / d / "checkpoints").iterdir())[-1] / "state.safetensors" for d in ("straight", "broken")]
    a, b = (load_file(file) for file in files)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    clocks = ("seconds", "images_per_second")
    logs = [
        [{k: v for k, v in row.items() if k not in clocks} for row in rows(tmp_path / d)]
        for d in ("straight", "broken")
    ]
    assert logs[0] == logs[1]


def test_changed_data_is_refused_on_resume(tmp_path: Path) -> None:
    run = engine(tmp_path / "run")
    run.identity = {"data": "abc"}
    run.run()
    other = engine(tmp_path / "run", budget="320")
    other.identity = {"data": "xyz"}
    with pytest.raises(UserError, match="the data of this run changed"):
        other.run()


def test_time_budget_ends_in_time(tmp_path: Path) -> None:
    cost = engine(tmp_path / "run", budget="1s", sample_every="1h").run()
    assert 1.0 <= cost["seconds"] < 10.0 and cost["steps"] > 3


def test_a_stop_by_signal_keeps_the_work(tmp_path: Path) -> None:
    from onefold.training.pace import Stopped

    class Signalled(Duel):
        def updates(self, batch: Batch) -> Iterator[Update]:
            if batch.step == 4:
                os.kill(os.getpid(), 15)
            yield from super().updates(batch)

    run = engine(tmp_path / "run", Signalled())
    with pytest.raises(Stopped, match="stopped after 80 images"):
        run.run()
    straight, again = Duel(), Duel()
    engine(tmp_path / "straight", straight).run()
    engine(tmp_path / "run", again).run()
    assert all(same(straight.networks[n], again.networks[n]) for n in straight.networks)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("200k", Budget(images=200_000)),
        ("1.5M", Budget(images=1_500_000)),
        ("64", Budget(images=64)),
        ("30s", Budget(seconds=30)),
        ("5m", Budget(seconds=300)),
        ("2h", Budget(seconds=7200)),
        (" 10 k ", Budget(images=10_000)),
    ],
)
def test_budgets(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "0", "-5m", "5x", "k", "1e3", "5 minutes", "nan", "inf"])
def test_budgets_that_mean_nothing(text: str) -> None:
    with pytest.raises(UserError, match="200k or 1.5M"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"batch_size": "many"}, "batch_size='many'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"clip": float("nan")}, "clip=nan"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"budget": "soon"}, "'soon' is not understood"),
    ],
)
def test_settings_that_are_wrong_get_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(RunSettings, {"out": "x", **values})
    assert "\n" not in str(error.value)


def test_average_decay_rules() -> None:
    network = torch.nn.Linear(1, 1)
    fixed = Averages({"n": network}, half_life=100, share=None)
    assert fixed.decay(10, 100) == pytest.approx(0.5)
    share = Averages({"n": network}, half_life=None, share=0.05)
    assert share.decay(1000, 50) == pytest.approx(0.5)
    capped = Averages({"n": network}, half_life=100, share=0.05)
    assert capped.decay(1000, 50) == pytest.approx(0.5) and capped.decay(10**6, 100) == pytest.approx(0.5)
    none = Averages({"n": network}, half_life=None, share=None)
    assert none.decay(1000, 50) == 0.0


def test_looking_is_on_nobodys_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation may take longer than training; the budget is training's."""
    method = Duel()
    looked = method.validate

    def slow(networks: Any) -> dict[str, float]:
        time.sleep(0.5)
        return looked(networks)

    monkeypatch.setattr(method, "validate", slow)
    run = engine(tmp_path / "run", method, sample_every="32")
    begin = time.monotonic()
    cost = run.run()
    assert cost["images"] == 160
    assert cost["seconds"] < time.monotonic() - begin - 5 * 0.5  # at the start, and after each fifth
