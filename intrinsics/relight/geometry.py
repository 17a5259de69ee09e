"""Surface points of a depth map. OpenGL camera frame: X right, Y up, Z towards the viewer, camera at 0."""

from dataclasses import dataclass
from functools import cached_property
from math import radians, tan

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """Camera parameters that an affine-invariant depth map does not contain.

    Attributes:
        near, far: distances of depth 0 and depth 1 along the optical axis, scene units, 0 < near < far.
        fov: field of view along the picture's longer side, degrees, between 0 and 180, both excluded.
    """

    near: float = 1.0
    far: float = 4.0
    fov: float = 45.0

    def __post_init__(self) -> None:
        if not 0 < self.near < self.far:
            raise ValueError(f"The depth range must be 0 < near < far, not {self.near:g} and {self.far:g}.")
        if not 0 < self.fov < 180:
            raise ValueError(f"The field of view must be above 0 and below 180 degrees, not {self.fov:g}.")


@dataclass(frozen=True, eq=False)
class Geometry:
    """The visible surface as points.

    Attributes:
        z: (B, 1, H, W) distance along the optical axis, positive, scene units.
        camera: how pixels and distances become points.
        there: (B, 1, H, W) bool, whether there is a surface; other pixels cast no shadow. None = everywhere.
    """

    z: Tensor
    camera: Camera
    there: Tensor | None = None

    @cached_property
    def half_size(self) -> tuple[float, float]:
        """Half width and half height of the picture at distance 1."""
        height, width = self.z.shape[-2:]
        scale = tan(radians(self.camera.fov) / 2) / max(height, width)
        return width * scale, height * scale

    @cached_property
    def points(self) -> Tensor:
        """Surface points at the pixel centres, (B, 3, H, W)."""
        height, width = self.z.shape[-2:]
        half_width, half_height = self.half_size
        x = ((torch.arange(width, device=self.z.device) + 0.5) / width * 2 - 1) * half_width  # (W,)
        y = (1 - (torch.arange(height, device=self.z.device) + 0.5) / height * 2) * half_height  # (H,)
        return torch.cat([x * self.z, y[:, None] * self.z, -self.z], dim=1)

    @cached_property
    def view(self) -> Tensor:
        """Unit directions from the surface to the camera, (B, 3, H, W)."""
        return unit(-self.points)

    @cached_property
    def inverse(self) -> Tensor:
        """1 / distance, (B, 1, H, W): linear in picture coordinates wherever the surface is a plane."""
        return 1 / self.z.float()

    @cached_property
    def slopes(self) -> tuple[Tensor, Tensor]:
        """Change of `inverse` per pixel to the right and downwards, (B, 1, H, W) each; 0 at edges."""
        return _slope(self.inverse, -1), _slope(self.inverse, -2)

    def lamp_position(self, x: float | Tensor, y: float | Tensor, height: float | Tensor) -> Tensor:
        """Return the surface point at picture coordinates (0..1 from the top left), moved by `height` along Z.

        Outside the frame the distance of the nearest border pixel is used.

        Returns:
            (B, 3, 1, 1).
        """
        device = self.z.device
        fields = (torch.as_tensor(v, dtype=torch.float32, device=device).reshape(-1, 1, 1, 1) for v in (x, y, height))
        x, y, height = lamp = torch.broadcast_tensors(*fields)
        grid = torch.cat(lamp[:2], dim=-1) * 2 - 1  # (B or 1, 1, 1, 2)
        batch = max(len(self.z), len(grid))
        z = F.grid_sample(
            self.z.expand(batch, -1, -1, -1),
            grid.expand(batch, -1, -1, -1),
            padding_mode="border",
            align_corners=False,
        )  # (B, 1, 1, 1)
        half_width, half_height = self.half_size
        return torch.cat([(2 * x - 1) * half_width * z, (1 - 2 * y) * half_height * z, height - z], dim=1)


def unit(v: Tensor, dim: int = 1) -> Tensor:
    """Normalise vectors along `dim`; zero stays zero. Ten times faster than torch's norm over three channels."""
    return v * v.square().sum(dim, keepdim=True).clamp(min=1e-24).rsqrt()


def _slope(x: Tensor, dim: int) -> Tensor:
    """Return the smaller of the differences to both neighbours; 0 where they disagree in sign (minmod)."""
    if x.shape[dim] == 1:
        return torch.zeros_like(x)
    step = x.diff(dim=dim)
    before = torch.cat([step.narrow(dim, 0, 1), step], dim)
    after = torch.cat([step, step.narrow(dim, step.shape[dim] - 1, 1)], dim)
    return torch.where(before.abs() < after.abs(), before, after) * (before * after > 0)
