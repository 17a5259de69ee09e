"""Changing the light that is already in a photo, by its shading alone."""

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from ..color import luminance
from ..resize import resize

BLUR_PIXELS = 12.0  # a wider Gaussian is computed on a smaller picture


def edit_shading(
    shading: Tensor,
    *,
    soften: float = 0.0,
    contrast: float = 1.0,
    flatten: float = 0.0,
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Another shading for the same surfaces; show it with `combine(gbuffer, edited, "ratio")`. In this order:

    Args:
        shading: (B,1 or 3,H,W) linear light, > 0, such as `GBuffer.shading`.
        soften: standard deviation, as a share of the picture's shorter side, of a Gaussian blur of the shading's
            logarithm (so that a small bright light does not outweigh a large shadow). It knows no outlines: light
            bleeds over them. 0 does nothing.
        contrast: exponent of the shading around its median: 0 even light, 1 as it is, 2 twice the stops.
        flatten: 0..1, how much of the shading gives way to even light at its median. 1 removes all light and shadow
            ("delight"), and the light's colour with it: the picture is then the albedo times one grey.
        tint: linear RGB of a filter over the light; its luminance is left aside, so the picture does not darken.

    Returns:
        (B,3,H,W) linear light.

    Raises:
        ValueError: flatten outside 0..1, a negative soften or contrast, or a black tint.
    """
    if not (soften >= 0 and contrast >= 0 and 0 <= flatten <= 1):
        raise ValueError(
            f"Shading is edited with soften >= 0, contrast >= 0 and flatten in 0..1, not {soften:g}, {contrast:g} and "
            f"{flatten:g}."
        )
    color = shading.new_tensor(tint)[:, None, None]  # (3,1,1)
    if not luminance(color) > 0:
        raise ValueError("A black tint leaves no light: choose a colour.")
    median = luminance(shading).flatten(1).median(1).values[:, None, None, None]  # (B,1,1,1)
    stops = (shading / median).log()  # (B,1 or 3,H,W)
    if soften > 0:
        stops = gaussian_blur(stops, soften * min(shading.shape[-2:]))
    edited = (contrast * stops).exp()
    edited = edited + flatten * (1 - edited)
    return median * edited * (color / luminance(color))


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blur (B,C,H,W) by a Gaussian of `sigma` pixels; beyond the border the nearest pixel counts."""
    height, width = x.shape[-2:]
    shrink = max(1.0, sigma / BLUR_PIXELS)
    small = resize(x, (max(1, round(height / shrink)), max(1, round(width / shrink))))
    for dim in (-2, -1):
        own = sigma * small.shape[dim] / x.shape[dim]  # sigma in pixels of `small` along this axis
        reach = ceil(3 * own)
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / own).square())
        down = dim == -2
        kernel = (kernel / kernel.sum()).reshape((1, 1, -1, 1) if down else (1, 1, 1, -1))
        padding = (0, 0, reach, reach) if down else (reach, reach, 0, 0)
        flat = small.reshape(-1, 1, *small.shape[-2:])  # (B*C,1,h,w): one kernel for all channels
        small = F.conv2d(F.pad(flat, padding, mode="replicate"), kernel).reshape(small.shape)
    return resize(small, (height, width))
