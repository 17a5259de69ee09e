"""How a LoRA is taught: what is predicted from a batch, and what it is compared with."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...intrinsics.codec import decode, encode
from ..backbones import Backbone
from ..losses import masked_mean, pixel_loss

LOSSES = ("latent", "pixel", "latent+pixel")


class SingleStep:
    """The paper's single step: the network's output on a photo's condition is the map, in latent or in pixel space.

    Args:
        backbone: with a LoRA of the name of every intrinsic.
        timestep: the one timestep the network is asked at, in training and ever after; if it is asked at any.
        loss: "latent" (the paper's: MSE where the network draws, to a sample of the label's posterior or, in pixel
            space, to the label's picture), "pixel" (`pixel_loss` of the decoded picture; the gradient goes through
            the decoder) or "latent+pixel".
        pixel_weight: of the pixel loss in "latent+pixel".

    Raises:
        ValueError: an unknown loss, or a timestep the base does not have.
    """

    def __init__(self, backbone: Backbone, timestep: int, loss: str = "latent", pixel_weight: float = 1.0) -> None:
        if loss not in LOSSES:
            raise ValueError(f"Unknown loss {loss!r}; choose from {', '.join(LOSSES)}.")
        if backbone.timesteps and not 0 <= timestep < backbone.timesteps:
            raise ValueError(f"Timestep {timestep} is not one of the base's, 0 to {backbone.timesteps - 1}.")
        self.backbone = backbone
        self.timestep = timestep
        self.loss_kind = loss
        self.pixel_weight = pixel_weight

    def loss(self, batch: Mapping[str, Tensor], name: str, generators: Sequence[torch.Generator]) -> Tensor:
        """The loss of one intrinsic, a scalar with gradients to its LoRA, which is activated.

        It is the mean of the samples' own losses, so that a batch may be cut in pieces and put together again.

        Args:
            batch: `image`, the conditions (B, ...); in latent space the label's `<name>_mean` and `<name>_std`, (B, C,
                h, w); in pixel space or for pixel losses the canonical map `<name>` (B, 1 or 3, H, W) and optionally
                `mask` (B, 1, H, W).
            name: the intrinsic.
            generators: of the posterior's sample, one per row; on the CPU, whatever the device, so that runs repeat.
        """
        backbone = self.backbone
        backbone.activate(name)
        predicted = backbone.predict(batch["image"], name, self.timestep)  # (B, C, h, w)
        total = torch.zeros((), device=predicted.device)
        if self.loss_kind != "pixel" and backbone.loss_space == "pixel":
            truth = batch[name].to(predicted.device).float()
            target, _ = backbone.encode_target(encode(truth, backbone.intrinsics[name]))  # (B, 3, H, W)
            counts = batch.get("mask", torch.ones_like(truth[:, :1])).to(predicted.device) > 0  # (B, 1, H, W)
            total = masked_mean((predicted - target).square(), counts).mean()
        elif self.loss_kind != "pixel":
            mean, std = (batch[f"{name}_{part}"].to(predicted.device).float() for part in ("mean", "std"))
            noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators]).to(mean.device)
            total = F.mse_loss(predicted, mean + std * noise)
        if self.loss_kind != "latent":
            picture = backbone.decode(predicted)  # (B, 3, H, W)
            truth, mask = batch[name].to(picture.device).float(), batch.get("mask")
            error = pixel_loss(picture, truth, backbone.intrinsics[name], mask).mean()
            total = error if self.loss_kind == "pixel" else total + self.pixel_weight * error
        return total

    @torch.no_grad()
    def maps(self, conditions: Tensor, name: str) -> Tensor:
        """Canonical maps (B, 1 or 3, H, W) of photos' conditions, for validation. Activates the LoRA."""
        self.backbone.activate(name)
        predicted = self.backbone.predict(conditions, name, self.timestep)  # (B, C, h, w)
        return decode(self.backbone.decode(predicted), self.backbone.intrinsics[name])
