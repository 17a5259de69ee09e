"""Training data of the base: the autoencoder's latents of all pictures and of their variants, on disk.

Every picture is encoded in four variants: original and mirrored, both also with the colour channels in another order.
Captions mention neither sides nor colours, so they apply to all variants.
"""

from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor

from ....intrinsics.pictures import write_json
from .data import rendered
from .recipes import recipe_of

COPIES = 4
ORDERS = tuple(permutations(range(3)))[1:]
CHUNK = 100  # pictures encoded at a time


def copy_of(pictures: Tensor, index: Tensor, copy: int) -> Tensor:
    """Return variant `copy` of pictures (B, 3, H, W) with the numbers `index` (B,), which select the colour orders."""
    if copy % 2:
        pictures = pictures.flip(-1)
    if copy < 2:
        return pictures
    orders = torch.tensor(ORDERS)[(index + copy) % len(ORDERS)]  # (B, 3)
    return pictures.gather(1, orders[:, :, None, None].expand_as(pictures))


def cached_latents(run: Path) -> np.ndarray:
    """Return scaled latents (mode) of all variants, (N, COPIES, C, h, w) float16 on disk; encode missing ones."""
    recipe, (rgb, _) = recipe_of(run), rendered(run)
    shape = (len(rgb), COPIES, recipe.latent_channels, recipe.latent_size, recipe.latent_size)
    path, progress = run / "latents.npy", run / "latents.json"  # number of encoded pictures
    done = int(progress.read_text(encoding="utf-8")) if progress.exists() else 0
    if done == len(rgb):
        return np.load(path, mmap_mode="r")
    latents = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, shape)
    vae = AutoencoderKL.from_pretrained(run / "vae").eval()
    for start in track(range(done, len(rgb), CHUNK), "encoding"):
        index = torch.arange(start, min(start + CHUNK, len(rgb)))
        x = torch.from_numpy(np.array(rgb[start : start + CHUNK])).permute(0, 3, 1, 2).float() / 127.5 - 1
        for copy in range(COPIES):
            latents[start : start + CHUNK, copy] = encode_all(vae, copy_of(x, index, copy)).numpy()
        latents.flush()
        write_json(progress, start + len(index))
    return np.load(path, mmap_mode="r")


@torch.inference_mode()
def encode_all(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Encode pictures (B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w) float16."""
    with torch.autocast("cpu", torch.bfloat16):
        modes = [vae.encode(x.contiguous()).latent_dist.mode().float() for x in pictures.split(25)]
    return (torch.cat(modes) * vae.config.scaling_factor).half()
