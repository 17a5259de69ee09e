"""Stage 3 of the embedded model: the text-conditional latent diffusion model, trained on rendered RGB and captions.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m intrinsic_lora.train.recipes.embedded.unet runs/embedded

UNet and CLIP text model are trained together from scratch with Stable Diffusion's noise schedule, without labels of
any intrinsic. Check the samples in `samples_<step>.png`.
"""

import copy
import json
import time
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ....intrinsics import INTRINSICS
from .common import (
    Average,
    average_gradients,
    build_scheduler,
    build_text_encoder,
    build_unet,
    endless_batches,
    join_world,
    learning_rate,
    load_checkpoint,
    save_checkpoint,
)
from .data import rendered, scene_rgb
from .latents import COPIES, cached_latents, encode_all
from .recipes import Recipe, recipe_of

TOKENS = 24  # the longest caption has 16 words
VALIDATION_SCENES = 64  # per world
VALIDATION_TIMESTEPS = (50, 250, 500, 750)
SAMPLE_CAPTIONS = (
    "a room with one sphere",
    "a room with one box",
    "a room with one cylinder",
    "a room with two spheres",
    "a room with one sphere and one box",
    "a room with one sphere and one cylinder",
    "a room with two boxes",
    "an empty room",
)


def build_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Train a byte-pair tokenizer on the captions and the four prompts, in CLIP's format."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([*captions, *(i.prompt for i in INTRINSICS.values())], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    vocab = dict(state["vocab"])
    for letter in alphabet:  # as in CLIP, every byte is in the vocabulary, inside and at the end of a word
        vocab.setdefault(letter + "</w>", len(vocab))
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges], model_max_length=TOKENS)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Tokenise texts to ids (B, TOKENS), padded as in Stable Diffusion."""
    return tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


class Base(nn.Module):
    """UNet and text model as one module for optimiser, average and checkpoint."""

    def __init__(self, recipe: Recipe, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = build_unet(recipe)
        self.text_encoder = build_text_encoder(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Predict from z (B, C, h, w), t (B,), tokens (B, TOKENS) -> (B, C, h, w)."""
        return self.unet(z, t, self.text_encoder(tokens)[0]).sample


@torch.inference_mode()
def sample(
    base: Base,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    captions: list[str],
    guidance: float = 2.0,
    steps: int = 30,
    seed: int = 0,
) -> Tensor:
    """Sample one picture per caption, (B, 3, H, W) in [0, 1]."""
    tokens = torch.cat([tokenize(tokenizer, [""] * len(captions)), tokenize(tokenizer, captions)])
    config = base.unet.config
    shape = (len(captions), config.in_channels, config.sample_size, config.sample_size)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        free, guided = base(torch.cat([z, z]), t, tokens).chunk(2)
        z = scheduler.step(free + guidance * (guided - free), t, z).prev_sample
    decoded = [vae.decode(part).sample for part in (z / vae.config.scaling_factor).split(16)]
    return torch.cat(decoded).mul(0.5).add(0.5).clamp(0, 1)


def sample_sheet(
    base: Base, vae: AutoencoderKL, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler, steps: int = 30
) -> Image.Image:
    """Draw two samples for each of SAMPLE_CAPTIONS, in two rows of eight pictures of 128 px."""
    pictures = sample(base, vae, tokenizer, scheduler, [*SAMPLE_CAPTIONS, *SAMPLE_CAPTIONS], steps=steps)
    rows = [torch.cat(list(row), dim=-1) for row in pictures.split(8)]  # (3, H, 8 W)
    sheet = torch.cat(rows, dim=-2).mul(255).round().byte()
    return Image.fromarray(sheet.permute(1, 2, 0).numpy()).resize((1024, 256), Image.Resampling.NEAREST)


def target_of(scheduler: DDPMScheduler, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the target of the base by the schedule's prediction type; all (B, C, h, w), t (B,)."""
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "sample":
            return x
        case _:
            return scheduler.get_velocity(x, noise, t)


def min_snr(scheduler: DDPMScheduler, t: Tensor, limit: float) -> Tensor:
    """Compute min-SNR weights (B,) of the squared error of v, with mean 1 over all timesteps."""
    alpha = scheduler.alphas_cumprod
    snr = alpha / (1 - alpha)
    weight = snr.clamp(max=limit) / (snr + 1)
    return (weight / weight.mean())[t]


@torch.inference_mode()
def validation_loss(base: Base, scheduler: DDPMScheduler, x: Tensor, tokens: Tensor) -> dict[int, float]:
    """Compute the mean squared error of validation latents (B, C, h, w) at a few timesteps, with fixed noise."""
    losses = {}
    for step in VALIDATION_TIMESTEPS:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
        t = torch.full((len(x),), step)
        with torch.autocast("cpu", torch.bfloat16):
            y = base(scheduler.add_noise(x, noise, t), t, tokens).float()
        losses[step] = F.mse_loss(y, target_of(scheduler, x, noise, t)).item()
    return losses


def snapshot_steps(steps: int) -> set[int]:
    """Return the steps at which snapshots are saved, for studying the effect of the base's quality: six halvings."""
    return {max(1, steps >> n) for n in range(7)}


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run, with the results of stages 1 and 2.")],
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; defaults to the recipe's.")] = None,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 64,
    peak: Annotated[float, typer.Option(help="Peak learning rate.")] = 8e-4,
    prediction: Annotated[str, typer.Option(help="epsilon, v_prediction or sample.")] = "v_prediction",
    snr_limit: Annotated[
        float, typer.Option(help="Limit of min-SNR weights, for v_prediction; 0 = equal weights.")
    ] = 0.0,
    every: Annotated[int, typer.Option(help="Steps between checkpoints; samples are drawn at every fifth.")] = 100,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Train, and save `unet/`, `text_encoder/`, `tokenizer/`, `scheduler/`; can be resumed.

    `snapshots/<step>/` contains intermediate weights in float16.
    """
    rank, world = join_world()
    torch.manual_seed(seed)
    recipe = recipe_of(run)
    steps = steps or recipe.unet_steps
    _, captions = rendered(run)
    tokenizer = build_tokenizer(sorted(set(captions)))
    distinct = {caption: i for i, caption in enumerate(sorted(set(captions)))}
    token_table = tokenize(tokenizer, list(distinct))  # (captions, TOKENS)
    caption_of = torch.tensor([distinct[caption] for caption in captions])
    empty = tokenize(tokenizer, [""])
    if rank == 0:
        cached_latents(run)
    if world > 1:
        torch.distributed.barrier()
    latents = cached_latents(run)

    base = Base(recipe, tokenizer)
    average = Average(base, 0.9995)
    optimizer = torch.optim.AdamW(base.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    start, seen, spent = 0, 0, 0.0
    if state := load_checkpoint(run / "unet.ckpt"):
        base.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start, seen, spent = state["step"], state["seen"], state["cpu_seconds"]
    scheduler = build_scheduler(prediction)
    vae = AutoencoderKL.from_pretrained(run / "vae").eval()
    held_out = [scene_rgb("val", i, recipe.size, world) for world in recipe.scenes for i in range(VALIDATION_SCENES)]
    pixels = torch.from_numpy(np.stack([rgb for rgb, _ in held_out])).permute(0, 3, 1, 2) / 127.5 - 1
    held_out_latents = encode_all(vae, pixels).float()
    held_out_tokens = tokenize(tokenizer, [caption for _, caption in held_out])
    generator = torch.Generator().manual_seed(seed + start + 1_000_003 * rank)
    batches = endless_batches(len(latents), batch // world, generator)
    began, running = time.process_time(), 0.0
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, decay=0.4)
        index = next(batches).sort().values
        which = torch.randint(0, COPIES, (len(index),), generator=generator)
        x = torch.from_numpy(latents[index.numpy(), which.numpy()]).float()  # (B, C, h, w)
        tokens = token_table[caption_of[index]]
        tokens[torch.rand(len(tokens), generator=generator) < 0.1] = empty  # for classifier-free guidance
        t = torch.randint(0, 1000, (len(x),), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            y = base(scheduler.add_noise(x, noise, t), t, tokens)
        errors = (y.float() - target_of(scheduler, x, noise, t)).square().mean((1, 2, 3))  # (B,)
        loss = (errors * min_snr(scheduler, t, snr_limit)).mean() if snr_limit else errors.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(base.parameters())
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(base)
        running += (errors.mean().item() - running) * max(0.01, 1 / (step + 1 - start))
        seen += len(x) * world
        if rank:
            continue
        if (step + 1) % 50 == 0:
            rate = (step + 1 - start) * len(x) / (time.process_time() - began)
            print(f"step {step + 1} loss {running:.4f} {rate:.0f} pictures per CPU s", flush=True)
        last = step + 1 == steps
        final = cast(Base, average.module.eval())
        if (step + 1) % every == 0 or last:
            total = spent + time.process_time() - began
            state = {"model": base.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(run / "unet.ckpt", step=step + 1, seen=seen, cpu_seconds=total, **state)
        if (step + 1) in snapshot_steps(steps):
            save_parts(final, tokenizer, scheduler, run / "snapshots" / f"{step + 1:06d}", torch.float16)
        if (step + 1) % (5 * every) == 0 or last:
            losses = validation_loss(final, scheduler, held_out_latents, held_out_tokens)
            line = " ".join(f"t={t} {loss:.4f}" for t, loss in losses.items())
            print(f"step {step + 1} validation {line}; {seen} pictures, {total:.0f} CPU s", flush=True)
            ddim = DDIMScheduler.from_config(scheduler.config)
            sample_sheet(final, vae, tokenizer, ddim).save(run / f"samples_{step + 1:06d}.png")
            save_parts(final, tokenizer, scheduler, run)


def load_base(run: Path) -> tuple[Base, CLIPTokenizer]:
    """Load the averaged weights last saved by `main`, for sampling."""
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    base = Base(recipe_of(run), tokenizer)
    base.unet = UNet2DConditionModel.from_pretrained(run / "unet")
    base.text_encoder = CLIPTextModel.from_pretrained(run / "text_encoder")
    return base.eval(), tokenizer


def save_parts(
    base: Base, tokenizer: CLIPTokenizer, scheduler: DDPMScheduler, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Save the components of a pipeline that this stage trains."""
    copied = copy.deepcopy(base).to(dtype)
    copied.unet.save_pretrained(folder / "unet")
    copied.text_encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler.save_pretrained(folder / "scheduler")


if __name__ == "__main__":
    typer.run(main)
