"""Stage 3 of the embedded model: the text-conditional latent diffusion model, trained on rendered RGB and captions.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m intrinsic_lora.train.embedded.unet runs/embedded

UNet and CLIP text model are trained together from nothing with Stable Diffusion's noise schedule. No label of any
intrinsic is seen here. Every 500 steps it writes `samples_<step>.png`: look at it.
"""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ...intrinsics import INTRINSICS
from ...intrinsics.files import atomic_path
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

TOKENS = 24  # the longest caption has 16 words
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
    """A byte-pair vocabulary learned from the captions and the four prompts, in CLIP's format."""
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
    for letter in alphabet:  # CLIP's vocabulary has every byte, inside a word and at its end: no text is unknown
        vocab.setdefault(letter + "</w>", len(vocab))
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges], model_max_length=TOKENS)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(B, TOKENS) token ids, padded as Stable Diffusion pads."""
    return tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def cached_latents(run: Path) -> Tensor:
    """Scaled latents (mode) of every training picture, (N, 8, 16, 16) bf16; encoded once, then read from the run."""
    path = run / "latents.pt"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(run / "vae").eval()
        rgb = np.load(run / "rgb.npy", mmap_mode="r")
        parts = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for a, b in track(list(pairwise([*range(0, len(rgb), 100), len(rgb)])), "encoding"):
                x = torch.from_numpy(np.array(rgb[a:b])).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
                mode = vae.encode(x).latent_dist.mode() * vae.config.scaling_factor
                parts.append(mode.to(torch.bfloat16))
        with atomic_path(path) as temporary:
            torch.save(torch.cat(parts), temporary)
    return torch.load(path, weights_only=True, mmap=True)


class Base(nn.Module):
    """UNet and text model as one module, so that optimiser, average and checkpoint see one thing."""

    def __init__(self, vocab_size: int, bos: int, eos: int) -> None:
        super().__init__()
        self.unet = build_unet()
        self.text_encoder = build_text_encoder(vocab_size, bos, eos)

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """z (B,8,16,16), t (B,), tokens (B,TOKENS) -> prediction (B,8,16,16)."""
        return self.unet(z, t, self.text_encoder(tokens)[0]).sample


@torch.inference_mode()
def sample_sheet(base: Base, vae: AutoencoderKL, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler) -> Image.Image:
    """Sixteen pictures for SAMPLE_CAPTIONS (two each), 30 DDIM steps, guidance 2: rows of eight at 64 px."""
    captions = [*SAMPLE_CAPTIONS, *SAMPLE_CAPTIONS]
    tokens = torch.cat([tokenize(tokenizer, [""] * len(captions)), tokenize(tokenizer, captions)])
    z = torch.randn(len(captions), 8, 16, 16, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(30)
    for t in scheduler.timesteps:
        free, guided = base(torch.cat([z, z]), t, tokens).chunk(2)
        z = scheduler.step(free + 2.0 * (guided - free), t, z).prev_sample
    x = vae.decode(z / vae.config.scaling_factor).sample.mul(127.5).add(127.5).clamp(0, 255).byte()
    rows = [torch.cat(list(row), dim=-1) for row in x.split(8)]  # (3, 64, 8*64)
    return Image.fromarray(torch.cat(rows, dim=-2).permute(1, 2, 0).numpy()).resize(
        (1024, 256), Image.Resampling.NEAREST
    )


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run, with the results of stages 1 and 2.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 4400,
    batch: Annotated[int, typer.Option(help="Pictures a step.")] = 64,
    peak: Annotated[float, typer.Option(help="Peak learning rate.")] = 8e-4,
    prediction: Annotated[str, typer.Option(help="epsilon, v_prediction or sample.")] = "v_prediction",
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Train, write samples every 500 steps, and save `unet/`, `text_encoder/`, `tokenizer/`, `scheduler/`."""
    rank, world = join_world()
    torch.manual_seed(seed)
    captions = json.loads((run / "captions.json").read_text())
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

    base = Base(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    average = Average(base, 0.999)
    optimizer = torch.optim.AdamW(base.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    start = 0
    if state := load_checkpoint(run / "unet.ckpt"):
        base.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    scheduler = build_scheduler(prediction)
    vae = AutoencoderKL.from_pretrained(run / "vae").eval()
    generator = torch.Generator().manual_seed(seed + start + 1_000_003 * rank)
    batches = endless_batches(len(latents), batch // world, generator)
    began, running = time.time(), 0.0
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, decay=0.4)
        index = next(batches).sort().values
        x = latents[index].float()  # (B, 8, 16, 16)
        tokens = token_table[caption_of[index]]
        tokens[torch.rand(len(tokens), generator=generator) < 0.1] = empty  # for classifier-free guidance
        t = torch.randint(0, 1000, (len(x),), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        noisy = scheduler.add_noise(x, noise, t)
        target = {
            "epsilon": noise,
            "sample": x,
            "v_prediction": scheduler.get_velocity(x, noise, t),
        }[prediction]
        with torch.autocast("cpu", torch.bfloat16):
            y = base(noisy, t, tokens)
        loss = F.mse_loss(y.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(base.parameters())
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(base)
        running += (loss.item() - running) * max(0.01, 1 / (step + 1 - start))
        if rank:
            continue
        if (step + 1) % 50 == 0:
            rate = (step + 1 - start) * batch / (time.time() - began)
            print(f"step {step + 1} loss {running:.4f} {rate:.0f} pictures/s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            state = {"model": base.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(run / "unet.ckpt", step=step + 1, **state)
            ddim = DDIMScheduler.from_config(scheduler.config)
            final = cast(Base, average.module.eval())
            sample_sheet(final, vae, tokenizer, ddim).save(run / f"samples_{step + 1:06d}.png")
            final.unet.save_pretrained(run / "unet")
            final.text_encoder.save_pretrained(run / "text_encoder")
            tokenizer.save_pretrained(run / "tokenizer")
            scheduler.save_pretrained(run / "scheduler")


if __name__ == "__main__":
    typer.run(main)
