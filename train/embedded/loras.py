"""Stage 4 of the embedded model: I-LoRAs on 250 labelled renders, base frozen, same decoder.

    python -m intrinsic_lora.train.embedded.loras runs/embedded                       # what is shipped, three seeds
    python -m intrinsic_lora.train.embedded.loras runs/embedded --targets attention   # the paper's layers only
    python -m intrinsic_lora.train.embedded.loras runs/embedded --control             # on a UNet that learned nothing

The method is the paper's: one UNet step on the clean latent, latent MSE to `sample()` of the label picture's latent.
Pictures are mirrored (normals' X negated) and their colour channels permuted; the labels stay the same 250. Every
trained LoRA is scored on the validation split; the test split is for `report` alone.
"""

import json
import math
from concurrent.futures import ProcessPoolExecutor
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ...intrinsics import INTRINSICS, decode, encode, get_intrinsic, mirror_normals
from ...intrinsics.files import atomic_path
from ...intrinsics.lora_write import write_lora
from .common import build_unet, endless_batches, mean_scores
from .data import labelled
from .unet import tokenize

LABELS = 250
VAL_SCENES = 100
TARGETS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "transformer": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"],
}


def mirrored(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same scenes seen in a mirror."""
    return {name: mirror_normals(x) if name == "normals" else x.flip(-1) for name, x in maps.items()}


@torch.inference_mode()
def training_latents(vae: AutoencoderKL, intrinsic: str, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image latents (mode), label latents (mean, std), scaled, each (N,C,h,w): two mirrorings, six channel orders."""
    truth = labelled("train", count)
    images: list[Tensor] = []
    means: list[Tensor] = []
    stds: list[Tensor] = []
    for maps in (truth, mirrored(truth)):
        for order in permutations(range(3)):
            images.append(vae.encode(maps["rgb"][:, order] * 2 - 1).latent_dist.mode())
            label = maps[intrinsic][:, order] if intrinsic == "albedo" else maps[intrinsic]
            if intrinsic == "albedo" or len(means) in (0, 6):  # other labels do not depend on the picture's colours
                posterior = vae.encode(encode(label, intrinsic) * 2 - 1).latent_dist
            means.append(posterior.mean)
            stds.append(posterior.std)
    scale = vae.config.scaling_factor
    return torch.cat(images) * scale, torch.cat(means) * scale, torch.cat(stds) * scale


def load_unet(run: Path, control: bool, seed: int) -> UNet2DConditionModel:
    """The trained UNet, or one of the same shape with random weights."""
    if control:
        torch.manual_seed(10_000 + seed)
        return build_unet()
    unet = UNet2DConditionModel.from_pretrained(run / "unet")
    unet.set_attn_processor(AttnProcessor())
    return unet


@torch.inference_mode()
def prompt_embedding(run: Path, intrinsic: str) -> Tensor:
    """(1, TOKENS, D) text embedding of the intrinsic's prompt."""
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(run / "text_encoder").eval()
    return text_encoder(tokenize(tokenizer, [get_intrinsic(intrinsic).prompt]))[0]


@torch.inference_mode()
def validation_score(unet, vae, prompt: Tensor, timestep: int, intrinsic: str, split: str, count: int) -> dict:
    """The project's metrics of one intrinsic on the first `count` scenes of a split."""
    truth = labelled(split, count)
    maps = []
    for rgb in truth["rgb"].split(25):
        z = vae.encode(rgb * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
        x0 = unet(z, torch.full((len(z),), timestep), prompt.expand(len(z), -1, -1)).sample
        maps.append(decode(vae.decode(x0 / vae.config.scaling_factor).sample * 0.5 + 0.5, intrinsic))
    return mean_scores({intrinsic: torch.cat(maps)}, truth)[intrinsic]


def train_one(run: Path, intrinsic: str, seed: int, out: Path, settings: dict) -> str:
    """Train, score on validation and write one LoRA; returns the line to print. Finished files are kept."""
    path = out / f"seed{seed}" / f"intrinsic_lora_{intrinsic}.safetensors"
    if path.exists():
        return f"{path}: there already"
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(run / "vae").eval()
    prompt = prompt_embedding(run, intrinsic)
    images, means, stds = training_latents(vae, intrinsic, settings["labels"])  # (12 * labels, C, h, w) each
    unet = load_unet(run, settings["control"], seed)
    unet.requires_grad_(False)
    torch.manual_seed(seed)
    rank, timestep, steps = settings["rank"], settings["timestep"], settings["steps"]
    targets = TARGETS[settings["targets"]]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings["lr"], weight_decay=1e-2, fused=True)
    generator = torch.Generator().manual_seed(seed)
    batches = endless_batches(len(images), settings["batch"], generator)
    running = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        index = next(batches)
        target = means[index] + stds[index] * torch.randn(means[index].shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            t = torch.full((len(index),), timestep)
            x0 = unet(images[index], t, prompt.expand(len(index), -1, -1)).sample
        loss = F.mse_loss(x0.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running += (loss.item() - running) * max(0.02, 1 / (step + 1))
    scores = validation_score(unet.eval(), vae, prompt, timestep, intrinsic, "val", VAL_SCENES)
    state = {n: p.detach() for n, p in unet.named_parameters() if p.requires_grad}
    weights = {
        name.removesuffix(".lora_A.default.weight"): (a, state[name.replace("lora_A", "lora_B")], float(rank))
        for name, a in state.items()
        if ".lora_A." in name
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lora(
        path,
        weights,
        intrinsic=intrinsic,
        timestep=timestep,
        base_model="intrinsic-lora embedded",
        training={**settings, "seed": seed, "train_loss": round(running, 4), "validation": scores},
    )
    shown = " ".join(f"{key} {value:.3f}" for key, value in scores.items())
    return f"{out.name} seed {seed} {intrinsic}: train loss {running:.3f} {shown}"


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run, with the results of stages 1 to 3.")],
    intrinsics: Annotated[str, typer.Option(help="Comma list of intrinsics.")] = ",".join(INTRINSICS),
    seeds: Annotated[str, typer.Option(help="Comma list of seeds.")] = "0,1,2",
    targets: Annotated[Literal["attention", "transformer"], typer.Option(help="Layers that take the LoRA.")] = (
        "transformer"
    ),
    control: Annotated[bool, typer.Option(help="Train on a randomly initialised UNet instead.")] = False,
    rank: Annotated[int, typer.Option(help="LoRA rank; alpha = rank.")] = 16,
    timestep: Annotated[
        int, typer.Option(help="The timestep the UNet is asked at. On validation 50 was better than 300 and 700.")
    ] = 50,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 600,
    batch: Annotated[int, typer.Option(help="Pictures a step.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate, cosine to zero.")] = 4e-3,
    labels: Annotated[int, typer.Option(help="Labelled renders, the first of the train split.")] = LABELS,
    variant: Annotated[str, typer.Option(help="Folder below loras/; the default names targets and control.")] = "",
    workers: Annotated[int, typer.Option(help="LoRAs trained side by side.")] = 2,
) -> None:
    """Train LoRAs into `loras/<variant>/seed<N>/` and print their validation scores."""
    settings = {
        "targets": targets,
        "control": control,
        "rank": rank,
        "timestep": timestep,
        "steps": steps,
        "batch": batch,
        "lr": lr,
        "labels": labels,
    }
    out = run / "loras" / (variant or ("control" if control else targets))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "settings.json") as path:
        Path(path).write_text(json.dumps(settings, indent=2))
    jobs = [(run, i.strip(), int(s), out, settings) for s in seeds.split(",") for i in intrinsics.split(",")]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:  # fork and OpenMP do not mix
        for job in [pool.submit(train_one, *arguments) for arguments in jobs]:
            print(job.result(), flush=True)


if __name__ == "__main__":
    typer.run(main)
