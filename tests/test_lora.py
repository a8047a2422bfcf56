"""LoRA students: an adapter over the teacher's own weights, which stay as they were; merged when saved."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import onefold
import pipelines
from onefold.cli import main
from onefold.denoiser import Denoiser
from onefold.distilling import distill
from onefold.errors import UserError
from onefold.methods.sfd import SFD, SFDSettings
from onefold.networks.lora import ATTENTION, FILE, Lora
from onefold.networks.unet import build_unet
from onefold.settings import build
from onefold.student import Student, load_student
from onefold.teachers import load_teacher
from onefold.teachers.native import Noising, save_teacher
from onefold.training.contract import Batch, Draw
from onefold.training.ema import Averages

SMALL: dict[str, Any] = {
    "lora": 2, "lr": 2e-2, "calls": 2, "budget": "64", "batch_size": 8, "watched": 4, "device": "cpu", "sample_every": "64",
}  # fmt: skip


def tiny_unet(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(5)
    return build_unet((1, 8, 8), widths=(8, 16), layers=1, classes=None, dropout=dropout).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("teachers") / "tiny"
    save_teacher(place, tiny_unet(dropout=0.1), Noising(), {"name": "tiny"})  # type: ignore[arg-type]
    return place


@pytest.fixture
def teacher(folder: Path) -> Denoiser:
    return load_teacher(folder, device="cpu")


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Student, Tensor]:
    """A finished run, and what its method drew last of the network in training."""
    out, drawn = tmp_path_factory.mktemp("runs") / "adapted", list[Tensor]()
    validate = SFD.validate

    def keep(self: SFD, networks: Any) -> dict[str, float]:
        numbers = validate(self, networks)
        drawn.append(self.drawn[self.calls])
        return numbers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SFD, "validate", keep)
        student = distill(str(folder), "sfd", out=out, ema_half_life=16, **SMALL)
    return out, student, drawn[-1]


def method_of(teacher: Denoiser, **settings: Any) -> SFD:
    values = {"teacher": "tiny", "out": "x", "watched": 4, "calls": 2, "lora": 2, "batch_size": 4, **settings}
    return SFD(teacher, build(SFDSettings, values))


def spread(network: nn.Module, seed: int = 1) -> None:
    """Adapters that change something."""
    draws = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        weight.data = 0.2 * torch.randn(weight.shape, generator=draws)


def batch_of(method: SFD) -> Batch:
    return Batch(0, 0.0, method.prepare(Draw(0, 0, range(4), 4)))


def asked(denoiser: Denoiser) -> Tensor:
    with torch.no_grad():
        return denoiser(torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3)), 2.0)


def steps(method: SFD) -> Iterator[None]:
    for update in method.updates(batch_of(method)):
        method.optimizers["main"].zero_grad()
        update.loss.backward()
        yield
        method.optimizers["main"].step()


def test_it_begins_as_the_teacher(teacher: Denoiser) -> None:
    method = method_of(teacher)
    assert torch.equal(asked(method.student), asked(teacher))
    assert torch.equal(method.sampler(method.networks).sample(3), Student(teacher, method.grid, "ve", {}).sample(3))
    assert method.student.module.config is not None and method.student.device.type == "cpu"


def test_only_the_adapter_learns_and_the_teacher_never_hears_of_it(teacher: Denoiser) -> None:
    """Its weights, its outputs and its modules are the same before, between and after the student's updates."""
    before, answer = {k: v.clone() for k, v in teacher.module.state_dict().items()}, asked(teacher)
    method = method_of(teacher, lr=1e-2)
    begun = {k: v.clone() for k, v in method.networks["student"].state_dict().items()}
    for _ in steps(method):  # between forward, backward and update
        assert torch.equal(asked(teacher), answer)
    after = teacher.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    learnt = method.networks["student"].state_dict()
    changed = {key for key in learnt if not torch.equal(begun[key], learnt[key])}
    assert changed == learnt.keys() and all("lora_" in key for key in learnt)
    assert sum(v.numel() for v in learnt.values()) < 0.1 * sum(v.numel() for v in before.values())
    assert torch.equal(asked(teacher), answer) and not torch.equal(asked(method.student), answer)


def test_teacher_and_student_share_their_weights(teacher: Denoiser) -> None:
    network = method_of(teacher).networks["student"]
    assert isinstance(network, Lora)
    shared = {id(weight) for weight in teacher.module.parameters()}
    frozen = {id(weight) for weight in network.network.parameters()} - {id(weight) for weight in network.parameters()}
    assert frozen == shared and not shared & {id(weight) for weight in network.parameters()}
    moved = network.to(torch.float64)  # where the adapter goes, they go
    assert {weight.dtype for weight in moved.network.parameters()} == {torch.float64}


def test_an_error_on_the_way_leaves_the_teacher_as_it_was(teacher: Denoiser) -> None:
    answer, method = asked(teacher), method_of(teacher)
    student = method.networks["student"]
    spread(student)

    def fail(*_: object) -> None:
        assert torch.equal(asked(teacher), answer)  # in the middle of the student's own call
        raise ArithmeticError

    hook = student.mid_block.register_forward_hook(fail)
    with pytest.raises(ArithmeticError):
        next(method.updates(batch_of(method)))
    hook.remove()
    assert torch.equal(asked(teacher), answer) and not torch.allclose(asked(method.student), answer)


def test_dropout_is_the_student_s_alone(teacher: Denoiser) -> None:
    answer, method = asked(teacher), method_of(teacher, dropout=True)
    assert not torch.equal(asked(method.student), asked(method.student))
    assert torch.equal(asked(teacher), answer)
    method.networks["student"].eval()
    assert torch.equal(asked(method.student), answer)


def test_recomputing_activations_gives_the_same_gradients(teacher: Denoiser) -> None:
    gradients = []
    for recompute in (False, True):
        method = method_of(teacher)
        spread(method.networks["student"])
        if recompute:
            method.networks["student"].enable_gradient_checkpointing()
        next(steps(method))
        gradients.append([weight.grad for weight in method.networks["student"].parameters()])
    assert not teacher.module.is_gradient_checkpointing
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_averages_are_adapters_over_the_same_weights(teacher: Denoiser) -> None:
    method = method_of(teacher)
    student = method.networks["student"]
    averages = Averages({"student": student}, half_life=4, share=None)
    average = averages.networks["student"]
    assert isinstance(average, Lora)
    shared = {id(weight) for weight in teacher.module.parameters()}
    assert shared < {id(weight) for weight in average.network.parameters()}
    before = copy.deepcopy(average.state_dict())
    spread(student)
    assert torch.equal(asked(teacher.replace(network=average)), asked(teacher))
    averages.update(4, 4)
    for key, now in student.state_dict().items():
        torch.testing.assert_close(average.state_dict()[key], (before[key] + now) / 2)
    assert not torch.equal(asked(teacher.replace(network=average)), asked(teacher))


def test_a_saved_student_samples_as_in_training(run: tuple[Path, Student, Tensor], folder: Path) -> None:
    out, student, drawn = run
    assert torch.allclose(student.sample(4), drawn, atol=1e-5)
    assert not torch.allclose(Student(load_teacher(folder, device="cpu"), student.grid, "ve", {}).sample(4), drawn)
    names = load_file(out / "student" / "unet" / "diffusion_pytorch_model.safetensors").keys()
    assert names == load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").keys()
    assert "load_lora_weights" in (out / "student" / "README.md").read_text()
    assert student.recipe["settings"]["lora"] == 2 and "--set lora=2" in student.recipe["command"]


def test_a_student_needs_no_peft(run: tuple[Path, Student, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    out, student, _ = run
    assert torch.equal(onefold.load_student(out, device="cpu").sample(2), student.sample(2))


def test_the_adapter_s_file_goes_with_its_student(run: tuple[Path, Student, Tensor], tmp_path: Path) -> None:
    out, student, _ = run
    student.save(tmp_path / "copy")
    assert (tmp_path / "copy" / FILE).read_bytes() == (out / "student" / FILE).read_bytes()
    again = {**SMALL, "lora": 0, "lr": 1e-4, "budget": "8"}  # a student of the student, without adapters
    distill(str(out / "student"), "sfd", out=tmp_path / "again", **again)
    assert not (tmp_path / "again" / "student" / "lora").exists()


def test_checkpoints_hold_the_adapter_alone(run: tuple[Path, Student, Tensor], folder: Path) -> None:
    out, _, _ = run
    state = next((out / "checkpoints").rglob("state.safetensors"))
    tensors = load_file(state)
    held = [key for key in tensors if key.startswith(("network.", "average."))]
    assert len(held) == 2 * 16 * 2 and all("lora_" in key for key in held)
    weights = (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert (
        state.stat().st_size < weights / 2
    )  # with averages and Adam's two moments; of all weights it would be four times


def test_stopping_and_going_on_is_bit_equal(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SMALL, "checkpoint_every": "16", "ema_half_life": 16, "dropout": True}
    straight = distill(str(folder), "sfd", out=tmp_path / "straight", **settings)
    prepare = SFD.prepare

    def stop(self: SFD, draw: Draw) -> dict[str, Tensor]:
        if draw.step == 5:
            raise KeyboardInterrupt
        return prepare(self, draw)

    monkeypatch.setattr(SFD, "prepare", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(str(folder), "sfd", out=tmp_path / "halved", **settings)
    monkeypatch.undo()
    again = distill(str(folder), "sfd", out=tmp_path / "halved", **settings)
    a, b = straight.denoiser.module.state_dict(), again.denoiser.module.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    files = [tmp_path / name / "student" / FILE for name in ("straight", "halved")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_micro_batches_do_not_change_the_run(folder: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "budget": "16"}
    adapters = []
    for parts in (1, 2):
        distill(str(folder), "sfd", out=tmp_path / str(parts), micro_batches=parts, **settings)
        adapters.append(load_file(tmp_path / str(parts) / "student" / FILE))
    for key, value in adapters[0].items():
        torch.testing.assert_close(adapters[1][key], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("targets", [ATTENTION, ("conv1", "conv_shortcut", "time_emb_proj", "to_q")], ids=str)
def test_merging_changes_rounding_only(targets: tuple[str, ...]) -> None:
    network = tiny_unet()
    adapted = Lora(network, 4, targets=targets)
    spread(adapted)
    z, time = torch.randn(3, 1, 8, 8), torch.tensor([3.0, 500.0, 900.0])
    with torch.no_grad():
        expected, merged = adapted(z, time).sample, adapted.merged()(z, time).sample
    assert torch.allclose(merged, expected, atol=1e-5)
    assert not torch.allclose(network(z, time).sample, expected, atol=1e-2)


def text_unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(5)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("targets", [ATTENTION, ("conv1", "proj_in", "to_v")], ids=str)
def test_diffusers_puts_the_file_on_its_own_copy_of_the_base(tmp_path: Path, targets: tuple[str, ...]) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    adapted = Lora(text_unet(), 3, targets=targets)
    spread(adapted)
    adapted.save_adapter(tmp_path / FILE)
    told = (torch.randn(2, 4, 8, 8), torch.tensor([10.0, 700.0]), torch.randn(2, 5, 12))
    with torch.no_grad():
        expected, plain = adapted(*told).sample, text_unet()(*told).sample
    unet = text_unet()
    unet.load_lora_adapter(load_file(tmp_path / FILE), prefix="unet")
    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=text_unet(), scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.load_lora_weights((tmp_path / FILE).parent)
    assert not torch.allclose(plain, expected, atol=1e-2)
    for network in (unet, pipe.unet):
        with torch.no_grad():
            assert torch.allclose(network(*told).sample, expected, atol=1e-5)
    assert pipe.unet.peft_config["default_0"].r == pipe.unet.peft_config["default_0"].lora_alpha == 3


def test_the_file_says_its_rank_and_alpha(run: tuple[Path, Student, Tensor]) -> None:
    out, _, _ = run
    with safe_open(out / "student" / FILE, "pt") as file:
        facts = json.loads(file.metadata()["lora_adapter_metadata"])
        assert all(key.startswith("unet.") for key in file.keys())  # noqa: SIM118
    assert (facts["unet.r"], facts["unet.lora_alpha"]) == (2, 2)


def test_adapters_begin_by_seed() -> None:
    network, state = tiny_unet(), torch.random.get_rng_state()
    first, same, other = (Lora(network, 2, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lora_targets": ["conv7"]},
            "no linear or convolution layer called conv7 .* set lora_targets to some of: conv,",
        ),
        ({"lora_targets": ["to_q", "convv1"]}, "called convv1"),
        ({"lora_targets": []}, "called nothing"),
        ({"lora": 0, "lora_targets": ["conv1"]}, "no layer gets adapters with lora=0; set lora to a rank"),
        ({"lora": -1}, "greater than or equal to 0"),
    ],
    ids=str,
)
def test_mistakes_get_one_sentence(teacher: Denoiser, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        method_of(teacher, **settings)
    assert "\n" not in str(error.value)


def test_networks_without_attention_and_homes_without_peft(teacher: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="called to_q or to_k or to_v or to_out.0 .* some of: 0$"):
        Lora(nn.Sequential(nn.Linear(2, 2)), 2)
    with pytest.raises(UserError, match="none, it has no such layers; set lora=0"):
        Lora(nn.Sequential(nn.ReLU()), 2)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'onefold\[lora\]'"):
        method_of(teacher)


def test_a_plan_says_what_learns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--calls", "1", "--budget", "16", "--batch-size", "4", "--device", "cpu", "--set", "lora=2"]
    assert main(["plan", str(folder), *words]) == 0
    said = capsys.readouterr()
    assert "LoRA of rank 2 at 16 of" in said.err and "weights learn, beside" in said.err
    assert "4 of the teacher and 1 of the student calls" in said.out  # they share weights, and are counted apart


def test_it_learns(run: tuple[Path, Student, Tensor]) -> None:
    out, _, _ = run
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    distances = [row["validation"]["distance_to_teacher"] for row in log if "validation" in row]
    assert distances[-1] < distances[0]
    assert load_student(out, device="cpu").calls == 2


@pytest.mark.parametrize("family", [pipelines.text_pipeline, pipelines.large_pipeline])
def test_text_models_end_to_end(tmp_path: Path, family: Any) -> None:
    """What the student's file makes of a fresh pipeline of the base is the student's own network."""
    pipe = family(tmp_path)
    pipe.save_pretrained(tmp_path / "base")
    base = load_teacher(tmp_path / "base", device="cpu").with_prompts(["a cat", "a dog", "x"])
    few = {**SMALL, "guidance": 2.0, "parts": 1, "budget": "4", "batch_size": 2, "lr": 0.1, "watched": 2}
    student = distill(base, "sfd", out=tmp_path / "run", afs=None, **few)
    pipe.load_lora_weights(tmp_path / "run" / "student" / "lora")
    pipe.fuse_lora()
    fused = {k.replace(".base_layer", ""): v for k, v in pipe.unet.state_dict().items() if "lora_" not in k}
    before, changed = base.module.state_dict(), 0
    for key, value in student.denoiser.module.state_dict().items():
        assert torch.allclose(fused[key], value, atol=1e-6)
        changed += not torch.equal(value, before[key])
    assert changed == len(load_file(tmp_path / "run" / "student" / FILE)) / 2


def test_transformers_of_classes(tmp_path: Path) -> None:
    pipelines.dit_pipeline(classes=5).save_pretrained(tmp_path / "base")
    few = {**SMALL, "parts": 1, "budget": "2", "batch_size": 2, "watched": 2}
    student = distill(str(tmp_path / "base"), "sfd", out=tmp_path / "run", **few)
    assert all(key.startswith("transformer.") for key in load_file(tmp_path / "run" / "student" / FILE))
    assert torch.equal(load_student(tmp_path / "run", device="cpu").sample(2), student.sample(2))
