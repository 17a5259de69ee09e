"""Lighting setups with the names used by photographers. The key light is on the picture's left, see `mirror`.

Designed for `ratio` mode with its defaults: a wall that faces the key gets a shading of about 1, so the picture stays
about as bright as the photo.
"""

from collections.abc import Mapping
from types import MappingProxyType

from ..vocabulary import PRESET_DESCRIPTIONS
from .lights import Ambient, Light, Rim, Sun

_RIGS: dict[str, tuple[Light, ...]] = {
    "rembrandt": (
        Sun(name="key", az=-50, el=40, intensity=1.1, kelvin=4800, softness=0.15),
        Sun(name="fill", az=40, el=10, intensity=0.06, shadow=False),
        Ambient(name="ambient", intensity=0.12),
    ),
    "loop": (
        Sun(name="key", az=-32, el=35, intensity=0.9, kelvin=5600, softness=0.2),
        Sun(name="fill", az=40, el=10, intensity=0.25, shadow=False),
        Ambient(name="ambient", intensity=0.12),
    ),
    "butterfly": (
        Sun(name="key", az=0, el=50, intensity=1.0, kelvin=5600, softness=0.15),
        Ambient(name="ambient", intensity=0.18),
    ),
    "split": (
        Sun(name="key", az=-90, el=10, intensity=1.15, kelvin=5000, softness=0.15),
        Ambient(name="ambient", intensity=0.13),
    ),
    "rim": (
        Rim(name="rim left", az=-140, el=25, intensity=1.2),
        Rim(name="rim right", az=140, el=25, intensity=1.2),
        Ambient(name="ambient", intensity=0.18),
    ),
    "three-point": (
        Sun(name="key", az=-40, el=35, intensity=0.9, kelvin=5000, softness=0.15),
        Sun(name="fill", az=45, el=15, intensity=0.3, kelvin=6500, softness=0.4, shadow=False),
        Rim(name="rim", az=145, el=35, intensity=0.7, kelvin=7500),
        Ambient(name="ambient", intensity=0.08),
    ),
    "clamshell": (
        Sun(name="key", az=0, el=45, intensity=0.8, kelvin=5600, softness=0.35),
        Sun(name="fill", az=0, el=-35, intensity=0.35, kelvin=5600, softness=0.5, shadow=False),
        Ambient(name="ambient", intensity=0.12),
    ),
    "window": (
        Sun(name="window", az=-65, el=20, intensity=1.0, kelvin=7500, softness=0.5),
        Ambient(name="room", intensity=0.27, kelvin=7000),
    ),
    "moonlight": (
        Sun(name="moon", az=-115, el=50, intensity=0.35, kelvin=20000, color=(0.9, 1.0, 1.2), softness=0.05),
        Ambient(name="sky", intensity=0.08, kelvin=20000, color=(0.9, 1.0, 1.2)),
    ),
}

PRESETS: Mapping[str, tuple[Light, ...]] = MappingProxyType({name: _RIGS[name] for name in PRESET_DESCRIPTIONS})
