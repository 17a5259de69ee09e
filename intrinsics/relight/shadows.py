"""Soft shadows and ambient occlusion by ray marching in screen space on the depth map.

Every pixel casts one ray to one of 64 points on the lamp, with one of 64 offsets along the ray; the choice repeats
over tiles of 8 x 8 pixels. Averaging 8 x 8 neighbours of the same surface integrates over the lamp at the cost of a
single ray per pixel (interleaved sampling, Keller and Heidrich 2001). Surfaces that are not visible in the picture
cast no shadow.

A ray is a straight line in the picture, along which 1 / distance is linear; over a plane 1 / distance is linear too,
so rays and surfaces are compared in 1 / distance.
"""

from dataclasses import dataclass
from math import cos, pi, sin

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry, unit
from .lights import number

TILE = 8
GOLDEN_ANGLE = 2.39996323
GRAZING = 0.02  # sine of the minimum angle between a ray and the surface where it starts
OCCLUSION_SAMPLES = 8  # per pixel
# Temporaries of this size fit a CPU's cache, which is 20 times faster, and limit the memory for 4K pictures.
PIXELS_AT_ONCE = 2**17
LANES = 4  # rays are split into this many pictures, because grid_sample uses one CPU thread per picture of a batch


@dataclass(frozen=True)
class March:
    """Parameters of the shadow rays. Lengths are shares of the depth range (far - near).

    The defaults are for estimated depth, whose unevenness causes dark blotches with a smaller bias. Use `EXACT_DEPTH`
    for exact depth.

    Attributes:
        steps: samples along each ray; the offsets of the 64 neighbours lie in between.
        thickness: assumed thickness of objects; rays further behind their visible surface pass.
        bias: minimum depth of a ray behind a surface that blocks it; it is fully blocked at twice this depth. Hides
            noise of the depth map, and contact shadows.
        reach: maximum length of a ray.
    """

    steps: int = 24
    thickness: float = 0.25
    bias: float = 0.04
    reach: float = 1.0


EXACT_DEPTH = March(thickness=0.1, bias=0.02)


def shadow_visibility(
    geometry: Geometry,
    normals: Tensor,
    direction: Tensor,
    distance: Tensor | None,
    softness: float | Tensor,
    march: March | None = None,
    lit: Tensor | None = None,
) -> Tensor:
    """Compute the share of a light that is visible from each pixel.

    Args:
        geometry: of B pictures, or of one picture for all.
        normals: (B or 1, 3, H, W) unit.
        direction: (B, 3, H, W) unit, to the light's centre.
        distance: (B, 1, H, W) to the light's centre, scene units; None = infinite.
        softness: radius of the light at that distance, or the tangent of its angular radius.
        lit: (B, 1, H, W) bool, pixels for which rays are cast; None = all.

    Returns:
        (B, 1, H, W) float32 in [0, 1], 1 = unshadowed or not lit.
    """
    march = march or March()
    batch, _, height, width = direction.shape
    radius = number(softness, direction).expand(batch, -1, -1, -1)
    if lit is None:
        lit = torch.ones_like(direction[:, :1], dtype=torch.bool)
    right, down = geometry.slopes
    # A pixel represents a patch of surface. Rays are compared with its farthest corner, so that no plane shadows
    # itself. Interpolation between pixels would also avoid this, but would connect objects with their background.
    inverse = geometry.inverse
    patch = 1 / torch.maximum(inverse - 0.5 * (right.abs() + down.abs()), 0.5 * inverse)
    if geometry.there is not None:  # without a surface no ray is blocked
        patch = torch.where(geometry.there, patch, torch.inf)
    z, patch, points, normals = (t.expand(batch, -1, -1, -1) for t in (geometry.z, patch, geometry.points, normals))
    rows = max(1, PIXELS_AT_ONCE // width)
    pictures = []
    for b in range(batch):
        nearest = z[b].amin()
        bands = []
        for top in range(0, height, rows):
            band = slice(top, min(top + rows, height))
            visible = torch.ones((band.stop - top) * width, device=direction.device)  # (h*W,)
            picked = lit[b, 0, band].flatten().nonzero()[:, 0]  # (n,)
            if len(picked):
                lanes = F.pad(picked, (0, -len(picked) % LANES))  # (m,) a multiple of LANES

                def pick(image: Tensor, b: int = b, band: slice = band, lanes: Tensor = lanes) -> Tensor:
                    return image[b, :, band].flatten(1).index_select(1, lanes).float()  # (C, m)

                rays = _march(
                    geometry,
                    patch[b],
                    nearest,
                    pick(points),
                    pick(normals),
                    pick(direction),
                    None if distance is None else pick(distance),
                    radius[b, 0],
                    _tile(lanes % width, lanes // width + top),
                    march,
                )  # (m,)
                visible = visible.index_copy(0, picked, rays[: len(picked)])
            bands.append(visible.view(1, -1, width))
        pictures.append(torch.cat(bands, 1))
    return _average(torch.stack(pictures), geometry, lit, march.bias * _range(geometry))


def _range(geometry: Geometry) -> float:
    return geometry.camera.far - geometry.camera.near


def _tile(x: Tensor, y: Tensor) -> Tensor:
    """Return 0..63 over tiles of 8 x 8 pixels (n,), in Bayer order: every 4 x 4 pixels contain every fourth number."""
    index = torch.zeros_like(x)
    for bit in range(3):
        a, b = x >> bit & 1, y >> bit & 1
        index = 4 * index + 2 * (a ^ b) + b
    return index.float()


def _march(
    geometry: Geometry,
    patch: Tensor,
    nearest: Tensor,
    start: Tensor,
    normals: Tensor,
    direction: Tensor,
    distance: Tensor | None,
    radius: Tensor,
    index: Tensor,
    march: March,
) -> Tensor:
    """March n rays of one picture; return (n,), 1 = reaches the light.

    patch (1, H, W) and nearest () are distances; start, normals, direction (3, n); distance (1, n); radius (1, 1);
    index (n,).
    """
    span = _range(geometry)
    bias, thickness, reach = march.bias * span, march.thickness * span, march.reach * span

    # One point of the lamp's disc, as seen from the surface, per ray: four sunflower patterns, a quarter turn apart.
    # The axes of the disc are by Duff et al. 2017.
    turn = GOLDEN_ANGLE * (index / 4).floor() + pi / 2 * (index % 4)  # (n,)
    off = radius * ((index + 0.5) / TILE**2).sqrt()  # (1, n)
    x, y, z = direction.split(1)  # (1, n)
    sign = torch.where(z < 0, -1.0, 1.0)
    a = -1 / (sign + z)
    tangent = torch.cat([1 + sign * x * x * a, sign * x * y * a, -sign * x])
    bitangent = torch.cat([x * y * a, sign + y * y * a, -y])
    to_lamp = direction * (1 if distance is None else distance) + off * (turn.cos() * tangent + turn.sin() * bitangent)
    to_lamp_length = (to_lamp.square().sum(0, keepdim=True) + 1e-12).sqrt()
    ray = to_lamp / to_lamp_length
    # The part of the lamp below the horizon is already excluded by max(N.L, 0).
    ray = unit(ray + normals * (GRAZING - (ray * normals).sum(0, keepdim=True)).clamp(min=0), dim=0)

    # End the ray where it is in front of everything in the picture.
    z0, rising = -start[2:], ray[2:]  # (1, n)
    length = (torch.full_like(z0, reach) if distance is None else to_lamp_length).clamp(max=reach)
    leaves = (z0 - nearest).clamp(min=0) / rising.clamp(min=1e-6)
    length = torch.where(rising > 1e-6, torch.minimum(length, leaves), length)
    end = start + length * ray
    z1 = -end[2:]
    w0, w1 = (1 / torch.maximum(z - bias, 0.1 * nearest) for z in (z0, z1))  # biased towards the viewer

    # End the line where it leaves the frame, -1..1.
    half_width, half_height = geometry.half_size
    to_grid = start.new_tensor([[1 / half_width], [-1 / half_height]])
    origin = start[:2] / z0 * to_grid  # (2, n)
    line = end[:2] / z1 * to_grid - origin
    share = ((1 - origin * line.sign()) / line.abs().clamp(min=1e-6)).amin(0, keepdim=True).clamp(0, 1)
    line, rise = share * line, share * (w1 - w0)

    phase = (index * 39 % TILE**2 + 0.5) / TILE**2  # an order that is independent of the lamp points'
    inside = torch.zeros_like(z0)  # maximum depth of the ray inside objects
    for i in range(march.steps):
        # Samples are denser near the surface, where shadows begin.
        u = (i + phase) / march.steps
        s = u * u.sqrt()
        surface = _nearest_pixel(patch, torch.addcmul(origin, s, line))  # (1, n)
        behind = 1 / torch.addcmul(w0, s, rise) - surface
        inside = torch.maximum(inside, torch.minimum(behind, thickness - behind))
    return (1 - inside[0] / bias).clamp(0, 1)


def _nearest_pixel(image: Tensor, xy: Tensor) -> Tensor:
    """Sample (1, H, W) at (2, n), -1..1 over the picture, as (1, n); n is a multiple of LANES."""
    grid = xy.view(2, LANES, 1, -1).permute(1, 2, 3, 0)  # (LANES, 1, n/LANES, 2)
    maps = image.expand(LANES, 1, -1, -1)
    return F.grid_sample(maps, grid, mode="nearest", padding_mode="border", align_corners=False).view(1, -1)


def _average(x: Tensor, geometry: Geometry, lit: Tensor | None, tolerance: float) -> Tensor:
    """Average over 9 x 9 pixels with half the weight at the border, so that all positions of an 8 x 8 tile are equal.

    Separable: along rows, then along columns. Pixels that are not lit, and those of another surface (more than about
    `tolerance` in depth off this pixel's tangent), are excluded. Pixels that are not lit become 1.
    """
    half = TILE // 2
    batch, _, height, width = x.shape
    inverse, slopes = geometry.inverse, geometry.slopes
    rows = max(1, PIXELS_AT_ONCE // (batch * width))
    bands = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        slab = slice(max(top - half, 0), min(bottom + half, height))
        w = inverse[..., slab, :]
        scale = 1 / (2 * tolerance * w * w)
        weights = torch.ones_like(x[..., slab, :]) if lit is None else lit[..., slab, :].float()
        sums = torch.cat([x[..., slab, :] * weights, weights], 1)  # (B, 2, h, W)
        for dim, slope, pad in ((-1, slopes[0], (half, half)), (-2, slopes[1], (0, 0, half, half))):
            slope, size = slope[..., slab, :], w.shape[dim]
            padded, padded_w = F.pad(sums, pad), F.pad(w, pad)
            sums = torch.zeros_like(sums)
            for d in range(-half, half + 1):
                off = (padded_w.narrow(dim, half + d, size) - w - d * slope).abs()
                weight = (1 - off * scale).clamp(min=0) * (0.5 if abs(d) == half else 1.0)
                sums = sums + weight * padded.narrow(dim, half + d, size)
        mean = sums[:, :1] / sums[:, 1:].clamp(min=1e-6)
        mean = mean if lit is None else torch.where(lit[..., slab, :], mean, 1.0)
        bands.append(mean[..., top - slab.start : bottom - slab.start, :])
    return torch.cat(bands, -2)


def ambient_occlusion(geometry: Geometry, normals: Tensor, radius: float = 0.25) -> Tensor:
    """Compute ambient occlusion from the depth map.

    The mean, over points of the visible surface nearby, of the cosine at which they rise above the tangent plane,
    decreasing with distance (after Alchemy AO, McGuire et al. 2011), sampled like the shadows.

    Args:
        geometry: of B pictures.
        normals: (B, 3, H, W) unit.
        radius: maximum distance of occluders, as a share of the depth range.

    Returns:
        (B, 1, H, W) in [0, 1], 1 = open.
    """
    points, inverse = geometry.points, geometry.inverse
    batch, _, height, width = points.shape
    there = None if geometry.there is None else geometry.there.float()
    reach = radius * _range(geometry)
    half_width, half_height = geometry.half_size
    to_grid = points.new_tensor([1 / half_width, -1 / half_height])[:, None, None]
    border = points.new_tensor([half_width * (1 - 1 / width), half_height * (1 - 1 / height)])[:, None, None]
    x = torch.arange(width, device=points.device)
    rows = max(1, PIXELS_AT_ONCE // (batch * width))
    bands = []
    for top in range(0, height, rows):
        band = slice(top, min(top + rows, height))
        y = torch.arange(band.start, band.stop, device=points.device)
        index = _tile(*torch.broadcast_tensors(x, y[:, None]))  # (h, W)
        phase = (index * 39 % TILE**2 + 0.5) / TILE**2
        turn = index * (2 * pi / TILE**2)
        heading = torch.stack([turn.cos(), turn.sin()])  # (2, h, W)
        perpendicular = torch.stack([-heading[1], heading[0]])
        point, normal = points[..., band, :], normals[..., band, :].float()
        w = inverse[..., band, :]
        center = point[:, :2] * w  # (B, 2, h, W) on the plane at distance 1
        occluded = torch.zeros_like(w)
        for i in range(OCCLUSION_SAMPLES):
            towards = cos(i * GOLDEN_ANGLE) * heading + sin(i * GOLDEN_ANGLE) * perpendicular
            xy = center + ((i + phase) / OCCLUSION_SAMPLES).sqrt() * reach * w * towards
            # Points outside the frame are replaced by points on its border.
            xy = torch.minimum(torch.maximum(xy, -border), border)
            grid = (xy * to_grid).permute(0, 2, 3, 1)  # (B, h, W, 2)
            # Interpolated, so that the points of a plane lie on it.
            z = 1 / F.grid_sample(inverse, grid, padding_mode="border", align_corners=False)  # (B, 1, h, W)
            offset = torch.cat([xy * z, -z], 1) - point
            square = offset.square().sum(1, keepdim=True) + 1e-8
            cosine = (offset * normal).sum(1, keepdim=True) / square.sqrt()
            darkens = (cosine - 0.1).clamp(min=0) * (1 - square / reach**2).clamp(min=0)
            if there is not None:
                whole = F.grid_sample(there, grid, padding_mode="border", align_corners=False) > 0.999
                darkens = darkens * whole
            occluded = occluded + darkens
        bands.append((1 - 2 * occluded / OCCLUSION_SAMPLES).clamp(0, 1))
    return _average(torch.cat(bands, dim=-2), geometry, None, 0.02 * _range(geometry))
