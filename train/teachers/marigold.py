"""Teachers from diffusers: the Marigold pipelines, and our own.

Outputs are converted from the convention of each model by `intrinsics`; docstrings give the source of the convention.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ...intrinsics.color import srgb_to_linear
from ...intrinsics.normals import normalize_normals
from .base import FAR_OVER_NEAR, LoadedTeacher, Maps, distance, dtype_name, load_or_say, make_teacher
from .table import TEACHERS


def marigold_depth(
    model: str, device: torch.device, dtype: torch.dtype, far_over_near: float = FAR_OVER_NEAR, **options: Any
) -> LoadedTeacher:
    """Load Marigold for depth.

    By the model's `prediction_type` it predicts distance, 0 = near plane, 1 = far plane (diffusers' Marigold guide),
    or disparity.
    """
    from diffusers import MarigoldDepthPipeline

    pipe, predict, settings = _marigold(MarigoldDepthPipeline, model, device, dtype, **options)
    disparity = pipe.config.prediction_type == "disparity"
    if disparity:
        settings["far_over_near"] = float(far_over_near)

    def draw(pictures: Tensor) -> Maps:
        return {"depth": distance(predict(pictures), disparity, far_over_near)}  # (B, 1, H, W)

    return _diffusers_teacher("marigold-depth", model, pipe, TEACHERS["marigold-depth"].makes, settings, draw)


def marigold_normals(model: str, device: torch.device, dtype: torch.dtype, **options: Any) -> LoadedTeacher:
    """Load Marigold for normals.

    X right, Y up, Z to the viewer, as in our frame. Source: diffusers' Marigold guide ("`X` axis points right, `Y`
    axis points up, and `Z` axis points at the viewer") and MarigoldImageProcessor.visualize_normals.
    """
    from diffusers import MarigoldNormalsPipeline

    pipe, predict, settings = _marigold(MarigoldNormalsPipeline, model, device, dtype, **options)

    def draw(pictures: Tensor) -> Maps:
        return {"normals": normalize_normals(predict(pictures))}  # (B, 3, H, W)

    return _diffusers_teacher("marigold-normals", model, pipe, TEACHERS["marigold-normals"].makes, settings, draw)


def marigold_iid(model: str, device: torch.device, dtype: torch.dtype, **options: Any) -> LoadedTeacher:
    """Load Marigold for intrinsic images.

    The lighting models predict albedo and shading (photo = albedo * shading + residual, all linear light, shading up
    to scale), the appearance models albedo (sRGB). Source: `target_properties` in the model's configuration, as used
    by MarigoldImageProcessor.visualize_intrinsics.
    """
    from diffusers import MarigoldIntrinsicsPipeline

    pipe, predict, settings = _marigold(MarigoldIntrinsicsPipeline, model, device, dtype, **options)
    properties = pipe.target_properties
    targets = properties["target_names"]
    makes = tuple(name for name in TEACHERS["marigold-iid"].makes if name in targets)
    if not makes:
        raise ValueError(f"{model} predicts {', '.join(targets)}: neither albedo nor shading.")

    def draw(pictures: Tensor) -> Maps:
        drawn = predict(pictures).unflatten(0, (len(pictures), len(targets)))  # (B, T, 3, H, W)
        maps = {}
        for name in makes:
            values = drawn[:, targets.index(name)]  # (B, 3, H, W)
            if properties[name].get("prediction_space", "srgb") == "srgb":
                values = srgb_to_linear(values)
            if name == "shading":
                values = values.mean(1, keepdim=True)  # grey, as in `decode`
            if properties[name].get("up_to_scale", False):
                values = values / values.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
            maps[name] = values
        return maps

    return _diffusers_teacher("marigold-iid", model, pipe, makes, settings, draw)


def _marigold(
    kind: Any,
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    resolution: int | None = None,
    steps: int | None = None,
    ensemble: int = 1,
    seed: int = 0,
) -> tuple[Any, Callable[[Tensor], Tensor], dict[str, Any]]:
    """Load a pipeline; return it, its function (B, 3, H, W) -> prediction (B or B * T, C, H, W), and its settings."""
    pipe = load_or_say(kind.from_pretrained, model, dtype=dtype, use_safetensors=True)
    if pipe.config.get("prediction_type") not in kind.supported_prediction_types:  # diffusers would only warn
        raise ValueError(
            f"{model} predicts {pipe.config.get('prediction_type')}, but {kind.__name__} supports "
            f"{' or '.join(kind.supported_prediction_types)}."
        )
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    settings = {
        "resolution": pipe.default_processing_resolution if resolution is None else resolution,
        "steps": steps or pipe.default_denoising_steps,
        "ensemble": ensemble,
        "seed": seed,
        "dtype": dtype_name(dtype),
    }

    def predict(pictures: Tensor) -> Tensor:
        # Separate generators for every picture, so that labels depend neither on the batch nor on the order.
        noise = [torch.Generator().manual_seed(seed + i) for _ in pictures for i in range(ensemble)]
        return pipe(
            pictures,
            num_inference_steps=settings["steps"],
            ensemble_size=ensemble,
            processing_resolution=settings["resolution"],
            batch_size=len(noise),  # a single part, because the scheduler receives all generators with every part
            generator=noise,
            output_type="pt",
        ).prediction.float()

    def predict_alone(pictures: Tensor) -> Tensor:
        return torch.cat([predict(picture) for picture in pictures.split(1)])

    # The alignment of ensembles of depth amplifies rounding differences between batches.
    return pipe, predict if ensemble == 1 else predict_alone, settings


def intrinsic_lora(
    model: str | None,
    device: torch.device,
    dtype: torch.dtype,
    resolution: int | None = None,
    loras: str | None = None,
    base_config: str | None = None,
) -> LoadedTeacher:
    """Load I-LoRAs as a teacher, for a smaller base or another kind of generator."""
    from ...diffusers_pipeline.single_step import IntrinsicLoRAPipeline
    from ...diffusers_pipeline.sources import find_loras

    known = TEACHERS["intrinsic-lora"].makes
    found = {} if loras is None else find_loras(loras, {})
    if found and not found.keys() & set(known):
        raise ValueError(
            f"The LoRAs at {loras} predict {', '.join(found)}, but teachers label only {', '.join(known)}; extract "
            "their maps instead."
        )
    pipe = IntrinsicLoRAPipeline.from_pretrained(
        model, dtype=dtype, **({} if base_config is None else {"config": base_config})
    )
    if found:
        pipe.unload_intrinsics()  # those saved with the base
        pipe.load_intrinsics(found)
    makes = tuple(name for name in known if name in pipe.intrinsics)
    if not makes:
        raise ValueError(f"{model} contains no I-LoRA; specify its LoRAs.")
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)

    def draw(pictures: Tensor) -> Maps:
        output: Any = pipe(pictures, intrinsics=makes, processing_resolution=resolution, batch_size=len(pictures))
        maps = output.maps()
        return {name: maps[name] for name in makes}

    settings = {
        "resolution": pipe.config.default_processing_resolution if resolution is None else resolution,
        "dtype": dtype_name(dtype),
    }
    loras_weights = {
        f"{name}.{layer}.{half}": tensor
        for name in makes
        for layer, (a, b, alpha) in pipe.loras[name].weights.items()
        for half, tensor in (("a", a), ("b", b), ("alpha", torch.tensor(alpha)))
    }
    return _diffusers_teacher("intrinsic-lora", model or "embedded", pipe, makes, settings, draw, loras_weights)


def _diffusers_teacher(
    name: str,
    model: str,
    pipe: Any,
    makes: tuple[str, ...],
    settings: dict[str, Any],
    draw: Callable[[Tensor], Maps],
    more_weights: Mapping[str, Tensor] = MappingProxyType({}),
) -> LoadedTeacher:
    import diffusers

    library = f"diffusers {diffusers.__version__}"
    return make_teacher(
        name, model, [pipe.unet, pipe.vae, pipe.text_encoder], library, makes, settings, draw, more_weights
    )
