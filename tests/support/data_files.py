"""Rendered scenes and data files for tests, written by numpy, Pillow, imagecodecs and OpenEXR, never by our code."""

import io
import json
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
import OpenEXR
import torch
from intrinsic_lora.intrinsics import Intrinsic
from intrinsic_lora.train.data import open_source
from intrinsic_lora.train.data.sample import Sample
from intrinsic_lora.train.scenes.render import render, sample_scene
from PIL import Image

SIZE = 24


def to_srgb(x: np.ndarray) -> np.ndarray:
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)


@cache
def rendered_scenes() -> list[dict[str, np.ndarray]]:
    """Four rendered scenes, arrays (H, W, C) or (H, W); shading at most 1, so that a picture can hold it."""
    rendered = [render(sample_scene(np.random.default_rng([5, i])), SIZE) for i in range(4)]
    for scene in rendered:
        scene["shading"] = scene["shading"] / max(1.0, scene["shading"].max())
    return rendered


def rgb8(scene: dict[str, np.ndarray]) -> np.ndarray:
    return np.round(to_srgb(np.clip(scene["rgb_linear"], 0, 1)) * 255).astype(np.uint8)


def png8(x: np.ndarray) -> bytes:
    """(H, W) or (H, W, C) in [0, 1]."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def png16(x: np.ndarray) -> bytes:
    return imagecodecs.png_encode(np.round(np.clip(x, 0, 1) * 65535).astype(np.uint16))


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def exr(path: Path, layer: str, components: str, x: np.ndarray) -> None:
    channels = {f"{layer}.{c}" if layer else c: np.ascontiguousarray(p) for c, p in
                zip(components, np.moveaxis(np.atleast_3d(x).astype(np.float32), -1, 0), strict=True)}  # fmt: skip
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, channels).write(str(path))


def put(path: Path, data: bytes | np.ndarray | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, np.ndarray):
        Image.fromarray(data).save(path)
    else:
        path.write_bytes(json.dumps(data).encode() if isinstance(data, dict) else data)
    return path


def one(root: Path, *intrinsics: Intrinsic) -> Sample:
    source = open_source("folder", root, intrinsics)
    assert len(source) == 1
    return source[0]


def hwc(x: torch.Tensor) -> np.ndarray:
    return x.permute(1, 2, 0).numpy().squeeze()
