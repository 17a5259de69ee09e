"""Measure time and memory of a full-size Stable Diffusion 1.5 with four LoRAs: one grouped call and four single ones.

The model is built from its published configuration with random weights; nothing is downloaded, and speed does not
depend on the weights. A single call is a call of the pipeline for one intrinsic, so that four of them encode the photo
four times and run the UNet four times on one row.

    python benchmarks/full_size.py                                         # this machine's CPU
    python benchmarks/full_size.py --device cuda --dtype float16 --repeats 10
"""

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import psutil
import torch
import typer
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics.lora import LoRA
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS
from rich.console import Console
from rich.table import Table
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

NAMES = tuple(INTRINSICS)
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # of the released LoRAs: rank 8, all 32 attention layers
RANK = 8
MIB = 2**20


@contextmanager
def built_as(dtype: torch.dtype):
    """Initialise modules directly in `dtype`, without a float32 copy."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def stable_diffusion_15(dtype: torch.dtype) -> dict[str, Any]:
    """Build the components of SD 1.5 with random weights, and a tokenizer of letters, which has the same cost."""
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with built_as(dtype):
        return {
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
            ).eval(),
            "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval(),  # the rest are defaults
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
            ).eval(),
            "tokenizer": CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=77),
            "scheduler": DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        }


def random_lora(unet: UNet2DConditionModel) -> LoRA:
    weights = {}
    for name, module in unet.named_modules():
        if ".attn" in name and name.endswith(TARGETS):
            out_features, in_features = module.weight.shape
            weights[name] = (
                torch.randn(RANK, in_features) / RANK,
                torch.randn(out_features, RANK) * 1e-3,
                float(RANK),
            )
    return LoRA(weights)


def measure(run: Callable[[], Any], device: torch.device) -> tuple[float, float, Any]:
    """Return the seconds, the peak MiB above the memory in use before, and the result of `run`.

    Memory is that of the allocator on a GPU; on a CPU the process's resident memory, sampled every 5 ms.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        result = run()
        torch.cuda.synchronize()
        return time.perf_counter() - start, (torch.cuda.max_memory_allocated() - before) / MIB, result

    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = run()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return seconds, (peak - before) / MIB, result


@torch.no_grad()
def stages(pipe: IntrinsicLoRAPipeline, rgb: torch.Tensor, calls: list[tuple[str, ...]]) -> dict:
    """Return {stage: (seconds over all calls, largest MiB of any)}; each call predicts the given intrinsics."""
    totals = {stage: (0.0, 0.0) for stage in ("encode", "unet", "decode")}

    def add(stage: str, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        seconds, mib, result = measure(run, rgb.device)
        totals[stage] = (totals[stage][0] + seconds, max(totals[stage][1], mib))
        return result

    for names in calls:
        latents = add("encode", partial(pipe.encode_image, rgb))
        clean = add("unet", partial(pipe.predict_latents, latents, names))
        for latent in clean.flatten(0, 1).split(1):  # as the pipeline does with batch_size 1
            add("decode", partial(pipe.decode_latents, latent))
    return totals


def ratio(seconds: dict[str, float]) -> str:
    return f"{seconds['single'] / seconds['grouped']:.2f}"


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    size: Annotated[int, typer.Option(help="Width and height of the photo in pixels.")] = 512,
    repeats: Annotated[int, typer.Option(help="Number of runs; with 1 there is no warm-up at full size.")] = 2,
) -> None:
    pipe = IntrinsicLoRAPipeline(**stable_diffusion_15(getattr(torch, dtype))).to(device)
    pipe.load_intrinsics({name: random_lora(pipe.unet) for name in NAMES})
    parameters = sum(x.numel() for x in pipe.unet.parameters()) / 1e6
    rgb = torch.rand(1, 3, size, size, device=device)

    kinds = {"grouped": [NAMES], "single": [(name,) for name in NAMES]}
    for calls in kinds.values():  # encodes the prompts and stacks the LoRAs
        stages(pipe, rgb if repeats > 1 else rgb[..., :64, :64], calls)
    runs = {kind: [stages(pipe, rgb, calls) for _ in range(repeats)] for kind, calls in kinds.items()}

    table = Table(title=f"SD 1.5 ({parameters:.0f} M UNet) at {size} px, {dtype} on {device}, four rank-{RANK} LoRAs")
    for column in ("stage", "one grouped call", "extra memory", "four single calls", "extra memory", "time ratio"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    total = dict.fromkeys(kinds, 0.0)
    for stage in ("encode", "unet", "decode"):
        seconds = {kind: statistics.median(run[stage][0] for run in runs[kind]) for kind in kinds}
        mib = {kind: max(run[stage][1] for run in runs[kind]) for kind in kinds}
        total = {kind: total[kind] + seconds[kind] for kind in kinds}
        cells = [x for kind in kinds for x in (f"{seconds[kind]:.3f} s", f"{mib[kind]:.0f} MiB")]
        table.add_row(stage, *cells, ratio(seconds))
    table.add_row("total", f"{total['grouped']:.3f} s", "", f"{total['single']:.3f} s", "", ratio(total))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
