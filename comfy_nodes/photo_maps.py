"""The INTRINSIC_GBUFFER value, and conversion between ComfyUI's IMAGE and MASK and (B, C, H, W). No ComfyUI here."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..intrinsics.pictures import on_mid_grey
from ..intrinsics.relight import Camera

RINGING = 0.25  # how far sharp resampling of a picture may go beyond [0, 1]


@dataclass(frozen=True, eq=False)
class PhotoMaps:
    """A photo and its canonical maps, float32 (B, C, H, W) of one size; None where a map is unknown.

    Attributes:
        photo: (B, 3, H, W) sRGB-encoded, [0, 1]; composited on mid grey where it was transparent.
            Beyond 1 where its light was edited.
        normals: (B, 3, H, W) unit vectors, OpenGL camera frame.
        depth: (B, 1, H, W) distance, 0 = nearest, 1 = farthest, each image by itself.
        albedo: (B, 3, H, W) linear light, >= 0.
        shading: (B, 1 or 3, H, W) linear light, >= 0, up to scale.
        roughness: (B, 1, H, W) perceptual roughness in [0, 1].
        mask: (B, 1, H, W) in [0, 1], 1 = the subject; for a photo with alpha its opacity.
        confidence: (B, 1, H, W) in [0, 1], 1 = the prediction is consistent with itself.
        raw_depth: (B, 1, H, W) the same distance before it was stretched to 0..1, to normalise over a batch or clip.
        camera: the depth range and field of view.
        there: (B, 1, H, W) bool, where there is a surface, for depth that says so; None = everywhere.
    """

    photo: Tensor
    normals: Tensor | None = None
    depth: Tensor | None = None
    albedo: Tensor | None = None
    shading: Tensor | None = None
    roughness: Tensor | None = None
    mask: Tensor | None = None
    confidence: Tensor | None = None
    raw_depth: Tensor | None = None
    camera: Camera | None = None
    there: Tensor | None = None


def photo_from_image(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Convert IMAGE (B, H, W, 1, 3 or 4) to a photo (B, 3, H, W) and its opacity (B, 1, H, W), None without alpha.

    Both are float32 in [0, 1]; the photo is sRGB-encoded.

    Raises:
        ValueError: another shape, no pixels, NaN, or values far outside [0, 1].
    """
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"The image must be pictures of 1, 3 or 4 channels, not a tensor {tuple(image.shape)}.")
    x = channels_first(image)  # (B, 1|3|4, H, W)
    if 0 in x.shape:
        raise ValueError(f"The image is empty ({x.shape[0]} pictures of {x.shape[3]} x {x.shape[2]}).")
    if not torch.isfinite(x).all():
        raise ValueError("The image contains NaN or infinity; repair it first.")
    if x.min() < -RINGING or x.max() > 1 + RINGING:
        raise ValueError(
            f"The image has values from {x.min():.3g} to {x.max():.3g}; tone-map it to 0..1 (sRGB) before this node."
        )
    x = x.clamp(0, 1)
    alpha = x[:, 3:] if x.shape[1] == 4 else None
    photo = x[:, :3] if alpha is None else on_mid_grey(x[:, :3], alpha)
    return photo.expand(-1, 3, -1, -1), alpha


def channels_first(image: Tensor) -> Tensor:
    """Convert IMAGE (B, H, W, C) to (B, C, H, W) float32."""
    return image.movedim(-1, 1).float()


def to_image(x: Tensor) -> Tensor:
    """Convert (B, 1 or 3, H, W) to IMAGE (B, H, W, 3); one channel is repeated."""
    return x.expand(-1, 3, -1, -1).movedim(1, -1).contiguous()


def from_mask(mask: Tensor) -> Tensor:
    """Convert MASK (B, H, W) or (H, W) to (B, 1, H, W) float32."""
    return mask.float().reshape(-1, 1, *mask.shape[-2:])


def to_mask(x: Tensor) -> Tensor:
    """Convert (B, 1, H, W) to MASK (B, H, W)."""
    return x[:, 0].contiguous()
