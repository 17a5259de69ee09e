"""Soft shadows and ambient occlusion, marched in screen space against the depth map.

Every pixel sends one ray, to one of 16 points spread over the lamp and with one of 16 offsets along its way: which
ones repeats over tiles of 4 x 4 pixels. Averaging 4 x 4 neighbours of one surface then integrates over the lamp at
the price of a single ray (interleaved sampling, Keller and Heidrich 2001). What the picture does not show casts no
shadow.
"""

from dataclasses import dataclass
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry
from .lights import number

TILE = 4
GOLDEN_ANGLE = 2.39996323
PIXELS_AT_ONCE = 2**20  # rays marched together: bounds the memory of a 4K picture


@dataclass(frozen=True)
class March:
    """How rays are marched. Lengths are shares of the depth range (far - near).

    Attributes:
        steps: samples along each ray; the 16 neighbours look in between.
        thickness: how far things reach behind their visible surface; a ray further behind passes.
        bias: by how much something must stand before the ray to block it. Hides the depth map's noise, and contact
            shadows with it.
        reach: the longest ray.
    """

    steps: int = 24
    thickness: float = 0.1
    bias: float = 0.02
    reach: float = 1.0


def shadow_visibility(
    geometry: Geometry,
    normals: Tensor,
    direction: Tensor,
    distance: Tensor | None,
    softness: float | Tensor,
    march: March | None = None,
) -> Tensor:
    """How much of a light each pixel sees.

    Args:
        geometry: of the picture, B pictures.
        normals: (B,3,H,W) unit.
        direction: (B,3,H,W) unit, to the light's centre.
        distance: (B,1,H,W) to it, scene units; None = infinitely far.
        softness: radius of the light at that distance, or the tangent of its angular radius.

    Returns:
        (B,1,H,W) in [0,1], 1 = unshadowed.
    """
    march = march or March()
    height, width = geometry.z.shape[-2:]
    z = geometry.z.expand(len(direction), -1, -1, -1)
    rows = max(TILE, PIXELS_AT_ONCE // (len(z) * width))
    bands = []
    for top in range(0, height, rows):
        band = slice(top, min(top + rows, height))
        tile = _tile(band.stop - top, width, top, z.device)  # (2,1,h,W)
        bands.append(
            _march(
                geometry,
                z,
                geometry.points[..., band, :],
                normals[..., band, :],
                direction[..., band, :],
                None if distance is None else distance[..., band, :],
                softness,
                tile,
                march,
            )
        )
    return _average(torch.cat(bands, dim=-2), geometry.z, march.bias * _range(geometry))


def _range(geometry: Geometry) -> float:
    return geometry.camera.far - geometry.camera.near


def _tile(height: int, width: int, top: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Numbers 0..15 over 4 x 4 tiles, (1,1,h,W), in two orders that do not repeat each other: lamp point, offset."""
    bayer = torch.tensor([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], device=device)
    square = torch.tensor([[0, 5, 10, 15], [6, 3, 12, 9], [13, 8, 7, 2], [11, 14, 1, 4]], device=device)
    y = (torch.arange(height, device=device) + top) % TILE
    x = torch.arange(width, device=device) % TILE
    return bayer[y][:, x][None, None].float(), square[y][:, x][None, None].float()


def _march(
    geometry: Geometry,
    z_map: Tensor,
    points: Tensor,
    normals: Tensor,
    direction: Tensor,
    distance: Tensor | None,
    softness: float | Tensor,
    tile: tuple[Tensor, Tensor],
    march: March,
) -> Tensor:
    span = _range(geometry)
    bias, thickness = march.bias * span, march.thickness * span
    half_width, half_height = geometry.half_size

    # One point of the lamp's disc per pixel (sunflower pattern), seen from the surface.
    index, phase = tile
    radius = ((index + 0.5) / TILE**2).sqrt() * number(softness, points)  # (B or 1,1,h,W)
    angle = index * GOLDEN_ANGLE
    up = torch.where(direction[:, 1:2].abs() < 0.9, 0.0, 1.0)
    tangent = F.normalize(torch.linalg.cross(direction, torch.cat([up, 1 - up, 0 * up], 1), dim=1), dim=1)
    offset = radius * (angle.cos() * tangent + angle.sin() * torch.linalg.cross(direction, tangent, dim=1))
    start = points + 0.5 * bias * normals
    if distance is None:
        ray, length = F.normalize(direction + offset, dim=1), torch.full_like(start[:, :1], march.reach * span)
    else:
        to_lamp = direction * distance + offset
        length = (to_lamp.square().sum(1, keepdim=True) + 1e-12).sqrt()
        ray = to_lamp / length

    # Cut the ray where it leaves the picture, or comes before everything in it.
    z0 = -start[:, 2:3]  # (B,1,h,W)
    length = length.clamp(max=march.reach * span)
    for position, step, half in (
        (start[:, 0:1], ray[:, 0:1], half_width),
        (start[:, 1:2], ray[:, 1:2], half_height),
    ):
        for sign in (1, -1):  # inside while sign * position <= half * distance
            room = (half * z0 - sign * position).clamp(min=0)
            closing = sign * step + half * ray[:, 2:3]
            length = torch.where(closing > 1e-6, torch.minimum(length, room / closing.clamp(min=1e-6)), length)
    nearest = z_map.amin((2, 3), keepdim=True)  # (B,1,1,1)
    rising = ray[:, 2:3]
    leaves = (z0 - nearest).clamp(min=0) / rising.clamp(min=1e-6)
    length = torch.where(rising > 1e-6, torch.minimum(length, leaves), length)

    # In the picture the ray is a straight line on which 1 / distance is linear.
    end = start + length * ray
    z1 = (-end[:, 2:3]).clamp(min=1e-3)
    to_grid = points.new_tensor([1 / half_width, -1 / half_height])[:, None, None]
    from_, to = start[:, :2] / z0 * to_grid, end[:, :2] / z1 * to_grid  # (B,2,h,W), -1..1 over the picture
    blocked = torch.zeros_like(z0)
    for i in range(march.steps):
        # Denser near the surface, where shadows begin.
        s = ((i + (phase + 0.5) / TILE**2) / march.steps) ** 1.5
        grid = (from_ + s * (to - from_)).permute(0, 2, 3, 1)  # (B,h,W,2)
        z_ray = 1 / ((1 - s) / z0 + s / z1)
        z_seen = F.grid_sample(z_map, grid, padding_mode="border", align_corners=False)  # (B,1,h,W)
        behind = z_ray - z_seen  # how far the ray is behind what is seen there
        enters = ((behind - bias) / bias).clamp(0, 1)
        passes = ((thickness - behind) / bias).clamp(0, 1)
        blocked = torch.maximum(blocked, enters * passes)
    return 1 - blocked


def _average(x: Tensor, z: Tensor, tolerance: float) -> Tensor:
    """Mean over 5 x 5 pixels whose border counts half: every position of the 4 x 4 tile weighs the same.

    Pixels of another surface, further than `tolerance` off this pixel's tangent in depth, do not count.
    """
    height, width = x.shape[-2:]
    slope_x, slope_y = _slope(z, -1), _slope(z, -2)
    padded_x, padded_z = (F.pad(t, (2, 2, 2, 2), mode="replicate") for t in (x, z.expand(len(x), -1, -1, -1)))
    total, weights = torch.zeros_like(x), torch.zeros_like(x)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            window = (..., slice(2 + dy, 2 + dy + height), slice(2 + dx, 2 + dx + width))
            off = (padded_z[window] - z - dx * slope_x - dy * slope_y).abs()
            weight = (1 - off / (2 * tolerance)).clamp(min=0) + 1e-4
            weight = weight * (0.5 if abs(dx) == 2 else 1) * (0.5 if abs(dy) == 2 else 1)
            total, weights = total + weight * padded_x[window], weights + weight
    return total / weights


def _slope(z: Tensor, dim: int) -> Tensor:
    """Change of z per pixel along `dim`: the smaller of both one-sided differences, so an edge has none."""
    if z.shape[dim] == 1:
        return torch.zeros_like(z)
    step = z.diff(dim=dim)
    first, last = step.narrow(dim, 0, 1), step.narrow(dim, step.shape[dim] - 1, 1)
    before, after = torch.cat([first, step], dim), torch.cat([step, last], dim)
    return torch.where(before.abs() < after.abs(), before, after)


def ambient_occlusion(geometry: Geometry, normals: Tensor, radius: float = 0.25, samples: int = 8) -> Tensor:
    """How open the surroundings of each pixel are, from the depth map.

    Obscurance as the mean over points of the visible surface nearby of the cosine under which they stand above the
    tangent plane, fading with distance (after Alchemy AO, McGuire et al. 2011), sampled as the shadows are.

    Args:
        geometry: of the picture, B pictures.
        normals: (B,3,H,W) unit.
        radius: how far away something still darkens, a share of the depth range.
        samples: per pixel.

    Returns:
        (B,1,H,W) in [0,1], 1 = open.
    """
    points, z = geometry.points, geometry.z
    height, width = z.shape[-2:]
    reach = radius * _range(geometry)
    half_width, half_height = geometry.half_size
    rows = max(TILE, PIXELS_AT_ONCE // (len(z) * width))
    bands = []
    for top in range(0, height, rows):
        band = slice(top, min(top + rows, height))
        index, phase = _tile(band.stop - top, width, top, z.device)
        own, normal = points[..., band, :], normals[..., band, :]
        center = own[:, :2] / -own[:, 2:3]  # (B,2,h,W) on the plane at distance 1
        occluded = torch.zeros_like(own[:, :1])
        for i in range(samples):
            turn = (index / TILE**2 + i * 0.618034) * 2 * pi
            disc = ((i + (phase + 0.5) / TILE**2) / samples).sqrt() * reach / -own[:, 2:3]  # (B,1,h,W)
            xy = center + disc * torch.cat([turn.cos(), turn.sin()], 1)
            grid = (xy / xy.new_tensor([half_width, -half_height])[:, None, None]).permute(0, 2, 3, 1)
            z_seen = F.grid_sample(z, grid, padding_mode="border", align_corners=False)  # (B,1,h,W)
            to_it = torch.cat([xy * z_seen, -z_seen], 1) - own
            square = to_it.square().sum(1, keepdim=True) + 1e-8
            cosine = (to_it * normal).sum(1, keepdim=True) / square.sqrt()
            occluded = occluded + (cosine - 0.1).clamp(min=0) * (1 - square / reach**2).clamp(min=0)
        bands.append((1 - 2 * occluded / samples).clamp(0, 1))
    return _average(torch.cat(bands, dim=-2), z, 0.02 * _range(geometry))
