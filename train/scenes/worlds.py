"""The worlds from which scenes are sampled: `plain`, see `render.sample_scene`, and `rich`.

The rich world adds lamps of different colours, cones, cylinders that lie on the floor, framed pictures on walls and
soft textures.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from .parts import KINDS, Array, Light, Material, Picture, Scene, Solid, rotation_of
from .render import place_solid, random_color, random_material, render, sample_scene

World = Literal["plain", "rich"]
WORLDS: tuple[World, ...] = get_args(World)
WALLS = (0, 1, 4)  # walls with pictures: all except floor, ceiling and the wall behind the camera


def sample_world(world: str, rng: np.random.Generator) -> Scene:
    """Sample a random scene of a world.

    Raises:
        ValueError: the world does not exist.
    """
    if world not in WORLDS:
        raise ValueError(f"World {world} not found; choose one of {', '.join(WORLDS)}.")
    return sample_scene(rng) if world == "plain" else _rich_scene(rng)


def scene_of(seed: int, index: int, worlds: Sequence[str] = ("plain",)) -> Scene:
    """Return scene `index` of a seed, alternating between the worlds. Equal arguments give equal scenes.

    Raises:
        ValueError: a world does not exist.
    """
    index, turn = divmod(index, len(worlds))
    return sample_world(worlds[turn], np.random.default_rng([seed, index]))


def render_scene(scene: Scene, size: int, worlds: Sequence[str]) -> dict[str, Array]:
    """Render a scene; shading has three channels if any of the worlds has coloured light."""
    buffers = render(scene, size)
    if "rich" in worlds and buffers["shading"].shape[-1] == 1:
        buffers["shading"] = np.repeat(buffers["shading"], 3, axis=-1)
    return buffers


def _rich_scene(rng: np.random.Generator) -> Scene:
    """Sample a room of the plain world with other objects, materials and lamps, and with pictures on its walls."""
    room = sample_scene(rng)
    forward = -room.orientation[:, 2] * [1, 0, 1]
    forward = forward / np.linalg.norm(forward)
    solids: list[Solid] = []
    for _ in range(rng.integers(1, 5)):
        solid = _rich_solid(rng, room.room, room.camera * [1, 0, 1], forward, solids)
        if solid is not None:
            solids.append(solid)
    soft = _soft(rng, 0.9)
    walls = tuple(soft if w in (0, 1, 4, 5) else room.walls[w] for w in range(6)) if rng.random() < 0.4 else room.walls
    # A second lamp, so that its colour differs from that of the first.
    lamps = room.lights if rng.random() < 0.5 else (*room.lights[:1], _lamp(rng, room))
    return replace(
        room,
        walls=walls,
        solids=tuple(solids),
        lights=tuple(replace(lamp, color=_lamp_color(rng)) for lamp in lamps),
        pictures=tuple(_picture(rng, room, int(w)) for w in WALLS if rng.random() < 0.35),
    )


def _rich_solid(
    rng: np.random.Generator, room: Array, camera: Array, forward: Array, taken: list[Solid]
) -> Solid | None:
    """Sample an object in front of the camera; a third of the cylinders lie, a fifth of all objects float and tilt."""
    kind = KINDS[rng.integers(4)]
    s = rng.uniform(0.45, 0.85)
    size = {
        "sphere": lambda: np.array([s, s, s]),
        "box": lambda: s * rng.uniform(0.55, 1.0, 3),
        "cylinder": lambda: np.array([s * rng.uniform(0.4, 0.85), s * rng.uniform(0.6, 1.1), 0.0]),
        "cone": lambda: np.array([s * rng.uniform(0.6, 1.0), s * rng.uniform(0.6, 1.1), 0.0]),
    }[kind]()
    yaw, pose = rng.uniform(0, 360), rng.random()
    if pose < 0.2:
        rotation, height = rotation_of(yaw, *rng.uniform(-60, 60, 2)), None
    elif kind == "cylinder" and pose < 0.55:
        rotation, height = rotation_of(yaw, 90), size[0]  # lying
    else:
        rotation, height = rotation_of(yaw), size[0] if kind == "sphere" else size[1]
    return place_solid(
        rng,
        kind,
        size,
        rotation,
        height,
        room,
        camera,
        forward,
        taken,
        lambda: _soft(rng, 0.4) if rng.random() < 0.3 else random_material(rng, 0.6, 0.45),
    )


def _soft(rng: np.random.Generator, scale: float) -> Material:
    """Sample a low-contrast texture of two octaves."""
    material = random_material(rng, 1.0, scale)
    second = material.colors[0] + rng.uniform(0.2, 0.45) * (random_color(rng) - material.colors[0])
    colors = np.stack([material.colors[0], second.astype(np.float32)])
    return replace(material, pattern="soft", colors=colors)


def _lamp(rng: np.random.Generator, room: Scene) -> Light:
    low, high = room.room * [0.8, 1, 0.8]
    position = rng.uniform(low, high)
    position[1] = room.room[1, 1] * rng.uniform(0.6, 0.95)
    return Light(position.astype(np.float32), float(rng.uniform(0.6, 1.4)), float(rng.uniform(0.1, 0.45)))


def _lamp_color(rng: np.random.Generator) -> Array:
    rgb = rng.uniform(0, 1, 3)
    rgb = (rgb - rgb.min()) / max(np.ptp(rgb), 1e-3)
    return (1 - rng.uniform(0, 0.55) * (1 - rgb)).astype(np.float32)


def _picture(rng: np.random.Generator, room: Scene, wall: int) -> Picture:
    """Sample a picture at eye height that fits on its wall."""
    along = 2 if wall // 2 == 0 else 0
    half = rng.uniform([0.35, 0.3], [0.8, 0.6])
    center = rng.uniform(room.room[0, along] + half[0], room.room[1, along] - half[0])
    height = rng.uniform(1.2, room.room[1, 1] - half[1] - 0.1)
    return Picture(
        wall=wall,
        center=np.array([center, height], np.float32),
        half=half.astype(np.float32),
        frame=float(rng.uniform(0.04, 0.1)),
        materials=(random_material(rng, 1.0, 0.5), random_material(rng, 0.2, 0.5)),
    )
