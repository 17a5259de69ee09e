"""Reading equirectangular panoramas for `Environment`."""

import os
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..color import srgb_to_linear
from ..exr import HALF_MAX, check_pixel_count, naming, optional_library
from ..exr_layers import read_exr_colour
from ..pictures import EXR_MAGIC, read_picture

RADIANCE_MAGIC = b"#?"
MAX_HEADER = 65536  # bytes; programs append their command lines to it


def read_panorama(path: str | os.PathLike) -> Tensor:
    """Read a panorama, recognised by content: Radiance HDR, OpenEXR, or any picture that `read_picture` reads.

    Floats are linear light, nothing is clipped; integers are decoded from sRGB and end at 1. Negative values become 0.
    In an EXR, infinity, which half floats make of a sun beyond 65504, becomes 65504; the layer is the one that
    `read_exr_colour` chooses, and alpha is left aside. EXPOSURE in a Radiance header is not applied, as in other
    programs.

    Returns:
        (1,3,h,w) float32 linear light, >= 0, finite, w = 2 h (give or take 2 pixels).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one sentence that names the file: not a picture, damaged, not 2:1, with NaN or, other than in an
            EXR, with infinity.
        ImportError: the format needs an optional library; the sentence names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(RADIANCE_MAGIC):
        image = _read_radiance(path)
    elif head == EXR_MAGIC:
        image = _read_exr(path)
    else:
        image = srgb_to_linear(read_picture(path, clip=False).rgb)
    height, width = image.shape[-2:]
    if abs(width - 2 * height) > 2:
        raise ValueError(
            f"{path} is {width} x {height} pixels: an equirectangular panorama is twice as wide as it is high"
        )
    if image.isnan().any():
        raise ValueError(f"{path} holds NaN values: render or save it again without them")
    return image.nan_to_num(posinf=HALF_MAX, neginf=0.0).clamp(min=0)


def _read_exr(path: Path) -> Tensor:
    with naming(path):
        samples, alpha, _ = read_exr_colour(path)  # (h,w,C)
    colour = samples[..., :-1] if alpha else samples
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(colour, -1, 0))).expand(3, -1, -1)[None]


def _read_radiance(path: Path) -> Tensor:
    """Radiance RGBE, flat or run-length encoded. imagecodecs decodes the pixels; it would allocate any size that a
    header asks for, take CIE XYZ for RGB, and refuse files without FORMAT or with Windows line ends."""
    imagecodecs = optional_library("imagecodecs", "reading Radiance HDR")
    data = path.read_bytes()
    head = re.match(rb"#\?[^\0]*?\n\r?\n([^\r\n]{1,80})\r?\n", data[:MAX_HEADER])
    if head is None:
        raise ValueError(f"cannot read the Radiance file {path}: its header is damaged")
    if b"32-bit_rle_xyze" in head[0]:
        raise ValueError(f"{path} holds CIE XYZ colours: convert it to RGB first, for instance with ra_xyze -r")
    size = re.fullmatch(rb"-Y +([1-9]\d*) +\+X +([1-9]\d*) *", head[1])
    if size is None:  # the other seven orientations exist on paper
        line = head[1].decode("ascii", "replace")
        raise ValueError(f"cannot read the Radiance file {path}: its size is {line!r}, not '-Y <height> +X <width>'")
    height, width = int(size[1]), int(size[2])
    try:
        check_pixel_count(width, height)
        pixels = np.empty((height, width, 3), np.float32)
        imagecodecs.rgbe_decode(data[head.end() :], header=False, rle=True, out=pixels)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large to be read safely: {error}") from error
    except (imagecodecs.RgbeError, ValueError) as error:
        raise ValueError(f"cannot read the Radiance file {path}: its pixels are damaged or cut off") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
