"""Writing of I-LoRA files in the format that works without this project: kohya keys with explicit alpha.

Stock diffusers (`load_lora_weights`) and stock ComfyUI (`LoraLoaderModelOnly`) both load it completely; ComfyUI
silently skips keys written by diffusers.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..files import atomic_path
from ..vocabulary import METHODS, Intrinsic, get_intrinsic
from .header import PREFIX, LoRAHeader
from .names import foreign_module, made_for
from .read import payload_hash, read_lora

FORMAT_VERSION = "1"  # of our header entries

# ModelSpec's name of each base; SD 2.x has two (512 and 768-v), which cannot be distinguished by weights.
_ARCHITECTURES = {
    "Stable Diffusion 1.x": "stable-diffusion-v1",
    "Stable Diffusion 2.x": "stable-diffusion-v2",
    "SDXL": "stable-diffusion-xl-v1-base",
}


def write_lora(
    path: str | os.PathLike[str],
    weights: Mapping[str, tuple[Tensor, Tensor, float]],
    *,
    intrinsic: str | Intrinsic,
    method: str = "single-step",
    timestep: int = 999,
    base_model: str | None = None,
    training: Mapping[str, Any] | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a LoRA, with all metadata that is required to use it, atomically.

    Args:
        path: a `.safetensors` file in an existing folder.
        weights: {module name of diffusers: (A, B, alpha)}, as returned by `read_lora`; stored in the dtype
            of A and B. If alphas differ, the most common one is stored and the B of the others is scaled, so
            that alpha / r * B A is unchanged.
        intrinsic: the intrinsic that the LoRA predicts.
        method: "single-step" or "multi-step".
        timestep: the training timestep at which a single-step LoRA is run.
        base_model: hub id or name of the base model.
        training: resolved configuration, fingerprint of the data, metrics; stored as JSON.
        extra: more header entries, for example `modelspec.author`; they take precedence over ours.

    Raises:
        ValueError: the weights are not a valid LoRA of a Stable Diffusion UNet, the intrinsic or method is unknown,
            a header entry is too long, or the suffix is wrong.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name}: a LoRA is written as .safetensors; change the suffix.")
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}; choose from {', '.join(METHODS)}.")
    intrinsic = get_intrinsic(intrinsic)

    # Stock diffusers (0.42) misreads the module names of a kohya file with more than one alpha and applies the most
    # common one to every module. Hence a single alpha, with the ratio of the others folded into B.
    common = Counter(alpha for _, _, alpha in weights.values()).most_common(1)[0][0] if weights else 1.0
    if (module := foreign_module(weights)) is not None:
        made = made_for({name: A for name, (A, _, _) in weights.items()}, None)
        raise ValueError(f"{module!r} is not the name of a module of Stable Diffusion's UNet{made}.")
    tensors: dict[str, Tensor] = {}
    for module, (A, B, alpha) in weights.items():
        B = B if alpha == common else (alpha / common * B.double()).to(B.dtype)
        name = "lora_unet_" + module.replace(".", "_")
        if f"{name}.alpha" in tensors:
            raise ValueError(f"{module} and another module would share the key {name}; rename one of them.")
        tensors[f"{name}.lora_down.weight"] = A.detach().cpu().contiguous()
        tensors[f"{name}.lora_up.weight"] = B.detach().cpu().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(common))
    lora = read_lora(tensors, list(weights))  # raises ValueError if invalid

    ranks = {A.shape[0] for A, _, _ in lora.weights.values()}
    architecture = _ARCHITECTURES.get(lora.base_model or "", "stable-diffusion")
    header = LoRAHeader(
        version=FORMAT_VERSION,
        intrinsic=intrinsic.name,
        prompt=intrinsic.prompt,
        convention=intrinsic.raw_convention,
        channels=intrinsic.channels,
        method=method,
        timestep=timestep,
        base_model=base_model,
    )
    metadata = header.own_entries() | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",  # kohya's term for a rank per module
        "ss_network_alpha": str(float(common)),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"Intrinsic LoRA: {intrinsic.name}",
        "modelspec.trigger_phrase": intrinsic.prompt,
    }
    if training is not None:
        metadata[f"{PREFIX}training"] = json.dumps(training, default=str)
    metadata |= extra or {}
    LoRAHeader.parse(metadata, path.name)  # raises ValueError if invalid
    metadata["modelspec.hash_sha256"] = payload_hash(save(tensors))

    with atomic_path(path) as temporary:
        temporary.write_bytes(save_sorted(tensors, metadata))


def save_sorted(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Serialise tensors as a safetensors file with metadata sorted by key, so that equal input gives equal bytes.

    safetensors writes metadata in an order that varies between processes.
    """
    data = save(dict(tensors), dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # alignment of the tensors, required by the format
    return len(text).to_bytes(8, "little") + text + data[end:]
