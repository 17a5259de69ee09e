"""Conversion of input images (PIL, numpy or torch; single, batched or listed) to float32 tensors in [0, 1]."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..intrinsics.pictures import picture_from_pil

ImageInput = Image.Image | np.ndarray | torch.Tensor | Sequence[Image.Image | np.ndarray | torch.Tensor]


def read_photos(image: ImageInput) -> list[torch.Tensor]:
    """Convert images to [(N, 3, H, W)] float32 in [0, 1]; one entry per image if their sizes differ."""
    items = list(image) if isinstance(image, list | tuple) else [image]
    if not items:
        raise ValueError("The list of images is empty; give at least one image.")
    photos = [_photo(item) for item in items]
    same = all(photo.shape[-2:] == photos[0].shape[-2:] and photo.device == photos[0].device for photo in photos)
    return [torch.cat(photos)] if same and len(photos) > 1 else photos


def _photo(image: Any) -> torch.Tensor:
    """Convert one image to (B, 3, H, W) float32 in [0, 1]."""
    if isinstance(image, Image.Image):
        return picture_from_pil(image).rgb
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise ValueError(f"An image must be a PIL image, a numpy array or a torch tensor, not {type(image).__name__}.")
    layout = "(H, W, 3) or (B, H, W, 3)" if isinstance(image, np.ndarray) else "(3, H, W) or (B, 3, H, W)"
    x = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    x = x[None] if x.ndim == 3 else x
    x = x.movedim(-1, 1) if isinstance(image, np.ndarray) and x.ndim == 4 else x
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"An image must have shape {layout}, got {tuple(image.shape)}.")
    if 0 in x.shape:
        raise ValueError(f"The image is empty: its shape is {tuple(image.shape)}.")
    if x.dtype == torch.uint8:
        return x.float() / 255
    if not x.is_floating_point():
        raise ValueError(f"An image must be uint8 or floating point, got {x.dtype}; scale it to [0, 1].")
    x = x.float()
    low, high = (value.item() for value in torch.aminmax(x))  # NaN if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("The image contains NaN or infinity; replace them first.")
    if low < -1e-3 or high > 1 + 1e-3:  # tolerates rounding of resampled images
        raise ValueError(f"A float image must be in [0, 1], got {low:.3g} to {high:.3g}; rescale or tone-map it.")
    return x if low >= 0 and high <= 1 else x.clamp(0, 1)
