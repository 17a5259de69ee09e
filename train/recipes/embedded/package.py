"""Stage 7 of the embedded model: write the run's best LoRAs and its base, in fp16, to the package's assets.

python -m intrinsic_lora.train.recipes.embedded.package runs/embedded assets/embedded
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import DiffusionPipeline

from ....diffusers_pipeline.single_step import IntrinsicLoRAPipeline
from ....intrinsics import INTRINSICS
from ....intrinsics.files import atomic_path
from ....intrinsics.lora import read_lora, write_lora
from ....intrinsics.pictures import write_json
from ...backbones.stable_diffusion import EMBEDDED_NAME
from .loras import lora_files, trained_base, training_of
from .recipes import recipe_of
from .report import best_seed, table

CARD = """\
# The embedded model of intrinsic-lora

A small latent diffusion model with Stable Diffusion's architecture (`AutoencoderKL`, `UNet2DConditionModel`,
`CLIPTextModel`, DDPM scaled-linear schedule), trained from scratch on procedurally rendered rooms, RGB and captions
only, and four I-LoRAs trained on 250 labelled renders each. It makes the software work out of the box and allows
experiments with exact ground truth. It knows rooms with simple objects at {size} px, **not photographs**:
for those, load Stable Diffusion 1.5 and the released LoRAs (see the project's README).

## Data
`train/scenes/`: {scenes} rendered scenes of the train split (seed 0) of these worlds: {worlds}. The LoRAs' labels are
the exact ground truth of 250 of them ({label_worlds}). Validation is seed 1, test is seed 2; no choices were made on
test scenes.

## Recipe
{recipe}

Samples of the base (two rows, the captions of `SAMPLE_CAPTIONS` in `train/recipes/embedded/unet.py`):

![samples](samples.png)

The LoRAs (rank {rank}) adapt {targets} of every transformer block and are run at timestep {timestep};
the paper adapts only the attention layers, which is the row "LoRA, attention" below.

{choices}

## Figures
Test split, {count} unseen scenes of each world at {size} px, mean over seeds [lowest, highest], number of seeds in
brackets; printed by `python -m intrinsic_lora.train.recipes.embedded.report runs/embedded`.

{table}

## Reproduction
{commands}

Licence: Apache-2.0, like the code. No third-party data or weights.
"""

COMMANDS = """\
```
OMP_NUM_THREADS=1 python -m intrinsic_lora.train.recipes.embedded.all runs/embedded --recipe {name}
python -m intrinsic_lora.train.recipes.embedded.package runs/embedded assets/embedded
```"""
UNTUNED = """\
Timestep and learning rate are the preset's, for the base and for its control, which was not tuned separately."""
TUNED = """\
Chosen on validation scenes, separately for the control (`recipes.embedded.choose`): {trained}; control: {control}."""


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run, with the results of all stages.")],
    out: Annotated[Path, typer.Argument(help="Output folder of the model.")],
    variant: Annotated[str, typer.Option(help="Folder of the LoRAs in loras/.")] = "transformer",
) -> None:
    """Write the base, the LoRAs (of the seed with the best validation normals) and the model card."""
    recipe = recipe_of(run)
    seed = best_seed(run / "loras" / variant)
    files = lora_files(seed)
    if missing := [name for name in INTRINSICS if name not in files]:
        raise ValueError(f"{seed} has no LoRA for {', '.join(missing)}; train it with train.recipes.embedded.loras.")
    pipe = IntrinsicLoRAPipeline.from_pretrained(trained_base(run), dtype=torch.float16)
    # The method of the base class, because ours would write a second pipeline.py into the package.
    DiffusionPipeline.save_pretrained(pipe, str(out))
    for path in (out / "model_index.json", out / "unet/config.json", out / "vae/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {key: value for key, value in config.items() if key != "_name_or_path"})  # a local path
    (out / "loras").mkdir(exist_ok=True)
    lora_steps = []
    for name in INTRINSICS:
        training = training_of(files[name])
        config = training["config"]
        lora_steps.append(f"{training['steps']} ({name})")
        write_lora(
            out / "loras" / f"intrinsic_lora_{name}.safetensors",
            {module: (a.half(), b.half(), alpha) for module, (a, b, alpha) in read_lora(files[name]).weights.items()},
            intrinsic=name,
            timestep=config["timestep"],
            base_model=EMBEDDED_NAME,
            training=training,
        )
    with atomic_path(out / "samples.png") as path:
        shutil.copyfile(max(run.glob("samples_*.png")), path)
    steps = {stage: torch.load(run / f"{stage}.ckpt", weights_only=True)["step"] for stage in ("vae", "unet")}
    captions = json.loads((run / "captions.json").read_text(encoding="utf-8"))
    reports = json.loads((run / "report_test.json").read_text(encoding="utf-8"))
    choices = UNTUNED
    if (run / "choice.json").exists():
        choice = json.loads((run / "choice.json").read_text(encoding="utf-8"))
        words = {k: ", ".join(f"{key} {value}" for key, value in choice[k].items()) for k in ("trained", "control")}
        choices = TUNED.format(**words)
    card = CARD.format(
        size=recipe.size,
        scenes=len(captions),
        worlds=", ".join(f"{world} ({count})" for world, count in recipe.scenes.items()),
        label_worlds=", ".join(recipe.label_worlds),
        recipe=f"VAE: {steps['vae']} steps. UNet and text model: {steps['unet']} steps, "
        f"{pipe.scheduler.config.prediction_type}. LoRAs: {', '.join(lora_steps)} steps of {config['batch_size']}, "
        f"learning rate {config['optimizer']['lr']}, mirrored and channel-permuted, bf16 on a float32 base, which is "
        "frozen.",
        rank=config["lora"]["rank"],
        timestep=config["timestep"],
        targets=", ".join(f"`{target}`" for target in config["lora"]["targets"]),
        choices=choices,
        count=reports["count"],
        table="\n\n".join(f"The {world} world:\n\n{table(rows)}" for world, rows in reports["worlds"].items()),
        commands=COMMANDS.format(name=json.loads((run / "recipe.json").read_text(encoding="utf-8"))),
    )
    with atomic_path(out / "README.md") as path:
        Path(path).write_text(card, encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 2**20:.1f} MB, LoRAs of {seed.name}")


if __name__ == "__main__":
    typer.run(main)
