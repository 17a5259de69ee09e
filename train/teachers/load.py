"""Loading of teachers by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from .base import LoadedTeacher
from .hub import depth_anything, normal_estimation, zoedepth
from .marigold import intrinsic_lora, marigold_depth, marigold_iid, marigold_normals
from .table import TEACHERS, check_options

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
        model: a folder in the library's layout, or a Hugging Face id; None for the default model. An id is downloaded
            if it is not cached, unless HF_HUB_OFFLINE is set. Only safetensors are read; no code is downloaded.
        device, dtype: of the network.
        options: options listed in the table; None values are ignored.
            far_over_near: ratio of the farthest to the nearest distance, assumed for models that predict disparity.
                Default 4.
            frame: frame of the model's normals, one of `NORMAL_FRAMES`; required except for TIPSv2.
            resolution: processing resolution in pixels, by default that of the model; 0 for the photo's size.
                Marigold: longer side; intrinsic-lora: shorter side.
            steps, ensemble, seed: Marigold's number of denoising steps (default: the model's), number of predictions
                that are combined (default 1), and random seed (default 0, the same for every picture).
            loras, base_config: as for `extract`.

    Raises:
        ValueError: an unknown teacher, an unsupported option, or a model of another kind.
        FileNotFoundError: the model was not found locally or on the hub.
    """
    given = check_options(name, options)
    if model is None and name != "intrinsic-lora":
        model = TEACHERS[name].model
    return LOADERS[name](model, torch.device(device), dtype, **given)
