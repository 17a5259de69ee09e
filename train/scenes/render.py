"""Procedural scenes with exact ground truth: a room seen from inside, with spheres, boxes and cylinders.

This module has the plain world and the renderer; `worlds` adds a richer world.

Pictures are ray cast analytically (no meshes, no assets), so normals, depth, albedo and shading are exact and
`rgb_linear = albedo * shading` holds to float precision. Scene `i` of seed `s` is
`sample_scene(np.random.default_rng([s, i]))`; it can be rendered at any size and with other lights
(`dataclasses.replace(scene, lights=...)`).

World frame: X right, Y up, Z towards the viewer at yaw 0 (the OpenGL camera frame of an unrotated camera).
Lengths are in scene units (about a metre). Shading has one channel if all light is white.
"""

from collections.abc import Callable
from math import cos, radians, sin, tan

import numpy as np

from .parts import (
    KINDS,
    NOISE_WAVES,
    Array,
    Kind,
    Light,
    Material,
    Scene,
    Solid,
    bounding_radius,
    distance,
    dot,
    rotation_of,
    surface_normal,
)

__all__ = ["KINDS", "Light", "Material", "Scene", "Solid", "render", "sample_scene", "scene_caption"]

LIGHT_SAMPLES = 16  # points on each lamp's sphere, which is the number of steps of a penumbra
VISIBLE_SHARE = 0.004  # share of the picture from which an object is counted in the caption


def random_color(rng: np.random.Generator) -> Array:
    """Sample a linear RGB colour of random value and saturation; all hues (and channel orders) are equally likely."""
    rgb = rng.uniform(0, 1, 3)
    rgb = (rgb - rgb.min()) / max(np.ptp(rgb), 1e-3)
    return (rng.uniform(0.25, 0.9) * (1 - rng.uniform(0, 0.85) * (1 - rgb))).astype(np.float32)


def random_material(rng: np.random.Generator, plain: float, scale: float) -> Material:
    """Sample a material: of one colour with probability `plain`, else with a pattern of a period of about `scale`."""
    pattern = "solid" if rng.random() < plain else str(rng.choice(["checker", "stripe", "noise"]))
    first = random_color(rng)
    # The second colour contains part of the first, so that patterns are weaker than edges between objects.
    second = (first + rng.uniform(0.4, 0.9) * (random_color(rng) - first)).astype(np.float32)
    waves = rng.normal(size=(NOISE_WAVES, 3)).astype(np.float32)
    waves[0] /= np.linalg.norm(waves[0])
    return Material(
        pattern=pattern,  # type: ignore[arg-type]
        colors=np.stack([first, second]),
        scale=float(scale * rng.uniform(0.7, 1.4)),
        phase=rng.uniform(0, 1, 3).astype(np.float32),
        waves=waves,
    )


def _solid(rng: np.random.Generator, room: Array, camera: Array, forward: Array, taken: list[Solid]) -> Solid | None:
    """Sample an object in front of the camera that touches no other; None if no place was found."""
    kind = KINDS[rng.integers(3)]
    s = rng.uniform(0.45, 0.85)
    if kind == "sphere":
        size = np.array([s, s, s])
    elif kind == "box":
        size = s * rng.uniform(0.55, 1.0, 3)
    else:
        size = np.array([s * rng.uniform(0.5, 0.85), s * rng.uniform(0.6, 1.1), 0.0])
    upright = rng.random() < 0.7
    tilt = (0.0, 0.0) if upright else tuple(rng.uniform(-60, 60, 2))
    rotation = rotation_of(rng.uniform(0, 360), *tilt)
    height = (size[0] if kind == "sphere" else size[1]) if upright else None
    return place_solid(
        rng, kind, size, rotation, height, room, camera, forward, taken, lambda: random_material(rng, 0.6, 0.45)
    )


def place_solid(
    rng: np.random.Generator,
    kind: Kind,
    size: Array,
    rotation: Array,
    height: float | None,
    room: Array,
    camera: Array,
    forward: Array,
    taken: list[Solid],
    material: Callable[[], Material],
) -> Solid | None:
    """Place a solid randomly in front of the camera so that it touches no other; None if no place was found.

    `height` is the height of its centre above the floor on which it stands; None if it floats.
    """
    side = np.array([-forward[2], 0, forward[0]])  # right of the camera, on the floor plane
    reach = min(4.6, float(room[1, 0] - room[0, 0]))
    r = bounding_radius(kind, size.astype(np.float32))
    for _ in range(12):
        depth = rng.uniform(2.1, reach)
        center = camera + forward * depth + side * depth * rng.uniform(-0.5, 0.5)
        lift = rng.uniform(0.1, 1.0) if height is None or rng.random() < 0.15 else 0.0
        center[1] = room[0, 1] + float(r if height is None else height) + lift
        inside = np.all((center - r * 0.8)[[0, 2]] >= room[0, [0, 2]]) and np.all(
            (center + r * 0.8)[[0, 2]] <= room[1, [0, 2]]
        )
        clear = all(np.linalg.norm(center - o.center) > r + o.radius for o in taken)
        if clear and inside and center[1] + r < room[1, 1]:
            return Solid(kind, center.astype(np.float32), size.astype(np.float32), rotation, material())
    return None


def sample_scene(rng: np.random.Generator) -> Scene:
    """Sample a random room with one to three objects (fewer if they do not fit) and one or two lamps."""
    half = np.array([rng.uniform(2.2, 3.4), 0, rng.uniform(2.4, 3.4)])
    room = np.stack([-half, half]).astype(np.float32)
    room[1, 1] = rng.uniform(2.6, 3.6)
    camera = np.array([rng.uniform(-0.5, 0.5) * half[0], rng.uniform(0.9, 2.0), half[2] - rng.uniform(0.25, 0.6)])
    yaw, pitch = rng.uniform(-38, 38), rng.uniform(-22, 4)
    forward = np.array([-sin(radians(yaw)), 0.0, -cos(radians(yaw))])
    solids: list[Solid] = []
    for _ in range(rng.integers(1, 4)):
        solid = _solid(rng, room, np.array([camera[0], 0, camera[2]]), forward, solids)
        if solid is not None:
            solids.append(solid)
    walls = tuple(random_material(rng, 0.65, 0.9) for _ in range(6))
    if rng.random() < 0.7:  # most rooms have walls of one material
        walls = (walls[0], walls[0], walls[2], walls[3], walls[0], walls[0])
    lights = tuple(
        Light(
            position=np.array(
                [
                    rng.uniform(-0.8, 0.8) * half[0],
                    room[1, 1] * rng.uniform(0.7, 0.95),
                    rng.uniform(-0.6, 0.9) * half[2],
                ],
                dtype=np.float32,
            ),
            intensity=float(rng.uniform(0.6, 1.4)),
            radius=float(rng.uniform(0.1, 0.45)),
        )
        for _ in range(rng.integers(1, 3))
    )
    return Scene(
        room=room,
        walls=walls,
        solids=tuple(solids),
        lights=lights,
        ambient=float(rng.uniform(0.12, 0.35)),
        camera=camera.astype(np.float32),
        orientation=rotation_of(yaw, pitch),
        fov=float(rng.uniform(58, 74)),
    )


def _visibility(scene: Scene, p: Array, light: Light) -> Array:
    """Compute the visible share of a lamp's sphere from points p (N, 3), (N,) in [0, 1]."""
    golden = np.arange(LIGHT_SAMPLES) * 2.399963  # points spread evenly on the sphere (Fibonacci lattice)
    z = 1 - 2 * (np.arange(LIGHT_SAMPLES) + 0.5) / LIGHT_SAMPLES
    ring = np.sqrt(1 - z * z)
    lamp = light.position + light.radius * np.stack([ring * np.cos(golden), ring * np.sin(golden), z], -1)
    lamp = lamp.astype(np.float32)  # (S, 3)
    to_light = light.position - p
    length2 = dot(to_light, to_light)
    blocked = np.zeros((len(p), LIGHT_SAMPLES), dtype=bool)
    for solid in scene.solids:
        # Only points whose cone towards the lamp passes the bounding sphere can be in this solid's shadow.
        along = np.clip(dot(solid.center - p, to_light) / length2, 0, 1)
        gap = solid.center - p - along[:, None] * to_light
        near = np.flatnonzero(dot(gap, gap) < (solid.radius + light.radius * along) ** 2)
        if len(near) == 0:
            continue
        o = (p[near] - solid.center) @ solid.rotation  # (M, 3) local frame
        s = (lamp - solid.center) @ solid.rotation  # (S, 3)
        d = (s[None] - o[:, None]).reshape(-1, 3)
        t = distance(solid, np.repeat(o, LIGHT_SAMPLES, 0), d)
        blocked[near] |= (t < 1).reshape(len(near), LIGHT_SAMPLES)
    return 1 - blocked.mean(-1, dtype=np.float32)


def render(scene: Scene, size: int = 128) -> dict[str, Array]:
    """Render a square picture of `size` pixels with exact ground truth in the canonical conventions.

    Returns:
        float32 arrays: `rgb_linear` (H, W, 3) in [0, 1]; `normals` (H, W, 3) unit vectors, OpenGL camera frame;
        `depth_metric` (H, W) distance along the optical axis in scene units; `depth` (H, W) normalised, 0 nearest to 1
        farthest; `albedo` (H, W, 3) linear; `shading` linear with maximum 1, (H, W, 1), or (H, W, 3) if a lamp has a
        colour; `shading_scale` () the divisor of that normalisation; `shadow` (H, W) the share of the lamps' light
        that is blocked by objects, 1 where the surface faces no lamp; and `object` (H, W) int, the index into
        `scene.solids`, -1 for the room.
    """
    half = tan(radians(scene.fov) / 2)
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1) * half
    x, y = np.meshgrid(axis, -axis)
    local = np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3)  # (N, 3), camera frame, depth 1
    d = local @ scene.orientation.T  # t along d is the distance along the optical axis
    n_pixels = len(d)

    d = np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)  # avoids division by zero for rays parallel to a wall
    exits = np.where(d > 0, scene.room[1] - scene.camera, scene.room[0] - scene.camera) * (1 / d)  # (N, 3)
    face = exits.argmin(-1)
    t = exits.min(-1)
    normals = np.zeros_like(d)
    np.put_along_axis(normals, face[:, None], -np.sign(np.take_along_axis(d, face[:, None], 1)), 1)
    wall = 2 * face + (np.take_along_axis(d, face[:, None], 1)[:, 0] > 0)
    index = np.full(n_pixels, -1)
    for i, solid in enumerate(scene.solids):
        o = np.broadcast_to((scene.camera - solid.center) @ solid.rotation, d.shape)
        ti = distance(solid, o, d @ solid.rotation)
        closer = ti < t
        t = np.where(closer, ti, t)
        index[closer] = i

    p = scene.camera + t[:, None] * d
    albedo = np.empty_like(d)
    for w, material in enumerate(scene.walls):
        here = (index < 0) & (wall == w)
        albedo[here] = material.albedo(p[here])
    for hung in scene.pictures:
        here = (index < 0) & (wall == hung.wall)
        for border, material in zip((0.0, hung.frame), hung.materials, strict=True):
            inside = np.flatnonzero(here)[hung.inside(p[here], border)]
            albedo[inside] = material.albedo(p[inside])
    for i, solid in enumerate(scene.solids):
        here = index == i
        local_point = (p[here] - solid.center) @ solid.rotation
        albedo[here] = solid.material.albedo(local_point)
        normals[here] = surface_normal(solid, local_point) @ solid.rotation.T

    bounced = scene.ambient * (0.75 + 0.25 * normals[:, 1])  # more from the ceiling than from the floor
    coloured = any(light.color is not None for light in scene.lights)
    shading = np.repeat(bounced[:, None], 3 if coloured else 1, axis=1)  # (N, 3 or 1)
    arriving, unblocked = np.zeros_like(bounced), np.zeros_like(bounced)  # direct light with and without objects
    for light in scene.lights:
        to_light = light.position - p
        distance2 = dot(to_light, to_light)
        facing = np.maximum(dot(normals, to_light), 0) / np.sqrt(distance2)
        lit = np.flatnonzero(facing > 0)
        visible = np.zeros_like(facing)
        visible[lit] = _visibility(scene, p[lit] + 1e-3 * normals[lit], light)
        received = light.intensity * facing * visible * (1 + light.softening) / (light.softening + distance2)
        shading = shading + received[:, None] * (1 if light.color is None else light.color)
        direct = light.intensity * facing * (1 + light.softening) / (light.softening + distance2)
        arriving, unblocked = arriving + direct * visible, unblocked + direct
    scale = shading.max()
    shading = (shading / scale).astype(np.float32)

    def picture(a: Array) -> Array:
        return np.ascontiguousarray(a.reshape(size, size, *a.shape[1:]), dtype=np.float32)

    normals = normals @ scene.orientation  # world -> camera frame
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return {
        "rgb_linear": picture(albedo * shading),
        "normals": picture(normals),
        "depth": picture((t - t.min()) / (t.max() - t.min())),
        "depth_metric": picture(t),
        "albedo": picture(albedo),
        "shading": picture(shading),
        "shading_scale": np.asarray(scale, np.float32),
        "shadow": picture(1 - arriving / np.where(unblocked > 0, unblocked, 1)),
        "object": index.reshape(size, size),
    }


_NUMBERS = ("no", "one", "two", "three", "four", "five")


def scene_caption(scene: Scene, index: Array) -> str:
    """Describe the visible objects: "a room with two spheres and one box". `index` is `render(...)["object"]`."""
    counts = {kind: 0 for kind in KINDS}
    for i, solid in enumerate(scene.solids):
        counts[solid.kind] += int((index == i).mean() > VISIBLE_SHARE)
    plural = {"sphere": "spheres", "box": "boxes", "cylinder": "cylinders", "cone": "cones"}
    parts = [f"{_NUMBERS[n]} {kind if n == 1 else plural[kind]}" for kind, n in counts.items() if n]
    if not parts:
        return "an empty room"
    return "a room with " + " and ".join([", ".join(parts[:-1])] * (len(parts) > 1) + parts[-1:])
