"""Conditions: the inputs from which a generator renders a picture, stored with the pictures of `make-set`.

OUT/photos/000007.png
OUT/conditions/000007.safetensors     one tensor, and the generator's hash in the header
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...intrinsics.files import atomic_path
from ...intrinsics.lora.write import save_sorted
from ..backbones.interfaces import Named, require_encoder

FOLDER, SUFFIX = "conditions", ".safetensors"


@dataclass(frozen=True, eq=False)
class Condition:
    """The condition of one picture.

    Attributes:
        value: without a batch axis: a latent (C, h, w), codes (h, w), or styles (num_ws, w_dim).
        base: `fingerprint` of the generator, without which the value is meaningless.
        origin: further entries of the file, which describe how it was made.
    """

    value: Tensor
    base: str
    origin: dict[str, Any]


class Conditioned(Protocol):
    """A sample with a photo (3, H, W) and the generator's condition, if any."""

    @property
    def photo(self) -> Tensor: ...
    @property
    def condition(self) -> Condition | None: ...


def write_condition(path: Path, condition: Condition) -> None:
    """Write a `.safetensors` file, atomically."""
    header = {"base_hash": condition.base} | {key: json.dumps(value) for key, value in condition.origin.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save_sorted({"condition": condition.value.detach().cpu().contiguous()}, header))


def read_condition(path: Path) -> Condition:
    """Read a file written by `write_condition`; ValueError for any other file."""
    try:
        with safe_open(path, "pt") as file:
            header = dict(file.metadata() or {})
            value = file.get_tensor("condition")
        base = header.pop("base_hash")
        return Condition(value, base, {key: json.loads(text) for key, text in header.items()})
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a condition written by make-set ({error}); remove it and generate it again."
        ) from error


def check_base(condition: Condition, backbone: Named) -> None:
    """Raise ValueError if a condition belongs to another generator."""
    if condition.base != backbone.fingerprint:
        raise ValueError(
            f"The pictures were generated with the weights {condition.base}, and {backbone.name} has "
            f"{backbone.fingerprint}: train on the generator that made them, or make a set with this one."
        )


def encode_conditions(samples: Sequence[Conditioned], backbone: Named, chunk: int = 4) -> Tensor:
    """Return the conditions (N, ...) of prepared samples on the CPU: the stored ones, or encoded photos.

    Raises:
        ValueError: a stored condition belongs to another generator, or is missing and the generator has no encoder.
    """
    if all(sample.condition is None for sample in samples):
        encoder = require_encoder(backbone)
        photos = torch.stack([sample.photo for sample in samples])  # (N, 3, H, W)
        return torch.cat([encoder.encode_picture(part).cpu() for part in photos.split(chunk)])
    rows = []
    for sample in samples:
        if sample.condition is None:
            rows.append(require_encoder(backbone).encode_picture(sample.photo[None]).cpu()[0])
        else:
            check_base(sample.condition, backbone)
            rows.append(sample.condition.value)
    return torch.stack(rows)
