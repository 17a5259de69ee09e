"""Stage 1 of the embedded model: render the pictures and captions its base learns from (RGB only, no labels).

    python -m intrinsic_lora.train.embedded.data runs/embedded

Splits are seeds of the scene generator and never overlap: `train` for the base and the LoRAs' 250 labels (its first
250 scenes), `val` for every choice, `test` for the reported figures only.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track

from ...intrinsics.color import linear_to_srgb
from ...intrinsics.files import atomic_path
from ..scenes import render, sample_scene, scene_caption

SPLITS = {"train": 0, "val": 1, "test": 2}
SIZE = 64
LABELS = 250  # of the LoRAs, the first scenes of the train split
MAPS = ("normals", "depth", "depth_metric", "albedo", "shading")


def scene_rgb(split: str, index: int, size: int = SIZE) -> tuple[np.ndarray, str]:
    """Picture `index` of a split as sRGB uint8 (H, W, 3), and its caption."""
    scene = sample_scene(np.random.default_rng([SPLITS[split], index]))
    buffers = render(scene, size)
    rgb = linear_to_srgb(torch.from_numpy(buffers["rgb_linear"]))
    return (rgb * 255).round().to(torch.uint8).numpy(), scene_caption(scene, buffers["object"])


def labelled(split: str, count: int, size: int = SIZE) -> dict[str, torch.Tensor]:
    """The first `count` scenes of a split with their ground truth.

    Returns `rgb` (N,3,H,W) sRGB in [0,1] (rounded to 8 bits, as a picture file would be) and the canonical maps
    `normals`, `depth`, `depth_metric`, `albedo`, `shading` (N,C,H,W), float32.
    """
    rows: dict[str, list[torch.Tensor]] = {"rgb": [], **{name: [] for name in MAPS}}
    for i in range(count):
        buffers = render(sample_scene(np.random.default_rng([SPLITS[split], i])), size)
        rgb = linear_to_srgb(torch.from_numpy(buffers["rgb_linear"]))
        rows["rgb"].append((rgb * 255).round().div(255).permute(2, 0, 1))
        for name in MAPS:
            rows[name].append(torch.from_numpy(np.atleast_3d(buffers[name])).permute(2, 0, 1))
    return {name: torch.stack(tensors) for name, tensors in rows.items()}


def _chunk(start: int, stop: int) -> tuple[np.ndarray, list[str]]:
    torch.set_num_threads(1)
    pictures, captions = zip(*(scene_rgb("train", i) for i in range(start, stop)), strict=True)
    return np.stack(pictures), list(captions)


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run; pictures and captions are written into it.")],
    count: Annotated[int, typer.Option(help="How many scenes of the train split to render.")] = 50_000,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Render the train split at 64 px: `rgb.npy` (N,64,64,3) uint8 sRGB and `captions.json`."""
    if (run / "captions.json").exists():
        print(f"{run / 'captions.json'} is there already: nothing to do")
        return
    run.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, 250)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:  # fork and OpenMP do not mix
        chunks = pool.map(_chunk, starts, [min(s + 250, count) for s in starts])
        done = list(track(chunks, "rendering", total=len(starts)))
    with atomic_path(run / "rgb.npy") as path, open(path, "wb") as file:
        np.save(file, np.concatenate([pictures for pictures, _ in done]))
    with atomic_path(run / "captions.json") as path:
        Path(path).write_text(json.dumps([caption for _, captions in done for caption in captions]))


if __name__ == "__main__":
    typer.run(main)
