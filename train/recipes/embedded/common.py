"""Functions shared by the stages of the embedded model: networks, learning-rate schedule, checkpoints."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ....intrinsics.files import atomic_path
from ...scoring.metrics import albedo_metrics, depth_metrics, normal_metrics, shading_metrics
from .recipes import Recipe

T = TypeVar("T")
R = TypeVar("R")


def process_map(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield `function(item)` in the order of `items`, in `workers` processes of one thread; 1: in this one."""
    if workers == 1:
        yield from map(function, items)
        return
    spawn = get_context("spawn")  # fork and OpenMP do not mix; one thread each: see `join_world`
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(function, items)


def build_vae(recipe: Recipe) -> AutoencoderKL:
    """Build the autoencoder, with more latent channels than Stable Diffusion's four to represent normal maps."""
    levels = len(recipe.vae_widths)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.vae_widths,
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=recipe.vae_groups,
        sample_size=recipe.size,
        mid_block_add_attention=recipe.vae_attention,
    )


def build_unet(recipe: Recipe) -> UNet2DConditionModel:
    """Build the UNet, with cross attention at every level (Stable Diffusion has none at its deepest level)."""
    unet = UNet2DConditionModel(
        sample_size=recipe.latent_size,
        in_channels=recipe.latent_channels,
        out_channels=recipe.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=(2, 4, 6),  # diffusers reads this as the number of heads
        cross_attention_dim=128,
    )
    # Plain attention trains 2.4 times faster on CPU than fused SDPA, whose CPU backward pass is slow.
    unet.set_attn_processor(AttnProcessor())
    return unet


def build_text_encoder(vocab_size: int, bos: int, eos: int) -> CLIPTextModel:
    """Build a CLIP text model of two layers, which is trained together with the UNet."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            projection_dim=128,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def build_scheduler(prediction_type: str) -> DDPMScheduler:
    """Build Stable Diffusion's noise schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200, decay: float = 0.25) -> float:
    """Compute the learning rate: warm-up, constant, then linear to zero over the last share `decay` of the steps.

    With a constant plateau a run can be resumed with another number of steps.
    """
    return peak * min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / (decay * steps)))


def join_world() -> tuple[int, int]:
    """Return (rank, world size) under torchrun, (0, 1) without it.

    Use one single-threaded process per core on a shared CPU: OpenMP threads wait for each other at every operator as
    soon as other processes run, whereas processes synchronise once per step.
    """
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients over all processes, in place."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for g, mean in zip(gradients, flat.div_(dist.get_world_size()).split([g.numel() for g in gradients]), strict=True):
        g.copy_(mean.view_as(g))


def endless_batches(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of indices from random permutations of `count`, endlessly."""
    while True:
        yield from torch.randperm(count, generator=generator).split(batch)[: count // batch]


class Average(torch.optim.swa_utils.AveragedModel):
    """Exponential moving average of a module's weights with a warm-up: decay = min(limit, (1+n)/(10+n))."""

    def __init__(self, model: nn.Module, limit: float) -> None:
        def average(mean: Tensor, value: Tensor, n: Tensor | int) -> Tensor:
            return torch.lerp(mean, value, 1 - min(limit, (1 + int(n)) / (10 + int(n))))

        super().__init__(model, avg_fn=average)


def mean_scores(maps: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Score canonical maps (N, C, H, W) per intrinsic, averaged over images; depth against `depth_metric`."""
    metrics = {"normals": normal_metrics, "depth": depth_metrics, "albedo": albedo_metrics, "shading": shading_metrics}
    scores = {}
    for name, prediction in maps.items():
        target = truth["depth_metric" if name == "depth" else name]
        rows = [
            metrics[name](p.permute(1, 2, 0).squeeze(-1).numpy(), t.permute(1, 2, 0).squeeze(-1).numpy())
            for p, t in zip(prediction.float(), target, strict=True)
        ]
        scores[name] = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    return scores


def save_checkpoint(path: Path, **state: Any) -> None:
    """Save tensors and plain values, which load with weights_only=True, atomically."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Load the last saved state, or return None for a new run."""
    return torch.load(path, weights_only=True) if path.exists() else None
