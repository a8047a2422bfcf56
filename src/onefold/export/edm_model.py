"""An EDM network as a model of diffusers, for folders that bring its code with them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from onefold.networks.edm import DhariwalUNet, EDMNetwork, SongUNet


class Plan(SimpleNamespace):
    """A network's description, with what its layers ask it."""

    @property
    def widths(self) -> list[int]:
        return [self.model_channels * multiple for multiple in self.channel_mult]

    def size(self, level: int) -> int:
        return int(self.img_resolution) >> level

    def attends(self, level: int) -> bool:
        return self.size(level) in self.attn_resolutions


class EDMModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """`sign` is -1 where the network gives minus the noise; sizes are for those who look in the config."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        family: str,
        plan: dict[str, Any],
        sign: int,  # noqa: ARG002
        sample_size: int,  # noqa: ARG002
        in_channels: int,  # noqa: ARG002
    ) -> None:
        super().__init__()
        kinds: dict[str, Any] = {kind.__name__: kind for kind in (SongUNet, DhariwalUNet)}
        self.network: EDMNetwork = kinds[family](Plan(**plan))

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Any:
        return SimpleNamespace(sample=self.config.sign * self.network(sample, timestep, class_labels))
