"""Lambert and GGX reflection, in units where a white Lambert surface reflects the irradiance."""

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from .lights import Incidence, Light, Rim, number

MIN_ROUGHNESS = 0.05  # below, highlights are smaller than a pixel and exceed float32
LIGHT_WIDTH = 1 / 3  # see `ggx`
RIM_ARC = 0.05  # minimum arc of a rim light, which keeps a light exactly behind well defined


def lambert(normals: Tensor, direction: Tensor) -> Tensor:
    """Compute max(N.L, 0): unit vectors (B, 3, H, W), (B, 3, H, W) -> (B, 1, H, W)."""
    return (normals * direction).sum(1, keepdim=True).clamp(min=0)


def rim(normals: Tensor, view: Tensor, incidence: Incidence, light: Rim) -> tuple[Tensor, Tensor]:
    """Compute the shading (B, 1, H, W) of a `Rim` and the direction (B, 3, H, W) of its shadows."""
    edge = (1 - lambert(normals, view)).clamp(min=0)  # (B, 1, H, W); N.V may round to above 1
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
    """Compute the Cook-Torrance highlight times N.L: GGX distribution, height-correlated Smith, Schlick's Fresnel.

    In the units of `lambert`: multiplied by an irradiance it is the specular light added to albedo * irradiance, that
    is pi * brdf * N.L (Walter et al. 2007; Heitz 2014).

    Args:
        normals, view, direction: (B, 3, H, W) unit; view points to the viewer, direction to the light.
        roughness: (B, 1, H, W) perceptual, alpha = roughness**2, clamped to at least 0.05.
        f0: reflectance at normal incidence, 0.04 for most dielectrics. Below 0.02, which does not occur in real
            materials, the reflectance at grazing angles decreases too (Karis 2013), so that 0 reflects nothing.
        widen: alpha added for the size of the light, in squares. A third of the light's angular radius
            (`LIGHT_WIDTH`) comes closest to an integral over its disc. The energy of the lobe is unchanged.

    Returns:
        (B, 1, H, W) >= 0.
    """
    half = F.normalize(view + direction, dim=1)
    n_l, n_v = lambert(normals, direction), lambert(normals, view).clamp(min=1e-4)
    n_h = lambert(normals, half)
    v_h = lambert(view, half)
    alpha = roughness.clamp(MIN_ROUGHNESS, 1).square()  # (B, 1, H, W)
    alpha2 = (alpha.square() + widen**2).clamp(max=1)
    # 1 - (N.H)**2 as |N x H|**2, because the difference loses precision inside the highlight.
    sine2 = torch.linalg.cross(normals, half, dim=1).square().sum(1, keepdim=True)
    distribution = alpha2 / (pi * (sine2 + alpha2 * n_h.square()).square().clamp(min=1e-12))
    smith_l = n_v * (n_l.square() * (1 - alpha2) + alpha2).sqrt()
    smith_v = n_l * (n_v.square() * (1 - alpha2) + alpha2).sqrt()
    f0 = torch.as_tensor(f0, dtype=torch.float32, device=normals.device)
    fresnel = f0 + ((50 * f0).clamp(max=1) - f0) * (1 - v_h) ** 5
    highlight: Tensor = pi * distribution * 0.5 / (smith_l + smith_v).clamp(min=1e-6) * fresnel * n_l
    return highlight


def direct(light: Light, normals: Tensor, view: Tensor, incidence: Incidence) -> Tensor:
    """Compute the shading (B, 1, H, W) of one light before colour, intensity, mask and shadow."""
    if isinstance(light, Rim):
        return rim(normals, view, incidence, light)[0]
    return incidence.irradiance * lambert(normals, incidence.direction)
