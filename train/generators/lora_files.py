"""LoRA files of the generators other than Stable Diffusion: our own, so they say for which one network they are.

No other program loads these, so the keys are simply `<module>.lora_A.weight`, `.lora_B.weight` and `.alpha`. The
strict reader of `intrinsics.lora` reads them too; what is added here is the check of the base.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ...intrinsics.files import atomic_path
from ...intrinsics.lora import FORMAT_VERSION, PREFIX, LoRA, LoRAHeader, payload_hash, read_header, read_lora
from ...intrinsics.lora.write import save_sorted
from ...intrinsics.vocabulary import Intrinsic

METHOD = "generator"


class Base(Protocol):
    """What a LoRA file is checked against: a generator and its weights' fingerprint."""

    name: str

    @property
    def model(self) -> nn.Module: ...
    @property
    def fingerprint(self) -> str: ...


class Adaptable(Protocol):
    """A generator that takes LoRAs."""

    def add_lora(self, name: str, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None: ...
    def load_lora_weights(self, name: str, weights: Mapping[str, tuple[Tensor, Tensor, float]]) -> None: ...


def write_generator_lora(
    path: str | os.PathLike,
    weights: Mapping[str, tuple[Tensor, Tensor, float]],
    *,
    intrinsic: Intrinsic,
    family: str,
    base_model: str,
    base_hash: str,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a LoRA, atomically, with the hash of its base in the header.

    Args:
        path: a `.safetensors` file in an existing folder.
        weights: {module: (A, B, alpha)}.
        family, base_model, base_hash: of the generator: its kind, its name, its `fingerprint`.
        training: resolved configuration, fingerprint of the data, metrics; stored as JSON.
    """
    tensors: dict[str, Tensor] = {}
    for module, (a, b, alpha) in weights.items():
        tensors[f"{module}.lora_A.weight"] = a.detach().cpu().contiguous()
        tensors[f"{module}.lora_B.weight"] = b.detach().cpu().contiguous()
        tensors[f"{module}.alpha"] = torch.tensor(float(alpha))
    metadata = LoRAHeader(
        version=FORMAT_VERSION,
        intrinsic=intrinsic.name,
        prompt=intrinsic.prompt,
        convention=intrinsic.raw_convention,
        channels=intrinsic.channels,
        method=METHOD,
        base_model=base_model,
        base_hash=base_hash,
        family=family,
    ).own_entries()
    if training is not None:
        metadata[f"{PREFIX}training"] = json.dumps(training, default=str)
    metadata["modelspec.sai_model_spec"] = "1.0.0"
    metadata["modelspec.title"] = f"Intrinsic LoRA: {intrinsic.name} of {base_model}"
    metadata["modelspec.hash_sha256"] = payload_hash(save(tensors))
    with atomic_path(path) as temporary:
        temporary.write_bytes(save_sorted(tensors, metadata))


def read_generator_lora(path: str | os.PathLike, backbone: Base) -> LoRA:
    """Read all of a LoRA, or raise.

    Args:
        backbone: the generator it must have been trained on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of Stable Diffusion, or of another generator or another training of this one.
    """
    header = read_header(path)
    if header.method != METHOD:
        raise ValueError(
            f"{path} is not an I-LoRA for a generator; use a Stable Diffusion base for those of Stable Diffusion."
        )
    if header.base_hash != backbone.fingerprint:
        raise ValueError(
            f"{path} was trained on the {header.family} {header.base_model} "
            f"({header.base_hash}); {backbone.name} has other weights ({backbone.fingerprint}), for "
            "which it means nothing: name the generator it was trained on."
        )
    shapes = {
        name.replace(".base_layer", ""): tuple(module.weight.shape)
        for name, module in backbone.model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name
    }
    return read_lora(path, shapes)


def generator_loras(path: str | os.PathLike, backbone: Base) -> dict[str, LoRA]:
    """{intrinsic: LoRA} of a file, or of all LoRA files in a folder.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: as `read_generator_lora`, or two files for one intrinsic.
    """
    path = Path(path)
    files = sorted(path.glob("[!.]*.safetensors")) if path.is_dir() else [path]
    if not files or not path.exists():
        raise FileNotFoundError(f"No LoRA files found at {path}; name the folder written by training.")
    loras: dict[str, LoRA] = {}
    for file in files:
        lora = read_generator_lora(file, backbone)
        name = lora.intrinsic or file.stem
        if name in loras:
            raise ValueError(f"{file} and {loras[name].path} both draw {name}; keep one of them.")
        loras[name] = lora
    return loras


def attach_lora(backbone: Adaptable, name: str, lora: LoRA) -> None:
    """Add what `generator_loras` read to the generator and turn it on."""
    a, _, alpha = next(iter(lora.weights.values()))
    backbone.add_lora(name, len(a), alpha, [re.escape(module) for module in lora.weights], seed=0)
    backbone.load_lora_weights(name, lora.weights)
