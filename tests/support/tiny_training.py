"""A training run with every part real and small: a tiny base on disk, rendered scenes, milliseconds a step."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics import read_lora
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.intrinsics.pictures import write_npz, write_png
from intrinsic_lora.tests.support import tiny
from intrinsic_lora.train.config import TrainConfig, load_config
from intrinsic_lora.train.scenes.render import render, sample_scene
from torch import Tensor

SIZE = 32


def write_base(folder: Path) -> Path:
    """Save the tiny Stable Diffusion of `tiny.components` as a folder."""
    pipe = IntrinsicLoRAPipeline(**tiny.components(), default_processing_resolution=SIZE)
    DiffusionPipeline.save_pretrained(pipe, folder)  # not ours: there are no LoRAs to save
    return folder


def write_scenes(folder: Path, count: int, seed: int = 0) -> Path:
    """Write scenes as `render-scenes` does."""
    folder.mkdir(parents=True)
    for i in range(count):
        buffers = render(sample_scene(np.random.default_rng([seed, i])), SIZE)
        picture = linear_to_srgb(torch.from_numpy(buffers["rgb_linear"]).permute(2, 0, 1))  # (3, H, W)
        write_png(folder / f"{i:04d}_rgb.png", picture)
        write_npz(folder / f"{i:04d}.npz", **{k: buffers[k] for k in ("normals", "depth", "albedo", "shading")})
    return folder


def config(base: Path, data: Path, out: Path, **changes: Any) -> TrainConfig:
    """Configure a run of six steps; `changes` are written as optimizer__lr=0.1."""
    settings: dict[str, Any] = {
        "base": base,
        "data.path": data,
        "data.resolution": SIZE,
        "data.val_count": 2,
        "out": out,
        "intrinsics": "[normals]",
        "lora.rank": 2,
        "optimizer.lr": 1e-2,
        "batch_size": 4,
        "max_steps": 6,
        "checkpoint_every": 2,
        "validate_every": 3,
        "log": "files",
    } | {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(None, None, [f"{key}={value}" for key, value in settings.items()])


def weights(file: Path) -> dict[str, Tensor]:
    """All tensors of a LoRA file, by module and half."""
    lora = read_lora(file)
    return {f"{name}.{half}": pair[i] for name, pair in lora.weights.items() for i, half in enumerate("AB")}
