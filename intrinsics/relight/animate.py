"""Animation of lights. A rig is a tuple of lights, an animation a list of rigs, one per frame."""

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import cos, pi, sin
from typing import Any

import torch

from .environment import Environment
from .fields import LIGHT_FIELDS, LIGHT_TYPES, check_field
from .lights import Ambient, Light, Point, Sun

PATHS = ("orbit", "sweep", "flicker", "keyframes")
EASES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "in": lambda t: t * t,
    "out": lambda t: t * (2 - t),
    "in-out": lambda t: t * t * (3 - 2 * t),
}
MAX_KEYFRAMES = 10_000
FLICKER_FRAMES = 3  # frames between brightness values of a flame, at 24 frames per second

Rig = tuple[Light, ...]


def animate(
    rigs: Sequence[Rig],
    frames: int,
    path: str,
    *,
    amount: float = 1.0,
    ease: str = "linear",
    keyframes: str = "",
    seed: int = 0,
) -> list[Rig]:
    """Animate a rig along a path, one rig per frame.

    Args:
        rigs: one static rig, or `frames` rigs, to whose animation this one is added.
        frames: number of frames.
        path: "orbit": `amount` full turns (see `orbit`), the last frame one step before the start, so that it loops;
            "sweep": from `-amount` to `amount`, both included (see `sweep`); "flicker": between full brightness
            and `1 - amount` of it, looping (see `flicker`); "keyframes": see `read_keyframes`.
        amount: see `path`; ignored for keyframes.
        ease: one of `EASES`, over all frames, or between keyframes; ignored for flicker.
        keyframes: JSON.
        seed: random seed of the flicker.

    Raises:
        ValueError: an unknown path or ease, no frames, another number of rigs, or invalid keyframes.
    """
    if path not in PATHS:
        raise ValueError(f"Unknown path {path!r}; choose from {', '.join(PATHS)}.")
    if ease not in EASES:
        raise ValueError(f"Unknown ease {ease!r}; choose from {', '.join(EASES)}.")
    if frames < 1:
        raise ValueError(f"An animation needs at least one frame, not {frames}.")
    if len(rigs) not in (1, frames):
        raise ValueError(f"These lights are already animated over {len(rigs)} frames; use the same number of frames.")
    eased = EASES[ease]
    still = [tuple(rigs[i % len(rigs)]) for i in range(frames)]
    match path:
        case "orbit":
            return [orbit(rig, amount * eased(i / frames)) for i, rig in enumerate(still)]
        case "sweep":
            return [sweep(rig, amount * (2 * eased(i / max(frames - 1, 1)) - 1)) for i, rig in enumerate(still)]
        case "flicker":
            return flicker(still, amount, seed)
        case _:
            keys = read_keyframes(keyframes, still[0], frames)
            return [_keyed(rig, keys, i, eased) for i, rig in enumerate(still)]


def orbit(lights: Iterable[Light], turn: float) -> Rig:
    """Rotate the rig about the vertical axis, to the right as seen by the viewer.

    Suns, rims and environments rotate about the subject, so they also pass behind it. Points and spots, which are in
    front of the picture, move clockwise around its centre (on an ellipse if it is not square) and keep their height
    and aim. Ambient light is unchanged.

    Args:
        lights: the rig at the start.
        turn: number of full turns; any number.
    """
    return tuple(_turned(light, turn % 1) for light in lights)


def sweep(lights: Iterable[Light], swing: float) -> Rig:
    """Swing the rig sideways, to the right as seen by the viewer.

    Suns, rims and environments rotate by 90 degrees times `swing`; points and spots move by half the picture's width
    times `swing` and keep their aim.
    """
    return tuple(
        replace(light, x=light.x + swing / 2) if isinstance(light, Point) else _turned(light, swing / 4)
        for light in lights
    )


def flicker(rigs: Sequence[Rig], strength: float, seed: int = 0) -> list[Rig]:
    """Let each light flicker like fire, between its brightness and `1 - strength` of it, in a loop.

    Ambient and environment light stay constant.

    Args:
        rigs: one per frame, with the same number of lights.
        strength: 0..1, 0 = off.
        seed: random seed.

    Raises:
        ValueError: strength outside 0..1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"A flicker's amount is 0..1, not {strength:g}.")
    generator = torch.Generator().manual_seed(seed)
    knots = max(1, round(len(rigs) / FLICKER_FRAMES))
    dips: list[list[float]] = torch.rand(max(map(len, rigs), default=0), knots, generator=generator).tolist()

    def level(number: int, frame: int) -> float:
        at = frame / len(rigs) * knots
        before, after = dips[number][int(at)], dips[number][(int(at) + 1) % knots]
        return 1 - strength * (before + (after - before) * EASES["in-out"](at % 1))

    return [
        tuple(
            light
            if isinstance(light, Ambient | Environment)
            else replace(light, intensity=light.intensity * level(n, i))
            for n, light in enumerate(rig)
        )
        for i, rig in enumerate(rigs)
    ]


def read_keyframes(text: str, lights: Rig, frames: int) -> dict[tuple[int, str], dict[int, Any]]:
    """Read keyframes from JSON, validated against `LIGHT_FIELDS`.

    The JSON is a list of objects such as {"frame": 0, "az": -60}. Each applies to one frame (0 is the first; negative
    numbers count from the end) and sets any numbers or colours of the light given by "light" (its name, or its number
    from 1), or of all lights with such a field. Numbers and linear colours are interpolated in between, and constant
    before the first and after the last keyframe of a field.

    Args:
        text: JSON.
        lights: the lights to animate.
        frames: number of frames of the animation.

    Returns:
        {(index of the light, field): {frame: value}}, frames ascending.

    Raises:
        ValueError: invalid keyframes; the message names the keyframe.
    """
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError('Keyframes are JSON such as [{"frame": 0, "az": -60}, {"frame": -1, "az": 60}].') from error
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_KEYFRAMES:
        raise ValueError('Keyframes are a list such as [{"frame": 0, "az": -60}, {"frame": -1, "az": 60}].')
    keys: dict[tuple[int, str], dict[int, Any]] = {}
    for number, entry in enumerate(entries, 1):
        where = f"Keyframe {number}"
        fields = [name for name in entry if name not in ("frame", "light")] if isinstance(entry, dict) else []
        if not fields:
            raise ValueError(f'{where} must be an object with a field, such as {{"frame": 0, "az": -60}}.')
        frame = entry.get("frame")
        if not isinstance(frame, int) or isinstance(frame, bool) or not -frames <= frame < frames:
            raise ValueError(f"{where}: frame must be 0 to {frames - 1}, not {reprlib.repr(frame)}.")
        for name in fields:
            fitting = [i for i in _meant(entry.get("light"), lights, where) if name in _moving(lights[i])]
            if not fitting:
                raise ValueError(f"{where}: no light here has a number or colour {reprlib.repr(name)}.")
            for i in fitting:
                field = replace(_moving(lights[i])[name], optional=False)
                keys.setdefault((i, name), {})[frame % frames] = check_field(entry[name], field, f"{where}, {name}:")
    return {key: dict(sorted(values.items())) for key, values in keys.items()}


def _moving(light: Light) -> dict[str, Any]:
    kind = next(kind for kind, cls in LIGHT_TYPES.items() if type(light) is cls)
    return {name: field for name, field in LIGHT_FIELDS[kind].items() if field.kind in ("number", "color")}


def _meant(light: Any, lights: Rig, where: str) -> list[int]:
    if light is None:
        return list(range(len(lights)))
    if isinstance(light, int) and not isinstance(light, bool) and 1 <= light <= len(lights):
        return [light - 1]
    named = [i for i, one in enumerate(lights) if isinstance(light, str) and one.name == light]
    if not named:
        raise ValueError(f"{where}: there is no light {reprlib.repr(light)}; give its name, or 1 to {len(lights)}.")
    return named


def _keyed(
    rig: Rig, keys: Mapping[tuple[int, str], dict[int, Any]], frame: int, eased: Callable[[float], float]
) -> Rig:
    changed = list(rig)
    for (index, name), values in keys.items():
        before = max((f for f in values if f <= frame), default=min(values))
        after = min((f for f in values if f >= frame), default=max(values))
        t = eased((frame - before) / (after - before)) if after > before else 0.0
        a, b = values[before], values[after]
        value = tuple(p + t * (q - p) for p, q in zip(a, b, strict=True)) if isinstance(a, tuple) else a + t * (b - a)
        change: dict[str, Any] = {name: value}
        changed[index] = replace(changed[index], **change)
    return tuple(changed)


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
