"""Stage 2 of the embedded model: the autoencoder, trained on the rendered RGB only.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m intrinsic_lora.train.embedded.vae runs/embedded

Half of the pictures are colour jittered (random channel mixes, contrast, offsets, grey): a VAE that has seen nothing
but rooms cannot represent a normal map (12.6 dB in the first trial). No label is ever shown to it.
"""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL
from torch import Tensor

from ...intrinsics import INTRINSICS, decode, encode
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
from .data import labelled


def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B,3,H,W) in [-1,1]: the first half stays, the second half gets random colours, some of them grey."""
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
    """L1 of the picture and of its finite differences: sharp edges without a discriminator."""
    dy = F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
    return F.l1_loss(y, x) + F.mse_loss(y, x) + 0.5 * dy


@torch.inference_mode()
def ceiling(vae: AutoencoderKL, truth: dict[str, Tensor]) -> dict[str, float]:
    """What encode-decode alone costs on validation truth: PSNR of the rgb, the main metric of each map."""

    def through(picture: Tensor) -> Tensor:
        return vae.decode(vae.encode(picture * 2 - 1).latent_dist.mode()).sample * 0.5 + 0.5

    rgb = -10 * torch.log10(F.mse_loss(through(truth["rgb"]), truth["rgb"])).item()
    maps = {name: decode(through(encode(truth[name], name)), name) for name in INTRINSICS}
    scores = mean_scores(maps, truth)
    shown = {"normals": "mean_angle", "depth": "delta1", "albedo": "si_rmse", "shading": "si_rmse"}
    return {"rgb_psnr": rgb, **{f"{name}_{key}": scores[name][key] for name, key in shown.items()}}


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run, with rgb.npy of stage 1.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2400,
    batch: Annotated[int, typer.Option(help="Pictures a step.")] = 32,
    peak: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Train, log the ceiling on validation truth every 500 steps, and write `vae/` (diffusers folder)."""
    rank, world = join_world()
    torch.manual_seed(seed)
    rgb = np.load(run / "rgb.npy", mmap_mode="r")
    truth = labelled("val", 64)
    vae = build_vae()  # contiguous: PyTorch's bf16 group norm is 10 to 25 times slower in channels_last (CPU)
    average = Average(vae, 0.998)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    start = 0
    if state := load_checkpoint(run / "vae.ckpt"):
        vae.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    generator = torch.Generator().manual_seed(seed + start + 1_000_003 * rank)
    batches = endless_batches(len(rgb), batch // world, generator)
    began = time.time()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        x = torch.from_numpy(rgb[next(batches).sort().values.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = jitter(x.contiguous(), generator)  # (B, 3, 64, 64)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample(generator=generator)).sample
        kl = 0.5 * (posterior.mean.float().pow(2) + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = reconstruction_loss(y.float(), x) + 1e-4 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(vae.parameters())
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(vae)
        if rank:
            continue
        if (step + 1) % 100 == 0:
            rate = (step + 1 - start) * batch / (time.time() - began)
            print(f"step {step + 1} loss {loss.item():.4f} kl {kl.item():.2f} {rate:.0f} pictures/s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            figures = ceiling(average.module.eval(), truth)
            print(f"step {step + 1} " + " ".join(f"{k} {v:.3f}" for k, v in figures.items()), flush=True)
            state = {"model": vae.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(run / "vae.ckpt", step=step + 1, **state)
    if rank:
        return
    final: AutoencoderKL = average.module.eval()
    with torch.inference_mode():
        x = torch.from_numpy(np.array(rgb[:2048])).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = torch.cat([final.encode(part).latent_dist.mode() for part in x.split(128)])
    final.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    final.save_pretrained(run / "vae")
    print(f"channel means {latents.mean((0, 2, 3)).tolist()}, scaling factor {final.config.scaling_factor}")


if __name__ == "__main__":
    typer.run(main)
