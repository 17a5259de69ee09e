"""The protocol of teachers, and functions shared by them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch import Tensor, nn

from ...intrinsics.depth import normalize_depth, to_distance
from ...intrinsics.files import continued
from .table import TEACHERS

FAR_OVER_NEAR = 4.0  # as in the default camera of relighting

Maps = dict[str, Tensor]


class Teacher(Protocol):
    """The interface that `label_photos` requires.

    Attributes:
        name: key of `TEACHERS`, or any other name for a custom teacher.
        model: hub id, or name of the folder, of the weights.
        version: 16 hexadecimal digits that change with the weights.
        licence: licence of the weights.
        library: name and version of the library that runs it.
        intrinsics: the maps it predicts.
        settings: all other settings that affect its maps, as JSON values.
    """

    name: str
    model: str
    version: str
    licence: str
    library: str
    intrinsics: tuple[str, ...]
    settings: dict[str, Any]

    def __call__(self, pictures: Tensor) -> Maps:
        """Predict the maps of pictures (B, 3, H, W), sRGB in [0, 1], independently of each other.

        Returns:
            {intrinsic: canonical map (B, C, H, W), float32 on the CPU}.
        """
        ...


@dataclass
class LoadedTeacher:
    """A `Teacher` that calls a function."""

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
        return {name: values.float().cpu() for name, values in self.draw(pictures).items()}


def make_teacher(
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
    # Not the path of a folder: published label.json files must not contain local paths.
    model = Path(model).resolve().name if Path(model).exists() else model
    return LoadedTeacher(name, model, fingerprint(networks, more_weights), licence, library, makes, settings, draw)


def fingerprint(networks: Sequence[nn.Module], more: Mapping[str, Tensor] = MappingProxyType({})) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of all weights as loaded, including their dtype."""
    digest = hashlib.sha256()
    for weights in (*(network.state_dict() for network in networks), more):
        for name in sorted(weights):
            digest.update(f"{name} {tuple(weights[name].shape)} {weights[name].dtype}".encode())
            digest.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def load_or_say(load: Callable[..., Any], model: str, **options: Any) -> Any:
    """Call `load(model, **options)`, converting the errors of the hub and its libraries to one sentence."""
    try:
        return load(model, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        if Path(model).exists():
            raise ValueError(f"{model} cannot be loaded: {continued(reason)}") from error
        if HF_HUB_OFFLINE:
            raise FileNotFoundError(
                f"{model} is not in the Hugging Face cache, and HF_HUB_OFFLINE forbids downloading it: unset this "
                "variable, or name a folder."
            ) from error
        raise FileNotFoundError(
            f"{model} is neither a local folder nor available from the hub: {continued(reason)}"
        ) from error
    except ImportError as error:
        raise ImportError(f"{model} requires torchvision to read photos: pip install torchvision.") from error


def distance(depth: Tensor, disparity: bool, far_over_near: float) -> Tensor:
    """Convert depth (B, 1, H, W), larger = farther (or nearer, if `disparity`), to canonical distance per image."""
    if disparity:
        return to_distance(depth, "disparity", 1.0, far_over_near)[0]
    return normalize_depth(depth)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
