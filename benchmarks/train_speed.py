"""Measure training steps per second: encoding in every step, as in the authors' script, and with cached latents.

Three kinds of step alternate with the same UNet, LoRA and optimiser in one process:

    naive   photo and label through the VAE encoder, the prompt through the text encoder, then the UNet
    cached  latents from the cache, targets sampled from the cached posterior, then the UNet
    UNet    forward and backward pass and optimiser step with latents in memory, a lower bound for any trainer

Pictures are already in memory, so the naive step does not read and resize files, unlike the authors' script.
Stable Diffusion 1.5 is built from its published configuration with random weights; nothing is downloaded, and speed
does not depend on the weights.

`--grouped` compares three ways to compute one step of four LoRAs instead:

    one by one  as in the trainer: forward and backward pass of B rows for each LoRA, then the optimiser step
    peft        one forward and backward pass of 4 x B rows; stock peft selects the LoRA of each row (`adapter_names`)
    grouped     one pass with the layers of the pipelines (`grouped_lora`)

    python benchmarks/train_speed.py                                          # the embedded model, this machine's CPU
    python benchmarks/train_speed.py --grouped
    python benchmarks/train_speed.py --model sd15 --steps 3
    python benchmarks/train_speed.py --model sd15 --device cuda --batch 4 --steps 50
"""

import ctypes
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers.utils import logging
from full_size import MIB, measure, stable_diffusion_15
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics.codec import encode
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.intrinsics.lora.grouped import grouped_lora, stack_loras
from intrinsic_lora.intrinsics.pictures import write_npz, write_png
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS
from intrinsic_lora.train.backbones.stable_diffusion import StableDiffusion
from intrinsic_lora.train.data import open_source
from intrinsic_lora.train.data.cache import cache_latents
from intrinsic_lora.train.data.sample import prepare
from intrinsic_lora.train.methods import SingleStep
from intrinsic_lora.train.scenes.render import render, sample_scene
from peft.tuners.lora import LoraLayer
from rich.console import Console
from rich.table import Table
from torch import nn

NORMALS = INTRINSICS["normals"]
PICTURES_PER_ROW = 4  # pictures in the set per row of the batch
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def write_scenes(folder: Path, count: int, size: int) -> None:
    """Write rendered rooms in the layout of `intrinsic-lora render-scenes`."""
    for i in range(count):
        buffers = render(sample_scene(np.random.default_rng([0, i])), size)
        write_npz(folder / f"{i:04d}.npz", normals=buffers["normals"])
        rgb = torch.from_numpy(buffers["rgb_linear"]).permute(2, 0, 1)  # (3, H, W)
        write_png(folder / f"{i:04d}_rgb.png", linear_to_srgb(rgb))


def mib(*modules: nn.Module) -> float:
    return sum(x.numel() * x.element_size() for module in modules for x in module.parameters()) / MIB


def return_freed_memory() -> None:
    """On Linux, return memory kept by the C library to the system, so that resident memory shows the next peak."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def compare_grouped(backbone: StableDiffusion, timestep: int, batch: int, size: int, steps: int, rank: int) -> None:
    """Compute one step of all LoRAs of `backbone` in three ways; print time, memory and differences of gradients."""
    names, unet, device = list(backbone.intrinsics), backbone.unet, backbone.device
    count = len(names)
    torch.manual_seed(0)
    for name in names:
        backbone.add_lora(name, rank, rank, TARGETS, seed=0)
        for b in backbone.lora_parameters(name)[1::2]:
            b.data = 0.01 * torch.randn_like(b)  # with zeros, A would have no gradient
    parameters = {name: backbone.lora_parameters(name) for name in names}
    everything = [p for group in parameters.values() for p in group]
    optimizer = torch.optim.AdamW(everything, lr=1e-6)
    side = size // backbone.downsample
    image = torch.randn(batch, backbone.latent_channels, side, side, device=device)  # (B, C, h, w)
    targets = torch.randn(count, *image.shape, device=device)  # (T, B, C, h, w)
    text = torch.cat([backbone.prompts[name].expand(batch, -1, -1) for name in names])  # (T*B, tokens, width)
    layers = {key: layer for key, layer in unet.named_modules() if isinstance(layer, LoraLayer)}
    rows = [name for name in names for _ in range(batch)]

    def send_rows(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:  # as in PeftModel
        return args, kwargs | {"adapter_names": rows}

    def all_rows() -> torch.Tensor:
        t = torch.full((count * batch,), timestep, device=device)
        latents = image.to(backbone.dtype).repeat(count, 1, 1, 1)  # (T*B, C, h, w)
        predicted = unet(latents, t, text).sample.float().unflatten(0, (count, batch))
        return sum(F.mse_loss(predicted[i], targets[i]) for i in range(count))

    def one_by_one() -> None:
        for i, name in enumerate(names):
            backbone.activate(name)
            F.mse_loss(backbone.predict(image, name, timestep), targets[i]).backward()

    def by_peft() -> None:
        all_rows().backward()

    def by_groups() -> None:
        loras = [
            {key: (x.lora_A[name].weight, x.lora_B[name].weight, x.lora_alpha[name]) for key, x in layers.items()}
            for name in names
        ]
        with grouped_lora(unet, stack_loras(loras, device, backbone.dtype)):
            loss = all_rows()
        loss.backward()

    kinds: dict[str, Callable[[], None]] = {"one by one": one_by_one, "peft": by_peft, "grouped": by_groups}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory: dict[str, float] = {}
    gradients: dict[str, torch.Tensor] = {}
    for turn in range(steps + 1):  # alternating; the first step is a warm-up and measures memory and gradients
        for kind, backward in kinds.items():
            backbone.activate(None)  # reset the adapters after the previous way
            hooks = []
            if kind == "peft":
                for layer in layers.values():
                    layer.enable_adapters(True)
                    layer.set_adapter(names)
                    hooks.append(layer.register_forward_pre_hook(send_rows, with_kwargs=True))
                backbone._active = "all"
            for p in everything:
                p.requires_grad_(True)

            def step(backward: Callable[[], None] = backward) -> None:
                backward()
                for group in parameters.values():
                    nn.utils.clip_grad_norm_(group, 1.0)
                optimizer.step()

            optimizer.zero_grad(set_to_none=True)
            if turn == 0:
                backward()
                gradients[kind] = torch.cat([p.grad.flatten() for p in everything])
                optimizer.zero_grad(set_to_none=True)
                return_freed_memory()
            time_taken, peak, _ = measure(step, device)
            if turn == 0:
                memory[kind] = peak
            else:
                seconds[kind].append(time_taken)
            for hook in hooks:
                hook.remove()

    first = "one by one"
    table = Table(
        title=f"{count} LoRAs of rank {rank}, {size} px, batch {batch} each, {backbone.dtype}, {device}"
        + (f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else "")
        + f", {steps} steps of each"
    )
    for column in ("step", "fastest", "median", "slowest", "against one by one", "peak above", "gradients differ by"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for kind, times in seconds.items():
        error = (gradients[kind] - gradients[first]).norm() / gradients[first].norm()
        table.add_row(
            kind,
            *(f"{x:.3f} s" for x in (min(times), statistics.median(times), max(times))),
            f"{min(times) / min(seconds[first]):.2f}",
            f"{memory[kind]:.0f} MiB",
            f"{error:.1e}",
        )
    Console(width=120).print(table)


def main(
    model: Annotated[Literal["embedded", "sd15"], typer.Option(help="Base model.")] = "embedded",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Precision of the base: float32 (as the authors) or bfloat16.")
    ] = "float32",
    batch: Annotated[int | None, typer.Option(help="Batch size; default 16 for embedded, 1 for sd15.")] = None,
    size: Annotated[int | None, typer.Option(help="Size in pixels; default 64 for embedded, 512 for sd15.")] = None,
    steps: Annotated[int, typer.Option(help="Number of measured steps of each kind.")] = 20,
    rank: Annotated[int, typer.Option(help="Rank of the LoRA on the attention layers.")] = 8,
    grouped: Annotated[bool, typer.Option("--grouped", help="Compare steps of four LoRAs instead.")] = False,
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    precision, where = getattr(torch, dtype), torch.device(device)
    batch = batch or {"embedded": 16, "sd15": 1}[model]
    size = size or {"embedded": 64, "sd15": 512}[model]
    timestep = {"embedded": 50, "sd15": 999}[model]
    pipe = (
        IntrinsicLoRAPipeline.from_pretrained()
        if model == "embedded"
        else IntrinsicLoRAPipeline(**stable_diffusion_15(precision))
    )
    text_encoder = pipe.text_encoder.to(where, precision).eval().requires_grad_(False)
    ids = pipe.tokenizer(
        NORMALS.prompt, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids.to(where)  # (1, tokens)
    with torch.no_grad():
        prompt = text_encoder(ids)[0]  # (1, tokens, width)
    taught = list(INTRINSICS.values()) if grouped else [NORMALS]
    if model == "embedded":
        backbone = StableDiffusion.load(None, taught, dtype=precision, device=where)
    else:
        pipe.vae.to(where, torch.float32)
        pipe.unet.to(where)
        prompts = {intrinsic.name: prompt for intrinsic in taught}  # speed does not depend on their content
        backbone = StableDiffusion(pipe.unet, pipe.vae, pipe.scheduler, prompts, {}, taught, model)
    if grouped:
        compare_grouped(backbone, timestep, batch, size, steps, rank)
        return
    backbone.add_lora("normals", rank, rank, TARGETS, seed=0)
    parameters = backbone.lora_parameters("normals")
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    method = SingleStep(backbone, timestep)
    unet, vae, scale = backbone.unet, backbone.vae, backbone.scaling_factor

    with tempfile.TemporaryDirectory() as folder:
        count = PICTURES_PER_ROW * batch
        (scenes := Path(folder) / "scenes").mkdir()
        write_scenes(scenes, count, size)
        source = open_source("folder", scenes, [NORMALS])
        start = time.perf_counter()
        cache = cache_latents(source, backbone, backbone.encode_target, Path(folder) / "cache", size, [NORMALS])
        caching = (time.perf_counter() - start) / count
        samples = [prepare(source[i], size) for i in range(count)]
        photos = torch.stack([sample.photo for sample in samples]).to(where, precision)  # (N, 3, S, S)
        labels = torch.stack([encode(sample.labels["normals"][None], NORMALS)[0] for sample in samples])
        labels = labels.to(where, precision)  # (N, 3, S, S)
        vae.to(precision)  # the naive loop may encode in the base's precision; the cached one no longer uses the VAE
        generator = torch.Generator().manual_seed(0)
        generators = [torch.Generator().manual_seed(row) for row in range(batch)]

        def learn(loss: torch.Tensor) -> float:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        def forward(latents: torch.Tensor, target: torch.Tensor, text: torch.Tensor) -> float:
            t = torch.full((batch,), timestep, device=where)
            with torch.autocast(where.type, precision, enabled=precision is not torch.float32):
                predicted = unet(latents, t, text.expand(batch, -1, -1)).sample
            return learn(F.mse_loss(predicted.float(), target.float()))

        def naive() -> float:
            chosen = torch.randperm(count, generator=generator)[:batch]
            with torch.no_grad():
                latents = vae.encode(photos[chosen] * 2 - 1).latent_dist.mode() * scale
                target = vae.encode(labels[chosen] * 2 - 1).latent_dist.sample() * scale
                text = text_encoder(ids.expand(batch, -1))[0]
            return forward(latents, target, text)

        def cached() -> float:
            chosen = torch.randperm(count, generator=generator)[:batch]
            with torch.autocast(where.type, precision, enabled=precision is not torch.float32):
                loss = method.loss(cache.batch(chosen.tolist()), "normals", generators)
            return learn(loss)

        rows = torch.arange(batch).tolist()
        constant = cache.batch(rows)
        image, mean = (constant[key].to(where, precision) for key in ("image", "normals_mean"))  # (B, C, h, w)

        def bare() -> float:
            return forward(image, mean, prompt)

        loops: dict[str, Callable[[], float]] = {"naive": naive, "cached": cached, "UNet": bare}
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        memory: dict[str, float] = {}
        for name, loop in loops.items():  # the first step of each is a warm-up and measures memory
            return_freed_memory()
            memory[name] = measure(loop, where)[1]
        for _ in range(steps):
            for name, loop in loops.items():  # alternating, so that other processes affect all equally
                seconds[name].append(measure(loop, where)[0])

    training = mib(unet) + 3 * sum(x.numel() * 4 for x in parameters) / MIB  # gradients and Adam's two moments
    resident = {"naive": training + mib(vae, text_encoder), "cached": training, "UNet": training}
    # Other processes only add time, so the fastest step is the best estimate.
    fastest = {name: min(times) for name, times in seconds.items()}
    trained = sum(x.numel() for x in parameters) / 1e6
    table = Table(
        title=f"{model}: {(sum(x.numel() for x in unet.parameters())) / 1e6 - trained:.0f} M UNet, rank {rank} on "
        f"attention, {size} px, batch {batch}, {dtype}, {device}"
        + (f" ({torch.get_num_threads()} threads)" if where.type == "cpu" else "")
        + f", {steps} steps of each"
    )
    for column in (
        "step",
        "fastest",
        "median",
        "slowest",
        "steps/s (fastest)",
        "against naive",
        "weights",
        "peak above",
    ):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, times in seconds.items():
        table.add_row(
            name,
            *(f"{x:.3f} s" for x in (fastest[name], statistics.median(times), max(times))),
            f"{1 / fastest[name]:.3f}",
            f"{fastest['naive'] / fastest[name]:.2f}",
            f"{resident[name]:.0f} MiB",
            f"{memory[name]:.0f} MiB",
        )
    console = Console(width=120)
    console.print(table)
    saved = (fastest["naive"] - fastest["cached"]) / batch  # per picture
    console.print(
        f"cached is {100 * (fastest['cached'] / fastest['UNet'] - 1):.1f} % above the UNet alone. Filling the cache: "
        f"{caching:.3f} s per picture" + (f", amortised after {caching / saved:.1f} epochs." if saved > 0 else ".")
    )


if __name__ == "__main__":
    typer.run(main)
