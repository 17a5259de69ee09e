"""Differentiable losses on the decoded picture, one per kind of map, after the metrics.

Each takes (B, C, H, W) and gives (B,), the mean over the pixels that count of every sample by itself. A sample without
any such pixel has the loss 0. The picture is what `backbone.decode` gives: about [0, 1], not clamped.
"""

import torch
from torch import Tensor

from ..intrinsics.codec import encode
from ..intrinsics.color import srgb_to_linear
from ..intrinsics.normals import MIN_LENGTH, picture_to_normals, vector_length
from ..intrinsics.vocabulary import Intrinsic

# A fitted scale beyond these would make a flat picture, or one with the sense reversed, look right.
SCALES = (0.1, 10.0)


def pixel_loss(picture: Tensor, truth: Tensor, intrinsic: Intrinsic, mask: Tensor | None = None) -> Tensor:
    """Return the loss that fits the intrinsic.

    Args:
        picture: (B, 3, H, W) as drawn, unclamped.
        truth: canonical map (B, 1 or 3, H, W); pixels where it is not finite do not count.
        intrinsic: normals: angle in radians; depth: scale-and-shift-invariant; albedo and shading: scale-invariant in
            linear light; any other: absolute difference to the picture that encodes the truth.
        mask: (B, 1, H, W), non-zero where the truth counts.

    Returns:
        (B,) losses.
    """
    valid = truth.isfinite().all(1, keepdim=True)  # (B, 1, H, W)
    if mask is not None:
        valid = valid & (mask.to(truth.device) > 0)
    if intrinsic.name == "normals":
        valid = valid & (truth.square().sum(1, keepdim=True) > MIN_LENGTH**2)  # no surface there
    # Truth becomes a picture, not the other way round: the convention stays the codec's, and so do three channels
    # that should agree.
    target = encode(torch.where(valid, truth, 0.0), intrinsic)  # (B, 3, H, W)
    match intrinsic.name:
        case "normals":
            return angular(picture_to_normals(picture), picture_to_normals(target), valid)
        case "depth":
            return scale_and_shift_invariant(picture, target, valid)
        case "albedo" | "shading":
            # Below black the linear segment is extended, so that the gradient is not zero.
            light = srgb_to_linear(picture) + picture.clamp(max=0) / 12.92
            return scale_invariant(light, srgb_to_linear(target), valid)
        case _:
            return masked_mean((picture - target).abs(), valid)


def angular(vectors: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the mean angle in radians between vectors (B, 3, H, W) of any length: (B,).

    By atan2, whose gradient stays finite where acos has none. Vectors shorter than `MIN_LENGTH` do not
    count: they have no direction.
    """
    with torch.no_grad():
        valid = valid & (vectors.square().sum(1, keepdim=True) > MIN_LENGTH**2)
        anything = torch.tensor([1.0, 0.0, 0.0], device=vectors.device)[:, None, None]  # (3, 1, 1)
    vectors, truth = torch.where(valid, vectors, anything), torch.where(valid, truth, anything)
    sine = vector_length(torch.linalg.cross(vectors, truth, dim=1))  # (B, 1, H, W)
    return masked_mean(torch.atan2(sine, (vectors * truth).sum(1, keepdim=True)), valid)


def scale_and_shift_invariant(x: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the mean absolute difference after the scale and shift that fit x to truth best: (B,).

    The fit is least squares per sample over all channels and pixels that count (Ranftl et al. 2020, MiDaS, eq. 4),
    and differentiated through, so that the loss does not move when x is scaled or shifted.
    """
    x_mean, truth_mean = (masked_mean(y, valid)[:, None, None, None] for y in (x, truth))
    dx, dt = x - x_mean, truth - truth_mean
    covariance, variance = masked_mean(dx * dt, valid), masked_mean(dx * dx, valid)  # (B,)
    scale = (covariance / variance.clamp(min=1e-8)).clamp(*SCALES)[:, None, None, None]
    return masked_mean((scale * dx - dt).abs(), valid)


def scale_invariant(x: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the mean absolute difference after the least-squares scale of x, one per sample: (B,)."""
    scale = masked_mean(x * truth, valid) / masked_mean(x * x, valid).clamp(min=1e-8)  # (B,)
    return masked_mean((scale.clamp(*SCALES)[:, None, None, None] * x - truth).abs(), valid)


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of (B, C, H, W) over the valid pixels (B, 1, H, W) of each sample: (B,); 0 where none is."""
    count = valid.sum((1, 2, 3)) * x.shape[1]
    return torch.where(valid, x, 0.0).sum((1, 2, 3)) / count.clamp(min=1)
