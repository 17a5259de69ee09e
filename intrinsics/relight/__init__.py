"""Relighting: a G-buffer, a rig of lights, and the photo under it. Pure torch, linear light, differentiable."""

from .environment import Environment
from .gbuffer import GBuffer, fit_scale, make_gbuffer
from .geometry import Camera
from .lights import Ambient, Light, Point, Rim, Spot, Sun, kelvin_to_linear
from .render import MODES, Relit, combine, relight
from .shadows import March, ambient_occlusion, shadow_visibility

__all__ = [
    "MODES",
    "Ambient",
    "Camera",
    "Environment",
    "GBuffer",
    "Light",
    "March",
    "Point",
    "Relit",
    "Rim",
    "Spot",
    "Sun",
    "ambient_occlusion",
    "combine",
    "fit_scale",
    "kelvin_to_linear",
    "make_gbuffer",
    "relight",
    "shadow_visibility",
]
