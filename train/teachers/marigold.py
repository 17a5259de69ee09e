"""Teachers of diffusers: the Marigold pipelines, and our own.

Every conversion from a model's own convention calls `intrinsics`; its source is stated where it is made.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ...intrinsics.color import srgb_to_linear
from ...intrinsics.normals import convert_normals, normalize_normals
from .base import FAR_OVER_NEAR, LoadedTeacher, Maps, distance, dtype_name, load_or_say, make_teacher
from .table import TEACHERS


def marigold_depth(
    model: str, device: torch.device, dtype: torch.dtype, far_over_near: float = FAR_OVER_NEAR, **options: Any
) -> LoadedTeacher:
    """0 = near plane, 1 = far plane (diffusers' Marigold guide), or disparity: the model's `prediction_type` says."""
    from diffusers import MarigoldDepthPipeline

    pipe, predict, settings = _marigold(MarigoldDepthPipeline, model, device, dtype, **options)
    disparity = pipe.config.prediction_type == "disparity"
    if disparity:
        settings["far_over_near"] = float(far_over_near)

    def draw(pictures: Tensor) -> Maps:
        return {"depth": distance(predict(pictures), disparity, far_over_near)}  # (B, 1, H, W)

    return _diffusers_teacher("marigold-depth", model, pipe, TEACHERS["marigold-depth"].makes, settings, draw)


def marigold_normals(model: str, device: torch.device, dtype: torch.dtype, **options: Any) -> LoadedTeacher:
    """X right, Y up, Z to the viewer: our own frame. Source: diffusers' Marigold guide ("`X` axis points right, `Y`
    axis points up, and `Z` axis points at the viewer") and MarigoldImageProcessor.visualize_normals.
    """
    from diffusers import MarigoldNormalsPipeline

    pipe, predict, settings = _marigold(MarigoldNormalsPipeline, model, device, dtype, **options)

    def draw(pictures: Tensor) -> Maps:
        return {"normals": normalize_normals(convert_normals(predict(pictures), "opengl", "opengl"))}  # (B, 3, H, W)

    return _diffusers_teacher("marigold-normals", model, pipe, TEACHERS["marigold-normals"].makes, settings, draw)


def marigold_iid(model: str, device: torch.device, dtype: torch.dtype, **options: Any) -> LoadedTeacher:
    """Albedo and shading of the lighting models (photo = albedo * shading + residual, all linear light, shading up to
    scale), albedo of the appearance models (sRGB). Source: `target_properties` in the model's own configuration, read
    as MarigoldImageProcessor.visualize_intrinsics reads it.
    """
    from diffusers import MarigoldIntrinsicsPipeline

    pipe, predict, settings = _marigold(MarigoldIntrinsicsPipeline, model, device, dtype, **options)
    properties = pipe.target_properties
    targets = properties["target_names"]
    makes = tuple(name for name in TEACHERS["marigold-iid"].makes if name in targets)
    if not makes:
        raise ValueError(f"{model} draws {', '.join(targets)}: neither albedo nor shading.")

    def draw(pictures: Tensor) -> Maps:
        drawn = predict(pictures).unflatten(0, (len(pictures), len(targets)))  # (B, T, 3, H, W)
        maps = {}
        for name in makes:
            map = drawn[:, targets.index(name)]  # (B, 3, H, W)
            if properties[name].get("prediction_space", "srgb") == "srgb":
                map = srgb_to_linear(map)
            if name == "shading":
                map = map.mean(1, keepdim=True)  # grey, as `decode` makes it
            if properties[name].get("up_to_scale", False):
                map = map / map.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
            maps[name] = map
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
    """The pipeline, (B, 3, H, W) -> its prediction (B or B * T, C, H, W), and the settings of that."""
    pipe = load_or_say(kind.from_pretrained, model, dtype=dtype, use_safetensors=True)
    if pipe.config.get("prediction_type") not in kind.supported_prediction_types:  # diffusers would only warn
        raise ValueError(
            f"{model} predicts {pipe.config.get('prediction_type')}, and {kind.__name__} is for "
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
        # Its own generators for every picture, so that neither the batch nor the order changes a label.
        noise = [torch.Generator().manual_seed(seed + i) for _ in pictures for i in range(ensemble)]
        return pipe(
            pictures,
            num_inference_steps=settings["steps"],
            ensemble_size=ensemble,
            processing_resolution=settings["resolution"],
            batch_size=len(noise),  # all at once: the scheduler is given all generators with every part
            generator=noise,
            output_type="pt",
        ).prediction.float()

    def predict_alone(pictures: Tensor) -> Tensor:
        return torch.cat([predict(picture) for picture in pictures.split(1)])

    # An ensemble of depths is aligned by a search that magnifies the rounding differences between batches.
    return pipe, predict if ensemble == 1 else predict_alone, settings


def intrinsic_lora(
    model: str | None,
    device: torch.device,
    dtype: torch.dtype,
    resolution: int | None = None,
    loras: str | None = None,
    base_config: str | None = None,
) -> LoadedTeacher:
    """I-LoRAs as teachers, for a smaller base or another kind of generator."""
    from ...diffusers_pipeline.single_step import IntrinsicLoRAPipeline
    from ...diffusers_pipeline.sources import find_loras

    known = TEACHERS["intrinsic-lora"].makes
    found = {} if loras is None else find_loras(loras, {})
    if found and not found.keys() & set(known):
        raise ValueError(
            f"The LoRAs at {loras} draw {', '.join(found)}, and labels are of {', '.join(known)} only; use "
            "`intrinsic-lora extract` for their maps."
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
