"""Reading of equirectangular panoramas for `Environment`."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..color import srgb_to_linear
from ..exr import HALF_MAX, naming
from ..exr_layers import read_exr_colour
from ..pictures import EXR_MAGIC, read_picture
from .radiance import RADIANCE_MAGIC, read_radiance


def read_panorama(path: str | os.PathLike[str]) -> Tensor:
    """Read a panorama, detected by content: Radiance HDR, OpenEXR, or any format supported by `read_picture`.

    Floats are linear light and not clipped; integers are decoded from sRGB, up to 1. Negative values become 0.
    Infinity in an EXR, the result of a sun above 65504 in half floats, becomes 65504; the layer is chosen by
    `read_exr_colour`, and alpha is ignored. EXPOSURE in a Radiance header is not applied, as in other programs.

    Returns:
        (1, 3, h, w) float32 linear light, >= 0, finite, w = 2 h (within 2 pixels).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a picture, is damaged, not 2:1, or contains NaN or, unless it is an EXR, infinity;
            the message names the file.
        ImportError: the format requires an optional library, named by the message.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(RADIANCE_MAGIC):
        image = read_radiance(path)
    elif head == EXR_MAGIC:
        image = _read_exr(path)
    else:
        image = srgb_to_linear(read_picture(path, clip=False).rgb)
    height, width = image.shape[-2:]
    if abs(width - 2 * height) > 2:
        raise ValueError(
            f"{path} is {width} x {height} pixels: an equirectangular panorama is twice as wide as it is high."
        )
    if image.isnan().any():
        raise ValueError(f"{path} holds NaN values: render or save it again without them.")
    return image.nan_to_num(posinf=HALF_MAX, neginf=0.0).clamp(min=0)


def _read_exr(path: Path) -> Tensor:
    with naming(path):
        samples, alpha, _ = read_exr_colour(path)  # (h, w, C)
    colour = samples[..., :-1] if alpha else samples
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(colour, -1, 0))).expand(3, -1, -1)[None]
