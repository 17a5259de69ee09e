"""sRGB transfer functions (IEC 61966-2-1) and conversion of other primaries to Rec. 709.

The transfer functions are exact and also defined above white; light is never negative.
"""

from collections.abc import Sequence

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
    # The inner clamp keeps the gradient of the power branch finite where the other branch is selected.
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
    """Compute relative luminance (Rec. 709) of linear light: (..., 3, H, W) or (..., 1, H, W) -> (..., 1, H, W)."""
    if x.shape[-3] == 1:
        return x
    return (x * x.new_tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(-3, keepdim=True)


# x and y of red, green, blue and white, in the order of EXR's attribute `chromaticities`.
REC_709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))


def to_rec709(chromaticities: Sequence[float]) -> Tensor | None:
    """Return the matrix (3, 3) float64 that converts linear RGB with other primaries to Rec. 709, white to white.

    White points are adapted by the Bradford transform, as in ICC profiles and the ACES matrices.

    Args:
        chromaticities: x and y of red, green, blue and white.

    Returns:
        The matrix, applied to column vectors; None if the primaries are those of Rec. 709.

    Raises:
        ValueError: these are not three primaries and a white point.
    """
    given, target = (torch.tensor(tuple(c), dtype=torch.float64) for c in (chromaticities, REC_709))
    if given.shape == target.shape and (given - target).abs().max() < 1e-3:
        return None
    try:
        source, white = _rgb_to_xyz(given)
        rec709, d65 = _rgb_to_xyz(target)
        cones = torch.tensor(BRADFORD, dtype=torch.float64)
        adapt = torch.linalg.inv(cones) @ torch.diag((cones @ d65) / (cones @ white)) @ cones
        matrix: Tensor = torch.linalg.inv(rec709) @ adapt @ source
    except RuntimeError as error:  # singular, or not eight numbers
        raise ValueError(f"Its chromaticities {_listed(chromaticities)} are not those of a colour space.") from error
    if not matrix.isfinite().all():
        raise ValueError(f"Its chromaticities {_listed(chromaticities)} are not those of a colour space.")
    return matrix


def _rgb_to_xyz(chromaticities: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrix (3, 3) whose columns are the primaries, and the white (3,) of luminance 1."""
    xy = chromaticities.reshape(4, 2)
    xyz = torch.cat([xy, 1 - xy.sum(1, keepdim=True)], 1).T  # (3, 4): red, green, blue, white
    white = xyz[:, 3] / xyz[1, 3]
    return xyz[:, :3] * torch.linalg.solve(xyz[:, :3], white), white


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)
