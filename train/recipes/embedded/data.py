"""Stage 1 of the embedded model: render the pictures and captions for its base (RGB only, no labels).

    python -m intrinsic_lora.train.recipes.embedded.data runs/embedded --recipe 128

Splits have different seeds of the scene generator: `train` for the base and the LoRAs' 250 labels (its first
250 scenes), `val` for all choices, `test` only for the reported figures.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track

from ....intrinsics.color import linear_to_srgb
from ....intrinsics.pictures import write_json
from ...scenes.render import scene_caption
from ...scenes.worlds import render_scene, scene_of
from .common import process_map
from .recipes import Recipe, choose_recipe

SPLITS = {"train": 0, "val": 1, "test": 2}
SIZE = 64  # pixels, of the shipped model
LABELS = 250  # labels of the LoRAs, from the first scene of the train split
MAPS = ("normals", "depth", "depth_metric", "albedo", "shading")
CHUNK = 250  # scenes per task of a process


def scene_rgb(split: str, index: int, size: int = SIZE, world: str = "plain") -> tuple[np.ndarray, str]:
    """Render picture `index` of a split of a world as sRGB uint8 (H, W, 3); also return its caption."""
    scene = scene_of(SPLITS[split], index, [world])
    buffers = render_scene(scene, size, [world])
    rgb = linear_to_srgb(torch.from_numpy(buffers["rgb_linear"]))
    return (rgb * 255).round().to(torch.uint8).numpy(), scene_caption(scene, buffers["object"])


def labelled(split: str, count: int, size: int = SIZE, worlds: Sequence[str] = ("plain",)) -> dict[str, torch.Tensor]:
    """Render the first `count` scenes of a split with their ground truth.

    Returns:
        `rgb` (N, 3, H, W) sRGB in [0, 1] (rounded to 8 bits, like picture files) and the canonical maps
        `normals`, `depth`, `depth_metric`, `albedo`, `shading` (N, C, H, W), float32.
    """
    rows: dict[str, list[torch.Tensor]] = {"rgb": [], **{name: [] for name in MAPS}}
    for i in range(count):
        buffers = render_scene(scene_of(SPLITS[split], i, worlds), size, worlds)
        rgb = linear_to_srgb(torch.from_numpy(buffers["rgb_linear"]))
        rows["rgb"].append((rgb * 255).round().div(255).permute(2, 0, 1))
        for name in MAPS:
            rows[name].append(torch.from_numpy(np.atleast_3d(buffers[name])).permute(2, 0, 1))
    return {name: torch.stack(tensors) for name, tensors in rows.items()}


def rendered(run: Path) -> tuple[np.ndarray, list[str]]:
    """Return the rendered pictures, (N, H, W, 3) uint8 sRGB on disk, and their captions."""
    captions = json.loads((run / "captions.json").read_text(encoding="utf-8"))
    return np.load(run / "rgb.npy", mmap_mode="r")[: len(captions)], captions


def _chunks(recipe: Recipe) -> Iterator[tuple[str, int, int, int]]:
    """Yield (world, first scene, end, size) of every chunk, in the order of the pictures."""
    for world, count in recipe.scenes.items():
        for start in range(0, count, CHUNK):
            yield world, start, min(start + CHUNK, count), recipe.size


def _render_chunk(chunk: tuple[str, int, int, int]) -> tuple[np.ndarray, list[str]]:
    world, start, stop, size = chunk
    pictures, captions = zip(*(scene_rgb("train", i, size, world) for i in range(start, stop)), strict=True)
    return np.stack(pictures), list(captions)


def render_all(run: Path, recipe: Recipe, workers: int) -> None:
    """Render the missing pictures of `rgb.npy` and `captions.json`; the number of captions is that of the pictures."""
    chunks = list(_chunks(recipe))
    total = sum(recipe.scenes.values())
    captions: list[str] = []
    if (run / "captions.json").exists():
        captions = json.loads((run / "captions.json").read_text(encoding="utf-8"))
        rgb = np.load(run / "rgb.npy", mmap_mode="r+")
    else:
        shape = (total, recipe.size, recipe.size, 3)
        rgb = np.lib.format.open_memmap(run / "rgb.npy", "w+", np.uint8, shape)
    sizes = [stop - start for _, start, stop, _ in chunks]
    done = next(n for n in range(len(chunks) + 1) if sum(sizes[:n]) >= len(captions))
    results = process_map(_render_chunk, chunks[done:], workers)
    for pictures, more in track(results, "rendering", total=len(chunks) - done):
        rgb[len(captions) : len(captions) + len(more)] = pictures
        rgb.flush()
        captions += more
        write_json(run / "captions.json", captions)


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run, for the pictures and captions.")],
    recipe: Annotated[str, typer.Option(help="Recipe of the run: 64 or 128.")] = "128",
    workers: Annotated[int, typer.Option(help="Number of processes.")] = 2,
) -> None:
    """Render the train split to `rgb.npy` (N, H, W, 3) uint8 sRGB and `captions.json`; can be resumed."""
    render_all(run, choose_recipe(run, recipe), workers)


if __name__ == "__main__":
    typer.run(main)
