"""Measure how well samples of the base match their captions, by a classifier that counts objects.

    python -m intrinsic_lora.train.recipes.embedded.captions runs/embedded

The classifier predicts the number of visible objects of each kind. It is trained on the pictures and captions of stage
1 and scored on validation scenes, which measures its reliability; then it is applied to samples for captions of
validation scenes.
"""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor, nn

from ....intrinsics.pictures import write_json
from ...scenes.parts import KINDS
from .common import endless_batches, learning_rate, load_checkpoint, save_checkpoint
from .data import rendered, scene_rgb
from .recipes import recipe_of
from .unet import load_base, sample

NUMBERS = ("no", "one", "two", "three", "four")
MOST = len(NUMBERS) - 1  # maximum number of objects of a kind in a scene
SIDE = 64  # width and height of the classifier's input in pixels


def counts_of(caption: str) -> list[int]:
    """Return the number of objects of each of KINDS in a caption."""
    words = caption.replace(",", "").split()
    counts = []
    for kind in KINDS:
        plural = {"box": "boxes"}.get(kind, f"{kind}s")
        at = [words.index(word) for word in (kind, plural) if word in words]
        counts.append(NUMBERS.index(words[at[0] - 1]) if at else 0)
    return counts


class Counter(nn.Sequential):
    """Classifier of pictures (B, 3, SIDE, SIDE) in [-1, 1] to logits (B, kinds, MOST + 1)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        width = 3
        for wider in (32, 64, 96, 128):
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
            layers += [nn.Conv2d(wider, wider, 3, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
            width = wider
        head = nn.Linear(16 * width, len(KINDS) * (MOST + 1))  # not pooled, to distinguish several objects
        super().__init__(*layers, nn.Flatten(), head, nn.Unflatten(1, (len(KINDS), MOST + 1)))


def shrink(pictures: Tensor) -> Tensor:
    """Downscale (B, 3, H, W) to (B, 3, SIDE, SIDE)."""
    return F.adaptive_avg_pool2d(pictures, SIDE)


def train_counter(run: Path, steps: int, batch: int, seed: int) -> Counter:
    """Train the classifier, resuming from `captions.ckpt`."""
    torch.manual_seed(seed)
    rgb, captions = rendered(run)
    truth = torch.tensor([counts_of(caption) for caption in captions])  # (N, kinds)
    counter = Counter()
    optimizer = torch.optim.AdamW(counter.parameters(), lr=1e-3, weight_decay=1e-2, fused=True)
    start = 0
    if state := load_checkpoint(run / "captions.ckpt"):
        counter.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    generator = torch.Generator().manual_seed(seed + start)
    batches = endless_batches(len(rgb), batch, generator)
    began = time.process_time()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, 1e-3, decay=0.5)
        index = next(batches).sort().values
        x = torch.from_numpy(rgb[index.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = x[:, torch.randperm(3, generator=generator)]  # kinds have no colour
        if torch.rand((), generator=generator) < 0.5:
            x = x.flip(-1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = counter(shrink(x))
        loss = F.cross_entropy(logits.float().flatten(0, 1), truth[index].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            used = time.process_time() - began
            print(f"step {step + 1} loss {loss.item():.4f}, {used:.0f} CPU s", flush=True)
            save_checkpoint(
                run / "captions.ckpt", step=step + 1, model=counter.state_dict(), optimizer=optimizer.state_dict()
            )
    return counter.eval()


@torch.inference_mode()
def accuracy(counter: Counter, pictures: Tensor, captions: list[str]) -> dict[str, float]:
    """Compute the shares of pictures (B, 3, H, W) in [0, 1] for which the classifier agrees with the caption.

    `all`: on the number of every kind; `kinds`: on the kinds that occur; `<kind>`: on the number of that kind.
    """
    truth = torch.tensor([counts_of(caption) for caption in captions])
    predicted = torch.cat([counter(shrink(x * 2 - 1)).argmax(-1) for x in pictures.split(50)])  # (B, kinds)
    shares = {"all": (predicted == truth).all(-1), "kinds": ((predicted > 0) == (truth > 0)).all(-1)}
    shares |= {kind: predicted[:, i] == truth[:, i] for i, kind in enumerate(KINDS)}
    return {name: right.float().mean().item() for name, right in shares.items()}


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run, with the results of stages 1 to 3.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps of the classifier.")] = 4000,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 64,
    count: Annotated[int, typer.Option(help="Number of samples.")] = 200,
    guidance: Annotated[float, typer.Option(help="Guidance scale of the samples.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Print accuracies and write `captions_report.json`: on renders, on samples, and by chance."""
    if (run / "captions_report.json").exists():
        print(f"{run / 'captions_report.json'} already exists: nothing to do.")
        return
    recipe = recipe_of(run)
    counter = train_counter(run, steps, batch, seed)
    worlds = list(recipe.scenes)
    scenes = [scene_rgb("val", i // len(worlds), recipe.size, worlds[i % len(worlds)]) for i in range(count)]
    captions = [caption for _, caption in scenes]
    renders = torch.from_numpy(np.stack([rgb for rgb, _ in scenes])).permute(0, 3, 1, 2) / 255
    base, tokenizer = load_base(run)
    vae = AutoencoderKL.from_pretrained(run / "vae").eval()
    scheduler = DDIMScheduler.from_pretrained(run / "scheduler")
    samples = torch.cat(
        [
            sample(base, vae, tokenizer, scheduler, captions[i : i + 25], guidance, seed=seed + i)
            for i in range(0, count, 25)
        ]
    )
    shuffled = captions[1:] + captions[:1]
    report = {
        "renders": accuracy(counter, renders, captions),
        "samples": accuracy(counter, samples, captions),
        "samples, another's caption": accuracy(counter, samples, shuffled),  # chance level
    }
    for name, shares in report.items():
        print(f"{name}: " + " ".join(f"{key} {share:.3f}" for key, share in shares.items()))
    write_json(run / "captions_report.json", report)


if __name__ == "__main__":
    typer.run(main)
