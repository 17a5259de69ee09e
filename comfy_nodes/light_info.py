"""Convert between core's lights (LOAD3D_LIGHT_INFO, of its node Create Light Info) and ours. No ComfyUI here.

Core's lights are dicts in a right-handed world, X right, Y up, Z towards the viewer, around a sphere of radius 1. Here
the photo stands in the plane z = 0 of that world and spans -1..1 from its left to its right and from its bottom to its
top edge; lengths along z are scene units. Core divides by pi what a white surface reflects, and this library does not.
"""

from collections.abc import Iterable, Mapping
from math import atan, atan2, cos, degrees, hypot, pi, radians, sin, tan
from typing import Any

import torch

from ..intrinsics.color import linear_to_srgb
from ..intrinsics.relight import LIGHT_FIELDS, Ambient, Environment, Light, Point, Spot, Sun, kelvin_to_linear
from ..intrinsics.relight.fields import check_field

Vector = tuple[float, float, float]
POSITION: Vector = (0.0, 1.8, 1.8)  # core's defaults
INNER, OUTER = 30.0, 45.0
DISTANCE = 2.5  # of a directional light from what it is aimed at; it only shows in core's editor


def lights_from_info(info: Iterable[Mapping[str, Any]]) -> tuple[Light, ...]:
    """Return the lights of a LOAD3D_LIGHT_INFO. A light's `range` has no counterpart here: its falloff is physical.

    Raises:
        ValueError: an unknown type, or a value that a light cannot have; one sentence.
    """
    return tuple(_light(one) for one in info)


def _light(one: Mapping[str, Any]) -> Light:
    kind = one.get("type", "directional")
    x, y, z = _vector(one.get("position"), POSITION)
    to_x, to_y, to_z = _vector(one.get("target"), (0.0, 0.0, 0.0))
    radius = float(one.get("radius") or 0.0)
    shared = {"color": one.get("color", "#ffffff"), "intensity": float(one.get("intensity", 1.0)) / pi}
    shared["shadow"] = bool(one.get("castShadow", True))
    at = {"x": (1 + x) / 2, "y": (1 - y) / 2, "height": z, "softness": radius}
    match kind:
        case "directional":
            dx, dy, dz = x - to_x, y - to_y, z - to_z
            angles = {"az": degrees(atan2(dx, dz)), "el": degrees(atan2(dy, hypot(dx, dz)))}
            return Sun(**_checked("sun", shared | angles | {"softness": tan(radians(min(radius, 179.0)) / 2)}))
        case "point":
            return Point(**_checked("point", shared | at))
        case "spot":
            outer = min(max(float(one.get("outerConeAngle", OUTER)), 1.0), 89.0)
            inner = min(max(float(one.get("innerConeAngle", INNER)), 0.0), outer)
            aim = {"aim_x": (1 + to_x) / 2, "aim_y": (1 - to_y) / 2, "angle": 2 * outer, "blend": 1 - inner / outer}
            return Spot(**_checked("spot", shared | at | aim))
    raise ValueError(f"The light_info has a light of type {kind!r}; only directional, point and spot are supported.")


def _checked(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: check_field(value, LIGHT_FIELDS[kind][name], f"The {name} of a light in light_info")
        for name, value in values.items()
    }


def _vector(point: Mapping[str, float] | None, default: Vector) -> Vector:
    x, y, z = (float((point or {}).get(axis, value)) for axis, value in zip("xyz", default, strict=True))
    return x, y, z


def info_from_lights(lights: Iterable[Light]) -> list[dict[str, Any]]:
    """Return a LOAD3D_LIGHT_INFO of the enabled lights that core can show: suns, rims (as suns), points and spots.

    Masks and names have no counterpart there; colours brighter than white become intensity.
    """
    return [_info(light) for light in lights if light.enabled and not isinstance(light, Ambient | Environment)]


def _info(light: Any) -> dict[str, Any]:
    color = torch.as_tensor(light.color, dtype=torch.float32)  # (3,)
    color = color if light.kelvin is None else color * kelvin_to_linear(light.kelvin)
    brightest = max(color.max().item(), 1.0)
    levels = (linear_to_srgb(color / brightest).clamp(0, 1) * 255).round().int().tolist()
    info: dict[str, Any] = {
        "color": "#{:02x}{:02x}{:02x}".format(*levels),
        "intensity": float(light.intensity) * brightest * pi,
    }
    softness = float(light.softness)
    if isinstance(light, Sun):  # a Rim, too
        az, el = radians(float(light.az)), radians(float(light.el))
        x, y, z = sin(az) * cos(el), sin(el), cos(az) * cos(el)
        info |= {"type": "directional", "position": _point(DISTANCE * x, DISTANCE * y, DISTANCE * z)}
        info |= {"target": _point(0.0, 0.0, 0.0), "radius": degrees(2 * atan(softness))}
    else:
        x, y = 2 * float(light.x) - 1, 1 - 2 * float(light.y)
        info |= {"type": "point", "position": _point(x, y, float(light.height)), "radius": softness}
    if isinstance(light, Spot):
        outer = float(light.angle) / 2
        aim = _point(2 * float(light.aim_x) - 1, 1 - 2 * float(light.aim_y), 0.0)
        info |= {"type": "spot", "target": aim, "outerConeAngle": outer}
        info |= {"innerConeAngle": outer * (1 - float(light.blend))}
    return info if light.shadow else info | {"castShadow": False}


def _point(x: float, y: float, z: float) -> dict[str, float]:
    return {"x": x, "y": y, "z": z}
