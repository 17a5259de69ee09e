"""Light from an equirectangular panorama."""

from dataclasses import dataclass

from torch import Tensor

from .lights import Light


@dataclass(frozen=True, kw_only=True, eq=False)
class Environment(Light):
    """Light from an equirectangular panorama.

    Attributes:
        image: (1,3,h,w) linear light, >= 0.
        rotation: added to the azimuth of everything in the panorama.
    """

    image: Tensor
    rotation: float = 0.0


def irradiance(light: Environment, normals: Tensor) -> Tensor:
    raise NotImplementedError


def reflection(light: Environment, normals: Tensor, view: Tensor, roughness: Tensor, f0: Tensor) -> Tensor:
    raise NotImplementedError
