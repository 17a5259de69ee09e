"""Shadows and ambient occlusion against closed-form geometry and an independent float64 ray march."""

from dataclasses import replace
from math import radians, tan

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics.relight import (
    March,
    Point,
    Rim,
    Spot,
    Sun,
    ambient_occlusion,
    shadow_visibility,
    shadows,
)
from intrinsic_lora.intrinsics.relight.geometry import Camera, Geometry
from intrinsic_lora.intrinsics.relight.lights import Light, light_direction
from intrinsic_lora.intrinsics.relight.shading import rim
from intrinsic_lora.train.scenes.render import render, sample_scene
from torch import Tensor

CAMERA = Camera(near=1.0, far=3.0, fov=40.0)
HALF = tan(radians(CAMERA.fov) / 2)  # of the longer side, at distance 1
FACING = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
SOLID = March(steps=96, thickness=1.0, bias=0.002)  # everything reaches to the wall behind it, little bias


def axis(size: int) -> Tensor:
    """X / distance of the pixels' centres, (size,)."""
    return ((torch.arange(size) + 0.5) / size * 2 - 1) * HALF


def bar(height: float, size: int = 128, half_width: float = 0.05, upright: bool = True) -> Geometry:
    """Build a bar in front of a wall at distance 3 that faces the viewer; only its front is visible."""
    x = axis(size)
    z = torch.where((x * (3 - height)).abs() < half_width, 3 - height, 3.0)  # (size,)
    return Geometry((z[None] if upright else z[:, None]).expand(size, size)[None, None].clone(), CAMERA)


def plane(normal: Tensor, height: int = 64, width: int = 96, levels: int | None = None) -> Geometry:
    """Build a plane through (0, 0, -2) that fills the picture, with depth quantised to `levels`, if given."""
    camera = Camera(fov=20.0)
    half = tan(radians(10))
    x = ((torch.arange(width) + 0.5) / width * 2 - 1) * half
    y = (1 - (torch.arange(height) + 0.5) / height * 2) * half * height / width
    z = -2 * normal[2] / (normal[0] * x + normal[1] * y[:, None] - normal[2])  # (H,W)
    near, far = float(z.min()) - 0.01, float(z.max()) + 0.01
    if levels:
        z = near + ((z - near) / (far - near) * levels).round() / levels * (far - near)
    return Geometry(z[None, None], replace(camera, near=near, far=far))


def profile(seen: Tensor, upright: bool = True) -> Tensor:
    """Return the profile across the bar, (size,), in the middle, where no ray leaves the frame."""
    across = seen[0, 0] if upright else seen[0, 0].T
    middle = len(across) // 2
    return across[middle - 8 : middle + 8].mean(0)


def visibility(geometry: Geometry, light: Light, march: March | None = None, normals: Tensor = FACING) -> Tensor:
    """(B,1,H,W), every pixel marched."""
    normals = normals.expand(1, -1, *geometry.z.shape[-2:])
    incidence = light.incidence(geometry)
    towards = rim(normals, geometry.view, incidence, light)[1] if isinstance(light, Rim) else incidence.direction
    return shadow_visibility(geometry, normals, towards, incidence.distance, light.softness, march)


SIDES = {"right": (1, 0), "left": (-1, 0), "top": (0, 1), "bottom": (0, -1)}
TYPES = {
    "sun": lambda x, y: Sun(az=60 * x, el=60 * y),
    "point": lambda x, y: Point(x=0.5 + 0.45 * x, y=0.5 - 0.45 * y, height=0.4),
    "spot": lambda x, y: Spot(x=0.5 + 0.45 * x, y=0.5 - 0.45 * y, height=0.4, angle=120),
    "rim": lambda x, y: Rim(az=150 * x, el=0.0) if x else Rim(az=180.0, el=40 * y),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", TYPES)
def test_a_bars_shadow_lies_on_the_side_away_from_the_light(kind: str, side: str) -> None:
    x, y = SIDES[side]
    seen = profile(visibility(bar(0.4, upright=y == 0), TYPES[kind](x, y), March(thickness=0.5)), upright=y == 0)
    middle = len(seen) // 2
    before, after = seen[middle - 14 : middle - 6], seen[middle + 6 : middle + 14]
    dark, bright = (before, after) if side in ("right", "bottom") else (after, before)
    # It touches the bar and is dark, and the lit side is free right up to the bar.
    assert dark.max() < 0.1
    assert bright.min() > 0.97
    # Its front is lit: the average does not carry the shadow across the outline.
    assert seen[middle - 2 : middle + 2].min() > 0.99


def shadow_of_bar(x: Tensor, theta: float, height: float, softness: float, half_width: float = 0.05) -> Tensor:
    """Compute in closed form the visible share of a sun at `theta` degrees for points `x` on the wall left of the bar.

    Along the only direction that matters a disc's light is distributed as the chords of a circle.
    """
    blocked_from = torch.atan((-half_width - x) / height)  # the bar hides the sky below this angle
    t = (torch.tan(blocked_from - radians(theta)) / max(softness, 1e-6)).clamp(-1, 1)
    return 0.5 + (t * (1 - t * t).sqrt() + torch.asin(t)) / torch.pi


@pytest.mark.parametrize(("theta", "height"), [(30.0, 0.4), (45.0, 0.3), (60.0, 0.25), (70.0, 0.15)])
def test_length_of_a_hard_shadow(theta: float, height: float) -> None:
    size = 256
    seen = profile(visibility(bar(height, size), Sun(az=theta, el=0.0, softness=0.0), SOLID))
    pixel = 2 * HALF * 3 / size
    shadow = (
        1 - seen[: size // 2]
    ).sum() * pixel  # from the bar's outline to the shadow's edge; the bar itself is lit
    outline = 3 * 0.05 / (3 - height)  # where that outline falls on the wall
    # The bias is the height that the bar is taken to be lower by.
    lower = height - 1.5 * SOLID.bias * 2
    length = lower * tan(radians(theta)) + 0.05 - outline
    assert abs(shadow - length) < 2 * pixel


@pytest.mark.parametrize("softness", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("height", [0.2, 0.35])
def test_penumbra_follows_the_closed_form(softness: float, height: float) -> None:
    size, theta = 256, 45.0
    seen = profile(visibility(bar(height, size), Sun(az=theta, el=0.0, softness=softness), SOLID))
    x = 3 * axis(size)
    wall = (x < -3 * 0.05 / (3 - height) - 0.03) & (x > -0.9)
    expected = shadow_of_bar(x[wall], theta, height - 1.5 * SOLID.bias * 2, softness)
    assert ((expected > 0.05) & (expected < 0.95)).sum() > 5
    assert (seen[wall] - expected).abs().mean() < 0.02
    assert (seen[wall] - expected).abs().max() < 0.15  # the average over 8 x 8 pixels widens the narrowest a little


def test_penumbra_widens_with_softness_and_height() -> None:
    def width(height: float, softness: float) -> float:
        seen = profile(visibility(bar(height, 256), Sun(az=45.0, el=0.0, softness=softness), SOLID))
        left = seen[:110]
        return float(((left > 0.1) & (left < 0.9)).sum())

    assert width(0.3, 0.05) < width(0.3, 0.2) < width(0.3, 0.4)
    assert width(0.15, 0.3) < width(0.3, 0.3) < width(0.45, 0.3)


TILTS = [(0, 0), (60, 0), (-60, 0), (0, 45), (75, 0), (0, -75), (50, 50)]


@pytest.mark.parametrize("levels", [None, 255])
@pytest.mark.parametrize("tilt", TILTS)
def test_a_plane_casts_no_shadow_on_itself(tilt: tuple[int, int], levels: int | None) -> None:
    """Neither exact nor as an 8-bit depth picture, from any direction."""
    normal = light_direction(*map(float, tilt), torch.zeros(1))[0]  # (3,1,1)
    geometry = plane(normal[:, 0, 0], levels=levels)
    for az in range(-180, 180, 45):
        for el in (-80, -45, -10, 3, 20, 60):
            for softness in (0.0, 0.3):
                light = Sun(az=float(az), el=float(el), softness=softness)
                if (light_direction(light.az, light.el, normal)[0] * normal).sum() > 0:
                    # Exact depth needs next to no bias.
                    seen = visibility(geometry, light, None if levels else March(bias=1e-4), normal)
                    assert seen.min() > 0.98, (az, el, softness)


def brute_force(z: np.ndarray, points: np.ndarray, normals: np.ndarray, light: Light, lamp: np.ndarray) -> np.ndarray:
    """Hard shadows of many lamp points, many even steps in space, float64. z (H,W); points, normals (H,W,3)."""
    march, span = March(), CAMERA.far - CAMERA.near
    height, width = z.shape
    rng = np.random.default_rng(0)
    radius, angle = np.sqrt((np.arange(24) + 0.5) / 24), rng.permutation(24) / 24 * 2 * np.pi
    total, rays = np.zeros_like(z), np.zeros_like(z)
    for r, a in zip(radius * float(light.softness), angle, strict=True):
        centre = np.broadcast_to(lamp, points.shape) if isinstance(light, Sun) else lamp - points
        one = np.cross(centre, [0.36, 0.48, 0.8])
        one /= np.linalg.norm(one, axis=-1, keepdims=True)
        two = np.cross(centre / np.linalg.norm(centre, axis=-1, keepdims=True), one)
        to_lamp = centre + r * (np.cos(a) * one + np.sin(a) * two)
        length = np.linalg.norm(to_lamp, axis=-1)
        ray = to_lamp / length[..., None]
        above = (ray * normals).sum(-1) > 0.02
        length = np.full_like(length, span * march.reach) if isinstance(light, Sun) else np.minimum(length, span)
        blocked = np.zeros(z.shape, dtype=bool)
        for t in (np.arange(160) + rng.random()) / 160:
            p = points + (t * length)[..., None] * ray
            distance = np.maximum(-p[..., 2], 1e-3)
            column = np.floor((p[..., 0] / distance / HALF + 1) / 2 * width).astype(int)
            row = np.floor((1 - p[..., 1] / distance / HALF * width / height) / 2 * height).astype(int)
            shown = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (p[..., 2] < 0)
            behind = distance - z[row.clip(0, height - 1), column.clip(0, width - 1)]
            blocked |= shown & (behind > 1.5 * march.bias * span) & (behind < march.thickness * span)
        total += above & ~blocked
        rays += above
    return total / np.maximum(rays, 1)


@pytest.mark.parametrize(
    ("scene", "light"),
    [(0, Sun(az=-50.0, el=25.0, softness=0.2)), (4, Point(x=0.3, y=0.9, height=0.5, softness=0.15))],
)
def test_against_an_independent_march(light: Light, scene: int) -> None:
    maps = render(sample_scene(np.random.default_rng([7, scene])), 80)
    z = torch.from_numpy(CAMERA.near + maps["depth"] * (CAMERA.far - CAMERA.near))[None, None]
    geometry, normals = Geometry(z, CAMERA), torch.from_numpy(maps["normals"]).permute(2, 0, 1)[None]
    incidence = light.incidence(geometry)
    lit = (normals * incidence.direction).sum(1, keepdim=True) > 0.05
    ours = shadow_visibility(geometry, normals, incidence.direction, incidence.distance, light.softness, lit=lit)
    if isinstance(light, Sun):
        lamp = light_direction(light.az, light.el, z)[0, :, 0, 0]
    else:
        lamp = geometry.lamp_position(light.x, light.y, light.height)[0, :, 0, 0]
    points = geometry.points[0].permute(1, 2, 0).double().numpy()
    truth = brute_force(z[0, 0].double().numpy(), points, maps["normals"].astype(float), light, lamp.double().numpy())
    here = lit[0, 0].numpy()
    assert truth[here].mean() < 0.98 and truth[here].max() > 0.9  # something is shadowed, something is not
    difference = np.abs(ours[0, 0].numpy() - truth)[here]
    assert difference.mean() < 0.04


def test_every_place_in_a_tile_weighs_the_same() -> None:
    y, x = torch.meshgrid(torch.arange(40), torch.arange(48), indexing="ij")
    tile = shadows._tile(x, y)[None, None] / 63  # the numbers 0..63 are mixed to their mean
    mixed = shadows._average(tile, Geometry(torch.full((1, 1, 40, 48), 2.0), CAMERA), None, 0.1)
    torch.testing.assert_close(mixed[..., 4:-4, 4:-4], torch.full((1, 1, 32, 40), 0.5))


def test_light_passes_behind_thin_things() -> None:
    """And leaves no dots, which interpolating depth across the outline would."""
    geometry = bar(1.5)
    sun = Sun(az=50.0, el=10.0)
    assert visibility(geometry, sun, March(thickness=1.0, reach=0.5)).min() < 0.05
    assert visibility(geometry, sun, March(thickness=0.05, reach=0.5)).min() > 0.99


def test_unlit_pixels_are_left_out() -> None:
    geometry, sun = bar(0.4), Sun(az=60.0, el=0.0)
    direction = sun.incidence(geometry).direction
    normals = FACING.expand_as(direction)
    everywhere = shadow_visibility(geometry, normals, direction, None, 0.1)
    lit = torch.zeros_like(everywhere, dtype=torch.bool)
    lit[..., 40:100, :] = True
    some = shadow_visibility(geometry, normals, direction, None, 0.1, lit=lit)
    assert (some[~lit] == 1).all()
    torch.testing.assert_close(some[..., 44:96, :], everywhere[..., 44:96, :])
    assert (shadow_visibility(geometry, normals, direction, None, 0.1, lit=lit & False) == 1).all()


@pytest.mark.parametrize("pixels", [1, 700, 5000])
def test_pieces_do_not_show(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = render(sample_scene(np.random.default_rng([7, 4])), 72)
    geometry = Geometry(torch.from_numpy(1 + 2 * maps["depth"])[None, None].expand(2, -1, -1, -1), CAMERA)
    normals = torch.from_numpy(maps["normals"]).permute(2, 0, 1)[None].expand(2, -1, -1, -1)
    incidence = Point(x=0.6, y=0.3, height=0.7, softness=torch.tensor([0.1, 0.3])).incidence(geometry)
    lit = (normals * incidence.direction).sum(1, keepdim=True) > 0
    arguments = (geometry, normals, incidence.direction, incidence.distance, torch.tensor([0.1, 0.3]), None, lit)
    whole, open_ = shadow_visibility(*arguments), ambient_occlusion(geometry, normals)
    monkeypatch.setattr(shadows, "PIXELS_AT_ONCE", pixels)
    torch.testing.assert_close(shadow_visibility(*arguments), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(ambient_occlusion(geometry, normals), open_, rtol=0, atol=1e-5)


def test_a_batch_is_its_pictures() -> None:
    geometries = [bar(0.2, 48), bar(0.5, 48)]
    together = Geometry(torch.cat([g.z for g in geometries]), CAMERA)
    direction = torch.cat([light_direction(az, 5.0, together.z) for az in (40.0, -60.0)]).expand(-1, -1, 48, 48)
    softness = torch.tensor([0.05, 0.3])
    both = shadow_visibility(together, FACING[None].expand_as(direction), direction, None, softness)
    for i, geometry in enumerate(geometries):
        one = direction[i : i + 1]
        alone = shadow_visibility(geometry, FACING[None].expand_as(one), one, None, float(softness[i]))
        torch.testing.assert_close(both[i : i + 1], alone)


def test_gradients_reach_depth_and_light() -> None:
    z = bar(0.3, 48).z.requires_grad_()
    softness = torch.tensor(0.2, requires_grad=True)
    az = torch.tensor(50.0, requires_grad=True)
    geometry = Geometry(z, CAMERA)
    direction = Sun(az=az, el=0.0).incidence(geometry).direction
    normals = FACING[None].expand_as(direction)
    seen = shadow_visibility(geometry, normals, direction, None, softness, SOLID)
    (seen.mean() + ambient_occlusion(geometry, normals).mean()).backward()
    for leaf in (z, softness, az):
        assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert z.grad is not None and z.grad.abs().max() > 0


def test_half_precision_maps() -> None:
    geometry, sun = bar(0.4), Sun(az=50.0, el=10.0)
    direction = sun.incidence(geometry).direction
    normals = FACING.expand_as(direction)
    full = shadow_visibility(geometry, normals, direction, None, 0.2)
    half = shadow_visibility(geometry, normals.half(), direction.half(), None, 0.2)
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.01
    assert (half.flip(-1) - full).abs().mean() > 0.05  # a shadow on the wrong side would fail


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    geometry = Geometry(torch.full((1, 1, *size), 2.0), CAMERA)
    for light in (Sun(), Point(), Spot(), Rim()):
        assert (visibility(geometry, light) == 1).all()
    assert (ambient_occlusion(geometry, FACING[None].expand(1, 3, *size)) > 0.99).all()


def room(size: int = 96) -> tuple[Geometry, Tensor]:
    """Build a corridor of width and height 2 with an end at distance 3; also mirrored and upside down."""
    x, y = axis(size), -axis(size)[:, None]
    inverse = torch.stack([x.abs().expand(size, size), y.abs().expand(size, size), torch.full((size, size), 1 / 3)])
    face = inverse.argmax(0)
    zero = torch.zeros(size, size)
    left_right = torch.stack([-x.sign().expand(size, size), zero, zero])
    up_down = torch.stack([zero, -y.sign().expand(size, size), zero])
    normals = torch.where(face == 0, left_right, torch.where(face == 1, up_down, FACING.expand(3, size, size)))
    return Geometry(1 / inverse.amax(0)[None, None], Camera(near=2.7, far=3.0, fov=CAMERA.fov)), normals[None]


@pytest.mark.parametrize("tilt", TILTS)
def test_a_plane_is_open(tilt: tuple[int, int]) -> None:
    normal = light_direction(*map(float, tilt), torch.zeros(1))  # (1,3,1,1)
    geometry = plane(normal[0, :, 0, 0])
    assert ambient_occlusion(geometry, normal.expand_as(geometry.points)).min() > 0.999


def test_corners_are_dark() -> None:
    geometry, normals = room()
    open_ = ambient_occlusion(geometry, normals, radius=1.0)[0, 0]  # (H,W)
    size = len(open_)
    edge = round((1 - 1 / 3 / HALF) * size / 2) + 2  # just inside the end wall's border
    middle = size // 2
    assert open_[middle, middle] > 0.97
    assert open_[edge, edge] < open_[edge, middle] - 0.05 < open_[middle, middle] - 0.1
    for mirrored in (open_.flip(0), open_.flip(1), open_.T):
        assert (open_ - mirrored).abs().mean() < 0.02
