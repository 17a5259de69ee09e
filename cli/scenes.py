"""`intrinsic-lora render-scenes`: procedural scenes with exact ground truth."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .extract import progress_bar


def render_scenes(
    out: Annotated[Path, typer.Option(help="Folder for the scenes; made when missing.", file_okay=False)],
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")],
    seed: Annotated[int, typer.Option(min=0, help="Scene i of a seed is always the same scene.")],
    size: Annotated[int, typer.Option(min=8, help="Width and height in pixels.")] = 128,
) -> None:
    """Render rooms with exact normals, depth, albedo and shading.

    OUT gets `0000_rgb.png` (the picture, sRGB) and `0000.npz`, and so on. The npz holds float32
    `normals` (H,W,3), OpenGL frame; `depth` (H,W), 0 nearest to 1 farthest; `depth_metric` (H,W)
    in scene units; `albedo` (H,W,3), `shading` (H,W,1) and `rgb_linear` (H,W,3), linear light,
    rgb_linear = albedo * shading; the `caption` and the `seed`. Scenes that are already there are kept; a folder
    with scenes of another seed or size is refused.

    **Example**

    - `intrinsic-lora render-scenes --out scenes --count 8 --seed 7`
    """
    import numpy as np
    import torch

    from ..intrinsics.color import linear_to_srgb
    from ..intrinsics.pictures import write_npz, write_png
    from ..train.scenes import render, sample_scene, scene_caption

    out.mkdir(parents=True, exist_ok=True)
    todo = []
    for i in range(count):
        if not all(path.exists() for path in _files(out, i)):
            todo.append(i)
            continue
        with np.load(_files(out, i)[1]) as there:
            if int(there["seed"]) != seed or len(there["depth"]) != size:
                raise ValueError(f"{out} holds scenes of seed {there['seed']}, {len(there['depth'])} px; use another.")
    with progress_bar(Console(stderr=True)) as progress:
        for i in progress.track(todo, description="render"):
            scene = sample_scene(np.random.default_rng([seed, i]))
            buffers = render(scene, size)
            caption = scene_caption(scene, buffers["object"])
            rgb = torch.from_numpy(buffers["rgb_linear"]).permute(2, 0, 1)  # (3, H, W)
            picture_file, truth_file = _files(out, i)
            keys = ("normals", "depth", "depth_metric", "albedo", "shading", "rgb_linear")
            write_npz(
                truth_file, **{key: buffers[key] for key in keys}, caption=np.array(caption), seed=np.array(seed)
            )
            write_png(picture_file, linear_to_srgb(rgb))
    typer.echo(f"{len(todo)} rendered, {count - len(todo)} already there: {out}")


def _files(out: Path, i: int) -> tuple[Path, Path]:
    return out / f"{i:04d}_rgb.png", out / f"{i:04d}.npz"
