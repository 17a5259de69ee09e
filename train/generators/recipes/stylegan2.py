"""A small StyleGAN-v2 on procedural scenes, trained adversarially on one CPU core.

    OMP_NUM_THREADS=1 python -m intrinsic_lora.train.generators.recipes.stylegan2 runs/stylegan2

Rooms of plain colours with spheres, boxes and cylinders, RGB only, 64 px. Non-saturating logistic loss, R1 on every
16th step, Adam with the equalised learning rate, an average of the generator that starts fast. The run resumes from
its checkpoint; it writes `samples_<step>.png` (look at it) and `generator/`, which is what the trainer takes as base.
"""

import time
from collections.abc import Iterable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

from ....intrinsics.color import linear_to_srgb
from ....intrinsics.files import atomic_path
from ...embedded.common import endless_batches, load_checkpoint, save_checkpoint
from ...scenes import Material, Scene, render, sample_scene
from ..folders import save_generator
from ..stylegan2 import StyleGAN2, filter_2d

SIZE = 64
CHANNEL_BASE, CHANNEL_MAX = 1024, 192  # of both networks
R1_INTERVAL = 16
MAPPING_LR = 0.1  # the paper's 0.01 is for eight layers and hundred times as many steps


class Discriminator(nn.Module):
    """Residual, with the standard deviation within groups of four pictures as a last feature. -> logits (B,)"""

    def __init__(self) -> None:
        super().__init__()
        width = {res: min(CHANNEL_BASE // res, CHANNEL_MAX) for res in (4, 8, 16, 32, SIZE)}
        self.from_rgb = nn.Conv2d(3, width[SIZE], 1)
        self.blocks = nn.ModuleList()
        for res in (SIZE, 32, 16, 8):
            conv0 = nn.Conv2d(width[res], width[res], 3, padding=1)
            conv1 = nn.Conv2d(width[res], width[res // 2], 3, stride=2)
            skip = nn.Conv2d(width[res], width[res // 2], 1, bias=False)
            self.blocks.append(nn.ModuleDict({"conv0": conv0, "conv1": conv1, "skip": skip}))
        self.conv = nn.Conv2d(width[4] + 1, width[4], 3, padding=1)
        self.fc = nn.Linear(width[4] * 16, width[4])
        self.out = nn.Linear(width[4], 1)
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", StyleGAN2(8).resample_filter)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = lrelu(self.from_rgb(x.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            y = block["conv1"](filter_2d(lrelu(block["conv0"](x)), self.resample_filter, padding=2))
            x = block["skip"](filter_2d(x, self.resample_filter, padding=1, stride=2))
            x = (x + lrelu(y)) * sqrt(0.5)
        groups = x.float().reshape(4, -1, *x.shape[1:])  # (4, B/4, C, 4, 4): a group is a column
        spread = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))  # (B/4,)
        spread = spread.repeat(4)[:, None, None, None].expand(-1, 1, 4, 4)
        x = lrelu(self.conv(torch.cat([x, spread.to(x.dtype)], 1)))
        return self.out(lrelu(self.fc(x.flatten(1)))).float().squeeze(1)


def lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, 0.2) * sqrt(2)


def equalised(model: nn.Module, folded: Iterable[nn.Module], lr: float) -> list[dict]:
    """Parameter groups of Adam, whose steps have the size of the learning rate whatever the gradient's scale.

    For a layer whose gain 1/sqrt(inputs) is folded into its weights, the equalised learning rate is that gain times
    the learning rate. `folded` are those layers; a mapping layer has a smaller rate on top.
    """
    groups, seen = [], set()
    mapping = set(model.mapping_network.modules()) if isinstance(model, StyleGAN2) else set()
    for module in folded:
        rate = lr * (MAPPING_LR if module in mapping else 1)
        groups.append({"params": [module.weight], "lr": rate * module.weight[0].numel() ** -0.5})
        if module.bias is not None:
            groups.append({"params": [module.bias], "lr": rate})
        seen |= {module.weight, module.bias}
    return [*groups, {"params": [p for p in model.parameters() if p not in seen], "lr": lr}]


def plain(scene: Scene) -> Scene:
    """The scene without patterns on its walls and objects: a world small enough for a small generator."""

    def solid(material: Material) -> Material:
        return replace(material, pattern="solid")

    solids = tuple(replace(s, material=solid(s.material)) for s in scene.solids)
    return replace(scene, walls=tuple(map(solid, scene.walls)), solids=solids)


def pictures(run: Path, count: int) -> np.ndarray:
    """(N, 3, 64, 64) uint8 sRGB: scene i of seed 0, rendered once, then read from the run."""
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


@torch.inference_mode()
def export(average: StyleGAN2, run: Path, step: int, seen: int) -> None:
    """Sets the mean w, writes `generator/` and a sheet: four rows of fixed latents, the same truncated to 0.7."""
    z = torch.randn(4096, average.config["z_dim"], generator=torch.Generator().manual_seed(0))
    average.w_avg.copy_(average.mapping(z)[:, 0].mean(0))
    rows = []
    for truncation in (1.0, 0.7):
        for part in z[:48].split(12):
            x = average.synthesis(average.mapping(part, truncation=truncation))
            rows.append(torch.cat(list(x), -1))  # (3, 64, 12 * 64)
    sheet = torch.cat(rows, -2).mul(127.5).add(127.5).clamp(0, 255).byte().permute(1, 2, 0)
    Image.fromarray(sheet.numpy()).save(run / f"samples_{step:06d}.png")
    source = f"train/generators/recipes/stylegan2.py, {seen} pictures seen"
    save_generator(average, run / "generator", source=source, replace=True)


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    shown: Annotated[int, typer.Option(help="Pictures to show to the discriminator.")] = 160_000,
    scenes: Annotated[int, typer.Option(help="Scenes to render and learn from, each with its mirror image.")] = 20_000,
    batch: Annotated[int, typer.Option(help="Pictures a step, a multiple of four.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate of both networks.")] = 2.5e-3,
    gamma: Annotated[float, typer.Option(help="Weight of R1.")] = 0.2,
    every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Train, write a checkpoint, samples and the averaged generator every `every` steps."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    data = pictures(run, scenes)
    model = {"resolution": SIZE, "z_dim": 128, "w_dim": 256, "mapping_layers": 3}
    generator = StyleGAN2(**model, channel_base=CHANNEL_BASE, channel_max=CHANNEL_MAX)
    average = StyleGAN2(**generator.config).requires_grad_(False)
    average.load_state_dict(generator.state_dict())
    discriminator = Discriminator()
    linear = [m for m in generator.modules() if isinstance(m, nn.Linear)]
    layers = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    adam_g = torch.optim.Adam(equalised(generator, linear, lr), betas=(0.0, 0.99), fused=True)
    # The step with R1 counts as two: the correction of the paper for regularising on some steps only.
    share = R1_INTERVAL / (R1_INTERVAL + 1)
    adam_d = torch.optim.Adam(equalised(discriminator, layers, lr * share), betas=(0.0, 0.99**share), fused=True)
    start = 0
    if state := load_checkpoint(run / "stylegan2.ckpt"):
        for name, part in (("g", generator), ("d", discriminator), ("average", average)):
            part.load_state_dict(state[name])
        adam_g.load_state_dict(state["adam_g"])
        adam_d.load_state_dict(state["adam_d"])
        start = state["step"]
    rng = torch.Generator().manual_seed(seed + start)
    batches = endless_batches(len(data), batch, rng)
    steps = shown // batch
    began, sums = time.time(), torch.zeros(5)
    for step in range(start, steps):
        real = torch.from_numpy(data[next(batches).sort().values.numpy()]).float() / 127.5 - 1  # (B, 3, 64, 64)
        real = torch.where(torch.rand(batch, 1, 1, 1, generator=rng) < 0.5, real, real.flip(-1))
        z_g, z_d = torch.randn(2, batch, model["z_dim"], generator=rng)

        discriminator.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            loss_g = F.softplus(-discriminator(generator.synthesis(generator.mapping(z_g)))).mean()
        adam_g.zero_grad(set_to_none=True)
        loss_g.backward()
        adam_g.step()
        seen = (step + 1) * batch
        half_life = min(10_000, max(500, 0.05 * seen))  # pictures
        with torch.no_grad():
            for mean, value in zip(average.parameters(), generator.parameters(), strict=True):
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
            (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)  # (B, 3, 64, 64)
            penalty = slope.square().sum((1, 2, 3)).mean()
        adam_d.zero_grad(set_to_none=True)
        (loss_d + gamma / 2 * R1_INTERVAL * penalty).backward()
        adam_d.step()

        row = (loss_g, loss_d, penalty * R1_INTERVAL, on_real.sign().mean(), on_fake.sign().mean())
        sums += torch.stack(row).detach()
        if (step + 1) % 50 == 0:
            names = ("loss G", "loss D", "slope^2", "sign real", "sign fake")
            means = "  ".join(f"{name} {value:.3f}" for name, value in zip(names, (sums / 50).tolist(), strict=True))
            rate = (step + 1 - start) * batch / (time.time() - began)
            print(f"step {step + 1}  pictures {seen}  {means}  {rate:.1f} pictures/s", flush=True)
            sums.zero_()
        if (step + 1) % every == 0 or step + 1 == steps:
            networks = {"g": generator, "d": discriminator, "average": average, "adam_g": adam_g, "adam_d": adam_d}
            save_checkpoint(run / "stylegan2.ckpt", step=step + 1, **{k: v.state_dict() for k, v in networks.items()})
            export(average, run, step + 1, seen)


if __name__ == "__main__":
    typer.run(main)
