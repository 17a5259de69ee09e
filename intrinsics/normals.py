"""Normal-map frames. Canonical is "opengl": X right, Y up, Z towards the viewer."""

import torch
from torch import Tensor

from .vocabulary import NORMAL_FRAMES

# Vectors shorter than this have no direction. Mid grey in 8 bits (127 or 128 of 255) has length 0.0068.
MIN_LENGTH = 0.01


def convert_normals(normals: Tensor, source: str, target: str) -> Tensor:
    """Express normals in another frame. Lengths are kept: nothing is renormalised.

    Args:
        normals: (..., 3, H, W) vector components, not the n * 0.5 + 0.5 picture.
        source, target: names from `NORMAL_FRAMES`.

    Raises:
        ValueError: a frame is unknown.
    """
    for frame in (source, target):
        if frame not in NORMAL_FRAMES:
            raise ValueError(f"Unknown normal-map frame {frame!r}; choose from {', '.join(NORMAL_FRAMES)}.")
    signs = [s * t for s, t in zip(NORMAL_FRAMES[source], NORMAL_FRAMES[target], strict=True)]
    return normals * normals.new_tensor(signs)[:, None, None]  # (..., 3, H, W)


def vector_length(vectors: Tensor) -> Tensor:
    """Lengths (..., 1, H, W) of (..., 3, H, W) vectors.

    On CPU 15 times faster than `torch.linalg.vector_norm` over channels. The gradient of a zero vector is 0.
    """
    return (vectors.square().sum(-3, keepdim=True) + 1e-24).sqrt()


def normalize_normals(normals: Tensor) -> Tensor:
    """Scale (..., 3, H, W) vectors to unit length, float32.

    A vector shorter than `MIN_LENGTH` (mid grey in a normal map: sky, background) becomes (0, 0, 1).
    """
    normals = normals.float()
    length = vector_length(normals)  # (..., 1, H, W)
    forward = normals.new_tensor([0.0, 0.0, 1.0])[:, None, None]
    return torch.where(length < MIN_LENGTH, forward, normals / length.clamp(min=MIN_LENGTH))


def scale_relief(normals: Tensor, strength: float) -> Tensor:
    """Steepen or flatten the relief that normals describe: 0 is a plane, 1 changes nothing, 2 is twice as steep.

    Args:
        normals: (..., 3, H, W) in any frame, whose third axis runs along the line of sight.
        strength: what the slopes X / Z and Y / Z are multiplied with.

    Returns:
        Vectors of the same length as before: unit normals stay unit normals.
    """
    scaled = normals * normals.new_tensor([strength, strength, 1.0])[:, None, None]
    before, after = (vector_length(n) for n in (normals, scaled))  # (..., 1, H, W)
    return scaled * (before / after.clamp(min=1e-6))


def normals_to_picture(normals: Tensor) -> Tensor:
    """Vector components in [-1, 1] as the picture that holds them, in [0, 1], in any frame."""
    return normals * 0.5 + 0.5


def picture_to_normals(picture: Tensor) -> Tensor:
    """The vector components in a picture of normals; not normalised."""
    return picture * 2 - 1


def mirror_normals(normals: Tensor) -> Tensor:
    """The normals (..., 3, H, W) of the scene seen in a mirror: columns reversed, X negated; so in every frame."""
    return normals.flip(-1) * normals.new_tensor([-1.0, 1.0, 1.0])[:, None, None]
