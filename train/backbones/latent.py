"""Models that predict the latents of a VAE: they see the latent of a photo and predict the latent of the map."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor, nn

from ...intrinsics.lora import read_lora, write_lora
from ...intrinsics.vocabulary import Intrinsic
from .adapted import Adapted, fingerprint_of


class LatentBackbone(Adapted, ABC):
    """A frozen denoiser between the encoder and the decoder of a VAE. Latents are (B, C, h, w), scaled.

    A family adds `load`, `predict`, `sample`, and the attributes without a value here. What the network itself takes
    (packed latents, a sigma instead of a timestep, text embeddings) is handled by `predict`.

    Attributes:
        model: the denoiser, in the precision asked for.
        vae: in float32.
        name: of the base model, for the metadata of what is trained on it.
        intrinsics: {name: Intrinsic} it was loaded for.
        timesteps: length of the training schedule: a timestep is 0 (clean) to timesteps - 1 (noise).
        resolution: side in pixels of the pictures it was trained on.
        scaling_factor: of the VAE's latents.
        latent_channels: C.
        downsample: H / h.
        device, dtype: of the denoiser.
    """

    model: ModelMixin
    family: str
    targets: ClassVar[tuple[str, ...]]
    timesteps: int
    resolution: int
    sample_options: tuple[str, ...] = ()
    load_options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: ModelMixin, vae: AutoencoderKL, intrinsics: Sequence[Intrinsic], name: str) -> None:
        super().__init__(model.eval())
        self.vae = vae.eval().requires_grad_(False)
        self.intrinsics = {intrinsic.name: intrinsic for intrinsic in intrinsics}
        self.name = name
        self.scaling_factor: float = self.vae.config.scaling_factor
        self.latent_channels: int = self.vae.config.latent_channels
        self.downsample: int = 2 ** (len(self.vae.config.block_out_channels) - 1)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @abstractmethod
    def predict(self, latents: Tensor, name: str, timestep: int | Tensor) -> Tensor:
        """Return the network's output (B, C, h, w), float32: with an active LoRA, the clean latent of the map.

        Args:
            latents: of photos, (B, C, h, w).
            name: the intrinsic whose prompt is shown, or "" for the empty prompt.
            timestep: 0 to `timesteps` - 1, one for all rows or one for each. A model of flow matching takes it as the
                sigma (timestep + 1) / timesteps, so that the last one is pure noise there, too.
        """

    @abstractmethod
    def sample(self, seeds: Sequence[int]) -> Tensor:
        """Return latents (B, C, h, w) of pictures that the base generates without a LoRA, each from its own seed."""

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of a SHA-256 over the weights of VAE and denoiser."""
        return fingerprint_of(self.vae, self.model)

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The VAE. Encoding and decoding move it back to the denoiser's device."""
        return (self.vae,)

    # ------------------------------------------------------------------ pictures and latents

    def dummy_conditions(self, count: int, resolution: int) -> Tensor:
        """Return noise (count, C, h, w)."""
        side = resolution // self.downsample
        return torch.randn(count, self.latent_channels, side, side)

    @torch.no_grad()
    def encode_picture(self, pictures: Tensor) -> Tensor:
        """Return the mode of the posterior, (B, C, h, w), of pictures (B, 3, H, W).

        Raises:
            ValueError: H or W is not a multiple of `downsample`.
        """
        return self._posterior(pictures).mode() * self.scaling_factor

    @torch.no_grad()
    def encode_target(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, (B, C, h, w) each, of the latents of label pictures (B, 3, H, W).

        `mean + std * noise` is what the paper's `latent_dist.sample() * scaling_factor` draws.
        """
        posterior = self._posterior(pictures)
        return posterior.mean * self.scaling_factor, posterior.std * self.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W), float32, about [0, 1] and **not clamped**, of latents. Differentiable."""
        self.vae.to(self.device)
        chunk = max(1, 4 * 64 * 64 // latents[0, 0].numel())  # four pictures of 512 x 512 at a time
        scaled = latents.to(self.device, torch.float32) / self.scaling_factor
        with torch.autocast(self.device.type, enabled=False):
            return torch.cat([self.vae.decode(z).sample * 0.5 + 0.5 for z in scaled.split(chunk)])

    def render(self, conditions: Tensor) -> Tensor:
        """Draw the pictures of latents, as `decode` does; maps are drawn by `predict`, with a prompt and timestep."""
        return self.decode(conditions)

    def _posterior(self, pictures: Tensor) -> Any:
        height, width = pictures.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(f"Pictures of {width} x {height} do not fit: use multiples of {self.downsample} pixels.")
        self.vae.to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            return self.vae.encode(pictures.to(self.device, torch.float32) * 2 - 1).latent_dist

    # ------------------------------------------------------------------ files and memory

    def save_lora(
        self,
        path: Path,
        name: str,
        *,
        method: str,
        timestep: int,
        training: Mapping[str, Any],
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Write the LoRA `name` in the format that loads everywhere, see `write_lora`."""
        write_lora(
            path,
            self.lora_weights(name),
            intrinsic=self.intrinsics[name],
            method=method,
            timestep=timestep,
            base_model=self.name,
            training=training,
            extra=extra,
        )

    def load_lora(self, path: Path, name: str) -> None:
        """Read a file of `save_lora` into the LoRA `name`."""
        self.load_lora_weights(name, read_lora(path, list(self.lora_weights(name))).weights)

    def enable_gradient_checkpointing(self) -> None:
        """Use less memory and more time: recompute activations of denoiser and decoder in the backward pass."""
        for network in (self.model, self.vae):
            network.enable_gradient_checkpointing()
