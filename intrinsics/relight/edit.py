"""Editing of the light in a photo by changing its shading."""

import torch
from torch import Tensor

from ..color import luminance
from .gbuffer import GBuffer

# Edges of the blur: normals 30 degrees apart, or points off the plane by 2 % of the depth range, have a third of the
# weight.
NORMAL_SHARPNESS, PLANE_TOLERANCE = 8, 0.02


def edit_shading(
    gbuffer: GBuffer,
    *,
    soften: float = 0.0,
    contrast: float = 1.0,
    flatten: float = 0.0,
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Edit the shading of the same surfaces; render it with `combine(gbuffer, edited, "ratio")`.

    The edits are applied in the order of the arguments.

    Args:
        gbuffer: B pictures. Assumed maps do not guide the blur.
        soften: standard deviation, as a share of the picture's shorter side, of a blur of the shading's logarithm (so
            that a small bright light does not dominate a large shadow), see `blur_on_surface`. 0 = off.
        contrast: exponent of the shading relative to its median: 0 uniform light, 1 unchanged, 2 doubles the stops.
        flatten: 0..1, share of the shading replaced by its median. 1 removes all light and shadow ("delight") and the
            light's colour: the picture is the albedo times a grey.
        tint: linear RGB of a filter over the light, normalised to luminance 1, so that brightness is unchanged.

    Returns:
        (B, 3, H, W) linear light, in the units of `GBuffer.shading`.

    Raises:
        ValueError: flatten outside 0..1, a negative soften or contrast, or a black tint.
    """
    if not (soften >= 0 and contrast >= 0 and 0 <= flatten <= 1):
        raise ValueError(
            f"Shading is edited with soften >= 0, contrast >= 0 and flatten in 0..1, not {soften:g}, {contrast:g} and "
            f"{flatten:g}."
        )
    shading = gbuffer.shading
    color = shading.new_tensor(tint)[:, None, None]  # (3, 1, 1)
    if not luminance(color) > 0:
        raise ValueError("A black tint leaves no light: choose a colour.")
    median = luminance(shading).flatten(1).median(1).values[:, None, None, None]  # (B, 1, 1, 1)
    stops = (shading / median).log()  # (B, 1 or 3, H, W)
    if soften > 0:
        points = None if "depth" in gbuffer.assumed else gbuffer.geometry.points
        normals = None if "normals" in gbuffer.assumed else gbuffer.normals
        reach = gbuffer.camera.far - gbuffer.camera.near
        stops = blur_on_surface(stops, soften * min(shading.shape[-2:]), normals, points, reach)
    edited = (contrast * stops).exp()
    edited = edited + flatten * (1 - edited)
    return median * edited * (color / luminance(color))


def blur_on_surface(
    x: Tensor, sigma: float, normals: Tensor | None = None, points: Tensor | None = None, depth_range: float = 1.0
) -> Tensor:
    """Blur along surfaces only; approximately Gaussian without edges. Borders are extended by repeating the edge.

    Edge-avoiding wavelets of increasing size (a-trous, Dammertz et al. 2010), along rows and columns in turn. The
    weight of a pixel decreases with the angle between its normal and the centre's, and with its distance to the
    centre's tangent plane.

    Args:
        x: (B, C, H, W).
        sigma: standard deviation in pixels.
        normals: (B, 3, H, W) unit; None = unknown, in which case points are ignored too.
        points: (B, 3, H, W) of the surface; None = unknown.
        depth_range: far - near, scene units.
    """
    variance, step = 0.0, 1
    while variance < sigma**2:
        wider = x
        for dim in (-2, -1):
            wider = _blur_along(wider, dim, step, normals, points, PLANE_TOLERANCE * depth_range)
        # This kernel has variance step ** 2, and the variance of a mixture is linear in its share.
        share = min(1.0, (sigma**2 - variance) / step**2)
        x, variance, step = x + share * (wider - x), variance + step**2, 2 * step
    return x


def _blur_along(
    x: Tensor, dim: int, step: int, normals: Tensor | None, points: Tensor | None, tolerance: float
) -> Tensor:
    """Average five pixels `step` apart along one axis, weighted 1 4 6 4 1 and by their similarity to the surface."""
    length = x.shape[dim]
    at = torch.arange(length, device=x.device)
    total, weights = 6 * x, torch.full_like(x[:, :1], 6)
    for offset, weight in ((-2, 1), (-1, 4), (1, 4), (2, 1)):
        there = (at + offset * step).clamp(0, length - 1)
        near = weight * torch.ones_like(x[:, :1])  # (B, 1, H, W)
        if normals is not None:
            near = near * (normals * normals.index_select(dim, there)).sum(1, True).clamp(min=0) ** NORMAL_SHARPNESS
            if points is not None:
                off = (normals * (points.index_select(dim, there) - points)).sum(1, True)
                near = near * torch.exp(-(off / tolerance).square())
        total, weights = total + near * x.index_select(dim, there), weights + near
    return total / weights
