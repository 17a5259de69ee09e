"""Stage 5 of the embedded model: I-LoRAs on 250 labelled renders.

    python -m intrinsic_lora.train.recipes.embedded.loras RUN                       # the shipped LoRAs, three seeds
    python -m intrinsic_lora.train.recipes.embedded.loras RUN --targets attention   # the paper's layers only
    python -m intrinsic_lora.train.recipes.embedded.loras RUN --control             # on a randomly initialised UNet
    python -m intrinsic_lora.train.recipes.embedded.loras RUN --multi-step          # the paper's AugUNet

Each LoRA is a separate run of `intrinsic-lora train --preset embedded` in `loras/<variant>/seed<N>/<intrinsic>/`,
scored on the validation scenes; the test split is used only by `report`. The settings found by `choose` are used if
it has run.
"""

import json
import os
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import torch
import typer
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ....diffusers_pipeline.single_step import IntrinsicLoRAPipeline
from ....intrinsics import INTRINSICS
from ....intrinsics.lora import read_header
from ....intrinsics.pictures import write_json
from ...config import TrainConfig, load_config
from ...loop import TrainingStopped, train
from ...scenes.files import write_scenes
from .common import build_unet, process_map
from .data import LABELS, SPLITS
from .recipes import recipe_of

ATTENTION = "[to_q,to_k,to_v,to_out.0]"  # the paper's layers


def trained_base(run: Path) -> Path:
    """Return the run's folder as a diffusers model, adding the index to the components of stages 2 and 3."""
    if not (run / "model_index.json").exists():
        pipe = IntrinsicLoRAPipeline(
            vae=AutoencoderKL.from_pretrained(run / "vae"),
            text_encoder=CLIPTextModel.from_pretrained(run / "text_encoder"),
            tokenizer=CLIPTokenizer.from_pretrained(run / "tokenizer"),
            unet=UNet2DConditionModel.from_pretrained(run / "unet"),
            scheduler=DDPMScheduler.from_pretrained(run / "scheduler"),
            default_processing_resolution=recipe_of(run).size,
        )
        write_json(run / "model_index.json", json.loads(pipe.to_json_string()))
    return run


def control_base(run: Path, seed: int) -> Path:
    """Return the base with a randomly initialised UNet, `control/seed<N>/` in the run; create it if missing."""
    folder = run / "control" / f"seed{seed}"
    if not folder.exists():
        pipe = IntrinsicLoRAPipeline.from_pretrained(trained_base(run))
        torch.manual_seed(10_000 + seed)
        pipe.register_modules(unet=build_unet(recipe_of(run)))
        folder.parent.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as temporary:
            DiffusionPipeline.save_pretrained(pipe, Path(temporary) / "base")
            os.replace(Path(temporary) / "base", folder)
    return folder


def lora_files(seed: Path) -> dict[str, Path]:
    """Return {intrinsic: its LoRA} of finished runs in a folder of a seed, or of a single run."""
    found = {}
    for path in [*seed.glob("intrinsic_lora_*.safetensors"), *sorted(seed.glob("*/intrinsic_lora_*.safetensors"))]:
        if path.parent.name != "best":
            found[path.stem.removeprefix("intrinsic_lora_")] = path
    return found


def training_of(lora: Path) -> dict:
    """Return the training record in a LoRA's header: config, steps, validation, ..."""
    return read_header(lora).training


def configs_of(
    run: Path,
    intrinsics: str = ",".join(INTRINSICS),
    seeds: str = "0,1,2",
    targets: str = "transformer",
    control: bool = False,
    multi_step: bool = False,
    steps: int | None = None,
    variant: str = "",
    overrides: Sequence[str] = (),
) -> list[TrainConfig]:
    """Build the configurations of one training run per seed and intrinsic; arguments as for `main`.

    Raises:
        ValueError: see `load_config`.
    """
    data = load_config("embedded", overrides=overrides).data
    variant = variant or ("multi-step" if multi_step else "control" if control else targets)
    chosen = chosen_settings(run, control)
    if multi_step:  # supports only its own loss
        chosen.pop("loss", None)
    configs = []
    for seed in map(int, seeds.split(",")):
        for name in map(str.strip, intrinsics.split(",")):
            last = steps or (600 if name == "normals" else 450)
            settings = {
                "base": run / "control" / f"seed{seed}" if control else run,
                "intrinsics": f"[{name}]",
                "seed": seed,
                "max_steps": last,
                "validate_every": last,
                "out": run / "loras" / variant / f"seed{seed}" / name,
                "data.path": run / "scenes" / f"train{data.limit or LABELS}",
                "data.val_path": run / "scenes" / f"val{data.val_count}",
                "data.cache": run / "latents",  # shared by the seeds
                "data.resolution": recipe_of(run).size,
                **chosen,
            }
            if targets == "attention":
                settings["lora.targets"] = ATTENTION
            if multi_step:
                layers = [*(load_config("embedded").lora.targets or ()), "conv_in"]
                settings |= {"method": "multi-step", "lora.targets": f"[{','.join(layers)}]"}
            changes = [f"{key}={value}" for key, value in settings.items()]
            configs.append(load_config("embedded", overrides=[*changes, *overrides]))
    return configs


def chosen_settings(run: Path, control: bool) -> dict[str, object]:
    """Return the best settings found by `choose` for the base or its control; empty if it has not run."""
    path = run / "choice.json"
    choices = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return choices.get("control" if control else "trained", {})


def prepare_bases(run: Path, jobs: Sequence[TrainConfig], control: bool = False) -> None:
    """Render the training and validation scenes of the LoRAs, and create the bases."""
    data, recipe = jobs[0].data, recipe_of(run)
    for split, count in (("train", data.limit or LABELS), ("val", data.val_count)):
        folder = run / "scenes" / f"{split}{count}"
        write_scenes(folder, count, SPLITS[split], recipe.size, worlds=recipe.label_worlds)
    trained_base(run)
    if control:
        for job in jobs:
            control_base(run, job.seed)


def train_one(config: TrainConfig) -> str:
    """Train or resume one LoRA; return the line to print."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with open(out / "log.txt", "a") as log, redirect_stderr(log):  # progress bars of workers would interfere
            train(config)
    except TrainingStopped as stopped:  # after saving a checkpoint; otherwise the worker would start the next LoRA
        os._exit(128 + stopped.signal)
    (path,) = lora_files(out).values()
    shown = " ".join(f"{key} {value:.3f}" for key, value in training_of(path)["validation"].items())
    return f"{out}: {shown}"


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run, with the results of stages 1 to 3.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Further settings of the trainer.")
    ] = None,
    intrinsics: Annotated[str, typer.Option(help="Intrinsics, comma-separated.")] = ",".join(INTRINSICS),
    seeds: Annotated[str, typer.Option(help="Random seeds, comma-separated.")] = "0,1,2",
    targets: Annotated[Literal["attention", "transformer"], typer.Option(help="Layers that are adapted.")] = (
        "transformer"
    ),
    control: Annotated[bool, typer.Option("--control", help="Train on a randomly initialised UNet instead.")] = False,
    multi_step: Annotated[bool, typer.Option("--multi-step", help="Train the paper's AugUNet.")] = False,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; by default 600 for normals, else 450.")] = None,
    variant: Annotated[str, typer.Option(help="Folder in loras/; defaults to the name of the variant.")] = "",
    workers: Annotated[int, typer.Option(help="Number of LoRAs trained in parallel.")] = 2,
) -> None:
    """Train LoRAs and print their validation scores. Run the same command to resume."""
    jobs = configs_of(run, intrinsics, seeds, targets, control, multi_step, steps, variant, overrides or ())
    prepare_bases(run, jobs, control)
    for line in process_map(train_one, jobs, workers):
        print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
