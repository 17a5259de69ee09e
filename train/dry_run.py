"""Estimate the cost of a run by a few real steps on dummy latents, without writing anything."""

import math
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..intrinsics.vocabulary import Intrinsic
from .config import TrainConfig, chosen_intrinsics
from .data.cache import cache_bytes
from .methods import Method
from .prepare import (
    add_loras,
    build_method,
    changes_of,
    check_first,
    check_packages,
    load_base,
    offload_encoders,
    open_data,
    problems_of,
    weights_bytes,
    with_targets,
)
from .steps import autocast, build_optimizer, check_launch, generator_of

TIMED_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """The estimated size and cost of a run in one process on this machine.

    Attributes:
        training, validation: number of pictures.
        variants: number of variants of each picture, by mirroring and permuted colours.
        trainable: number of parameters of all LoRAs.
        total: number of parameters of the base.
        layers: number of layers that take a LoRA, per intrinsic.
        seconds: duration of an optimiser step.
        memory: peak memory in bytes, of the GPU if there is one.
        disk: disk space in bytes.
    """

    training: int
    validation: int
    variants: int
    problems: list[str]
    trainable: int
    total: int
    layers: int
    device: str
    seconds: float
    memory: int
    disk: int

    def lines(self, config: TrainConfig) -> list[tuple[str, str]]:
        """Return the rows (what, value) to print."""
        hours = self.seconds * config.max_steps / 3600
        epochs = config.batch_size * config.max_steps / (self.training * self.variants)
        variants = f" x {self.variants} variants" if self.variants > 1 else ""
        return [
            ("pictures", f"{self.training}{variants} to train on, {self.validation} to validate on"),
            ("epochs", f"{epochs:.1f}"),
            ("layers with a LoRA", f"{self.layers} per intrinsic, {len(config.intrinsics)} intrinsics"),
            ("trainable parameters", f"{self.trainable:,}, {100 * self.trainable / self.total:.3f} % of the base"),
            ("time", f"{self.seconds:.3g} s a step on {self.device}: {_hours(hours)}, plus encoding and validation"),
            ("memory", f"{self.memory / 2**30:.2f} GiB"),
            ("disk", f"{self.disk / 2**30:.2f} GiB"),
        ]


def estimate(config: TrainConfig) -> Estimate:
    """Open the data, load the base, time a few steps; write nothing. Raises what `train` would raise."""
    from accelerate import Accelerator

    config = with_targets(config)
    intrinsics = chosen_intrinsics(config)
    check_launch(config)
    check_packages(config)
    training, held_out = open_data(config, intrinsics)
    changes_of(config)
    device = Accelerator().device
    backbone = load_base(config, intrinsics, device)
    total = sum(p.numel() for p in backbone.model.parameters())
    check_first(config, training, backbone)
    method = build_method(config, backbone)
    offload_encoders(backbone)
    add_loras(config, backbone, intrinsics)
    parameters = [p for i in intrinsics for p in backbone.lora_parameters(i.name)]
    optimizer = build_optimizer(config, parameters)
    rows = math.ceil(config.batch_size / config.accumulation)  # of a micro-batch

    def step() -> None:
        for _ in range(config.accumulation):
            batch = _dummy_batch(method, intrinsics, rows, config.data.resolution)
            batch = {key: x.to(device) for key, x in batch.items()}
            for intrinsic in intrinsics:
                backbone.activate(intrinsic.name)
                with autocast(config, device):
                    noise = [generator_of(0, 0, row) for row in range(rows)]
                    loss = method.loss(batch, intrinsic.name, noise)
                loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # a GPU works on while Python goes on; this waits

    step()
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        step()
    seconds = (time.perf_counter() - started) / TIMED_STEPS
    trainable = sum(p.numel() for p in parameters)
    data = config.data
    latents = cache_bytes(
        len(training),
        backbone,
        data.resolution,
        intrinsics,
        data.flip,
        data.color_permutations,
        label_latents=method.encode_label is not None,
        keep_maps=method.needs_maps,
    )
    return Estimate(
        training=len(training),
        validation=0 if held_out is None else len(held_out),
        variants=(2 if data.flip else 1) * (6 if data.color_permutations else 1),
        problems=problems_of(training, held_out),
        trainable=trainable,
        total=total,
        layers=len(backbone.lora_weights(intrinsics[0].name)),
        device=str(device),
        seconds=seconds,
        memory=_peak_memory(device),
        disk=latents + weights_bytes(config, trainable),
    )


def _dummy_batch(method: Method, intrinsics: list[Intrinsic], rows: int, resolution: int) -> dict[str, Tensor]:
    """Return a batch with the shapes of a real one: conditions, latents of labels, maps."""
    batch = {"image": method.backbone.dummy_conditions(rows, resolution)}
    for intrinsic in intrinsics:
        if method.encode_label is not None:
            batch |= {f"{intrinsic.name}_mean": batch["image"], f"{intrinsic.name}_std": batch["image"].abs()}
        if method.needs_maps:
            batch[intrinsic.name] = torch.rand(rows, intrinsic.channels, resolution, resolution)
    return batch


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil  # accelerate's

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kB on Linux


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"
