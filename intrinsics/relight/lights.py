"""Lights. Colours are linear RGB; directions and positions are in the OpenGL camera frame.

Angles are degrees. Azimuth `az`: 0 = from the viewer, positive = from the right, +-180 = from behind; elevation
`el`: positive = from above. Units: a white sun of intensity 1 gives a facing surface the shading 1, a lamp of
intensity 1 gives 1 at distance 1.

Every field of the type `Number` may be a float, a 0-d tensor (light parameters can be optimised) or a (B,) tensor, one
value per picture; a G-buffer of one picture is then rendered B times. `color` may be a (3,) or (B, 3) tensor.
"""

from dataclasses import dataclass
from math import pi
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..color import luminance
from .geometry import Geometry

Number = float | Tensor
NEUTRAL_KELVIN = 6500.0
KELVIN_RANGE = (1000.0, 40000.0)
MIN_DISTANCE = 0.01  # scene units; bounds the irradiance of a point-sized lamp close to a surface


class Incidence(NamedTuple):
    """Light arriving at every pixel, without shadows.

    Attributes:
        direction: (B, 3, H, W) unit vectors from the surface to the light.
        irradiance: (B, 1, H, W) on a surface that faces the light, before colour and intensity.
        distance: (B, 1, H, W) to the light in scene units; None = infinite.
    """

    direction: Tensor
    irradiance: Tensor
    distance: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Light:
    """Base class of all lights.

    Attributes:
        color: linear RGB, multiplied by the colour of `kelvin`.
        kelvin: colour temperature of a black body, 1000 to 40000, relative to 6500 K, which is white; None = white.
        intensity: linear, in the units of this module.
        mask: (B or 1, 1, H, W) in [0, 1], 1 where the light may shine; None = everywhere.
        name: a label for the user.
        enabled: False = muted: the light stays in the rig but is not rendered.
    """

    color: tuple[float, float, float] | Tensor = (1.0, 1.0, 1.0)
    kelvin: float | None = None
    intensity: Number = 1.0
    mask: Tensor | None = None
    name: str = ""
    enabled: bool = True

    def radiance(self, like: Tensor) -> Tensor:
        """Colour times intensity, (B or 1, 3, 1, 1), on the device of `like`."""
        color = torch.as_tensor(self.color, dtype=torch.float32, device=like.device).reshape(-1, 3, 1, 1)
        if self.kelvin is not None:
            color = color * kelvin_to_linear(self.kelvin).to(like.device)[:, None, None]
        return color * number(self.intensity, like)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ambient(Light):
    """Uniform light from all directions: shading = intensity for every normal."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sun(Light):
    """Parallel light.

    Attributes:
        az, el: direction from which it comes.
        softness: tangent of its angular radius, >= 0: 0 casts hard shadows, 0.5 is a large window.
        shadow: whether it casts shadows.
    """

    az: Number = 45.0
    el: Number = 40.0
    softness: Number = 0.1
    shadow: bool = True

    def incidence(self, geometry: Geometry) -> Incidence:
        direction = light_direction(self.az, self.el, geometry.points)  # (B or 1, 3, 1, 1)
        direction = direction.expand(max(len(direction), len(geometry.z)), -1, *geometry.z.shape[2:])
        return Incidence(direction, torch.ones_like(direction[:, :1]), None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rim(Sun):
    """A light from behind that lights the edges on its side. Models a studio's rim light, not a physical lamp.

    Estimated normals rarely turn away at an outline as they should, so that a physical light from behind would have
    no effect. Here the edge weight of a pixel is (1 - N.V) ** (1 / width), and only the component of the light's
    direction perpendicular to the line of sight selects the edges. An edge that faces the light has the shading
    `intensity`; a light exactly behind lights every edge. `softness` also widens the arc of lit edges; shadows run
    across the picture.

    Attributes:
        width: (0, 1], how far the light reaches from the outline into the surface.
    """

    az: Number = 150.0
    el: Number = 25.0
    softness: Number = 0.2
    width: Number = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Point(Light):
    """A spherical lamp in front of a point of the picture; its light falls off with the square of the distance.

    Attributes:
        x, y: the point of the picture, 0..1 from the top left corner; other values are outside the frame.
        height: distance in front of the surface at that point (towards the viewer, along Z), scene units.
        softness: radius of the lamp, scene units, >= 0. The irradiance does not increase below this distance.
        shadow: whether it casts shadows.
    """

    x: Number = 0.7
    y: Number = 0.25
    height: Number = 0.5
    softness: Number = 0.1
    shadow: bool = True

    def incidence(self, geometry: Geometry) -> Incidence:
        to_light = geometry.lamp_position(self.x, self.y, self.height) - geometry.points  # (B, 3, H, W)
        # vector_norm would have a NaN gradient at zero.
        distance = (to_light.square().sum(1, keepdim=True) + 1e-12).sqrt()  # (B, 1, H, W)
        radius = number(self.softness, geometry.points).clamp(min=MIN_DISTANCE)
        return Incidence(to_light / distance, 1 / torch.maximum(distance, radius).square(), distance)


@dataclass(frozen=True, kw_only=True, eq=False)
class Spot(Point):
    """A lamp with a cone.

    Attributes:
        aim_x, aim_y: the point of the picture at which it aims; the surface there is the cone's centre.
        angle: full angle of the cone, between 0 and 180, both excluded.
        blend: 0..1, share of the cone's half angle over which its edge fades (smoothstep); 0 is sharp.
    """

    aim_x: Number = 0.5
    aim_y: Number = 0.5
    angle: Number = 50.0
    blend: Number = 0.3

    def incidence(self, geometry: Geometry) -> Incidence:
        lamp = super().incidence(geometry)
        position = geometry.lamp_position(self.x, self.y, self.height)  # (B, 3, 1, 1)
        axis = F.normalize(geometry.lamp_position(self.aim_x, self.aim_y, 0.0) - position, dim=1)
        cosine = -(lamp.direction * axis).sum(1, keepdim=True)  # (B, 1, H, W), of the angle to the axis
        half = number(self.angle, cosine) * (pi / 360)
        outer = torch.cos(half)
        inner = torch.cos(half * (1 - number(self.blend, cosine)))
        edge = torch.maximum(inner - outer, 1e-3 * (1 - outer)).clamp(min=1e-7)  # never 0, however narrow the cone
        ramp = ((cosine - outer) / edge).clamp(0, 1)
        return lamp._replace(irradiance=lamp.irradiance * ramp * ramp * (3 - 2 * ramp))


def number(value: Number, like: Tensor) -> Tensor:
    """Convert a light's field to (B or 1, 1, 1, 1) float32 on the device of `like`."""
    return torch.as_tensor(value, dtype=torch.float32, device=like.device).reshape(-1, 1, 1, 1)


def light_direction(az: Number, el: Number, like: Tensor) -> Tensor:
    """Return the unit direction to a light, (B or 1, 3, 1, 1), OpenGL frame: az 0, el 0 is (0, 0, 1)."""
    a, e = number(az, like) * (pi / 180), number(el, like) * (pi / 180)
    return torch.cat(torch.broadcast_tensors(a.sin() * e.cos(), e.sin(), a.cos() * e.cos()), dim=1)


def kelvin_to_linear(kelvin: float) -> Tensor:
    """Compute the colour of a black body: (3,) linear sRGB >= 0 of luminance 1, so that 6500 K is (1, 1, 1).

    Planckian locus by the cubic splines of Kim et al. (US patent 7024034), 1667 to 25000 K, constant outside.

    Raises:
        ValueError: not between 1000 and 40000 K.
    """
    if not KELVIN_RANGE[0] <= kelvin <= KELVIN_RANGE[1]:
        raise ValueError(f"A colour temperature is between 1000 and 40000 kelvin, not {kelvin:g}.")
    rgb = (_planckian(kelvin) / _planckian(NEUTRAL_KELVIN)).clamp(min=0)
    return rgb / luminance(rgb[:, None, None]).item()


def _planckian(kelvin: float) -> Tensor:
    """Compute linear sRGB (3,) of the black body, Y = 1. Out of gamut below 1900 K, where blue is negative."""
    t = 1e3 / min(max(kelvin, 1667.0), 25000.0)
    if t > 1 / 4:
        x = ((-0.2661239 * t - 0.2343589) * t + 0.8776956) * t + 0.179910
    else:
        x = ((-3.0258469 * t + 2.1070379) * t + 0.2226347) * t + 0.240390
    if t > 1 / 2.222:
        y = ((-1.1063814 * x - 1.34811020) * x + 2.18555832) * x - 0.20219683
    elif t > 1 / 4:
        y = ((-0.9549476 * x - 1.37418593) * x + 2.09137015) * x - 0.16748867
    else:
        y = ((3.0817580 * x - 5.87338670) * x + 3.75112997) * x - 0.37001483
    xyz = torch.tensor([x / y, 1.0, (1 - x - y) / y])
    to_srgb = torch.tensor([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    return to_srgb @ xyz
