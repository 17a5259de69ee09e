"""A small StyleGAN-v2 on procedural scenes, trained adversarially on one CPU core.

    OMP_NUM_THREADS=1 python -m intrinsic_lora.train.generators.recipes.stylegan2 runs/stylegan2

Rooms of plain colours with spheres, boxes and cylinders, RGB only, 64 px. Non-saturating logistic loss, R1 on every
16th step, Adam with the equalised learning rate, an average of the generator that starts fast. Both networks start at
16 px, where a step takes a quarter of the time, and grow. The run resumes from its checkpoint; it writes
`samples_<step>.png` (look at it) and `generator/`, which is what the trainer takes as base.
"""

import copy
import time
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Annotated, Any

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
WIDTHS = {"z_dim": 128, "w_dim": 256, "mapping_layers": 3}
GROWTH = {16: 60_000, 32: 45_000}  # pictures shown at the resolutions before the last
R1_INTERVAL = 16
MAPPING_LR = 0.1  # the paper's 0.01 is for eight layers and hundred times as many steps


class Discriminator(nn.Module):
    """Residual, with the standard deviation within groups of four pictures as a last feature. -> logits (B,)

    Smaller copies of the picture enter at every resolution, so that a block can be put in front without a break.
    """

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.sizes = [res for res in (SIZE, 32, 16, 8) if res <= resolution]
        width = {res: min(CHANNEL_BASE // res, CHANNEL_MAX) for res in (SIZE, 32, 16, 8, 4)}
        self.from_rgb = nn.ModuleDict({str(res): nn.Conv2d(3, width[res], 1) for res in self.sizes})
        self.blocks = nn.ModuleDict()
        for res in self.sizes:
            conv0 = nn.Conv2d(width[res], width[res], 3, padding=1)
            conv1 = nn.Conv2d(width[res], width[res // 2], 3, stride=2)
            skip = nn.Conv2d(width[res], width[res // 2], 1, bias=False)
            self.blocks[str(res)] = nn.ModuleDict({"conv0": conv0, "conv1": conv1, "skip": skip})
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

    def forward(self, picture: Tensor) -> Tensor:
        picture = picture.contiguous(memory_format=torch.channels_last)
        x = picture.new_zeros(())
        for res in map(str, self.sizes):
            x = x + lrelu(self.from_rgb[res](picture))
            block = self.blocks[res]
            y = block["conv1"](filter_2d(lrelu(block["conv0"](x)), self.resample_filter, padding=2))
            x = block["skip"](halved(x, self.resample_filter))
            x = (x + lrelu(y)) * sqrt(0.5)
            picture = halved(picture, self.resample_filter)
        groups = x.float().reshape(4, -1, *x.shape[1:])  # (4, B/4, C, 4, 4): a group is a column
        variance = (groups - groups.mean(0)).square().mean(0)  # (B/4, C, 4, 4)
        spread = (variance + 1e-8).sqrt().mean((1, 2, 3))  # (B/4,)
        spread = spread.repeat(4)[:, None, None, None].expand(-1, 1, 4, 4)
        x = lrelu(self.conv(torch.cat([x, spread.to(x.dtype)], 1)))
        return self.out(lrelu(self.fc(x.flatten(1)))).float().squeeze(1)


def lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, 0.2) * sqrt(2)


def halved(x: Tensor, kernel: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, h/2, w/2), filtered. The backward pass of a strided one is several times slower."""
    return filter_2d(x, kernel, padding=1)[:, :, ::2, ::2]


class Players:
    """Both networks, the average of the generator and the optimisers, at one resolution."""

    def __init__(self, resolution: int, lr: float) -> None:
        self.resolution, self.lr = resolution, lr
        self.generator = StyleGAN2(resolution, **WIDTHS, channel_base=CHANNEL_BASE, channel_max=CHANNEL_MAX)
        for name, p in self.generator.named_parameters():
            p.requires_grad_("noise_strength" not in name)  # it is 0, for good: constant noise would be a texture
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.discriminator = Discriminator(resolution)
        self.adam_g = torch.optim.Adam(equalised(self.generator, lr), betas=(0.0, 0.99), fused=True)
        # The step with R1 counts as two: the correction of the paper for regularising on some steps only.
        share = R1_INTERVAL / (R1_INTERVAL + 1)
        groups = equalised(self.discriminator, lr * share)
        self.adam_d = torch.optim.Adam(groups, betas=(0.0, 0.99**share), fused=True)

    def parts(self) -> dict[str, Any]:
        """Everything with a state, by the name it has in a checkpoint."""
        return {key: value for key, value in vars(self).items() if hasattr(value, "load_state_dict")}

    def grown(self) -> "Players":
        """The same at twice the resolution. The new layers' output is zero: nothing changes but the picture's size."""
        new = Players(2 * self.resolution, self.lr)
        key = str(new.resolution)
        with torch.no_grad():
            for model in (new.generator, new.average):
                for p in (model.blocks[key].torgb.weight, model.blocks[key].torgb.bias):
                    p.zero_()
            block = new.discriminator.blocks[key]
            for p in (block["conv1"].weight, block["conv1"].bias, block["skip"].weight):
                p.zero_()
        for name in ("generator", "average", "discriminator"):
            getattr(new, name).load_state_dict(getattr(self, name).state_dict(), strict=False)
        return new


def equalised(model: nn.Module, lr: float) -> list[dict]:
    """Parameter groups of Adam, whose steps have the size of the learning rate whatever the gradient's scale.

    For a layer whose gain 1/sqrt(inputs) is folded into its weights, the equalised learning rate is that gain times
    the learning rate. These are the plain layers; those of the mapping network have a smaller rate on top.
    """
    groups, seen = [], set()
    mapping = set(model.mapping_network.modules()) if isinstance(model, StyleGAN2) else set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
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
            rows.append(torch.cat(list(x), -1))  # (3, R, 12 R)
    sheet = torch.cat(rows, -2).mul(127.5).add(127.5).clamp(0, 255).byte().permute(1, 2, 0)
    picture = Image.fromarray(sheet.numpy()).resize((12 * SIZE, 8 * SIZE), Image.Resampling.NEAREST)
    picture.save(run / f"samples_{step:06d}.png")
    source = f"train/generators/recipes/stylegan2.py, {seen} pictures seen"
    save_generator(average, run / "generator", source=source, replace=True)


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    shown: Annotated[
        int, typer.Option(help="Pictures to show at 64 px; more are shown at 16 and 32 before.")
    ] = 60_000,
    scenes: Annotated[int, typer.Option(help="Scenes to render and learn from, each with its mirror image.")] = 20_000,
    batch: Annotated[int, typer.Option(help="Pictures a step, a multiple of four.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate of both networks.")] = 2.5e-3,
    gamma: Annotated[float, typer.Option(help="Weight of R1 at 64 px; it goes with the number of pixels.")] = 0.2,
    every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Train, write a checkpoint, samples and the averaged generator every `every` steps."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    data = pictures(run, scenes)
    state = load_checkpoint(run / "stylegan2.ckpt")
    players = Players(state["resolution"] if state else min(GROWTH), lr)
    start = state["step"] if state else 0
    if state:
        for name, part in players.parts().items():
            part.load_state_dict(state[name])
    rng = torch.Generator().manual_seed(seed + start)
    batches = endless_batches(len(data), batch, rng)
    ends = {size: sum(n for s, n in GROWTH.items() if s <= size) // batch for size in GROWTH}  # in steps
    steps = max(ends.values()) + shown // batch
    began, sums = time.time(), torch.zeros(5)
    for step in range(start, steps):
        if step == ends.get(players.resolution):
            players = players.grown()
        generator, discriminator, size = players.generator, players.discriminator, players.resolution
        real = torch.from_numpy(data[next(batches).sort().values.numpy()]).float() / 127.5 - 1  # (B, 3, 64, 64)
        real = torch.where(torch.rand(batch, 1, 1, 1, generator=rng) < 0.5, real, real.flip(-1))
        real = F.avg_pool2d(real, SIZE // size)  # (B, 3, size, size)
        z_g, z_d = torch.randn(2, batch, WIDTHS["z_dim"], generator=rng)

        discriminator.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            loss_g = F.softplus(-discriminator(generator.synthesis(generator.mapping(z_g)))).mean()
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
            print(f"step {step + 1}  {size} px  pictures {seen}  {means}  {rate:.1f} pictures/s", flush=True)
            began = time.time()
            sums.zero_()
        if (step + 1) % every == 0 or step + 1 == steps:
            parts = {name: part.state_dict() for name, part in players.parts().items()}
            save_checkpoint(run / "stylegan2.ckpt", step=step + 1, resolution=size, **parts)
            export(players.average, run, step + 1, seen)


if __name__ == "__main__":
    typer.run(main)
