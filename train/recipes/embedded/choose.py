"""Stage 4 of the embedded model: choose the training settings of the LoRAs on validation scenes.

    python -m intrinsic_lora.train.recipes.embedded.choose runs/embedded

Settings are searched one after the other, with the best values of the previous ones, for normals and one seed. The
timestep and learning rate of the control, a randomly initialised UNet, are searched separately. Finished runs in
`loras_search/` are kept: run the same command to resume. `choice.json` contains the results.
"""

from pathlib import Path
from typing import Annotated

import typer

from ....intrinsics.pictures import write_json
from .loras import configs_of, lora_files, prepare_bases, train_one, training_of

AXES: dict[str, dict[str, tuple[object, ...]]] = {
    "trained": {
        "timestep": (50, 20, 100, 200, 400),
        "optimizer.lr": (4e-3, 1e-3, 2e-3, 8e-3),
        "lora.rank": (16, 8, 32),
        "loss": ("latent", "latent+pixel", "pixel"),
    },
    "control": {"timestep": (50, 200, 400, 999), "optimizer.lr": (4e-3, 1e-3, 2e-3, 8e-3)},
}


def score_of(run: Path, which: str, settings: dict[str, object], steps: int | None, overrides: list[str]) -> float:
    """Train with these settings and return the mean angle of validation normals."""
    label = ",".join(f"{key}={value}" for key, value in settings.items())
    changes = [*(f"{key}={value}" for key, value in settings.items()), *overrides]
    control = which == "control"
    (config,) = configs_of(run, "normals", "0", control=control, steps=steps, overrides=changes)
    config.out = str(run / "loras_search" / which / label)
    prepare_bases(run, [config], control)
    train_one(config)
    return training_of(lora_files(Path(config.out))["normals"])["validation"]["mean_angle"]


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run, with the results of stages 1 to 3.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Further settings of the trainer.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps of each LoRA; defaults to those of the final LoRAs.")
    ] = None,
) -> None:
    """Write `choice.json` in the run's folder: the best settings, and the scores of all settings."""
    if (run / "choice.json").exists():
        print(f"{run / 'choice.json'} already exists: nothing to do.")
        return
    choice: dict[str, dict] = {"scores": {}}
    for which, axes in AXES.items():
        best: dict[str, object] = {}
        if which == "control":  # the same network and loss
            best = {key: value for key, value in choice["trained"].items() if key not in axes}
        for key, values in axes.items():
            scores = {}
            for value in values:
                scores[value] = score_of(run, which, {**best, key: value}, steps, overrides or [])
                print(f"{which}, {key} {value}: {scores[value]:.2f} degrees", flush=True)
            best[key] = min(values, key=lambda value: scores[value])
            choice["scores"][f"{which}, {key}"] = {str(value): score for value, score in scores.items()}
        choice[which] = best
    write_json(run / "choice.json", choice)


if __name__ == "__main__":
    typer.run(main)
