"""The paper's multi-step training: AugUNet, a UNet that also sees the latent of the photo."""

import os
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...diffusers_pipeline.aug_unet import read_image_channels, sample, widen, zero_snr_noise, zero_snr_solver
from ...intrinsics.codec import decode
from ..backbones.stable_diffusion import StableDiffusion


class MultiStep:
    """Velocity MSE on a schedule of zero terminal SNR, t uniform, the photo's unscaled latent beside the noisy one.

    Widens the first convolution of the backbone's UNet for good, so make this before adding LoRAs. The image channels
    are frozen; name `conv_in` among the LoRA's targets to let them learn.

    Args:
        backbone: a base with as many UNet as latent channels (the paper: SD 2.1).
        image_channels: see `read_image_channels`: the paper's "timbrooks/instruct-pix2pix", "copy", "zeros", ...
        steps, guidance_scale, guidance_rescale: of the sampling in `maps`.

    Raises:
        FileNotFoundError, ValueError: there are no image channels at `image_channels`, or not for this base.
    """

    needs_maps = False

    def __init__(
        self,
        backbone: StableDiffusion,
        image_channels: str | os.PathLike | Tensor | nn.Module,
        steps: int = 25,
        guidance_scale: float = 3.0,
        guidance_rescale: float = 0.7,
    ) -> None:
        self.backbone = backbone
        self.encode_label = backbone.encode_target
        self.steps, self.guidance_scale, self.guidance_rescale = steps, guidance_scale, guidance_rescale
        conv_in = backbone.unet.conv_in
        self.image_channels = read_image_channels(image_channels, conv_in, backbone.scaling_factor)
        _ = backbone.fingerprint  # computed now, once and for all: it is the unwidened base's
        backbone.unet.conv_in = widen(conv_in, self.image_channels.weight)
        self.noise = zero_snr_noise(backbone.scheduler)
        self.solver = zero_snr_solver(backbone.scheduler)

    def loss(self, batch: Mapping[str, Tensor], name: str, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the loss of one intrinsic, see `Method.loss`.

        A generator draws the timestep of its row, the noise, and the sample of the label's posterior, in this order.
        """
        backbone = self.backbone
        backbone.activate(name)
        self._check_sight()
        image, mean, std = (batch[key].to(backbone.device).float() for key in ("image", f"{name}_mean", f"{name}_std"))
        shape, last = image.shape[1:], self.noise.config.num_train_timesteps
        draws = [
            (torch.randint(last, (), generator=g), torch.randn(shape, generator=g), torch.randn(shape, generator=g))
            for g in generators
        ]
        t, noise, spread = (torch.stack(rows).to(backbone.device) for rows in zip(*draws, strict=True))
        clean = mean + std * spread  # (B, C, h, w)
        noisy = self.noise.add_noise(clean, noise, t)
        predicted = backbone.predict(torch.cat([noisy, image / backbone.scaling_factor], dim=1), name, t)
        return F.mse_loss(predicted, self.noise.get_velocity(clean, noise, t))

    @torch.no_grad()
    def maps(self, image_latents: Tensor, name: str) -> Tensor:
        """Return canonical maps (B, 1 or 3, H, W) of photos' latents. Activates the LoRA."""
        return decode(self.backbone.decode(self.latents(image_latents, name)), self.backbone.intrinsics[name])

    @torch.no_grad()
    def latents(self, image_latents: Tensor, name: str) -> Tensor:
        """Sample clean latents (B, C, h, w). All rows start from one fixed noise, so that scores are comparable."""
        backbone = self.backbone
        backbone.activate(name)
        image_latents = image_latents.to(backbone.device).float()
        noise = torch.randn(image_latents.shape[1:], generator=torch.Generator().manual_seed(0))
        noise = noise.to(backbone.device).expand_as(image_latents)
        photo = image_latents / backbone.scaling_factor

        def velocities(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            rows = torch.cat([x, photo], dim=1)  # (B, 2C, h, w)
            return backbone.predict(rows, name, t), backbone.predict(rows, "", t)

        return sample(self.solver, noise, velocities, self.steps, self.guidance_scale, self.guidance_rescale)

    def _check_sight(self) -> None:
        if not self.image_channels.weight.any() and not hasattr(self.backbone.unet.conv_in, "base_layer"):
            raise ValueError(
                "With image_channels=zeros the network never sees the photo; put conv_in among the LoRA's targets."
            )
