"""`intrinsic-lora render-scenes`: render procedural scenes with exact ground truth."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .progress import loading, progress_bar, say


def render_scenes(
    out: Annotated[Path, typer.Option(help="Output folder; created if it does not exist.", file_okay=False)],
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")],
    seed: Annotated[int, typer.Option(min=0, help="Random seed; scene i of a seed is always the same scene.")],
    size: Annotated[int, typer.Option(min=8, help="Width and height in pixels.")] = 128,
) -> None:
    """Render rooms with exact normals, depth, albedo and shading.

    OUT gets `0000_rgb.png` (the picture, sRGB), `0000.npz`, and so on. The npz holds float32 arrays: `normals`
    (H, W, 3), OpenGL frame; `depth` (H, W), 0 nearest to 1 farthest; `depth_metric` (H, W) in scene units; `albedo`
    (H, W, 3), `shading` (H, W, 1) and `rgb_linear` (H, W, 3) in linear light, rgb_linear = albedo * shading; also
    the `caption` and the `seed`. Existing scenes are skipped; a folder with scenes of another seed or size is refused.

    **Example**

    - `intrinsic-lora render-scenes --out scenes --count 8 --seed 7`
    """
    with loading():
        from ..train.scenes.files import write_scenes

    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("render", total=count)
        rendered = write_scenes(out, count, seed, size, lambda done, _: progress.update(task, completed=done))
    say(f"{rendered} rendered, {count - rendered} skipped (already exist): {out}")
