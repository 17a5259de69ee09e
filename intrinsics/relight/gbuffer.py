"""The G-buffer: a photo and the maps of its surfaces in canonical conventions."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import torch
from torch import Tensor

from ..color import linear_to_srgb, luminance, srgb_to_linear
from ..depth import to_distance, valid_depth
from ..normals import convert_normals, normalize_normals
from .geometry import Camera, Geometry

COLOR_ENCODINGS = ("linear", "srgb")
DEFAULT_ROUGHNESS = 0.5
# Ratio relighting divides by the shading, which is clamped to this share of the picture's bright shading: below it a
# photo contains more noise than light.
SHADING_FLOOR = 0.02
CLIPPED, BLACK = 0.98, 2e-3  # linear photo values outside carry no information about albedo times shading
# Quantile that defines bright; a single black pixel in an albedo gives the shading a huge maximum.
BRIGHT = 0.99


@dataclass(frozen=True, eq=False)
class GBuffer:
    """A photo and its maps. Created by `make_gbuffer`, which fills in missing maps. float32, one size and device.

    Attributes:
        photo: (B, 3, H, W) linear light, >= 0.
        normals: (B, 3, H, W) unit vectors, OpenGL camera frame.
        depth: (B, 1, H, W) distance, 0 = nearest, 1 = farthest.
        albedo: (B, 3, H, W) linear light, >= 0.
        shading: (B, 1 or 3, H, W) linear light, > 0, scaled so that albedo * shading fits the photo.
        roughness: (B, 1, H, W) perceptual roughness in [0, 1] (GGX alpha is its square).
        mask: (B, 1, H, W) in [0, 1], 1 = may be relit; elsewhere, and where there is no surface, the photo is kept.
        camera: the depth range and field of view.
        scale: (B, 1, 1, 1) factor by which the shading was multiplied to fit the photo.
        assumed: names of the maps that were not given.
        there: (B, 1, H, W) bool, whether there is a surface; pixels without valid depth are farthest, are not relit
            and cast no shadow. None = everywhere.
    """

    photo: Tensor
    normals: Tensor
    depth: Tensor
    albedo: Tensor
    shading: Tensor
    roughness: Tensor
    mask: Tensor
    camera: Camera
    scale: Tensor
    assumed: tuple[str, ...] = ()
    there: Tensor | None = None

    @cached_property
    def geometry(self) -> Geometry:
        """Points of the visible surface."""
        z = self.camera.near + self.depth * (self.camera.far - self.camera.near)
        return Geometry(z, self.camera, self.there)

    @cached_property
    def residual(self) -> Tensor:
        """Difference between albedo * shading and the photo, (B, 1, H, W) in [0, 1], mean over sRGB-encoded RGB.

        Where it is large the maps do not explain the photo, and the modes `ratio` and `albedo` differ.
        """
        product = linear_to_srgb((self.albedo * self.shading).clamp(max=1))
        return (product - linear_to_srgb(self.photo.clamp(max=1))).abs().mean(1, keepdim=True)


def make_gbuffer(
    photo: Tensor,
    normals: Tensor,
    depth: Tensor | None = None,
    albedo: Tensor | None = None,
    shading: Tensor | None = None,
    roughness: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    photo_encoding: str = "srgb",
    normals_frame: str = "opengl",
    depth_kind: str = "distance",
    albedo_encoding: str = "linear",
    shading_encoding: str = "linear",
    camera: Camera | None = None,
    there: Tensor | None = None,
) -> GBuffer:
    """Build a G-buffer from maps of any source. The defaults match the output of `IntrinsicLoRAPipeline`.

    Missing maps are assumed: depth is constant (halfway, so no shadows); albedo or shading is computed from the other
    and the photo (albedo = photo / shading; shading = luminance of photo / luminance of albedo); without both, shading
    is 1 and albedo is the photo, so that the photo's light remains in it; roughness is 0.5, and the mask 1.

    Args:
        photo: (B, 3, H, W).
        normals: (B, 3, H, W) vector components (not the n * 0.5 + 0.5 picture); normalised here.
        depth: (B, 1, H, W) of the given `depth_kind`; there is no surface where it is invalid, see `valid_depth`.
        albedo: (B, 3, H, W).
        shading: (B, 1 or 3, H, W), up to scale.
        roughness, mask: (B, 1, H, W) in [0, 1].
        photo_encoding, albedo_encoding, shading_encoding: "srgb" or "linear".
        normals_frame: one of `NORMAL_FRAMES`.
        depth_kind: one of `DEPTH_KINDS`.
        camera: depth range and field of view; None = 1 to 4 units and 45 degrees. For metric depth, near and far are
            replaced by the range of the map (over the whole batch).
        there: (B, 1, H, W) bool, whether there is a surface, in addition to the validity of depth; None = everywhere.

    Raises:
        ValueError: a map of another size or channel count, NaN or infinity (except in depth), depth that is nowhere
            valid, or an unknown frame, kind or encoding.
    """
    camera = camera or Camera()
    if photo.ndim != 4 or photo.shape[1] != 3 or 0 in photo.shape:
        raise ValueError(f"The photo must have shape (B, 3, H, W), not {tuple(photo.shape)}.")
    if not photo.isfinite().all():
        raise ValueError("The photo holds NaN or infinite values.")
    batch, _, *size = photo.shape
    given = {"normals": normals, "depth": depth, "albedo": albedo, "shading": shading}
    given |= {"roughness": roughness, "mask": mask}
    channels = {"normals": (3,), "albedo": (3,), "shading": (1, 3)}
    for name, values in given.items():
        if values is not None:
            _check(name, values, channels.get(name, (1,)), (batch, *size))

    photo = _linear("photo", photo, photo_encoding)
    one = torch.ones_like(photo[:, :1])  # (B, 1, H, W)
    if depth is None:
        depth = 0.5 * one
    else:
        distance, near, far = to_distance(depth, depth_kind, camera.near, camera.far)
        valid = valid_depth(depth, depth_kind)  # (B, 1, H, W)
        there = valid if there is None else valid & there
        depth, camera = distance, replace(camera, near=near, far=far)
    albedo = None if albedo is None else _linear("albedo", albedo, albedo_encoding)
    shading = None if shading is None else _linear("shading", shading, shading_encoding)
    if shading is None:
        shading = one if albedo is None else luminance(photo) / luminance(albedo).clamp(min=SHADING_FLOOR)
    shading = shading.clamp(min=1e-6)
    shading = torch.maximum(shading, SHADING_FLOOR * _bright(shading))
    mask = one if mask is None else mask.float().clamp(0, 1)
    if there is not None:
        there = None if there.all() else there
        mask = mask if there is None else mask * there
    if albedo is None:
        albedo, scale = photo / shading, torch.ones_like(one[..., :1, :1])
    else:
        scale = fit_scale(photo, albedo * shading, mask)  # (B, 1, 1, 1)
    return GBuffer(
        photo=photo,
        normals=normalize_normals(convert_normals(normals.float(), normals_frame, "opengl")),
        depth=depth,
        albedo=albedo,
        shading=shading * scale,
        roughness=DEFAULT_ROUGHNESS * one if roughness is None else roughness.float().clamp(0, 1),
        mask=mask,
        camera=camera,
        scale=scale,
        assumed=tuple(name for name, values in given.items() if values is None),
        there=there,
    )


def fit_scale(photo: Tensor, product: Tensor, mask: Tensor) -> Tensor:
    """Compute the factor per picture that fits albedo * shading to the photo.

    It is the median over pixels of the ratio of luminances, which is robust to local errors of the maps. Clipped and
    black pixels and those outside the mask are excluded; without any pixels left the factor is 1. The photo is black
    below `BLACK`, and the product, whose scale is unknown, below that share of its bright pixels.

    Args:
        photo, product: (B, 3, H, W) linear light.
        mask: (B, 1, H, W) in [0, 1].

    Returns:
        (B, 1, 1, 1) float32 > 0.
    """
    photo_y, product_y = luminance(photo), luminance(product)  # (B, 1, H, W)
    usable = (mask > 0.5) & (photo_y > BLACK) & (photo.amax(1, keepdim=True) < CLIPPED)
    usable &= product_y > (BLACK * _bright(product_y)).clamp(min=1e-9)
    ratio = torch.where(usable, photo_y / product_y.clamp(min=1e-9), torch.nan).flatten(1)  # (B, H*W)
    return ratio.nanmedian(1).values.nan_to_num(1.0)[:, None, None, None]


def _bright(values: Tensor) -> Tensor:
    """Return the `BRIGHT` quantile per picture, (B, 1, 1, 1)."""
    values = values.flatten(1)
    return values.kthvalue(ceil(BRIGHT * values.shape[1]), dim=1).values[:, None, None, None]


def _linear(name: str, values: Tensor, encoding: str) -> Tensor:
    if encoding not in COLOR_ENCODINGS:
        raise ValueError(f"Unknown encoding {encoding!r} of the {name}; choose from {', '.join(COLOR_ENCODINGS)}.")
    return srgb_to_linear(values) if encoding == "srgb" else values.float().clamp(min=0)


def _check(name: str, values: Tensor, channels: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if values.ndim != 4 or values.shape[1] not in channels or (len(values), *values.shape[2:]) != shape:
        wanted = f"({shape[0]}, {' or '.join(str(c) for c in channels)}, {', '.join(str(s) for s in shape[1:])})"
        raise ValueError(f"The {name} must have shape {wanted} like the photo, not {tuple(values.shape)}.")
    if name != "depth" and not values.isfinite().all():
        raise ValueError(f"The {name} holds NaN or infinite values.")
