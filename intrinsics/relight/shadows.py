"""Soft shadows and ambient occlusion, marched in screen space against the depth map.

Every pixel sends one ray, to one of 64 points spread over the lamp and with one of 64 offsets along its way: which
ones repeats over tiles of 8 x 8 pixels. Averaging 8 x 8 neighbours of one surface then integrates over the lamp at
the price of a single ray (interleaved sampling, Keller and Heidrich 2001). What the picture does not show casts no
shadow.

In the picture a ray is a straight line along which 1 / distance is linear, and over a plane 1 / distance is linear
too, so rays and surfaces are compared through it.
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
GRAZING = 0.02  # sine of the least angle between a ray and the surface that it leaves
OCCLUSION_SAMPLES = 8  # per pixel
# Temporaries of this size stay in a CPU's cache, which makes them 20 times faster, and bound a 4K picture's memory.
PIXELS_AT_ONCE = 2**17
LANES = 4  # on a CPU grid_sample runs one thread per picture of the batch, so rays are dealt out to that many


@dataclass(frozen=True)
class March:
    """How rays are marched. Lengths are shares of the depth range (far - near).

    The defaults are for estimated depth, whose unevenness turns into dark blotches with less bias. For depth without
    error there is `EXACT_DEPTH`.

    Attributes:
        steps: samples along each ray; the 64 neighbours look in between.
        thickness: how far things reach behind their visible surface; a ray further behind passes.
        bias: by how much something must stand before the ray to block it, wholly at twice that. Hides the depth map's
            noise, and contact shadows with it.
        reach: the longest ray.
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
    """How much of a light each pixel sees.

    Args:
        geometry: of the picture, B pictures, or one for all.
        normals: (B or 1, 3, H, W) unit.
        direction: (B, 3, H, W) unit, to the light's centre.
        distance: (B, 1, H, W) to it, scene units; None = infinitely far.
        softness: radius of the light at that distance, or the tangent of its angular radius.
        lit: (B, 1, H, W) bool, where the light shines at all; None = everywhere. Elsewhere no ray is marched.

    Returns:
        (B, 1, H, W) float32 in [0,1], 1 = unshadowed or not lit.
    """
    march = march or March()
    batch, _, height, width = direction.shape
    radius = number(softness, direction).expand(batch, -1, -1, -1)
    if lit is None:
        lit = torch.ones_like(direction[:, :1], dtype=torch.bool)
    right, down = geometry.slopes
    # A pixel stands for a patch of surface. Where rays count as behind its farthest corner, no plane shadows itself.
    # Interpolating between pixels would do that too, but hang curtains between an object and what is behind it.
    inverse = geometry.inverse
    patch = 1 / torch.maximum(inverse - 0.5 * (right.abs() + down.abs()), 0.5 * inverse)
    if geometry.there is not None:  # no ray is ever behind what is not there
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
    """0..63 over tiles of 8 x 8 pixels (n,), in Bayer's order: every 4 x 4 pixels hold every fourth number."""
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
    """n rays of one picture -> (n,) 1 = reaches the light.

    patch (1, H, W) and nearest () are distances; start, normals, direction (3, n); distance (1, n); radius (1, 1);
    index (n,).
    """
    span = _range(geometry)
    bias, thickness, reach = march.bias * span, march.thickness * span, march.reach * span

    # One point of the lamp's disc per ray, seen from the surface: four sunflowers, a quarter turn apart. The disc's
    # axes are Duff et al. 2017.
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
    # The part of the lamp below the horizon is not the shadow's business: max(N.L, 0) leaves it out already.
    ray = unit(ray + normals * (GRAZING - (ray * normals).sum(0, keepdim=True)).clamp(min=0), dim=0)

    # Cut the ray where it comes before everything in the picture.
    z0, rising = -start[2:], ray[2:]  # (1, n)
    length = (torch.full_like(z0, reach) if distance is None else to_lamp_length).clamp(max=reach)
    leaves = (z0 - nearest).clamp(min=0) / rising.clamp(min=1e-6)
    length = torch.where(rising > 1e-6, torch.minimum(length, leaves), length)
    end = start + length * ray
    z1 = -end[2:]
    w0, w1 = (1 / torch.maximum(z - bias, 0.1 * nearest) for z in (z0, z1))  # the bias: towards the viewer

    # Cut the line where it leaves the frame, -1..1.
    half_width, half_height = geometry.half_size
    to_grid = start.new_tensor([[1 / half_width], [-1 / half_height]])
    origin = start[:2] / z0 * to_grid  # (2, n)
    line = end[:2] / z1 * to_grid - origin
    share = ((1 - origin * line.sign()) / line.abs().clamp(min=1e-6)).amin(0, keepdim=True).clamp(0, 1)
    line, rise = share * line, share * (w1 - w0)

    phase = (index * 39 % TILE**2 + 0.5) / TILE**2  # an order unlike the lamp points'
    inside = torch.zeros_like(z0)  # how deep the ray is inside of anything, at most
    for i in range(march.steps):
        # Denser near the surface, where shadows begin.
        u = (i + phase) / march.steps
        s = u * u.sqrt()
        seen = _nearest_pixel(patch, torch.addcmul(origin, s, line))  # (1, n)
        behind = 1 / torch.addcmul(w0, s, rise) - seen
        inside = torch.maximum(inside, torch.minimum(behind, thickness - behind))
    return (1 - inside[0] / bias).clamp(0, 1)


def _nearest_pixel(image: Tensor, xy: Tensor) -> Tensor:
    """(1, H, W) at (2, n), -1..1 over the picture -> (1, n); n is a multiple of LANES."""
    grid = xy.view(2, LANES, 1, -1).permute(1, 2, 3, 0)  # (LANES, 1, n/LANES, 2)
    maps = image.expand(LANES, 1, -1, -1)
    return F.grid_sample(maps, grid, mode="nearest", padding_mode="border", align_corners=False).view(1, -1)


def _average(x: Tensor, geometry: Geometry, lit: Tensor | None, tolerance: float) -> Tensor:
    """Mean over 9 x 9 pixels whose border counts half: every position of the 8 x 8 tile weighs the same.

    First along rows, then along columns. Pixels that are not lit and those of another surface, further than about
    `tolerance` off this pixel's tangent in depth, do not count. What is not lit becomes 1.
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
    """How open the surroundings of each pixel are, from the depth map.

    Obscurance as the mean over points of the visible surface nearby of the cosine under which they stand above the
    tangent plane, fading with distance (after Alchemy AO, McGuire et al. 2011), sampled as the shadows are.

    Args:
        geometry: of the picture, B pictures.
        normals: (B, 3, H, W) unit.
        radius: how far away something still darkens, a share of the depth range.

    Returns:
        (B, 1, H, W) in [0,1], 1 = open.
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
        compass = torch.stack([turn.cos(), turn.sin()])  # (2, h, W)
        crosswise = torch.stack([-compass[1], compass[0]])
        own, normal = points[..., band, :], normals[..., band, :].float()
        w = inverse[..., band, :]
        center = own[:, :2] * w  # (B, 2, h, W) on the plane at distance 1
        occluded = torch.zeros_like(w)
        for i in range(OCCLUSION_SAMPLES):
            towards = cos(i * GOLDEN_ANGLE) * compass + sin(i * GOLDEN_ANGLE) * crosswise
            xy = center + ((i + phase) / OCCLUSION_SAMPLES).sqrt() * reach * w * towards
            # Beyond the frame the border's points stand in.
            xy = torch.minimum(torch.maximum(xy, -border), border)
            grid = (xy * to_grid).permute(0, 2, 3, 1)  # (B, h, W, 2)
            # Interpolated, so that the points of a plane lie on it.
            z = 1 / F.grid_sample(inverse, grid, padding_mode="border", align_corners=False)  # (B, 1, h, W)
            to_it = torch.cat([xy * z, -z], 1) - own
            square = to_it.square().sum(1, keepdim=True) + 1e-8
            cosine = (to_it * normal).sum(1, keepdim=True) / square.sqrt()
            darkens = (cosine - 0.1).clamp(min=0) * (1 - square / reach**2).clamp(min=0)
            if there is not None:
                whole = F.grid_sample(there, grid, padding_mode="border", align_corners=False) > 0.999
                darkens = darkens * whole
            occluded = occluded + darkens
        bands.append((1 - 2 * occluded / OCCLUSION_SAMPLES).clamp(0, 1))
    return _average(torch.cat(bands, dim=-2), geometry, None, 0.02 * _range(geometry))
