"""Compare relighting with the renderer: scenes are relit to a new lamp and compared with their renderings under it.

    OMP_NUM_THREADS=1 python benchmarks/relight_quality.py
    OMP_NUM_THREADS=1 python benchmarks/relight_quality.py --model runs/embedded/model --size 128  # another one

The new lamp is inside the room (whose walls are convex and cast no shadows, which minimises the effect of invisible
surfaces) and passed to `relight` as a `Point` in front of the picture. The renderer's ambient light depends on the
world's up direction, which is unknown for a photo; `relight` gets its mean over directions as `Ambient`.
Pictures are compared in sRGB, 0..1, after the best exposure per picture and method, because shading is
known up to scale.
"""

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, NamedTuple, cast

import numpy as np
import torch
import typer
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.diffusers_pipeline.output import IntrinsicLoRAOutput
from intrinsic_lora.intrinsics import linear_to_srgb, srgb_to_linear
from intrinsic_lora.intrinsics.relight import (
    EXACT_DEPTH,
    Ambient,
    Camera,
    GBuffer,
    Light,
    March,
    Point,
    make_gbuffer,
    relight,
)
from intrinsic_lora.intrinsics.relight.shading import lambert
from intrinsic_lora.train.recipes.embedded.data import SPLITS
from intrinsic_lora.train.scenes import render as scenes
from torch import Tensor

AMBIENT = 0.12  # of the new light, in the renderer's units
AMBIENT_MEAN = 0.75  # of the renderer's ambient over directions
INTENSITY = 2.0
SLIDER = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # ambient light, of which the best is chosen per scene
ROOM = 0.6  # minimum distance of a lamp to visible surfaces and walls, scene units
WHITE = 0.95  # share of a picture's pixels that are not overexposed


class Pair(NamedTuple):
    """A scene under two lights. Tensors have batch size 1."""

    photo: Tensor  # (1, 3, H, W) sRGB under light 1, rounded to 8 bits
    truth: Tensor  # (1, 3, H, W) sRGB under light 2, overexposed where a photo would be
    gbuffer: GBuffer  # the photo with the true maps and camera
    lights: list[Light]  # light 2
    shadowed: float  # share of pixels that lose half of their light or more by shadows


def make_pair(split: str, index: int, size: int, seed: int = 0) -> Pair:
    """Render scene `index` of a split; `seed` determines its new lamp."""
    scene = scenes.sample_scene(np.random.default_rng([SPLITS[split], index]))
    before = scenes.render(scene, size)
    photo = (linear_to_srgb(_tensor(before["rgb_linear"])) * 255).round() / 255
    metric = _tensor(before["depth_metric"])
    gbuffer = make_gbuffer(
        photo,
        *(_tensor(before[name]) for name in ("normals", "depth", "albedo", "shading")),
        camera=Camera(near=metric.min().item(), far=metric.max().item(), fov=scene.fov),
    )
    lamp, position = hang_lamp(scene, gbuffer, np.random.default_rng([SPLITS[split], index, seed]))
    softness = cast(float, lamp.softness)
    new = replace(scene, ambient=AMBIENT, lights=(scenes.Light(position, INTENSITY, softness, softening=0.0),))
    after = scenes.render(new, size)
    shading = _tensor(after["shading"] * after["shading_scale"])
    exposure = 1 / shading.flatten().quantile(WHITE)
    lights = [lamp, Ambient(intensity=AMBIENT * AMBIENT_MEAN)]
    unshadowed = relight(gbuffer, lights, shadow=0).shading[:, :1]
    return Pair(
        photo=photo,
        truth=linear_to_srgb((gbuffer.albedo * shading * exposure).clamp(max=1)),
        gbuffer=gbuffer,
        lights=lights,
        shadowed=(shading < 0.5 * unshadowed).float().mean().item(),
    )


def hang_lamp(scene: scenes.Scene, gbuffer: GBuffer, rng: np.random.Generator) -> tuple[Point, np.ndarray]:
    """Sample a lamp inside the room, away from surfaces; also return its position in the world."""
    while True:
        x, y, height = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.5, 3.5)
        lamp = Point(x=x, y=y, height=height, intensity=INTENSITY, softness=rng.uniform(0.05, 0.3))
        local = gbuffer.geometry.lamp_position(x, y, height)  # (1, 3, 1, 1) camera frame
        world = (scene.camera + scene.orientation @ local.flatten().numpy()).astype(np.float32)
        walls = min((world - scene.room[0]).min(), (scene.room[1] - world).min())
        solids = min((np.linalg.norm(world - s.center) - s.radius for s in scene.solids), default=np.inf)
        visible = (gbuffer.geometry.points - local).norm(dim=1).min().item()
        if min(walls, visible) > ROOM and solids > 0:
            return lamp, world


def extract(pipe: IntrinsicLoRAPipeline, pairs: list[Pair]) -> list[dict[str, Tensor]]:
    """Extract the maps of all photos as arguments of `make_gbuffer`."""
    output = cast(IntrinsicLoRAOutput, pipe(torch.cat([pair.photo for pair in pairs]), batch_size=20))
    names = ("normals", "depth", "albedo", "shading")
    return [{name: cast(Tensor, output[name])[i : i + 1] for name in names} for i in range(len(pairs))]


def multiply(gbuffer: GBuffer, lights: list[Light], gamma: bool = True) -> Tensor:
    """Relight as other nodes do, without shadows: the photo times (ambient + N.L), linear light (1, 3, H, W).

    They multiply sRGB values (`gamma`); with `gamma=False` linear light is multiplied.
    """
    shading = torch.zeros_like(gbuffer.depth)  # (1, 1, H, W)
    for light in lights:
        if isinstance(light, Point):
            incidence = light.incidence(gbuffer.geometry)
            shading = shading + light.intensity * incidence.irradiance * lambert(gbuffer.normals, incidence.direction)
        else:
            shading = shading + light.intensity
    return srgb_to_linear(linear_to_srgb(gbuffer.photo) * shading) if gamma else gbuffer.photo * shading


def psnr(linear: Tensor, truth: Tensor) -> float:
    """Compute the PSNR in dB of a linear picture (1, 3, H, W) at its best exposure and an sRGB picture in [0, 1]."""
    center, width, best = 0.0, 12.0, torch.tensor(torch.inf)
    for _ in range(3):  # each round refines the search around the previous best
        stops = center + torch.linspace(-width, width, 25)
        error = torch.stack([(linear_to_srgb(linear * 2**s).clamp(max=1) - truth).square().mean() for s in stops])
        best, center, width = error.min(), stops[error.argmin()].item(), width / 12
    return -10 * torch.log10(best).item()


def score(pair: Pair, maps: dict[str, Tensor]) -> dict[str, float]:
    """Compute the PSNR of every method for one scene; `maps` are from `extract`."""
    true = pair.gbuffer
    buffers = {
        "true maps": true,
        "extracted maps, true camera": make_gbuffer(pair.photo, **maps, camera=true.camera),
        "extracted maps, default camera": make_gbuffer(pair.photo, **maps),
    }
    scores = {"photo left alone": psnr(true.photo, pair.truth)}
    for name, gbuffer in buffers.items():
        march = EXACT_DEPTH if gbuffer is true else March()
        scores[f"sRGB x N.L, {name}"] = psnr(multiply(gbuffer, pair.lights), pair.truth)
        # With the best ambient light for this picture.
        rigs = [[pair.lights[0], Ambient(intensity=a)] for a in SLIDER]
        best = max(psnr(multiply(gbuffer, rig), pair.truth) for rig in rigs)
        scores[f"sRGB x N.L at its best ambient, {name}"] = best
        best = max(psnr(relight(gbuffer, rig, march=march).image, pair.truth) for rig in rigs)
        scores[f"ratio at its best ambient, shadows, {name}"] = best
        scores[f"linear x N.L, {name}"] = psnr(multiply(gbuffer, pair.lights, gamma=False), pair.truth)
        for mode in ("ratio", "albedo"):
            for shadow in (0, 1):
                relit = relight(gbuffer, pair.lights, mode=mode, shadow=shadow, march=march)
                label = f"{mode}{', shadows' if shadow else ''}, {name}"
                scores[label] = psnr(relit.image, pair.truth)
    return scores


def interval(values: list[float]) -> float:
    """Compute half of the 95 % confidence interval of the mean."""
    return 1.96 * stdev(values) / len(values) ** 0.5


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1)[None]


def main(
    model: Annotated[Path | None, typer.Option(help="Folder of a model written by `package`.")] = None,
    count: Annotated[int, typer.Option(help="Number of scenes, at least two.")] = 100,
    size: Annotated[int, typer.Option(help="Height and width in pixels; the embedded model works at 64.")] = 64,
    seed: Annotated[int, typer.Option(help="Random seed of the lamps.")] = 0,
    split: Annotated[str, typer.Option(help="test, or val before all choices are made.")] = "test",
) -> None:
    """Print PSNR in dB with the 95 % interval of its mean, and the gain over `sRGB x N.L` with the same maps."""
    pipe = IntrinsicLoRAPipeline.from_pretrained(*([model] if model else []))
    pipe.set_progress_bar_config(disable=True)
    pairs = [make_pair(split, i, size, seed) for i in range(count)]
    maps = extract(pipe, pairs)
    rows = [score(pair, m) for pair, m in zip(pairs, maps, strict=True)]
    print(f"{split} split, {count} scenes at {size} px, lamps of seed {seed}\n")
    print("| | PSNR | gain over sRGB x N.L |\n|---|---|---|")
    for label in rows[0]:
        values = [row[label] for row in rows]
        kind = label.partition(", ")[2].removeprefix("shadows, ")
        gain = ""
        if kind and label != f"sRGB x N.L, {kind}":
            gains = [row[label] - row[f"sRGB x N.L, {kind}"] for row in rows]
            gain = f"{mean(gains):+.2f} ± {interval(gains):.2f}"
        print(f"| {label} | {mean(values):.2f} ± {interval(values):.2f} | {gain} |")
    for name, buffers in (
        ("true", [pair.gbuffer for pair in pairs]),
        ("extracted", [make_gbuffer(pair.photo, **m) for pair, m in zip(pairs, maps, strict=True)]),
    ):
        residuals = torch.cat([b.residual.flatten() for b in buffers])
        print(
            f"\nresidual of albedo x shading, {name} maps: mean {residuals.mean():.4f}, "
            f"median {residuals.median():.4f}"
        )


if __name__ == "__main__":
    typer.run(main)
