"""Measure the time to relight a picture, compared with a plain N.L multiply as in other tools, and memory at 4K.

OMP_NUM_THREADS=2 python benchmarks/relight.py
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Annotated

import torch
import typer
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.intrinsics.relight import GBuffer, Light, Point, Rim, Spot, Sun, make_gbuffer, relight
from rich.console import Console
from rich.table import Table
from torch import Tensor

LIGHTS = (
    Sun(az=-40, el=35),
    Point(x=0.7, y=0.2, height=0.6),
    Spot(x=0.2, y=0.2, height=1.0, aim_x=0.5, aim_y=0.6, intensity=3),
    Rim(az=150, el=20),
)
UHD = (2160, 3840)


def gbuffer(height: int, width: int, device: str = "cpu") -> GBuffer:
    """Build a ball on a floor in front of a wall, where most pixels face most lights and the ball casts shadows."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width) * width / height, indexing="ij")
    floor = (y > 0.3).float()
    depth = 1 - 0.9 * floor * (y - 0.3) / 0.7  # (H, W)
    normals = torch.stack([torch.zeros_like(x), floor, 1 - floor])  # (3, H, W)
    square = (x**2 + y**2) / 0.5**2
    bulge = (1 - square).clamp(min=0).sqrt()
    depth = torch.where(square < 1, 0.6 - 0.3 * bulge, depth)
    normals = torch.where(square < 1, torch.stack([2 * x, -2 * y, bulge]), normals)
    photo = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    photo, normals, depth = (t[None].to(device) for t in (photo, normals, depth[None]))
    return make_gbuffer(photo, normals, depth, albedo=photo)


def multiply(photo_srgb: Tensor, normals: Tensor, direction: Tensor) -> Tensor:
    """Relight as other tools do: the sRGB photo times max(N.L, 0)."""
    return photo_srgb * (normals * direction).sum(1, keepdim=True).clamp(min=0)


def milliseconds(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began)


def peak_memory(lights: int) -> None:
    """Relight once at 4K and print the growth of the process's memory in MiB."""
    maps = gbuffer(*UHD)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        relight(maps, LIGHTS[:lights], ambient=0.1)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


def main(
    size: Annotated[int, typer.Option(help="Width and height in pixels.")] = 1024,
    repeats: Annotated[int, typer.Option(help="Number of rounds; medians are printed.")] = 7,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    memory: Annotated[bool, typer.Option(help="Also measure the peak memory of a 4K picture (CPU).")] = True,
) -> None:
    """Run every case once per round, so that other processes affect all cases equally."""
    maps = gbuffer(size, size, device)
    photo_srgb = linear_to_srgb(maps.photo)
    direction = torch.tensor([0.5, 0.5, 0.7], device=device)[:, None, None]

    def case(lights: tuple[Light, ...], **options: float) -> Callable[[], object]:
        # A copy, so that the geometry is not cached from the previous round.
        return lambda: relight(replace(maps), lights, ambient=0.1, **options)

    cases: dict[str, Callable[[], object]] = {
        "plain N.L multiply": lambda: multiply(photo_srgb, maps.normals, direction)
    }
    for count in (1, 4):
        name = "one light" if count == 1 else "four lights"
        cases[f"{name}, no shadows"] = case(LIGHTS[:count], shadow=0.0)
        cases[f"{name}, shadows"] = case(LIGHTS[:count])
    cases["one light, shadows, specular, occlusion"] = case(LIGHTS[:1], specular=0.5, occlusion=1.0)

    times: dict[str, list[float]] = {name: [] for name in cases}
    with torch.no_grad():
        for number in range(repeats + 1):  # the first round is a warm-up
            for name, call in cases.items():
                took = milliseconds(call, device)
                if number:
                    times[name].append(took)

    table = Table(title=f"{size} x {size}, {device}, {torch.get_num_threads()} threads, median of {repeats}")
    for heading in ("", "ms", "times the multiply"):
        table.add_column(heading, justify="left" if not heading else "right")
    plain = times["plain N.L multiply"]
    for name, took in times.items():
        ratio = median(a / b for a, b in zip(took, plain, strict=True))
        table.add_row(name, f"{median(took):.1f}", f"{ratio:.1f}")
    console = Console()
    console.print(table)
    if memory:
        # In a separate process, because the recorded peak never decreases.
        answer = subprocess.run([sys.executable, __file__, "peak"], capture_output=True, text=True, check=True)
        console.print(
            f"Peak memory of {UHD[1]} x {UHD[0]} with four shadows, without inputs: {answer.stdout.strip()} MiB"
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["peak"]:
        peak_memory(len(LIGHTS))
    else:
        typer.run(main)
