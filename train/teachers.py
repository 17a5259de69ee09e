"""Models that label photos, each behind one call: pictures in, canonical maps of the pictures' size out.

Every conversion from a model's own convention is in this file and calls `intrinsics`; the source of each is stated
where it is made.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from huggingface_hub.constants import HF_HUB_OFFLINE
from PIL import Image
from torch import Tensor, nn

from ..intrinsics.color import srgb_to_linear
from ..intrinsics.depth import normalize_depth, to_distance
from ..intrinsics.normals import NORMAL_FRAMES, convert_normals, normalize_normals
from .teacher_table import TEACHERS

FAR_OVER_NEAR = 4.0  # the range of relight's default camera
# Frames of the models that AutoModelForNormalEstimation knows. TIPSv2: read off the pictures in its authors' notebook
# (google-deepmind/tips, pytorch/TIPS_decoder_inference.ipynb), which draws (n + 1) / 2: floors are bright green, walls
# that face the camera have full blue, a wall on the left that faces right has low red. Sapiens2 documents no more
# than "camera coordinate frame", so it is not here.
MODEL_FRAMES = {"tipsv2_dpt": "controlnet"}

Maps = dict[str, Tensor]


class Teacher(Protocol):
    """What `label` needs.

    Attributes:
        name: key of `TEACHERS`, or any other for a teacher of your own.
        model: which weights: a hub id, or the name of a folder.
        version: 16 hexadecimal digits that change when the weights change.
        licence: of the weights.
        library: what ran it, and its version.
        intrinsics: the maps it makes.
        settings: everything else that changes its maps; plain JSON.
    """

    name: str
    model: str
    version: str
    licence: str
    library: str
    intrinsics: tuple[str, ...]
    settings: dict[str, Any]

    def __call__(self, pictures: Tensor) -> Maps:
        """(B, 3, H, W) sRGB in [0, 1] -> {intrinsic: canonical map (B, C, H, W), float32 on the CPU}.

        The maps of a picture do not depend on the others in its batch.
        """
        ...


@dataclass(frozen=True)
class LoadedTeacher:
    """A `Teacher` around a function that draws."""

    name: str
    model: str
    version: str
    licence: str
    library: str
    intrinsics: tuple[str, ...]
    settings: dict[str, Any]
    draw: Callable[[Tensor], Maps]

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Maps:
        return {name: map.float().cpu() for name, map in self.draw(pictures).items()}


def load_teacher(
    name: str,
    model: str | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> LoadedTeacher:
    """Load one of `TEACHERS`.

    Args:
        name: key of `TEACHERS`.
        model: a folder in the library's own layout, or a Hugging Face id; None for the table's. An id is downloaded
            when the cache lacks it, unless HF_HUB_OFFLINE is set. Only safetensors are read, no code is fetched.
        device, dtype: of the network.
        options: those the table names; None counts as not given.
            far_over_near: distance of the farthest point, in multiples of the nearest one's, which a model that draws
                disparity does not know. Default 4.
            frame: of the model's normals, one of `NORMAL_FRAMES`; default: known for TIPSv2, else it must be said.
            resolution: at which the model sees the photo, default the model's own; 0 for the photo's size. Marigold:
                longer side; intrinsic-lora: shorter side.
            steps, ensemble, seed: Marigold's denoising steps (default the model's own), predictions that are averaged
                (default 1), and the noise it starts from (default 0, the same for every picture).
            loras, base_config: as for `extract`.

    Raises:
        ValueError: an unknown teacher, an option it does not take, a model of another kind.
        FileNotFoundError: the model is neither here nor to be had.
    """
    if name not in TEACHERS:
        raise ValueError(f"Unknown teacher {name!r}; choose from {', '.join(TEACHERS)}.")
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in TEACHERS[name].options:
            takes = ", ".join(TEACHERS[name].options) or "none"
            raise ValueError(f"The teacher {name} takes no {key}; its options: {takes}.")
    if model is None and name != "intrinsic-lora":
        model = TEACHERS[name].model
    return LOADERS[name](model, torch.device(device), dtype, **given)


# transformers


def zoedepth(model: str, device: torch.device, dtype: torch.dtype) -> LoadedTeacher:
    """The paper's depth teacher: metric distance, averaged with that of the mirrored photo as its authors do."""
    from transformers import ZoeDepthForDepthEstimation

    net, processor = _from_transformers(ZoeDepthForDepthEstimation, model, device, dtype, backend="pil")

    def draw(pictures: Tensor) -> Maps:
        x = _network_input(net, processor, pictures)  # (B, 3, h, w)
        metres = (net(pixel_values=x).predicted_depth + net(pixel_values=x.flip(-1)).predicted_depth.flip(-1)) / 2
        # As post_process_depth_estimation does, which needs torchvision: the photo was padded by mirroring it.
        height, width = pictures.shape[-2:]
        top, left = (int((side / 2) ** 0.5 * 3) if processor.do_pad else 0 for side in (height, width))
        metres = F.interpolate(metres[:, None].float(), (height + 2 * top, width + 2 * left), mode="bicubic")
        return {"depth": normalize_depth(metres[..., top : top + height, left : left + width])}  # (B, 1, H, W)

    return _transformers_teacher("zoedepth", model, net, dtype, {}, draw)


def depth_anything(
    model: str, device: torch.device, dtype: torch.dtype, far_over_near: float = FAR_OVER_NEAR
) -> LoadedTeacher:
    """Depth Anything 1 or 2: "relative" models draw disparity, "metric" ones distance (their configuration says)."""
    from transformers import DepthAnythingForDepthEstimation

    net, processor = _from_transformers(DepthAnythingForDepthEstimation, model, device, dtype, backend="pil")
    disparity = net.config.depth_estimation_type == "relative"

    def draw(pictures: Tensor) -> Maps:
        drawn = net(pixel_values=_network_input(net, processor, pictures))
        sizes = [tuple(pictures.shape[-2:])] * len(pictures)
        maps = processor.post_process_depth_estimation(drawn, target_sizes=sizes)
        depth = torch.stack([map["predicted_depth"][None] for map in maps])  # (B, 1, H, W)
        return {"depth": _distance(depth, disparity, far_over_near)}

    settings = {"far_over_near": float(far_over_near)} if disparity else {}
    return _transformers_teacher("depth-anything", model, net, dtype, settings, draw)


def normal_estimation(model: str, device: torch.device, dtype: torch.dtype, frame: str | None = None) -> LoadedTeacher:
    """Any model of transformers' AutoModelForNormalEstimation."""
    from transformers import AutoModelForNormalEstimation

    if frame is not None and frame not in NORMAL_FRAMES:
        raise ValueError(f"Unknown normal-map frame {frame!r}; choose from {', '.join(NORMAL_FRAMES)}.")
    net, processor = _from_transformers(AutoModelForNormalEstimation, model, device, dtype)
    source = frame or MODEL_FRAMES.get(net.config.model_type)
    if source is None:
        raise ValueError(
            f"It is not known in which frame models of the kind {net.config.model_type} draw normals: say one of "
            f"{', '.join(NORMAL_FRAMES)} (--frame), and look at the contact sheet before you train."
        )

    def draw(pictures: Tensor) -> Maps:
        drawn = net(pixel_values=_network_input(net, processor, pictures))
        sizes = [tuple(pictures.shape[-2:])] * len(pictures)
        post_process = processor.post_process_normal_estimation
        # Sapiens2 pads the photo, and must be told its size to cut the padding off.
        padded = {"source_sizes": sizes} if "source_sizes" in signature(post_process).parameters else {}
        maps = post_process(drawn, target_sizes=sizes, **padded)
        normals = torch.stack([map["normals"] for map in maps])  # (B, 3, H, W)
        return {"normals": normalize_normals(convert_normals(normals, source, "opengl"))}

    return _transformers_teacher("normal-estimation", model, net, dtype, {"frame": source}, draw)


def _from_transformers(
    kind: Any, model: str, device: torch.device, dtype: torch.dtype, **processing: Any
) -> tuple[nn.Module, Any]:
    """The network in evaluation mode, and its image processor."""
    from transformers import AutoConfig, AutoImageProcessor

    config = _load(AutoConfig.from_pretrained, model)
    wanted = getattr(kind, "config_class", None)
    if wanted is not None and config.model_type != wanted.model_type:
        raise ValueError(f"{model} is a model of the kind {config.model_type}, not {wanted.model_type}.")
    processor = _load(AutoImageProcessor.from_pretrained, model, **processing)
    net, found = _load(
        kind.from_pretrained, model, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    if found["missing_keys"]:  # they were filled with random numbers
        raise ValueError(f"{model} lacks weights of {type(net).__name__}, such as {sorted(found['missing_keys'])[0]}.")
    return net.eval().to(device), processor


def _network_input(net: Any, processor: Any, pictures: Tensor) -> Tensor:
    levels = (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
    x = processor(images=[Image.fromarray(level) for level in levels], return_tensors="pt")["pixel_values"]
    return x.to(net.device, net.dtype)  # (B, 3, h, w)


def _transformers_teacher(
    name: str,
    model: str,
    net: nn.Module,
    dtype: torch.dtype,
    settings: dict[str, Any],
    draw: Callable[[Tensor], Maps],
) -> LoadedTeacher:
    import transformers

    library = f"transformers {transformers.__version__}"
    return _teacher(name, model, [net], library, TEACHERS[name].makes, {**settings, "dtype": _name(dtype)}, draw)


# diffusers


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
        return {"depth": _distance(predict(pictures), disparity, far_over_near)}  # (B, 1, H, W)

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
    pipe = _load(kind.from_pretrained, model, dtype=dtype, use_safetensors=True)
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
        "dtype": _name(dtype),
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
    from ..diffusers_pipeline.pipeline import IntrinsicLoRAPipeline

    pipe = IntrinsicLoRAPipeline.from_pretrained(
        model, dtype=dtype, **({} if base_config is None else {"config": base_config})
    )
    if loras is not None:
        pipe.load_intrinsics(loras)
    makes = tuple(name for name in TEACHERS["intrinsic-lora"].makes if name in pipe.intrinsics)
    if not makes:
        raise ValueError(f"{model} brings no I-LoRA; say where they are with --loras.")
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)

    def draw(pictures: Tensor) -> Maps:
        maps = pipe(pictures, intrinsics=makes, processing_resolution=resolution, batch_size=len(pictures))
        return {name: maps[name] for name in makes}

    settings = {
        "resolution": pipe.config.default_processing_resolution if resolution is None else resolution,
        "dtype": _name(dtype),
    }
    loras_weights = {
        f"{name}.{layer}.{half}": tensor
        for name in makes
        for layer, (a, b, alpha) in pipe._loaded()[name].items()
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
    return _teacher(
        name, model, [pipe.unet, pipe.vae, pipe.text_encoder], library, makes, settings, draw, more_weights
    )


# both


def _teacher(
    name: str,
    model: str,
    networks: Sequence[nn.Module],
    library: str,
    makes: tuple[str, ...],
    settings: dict[str, Any],
    draw: Callable[[Tensor], Maps],
    more_weights: Mapping[str, Tensor] = MappingProxyType({}),
) -> LoadedTeacher:
    info = TEACHERS[name]
    licence = info.licence if model == info.model else f"see {Path(model).name}'s model card"
    # A folder's place says nothing to others: its weights are known by their hash.
    model = Path(model).resolve().name if Path(model).exists() else model
    return LoadedTeacher(name, model, fingerprint(networks, more_weights), licence, library, makes, settings, draw)


def fingerprint(networks: Sequence[nn.Module], more: Mapping[str, Tensor] = MappingProxyType({})) -> str:
    """16 hexadecimal digits of the SHA-256 of all weights, as they are loaded (so that the dtype counts)."""
    digest = hashlib.sha256()
    for weights in (*(network.state_dict() for network in networks), more):
        for name in sorted(weights):
            digest.update(f"{name} {tuple(weights[name].shape)} {weights[name].dtype}".encode())
            digest.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _load(load: Callable[..., Any], model: str, **options: Any) -> Any:
    """`load(model, **options)`; the paragraphs that the hub and its libraries raise become one sentence."""
    try:
        return load(model, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        if Path(model).exists():
            raise ValueError(f"{model} cannot be loaded: {reason}") from error
        if HF_HUB_OFFLINE:
            raise FileNotFoundError(
                f"{model} is not in the Hugging Face cache, and HF_HUB_OFFLINE forbids to download it: unset that, or "
                "name a folder (--model)."
            ) from error
        raise FileNotFoundError(f"{model} is not a folder here, and the hub did not give it: {reason}") from error
    except ImportError as error:
        raise ImportError(f"{model} needs torchvision to read photos: pip install torchvision") from error


def _distance(depth: Tensor, disparity: bool, far_over_near: float) -> Tensor:
    """(B, 1, H, W), larger = farther, or nearer if `disparity` -> canonical distance, 0 .. 1 per image."""
    if disparity:
        return to_distance(depth, "disparity", 1.0, far_over_near)[0]
    return normalize_depth(depth)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


LOADERS: Mapping[str, Callable[..., LoadedTeacher]] = MappingProxyType(
    {
        "zoedepth": zoedepth,
        "depth-anything": depth_anything,
        "normal-estimation": normal_estimation,
        "marigold-depth": marigold_depth,
        "marigold-normals": marigold_normals,
        "marigold-iid": marigold_iid,
        "intrinsic-lora": intrinsic_lora,
    }
)
