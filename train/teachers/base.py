"""What a teacher is, and what all of them need."""

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
from .table import TEACHERS

FAR_OVER_NEAR = 4.0  # the range of relight's default camera

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


@dataclass
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


def load_or_say(load: Callable[..., Any], model: str, **options: Any) -> Any:
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
                "name a folder."
            ) from error
        raise FileNotFoundError(f"{model} is not a folder here, and the hub did not give it: {reason}") from error
    except ImportError as error:
        raise ImportError(f"{model} needs torchvision to read photos: pip install torchvision") from error


def distance(depth: Tensor, disparity: bool, far_over_near: float) -> Tensor:
    """(B, 1, H, W), larger = farther, or nearer if `disparity` -> canonical distance, 0 .. 1 per image."""
    if disparity:
        return to_distance(depth, "disparity", 1.0, far_over_near)[0]
    return normalize_depth(depth)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
