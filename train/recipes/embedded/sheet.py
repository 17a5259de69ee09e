"""Draw README's picture: the first test scenes, with the embedded model's maps and the ground truth.

python -m intrinsic_lora.train.recipes.embedded.sheet assets/sheet.png
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ....diffusers_pipeline.single_step import IntrinsicLoRAPipeline
from ....intrinsics import INTRINSICS, display_map
from ....intrinsics.files import atomic_path
from ....intrinsics.sheet import contact_sheet
from .data import labelled


def main(
    out: Annotated[Path, typer.Argument(help="The PNG to write.")],
    count: Annotated[int, typer.Option(help="Number of test scenes, from the first.")] = 4,
    size: Annotated[int, typer.Option(help="Width and height of the rendered pictures in pixels.")] = 128,
) -> None:
    """Draw the sheet, with two rows per scene: the model's maps and the ground truth."""
    truth = labelled("test", count, size)
    pipe = IntrinsicLoRAPipeline.from_pretrained()
    maps: Any = pipe(truth["rgb"], batch_size=count)
    columns: list[tuple[str, list[Tensor | None]]] = [
        ("photo", [x for rgb in truth["rgb"] for x in (rgb, None)]),
    ]
    for name in INTRINSICS:
        rows = torch.stack([display_map(maps[name], name), display_map(truth[name], name)], dim=1)  # (N, 2, C, H, W)
        columns.append((name, list(rows.flatten(0, 1))))
    with atomic_path(out) as path:
        contact_sheet(columns, row_labels=["model", "truth"] * count, cell_width=size, gap=4).save(path)


if __name__ == "__main__":
    typer.run(main)
