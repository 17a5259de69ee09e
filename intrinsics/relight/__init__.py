"""Relighting of a G-buffer by a rig of lights, in linear light. Pure torch, differentiable."""

from ..vocabulary import MODES, PRESET_DESCRIPTIONS
from .environment import Environment, sh_coefficients
from .fields import LIGHT_FIELDS, LIGHT_TYPES, Field
from .gbuffer import GBuffer, fit_scale, make_gbuffer
from .geometry import Camera
from .lights import Ambient, Light, Point, Rim, Spot, Sun, kelvin_to_linear
from .panorama import read_panorama
from .presets import PRESETS
from .render import Relit, combine, relight
from .rig import RIG_FORMAT, RIG_VERSION, mirror, parse_light, read_rig, rig_from_json, rig_to_json, write_rig
from .shadows import EXACT_DEPTH, March, ambient_occlusion, shadow_visibility

__all__ = [
    "EXACT_DEPTH",
    "LIGHT_FIELDS",
    "LIGHT_TYPES",
    "MODES",
    "PRESETS",
    "PRESET_DESCRIPTIONS",
    "RIG_FORMAT",
    "RIG_VERSION",
    "Ambient",
    "Camera",
    "Environment",
    "Field",
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
    "mirror",
    "parse_light",
    "read_panorama",
    "read_rig",
    "relight",
    "rig_from_json",
    "rig_to_json",
    "sh_coefficients",
    "shadow_visibility",
    "write_rig",
]
