"""Train a small StyleGAN-v2 on procedural scenes, on one CPU core.

    OMP_NUM_THREADS=1 python -m intrinsic_lora.train.recipes.generators.stylegan2 runs/stylegan2

The pictures are rooms of plain colours with spheres, boxes and cylinders, RGB only, 64 px. From scratch a GAN requires
a million pictures, too many for an hour on one core. The generator is therefore initialised as the decoder of a
variational autoencoder at 32 px, whose samples are blurred rooms, and the discriminator by its encoder. Adversarial
training uses the non-saturating logistic loss, R1 at every 16th step, Adam with the equalised learning rate, and a
moving average of the generator with a warm-up; first at 32 px, then at 64.

Every stage resumes from its checkpoint. Check `samples_<stage>_<step>.png`; `generator/` is the base for the trainer.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from rich.progress import track
from torch import Tensor

from ....intrinsics.color import linear_to_srgb
from ....intrinsics.files import atomic_path
from ...generators.folders import save_generator
from ...generators.stylegan2 import StyleGAN2, unit_rms
from ...scenes.render import Material, Scene, render, sample_scene
from ..embedded.common import endless_batches, learning_rate, load_checkpoint, save_checkpoint
from .adversary import R1_INTERVAL, WIDTHS, Encoder, Players, equalised, small_generator

SOURCE = "train/recipes/generators/stylegan2.py"
SIZE = 64
PRIOR_WEIGHT = 2.0
HEAD_START = 100  # initial steps in which only the discriminator is trained


def plain(scene: Scene) -> Scene:
    """Remove the patterns of walls and objects, to suit the capacity of a small generator."""

    def solid(material: Material) -> Material:
        return replace(material, pattern="solid")

    solids = tuple(replace(s, material=solid(s.material)) for s in scene.solids)
    return replace(scene, walls=tuple(map(solid, scene.walls)), solids=solids)


def pictures(run: Path, count: int) -> np.ndarray:
    """Return the scenes of seed 0 as (N, 3, 64, 64) uint8 sRGB, rendered once and stored in the run."""
    path = run / "plain.npy"
    if not path.exists():
        rows = np.empty((count, 3, SIZE, SIZE), np.uint8)
        for i in track(range(count), "rendering"):
            linear = render(plain(sample_scene(np.random.default_rng([0, i]))), SIZE)["rgb_linear"]
            rgb = linear_to_srgb(torch.from_numpy(linear)) * 255
            rows[i] = rgb.round().to(torch.uint8).permute(2, 0, 1).numpy()
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, rows)
    return np.load(path, mmap_mode="r")


def real_batches(data: np.ndarray, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches (B, 3, 64, 64) in [-1, 1], half of them mirrored, because the rooms are symmetric."""
    for index in endless_batches(len(data), batch, generator):
        x = torch.from_numpy(data[index.sort().values.numpy()]).float() / 127.5 - 1
        yield torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < 0.5, x, x.flip(-1))


@torch.inference_mode()
def export(average: StyleGAN2, run: Path, stage: str, step: int, source: str) -> None:
    """Compute the mean w; write `generator/` and a sheet of fixed latents, without and with truncation."""
    z = torch.randn(4096, average.config["z_dim"], generator=torch.Generator().manual_seed(0))
    average.w_avg.copy_(average.mapping(z)[:, 0].mean(0))
    rows = []
    for truncation in (1.0, 0.7):
        for part in z[:48].split(12):
            x = average.synthesis(average.mapping(part, truncation=truncation))
            rows.append(torch.cat(list(x), -1))  # (3, R, 12 R)
    sheet = torch.cat(rows, -2).mul(127.5).add(127.5).clamp(0, 255).byte().permute(1, 2, 0)
    picture = Image.fromarray(sheet.numpy()).resize((12 * SIZE, 8 * SIZE), Image.Resampling.NEAREST)
    picture.save(run / f"samples_{stage}_{step:06d}.png")
    save_generator(average, run / "generator", source=source, replace=True)


def reconstruct(run: Path, data: np.ndarray, shown: int, batch: int, lr: float, every: int, seed: int) -> None:
    """Train stage 1 at 32 px: generator and encoder as a variational autoencoder; `start.ckpt`.

    The noise of the pixels is estimated too (its logarithm times half the number of values is the negative
    log-likelihood). The prior has a larger weight, because samples of random latents matter most.
    """
    generator, encoder = small_generator(SIZE // 2), Encoder(SIZE // 2)
    groups = [*equalised(generator, 1.0, mapping=1.0), *equalised(encoder, 1.0)]
    relative = [group["lr"] for group in groups]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
    parts: dict[str, Any] = {"generator": generator, "encoder": encoder, "adam": adam}
    start = 0
    if state := load_checkpoint(run / "start.ckpt"):
        for name, part in parts.items():
            part.load_state_dict(state[name])
        start = state["step"]
    rng = torch.Generator().manual_seed(seed + start)
    batches = real_batches(data, batch, rng)
    steps = shown // batch
    began, sums = time.time(), torch.zeros(2)
    for step in range(start, steps):
        for group, rate in zip(adam.param_groups, relative, strict=True):
            group["lr"] = rate * learning_rate(step, steps, lr, warmup=50)
        real = F.avg_pool2d(next(batches), 2)  # (B, 3, 32, 32)
        with torch.autocast("cpu", torch.bfloat16):
            mean, log_variance = encoder(real)
            z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=rng)
            picture = generator.synthesis(generator.mapping(z))
        error = (picture - real).square().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        adam.zero_grad(set_to_none=True)
        (real[0].numel() / 2 * error.log() + PRIOR_WEIGHT * divergence).backward()
        adam.step()
        sums += torch.stack([error, divergence]).detach()
        if (step + 1) % 100 == 0:
            error, divergence = sums / 100
            rate = 100 * batch / (time.time() - began)
            text = f"MSE {error:.4f}  divergence {divergence:.1f} nats  {rate:.1f} pictures/s"
            print(f"autoencoder, step {step + 1}  pictures {(step + 1) * batch}  {text}", flush=True)
            began, sums = time.time(), torch.zeros(2)
        if (step + 1) % every == 0 or step + 1 == steps:
            states = {name: part.state_dict() for name, part in parts.items()}
            save_checkpoint(run / "start.ckpt", step=step + 1, **states)
            aligned = align(copy.deepcopy(generator), encoder, data)
            export(aligned, run, "autoencoder", step + 1, f"{SOURCE}, autoencoder, step {step + 1}")


@torch.no_grad()
def align(generator: StyleGAN2, encoder: Encoder, data: np.ndarray) -> StyleGAN2:
    """Change the first layer of the mapping so that standard normal latents get the mean and covariance of codes.

    Codes deviate from the autoencoder's prior, because the mapping depends only on their direction.
    """
    rng = torch.Generator().manual_seed(0)
    codes = []
    for part in torch.from_numpy(np.array(data[:2048])).split(64):
        mean, log_variance = encoder(F.avg_pool2d(part.float() / 127.5 - 1, 2))
        codes.append(unit_rms(mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=rng)))
    code = torch.cat(codes)  # (N, z_dim)
    root = torch.linalg.cholesky(torch.cov(code.T) + 1e-4 * torch.eye(code.shape[1]))
    first: Any = generator.mapping_network.get_submodule("fc0")
    first.bias += first.weight @ code.mean(0)
    first.weight.copy_(first.weight @ root)
    return generator


def play(
    run: Path, data: np.ndarray, shown: tuple[int, int], batch: int, lr: float, gamma: float, every: int, seed: int
) -> None:
    """Train stages 2 and 3 adversarially with `shown` pictures at 32 and at 64 px; `stylegan2.ckpt`."""
    growth, steps = shown[0] // batch, sum(shown) // batch
    state = load_checkpoint(run / "stylegan2.ckpt")
    players = Players(state["resolution"] if state else SIZE // 2, lr)
    start = 0
    if state:
        for name, part in players.parts().items():
            part.load_state_dict(state[name])
        start = state["step"]
    elif warm := load_checkpoint(run / "start.ckpt"):
        encoder = Encoder(SIZE // 2)
        encoder.load_state_dict(warm["encoder"])
        players.generator.load_state_dict(warm["generator"])
        players.average.load_state_dict(align(players.generator, encoder, data).state_dict())
        players.discriminator.trunk.load_state_dict(encoder.trunk.state_dict())
    rng = torch.Generator().manual_seed(seed + start)
    batches = real_batches(data, batch, rng)
    began, sums = time.time(), torch.zeros(5)
    for step in range(start, steps):
        if step == growth:
            players = players.grown()
        players.slow_down(learning_rate(step, steps, 1.0, warmup=1, decay=0.1))
        generator, discriminator, size = players.generator, players.discriminator, players.resolution
        real = F.avg_pool2d(next(batches), SIZE // size)  # (B, 3, size, size)
        z_g, z_d = torch.randn(2, batch, WIDTHS["z_dim"], generator=rng)

        discriminator.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            loss_g = F.softplus(-discriminator(generator.synthesis(generator.mapping(z_g)))).mean()
        if step >= HEAD_START:
            players.adam_g.zero_grad(set_to_none=True)
            loss_g.backward()
            players.adam_g.step()
        seen = (step + 1) * batch
        half_life = min(10_000, max(500, 0.05 * seen))  # pictures
        with torch.no_grad():
            for mean, value in zip(players.average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(value, 1 - 0.5 ** (batch / half_life))

        discriminator.requires_grad_(True)
        regularise = step % R1_INTERVAL == 0
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                fake = generator.synthesis(generator.mapping(z_d))
            on_fake, on_real = discriminator(fake), discriminator(real.requires_grad_(regularise))
        loss_d = F.softplus(on_fake).mean() + F.softplus(-on_real).mean()
        penalty = torch.zeros(())
        if regularise:
            (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)  # (B, 3, size, size)
            penalty = gamma / 2 * (size / SIZE) ** 2 * slope.square().sum((1, 2, 3)).mean()
        players.adam_d.zero_grad(set_to_none=True)
        (loss_d + R1_INTERVAL * penalty).backward()
        players.adam_d.step()

        row = (loss_g, loss_d, penalty * R1_INTERVAL, on_real.sign().mean(), on_fake.sign().mean())
        sums += torch.stack(row).detach()
        if (step + 1) % 100 == 0:
            names = ("loss G", "loss D", "R1", "sign real", "sign fake")
            means = "  ".join(f"{name} {value:.3f}" for name, value in zip(names, (sums / 100).tolist(), strict=True))
            rate = 100 * batch / (time.time() - began)
            print(f"{size} px, step {step + 1}  pictures {seen}  {means}  {rate:.1f} pictures/s", flush=True)
            began, sums = time.time(), torch.zeros(5)
        if (step + 1) % every == 0 or step + 1 == steps:
            parts = {name: part.state_dict() for name, part in players.parts().items()}
            save_checkpoint(run / "stylegan2.ckpt", step=step + 1, resolution=size, **parts)
            export(players.average, run, "adversarial", step + 1, f"{SOURCE}, adversarial, {seen} pictures seen")


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    scenes: Annotated[int, typer.Option(help="Number of rendered scenes; mirrored ones are added.")] = 20_000,
    start: Annotated[int, typer.Option(help="Number of training pictures of the autoencoder.")] = 48_000,
    coarse: Annotated[int, typer.Option(help="Number of training pictures of the discriminator at 32 px.")] = 24_000,
    fine: Annotated[int, typer.Option(help="Number of training pictures of the discriminator at 64 px.")] = 120_000,
    batch: Annotated[int, typer.Option(help="Batch size, a multiple of four.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate of all networks.")] = 2.5e-3,
    gamma: Annotated[float, typer.Option(help="Weight of R1 at 64 px; scales with the number of pixels.")] = 0.2,
    every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Train; write a checkpoint, samples and the generator every `every` steps."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    data = pictures(run, scenes)
    reconstruct(run, data, start, batch, lr, every, seed)
    play(run, data, (coarse, fine), batch, lr, gamma, every, seed)


if __name__ == "__main__":
    typer.run(main)
