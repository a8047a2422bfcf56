"""A network that is told the number of a step does what it did at the real time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import pipelines
from onefold.errors import UserError
from onefold.networks.edm import build_edm
from onefold.networks.folding import fold_time, fold_to_index, index_table
from onefold.networks.unet import build_unet

SONG: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 1,
    "out_channels": 1,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}


def shaken(network: nn.Module) -> Any:
    """Far from how it was made: whatever the weights say, the time must be heard."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def unet(classes: int | None = None) -> Any:
    torch.manual_seed(0)
    return shaken(build_unet((1, 8, 8), widths=(16, 32), layers=1, classes=classes))


def times(steps: int) -> list[float]:
    """Not whole, and not evenly spaced."""
    return [999 * ((index + 1) / steps) ** 1.5 + 0.25 * (index < steps - 1) for index in range(steps)]


def difference(folded: nn.Module, original: nn.Module, real: list[float], **told: Any) -> float:
    """The largest, of outputs of size 1, over all indices."""
    told = {name: value.expand(2, *value.shape[1:]) for name, value in told.items()}
    channels = int(original.config["in_channels"])
    z = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))

    def ask(network: Any, time: Tensor) -> Tensor:
        output: Tensor = network(z, time, **told).sample
        return output

    worst = 0.0
    with torch.no_grad():
        for index, time in enumerate(real):
            ours = ask(folded, torch.full((2,), index))
            theirs = ask(original, torch.full((2,), time, dtype=torch.float32))
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    return worst


@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize("steps", [1, 2, 4, 5, 16, 64])
def test_a_unet_told_an_index(steps: int, classes: int | None, tmp_path: Path) -> None:
    original, real = unet(classes), times(steps)
    folded: Any = fold_to_index(original, real)
    assert folded.config["time_embedding_type"] == ("positional" if steps <= 5 else "learned")
    told = {} if classes is None else {"class_labels": torch.tensor([3])}
    assert difference(folded, original, real, **told) < 1e-5
    if steps > 1:  # without folding an index says something else
        assert difference(original, original, real, **told) > 1e-3
    folded.save_pretrained(tmp_path)
    again: Any = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    assert difference(again, original, real, **told) < 1e-5


def test_a_table_is_cut_to_the_steps_that_are_kept() -> None:
    """A network that has learnt each whole time keeps the rows of the real ones."""
    first, real = fold_to_index(unet(), times(64)), [3.0, 17.0, 40.0]
    torch.nn.init.normal_(first.time_proj.weight)  # type: ignore[union-attr, arg-type]
    second: Any = fold_to_index(first, real)
    assert torch.equal(second.time_proj.weight, first.time_proj.weight[[3, 17, 40]])  # type: ignore[union-attr, index]
    assert second.config["num_train_timesteps"] == 3


def test_a_folded_network_can_be_trained() -> None:
    original = unet().requires_grad_(True)
    folded: Any = fold_to_index(original, times(16))
    folded(torch.randn(2, 1, 8, 8), torch.tensor([0, 15])).sample.square().mean().backward()
    assert float(folded.time_proj.weight.grad[[0, 15]].abs().min()) > 0
    assert all(parameter.grad is None for parameter in original.parameters())


def test_a_table_of_indices_begins_as_the_network_itself(tmp_path: Path) -> None:
    original = unet().requires_grad_(True)
    table: Any = index_table(original, 16)
    assert difference(table, original, [float(index) for index in range(16)]) < 1e-6
    table(torch.randn(2, 1, 8, 8), torch.tensor([2, 5])).sample.square().mean().backward()
    learns = table.time_proj.weight.grad.abs().sum(1) > 0
    assert learns.nonzero().flatten().tolist() == [2, 5]  # each index a row of its own
    table.save_pretrained(tmp_path)
    again: Any = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again.time_proj.weight, table.time_proj.weight)
    with pytest.raises(UserError, match="a Linear has no table of times.*use begin=teacher"):
        index_table(nn.Linear(2, 2), 4)


@pytest.mark.parametrize("steps", [2, 4])
def test_networks_of_texts_and_transformers(steps: int) -> None:
    real = times(steps)
    text = shaken(pipelines.text_unet())
    told = {"encoder_hidden_states": torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))}
    assert difference(fold_to_index(text, real), text, real, **told) < 1e-5
    dit = shaken(pipelines.dit_pipeline().transformer)
    assert difference(fold_to_index(dit, real), dit, real, class_labels=torch.tensor([3])) < 1e-5


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("SongUNet", {}),
        ("SongUNet", {"embedding_type": "fourier"}),
        ("DhariwalUNet", {"label_dim": 5, "model_channels": 64}),
    ],
)
def test_edm_networks(family: str, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network, real = shaken(build_edm(family, {**SONG, **more})), [-1.2, -0.4, 0.5, 1.1]
    folded, z = fold_to_index(network, real), torch.randn(1, 1, 8, 8)
    labels = torch.tensor([2])
    with torch.no_grad():
        for index, time in enumerate(real):
            ours, theirs = folded(z, torch.tensor([index]), labels), network(z, torch.tensor([time]), labels)
            assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5
            assert float((ours - network(z, torch.tensor([float(index)]), labels)).abs().max()) > 1e-3


def test_what_cannot_be_told_an_index_says_what_to_do() -> None:
    many = times(16)
    cases: list[tuple[nn.Module, list[float]]] = [
        (pipelines.text_unet(), many),
        (pipelines.dit_pipeline().transformer, many),
        (build_edm("SongUNet", {**SONG, "label_dim": 5}), times(2)),  # labels are added to what says the time
        (build_edm("SongUNet", SONG), many),
        (nn.Linear(1, 1), times(2)),
    ]
    for network, real in cases:
        with pytest.raises(
            UserError, match=rf"{type(network).__name__} cannot be told .* 0 to {len(real) - 1} .*time=teacher"
        ):
            fold_to_index(network, real)


def test_a_constant_time_goes_into_the_bias() -> None:
    original, folded = unet(), unet()
    fold_time(folded, [321.5], None)
    z = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        theirs = original(z, 321.5 * torch.ones(1)).sample
        for time in (0, 7, 999):
            assert torch.allclose(folded(z, torch.tensor([time])).sample, theirs, atol=1e-5)
