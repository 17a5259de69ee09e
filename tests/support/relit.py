"""A ball before a wall, ray-cast here in float64 and by no code of the project, for the tests of relighting."""

from dataclasses import dataclass

import numpy as np
import torch
from intrinsic_lora.intrinsics.relight import Camera, make_gbuffer
from scipy.spatial.transform import Rotation

NEAR, FAR, FOV = 1.0, 4.0, 50.0


@dataclass
class Ball:
    """Arrays are (H,W,3) or (H,W): points, normals, distance along the axis, and which pixels show the ball."""

    rays: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    z: np.ndarray
    hit: np.ndarray

    def gbuffer(self, **maps):
        depth = tensor((self.z - NEAR) / (FAR - NEAR))
        size = depth.shape[-2:]
        maps = {"photo": torch.full((1, 3, *size), 0.5), "albedo": torch.full((1, 3, *size), 0.5)} | maps
        maps = {"shading": torch.ones(1, 1, *size), "photo_encoding": "linear"} | maps
        return make_gbuffer(normals=tensor(self.normals), depth=depth, camera=Camera(NEAR, FAR, FOV), **maps)


def ball(height=30, width=44, center=(0.15, -0.1, -2.4), radius=0.75):
    """Build a ball in front of a wall at distance 4, seen by a pinhole at 0 along -Z, 50° over the longer side."""
    half = np.tan(np.radians(FOV / 2))
    x = ((np.arange(width) + 0.5) / width * 2 - 1) * half * width / max(height, width)
    y = (1 - (np.arange(height) + 0.5) / height * 2) * half * height / max(height, width)
    rays = np.stack([*np.meshgrid(x, y), np.full((height, width), -1.0)], -1)
    center = np.array(center)
    a, b, c = (rays**2).sum(-1), rays @ center, center @ center - radius**2
    hit = b * b - a * c > 0
    z = np.where(hit, (b - np.sqrt(np.where(hit, b * b - a * c, 0))) / a, FAR)
    points = rays * z[..., None]
    normals = np.where(hit[..., None], (points - center) / radius, [0, 0, 1.0])
    return Ball(rays, points, normals, z, hit)


def tensor(a):
    """(H,W) or (H,W,C) -> (1,C,H,W) float32."""
    a = np.atleast_3d(a)
    return torch.from_numpy(a).float().permute(2, 0, 1)[None]


def array(t):
    """(1,C,H,W) -> (H,W,C) or (H,W) float64."""
    return t.detach().double()[0].permute(1, 2, 0).squeeze(-1).numpy()


def direction(az, el):
    """From the viewer's side (0,0,1): raised by `el` about X, then swung by `az` about Y."""
    return Rotation.from_euler("YX", [az, -el], degrees=True).apply([0, 0, 1.0])


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def textbook_ggx(n, v, l, roughness, f0):  # noqa: E741
    """pi * brdf * N.L as in Walter 2007 and Heitz 2014, (..., 3) float64, all directions above the surface."""
    a = roughness**2
    h = unit(v + l)
    n_h, n_l, n_v, v_h = ((p * q).sum(-1) for p, q in ((n, h), (n, l), (n, v), (v, h)))
    d = a**2 / (np.pi * (n_h**2 * (a**2 - 1) + 1) ** 2)
    lambda_l, lambda_v = ((np.sqrt(1 + a**2 * (1 / c**2 - 1)) - 1) / 2 for c in (n_l, n_v))
    f = f0 + (1 - f0) * (1 - v_h) ** 5
    return np.pi * d * f / (1 + lambda_l + lambda_v) / (4 * n_l * n_v) * n_l
