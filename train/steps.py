"""The parts of an optimiser step that are plain functions.

Everything random is a function of (seed, step, place in the batch) and not of who computes it: the order of the
pictures, and the noise of every sample. So a stopped run resumes exactly, and two processes, or four
micro-batches, get the same data as one.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from .config import TrainConfig

SHARDERS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def check_launch(config: TrainConfig) -> None:
    """Raise ValueError if `accelerate launch` requests something that a run would silently ignore.

    FSDP and the like shard weights, gradients and optimiser states that one GPU cannot hold. Here the
    base is frozen and at most SDXL's UNet, and all that is trained is a few million numbers; sharding would only make
    every forward pass wait for the shards. So every process holds the whole base, and gradients are summed in one
    message.
    """
    for entry, name in SHARDERS.items():
        if os.environ.get(entry, "false").lower() == "true":
            raise ValueError(
                f"accelerate's configuration asks for {name}, which is not supported: only small LoRAs are "
                "trained and there is nothing to shard; use `accelerate launch --multi_gpu`, and if memory is short "
                "precision=bf16 or gradient_checkpointing=true."
            )
    theirs = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if theirs not in ("no", config.precision):
        raise ValueError(
            f"accelerate's configuration has mixed_precision={theirs} and the run precision={config.precision}, "
            "which decides; set precision, or use `accelerate launch --mixed_precision no`."
        )


def indices_of_step(seed: int, step: int, batch_size: int, count: int) -> Tensor:
    """Return the indices (batch_size,) of a step's samples: consecutive permutations of all, none dropped."""
    places = range(step * batch_size, (step + 1) * batch_size)  # in the endless sequence of permutations
    epochs = {place // count for place in places}
    orders = {epoch: torch.randperm(count, generator=_keyed(seed, 1, epoch)) for epoch in epochs}
    return torch.stack([orders[place // count][place % count] for place in places])


def generator_of(seed: int, step: int, row: int) -> torch.Generator:
    """Return the random generator of one row of the batch: a function of (seed, step, row)."""
    return _keyed(seed, 2, step, row)


def _keyed(*key: int) -> torch.Generator:
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def rows_of(config: TrainConfig, rank: int, world: int) -> list[Tensor]:
    """Return the rows of the batch of process `rank`, split into its micro-batches."""
    mine = torch.arange(config.batch_size).tensor_split(world)[rank]
    return [part for part in mine.tensor_split(config.accumulation) if len(part)]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate at `step`, 0-based."""
    schedule, done = config.schedule, step / config.max_steps
    warm = min(1.0, (step + 1) / schedule.warmup) if schedule.warmup else 1.0
    fall = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done}[schedule.name]
    return config.optimizer.lr * warm * fall


def build_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Build AdamW, or its 8-bit version."""
    chosen = config.optimizer
    settings: dict[str, Any] = {"lr": chosen.lr, "betas": tuple(chosen.betas), "weight_decay": chosen.weight_decay}
    if chosen.name == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **settings)
    from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports] - an optional package

    return AdamW8bit(parameters, **settings)


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of the run's mixed precision."""
    if config.precision == "no":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if config.precision == "bf16" else torch.float16)


def sum_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Sum over the processes, in place, in one message. LoRAs are small: DistributedDataParallel is not needed."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    total = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "sum")
    for parameter, summed in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = summed.view_as(parameter)


def check_finite(
    step: int, losses: dict[str, float], norms: dict[str, float], newest: Path | None, fp16: bool
) -> None:
    """Raise FloatingPointError before the optimiser would ruin the weights."""
    # In fp16 an infinite gradient is how the scaler finds its scale; it skips the step by itself.
    for what, values in (("loss", losses), ("gradient", {} if fp16 else norms)):
        for name, value in values.items():
            if not math.isfinite(value):
                last = f"the last good checkpoint is {newest}" if newest else "no checkpoint was written before"
                raise FloatingPointError(
                    f"The {what} of {name} became {value} in step {step}; {last}. Resume from it with a lower "
                    "optimizer.lr, or check the labels."
                )


@contextmanager
def averaged(average: EMAModel | None, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Put the moving average, if there is one, into the parameters within the block."""
    if average is None:
        yield
        return
    average.store(parameters)
    average.copy_to(parameters)
    try:
        yield
    finally:
        average.restore(parameters)
