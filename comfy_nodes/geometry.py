"""The values of core's own geometry nodes (MoGe, Depth Anything 3) as our maps, and back. No ComfyUI here.

These values are dicts of tensors in the OpenCV frame: X right, Y down, Z into the scene.
"""

from dataclasses import dataclass
from math import atan, degrees, radians, tan
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from ..intrinsics.normals import normals_to_picture
from .gbuffers import needed, to_gbuffer
from .photo_maps import PhotoMaps

ASSUMED_FOCAL = 0.7  # of the width, where Depth Anything does not know; core assumes it too


@dataclass(frozen=True)
class GeometryMaps:
    """Maps of a geometry, as pictures.

    Attributes:
        normals: IMAGE (B, H, W, 3), n * 0.5 + 0.5 in the OpenCV frame.
        depth: IMAGE (B, H, W, 1), distance along the optical axis in the model's units; infinite in the sky.
        fov: degrees over the longer side of the first picture.
    """

    normals: Tensor
    depth: Tensor
    fov: float


def geometry_maps(geometry: dict[str, Any]) -> GeometryMaps:
    """Convert a MOGE_GEOMETRY or DA3_GEOMETRY to maps.

    Args:
        geometry: "depth" (B, H, W), and if the model gives them "normal" and "points" (B, H, W, 3), "intrinsics"
            (B or 1, ..., 3, 3), "mask" (B, H, W; true where there is something), "sky" (B, H, W; a probability).

    Raises:
        ValueError: no depth, or of a panorama.
    """
    depth = geometry.get("depth")
    if depth is None:
        raise ValueError("The geometry has no depth: connect the output of MoGe or Depth Anything 3 inference.")
    if "intrinsics" not in geometry and "mode" not in geometry:
        raise ValueError("The geometry is of a panorama, which has no view to relight: use MoGe on a plain photo.")
    depth = depth.float().cpu()  # (B, H, W)
    there = depth.isfinite() & (depth > 0)
    if (mask := geometry.get("mask")) is not None:
        there &= mask.bool().cpu()
    if (sky := geometry.get("sky")) is not None:
        there &= sky.float().cpu() < 0.5
    depth = torch.where(there, depth, torch.inf)
    fov = _fov(geometry.get("intrinsics"), depth.shape[2], depth.shape[1], normalized="mode" not in geometry)
    normals = geometry.get("normal")
    normals = _normals(depth, fov) if normals is None else normals.float().cpu()
    viewer = torch.tensor([0.0, 0.0, -1.0])
    known = there[..., None] & (normals.norm(dim=-1, keepdim=True) > 0.1)  # NaN next to invalid depth
    normals = torch.where(known, normals, viewer)
    return GeometryMaps(normals_to_picture(normals), depth[..., None], fov)


def moge_geometry(
    photo_maps: PhotoMaps, *, near: float = 0.0, far: float = 0.0, fov: float = 0.0
) -> dict[str, Tensor]:
    """Convert maps to a MOGE_GEOMETRY, which core's nodes mesh, draw and measure.

    Args:
        photo_maps: with depth and normals.
        near, far, fov: of the camera; 0 keeps the value of `photo_maps`, else the default of `Camera`.

    Returns:
        "image" (B, H, W, 3) sRGB; "points" (B, H, W, 3), "depth" (B, H, W) and "normal" (B, H, W, 3) in scene units
        and the OpenCV frame; "mask" (B, H, W) bool, whether there is a surface, beyond which points and depth are
        infinite; "intrinsics" (B, 3, 3), focal lengths as shares of width and height.

    Raises:
        ValueError: no depth or normals, or not near < far.
    """
    needed(photo_maps, "depth")
    gbuffer = to_gbuffer(photo_maps, near=near, far=far, fov=fov)
    opencv = torch.tensor([1.0, -1.0, -1.0])
    points = gbuffer.geometry.points.movedim(1, -1) * opencv  # (B, H, W, 3)
    count, height, width, _ = points.shape
    there = torch.ones(count, height, width, dtype=torch.bool) if gbuffer.there is None else gbuffer.there[:, 0]
    points = points.where(there[..., None], torch.inf)
    focal = max(height, width) / (2 * tan(radians(gbuffer.camera.fov) / 2))  # pixels
    k = torch.tensor([[focal / width, 0.0, 0.5], [0.0, focal / height, 0.5], [0.0, 0.0, 1.0]])
    return {
        "image": photo_maps.photo.clamp(0, 1).movedim(1, -1),
        "points": points,
        "depth": points[..., 2],
        "normal": gbuffer.normals.movedim(1, -1) * opencv,
        "mask": there,
        "intrinsics": k.expand(count, 3, 3),
    }


def _fov(intrinsics: Tensor | None, width: int, height: int, normalized: bool) -> float:
    """Degrees over the longer side; MoGe's focal lengths are shares of width and height, Depth Anything's pixels."""
    if intrinsics is None:
        return degrees(2 * atan(max(width, height) / (2 * ASSUMED_FOCAL * width)))
    k = intrinsics.float().reshape(-1, 3, 3)[0]
    across, down = (1.0, 1.0) if normalized else (float(width), float(height))
    half = across / (2 * k[0, 0].item()) if width >= height else down / (2 * k[1, 1].item())
    return degrees(2 * atan(half))


def _normals(depth: Tensor, fov: float) -> Tensor:
    """Estimate normals (B, H, W, 3) from distances (B, H, W), by the differences of neighbouring points."""
    height, width = depth.shape[1:]
    half = torch.tan(torch.deg2rad(torch.tensor(fov)) / 2) / max(height, width)
    u = (2 * torch.arange(width) + 1 - width) * half
    v = (2 * torch.arange(height) + 1 - height) * half
    points = torch.stack([u * depth, v[:, None] * depth, depth], dim=1)  # (B, 3, H, W)
    framed = pad(points, (1, 1, 1, 1), mode="replicate")
    across = framed[..., 1:-1, 2:] - framed[..., 1:-1, :-2]
    down = framed[..., 2:, 1:-1] - framed[..., :-2, 1:-1]
    return normalize(torch.linalg.cross(down, across, dim=1), dim=1).movedim(1, -1)
