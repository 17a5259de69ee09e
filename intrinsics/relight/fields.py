"""Fields of all lights, with their limits and descriptions, shared by validation, documentation, nodes and widget."""

import dataclasses
import re
import reprlib
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, cast

import torch

from ..color import srgb_to_linear
from .environment import Environment
from .lights import KELVIN_RANGE, Ambient, Light, Point, Rim, Spot, Sun

MAX_TEXT_FIELD = 200  # characters
LARGE = 1e6  # limit of values without a natural limit; keeps sums and products of lights finite in float32

LIGHT_TYPES: Mapping[str, type[Light]] = MappingProxyType(
    {"sun": Sun, "point": Point, "spot": Spot, "rim": Rim, "ambient": Ambient, "environment": Environment}
)


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a light: its type, limits, and presentation in a user interface.

    Attributes:
        kind: "number"; "color" (linear R, G, B, or sRGB as "#rrggbb"); "switch" (true or false); "text";
            "picture" (a name).
        tooltip: one or two sentences for the user.
        min, max: accepted range, both included, of numbers and of each component of a colour.
        soft_min, soft_max: range of a slider.
        step: step of a slider.
        optional: whether null is accepted.
        default: value of a missing field, as in the `Light`; None for the panorama, which has no default.
    """

    kind: Literal["number", "color", "switch", "text", "picture"]
    tooltip: str
    min: float = 0.0
    max: float = LARGE
    soft_min: float = 0.0
    soft_max: float = 1.0
    step: float = 0.01
    optional: bool = False
    default: Any = None


def _angle(tooltip: str) -> Field:
    return Field("number", tooltip, min=-LARGE, soft_min=-180, soft_max=180, step=1)


def _across(tooltip: str) -> Field:
    return Field("number", tooltip, min=-LARGE, soft_min=-0.25, soft_max=1.25)


_COMMON = {
    "color": Field("color", "Colour, multiplied with the colour of the temperature."),
    "kelvin": Field(
        "number",
        "Colour temperature: 2000 candle, 3200 tungsten, 5600 flash, 6500 white, 10000 blue sky. Empty is white.",
        *KELVIN_RANGE,
        soft_min=1800,
        soft_max=12000,
        step=50,
        optional=True,
    ),
    "intensity": Field("number", "Brightness. Twice the number is twice the light.", soft_max=5),
    "mask": Field("picture", "Where the light may shine: white yes, black no. Empty is everywhere.", optional=True),
    "name": Field("text", "What you call this light."),
    "enabled": Field("switch", "Off mutes the light without losing its settings."),
}
_SHADOW = Field("switch", "Whether this light casts shadows.")
_DIRECTION = {
    "az": _angle("Azimuth, degrees: 0 from the viewer, 90 from the right, -90 from the left, 180 from behind."),
    "el": Field(
        "number",
        "Elevation, degrees: 0 level, 90 straight from above, negative from below.",
        min=-90,
        max=90,
        soft_min=-90,
        soft_max=90,
        step=1,
    ),
}
_LAMP = {
    "x": _across("Where the lamp is: 0 the picture's left edge, 1 its right edge, beyond is outside the frame."),
    "y": _across("Where the lamp is: 0 the picture's top edge, 1 its bottom edge, beyond is outside the frame."),
    "height": Field(
        "number",
        "How far the lamp is in front of the surface there, scene units. Negative is behind it.",
        min=-LARGE,
        soft_max=3,
    ),
    "softness": Field("number", "Radius of the lamp, scene units: larger casts softer shadows."),
    "shadow": _SHADOW,
}
_OWN_FIELDS: Mapping[str, Mapping[str, Field]] = {
    "sun": {
        **_DIRECTION,
        "softness": Field("number", "Size of the light: 0 casts hard shadows, 0.1 soft ones, 0.5 is a large window."),
        "shadow": _SHADOW,
    },
    "point": _LAMP,
    "spot": {
        **_LAMP,
        "aim_x": _across("What the spot is aimed at: 0 the picture's left edge, 1 its right edge."),
        "aim_y": _across("What the spot is aimed at: 0 the picture's top edge, 1 its bottom edge."),
        "angle": Field(
            "number", "Full angle of the cone, degrees.", min=0.1, max=179.9, soft_min=1, soft_max=120, step=1
        ),
        "blend": Field("number", "How much of the cone fades towards its edge: 0 is a sharp edge.", max=1),
    },
    "rim": {
        **_DIRECTION,
        "softness": Field("number", "How far the light reaches around the outline, and how soft its shadows are."),
        "shadow": _SHADOW,
        "width": Field("number", "How far it reaches from the outline inwards.", min=0.01, max=1, soft_min=0.05),
    },
    "ambient": {},
    "environment": {
        "image": Field("picture", "The panorama: equirectangular, linear light."),
        "rotation": _angle("Turns the panorama: degrees added to the azimuth of everything in it."),
    },
}


def _with_defaults(kind: str) -> Mapping[str, Field]:
    defaults = {f.name: f.default for f in dataclasses.fields(LIGHT_TYPES[kind])}
    defaults = {name: None if value is dataclasses.MISSING else value for name, value in defaults.items()}
    fields = {**_OWN_FIELDS[kind], **_COMMON}
    return MappingProxyType({name: dataclasses.replace(f, default=defaults[name]) for name, f in fields.items()})


# light type -> field name -> field.
LIGHT_FIELDS: Mapping[str, Mapping[str, Field]] = MappingProxyType(
    {kind: _with_defaults(kind) for kind in LIGHT_TYPES}
)


def check_field(value: Any, field: Field, where: str) -> Any:
    """Return the value as stored in the `Light` (a picture: its name); raise ValueError if it is invalid."""
    if value is None and field.optional:
        return None
    shown = reprlib.repr(value)
    if field.kind == "number":
        if not _is_number(value):
            raise ValueError(f"{where} must be a number, not {shown}.")
        if not field.min <= value <= field.max:  # also rejects NaN
            raise ValueError(f"{where} must be {field.min:.7g} to {field.max:.7g}, not {shown}.")
        return float(value)
    if field.kind == "color":
        return _color(value, field, where)
    if field.kind == "switch":
        if not isinstance(value, bool):
            raise ValueError(f"{where} must be true or false, not {shown}.")
        return value
    if (
        not isinstance(value, str)
        or len(value) > MAX_TEXT_FIELD
        or any(unicodedata.category(c) in ("Cc", "Cs") for c in value)
    ):
        raise ValueError(f"{where} must be text of at most {MAX_TEXT_FIELD} characters in one line, not {shown}.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _color(value: Any, field: Field, where: str) -> tuple[float, float, float]:
    """Convert [r, g, b] linear or "#rrggbb" sRGB to linear."""
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        encoded = torch.tensor([int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)])  # (3,)
        return cast(tuple[float, float, float], tuple(srgb_to_linear(encoded).tolist()))
    if not isinstance(value, list) or len(value) != 3 or not all(_is_number(v) for v in value):
        raise ValueError(f'{where} must be three linear numbers [r, g, b] or "#rrggbb", not {reprlib.repr(value)}.')
    for v in value:
        if not field.min <= v <= field.max:
            raise ValueError(f"{where} components must be {field.min:.7g} to {field.max:.7g}, not {reprlib.repr(v)}.")
    return cast(tuple[float, float, float], tuple(float(v) for v in value))
