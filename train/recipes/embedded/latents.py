"""What the base learns from: the autoencoder's latents of every picture, mirrored and with other colours, on disk.

A picture's copies are encoded once: as it is, mirrored, and twice with its colour channels in another order, of which
one is mirrored. Captions name no side and no colour, so they stay true.
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
    """Copy `copy` of pictures (B,3,H,W) whose numbers are `index` (B,); the order of colours goes by the number."""
    if copy % 2:
        pictures = pictures.flip(-1)
    if copy < 2:
        return pictures
    orders = torch.tensor(ORDERS)[(index + copy) % len(ORDERS)]  # (B, 3)
    return pictures.gather(1, orders[:, :, None, None].expand_as(pictures))


def cached_latents(run: Path) -> np.ndarray:
    """Scaled latents (mode) of every copy, (N, COPIES, C, h, w) float16 on disk; encodes what is missing."""
    recipe, (rgb, _) = recipe_of(run), rendered(run)
    shape = (len(rgb), COPIES, recipe.latent_channels, recipe.latent_size, recipe.latent_size)
    path, progress = run / "latents.npy", run / "latents.json"  # how many are done
    done = int(progress.read_text()) if progress.exists() else 0
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
    """Pictures (B,3,H,W) in [-1,1] -> scaled latents (B,C,h,w) float16."""
    with torch.autocast("cpu", torch.bfloat16):
        modes = [vae.encode(x.contiguous()).latent_dist.mode().float() for x in pictures.split(25)]
    return (torch.cat(modes) * vae.config.scaling_factor).half()
