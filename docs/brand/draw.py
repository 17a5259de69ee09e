"""Draw the pack's icon and banner for the Comfy registry, from one rendered room and its exact maps.

python docs/brand/draw.py
"""

from pathlib import Path

import numpy as np
import torch
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.intrinsics.display import display_map
from intrinsic_lora.intrinsics.pictures import write_png
from intrinsic_lora.intrinsics.relight import PRESETS, make_gbuffer, relight
from intrinsic_lora.train.scenes.render import render, sample_scene
from torch import Tensor

SEED, NUMBER = 11, 4  # a room with a large ball
MAPS = ("normals", "depth", "albedo", "shading")


def drawings(size: int) -> dict[str, Tensor]:
    """Return photo, maps and relit photo, each (1, 3, size, size) in [0, 1], sRGB."""
    scene = render(sample_scene(np.random.default_rng([SEED, NUMBER])), size)
    images = {
        n: torch.from_numpy(np.atleast_3d(scene[n])).permute(2, 0, 1)[None].float() for n in (*MAPS, "rgb_linear")
    }
    photo = linear_to_srgb(images["rgb_linear"]).clamp(0, 1)
    gbuffer = make_gbuffer(photo, *(images[name] for name in MAPS))
    pictures = {name: display_map(images[name], name).expand(-1, 3, -1, -1) for name in MAPS}
    relit = linear_to_srgb(relight(gbuffer, PRESETS["rembrandt"]).image).clamp(0, 1)
    return {"photo": photo, **pictures, "relit": relit}


def icon(size: int = 400) -> Tensor:
    """Return the four maps of one picture, a quarter each, as (3, size, size)."""
    picture = drawings(size)
    half = size // 2
    for name, rows, columns in zip(MAPS, (0, 0, 1, 1), (0, 1, 0, 1), strict=True):
        place = (..., slice(rows * half, (rows + 1) * half), slice(columns * half, (columns + 1) * half))
        picture["photo"][place] = picture[name][place]
    return picture["photo"][0]


def banner(height: int = 540) -> Tensor:
    """Return six upright strips, photo to relit photo, as (3, height, 21 / 9 height)."""
    strip = height * 21 // 9 // 6
    start = (height - strip) // 2
    return torch.cat([picture[0, :, :, start : start + strip] for picture in drawings(height).values()], -1)


if __name__ == "__main__":
    folder = Path(__file__).parent
    write_png(folder / "icon.png", icon())
    write_png(folder / "banner.png", banner())
