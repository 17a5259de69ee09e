"""Conversion between canonical maps and the network's pictures. The only place that defines it."""

import torch
from torch import Tensor

from .color import linear_to_srgb, srgb_to_linear
from .depth import normalize_depth
from .normals import convert_normals, normalize_normals, normals_to_picture, picture_to_normals, vector_length
from .vocabulary import Intrinsic, get_intrinsic


def encode(canonical: Tensor, intrinsic: str | Intrinsic) -> Tensor:
    """Encode a canonical map as the picture that a LoRA is trained to predict.

    Args:
        canonical: normals (B, 3, H, W) in the opengl frame, normalised here; depth (B, 1, H, W) distance in 0..1,
            see `normalize_depth`; albedo (B, 3, H, W) linear light, clipped at 1; shading (B, 1 or 3, H, W) linear
            light, divided by its maximum if that exceeds 1 (shading is known up to scale); custom intrinsics
            (B, channels, H, W): linear light clipped at 1 ("srgb") or the picture itself in 0..1 ("linear").
        intrinsic: a name from `INTRINSICS`, or an `Intrinsic`.

    Returns:
        (B, 3, H, W) float32 in [0, 1]; the input of the VAE is `picture * 2 - 1`.

    Raises:
        ValueError: wrong shape or dtype, unknown intrinsic, or depth outside 0..1.
    """
    intrinsic = get_intrinsic(intrinsic)
    channels = (1, 3) if intrinsic.name == "shading" else (intrinsic.channels,)
    canonical = _checked(canonical, channels, f"A map of {intrinsic.name}").float()
    match intrinsic.name:
        case "normals":
            return normals_to_picture(
                convert_normals(normalize_normals(canonical), "opengl", intrinsic.raw_convention)
            )
        case "depth":
            if canonical.min() < -1e-3 or canonical.max() > 1 + 1e-3:  # tolerates rounding errors of resampling
                raise ValueError("Depth to encode must be distance in 0..1; call normalize_depth on it first.")
            return (1 - canonical.clamp(0, 1)).expand(-1, 3, -1, -1)  # (B, 3, H, W)
        case "shading":
            canonical = canonical / canonical.amax((1, 2, 3), keepdim=True).clamp(min=1)
            return linear_to_srgb(canonical).expand(-1, 3, -1, -1)  # (B, 3, H, W)
        case _:
            picture = (
                linear_to_srgb(canonical.clamp(max=1)) if intrinsic.raw_convention == "srgb" else canonical.clamp(0, 1)
            )
            return picture.expand(-1, 3, -1, -1)  # (B, 3, H, W)


def decode(
    picture: Tensor,
    intrinsic: str | Intrinsic,
    *,
    depth_reduce: str = "mean",
    depth_scope: str = "image",
    shading_channels: int = 1,
) -> Tensor:
    """Decode the network's picture to a canonical map.

    Args:
        picture: (B, 3, H, W), the **unclamped** `vae.decode(...) * 0.5 + 0.5`. Clamping would lose extreme depths and
            the direction of normals, which lie outside [0, 1].
        intrinsic: a name from `INTRINSICS`, or an `Intrinsic`.
        depth_reduce: reduction of three channels to one depth: "mean" (the authors') or "max" (the nearest of the
            three: fewer dark fringes at edges, as found in ComfyUI-KJNodes pull request 29).
        depth_scope: "image", "batch" or "clip", see `normalize_depth`.
        shading_channels: 1 (grey: mean in linear light) or 3 (coloured, as Marigold's IID-Lighting predicts it).

    Returns:
        float32 canonical map: normals (B, 3, H, W) unit vectors in the opengl frame; depth (B, 1, H, W) distance,
        0 nearest .. 1 farthest; albedo (B, 3, H, W) and shading (B, shading_channels, H, W) linear light >= 0; custom
        intrinsics (B, channels, H, W): linear light >= 0 ("srgb") or 0..1 ("linear"); a single channel is the mean.

    Raises:
        ValueError: wrong shape or dtype, unknown intrinsic or option.
    """
    intrinsic = get_intrinsic(intrinsic)
    picture = _checked(picture, (3,), "A picture to decode").float()
    match intrinsic.name:
        case "normals":
            return normalize_normals(convert_normals(picture_to_normals(picture), intrinsic.raw_convention, "opengl"))
        case "depth":
            return normalize_depth(raw_distance(picture, depth_reduce), depth_scope)
        case "shading":
            if shading_channels not in (1, 3):
                raise ValueError(f"shading_channels must be 1 (grey) or 3 (coloured), got {shading_channels}.")
            shading = srgb_to_linear(picture)  # (B, 3, H, W)
            return shading.mean(1, True) if shading_channels == 1 else shading
        case _:
            canonical = srgb_to_linear(picture) if intrinsic.raw_convention == "srgb" else picture
            canonical = canonical.mean(1, True) if intrinsic.channels == 1 else canonical  # (B, channels, H, W)
            return canonical if intrinsic.raw_convention == "srgb" else canonical.clamp(0, 1)


def raw_distance(picture: Tensor, depth_reduce: str = "mean") -> Tensor:
    """Decode depth without normalisation: unclamped picture (B, 3, H, W) -> (B, 1, H, W), larger is farther.

    The scale is unknown but common to all pictures, so that `normalize_depth` can compare those of a batch or clip.

    Raises:
        ValueError: unknown depth_reduce.
    """
    if depth_reduce not in ("mean", "max"):
        raise ValueError(f"Unknown depth_reduce {depth_reduce!r}; choose mean or max.")
    return -(picture.amax(1, True) if depth_reduce == "max" else picture.mean(1, True))


def confidence(picture: Tensor, intrinsic: str | Intrinsic) -> Tensor:
    """Compute the self-consistency of every predicted pixel: a hint, not a probability.

    The picture of depth, shading or another map of one channel should be grey: 1 - (largest - smallest channel).
    Normals should have unit length: 1 - the deviation from it. Albedo and other colour maps have no such redundancy:
    1 everywhere. Coloured light makes correct shading less grey and so lowers its confidence.

    Args:
        picture: (B, 3, H, W), unclamped, as for `decode`.
        intrinsic: a name from `INTRINSICS`, or an `Intrinsic`.

    Returns:
        (B, 1, H, W) float32 in [0, 1], 1 = consistent.

    Raises:
        ValueError: wrong shape or dtype, or unknown intrinsic.
    """
    intrinsic = get_intrinsic(intrinsic)
    picture = _checked(picture, (3,), "A picture to check").float()
    if intrinsic.name == "normals":
        error = (vector_length(picture_to_normals(picture)) - 1).abs()  # (B, 1, H, W)
    elif intrinsic.channels == 1:
        error = picture.amax(1, True) - picture.amin(1, True)  # (B, 1, H, W)
    else:
        error = torch.zeros_like(picture[:, :1])
    return (1 - error).clamp(0, 1)


def _checked(x: Tensor, channels: tuple[int, ...], what: str) -> Tensor:
    if x.ndim != 4 or x.shape[1] not in channels:
        wanted = " or ".join(map(str, channels))
        raise ValueError(f"{what} must have shape (B, {wanted}, H, W), got {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise ValueError(f"{what} must be floating point, got {x.dtype}; divide 8-bit pictures by 255.")
    return x
