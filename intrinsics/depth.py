"""Depth ranges and depth pictures. Canonical is affine-invariant distance: 0 nearest, 1 farthest."""

import torch
from torch import Tensor

DEPTH_SCOPES = ("image", "batch", "clip")
DEPTH_POLARITIES = ("near-white", "near-black")


def normalize_depth(depth: Tensor, scope: str = "image", smoothing: float = 0.9) -> Tensor:
    """Stretch distances to 0 (nearest) .. 1 (farthest).

    Args:
        depth: (B, 1, H, W) distances, any unit or affine scale.
        scope: whose nearest and farthest point count: "image" each image its own; "batch" all images together;
            "clip" consecutive frames, each with the exponential moving average of the frames' ranges so far,
            so that brightness does not pump (what leaves the smoothed range is clamped).
        smoothing: for "clip", the weight of the past in that average, 0 (none) up to but not including 1.

    Returns:
        (B, 1, H, W) float32 in 0..1. Where the range is flat, zeros.

    Raises:
        ValueError: unknown scope, or smoothing outside [0, 1).
    """
    if scope not in DEPTH_SCOPES:
        raise ValueError(f"Unknown depth scope {scope!r}; choose from {', '.join(DEPTH_SCOPES)}.")
    if not 0 <= smoothing < 1:
        raise ValueError(f"Depth smoothing must be at least 0 and below 1, got {smoothing}.")
    depth = depth.float()
    dims = (0, 1, 2, 3) if scope == "batch" else (1, 2, 3)
    near, far = depth.amin(dims, keepdim=True), depth.amax(dims, keepdim=True)  # (B or 1, 1, 1, 1)
    if scope == "clip":
        near, far = _moving_average(near, smoothing), _moving_average(far, smoothing)
    span = far - near
    # Relative, because a constant image can carry rounding noise that min-max would blow up to the full range.
    flat = span <= 1e-6 * torch.maximum(near.abs(), far.abs())
    stretched = (depth - near) / torch.where(flat, torch.ones_like(span), span)
    return torch.where(flat, torch.zeros_like(depth), stretched.clamp(0, 1))


def render_depth(depth: Tensor, polarity: str = "near-white", scope: str = "image", smoothing: float = 0.9) -> Tensor:
    """Draw distances as a grey picture.

    Args:
        depth: (B, 1, H, W) distances, as for `normalize_depth`.
        polarity: "near-white" (what ControlNet expects) or "near-black".
        scope, smoothing: as for `normalize_depth`.

    Returns:
        (B, 1, H, W) float32 in 0..1, linear in distance (no gamma). A flat image is all near.

    Raises:
        ValueError: unknown polarity or scope.
    """
    if polarity not in DEPTH_POLARITIES:
        raise ValueError(f"Unknown depth polarity {polarity!r}; choose from {', '.join(DEPTH_POLARITIES)}.")
    distance = normalize_depth(depth, scope, smoothing)
    return 1 - distance if polarity == "near-white" else distance


def _moving_average(values: Tensor, smoothing: float) -> Tensor:
    averages = [values[0]]
    for value in values[1:]:
        averages.append(smoothing * averages[-1] + (1 - smoothing) * value)
    return torch.stack(averages)
