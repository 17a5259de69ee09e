"""Depth ranges and depth pictures. Canonical is affine-invariant distance: 0 nearest, 1 farthest."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .vocabulary import DEPTH_KINDS, DEPTH_POLARITIES, DEPTH_SCOPES

# Renderers write 1e10 (Blender), infinity or NaN where a ray hits nothing; sensors write 0 where they measure nothing.
NOTHING_THERE = 1e9
# Limits the far end of the range in medians, so that a few outliers do not compress all other distances.
FARTHEST_MEDIANS = 20
# A picture is colour-mapped if its channels differ by more than this share of its brightest value, in more than this
# share of its pixels. The channels of a grey picture from a network differ by less.
GREY_TOLERANCE, GREY_SHARE = 0.1, 0.01

Values = TypeVar("Values", Tensor, np.ndarray)


def valid_depth(depth: Values, kind: str = "metric") -> Values:
    """Return which values of a depth map are valid.

    Args:
        depth: any shape, as stored.
        kind: one of `DEPTH_KINDS`. Valid metric distances are above 0 and below `NOTHING_THERE`; valid values of every
            other kind are finite.

    Returns:
        Booleans of the same shape; False where there is no surface or none was measured.
    """
    if kind == "metric":
        return (depth > 0) & (depth < NOTHING_THERE)
    return (depth > -torch.inf) & (depth < torch.inf)  # False for NaN


def grey_depth(depth: Tensor) -> Tensor:
    """Reduce a depth map of three equal channels to one channel.

    Args:
        depth: (..., C, H, W), C = 1 or 3, of any kind.

    Returns:
        (..., 1, H, W), the mean of the channels.

    Raises:
        ValueError: the channels differ, as in a colour-mapped picture of depth.
    """
    if depth.shape[-3] == 1:
        return depth
    depth = depth.float()
    size = depth.abs()
    brightest = torch.where(size < NOTHING_THERE, size, 0.0).max()
    differs = depth.amax(-3) - depth.amin(-3) > GREY_TOLERANCE * brightest  # (..., H, W); NaN - NaN > 0 is False
    if differs.float().mean() > GREY_SHARE:
        raise ValueError("The channels of the depth map differ, as in a colour map; save it in grey.")
    return depth.mean(-3, keepdim=True)


def normalize_depth(
    depth: Tensor, scope: str = "image", smoothing: float = 0.9, low: float = 0.0, high: float = 100.0
) -> Tensor:
    """Normalise distances to 0 (nearest) .. 1 (farthest).

    Args:
        depth: (B, 1, H, W) distances, any unit or affine scale.
        scope: pixels that share one depth range: "image", those of each image; "batch", those of all images; "clip",
            for consecutive frames, an exponential moving average of the ranges of the frames so far, which avoids
            flicker (values outside the smoothed range are clamped).
        smoothing: for "clip", the weight of the past in that average, from 0 (none) up to but not including 1.
        low, high: percentiles used as the nearest and farthest point, to ignore outliers; values outside are clamped.

    Returns:
        (B, 1, H, W) float32 in 0..1; zeros where the range is flat.

    Raises:
        ValueError: unknown scope, smoothing outside [0, 1), or not 0 <= low < high <= 100.
    """
    if scope not in DEPTH_SCOPES:
        raise ValueError(f"Unknown depth scope {scope!r}; choose from {', '.join(DEPTH_SCOPES)}.")
    if not 0 <= smoothing < 1:
        raise ValueError(f"Depth smoothing must be at least 0 and below 1, got {smoothing}.")
    if not 0 <= low < high <= 100:
        raise ValueError(f"Depth percentiles must be 0 <= low < high <= 100, got {low:g} and {high:g}.")
    depth = depth.float()
    values = depth.flatten()[None] if scope == "batch" else depth.flatten(1)  # (B or 1, N)
    near, far = (_percentile(values, percent)[:, None, None, None] for percent in (low, high))  # (B or 1, 1, 1, 1)
    if scope == "clip":
        near, far = _moving_average(near, smoothing), _moving_average(far, smoothing)
    span = far - near
    # Relative, because normalisation would amplify the rounding noise of a constant image to the full range.
    flat = span <= 1e-6 * torch.maximum(near.abs(), far.abs())
    # In place, so that two copies of a large depth map are held instead of five.
    stretched = (depth - near).div_(torch.where(flat, torch.ones_like(span), span))
    return stretched.clamp_(0, 1).masked_fill_(flat, 0)


def to_distance(depth: Tensor, kind: str, near: float, far: float) -> tuple[Tensor, float, float]:
    """Convert depth of any kind to canonical distance.

    Invalid depth (see `valid_depth`) becomes farthest and does not affect the range.

    Args:
        depth: (B, 1, H, W).
        kind: "distance": 0 nearest to 1 farthest, unchanged (canonical; Marigold; a near-black picture);
            "near-white": 1 nearest to 0 farthest (our pictures); "disparity": any affine scale of
            1 / distance (MiDaS, Depth Anything), normalised per image; "metric": distance in scene units.
        near, far: distances of the nearest and farthest point, scene units.

    Returns:
        (B, 1, H, W) float32, 0 at `near` .. 1 at `far`, and these two distances: for "metric" the
        range of the map (over the whole batch, see `metric_range`), else the arguments.

    Raises:
        ValueError: unknown kind, values outside 0..1 for kinds with that range, or no valid depth at all.
    """
    if kind not in DEPTH_KINDS:
        raise ValueError(f"Unknown kind of depth {kind!r}; choose from {', '.join(DEPTH_KINDS)}.")
    depth = depth.float()
    there = valid_depth(depth, kind)
    if not there.any():
        wanted = f"distance above 0 and below {NOTHING_THERE:g}" if kind == "metric" else "finite number"
        raise ValueError(f"The depth, of the kind {kind}, holds no {wanted}.")
    lowest = torch.where(there, depth, torch.inf).amin((1, 2, 3), keepdim=True)  # (B, 1, 1, 1), infinite where none
    depth = torch.where(there, depth, torch.where(lowest.isinf(), lowest.min(), lowest))
    if kind in ("distance", "near-white"):
        if depth.min() < -1e-3 or depth.max() > 1 + 1e-3:  # tolerates half precision and resampling
            raise ValueError(f"Depth of the kind {kind} lies in 0..1; for other ranges use disparity or metric.")
        depth = depth.clamp(0, 1)
        distance = depth if kind == "distance" else 1 - depth
    elif kind == "disparity":
        nearness = normalize_depth(depth)
        distance = (1 / (nearness / near + (1 - nearness) / far) - near) / (far - near)
    else:
        near, far = metric_range(depth[there])
        distance = normalize_depth(depth.clamp(max=far), scope="batch")
        far = max(far, near * 1.001)
    return torch.where(there, distance, 1.0), near, far


def metric_range(distances: Tensor) -> tuple[float, float]:
    """Return the nearest and the farthest of valid metric distances, the latter at most 20 times their median."""
    near, far = distances.min().item(), distances.max().item()
    return near, min(far, FARTHEST_MEDIANS * distances.median().item())


def render_depth(
    depth: Tensor,
    polarity: str = "near-white",
    scope: str = "image",
    *,
    low: float = 0.0,
    high: float = 100.0,
    gamma: float = 1.0,
) -> Tensor:
    """Draw distances as a grey picture.

    Args:
        depth: (B, 1, H, W) distances, as for `normalize_depth`.
        polarity: "near-white" (what ControlNet expects) or "near-black".
        scope, low, high: as for `normalize_depth`.
        gamma: of the picture, as in an image editor's levels: above 1 brightens midtones, 1 is linear in distance.

    Returns:
        (B, 1, H, W) float32 in 0..1. A flat image is drawn as near.

    Raises:
        ValueError: unknown polarity or scope, percentiles out of order, gamma not above 0.
    """
    if polarity not in DEPTH_POLARITIES:
        raise ValueError(f"Unknown depth polarity {polarity!r}; choose from {', '.join(DEPTH_POLARITIES)}.")
    if not gamma > 0:
        raise ValueError(f"The gamma of a depth picture must be above 0, got {gamma:g}.")
    distance = normalize_depth(depth, scope, low=low, high=high)
    grey = 1 - distance if polarity == "near-white" else distance
    return grey if gamma == 1 else grey ** (1 / gamma)


def _percentile(values: Tensor, percent: float) -> Tensor:
    """Compute a percentile of every row, (N, M) -> (N,)."""
    if percent in (0, 100):  # kthvalue does not run on every device
        return values.amin(1) if percent == 0 else values.amax(1)
    return values.kthvalue(1 + round(percent / 100 * (values.shape[1] - 1)), dim=1).values


def _moving_average(values: Tensor, smoothing: float) -> Tensor:
    averages = [values[0]]
    for value in values[1:]:
        averages.append(smoothing * averages[-1] + (1 - smoothing) * value)
    return torch.stack(averages)
