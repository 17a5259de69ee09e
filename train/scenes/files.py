"""Files of procedural scenes, as written by `intrinsic-lora render-scenes` and read by the trainer's folder source."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ...intrinsics.color import linear_to_srgb
from ...intrinsics.pictures import write_npz, write_png
from .render import scene_caption
from .worlds import render_scene, scene_of

MAPS = ("normals", "depth", "depth_metric", "albedo", "shading", "rgb_linear")


def write_scenes(
    out: Path,
    count: int,
    seed: int,
    size: int,
    progress: Callable[[int, int], None] | None = None,
    worlds: Sequence[str] = ("plain",),
) -> int:
    """Render the first `count` scenes of a seed at `size` x `size` pixels. Existing scenes are skipped.

    Writes `0000_rgb.png` (sRGB, 8 bits) and `0000.npz` (`MAPS` as returned by `render_scene`, `caption`, `seed`),
    and so on.

    Args:
        out: output folder; created if missing.
        count: number of scenes.
        seed: random seed, see `worlds.scene_of`.
        size: width and height in pixels.
        progress: called with the numbers of scenes done and in total.
        worlds: see `worlds.scene_of`.

    Returns:
        Number of scenes that were rendered.

    Raises:
        ValueError: the folder contains scenes of another seed or size.
    """
    out.mkdir(parents=True, exist_ok=True)
    todo = []
    for i in range(count):
        if not all(path.exists() for path in _files(out, i)):
            todo.append(i)
            continue
        with np.load(_files(out, i)[1]) as scene:
            if int(scene["seed"]) != seed or len(scene["depth"]) != size:
                raise ValueError(
                    f"{out} contains scenes of seed {scene['seed']} with {len(scene['depth'])} pixels; choose another "
                    "folder."
                )
    for done, i in enumerate(todo, count - len(todo)):
        if progress:
            progress(done, count)
        sampled = scene_of(seed, i, worlds)
        buffers = render_scene(sampled, size, worlds)
        caption = scene_caption(sampled, buffers["object"])
        picture, truth = _files(out, i)
        write_npz(truth, **{key: buffers[key] for key in MAPS}, caption=np.array(caption), seed=np.array(seed))
        write_png(picture, linear_to_srgb(torch.from_numpy(buffers["rgb_linear"]).permute(2, 0, 1)))  # (3, H, W)
    if progress:
        progress(count, count)
    return len(todo)


def _files(out: Path, i: int) -> tuple[Path, Path]:
    return out / f"{i:04d}_rgb.png", out / f"{i:04d}.npz"
