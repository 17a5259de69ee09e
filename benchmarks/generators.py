"""Measure time and memory of the paper's other generators at full size, with an I-LoRA of rank 8.

Weights are random; nothing is downloaded, and neither time nor memory depends on them. Each case runs in a separate
process. Memory is the peak of its resident memory, including Python and torch (about 0.4 GiB); on a GPU that of the
allocator. CPU time is summed over cores; comparing it with the wall time shows how busy the machine was. Forward pass
and training step are for one picture.

    python benchmarks/generators.py                          # this machine's CPU
    python benchmarks/generators.py --device cuda --repeats 10
    python benchmarks/generators.py --only stylegan2-256 --only vqgan
"""

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any

import psutil
import torch
import typer
from intrinsic_lora.train.backbones.picture import PictureGenerator
from rich.console import Console
from rich.table import Table

RANK = 8
GIB = 2**30
F16_1024 = {  # of taming-transformers' vqgan_imagenet_f16_1024
    "down_block_types": ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 128, 256, 256, 512),
    "layers_per_block": 2,
    "latent_channels": 256,
    "vq_embed_dim": 256,
    "num_vq_embeddings": 1024,
    "sample_size": 256,
}


def vqgan() -> PictureGenerator:
    from diffusers import VQModel
    from intrinsic_lora.train.backbones.vqgan import VQGANBackbone

    return VQGANBackbone(VQModel(**F16_1024), [], "vqgan")  # type: ignore[arg-type]


def stylegan2(resolution: int, channel_base: int) -> PictureGenerator:
    from intrinsic_lora.train.backbones.stylegan2 import StyleGAN2Backbone
    from intrinsic_lora.train.generators.stylegan2 import StyleGAN2

    return StyleGAN2Backbone(StyleGAN2(resolution, channel_base=channel_base), [], "stylegan2")


def stylegan_xl() -> PictureGenerator:
    from intrinsic_lora.train.backbones.stylegan_xl import StyleGANXLBackbone
    from intrinsic_lora.train.generators.stylegan3 import StyleGAN3
    from intrinsic_lora.train.generators.stylegan3_layout import stylegan3_config

    return StyleGANXLBackbone(StyleGAN3(**stylegan3_config("XL", 256)), [], "stylegan-xl")


CASES: dict[str, tuple[str, int, Callable[[], PictureGenerator]]] = {
    "vqgan": ("VQGAN f16-1024", 256, vqgan),
    "stylegan2-256": ("StyleGAN2 paper256", 256, lambda: stylegan2(256, 16384)),
    "stylegan2-1024": ("StyleGAN2 config F", 1024, lambda: stylegan2(1024, 32768)),
    "stylegan-xl": ("StyleGAN-XL ImageNet", 256, stylegan_xl),
}


def peak(run: Callable[[], Any], device: torch.device) -> float:
    """Measure the peak memory of `run` in bytes; on a CPU the process's resident memory, sampled every 5 ms."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    process, done = psutil.Process(), threading.Event()
    most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return most


def measured(run: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, float]:
    """Measure the minimum CPU and wall seconds of `repeats` runs, and their peak memory in bytes."""
    times: list[tuple[float, float]] = []

    def timed() -> None:
        for _ in range(repeats):
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append((time.process_time() - cpu, time.perf_counter() - wall))

    gc.collect()
    memory = peak(timed, device)
    return {"cpu": min(t[0] for t in times), "wall": min(t[1] for t in times), "memory": memory}


def one_case(name: str, device: torch.device, repeats: int) -> dict[str, Any]:
    """Measure one case in this process."""
    torch.manual_seed(0)
    backbone = CASES[name][2]()
    backbone.model.to(device)
    total = sum(p.numel() for p in backbone.model.parameters())
    backbone.add_lora("normals", RANK, RANK, backbone.targets, seed=0)
    parameters = backbone.lora_parameters("normals")
    result: dict[str, Any] = {"total": total, "lora": sum(p.numel() for p in parameters)}
    conditions = backbone.dummy_conditions(1, backbone.resolution).to(device)
    label = torch.rand(1, 3, backbone.resolution, backbone.resolution, device=device)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def forward() -> None:
        with torch.no_grad():
            backbone.render(conditions)

    def step() -> None:
        loss = torch.nn.functional.mse_loss(backbone.render(conditions), label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    if repeats > 1:
        forward()  # warm-up
    result["forward"] = measured(forward, device, repeats)
    result["step"] = measured(step, device, repeats)
    return result


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Number of runs; the fastest is printed.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(CASES)}; may be repeated.")] = None,
    case: Annotated[str | None, typer.Option(hidden=True, help="Run one in this process, print JSON.")] = None,
) -> None:
    if case is not None:
        print(json.dumps(one_case(case, torch.device(device), repeats)))
        return
    table = Table(title=f"{device}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), rank {RANK}")
    for heading in ("generator", "pixels", "parameters", "LoRA", "share"):
        table.add_column(heading, justify="left" if heading == "generator" else "right")
    for heading in ("forward: CPU s", "wall s", "GiB", "step: CPU s", "wall s", "GiB"):
        table.add_column(heading, justify="right")
    for name in only or CASES:
        title, pixels, _ = CASES[name]
        command = [sys.executable, __file__, "--case", name, "--device", device, "--repeats", str(repeats)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        row = [title, str(pixels), f"{result['total'] / 1e6:.1f} M", f"{result['lora']:,}"]
        row.append(f"{100 * result['lora'] / result['total']:.3f} %")
        for what in ("forward", "step"):
            figures = result[what]
            row += [f"{figures['cpu']:.2f}", f"{figures['wall']:.2f}", f"{figures['memory'] / GIB:.2f}"]
        table.add_row(*row)
        print(name, json.dumps(result), file=sys.stderr, flush=True)
    Console(width=160).print(table)


if __name__ == "__main__":
    typer.run(main)
