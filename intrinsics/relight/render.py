"""Rendering of a G-buffer under new lights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..color import luminance
from ..vocabulary import MODES
from .environment import Environment, irradiance, reflection
from .gbuffer import GBuffer
from .lights import Ambient, Light, Number, Point, Rim, Sun, number
from .shading import LIGHT_WIDTH, direct, ggx, rim
from .shadows import March, ambient_occlusion, shadow_visibility

DIELECTRIC_F0 = 0.08  # multiplied by `specular`: 0.5 gives F0 0.04, as in Disney's and Blender's shaders


@dataclass(frozen=True, eq=False)
class Relit:
    """Result of `relight`. Linear light, float32, not clamped.

    Attributes:
        image: (B, 3, H, W) the relit photo.
        diffuse: (B, 3, H, W) diffuse reflection of the new light, before exposure and mask.
        specular: (B, 3, H, W) specular reflection of the new light, before exposure and mask.
        shadow: (B, 1, H, W) share of the lights' shading that is not shadowed, 1 = unshadowed.
        shading: (B, 3, H, W) the new shading, in the units of `GBuffer.shading`.
        ambient_occlusion: (B, 1, H, W) 1 = open; 1 everywhere if occlusion is off.
    """

    image: Tensor
    diffuse: Tensor
    specular: Tensor
    shadow: Tensor
    shading: Tensor
    ambient_occlusion: Tensor


def relight(
    gbuffer: GBuffer,
    lights: Sequence[Light],
    *,
    mode: str = "ratio",
    keep_original: Number = 0.0,
    ambient: Number = 0.0,
    exposure: Number = 0.0,
    shadow: Number = 1.0,
    specular: Number = 0.0,
    occlusion: Number = 0.0,
    march: March | None = None,
) -> Relit:
    """Relight the photo.

    Args:
        gbuffer: B pictures.
        lights: any number of lights; their tensors may have the batch size of the G-buffer, or any
            batch size if it contains one picture, which is then rendered once for each.
        mode: how the new shading and the photo are combined, see `combine`.
        keep_original: 0..1, share of the photo's original light that is kept (`add` keeps all of it).
        ambient: white shading added everywhere.
        exposure: in stops.
        shadow: 0..1, strength of the shadows.
        specular: 0 none, 0.5 most materials (4 % at normal incidence), 1 twice that. Rim lights have no highlights.
        occlusion: 0..1, strength of ambient occlusion of ambient and environment light.
        march: parameters of the shadow rays.

    Raises:
        ValueError: unknown mode, or a light's mask that has another size than the picture.
    """
    surface = _surface(gbuffer, mode)
    for light in lights:
        if light.mask is not None and light.mask.shape[-2:] != gbuffer.photo.shape[-2:]:
            sizes = [" x ".join(map(str, m.shape[-2:])) for m in (light.mask, gbuffer.photo)]
            raise ValueError(f"A light's mask has {sizes[0]} pixels and the picture {sizes[1]}; resize the mask.")
    normals, geometry = gbuffer.normals, gbuffer.geometry
    view = geometry.view
    f0 = DIELECTRIC_F0 * number(specular, normals)
    shines = bool((f0 > 0).any())
    openness = torch.ones_like(gbuffer.depth)  # (B, 1, H, W)
    if (number(occlusion, normals) > 0).any():
        openness = 1 - number(occlusion, normals) * (1 - ambient_occlusion(geometry, normals))

    zero = torch.zeros_like(normals)
    shading = zero + number(ambient, normals) * openness  # (B, 3, H, W)
    highlights = zero
    direct_light, direct_unshadowed = zero, zero
    for light in lights:
        if not light.enabled:
            continue
        radiance = light.radiance(normals) * (1.0 if light.mask is None else light.mask)  # (B, 3, 1 or H, 1 or W)
        if isinstance(light, Ambient):
            shading = shading + radiance * openness
        elif isinstance(light, Environment):
            shading = shading + radiance * openness * irradiance(light, normals)
            if shines:
                reflected = reflection(light, normals, view, gbuffer.roughness, f0)
                highlights = highlights + radiance * openness * reflected
        elif isinstance(light, Sun | Point):
            incidence = light.incidence(geometry)
            received = direct(light, normals, view, incidence)  # (B, 1, H, W)
            visible: Tensor | float = 1.0
            # Assumed depth is a plane, which would block light from the side or behind for every pixel.
            if light.shadow and "depth" not in gbuffer.assumed and (number(shadow, normals) > 0).any():
                towards = rim(normals, view, incidence, light)[1] if isinstance(light, Rim) else incidence.direction
                radii = number(light.softness, normals)
                batch = max(len(received), len(radii))
                towards, lit = (t.expand(batch, -1, -1, -1) for t in (towards, received > 0))
                distance = None if incidence.distance is None else incidence.distance.expand_as(lit)
                visible = shadow_visibility(geometry, normals, towards, distance, radii, march, lit)
                visible = 1 - number(shadow, normals) * (1 - visible)  # (B, 1, H, W)
            unshadowed = radiance * received
            direct_unshadowed = direct_unshadowed + unshadowed
            direct_light = direct_light + unshadowed * visible
            if shines and not isinstance(light, Rim):
                radius = number(light.softness, normals) / (1 if incidence.distance is None else incidence.distance)
                lobe = ggx(normals, view, incidence.direction, gbuffer.roughness, f0, widen=LIGHT_WIDTH * radius)
                highlights = highlights + radiance * incidence.irradiance * lobe * visible
        else:
            raise TypeError(f"{type(light).__name__} is not a light that can be rendered.")
    shading = shading + direct_light
    diffuse = surface * shading
    kept = 1.0 if mode == "add" else number(keep_original, normals)
    image = (kept * gbuffer.photo + diffuse + highlights) * 2 ** number(exposure, normals)
    image = gbuffer.mask * image + (1 - gbuffer.mask) * gbuffer.photo
    total = luminance(direct_unshadowed)
    unshadowed_share = torch.where(total > 1e-6, luminance(direct_light) / total.clamp(min=1e-6), 1.0)

    def per_picture(x: Tensor) -> Tensor:
        return x.expand(len(image), -1, -1, -1)

    return Relit(
        image=image,
        diffuse=per_picture(diffuse),
        specular=per_picture(highlights),
        shadow=per_picture(unshadowed_share),
        shading=per_picture(shading),
        ambient_occlusion=per_picture(openness),
    )


def combine(gbuffer: GBuffer, shading: Tensor, mode: str = "ratio") -> Tensor:
    """Combine the picture's surfaces with a shading, diffuse part only.

    `ratio`: photo * shading / estimated shading. Keeps the photo's detail and colours, hides the softness of an
    estimated albedo, and does not light twice; the estimated shading reproduces the photo. `albedo` and `add`:
    albedo * shading, which removes the photo's light even where the maps do not explain it (`add` is for lamps in
    addition to that light, so `relight` adds the photo).

    Args:
        gbuffer: B pictures.
        shading: (B, 1 or 3, H, W) linear, in the units of `GBuffer.shading`.
        mode: one of `MODES`.

    Returns:
        (B, 3, H, W) linear, not clamped.

    Raises:
        ValueError: unknown mode.
    """
    return _surface(gbuffer, mode) * shading


def _surface(gbuffer: GBuffer, mode: str) -> Tensor:
    """Return the colour of the surface in this mode, (B, 3, H, W)."""
    if mode not in MODES:
        raise ValueError(f"Unknown relighting mode {mode!r}; choose from {', '.join(MODES)}.")
    return gbuffer.photo / gbuffer.shading if mode == "ratio" else gbuffer.albedo
