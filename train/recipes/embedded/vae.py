"""Stage 2 of the embedded model: the autoencoder, trained on rendered RGB only.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m intrinsic_lora.train.recipes.embedded.vae runs/embedded
    ... --decoder     # afterwards, the decoder alone, which leaves latents and the base trained on them unchanged

Half of the pictures are colour jittered (random channel mixes, contrast, offsets, grey), because a VAE trained only on
rooms cannot represent a normal map (12.6 dB in the first experiment). It is never trained on labels.
"""

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, cast

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import Tensor, nn

from ....intrinsics import INTRINSICS, decode, encode
from ....intrinsics.files import atomic_path
from ....intrinsics.sheet import contact_sheet
from .common import (
    Average,
    average_gradients,
    build_vae,
    endless_batches,
    join_world,
    learning_rate,
    load_checkpoint,
    mean_scores,
    save_checkpoint,
)
from .data import labelled, rendered
from .recipes import recipe_of

WRONG = 0.2  # maximum noise of the latents in training of the decoder, in their standard deviations


@torch.no_grad()
def pass_colours(vae: AutoencoderKL) -> None:
    """Initialise an autoencoder so that it outputs a blurred picture, to which training adds details.

    Six channels of every level contain the colours and their negatives; silu(x) - silu(-x) = x. With random
    initialisation grey is learned first and colour very late.
    """
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):  # initially the identity
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)
            if block.conv_shortcut is not None:
                _carry(block.conv_shortcut, torch.eye(6))
        elif isinstance(block, Downsample2D | Upsample2D):
            _carry(block.conv, torch.eye(6))
    split = torch.eye(3).repeat_interleave(2, dim=0)  # (6, 3)
    split[1::2] *= -1
    join = split.mT  # (3, 6)
    _carry(vae.encoder.conv_in, split)
    _carry(vae.encoder.conv_out, join)
    _carry(vae.quant_conv, torch.eye(3))
    _carry(vae.post_quant_conv, torch.eye(3))
    _carry(vae.decoder.conv_in, split)
    _carry(vae.decoder.conv_out, join)
    half = vae.config.latent_channels
    vae.quant_conv.weight[half:] *= 0.1  # little noise
    vae.quant_conv.get_parameter("bias")[half:] = -4


def _carry(conv: nn.Conv2d, matrix: Tensor) -> None:
    """Set the first output channels of a convolution to `matrix` (out, in) times its first input channels."""
    out, inside = matrix.shape
    conv.weight[:out] = 0
    conv.get_parameter("bias")[:out] = 0
    middle = conv.weight.shape[-1] // 2
    conv.weight[:out, :inside, middle, middle] = matrix


def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    """Give the second half of pictures (B, 3, H, W) in [-1, 1] random colours, some of them grey."""
    half = len(x) // 2
    mix = torch.randn(len(x) - half, 3, 3, generator=generator)  # (B/2, 3, 3)
    grey = torch.rand(len(mix), generator=generator) < 0.3
    mix[grey] = mix[grey][:, :1].expand(-1, 3, -1)
    mix = F.normalize(mix, dim=-1) * torch.empty(len(mix), 1, 1).uniform_(0.6, 2.4, generator=generator)
    offset = torch.empty(len(mix), 3, 1, 1).uniform_(-0.5, 0.5, generator=generator)
    offset[grey] = offset[grey][:, :1].expand(-1, 3, -1, -1)
    jittered = torch.einsum("bij,bjhw->bihw", mix, x[half:]) + offset
    return torch.cat([x[:half], jittered.clamp(-1, 1)])


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """Compute the L1 loss of the picture and of its finite differences, for sharp edges without a discriminator."""
    dy = F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
    return F.l1_loss(y, x) + F.mse_loss(y, x) + 0.5 * dy


@torch.inference_mode()
def through(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Encode and decode pictures (B, 3, H, W) in [0, 1], without clipping."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample.float() for x in pictures.split(8)]
    return torch.cat(parts) * 0.5 + 0.5


def ceiling(vae: AutoencoderKL, truth: dict[str, Tensor]) -> dict[str, float]:
    """Score encoded and decoded validation scenes: PSNR of the RGB, and the main metric of each map."""
    rgb = -10 * torch.log10(F.mse_loss(through(vae, truth["rgb"]), truth["rgb"])).item()
    maps = {name: decode(through(vae, encode(truth[name], name)), name) for name in INTRINSICS}
    scores = mean_scores(maps, truth)
    shown = {"depth": "delta1", "albedo": "si_rmse", "shading": "si_rmse"}
    normals = {f"normals_{key}": scores["normals"][key] for key in ("mean_angle", "median_angle")}
    return {"rgb_psnr": rgb, **normals, **{f"{name}_{key}": scores[name][key] for name, key in shown.items()}}


def sheet(vae: AutoencoderKL, truth: dict[str, Tensor], path: Path, count: int = 6) -> None:
    """Draw pictures and normal maps of validation scenes before and after the VAE."""
    columns = []
    for name in ("rgb", "normals"):
        pictures = truth[name][:count] if name == "rgb" else encode(truth[name][:count], name)
        columns += [(name, list(pictures)), ("decoded", list(through(vae, pictures).clamp(0, 1)))]
    with atomic_path(path) as temporary:
        contact_sheet(columns, cell_width=truth["rgb"].shape[-1], gap=4).save(temporary)


def batch_of(rgb: np.ndarray, index: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """Return random crops of the pictures `index`, half of them mirrored: (B, 3, crop, crop) in [-1, 1]."""
    positions = rgb.shape[1] - crop + 1
    corners = torch.randint(0, positions, (len(index), 2), generator=generator).tolist()
    mirrored = (torch.rand(len(index), generator=generator) < 0.5).tolist()
    parts = []
    for i, (y, x), mirror in zip(index.tolist(), corners, mirrored, strict=True):
        part = rgb[i, y : y + crop, x : x + crop]
        parts.append(part[:, ::-1] if mirror else part)
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run, with rgb.npy of stage 1.")],
    decoder: Annotated[bool, typer.Option("--decoder", help="Train only the decoder of the finished VAE.")] = False,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; defaults to the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Number of crops per step; defaults to the recipe's.")] = None,
    peak: Annotated[float | None, typer.Option(help="Peak learning rate; defaults to the recipe's.")] = None,
    every: Annotated[int, typer.Option(help="Steps between checkpoints with validation scores and a sheet.")] = 250,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Train, log validation scores at every checkpoint, and write `vae/` (a diffusers folder).

    Run the same command to resume, optionally with another number of steps. `--decoder` leaves latents unchanged, so
    it can run after the base was trained on them.
    """
    rank, world = join_world()
    torch.manual_seed(seed)
    recipe = recipe_of(run)
    steps = steps or (recipe.decoder_steps if decoder else recipe.vae_steps)
    batch, peak = batch or recipe.vae_batch, peak or recipe.vae_peak * (0.5 if decoder else 1)
    checkpoint = run / ("decoder.ckpt" if decoder else "vae.ckpt")
    rgb, _ = rendered(run)
    truth = labelled("val", 16, recipe.size)
    # Contiguous: PyTorch's bf16 group norm is 10 to 25 times slower in channels_last (CPU).
    vae = AutoencoderKL.from_pretrained(run / "vae") if decoder else build_vae(recipe)
    if not decoder:
        pass_colours(vae)
    else:
        for frozen in (vae.encoder, vae.quant_conv):
            frozen.requires_grad_(False)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    average = Average(vae, 0.999)
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    start, seen, spent = 0, 0, 0.0
    if state := load_checkpoint(checkpoint):
        vae.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start, seen, spent = state["step"], state["seen"], state["cpu_seconds"]
    generator = torch.Generator().manual_seed(seed + start + 1_000_003 * rank)
    whole = max(1, batch * recipe.crop**2 // recipe.size**2)  # batches of whole pictures cost as much as crops
    crops, pictures = (endless_batches(len(rgb), max(1, n // world), generator) for n in (batch, whole))
    began = time.process_time()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        # Statistics of group norms differ in crops, so the last steps, and one in four before, use whole pictures.
        cropped = not decoder and step % 4 != 3 and step < 0.8 * steps and recipe.crop < recipe.size
        index, side = (next(crops), recipe.crop) if cropped else (next(pictures), recipe.size)
        x = jitter(batch_of(rgb, index.sort().values, side, generator), generator)  # (B, 3, side, side)
        loss, kl = (decoder_loss if decoder else loss_of)(vae, x, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update_parameters(vae)
        seen += len(x) * world
        if rank:
            continue
        if (step + 1) % 50 == 0:
            used = (time.process_time() - began) / (step + 1 - start)
            print(f"step {step + 1} loss {loss.item():.4f} kl {kl.item():.2f} {used:.2f} CPU s a step", flush=True)
        if (step + 1) % every == 0 or step + 1 == steps:
            final = cast(AutoencoderKL, average.module.eval())
            total = spent + time.process_time() - began
            state = {"model": vae.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(checkpoint, step=step + 1, seen=seen, cpu_seconds=total, **state)
            figures = ceiling(final, truth)
            line = " ".join(f"{k} {v:.3f}" for k, v in figures.items())
            print(f"step {step + 1} {line}; {seen} pictures, {total:.0f} CPU s", flush=True)
            sheet(final, truth, checkpoint.with_suffix(".png"))
    if rank or (start >= steps and (run / "vae").exists()):
        return
    final = cast(AutoencoderKL, average.module.eval())
    if not decoder:
        final.register_to_config(scaling_factor=round(1 / latent_spread(final, rgb), 5))
    save_folder(final, run / "vae")


def loss_of(vae: AutoencoderKL, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Compute (loss, KL divergence per latent value) of pictures (B, 3, H, W) in [-1, 1]."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator=generator)).sample
    kl = 0.5 * (posterior.mean.float().pow(2) + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return reconstruction_loss(y.float(), x) + 1e-4 * kl, kl


def decoder_loss(vae: AutoencoderKL, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Compute the loss without KL for slightly noisy latents, because latents predicted by a LoRA have errors too."""
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode().float()
        spread = torch.empty(len(z), 1, 1, 1).uniform_(0, WRONG, generator=generator) / vae.config.scaling_factor
        y = vae.decode(z + spread * torch.randn(z.shape, generator=generator)).sample
    return reconstruction_loss(y.float(), x), torch.zeros(())


@torch.inference_mode()
def latent_spread(vae: AutoencoderKL, rgb: np.ndarray) -> float:
    """Compute the standard deviation of the latents of about 2000 pictures."""
    x = torch.from_numpy(np.array(rgb[:: max(1, len(rgb) // 2000)])).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in x.split(32)])
    print(f"channel means {latents.mean((0, 2, 3)).tolist()}, deviations {latents.std((0, 2, 3)).tolist()}")
    return latents.std().item()


def save_folder(vae: AutoencoderKL, folder: Path) -> None:
    """Call `save_pretrained`, replacing each file atomically."""
    folder.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        vae.save_pretrained(temporary)
        for path in Path(temporary).iterdir():
            os.replace(path, folder / path.name)


if __name__ == "__main__":
    typer.run(main)
