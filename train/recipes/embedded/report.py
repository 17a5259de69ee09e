"""Stage 6 of the embedded model: metrics on held-out test scenes.

    python -m intrinsic_lora.train.recipes.embedded.report runs/embedded

All models are evaluated through the pipelines (`IntrinsicLoRAPipeline`), not through the trainer's forward pass.
"""

from pathlib import Path
from statistics import mean
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor

from ....diffusers_pipeline.multi_step import IntrinsicLoRAMultiStepPipeline
from ....diffusers_pipeline.output import IntrinsicLoRAOutput
from ....diffusers_pipeline.single_step import IntrinsicLoRAPipeline
from ....intrinsics import INTRINSICS, decode, encode
from ....intrinsics.pictures import write_json
from ...scoring.metrics import confidence_ranking, error_map
from .common import mean_scores
from .data import LABELS, labelled
from .loras import control_base, lora_files, trained_base, training_of
from .recipes import Recipe, recipe_of

COLUMNS = {
    "normals": ("mean_angle", "median_angle"),
    "depth": ("abs_rel", "delta1"),
    "albedo": ("si_rmse",),
    "shading": ("si_rmse",),
}


def seeds_of(variant: Path) -> list[Path]:
    """List the seed folders of a variant that contain LoRAs, in order."""
    return sorted(path for path in variant.glob("seed*") if lora_files(path))


def best_seed(variant: Path) -> Path:
    """Return the seed with the best normals on the validation split; ValueError if no seed has normals."""
    normals = {seed: files["normals"] for seed in seeds_of(variant) if "normals" in (files := lora_files(seed))}
    if not normals:
        raise ValueError(f"{variant} has no finished LoRA for normals; train it with train.recipes.embedded.loras.")
    return min(normals, key=lambda seed: training_of(normals[seed])["validation"]["mean_angle"])


@torch.inference_mode()
def constant_scores(truth: dict[str, Tensor], recipe: Recipe) -> dict:
    """Score the control that ignores the picture: the mean of the 250 label pictures, decoded."""
    labels = labelled("train", LABELS, recipe.size, recipe.label_worlds)
    maps = {}
    for name in INTRINSICS:
        picture = encode(labels[name], name).mean(0, keepdim=True)
        maps[name] = decode(picture, name).expand(len(truth[name]), -1, -1, -1)
    return mean_scores(maps, truth)


@torch.inference_mode()
def ceiling_scores(vae: AutoencoderKL, truth: dict[str, Tensor]) -> dict:
    """Score the ground truth after encoding and decoding by the VAE."""
    maps = {}
    for name in INTRINSICS:
        latents = vae.encode(encode(truth[name], name) * 2 - 1).latent_dist.mode()
        maps[name] = decode(vae.decode(latents).sample * 0.5 + 0.5, name)
    return mean_scores(maps, truth)


def confidence_scores(maps: dict[str, Tensor], confidence: Tensor, truth: dict[str, Tensor]) -> dict[str, float]:
    """Compute Spearman's correlation of (1 - confidence) with the error, per intrinsic, mean over images."""
    scores = {}
    for name, predictions in maps.items():
        target = truth["depth_metric" if name == "depth" else name]
        rows = []
        for p, t, c in zip(predictions, target, confidence, strict=True):
            hwc = [np.asarray(x.permute(1, 2, 0).squeeze(-1)) for x in (p, t)]
            rows.append(confidence_ranking(np.asarray(c[0]), error_map(name, *hwc)))
        scores[name] = float(np.nanmean(rows))
    return scores


def lora_scores(run: Path, folder: Path, truth: dict[str, Tensor]) -> dict:
    """Score the LoRAs of one seed, `loras/<variant>/seed<N>`, including the ranking of errors by confidence."""
    files = lora_files(folder)
    config = training_of(next(iter(files.values())))["config"]
    control = Path(config["base"]).parent.name == "control"
    base = control_base(run, int(folder.name.removeprefix("seed"))) if control else trained_base(run)
    multi_step = config["method"] == "multi-step"
    kind = IntrinsicLoRAMultiStepPipeline if multi_step else IntrinsicLoRAPipeline
    pipe = kind.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_intrinsics(files)
    options: dict[str, Any] = {}
    if multi_step:
        options = {"generator": torch.Generator().manual_seed(0), "guidance_scale": 1.0}
    output = cast(IntrinsicLoRAOutput, pipe(truth["rgb"], batch_size=25, **options))
    maps = {name: output[name] for name in pipe.intrinsics}
    scores = mean_scores(maps, truth)
    for name, rho in confidence_scores(maps, output.confidence, truth).items():
        scores[name]["confidence_spearman"] = rho
    return scores


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run, with the results of stages 1 to 5.")],
    split: Annotated[str, typer.Option(help="test, or val before all choices are made.")] = "test",
    count: Annotated[int, typer.Option(help="Number of scenes of each world.")] = 200,
) -> None:
    """Print a table per world, mean [lowest, highest] over seeds, and write the scores to `report_<split>.json`."""
    recipe = recipe_of(run)
    reports: dict[str, dict[str, list[dict]]] = {}
    for world in recipe.scenes:
        truth = labelled(split, count, recipe.size, [world])
        report = reports[world] = {
            "mean of the labels": [constant_scores(truth, recipe)],
            "VAE ceiling": [ceiling_scores(AutoencoderKL.from_pretrained(run / "vae").eval(), truth)],
        }
        for variant in sorted((run / "loras").iterdir()):
            for folder in track(seeds_of(variant), f"{world}, {variant.name}"):
                report.setdefault(f"LoRA, {variant.name}", []).append(lora_scores(run, folder, truth))
        print(f"{split} split, {count} scenes of the {world} world at {recipe.size} px\n\n{table(report)}\n")
        for row, seeds in report.items():
            for name in INTRINSICS:
                ranks = [
                    scores[name]["confidence_spearman"]
                    for scores in seeds
                    if "confidence_spearman" in scores.get(name, {})
                ]
                if ranks:
                    print(f"{row}: confidence ranks the error of {name} with Spearman {mean(ranks):.2f}")
    write_json(run / f"report_{split}.json", {"count": count, "worlds": reports})


def table(report: dict[str, list[dict]]) -> str:
    """Format the report as a markdown table: mean over seeds [lowest, highest], with the number of seeds."""
    titles = [f"{name} {key}" for name, keys in COLUMNS.items() for key in keys]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (1 + len(titles)) + "|"]
    for row, seeds in report.items():
        cells = []
        for name, keys in COLUMNS.items():
            for key in keys:
                values = [scores[name][key] for scores in seeds if name in scores]
                spread = f" [{min(values):.3g}, {max(values):.3g}]" if len(values) > 1 else ""
                cells.append(f"{mean(values):.3g}{spread}" if values else "")
        lines.append(f"| {row} ({len(seeds)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
