"""Procedural scenes as files: what `intrinsic-lora render-scenes` writes and the trainer's folder source reads."""

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
    """Render the first `count` scenes of a seed, `scene_of`, at `size` x `size` pixels; those that are there are kept.

    Writes `0000_rgb.png` (sRGB, 8 bits) and `0000.npz` (`MAPS` as `render_scene` returns them, `caption`, `seed`),
    and so on.

    Args:
        out: made when missing.
        progress: called with how many scenes are done and how many there are.
        worlds: see `scene_worlds.scene_of`.

    Returns:
        How many were rendered.

    Raises:
        ValueError: the folder holds scenes of another seed or size.
    """
    out.mkdir(parents=True, exist_ok=True)
    todo = []
    for i in range(count):
        if not all(path.exists() for path in _files(out, i)):
            todo.append(i)
            continue
        with np.load(_files(out, i)[1]) as there:
            if int(there["seed"]) != seed or len(there["depth"]) != size:
                raise ValueError(f"{out} holds scenes of seed {there['seed']}, {len(there['depth'])} px; use another.")
    for done, i in enumerate(todo, count - len(todo)):
        if progress:
            progress(done, count)
        scene = scene_of(seed, i, worlds)
        buffers = render_scene(scene, size, worlds)
        caption = scene_caption(scene, buffers["object"])
        picture, truth = _files(out, i)
        write_npz(truth, **{key: buffers[key] for key in MAPS}, caption=np.array(caption), seed=np.array(seed))
        write_png(picture, linear_to_srgb(torch.from_numpy(buffers["rgb_linear"]).permute(2, 0, 1)))  # (3, H, W)
    if progress:
        progress(count, count)
    return len(todo)


def _files(out: Path, i: int) -> tuple[Path, Path]:
    return out / f"{i:04d}_rgb.png", out / f"{i:04d}.npz"
