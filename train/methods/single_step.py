"""One forward pass draws the map: the paper's single step of a diffusion model, and one pass of a generator."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...intrinsics.codec import decode, encode
from ...intrinsics.vocabulary import Intrinsic
from ..backbones.interfaces import Backbone
from ..backbones.latent import LatentBackbone
from ..losses import masked_mean, pixel_loss

LOSSES = ("latent", "pixel", "latent+pixel")


class SingleStep:
    """The paper's single step: the network's output on a photo's latent is the latent of the map.

    Args:
        backbone: has one LoRA per intrinsic, of its name.
        timestep: the one timestep of the network, in training and inference.
        loss: "latent" (the paper's: mean squared error to a sample of the label's posterior), "pixel" (`pixel_loss`
            of the decoded picture; the gradient goes through the decoder) or "latent+pixel".
        pixel_weight: weight of the pixel loss in "latent+pixel".

    Raises:
        ValueError: an unknown loss, or a timestep that the base does not have.
    """

    image_channels = None

    def __init__(
        self, backbone: LatentBackbone, timestep: int, loss: str = "latent", pixel_weight: float = 1.0
    ) -> None:
        _check_loss(loss)
        if not 0 <= timestep < backbone.timesteps:
            raise ValueError(f"Timestep {timestep} is not one of the base's, 0 to {backbone.timesteps - 1}.")
        self.backbone = backbone
        self.timestep = timestep
        self.loss_kind = loss
        self.pixel_weight = pixel_weight
        self.encode_label = backbone.encode_target
        self.needs_maps = loss != "latent"

    def loss(self, batch: Mapping[str, Tensor], name: str, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the loss of one intrinsic, see `Method.loss`; a generator draws the sample of a label's posterior."""
        backbone = self.backbone
        backbone.activate(name)
        predicted = backbone.predict(batch["image"], name, self.timestep)  # (B, C, h, w)

        def latent() -> Tensor:
            mean, std = (batch[f"{name}_{part}"].to(predicted.device).float() for part in ("mean", "std"))
            noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators]).to(mean.device)
            return F.mse_loss(predicted, mean + std * noise)

        def pixel() -> Tensor:
            return _pixel(backbone.decode(predicted), batch, backbone.intrinsics[name])

        return _total(self.loss_kind, latent, pixel, self.pixel_weight)

    @torch.no_grad()
    def maps(self, conditions: Tensor, name: str) -> Tensor:
        """Return canonical maps (B, 1 or 3, H, W) of photos' latents (B, C, h, w). Activates the LoRA."""
        self.backbone.activate(name)
        predicted = self.backbone.predict(conditions, name, self.timestep)  # (B, C, h, w)
        return decode(self.backbone.decode(predicted), self.backbone.intrinsics[name])


class OnePass:
    """A generator's output is the map, from the condition of the picture.

    Args:
        backbone: has one LoRA per intrinsic, of its name.
        loss: "latent" (mean squared error to the label's picture, where the generator draws), "pixel" (`pixel_loss`)
            or "latent+pixel".
        pixel_weight: weight of the pixel loss in "latent+pixel".

    Raises:
        ValueError: an unknown loss.
    """

    image_channels = None
    encode_label = None
    needs_maps = True

    def __init__(self, backbone: Backbone, loss: str = "latent", pixel_weight: float = 1.0) -> None:
        _check_loss(loss)
        self.backbone = backbone
        self.loss_kind = loss
        self.pixel_weight = pixel_weight

    def loss(self, batch: Mapping[str, Tensor], name: str, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the loss of one intrinsic, see `Method.loss`; it is deterministic."""
        backbone = self.backbone
        backbone.activate(name)
        intrinsic = backbone.intrinsics[name]
        predicted = backbone.render(batch["image"])  # (B, 3, H, W)

        def squared() -> Tensor:
            truth = batch[name].to(predicted.device).float()
            counts = batch.get("mask", torch.ones_like(truth[:, :1])).to(predicted.device) > 0  # (B, 1, H, W)
            return masked_mean((predicted - encode(truth, intrinsic)).square(), counts).mean()

        return _total(self.loss_kind, squared, lambda: _pixel(predicted, batch, intrinsic), self.pixel_weight)

    @torch.no_grad()
    def maps(self, conditions: Tensor, name: str) -> Tensor:
        """Return canonical maps (B, 1 or 3, H, W) of conditions (B, ...). Activates the LoRA."""
        self.backbone.activate(name)
        return decode(self.backbone.render(conditions), self.backbone.intrinsics[name])


def _check_loss(loss: str) -> None:
    if loss not in LOSSES:
        raise ValueError(f"Unknown loss {loss!r}; choose from {', '.join(LOSSES)}.")


def _pixel(picture: Tensor, batch: Mapping[str, Tensor], intrinsic: Intrinsic) -> Tensor:
    """Return the mean pixel loss of pictures (B, 3, H, W), a scalar."""
    truth = batch[intrinsic.name].to(picture.device).float()
    return pixel_loss(picture, truth, intrinsic, batch.get("mask")).mean()


def _total(kind: str, native: Callable[[], Tensor], pixel: Callable[[], Tensor], weight: float) -> Tensor:
    """Combine the loss where the network draws with the pixel loss; only what `kind` names is computed."""
    if kind == "latent":
        return native()
    return pixel() if kind == "pixel" else native() + weight * pixel()
