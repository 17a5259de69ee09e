"""Changing the light that is already in a photo, by its shading alone."""

import torch
from torch import Tensor

from ..color import luminance
from .gbuffer import GBuffer

# What stops the blur: normals 30 degrees apart count a third, points 2 % of the depth range off the plane likewise.
NORMAL_SHARPNESS, PLANE_TOLERANCE = 8, 0.02


def edit_shading(
    gbuffer: GBuffer,
    *,
    soften: float = 0.0,
    contrast: float = 1.0,
    flatten: float = 0.0,
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Another shading for the same surfaces; show it with `combine(gbuffer, edited, "ratio")`. In this order:

    Args:
        gbuffer: B pictures. Maps that were assumed do not guide the blur.
        soften: standard deviation, as a share of the picture's shorter side, of a blur of the shading's logarithm (so
            that a small bright light does not outweigh a large shadow), see `blur_on_surface`. 0 does nothing.
        contrast: exponent of the shading around its median: 0 even light, 1 as it is, 2 twice the stops.
        flatten: 0..1, how much of the shading gives way to even light at its median. 1 removes all light and shadow
            ("delight"), and the light's colour with it: the picture is then the albedo times one grey.
        tint: linear RGB of a filter over the light; its luminance is left aside, so the picture does not darken.

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
    """Blur that stays on one surface, nearly a Gaussian where nothing stops it; beyond the border the edge repeats.

    Edge-avoiding wavelets of growing reach (a-trous, Dammertz et al. 2010), along rows and columns in turn. A pixel
    counts less the more its normal turns away from the centre's, and the further it is off the centre's tangent plane.

    Args:
        x: (B, C, H, W).
        sigma: standard deviation in pixels.
        normals: (B, 3, H, W) unit; None = not known, and then points do not count either.
        points: (B, 3, H, W) of the surface; None = not known.
        depth_range: far - near, scene units.
    """
    variance, step = 0.0, 1
    while variance < sigma**2:
        wider = x
        for dim in (-2, -1):
            wider = _blur_along(wider, dim, step, normals, points, PLANE_TOLERANCE * depth_range)
        # This kernel's variance is step squared, and variances of a mixture mix too.
        share = min(1.0, (sigma**2 - variance) / step**2)
        x, variance, step = x + share * (wider - x), variance + step**2, 2 * step
    return x


def _blur_along(
    x: Tensor, dim: int, step: int, normals: Tensor | None, points: Tensor | None, tolerance: float
) -> Tensor:
    """Five pixels `step` apart along one axis, weighed 1 4 6 4 1 and by how much they are of one surface."""
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
