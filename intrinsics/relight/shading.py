"""How a surface answers to light: Lambert and GGX, in units where a white Lambert surface returns the irradiance."""

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from .lights import Incidence, Light, Rim, number

MIN_ROUGHNESS = 0.05  # below, the highlight is smaller than a pixel and float32 cannot hold its height
LIGHT_WIDTH = 1 / 3  # see `ggx`
RIM_ARC = 0.05  # the least arc of a rim light, so that one exactly behind still has a side


def lambert(normals: Tensor, direction: Tensor) -> Tensor:
    """max(N.L, 0): (B, 3, H, W), (B, 3, H, W) unit -> (B, 1, H, W)."""
    return (normals * direction).sum(1, keepdim=True).clamp(min=0)


def rim(normals: Tensor, view: Tensor, incidence: Incidence, light: Rim) -> tuple[Tensor, Tensor]:
    """Compute the shading (B, 1, H, W) of a `Rim` and the direction (B, 3, H, W) of its shadows."""
    edge = (1 - lambert(normals, view)).clamp(min=0)  # (B, 1, H, W); N.V rounds to above 1
    along = (incidence.direction * view).sum(1, keepdim=True)
    across = incidence.direction - along * view  # (B, 3, H, W), length = sine of the angle between light and view
    sine = (across.square().sum(1, keepdim=True) + 1e-12).sqrt()
    arc = number(light.softness, view).clamp(min=RIM_ARC)
    side = (((normals * across).sum(1, keepdim=True) + arc) / (sine + arc)).clamp(0, 1)
    return edge ** (1 / number(light.width, view)) * side, across / sine


def ggx(
    normals: Tensor,
    view: Tensor,
    direction: Tensor,
    roughness: Tensor,
    f0: float | Tensor,
    widen: float | Tensor = 0.0,
) -> Tensor:
    """Cook-Torrance highlight, already times N.L: GGX distribution, height-correlated Smith, Schlick's Fresnel.

    In the units of `lambert`: times an irradiance it gives what the surface adds to albedo * irradiance, that is
    pi * brdf * N.L (Walter et al. 2007; Heitz 2014).

    Args:
        normals, view, direction: (B, 3, H, W) unit; to the viewer, to the light.
        roughness: (B, 1, H, W) perceptual, alpha = roughness**2, at least 0.05 is used.
        f0: reflectance at normal incidence, 0.04 for most dielectrics. Below 0.02, which no material has, the
            reflectance at grazing angles fades too (Karis 2013), so that 0 reflects nothing.
        widen: alpha of the light itself. Widths add in squares, and a third of the light's angular radius
            (`LIGHT_WIDTH`) comes closest to an integral over its disc. The lobe keeps its energy.

    Returns:
        (B, 1, H, W) >= 0.
    """
    half = F.normalize(view + direction, dim=1)
    n_l, n_v = lambert(normals, direction), lambert(normals, view).clamp(min=1e-4)
    n_h = lambert(normals, half)
    v_h = lambert(view, half)
    alpha = roughness.clamp(MIN_ROUGHNESS, 1).square()  # (B, 1, H, W)
    alpha2 = (alpha.square() + widen**2).clamp(max=1)
    # 1 - (N.H)**2 as |N x H|**2: the difference cancels where the highlight is.
    sine2 = torch.linalg.cross(normals, half, dim=1).square().sum(1, keepdim=True)
    distribution = alpha2 / (pi * (sine2 + alpha2 * n_h.square()).square().clamp(min=1e-12))
    smith_l = n_v * (n_l.square() * (1 - alpha2) + alpha2).sqrt()
    smith_v = n_l * (n_v.square() * (1 - alpha2) + alpha2).sqrt()
    f0 = torch.as_tensor(f0, dtype=torch.float32, device=normals.device)
    fresnel = f0 + ((50 * f0).clamp(max=1) - f0) * (1 - v_h) ** 5
    highlight: Tensor = pi * distribution * 0.5 / (smith_l + smith_v).clamp(min=1e-6) * fresnel * n_l
    return highlight


def direct(light: Light, normals: Tensor, view: Tensor, incidence: Incidence) -> Tensor:
    """Shading (B, 1, H, W) of one light before colour, intensity, mask and shadow."""
    if isinstance(light, Rim):
        return rim(normals, view, incidence, light)[0]
    return incidence.irradiance * lambert(normals, incidence.direction)
