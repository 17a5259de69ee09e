"""Lights that move."""

from collections.abc import Iterable
from dataclasses import replace
from math import cos, pi, sin

from .environment import Environment
from .lights import Light, Point, Sun


def orbit(lights: Iterable[Light], turn: float) -> tuple[Light, ...]:
    """The rig turned about the vertical axis, to the right as seen by the viewer; a turn of 1 is the start again.

    Suns, rims and environments turn about the subject, so they also come from behind. Points and spots go clockwise
    round the picture's centre (on an ellipse, where the picture is not square) and keep their height, because they
    are placed in front of the picture; what a spot is aimed at stays. Ambient light is the same from everywhere.

    Args:
        lights: the rig at the start.
        turn: share of a full turn; any number.
    """
    return tuple(_turned(light, turn % 1) for light in lights)


def _turned(light: Light, turn: float) -> Light:
    match light:
        case Sun():  # and Rim
            return replace(light, az=light.az + 360 * turn)
        case Environment():
            return replace(light, rotation=light.rotation + 360 * turn)
        case Point():  # and Spot
            c, s = cos(2 * pi * turn), sin(2 * pi * turn)
            x, y = light.x - 0.5, light.y - 0.5  # y runs down, so this turns clockwise
            return replace(light, x=0.5 + c * x - s * y, y=0.5 + s * x + c * y)
        case _:
            return light
