"""Train a small VQGAN on rendered scenes: 64 px pictures as 16 x 16 codes out of 4096.

    python -m intrinsic_lora.train.recipes.embedded.data runs/embedded --recipe 64  # 50,000 pictures, once
    OMP_NUM_THREADS=1 python -m intrinsic_lora.train.recipes.generators.vqgan runs/vqgan

It is initialised from the embedded model's VAE, which was trained on the same pictures (RGB only); training adds a
codebook and attention in the decoder. (From scratch, an hour on a shared core reached 24.5 dB with one of the
colour axes missing.) Half of the pictures have random colours, as for the VAE, because a decoder trained only on
rooms cannot represent normal maps. It has the architecture of the published VQGANs, including attention at the
decoder's lowest resolution, but no discriminator and no perceptual loss: with four pixels per code, an L1 loss of the
picture and of its edges is sharp enough.
"""

import copy
import math
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from ....diffusers_pipeline.sources import EMBEDDED
from ....intrinsics import decode, encode
from ....intrinsics.files import atomic_path
from ....intrinsics.sheet import contact_sheet
from ...generators.folders import atomic_folder
from ..embedded.common import Average, endless_batches, learning_rate, load_checkpoint, mean_scores, save_checkpoint
from ..embedded.data import labelled
from ..embedded.vae import jitter, reconstruction_loss

CODES = 4096
CODE_DECAY = 0.98  # of the moving averages of the codebook
COMMITMENT = 0.05  # weight; the VAE's vectors have a standard deviation of 2
REVIVE_EVERY = 25  # steps
REVIVE_BELOW = 0.2  # share of the mean use below which a code is replaced


def build_vqgan() -> VQModel:
    """Build the embedded VAE's architecture with attention after the decoder's lowest two blocks and in its middle."""
    return VQModel(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 48, 96),
        layers_per_block=1,
        latent_channels=8,
        num_vq_embeddings=CODES,
        norm_num_groups=16,
        sample_size=64,
        scaling_factor=1.0,
    )


@torch.no_grad()
def from_vae(vae: AutoencoderKL) -> VQModel:
    """Build a VQGAN that equals the VAE (with its posterior's mode) without quantisation; new attention outputs zero.

    Raises:
        RuntimeError: the VAE has other widths than `build_vae`.
    """
    model, channels = build_vqgan(), vae.config.latent_channels
    state = vae.state_dict()
    # The encoder's last convolution and the 1x1 one after it are merged, keeping only the mean.
    mix = state["quant_conv.weight"][:channels, :, 0, 0]  # (C, 2C)
    state["encoder.conv_out.weight"] = torch.einsum("ij,jkyx->ikyx", mix, state["encoder.conv_out.weight"])
    state["encoder.conv_out.bias"] = mix @ state["encoder.conv_out.bias"] + state["quant_conv.bias"][:channels]
    state["quant_conv.weight"] = torch.eye(channels)[:, :, None, None]
    state["quant_conv.bias"] = torch.zeros(channels)
    added = {key for key in model.state_dict() if key not in state}
    for key in added:
        if ".to_out.0." in key:
            model.get_parameter(key).zero_()
    missing = set(model.load_state_dict(state, strict=False).missing_keys)
    assert missing == added and all(".attentions." in key or key.startswith("quantize.") for key in missing)
    return model


class Codebook:
    """Codes as moving averages of the encoder's vectors assigned to them (van den Oord et al. 2017, appendix A).

    Unlike a codebook trained by gradients it requires no loss, and unused codes are replaced by vectors of the current
    batch, so that all codes are used.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # (K, D), of the model, updated in place
        self.count = torch.zeros(len(weight))  # (K,) vectors per step
        self.total = weight.clone()  # (K, D) their sum

    def nearest(self, z: Tensor) -> Tensor:
        """Return the nearest codes of vectors (N, D), (N,) long."""
        return torch.cdist(z, self.weight).argmin(1)

    def scatter(self, z: Tensor, generator: torch.Generator, below: float) -> int:
        """Replace codes used less than `below` times per step by random vectors of z (N, D); return their number."""
        idle = (self.count < below).nonzero()[:, 0]  # (M,)
        chosen = torch.randperm(len(z), generator=generator)[: len(idle)]
        idle = idle[: len(chosen)]
        mean = len(z) / len(self.weight)
        self.weight[idle], self.count[idle], self.total[idle] = z[chosen], mean, z[chosen] * mean
        return len(idle)

    def update(self, z: Tensor, codes: Tensor) -> None:
        """Update the averages with vectors z (N, D) and their codes (N,)."""
        count = torch.bincount(codes, minlength=len(self.weight)).float()
        total = torch.zeros_like(self.total).index_add_(0, codes, z)
        self.count.lerp_(count, 1 - CODE_DECAY)
        self.total.lerp_(total, 1 - CODE_DECAY)
        self.weight.copy_(self.total / self.count.clamp(min=1e-5)[:, None])


@torch.inference_mode()
def through(model: VQModel, pictures: Tensor) -> Tensor:
    """Encode, quantise and decode pictures (N, 3, H, W) in [0, 1]."""
    return torch.cat([model(x * 2 - 1).sample for x in pictures.split(32)]) * 0.5 + 0.5


def figures(model: VQModel, truth: dict[str, Tensor]) -> dict[str, float]:
    """Score unseen scenes: PSNR of reconstructed pictures, mean angle in degrees of reconstructed normal maps."""
    rgb = -10 * math.log10(F.mse_loss(through(model, truth["rgb"]).clamp(0, 1), truth["rgb"]).item())
    normals = decode(through(model, encode(truth["normals"], "normals")), "normals")
    return {"psnr": rgb, "normals_ceiling": mean_scores({"normals": normals}, truth)["normals"]["mean_angle"]}


def draw(path: Path, model: VQModel, truth: dict[str, Tensor]) -> None:
    """Draw a sheet of pictures and normal maps before and after reconstruction."""
    columns = []
    for name in ("rgb", "normals"):
        pictures = truth[name][:8] if name == "rgb" else encode(truth[name][:8], name)
        after = through(model, pictures).clamp(0, 1)
        columns += [(name, list(pictures)), ("decoded", list(after))]
    with atomic_path(path) as temporary:
        contact_sheet(columns, cell_width=128, gap=4).save(temporary)


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    pictures: Annotated[Path, typer.Option(help="rgb.npy of embedded.data.")] = Path("runs/embedded/rgb.npy"),
    vae: Annotated[Path, typer.Option(help="Folder of the VAE for initialisation.")] = EMBEDDED / "vae",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 450,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 16,
    peak: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    every: Annotated[int, typer.Option(help="Steps between checkpoints with scores and sheets.")] = 100,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Train, and write `model/` (a diffusers folder, float16). Can be resumed, also with other steps."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    rgb = np.load(pictures, mmap_mode="r")  # (N, 64, 64, 3) uint8
    truth = labelled("val", 64)
    model = from_vae(AutoencoderKL.from_pretrained(vae))
    model.quantize.requires_grad_(False)
    book = Codebook(model.quantize.embedding.weight.data)
    average = Average(model, 0.998)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    start = 0
    if state := load_checkpoint(run / "vqgan.ckpt"):
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        book.count, book.total, start = state["count"], state["total"], state["step"]
    generator = torch.Generator().manual_seed(seed + start)
    batches = endless_batches(len(rgb), batch, generator)
    began, moved = time.time(), 0
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        x = torch.from_numpy(rgb[next(batches).sort().values.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = jitter(x.contiguous(), generator)  # (B, 3, 64, 64)
        with torch.autocast("cpu", torch.bfloat16):
            z = model.encode(x).latents.float()  # (B, D, h, w)
        flat = z.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (N, D)
        # Codes are not replaced in the last quarter, where the learning rate decays, so that averages stay meaningful.
        if step == 0 or (step % REVIVE_EVERY == 0 and step < 0.75 * steps):
            moved = book.scatter(flat, generator, below=REVIVE_BELOW * len(flat) / CODES)
        codes = book.nearest(flat)
        book.update(flat, codes)
        quantised = book.weight[codes].view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)  # (B, D, h, w)
        with torch.autocast("cpu", torch.bfloat16):
            y = model.decode(z + (quantised - z).detach(), force_not_quantize=True).sample
        loss = reconstruction_loss(y.float(), x) + COMMITMENT * F.mse_loss(z, quantised)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update_parameters(model)
        if (step + 1) % 50 == 0:
            share = book.count / book.count.sum()
            used = torch.exp(-(share * share.clamp(min=1e-9).log()).sum()).item()  # perplexity
            rate = (step + 1 - start) * batch / (time.time() - began)
            print(
                f"step {step + 1} loss {loss.item():.4f} codes {used:.0f} moved {moved} {rate:.1f} pictures/s",
                flush=True,
            )
        if (step + 1) % every == 0 or step + 1 == steps:
            found = figures(average.module.eval(), truth)
            print(f"step {step + 1} " + " ".join(f"{k} {v:.2f}" for k, v in found.items()), flush=True)
            draw(run / f"reconstructions_{step + 1:06d}.png", average.module, truth)
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(run / "vqgan.ckpt", step=step + 1, count=book.count, total=book.total, **state)
            half: Any = copy.deepcopy(average.module)
            with atomic_folder(run / "model", replace=True) as folder:
                half.half().save_pretrained(folder)
    print(f"{run / 'model'}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")


if __name__ == "__main__":
    typer.run(main)
