"""The paper's second experiment in small: does sampling in many steps draw better maps than one step?

    python -m intrinsic_lora.train.embedded.multi_step_study                   # about 12 minutes of one core

Single-step and multi-step LoRAs are trained on the embedded base with the same 250 labels (and their mirror images),
layers, rank, number of steps and schedule, and compared on unseen scenes. There is no InstructPix2Pix for this base:
AugUNet's image channels start as a copy of the base's own first convolution, and that convolution takes a LoRA, too,
with both methods. So the multi-step network learns to see the photo from the 250 labels alone, which the paper's has
not to: a handicap that belongs to the result.
"""

import math
import time
from typing import Annotated

import torch
import typer
from torch import Tensor

from ...intrinsics import encode, get_intrinsic
from ..backbones.stable_diffusion import StableDiffusion
from ..methods import SingleStep
from ..multi_step import MultiStep
from .common import endless_batches, mean_scores
from .data import labelled
from .loras import TARGETS, mirrored

TIMESTEP = 50  # of the embedded single-step LoRAs
LABELS = 250


def train(
    backbone: StableDiffusion, method: SingleStep | MultiStep, name: str, steps: int, batch: int, lr: float
) -> float:
    """Teaches the LoRA `name`, cosine schedule; returns the running training loss."""
    truth = labelled("train", LABELS)
    both = [truth, mirrored(truth)]
    pictures = torch.cat([encode(maps[name], name) for maps in both])
    with torch.no_grad():
        mean, std = backbone.encode_target(pictures)  # (2 * LABELS, C, h, w)
        image = backbone.encode_picture(torch.cat([maps["rgb"] for maps in both]))
    data = {"image": image, f"{name}_mean": mean, f"{name}_std": std}
    parameters = backbone.lora_parameters(name)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2)
    batches, running = endless_batches(len(image), batch, torch.Generator().manual_seed(0)), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        index = next(batches)
        generators = [torch.Generator().manual_seed(batch * step + row) for row in range(len(index))]
        with torch.autocast("cpu", torch.bfloat16):
            loss = method.loss({key: x[index] for key, x in data.items()}, name, generators)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running += (loss.item() - running) * max(0.02, 1 / (step + 1))
    return running


def edges(picture: Tensor) -> Tensor:
    """Gradient magnitude (N, 3, H, W) -> (N, H-1, W-1), summed over channels."""
    dx, dy = picture[..., :-1, 1:] - picture[..., :-1, :-1], picture[..., 1:, :-1] - picture[..., :-1, :-1]
    return (dx**2 + dy**2).sum(1).sqrt()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, per image: (N, h, w) x 2 -> (N,)."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)


def picture_scores(drawn: Tensor, true: Tensor, photo: Tensor) -> dict[str, float]:
    """Of drawn pictures against the true map's picture, (N, 3, H, W) each.

    `edges_truth`, `edges_photo`: correlation of their edges with those of the truth, of the photo. `displaced`: share
    of pictures whose edges fit the truth's better when moved by 1 to 3 pixels. `colour_shift`: distance between mean
    colours, per picture, in units of the picture's range.
    """
    mine, theirs = edges(drawn), edges(true)
    moves = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
    inner = (..., slice(3, -3), slice(3, -3))
    fits = torch.stack([correlation(mine.roll(m, (1, 2))[inner], theirs[inner]) for m in moves])  # (49, N)
    return {
        "edges_truth": correlation(mine, theirs).mean().item(),
        "edges_photo": correlation(mine, edges(photo)).mean().item(),
        "displaced": (fits.argmax(0) != moves.index((0, 0))).float().mean().item(),
        "colour_shift": (drawn.mean((2, 3)) - true.mean((2, 3))).norm(dim=1).mean().item(),
    }


@torch.no_grad()
def evaluate(maps: Tensor, name: str, truth: dict[str, Tensor]) -> dict[str, float]:
    main = {"normals": "mean_angle", "depth": "delta1"}.get(name, "si_rmse")
    scores = {main: mean_scores({name: maps}, truth)[name][main]}
    return scores | picture_scores(encode(maps, name), encode(truth[name], name), truth["rgb"])


def row(label: str, scores: dict[str, float]) -> str:
    return f"| {label} | " + " | ".join(f"{value:.3f}" for value in scores.values()) + " |"


def main(
    intrinsics: Annotated[str, typer.Option(help="Comma list.")] = "normals,albedo",
    steps: Annotated[int, typer.Option(help="Optimiser steps of each LoRA.")] = 300,
    batch: Annotated[int, typer.Option(help="Pictures a step.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate, cosine to zero.")] = 4e-3,
    scenes: Annotated[int, typer.Option(help="Scenes to compare on.")] = 50,
    split: Annotated[str, typer.Option(help="val for choices, test for reported figures.")] = "test",
) -> None:
    """Train, compare and print one table per intrinsic."""
    truth = labelled(split, scenes)
    for name in intrinsics.split(","):
        rows = {}
        for kind in ("single step", "multi step"):
            started = time.process_time()
            backbone = StableDiffusion.load(None, [get_intrinsic(name)])
            method = SingleStep(backbone, TIMESTEP) if kind == "single step" else MultiStep(backbone, "copy")
            backbone.add_lora(name, 16, 16, [*TARGETS["transformer"], "conv_in"], seed=0)
            loss = train(backbone, method, name, steps, batch, lr)
            print(f"{name}, {kind}: training loss {loss:.3f}, {time.process_time() - started:.0f} CPU s", flush=True)
            image = backbone.encode_picture(truth["rgb"])
            if isinstance(method, MultiStep):
                for guidance, count in ((3.0, 25), (1.0, 25), (1.0, 5)):
                    method.guidance_scale, method.steps = guidance, count
                    maps = method.maps(image, name)
                    rows[f"{kind}, {count} steps, guidance {guidance:g}"] = evaluate(maps, name, truth)
            else:
                rows[kind] = evaluate(method.maps(image, name), name, truth)
        rows["the truth"] = evaluate(truth[name], name, truth)
        heads = next(iter(rows.values()))
        print(f"\n| {name} | " + " | ".join(heads) + " |\n|" + "---|" * (1 + len(heads)))
        print("\n".join(row(label, scores) for label, scores in rows.items()), flush=True)


if __name__ == "__main__":
    typer.run(main)
