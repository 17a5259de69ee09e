"""Measure the scene renderer in pictures per second on one core, including ground truth.

OMP_NUM_THREADS=1 python benchmarks/scenes.py
"""

import time
from typing import Annotated

import numpy as np
import typer
from intrinsic_lora.train.scenes.render import render, sample_scene


def main(count: Annotated[int, typer.Option(help="Scenes per size.")] = 200) -> None:
    """Measure CPU seconds, which are less affected by other processes than wall time."""
    for size in (64, 128, 256):
        began = time.process_time()
        for i in range(count):
            render(sample_scene(np.random.default_rng([0, i])), size)
        print(f"{size} px: {count / (time.process_time() - began):.0f} pictures/s")


if __name__ == "__main__":
    typer.run(main)
