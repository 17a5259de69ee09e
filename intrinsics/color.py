"""sRGB transfer functions (IEC 61966-2-1), exact piecewise, on light that may exceed white but is never negative."""

import torch
from torch import Tensor


def srgb_to_linear(x: Tensor) -> Tensor:
    """Decode sRGB to linear light.

    Args:
        x: any shape, sRGB-encoded, nominally 0..1. Values above 1 follow the same curve; negative values become 0.

    Returns:
        float32 linear light >= 0, same shape.
    """
    x = x.float().clamp(min=0)
    # The inner clamp keeps the power branch, and so its gradient, finite where it is not the one chosen.
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(x: Tensor) -> Tensor:
    """Encode linear light as sRGB.

    Args:
        x: any shape, linear light, nominally 0..1. Values above 1 follow the same curve; negative values become 0.

    Returns:
        float32 sRGB-encoded values >= 0, same shape.
    """
    x = x.float().clamp(min=0)
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def luminance(x: Tensor) -> Tensor:
    """Relative luminance (Rec. 709 weights) of linear light: (..., 3, H, W) or (..., 1, H, W) -> (..., 1, H, W)."""
    if x.shape[-3] == 1:
        return x
    return (x * x.new_tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(-3, keepdim=True)
