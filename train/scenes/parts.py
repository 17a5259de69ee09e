"""Parts of a scene (materials, solids, lamps, pictures on walls) and ray intersection.

See `render` for the conventions.
"""

from dataclasses import dataclass
from math import cos, radians, sin
from typing import Literal

import numpy as np

Array = np.ndarray
Kind = Literal["sphere", "box", "cylinder", "cone"]
KINDS: tuple[Kind, ...] = ("sphere", "box", "cylinder", "cone")
NOISE_WAVES = 5


@dataclass(frozen=True)
class Material:
    """Albedo as a function of the position in the object's frame: two linear RGB colours and a 3-D pattern."""

    pattern: Literal["solid", "checker", "stripe", "noise", "soft"]
    colors: Array  # (2, 3) linear RGB in [0, 1]
    scale: float  # period of the pattern, scene units
    phase: Array  # (3,)
    waves: Array  # (NOISE_WAVES, 3) directions of the noise's waves; the first one is the direction of stripes

    def albedo(self, p: Array) -> Array:
        """Compute the linear albedo (N, 3) at positions (N, 3) in the object's frame."""
        if self.pattern == "solid":
            return np.broadcast_to(self.colors[0], p.shape)
        q = p / self.scale + self.phase  # (N, 3)
        if self.pattern == "checker":
            mix = (np.floor(q).sum(-1) % 2).astype(np.float32)  # (N,)
        elif self.pattern == "stripe":
            mix = (np.floor(2 * q @ self.waves[0]) % 2).astype(np.float32)
        elif self.pattern == "soft":  # two octaves
            waves = np.sin(3.0 * q @ self.waves.T).mean(-1) + 0.5 * np.sin(8.0 * q @ self.waves[::-1].T).mean(-1)
            mix = np.clip(0.5 + 0.7 * waves, 0, 1).astype(np.float32)
        else:
            mix = 0.5 + 0.5 * np.sin(2.2 * q @ self.waves.T + self.phase.sum()).mean(-1) * 1.6
            mix = np.clip(mix, 0, 1).astype(np.float32)
        return self.colors[0] + mix[:, None] * (self.colors[1] - self.colors[0])


@dataclass(frozen=True)
class Solid:
    """A sphere (size[0] = radius), a box (half sizes), a cylinder or a cone (radius, half height; axis = local Y)."""

    kind: Kind
    center: Array  # (3,)
    size: Array  # (3,)
    rotation: Array  # (3, 3), local frame -> world
    material: Material

    @property
    def radius(self) -> float:
        """Radius of the bounding sphere, scene units."""
        return bounding_radius(self.kind, self.size)


def bounding_radius(kind: Kind, size: Array) -> float:
    """Compute the radius of the bounding sphere around a solid's centre, scene units."""
    if kind == "sphere":
        return float(size[0])
    return float(np.linalg.norm(size if kind == "box" else size[:2]))


@dataclass(frozen=True)
class Light:
    """A spherical lamp; its intensity is the shading of a facing wall at distance 1."""

    position: Array  # (3,)
    intensity: float
    radius: float
    # Falloff (1 + softening) / (softening + distance ** 2), which limits the brightness of walls close to a lamp. 0 is
    # the physical inverse square, the unit of `intrinsics.relight`.
    softening: float = 3.0
    color: Array | None = None  # (3,) linear RGB with maximum 1; None: white, and shading keeps one channel


@dataclass(frozen=True)
class Picture:
    """A framed rectangle flat on a wall, with its own albedo and the wall's normals, depth and light."""

    wall: int  # index into `Scene.walls`, except floor and ceiling
    center: Array  # (2,) world position: along the wall (X, or Z for a wall across X), height
    half: Array  # (2,) half width, half height, with the frame
    frame: float  # width of the frame
    materials: tuple[Material, Material]  # frame, painting

    def inside(self, p: Array, border: float = 0.0) -> Array:
        """Return which points (N, 3) of the wall are inside by at least `border`, (N,) bool."""
        along = p[:, [2 if self.wall // 2 == 0 else 0, 1]]
        return np.all(np.abs(along - self.center) < self.half - border, axis=-1)


@dataclass(frozen=True)
class Scene:
    """A complete scene."""

    room: Array  # (2, 3) lower and upper corner
    walls: tuple[Material, ...]  # 6: -x +x, floor, ceiling, -z +z
    solids: tuple[Solid, ...]
    lights: tuple[Light, ...]
    ambient: float
    camera: Array  # (3,) position
    orientation: Array  # (3, 3), camera frame -> world
    fov: float  # vertical field of view, degrees
    pictures: tuple[Picture, ...] = ()


def rotation_of(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """Compute the rotation matrix (3, 3) of angles in degrees, applied in the order roll, pitch, yaw."""
    y, p, r = radians(yaw), radians(pitch), radians(roll)
    ry = np.array([[cos(y), 0, sin(y)], [0, 1, 0], [-sin(y), 0, cos(y)]])
    rx = np.array([[1, 0, 0], [0, cos(p), -sin(p)], [0, sin(p), cos(p)]])
    rz = np.array([[cos(r), -sin(r), 0], [sin(r), cos(r), 0], [0, 0, 1]])
    return (ry @ rx @ rz).astype(np.float32)


def dot(a: Array, b: Array) -> Array:
    """Compute dot products (..., 3), (..., 3) -> (...); ten times faster than numpy's sum over an axis of three."""
    return np.einsum("...i,...i->...", a, b)


def distance(solid: Solid, o: Array, d: Array) -> Array:
    """Intersect rays o + t d, (N, 3) each in the solid's frame; return the smallest t (N,), inf for a miss."""
    if solid.kind == "sphere":
        a, b, c = dot(d, d), dot(o, d), dot(o, o) - solid.size[0] ** 2
        disc = b * b - a * c
        t = (-b - np.sqrt(np.maximum(disc, 0))) / a
        return np.where((disc > 0) & (t > 1e-4), t, np.inf)
    d = np.where(np.abs(d) < 1e-9, 1e-9, d)
    if solid.kind == "box":
        inv = 1 / d
        middle, reach = -o * inv, np.abs(inv) * solid.size  # (N, 3)
        near, far = middle - reach, middle + reach
        enter = np.maximum(np.maximum(near[:, 0], near[:, 1]), near[:, 2])
        leave = np.minimum(np.minimum(far[:, 0], far[:, 1]), far[:, 2])
        return np.where((enter < leave) & (enter > 1e-4), enter, np.inf)
    (ox, oy, oz), (dx, dy, dz) = o.T, d.T
    radius, half = solid.size[0], solid.size[1]
    if solid.kind == "cone":
        return _cone_distance(radius, half, (ox, oy, oz), (dx, dy, dz))
    a, b = dx * dx + dz * dz, ox * dx + oz * dz
    disc = b * b - a * (ox * ox + oz * oz - radius**2)
    side = (-b - np.sqrt(np.maximum(disc, 0))) / a
    side = np.where((disc > 0) & (np.abs(oy + side * dy) < half) & (side > 1e-4), side, np.inf)
    cap = (-np.sign(dy) * half - oy) / dy
    inside = (ox + cap * dx) ** 2 + (oz + cap * dz) ** 2 < radius**2
    return np.minimum(side, np.where(inside & (cap > 1e-4), cap, np.inf))


def _cone_distance(radius: float, half: float, o: tuple[Array, ...], d: tuple[Array, ...]) -> Array:
    """Intersect rays with a cone whose apex is at height `half` and whose base of `radius` is at `-half`."""
    (ox, oy, oz), (dx, dy, dz) = o, d
    slope2 = (radius / (2 * half)) ** 2
    below = half - oy  # distance below the apex
    a = dx * dx + dz * dz - slope2 * dy * dy
    b = ox * dx + oz * dz + slope2 * below * dy
    c = ox * ox + oz * oz - slope2 * below * below
    a = np.where(np.abs(a) < 1e-9, 1e-9, a)
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0))
    nearest = np.full_like(ox, np.inf)
    for t in ((-b - root) / a, (-b + root) / a):
        hit = (disc > 0) & (t > 1e-4) & (np.abs(oy + t * dy) < half)  # excludes the upper half of the double cone
        nearest = np.where(hit & (t < nearest), t, nearest)
    base = (-half - oy) / dy
    inside = (ox + base * dx) ** 2 + (oz + base * dz) ** 2 < radius**2
    return np.minimum(nearest, np.where(inside & (base > 1e-4), base, np.inf))


def surface_normal(solid: Solid, p: Array) -> Array:
    """Compute outward unit normals (N, 3) at points p (N, 3) of a solid's surface, in its frame."""
    if solid.kind == "sphere":
        return p / solid.size[0]
    n = np.zeros_like(p)
    if solid.kind == "box":
        face = np.abs(p / solid.size).argmax(-1)
        n[np.arange(len(p)), face] = np.sign(p[np.arange(len(p)), face])
        return n
    radial = np.hypot(p[:, 0], p[:, 2])
    if solid.kind == "cone":
        slope = solid.size[0] / (2 * solid.size[1])
        slant = np.sqrt(1 + slope**2)
        base = np.abs(p[:, 1] + solid.size[1]) < np.abs(slope * (solid.size[1] - p[:, 1]) - radial) / slant
        n[base, 1] = -1
        side = p[~base] / np.maximum(radial[~base, None], 1e-9)
        n[~base] = np.stack([side[:, 0], np.full(len(side), slope), side[:, 2]], -1) / slant
        return n
    cap = np.abs(p[:, 1]) / solid.size[1] > radial / solid.size[0]
    n[cap, 1] = np.sign(p[cap, 1])
    n[~cap] = p[~cap] * [1, 0, 1] / radial[~cap, None]
    return n
