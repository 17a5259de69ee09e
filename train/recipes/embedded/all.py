"""Run all stages of the embedded model except the last, in order.

    OMP_NUM_THREADS=1 python -m intrinsic_lora.train.recipes.embedded.all runs/embedded --recipe 128

Run the same command to resume. `package` then writes the model.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import captions, choose, data, loras, report, unet, vae
from .recipes import choose_recipe


def stages(run: Path, recipe: str, workers: int) -> dict[str, Callable[[], None]]:
    """Return {name: function that runs the stage}, in order."""
    found = choose_recipe(run, recipe)
    stages: dict[str, Callable[[], None]] = {
        "data": lambda: data.main(run, recipe, workers=workers),
        "vae": lambda: vae.main(run),
        "unet": lambda: unet.main(run),
    }
    if found.decoder_steps:
        stages["decoder"] = lambda: vae.main(run, decoder=True)
    return stages | {
        "captions": lambda: captions.main(run),
        "choose": lambda: choose.main(run),
        "loras": lambda: loras.main(run, workers=workers),
        "loras, attention": lambda: loras.main(run, targets="attention", workers=workers),
        "loras, control": lambda: loras.main(run, control=True, workers=workers),
        "loras, multi-step": lambda: loras.main(run, seeds="0", multi_step=True, workers=workers),
        "report": lambda: report.main(run),
    }


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    recipe: Annotated[str, typer.Option(help="Recipe of the run: 64 or 128.")] = "128",
    workers: Annotated[int, typer.Option(help="Number of processes of stages that support several.")] = 1,
) -> None:
    """Run the stages; finished ones are skipped."""
    for name, stage in stages(run, recipe, workers).items():
        started = time.time()
        print(f"== {name}", file=sys.stderr, flush=True)
        stage()
        print(f"== {name}: {(time.time() - started) / 60:.1f} minutes", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
