"""Studies on the embedded model. All LoRAs are trained by the trainer with the preset `embedded`.

    python -m intrinsic_lora.train.recipes.embedded.studies pixel          # do losses on the decoded picture help?
    python -m intrinsic_lora.train.recipes.embedded.studies multi-step     # are several steps better than one?

Finished runs in OUT are kept: run the same command to resume. Times are CPU seconds of this process, which are least
affected by other processes; use one thread (OMP_NUM_THREADS=1).
"""

import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from torch import Tensor

from ....diffusers_pipeline.multi_step import IntrinsicLoRAMultiStepPipeline
from ....diffusers_pipeline.single_step import IntrinsicLoRAPipeline
from ....intrinsics import encode, read_header
from ...config import TrainConfig, load_config
from ...log import Log
from ...loop import Run, train
from ...scenes.files import write_scenes
from ...validation import main_metric
from .common import mean_scores
from .data import SIZE, SPLITS, labelled

LABELS, VAL_SCENES = 250, 100

Out = Annotated[Path, typer.Option(help="Folder for the scenes and the runs.")]
app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)


def config(out: Path, scenes: Path, **changes: object) -> TrainConfig:
    """Return the preset with other scenes and further changes, written as optimizer__lr=0.1."""
    settings: dict[str, object] = {
        "out": out,
        "data.path": scenes / "train",
        "data.val_path": scenes / "val",
        "log": "files",
    } | {key.replace("__", "."): value for key, value in changes.items()}
    return load_config("embedded", overrides=[f"{key}={value}" for key, value in settings.items()])


# --- Pixel losses


@app.command()
def pixel(
    intrinsics: Annotated[str, typer.Option(help="Intrinsics, comma-separated.")] = "normals,depth",
    losses: Annotated[str, typer.Option(help="Losses, comma-separated.")] = "latent,pixel,latent+pixel",
    seeds: Annotated[str, typer.Option(help="Random seeds, comma-separated.")] = "0,1",
    steps: Annotated[int, typer.Option(help="Optimiser steps of each LoRA.")] = 200,
    labels: Annotated[int, typer.Option(help="Number of training scenes.")] = LABELS,
    scenes: Annotated[int, typer.Option(help="Number of validation scenes.")] = VAL_SCENES,
    timed: Annotated[int, typer.Option(help="Number of timed steps of each loss, alternating.")] = 10,
    out: Out = Path("runs/studies"),
) -> None:
    """Compare latent and pixel losses with the same base, labels, order, initial weights, steps and learning rate."""
    for split, count in (("train", labels), ("val", scenes)):
        write_scenes(out / "scenes" / split, count, SPLITS[split], SIZE)
    for name in intrinsics.split(","):
        configs = {
            (loss, int(seed)): config(
                out / "pixel" / f"{name}-{loss}-{steps}-{seed}",
                out / "scenes",
                intrinsics=f"[{name}]",
                loss=loss,
                seed=seed,
                max_steps=steps,
                validate_every=steps,
                data__limit=labels,
                data__val_count=scenes,
                data__cache=out / "pixel" / "cache",
            )
            for loss in losses.split(",")
            for seed in seeds.split(",")
        }
        values = {}
        for key, run in configs.items():
            values[key] = validation(train(run), name)[main_metric(name)]
            print(f"{name}, {key[0]}, seed {key[1]}: {main_metric(name)} {values[key]:.4f}", flush=True)
        seconds = step_seconds({loss: run for (loss, _), run in configs.items()}, timed)
        print(f"\n| {name}, {main_metric(name)} | " + " | ".join(f"seed {seed}" for seed in seeds.split(",")), end="")
        print(" | mean | spread | CPU s per step |\n|" + "---|" * (len(seeds.split(",")) + 4))
        for loss in losses.split(","):
            scores = [value for (kind, _), value in values.items() if kind == loss]
            cells = [*(f"{score:.4g}" for score in scores), f"{mean(scores):.4g}", f"{max(scores) - min(scores):.2g}"]
            print(f"| {loss} | " + " | ".join([*cells, f"{seconds[loss]:.3f}"]) + " |", flush=True)


def validation(run: Path, name: str) -> dict[str, float]:
    """Return the validation scores in the header of a finished run's LoRA."""
    return read_header(run / f"intrinsic_lora_{name}.safetensors").training["validation"]


def step_seconds(configs: dict[str, TrainConfig], steps: int) -> dict[str, float]:
    """Measure the median CPU seconds of an optimiser step of each run; runs alternate for comparable conditions."""
    taken: dict[str, list[float]] = {label: [] for label in configs}
    with TemporaryDirectory() as folder:
        runs = {}
        for label, config in configs.items():
            elsewhere = replace(config, out=str(Path(folder) / label))
            runs[label] = Run(elsewhere, Accelerator(), Log(elsewhere, active=False))
        for _ in range(steps + 1):  # the first step is slow and excluded
            for label, run in runs.items():
                started = time.process_time()
                run.train_step()
                taken[label].append(time.process_time() - started)
    return {label: median(seconds[1:]) for label, seconds in taken.items()}


# --- Single step and multi-step


@app.command()
def multi_step(
    intrinsics: Annotated[str, typer.Option(help="Intrinsics, comma-separated.")] = "normals,albedo",
    steps: Annotated[int, typer.Option(help="Optimiser steps of each LoRA.")] = 300,
    labels: Annotated[int, typer.Option(help="Number of training scenes.")] = LABELS,
    scenes: Annotated[int, typer.Option(help="Number of scenes for the comparison.")] = 50,
    split: Annotated[str, typer.Option(help="val for choices, test for reported figures.")] = "test",
    out: Out = Path("runs/studies"),
) -> None:
    """Compare single-step and multi-step LoRAs on unseen scenes, the paper's second experiment on a small scale.

    There is no InstructPix2Pix for this base, so AugUNet's image channels start as a copy of the base's first
    convolution, which is adapted by a LoRA with both methods. Unlike in the paper, the multi-step network has to learn
    to use the photo from the labels alone, which is a handicap.
    """
    write_scenes(out / "scenes" / "train", labels, SPLITS["train"], SIZE)
    truth = labelled(split, scenes)
    targets = ",".join([*(load_config("embedded").lora.targets or ()), "conv_in"])
    for name in intrinsics.split(","):
        rows = {}
        for method in ("single-step", "multi-step"):
            started = time.process_time()
            run = train(
                config(
                    out / "multi_step" / f"{name}-{method}-{steps}",
                    out / "scenes",
                    method=method,
                    intrinsics=f"[{name}]",
                    lora__targets=f"[{targets}]",
                    max_steps=steps,
                    data__limit=labels,
                    data__val_count=0,
                    data__cache=out / "multi_step" / "cache",
                )
            )
            print(f"{name}, {method}: {time.process_time() - started:.0f} CPU s", flush=True)
            if method == "single-step":
                rows["single step"] = scores_of(IntrinsicLoRAPipeline.from_pretrained(), run, name, truth)
                continue
            pipe = IntrinsicLoRAMultiStepPipeline.from_pretrained()
            for guidance, count in ((3.0, 25), (1.0, 25), (1.0, 5)):
                label = f"multi step, {count} steps, guidance {guidance:g}"
                options = {"num_inference_steps": count, "guidance_scale": guidance}
                rows[label] = scores_of(pipe, run, name, truth, **options)
        rows["ground truth"] = map_scores(truth[name], name, truth)
        heads = rows["ground truth"]
        print(f"\n| {name} | " + " | ".join(heads) + " |\n|" + "---|" * (1 + len(heads)))
        for label, scores in rows.items():
            print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in scores.values()) + " |", flush=True)


def scores_of(
    pipe: IntrinsicLoRAPipeline | IntrinsicLoRAMultiStepPipeline,
    run: Path,
    name: str,
    truth: dict[str, Tensor],
    **options: Any,
) -> dict[str, float]:
    """Score the maps that the LoRA of a run predicts for the photos of `truth`, see `map_scores`."""
    pipe.set_progress_bar_config(disable=True)
    pipe.load_intrinsics(run)
    if isinstance(pipe, IntrinsicLoRAMultiStepPipeline):
        options["generator"] = torch.Generator().manual_seed(0)
    outputs: list[Any] = [pipe(photos, intrinsics=[name], **options) for photos in truth["rgb"].split(10)]
    drawn = [output.maps()[name] for output in outputs]
    return map_scores(torch.cat(drawn), name, truth)


def map_scores(maps: Tensor, name: str, truth: dict[str, Tensor]) -> dict[str, float]:
    """Compute the main metric of canonical maps (N, C, H, W), and `picture_scores`; `truth` is from `labelled`."""
    main = {"normals": "mean_angle", "depth": "delta1"}.get(name, "si_rmse")
    scores = {main: mean_scores({name: maps}, truth)[name][main]}
    return scores | picture_scores(encode(maps, name), encode(truth[name], name), truth["rgb"])


def picture_scores(drawn: Tensor, true: Tensor, photo: Tensor) -> dict[str, float]:
    """Score predicted pictures against the pictures of the ground truth, (N, 3, H, W) each.

    `edges_truth`, `edges_photo`: correlation of edges with those of the ground truth and of the photo. `displaced`:
    share of pictures whose edges match the ground truth better when moved by 1 to 3 pixels. `colour_shift`: distance
    between mean colours, per picture, relative to the range of the picture.
    """
    drawn_edges, true_edges = edges(drawn), edges(true)
    moves = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
    inner = (..., slice(3, -3), slice(3, -3))
    fits = torch.stack([correlation(drawn_edges.roll(m, (1, 2))[inner], true_edges[inner]) for m in moves])  # (49, N)
    return {
        "edges_truth": correlation(drawn_edges, true_edges).mean().item(),
        "edges_photo": correlation(drawn_edges, edges(photo)).mean().item(),
        "displaced": (fits.argmax(0) != moves.index((0, 0))).float().mean().item(),
        "colour_shift": (drawn.mean((2, 3)) - true.mean((2, 3))).norm(dim=1).mean().item(),
    }


def edges(picture: Tensor) -> Tensor:
    """Compute the gradient magnitude (N, 3, H, W) -> (N, H-1, W-1), summed over channels."""
    dx, dy = picture[..., :-1, 1:] - picture[..., :-1, :-1], picture[..., 1:, :-1] - picture[..., :-1, :-1]
    return (dx**2 + dy**2).sum(1).sqrt()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Compute Pearson's correlation per image: (N, h, w), (N, h, w) -> (N,)."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)


if __name__ == "__main__":
    app()
