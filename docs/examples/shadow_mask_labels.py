"""Write labels for a custom intrinsic, the shadow mask, on rendered rooms.

    python docs/examples/shadow_mask_labels.py data/shadow

writes two data sets with different scenes, which `intrinsic-lora train` and `evaluate` read:

    data/shadow/train/photos/0000.png   the photo
    data/shadow/train/shadow/0000.png   the label, 16 bits: white = no lamp is visible from here, grey = some are
    data/shadow/test/photos/0000.png
    data/shadow/test/truth/0000.npz     the same label as an array, `shadow` (H, W)

The renderer knows which lamps are visible from every point; the embedded model was never trained on this. To train
another intrinsic, replace `label`. See docs/training.md.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.intrinsics.pictures import write_npz, write_png
from intrinsic_lora.train.scenes.render import render, sample_scene
from rich.progress import track

SEEDS = {"train": 100, "test": 101}  # of the scenes; different from those of the embedded model's splits


def label(buffers: dict[str, np.ndarray]) -> np.ndarray:
    """Return the label (H, W) in 0..1 of a rendered scene."""
    return buffers["shadow"]


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the two data sets.")],
    train: Annotated[int, typer.Option(help="Number of training pictures.")] = 250,
    test: Annotated[int, typer.Option(help="Number of test pictures.")] = 50,
    size: Annotated[int, typer.Option(help="Width and height in pixels; the embedded model works at 64.")] = 64,
) -> None:
    for split, count in (("train", train), ("test", test)):
        photos, labels = out / split / "photos", out / split / ("shadow" if split == "train" else "truth")
        photos.mkdir(parents=True, exist_ok=True)
        labels.mkdir(exist_ok=True)
        for i in track(range(count), split):
            buffers = render(sample_scene(np.random.default_rng([SEEDS[split], i])), size)
            photo = linear_to_srgb(torch.from_numpy(buffers["rgb_linear"]).permute(2, 0, 1))  # (3, H, W)
            write_png(photos / f"{i:04d}.png", photo)
            shadow = torch.from_numpy(label(buffers))  # (H, W)
            if split == "train":
                write_png(labels / f"{i:04d}.png", shadow[None], bits=16)
            else:
                write_npz(labels / f"{i:04d}.npz", shadow=shadow)


if __name__ == "__main__":
    typer.run(main)
