"""Models that label photos, each behind one call: pictures in, canonical maps of the pictures' size out."""

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
    given = check_options(name, options)
    if model is None and name != "intrinsic-lora":
        model = TEACHERS[name].model
    return LOADERS[name](model, torch.device(device), dtype, **given)
