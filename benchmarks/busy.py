"""Measure extract, relight and train with sleeping and spinning threads, on an idle and on a busy machine.

The command line lets idle threads of torch sleep (`cli/threads.py`); by default libgomp's threads spin. Every round
runs all cases in turn, so that other processes affect them equally. Results are medians over rounds of wall-clock and
CPU seconds, and their ratios.

    python benchmarks/busy.py --rounds 5
    taskset -c 0,1 python benchmarks/busy.py      # as on a machine of two cores
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from intrinsic_lora.cli.threads import affinity_cores
from rich.console import Console
from rich.table import Table

COMMAND = (sys.executable, "-m", "intrinsic_lora.cli.main")
# The widest layers of Stable Diffusion 1.5 at 512 px. The commands run the embedded model, whose layers are small, so
# that waiting has a larger share of their time.
LAYERS = """
from intrinsic_lora.cli.threads import configure_threads
configure_threads()
import torch
from torch import nn
block = (nn.GroupNorm(32, 320), nn.SiLU(), nn.Conv2d(320, 320, 3, padding=1))
x = torch.randn(1, 320, 64, 64)
with torch.inference_mode():
    for _ in range(60):
        x = nn.Sequential(*block)(x)
"""
SPINNING, SLEEPING = "spinning", "sleeping"
ENVIRONMENTS: dict[str, dict[str, str]] = {
    # libgomp's default; takes precedence over the OMP_WAIT_POLICY set by the command line.
    SPINNING: {"GOMP_SPINCOUNT": "300000"},
    SLEEPING: {},
}
NAMES = ("extract", "relight", "train", "layers")
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "MKL_"))}


def command_line(name: str, scenes: Path, out: Path) -> list[str]:
    """Return the command for the scenes of `render-scenes`, with results in the folder `out`."""
    photos = [str(path) for path in sorted(scenes.glob("*_rgb.png"))]
    match name:
        case "layers":
            return [sys.executable, "-c", LAYERS]
        case "extract":
            return [*COMMAND, name, *photos[:5], "--out", str(out)]
        case "relight":
            return [*COMMAND, name, photos[0], "--maps", str(scenes), "--out", str(out / "turn.webp"), "--orbit", "4"]
    settings = f"data.path={scenes} data.resolution=128 data.val_count=2 out={out} intrinsics=[normals]"
    return [*COMMAND, name, *settings.split(), "batch_size=4", "max_steps=3", "validate_every=3", "log=files"]


def run(arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Measure wall-clock and CPU seconds of one command."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(arguments, env=CLEAN | environment, check=True, capture_output=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, cpu


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run `count` processes that keep a core busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Number of runs of each case; medians are printed.")] = 3,
    only: Annotated[list[str], typer.Option(help=f"Cases: any of {', '.join(NAMES)}.")] = list(NAMES),  # noqa: B006
    processes: Annotated[int, typer.Option(min=1, help="Number of busy processes.")] = affinity_cores(),
) -> None:
    console = Console(stderr=True)
    taken: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
    with TemporaryDirectory() as temporary:
        scenes = Path(temporary, "scenes")
        run([*COMMAND, "render-scenes", "--out", str(scenes), "--count", "12", "--seed", "0", "--size", "128"], {})
        for number, load, name, threads in product(range(rounds), (0, processes), only, (SPINNING, SLEEPING)):
            with TemporaryDirectory() as out, busy(load):
                seconds = run(command_line(name, scenes, Path(out)), ENVIRONMENTS[threads])
            taken.setdefault((name, load, threads), []).append(seconds)
            console.print(f"round {number + 1}, {load} busy, {name}, {threads}: {seconds[0]:.1f} s")
    print(f"{affinity_cores()} cores, load average {os.getloadavg()[0]:.1f}, our own included")
    table = Table("command", "busy processes")
    for kind, threads in product(("wall", "CPU"), (SPINNING, SLEEPING, "ratio")):
        table.add_column(f"{kind}, {threads}", justify="right")
    for name, load in product(only, (0, processes)):
        pairs = list(zip(taken[name, load, SPINNING], taken[name, load, SLEEPING], strict=True))
        row = []
        for kind in (0, 1):
            row += [f"{median(pair[i][kind] for pair in pairs):.1f} s" for i in (0, 1)]
            row.append(f"{median(spinning[kind] / sleeping[kind] for spinning, sleeping in pairs):.2f}")
        table.add_row(name, str(load), *row)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
