"""Draw the picture and print the figures of the shadow mask in docs/training.md, from the results of its commands.

python docs/examples/shadow_mask_sheet.py data/shadow/test maps/shadow docs/shadow_mask.png
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from intrinsic_lora.intrinsics.files import atomic_path
from intrinsic_lora.intrinsics.pictures import read_picture
from intrinsic_lora.intrinsics.sheet import contact_sheet
from intrinsic_lora.train.scoring.folders import evaluate_folders, load_maps
from intrinsic_lora.train.scoring.metrics import map_metrics
from torch import Tensor


def mask(file: Path) -> Tensor:
    """Read the shadow mask of an `.npz`, (1, H, W)."""
    shadow = load_maps(file)["shadow"]  # (H, W), or (H, W, 1) if written by `extract`
    return torch.from_numpy(shadow).reshape(1, *shadow.shape[:2])


def main(
    test: Annotated[Path, typer.Argument(help="Test set with photos/ and truth/.")],
    maps: Annotated[Path, typer.Argument(help="Output folder of `extract --format npz`.")],
    out: Annotated[Path, typer.Argument(help="PNG to write.")],
    count: Annotated[int, typer.Option(help="Number of pictures, from the first.")] = 8,
) -> None:
    truths = sorted((test / "truth").glob("*.npz"))
    ours = evaluate_folders(maps, test / "truth")["summary"]["shadow"]
    black = [map_metrics(np.zeros_like(load_maps(file)["shadow"]), load_maps(file)["shadow"]) for file in truths]
    print(f"RMSE {ours['rmse']:.3f}, of a black picture {np.mean([row['rmse'] for row in black]):.3f}")
    print(f"IoU {ours['iou']:.3f}, {ours['images']} pictures")
    columns = [
        (file.stem, [read_picture(test / "photos" / f"{file.stem}.png").rgb[0], mask(file), mask(maps / file.name)])
        for file in truths[:count]
    ]
    with atomic_path(out) as path:
        contact_sheet(columns, row_labels=["photo", "truth", "LoRA"], cell_width=110).save(path)


if __name__ == "__main__":
    typer.run(main)
