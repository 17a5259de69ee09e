"""From a depth map to points in space. OpenGL camera frame: X right, Y up, Z towards the viewer, camera at 0."""

from dataclasses import dataclass
from functools import cached_property
from math import radians, tan

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """What an affine-invariant depth map does not know.

    Attributes:
        near, far: distance of depth 0 and depth 1 along the optical axis, scene units, 0 < near < far.
        fov: field of view over the picture's longer side, degrees, above 0 and below 180.
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
        there: (B, 1, H, W) bool, where there is a surface; what stands elsewhere casts no shadow. None = everywhere.
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
        """(B, 3, H, W) surface points at the pixels' centres."""
        height, width = self.z.shape[-2:]
        half_width, half_height = self.half_size
        x = ((torch.arange(width, device=self.z.device) + 0.5) / width * 2 - 1) * half_width  # (W,)
        y = (1 - (torch.arange(height, device=self.z.device) + 0.5) / height * 2) * half_height  # (H,)
        return torch.cat([x * self.z, y[:, None] * self.z, -self.z], dim=1)

    @cached_property
    def view(self) -> Tensor:
        """(B, 3, H, W) unit directions from the surface to the camera."""
        return unit(-self.points)

    @cached_property
    def inverse(self) -> Tensor:
        """(B, 1, H, W) 1 / distance: linear over the picture wherever the surface is a plane."""
        return 1 / self.z.float()

    @cached_property
    def slopes(self) -> tuple[Tensor, Tensor]:
        """Change of `inverse` per pixel to the right and per pixel down, (B, 1, H, W) each; an edge has none."""
        return _slope(self.inverse, -1), _slope(self.inverse, -2)

    def lamp_position(self, x: float | Tensor, y: float | Tensor, height: float | Tensor) -> Tensor:
        """(B, 3, 1, 1): the surface point at picture coordinates (0..1, from the top left), moved `height` along Z.

        Outside the frame the distance of the nearest border pixel holds.
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
    """Vectors along `dim` at length one; zero stays zero. Torch's norm over three channels is ten times slower."""
    return v * v.square().sum(dim, keepdim=True).clamp(min=1e-24).rsqrt()


def _slope(x: Tensor, dim: int) -> Tensor:
    """Return the smaller of the differences to both neighbours; 0 where they disagree in sign (minmod)."""
    if x.shape[dim] == 1:
        return torch.zeros_like(x)
    step = x.diff(dim=dim)
    before = torch.cat([step.narrow(dim, 0, 1), step], dim)
    after = torch.cat([step, step.narrow(dim, step.shape[dim] - 1, 1)], dim)
    return torch.where(before.abs() < after.abs(), before, after) * (before * after > 0)
