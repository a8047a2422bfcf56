"""A diffusers pipeline for one distilled model, with its sampling steps in its config. It needs torch and diffusers only.

pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
images = pipe(batch_size=8).images
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class StudentPipeline(DiffusionPipeline):  # type: ignore[misc]
    """x = start z, then for each step: u = network(scale x, time), D = skip (scale x) + out u, x = keep x + add D.

    `steps` holds (scale, time, skip, out, keep, add) for each of the model's network calls. With a `vae` x are latents.
    """

    _optional_components = ("vae",)

    # what has a default is kept in model_index.json, the rest are modules with folders of their own
    def __init__(
        self,
        network: ModelMixin,
        vae: ModelMixin | None = None,
        start: float = 1.0,
        steps: list = [],  # type: ignore[type-arg]  # noqa: B006
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(network=network, vae=vae)
        self.register_to_config(start=start, steps=steps, classes=classes)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Tensor | Sequence[int] | int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """`latents` is unit noise. The model has one number of steps; another one is refused."""
        steps: list[list[float]] = self.config.steps
        if num_inference_steps not in (None, len(steps)):
            raise ValueError(f"this model makes {len(steps)} network calls, not {num_inference_steps}; leave it out")
        network, device = self.network, self._execution_device
        size, channels = network.config.sample_size, network.config.in_channels
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch_size, channels, height, width)
        z = randn_tensor(shape, generator=generator, device=device) if latents is None else latents.to(device)
        x = self.config.start * z.float()
        labels = self.labels(len(z), class_labels)
        whole = network.config.get("time_embedding_type") == "learned"
        for scale, time, skip, out, keep, add in self.progress_bar(steps):
            seen = scale * x
            times = torch.full((len(x),), round(time) if whole else time, device=device)
            output = network(seen.to(network.dtype), times, class_labels=labels).sample[:, :channels].float()
            x = keep * x + add * (skip * seen + out * output)
        x = x if self.vae is None else self.vae.decode((x / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        images: Any = (x.float() / 2 + 0.5).clamp(0, 1).cpu()
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def labels(self, batch_size: int, class_labels: Tensor | Sequence[int] | int | None) -> Tensor | None:
        """Given, or drawn; none for a network without classes."""
        classes: int | None = self.config.classes
        if classes is None:
            return None
        if class_labels is None:
            return torch.randint(0, classes, (batch_size,), device=self._execution_device)
        chosen = torch.as_tensor(class_labels, dtype=torch.long, device=self._execution_device).flatten()
        if len(chosen) not in (1, batch_size):
            raise ValueError(f"{len(chosen)} class labels for {batch_size} images; give one for each, or one for all")
        return chosen.expand(batch_size)
