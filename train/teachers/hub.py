"""Teachers from transformers: ZoeDepth, Depth Anything, and models that estimate normals.

Outputs are converted from the convention of each model by `intrinsics`; comments give the source of the convention.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...intrinsics.depth import normalize_depth
from ...intrinsics.normals import convert_normals, normalize_normals
from ...intrinsics.vocabulary import NORMAL_FRAMES
from .base import FAR_OVER_NEAR, LoadedTeacher, Maps, distance, dtype_name, load_or_say, make_teacher
from .table import TEACHERS

# Frames of the models supported by AutoModelForNormalEstimation. TIPSv2: determined from the pictures in its authors'
# notebook (google-deepmind/tips, pytorch/TIPS_decoder_inference.ipynb), which draws (n + 1) / 2: floors are bright
# green, walls that face the camera have full blue, a wall on the left that faces right has low red. Sapiens2 only
# documents "camera coordinate frame" and is therefore not listed.
MODEL_FRAMES = {"tipsv2_dpt": "controlnet"}


def zoedepth(model: str, device: torch.device, dtype: torch.dtype) -> LoadedTeacher:
    """Load the paper's depth teacher: metric distance, averaged with that of the mirrored photo as by its authors."""
    from transformers import ZoeDepthForDepthEstimation

    net, processor = _from_transformers(ZoeDepthForDepthEstimation, model, device, dtype, backend="pil")

    def draw(pictures: Tensor) -> Maps:
        x = _network_input(net, processor, pictures)  # (B, 3, h, w)
        metres = (net(pixel_values=x).predicted_depth + net(pixel_values=x.flip(-1)).predicted_depth.flip(-1)) / 2
        # As in post_process_depth_estimation, which requires torchvision: the photo was padded by reflection.
        height, width = pictures.shape[-2:]
        top, left = (int((side / 2) ** 0.5 * 3) if processor.do_pad else 0 for side in (height, width))
        metres = F.interpolate(metres[:, None].float(), (height + 2 * top, width + 2 * left), mode="bicubic")
        return {"depth": normalize_depth(metres[..., top : top + height, left : left + width])}  # (B, 1, H, W)

    return _transformers_teacher("zoedepth", model, net, dtype, {}, draw)


def depth_anything(
    model: str, device: torch.device, dtype: torch.dtype, far_over_near: float = FAR_OVER_NEAR
) -> LoadedTeacher:
    """Load Depth Anything 1 or 2: by their configuration, "relative" models predict disparity, "metric" distance."""
    from transformers import DepthAnythingForDepthEstimation

    net, processor = _from_transformers(DepthAnythingForDepthEstimation, model, device, dtype, backend="pil")
    disparity = net.config.depth_estimation_type == "relative"

    def draw(pictures: Tensor) -> Maps:
        drawn = net(pixel_values=_network_input(net, processor, pictures))
        sizes = [tuple(pictures.shape[-2:])] * len(pictures)
        maps = processor.post_process_depth_estimation(drawn, target_sizes=sizes)
        depth = torch.stack([prediction["predicted_depth"][None] for prediction in maps])  # (B, 1, H, W)
        return {"depth": distance(depth, disparity, far_over_near)}

    settings = {"far_over_near": float(far_over_near)} if disparity else {}
    return _transformers_teacher("depth-anything", model, net, dtype, settings, draw)


def normal_estimation(model: str, device: torch.device, dtype: torch.dtype, frame: str | None = None) -> LoadedTeacher:
    """Load a model of transformers' AutoModelForNormalEstimation."""
    from transformers import AutoModelForNormalEstimation

    if frame is not None and frame not in NORMAL_FRAMES:
        raise ValueError(f"Unknown normal-map frame {frame!r}; choose from {', '.join(NORMAL_FRAMES)}.")
    net, processor = _from_transformers(AutoModelForNormalEstimation, model, device, dtype)
    source = frame or MODEL_FRAMES.get(net.config.model_type)
    if source is None:
        raise ValueError(
            f"The normal frame of models of the kind {net.config.model_type} is unknown: specify it, one of "
            f"{', '.join(NORMAL_FRAMES)}, and check the contact sheet before you train."
        )

    def draw(pictures: Tensor) -> Maps:
        drawn = net(pixel_values=_network_input(net, processor, pictures))
        sizes = [tuple(pictures.shape[-2:])] * len(pictures)
        post_process = processor.post_process_normal_estimation
        # Sapiens2 pads the photo and requires its size to remove the padding.
        padded = {"source_sizes": sizes} if "source_sizes" in signature(post_process).parameters else {}
        maps = post_process(drawn, target_sizes=sizes, **padded)
        normals = torch.stack([prediction["normals"] for prediction in maps])  # (B, 3, H, W)
        return {"normals": normalize_normals(convert_normals(normals, source, "opengl"))}

    return _transformers_teacher("normal-estimation", model, net, dtype, {"frame": source}, draw)


def _from_transformers(
    kind: Any, model: str, device: torch.device, dtype: torch.dtype, **processing: Any
) -> tuple[Any, Any]:
    """Load a network in evaluation mode, and its image processor."""
    from transformers import AutoConfig, AutoImageProcessor

    config = load_or_say(AutoConfig.from_pretrained, model)
    wanted = getattr(kind, "config_class", None)
    if wanted is not None and config.model_type != wanted.model_type:
        raise ValueError(f"{model} is a model of the kind {config.model_type}, not {wanted.model_type}.")
    processor = load_or_say(AutoImageProcessor.from_pretrained, model, **processing)
    net, found = load_or_say(
        kind.from_pretrained, model, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    if found["missing_keys"]:  # transformers initialises them randomly
        raise ValueError(f"{model} lacks weights of {type(net).__name__}, such as {sorted(found['missing_keys'])[0]}.")
    return net.eval().to(device), processor


def _network_input(net: Any, processor: Any, pictures: Tensor) -> Tensor:
    levels = (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
    x = processor(images=[Image.fromarray(level) for level in levels], return_tensors="pt")["pixel_values"]
    return x.to(net.device, net.dtype)  # (B, 3, h, w)


def _transformers_teacher(
    name: str,
    model: str,
    net: Any,
    dtype: torch.dtype,
    settings: dict[str, Any],
    draw: Callable[[Tensor], Maps],
) -> LoadedTeacher:
    import transformers

    library = f"transformers {transformers.__version__}"
    return make_teacher(
        name, model, [net], library, TEACHERS[name].makes, {**settings, "dtype": dtype_name(dtype)}, draw
    )
