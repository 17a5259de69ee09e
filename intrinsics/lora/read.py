"""Reading of I-LoRA files with any common family of keys into one form, without ignoring any key.

A LoRA adds `alpha / r * B @ A` to the weight of a module, with A (r, in) and B (out, r). Four families of keys are in
use (<m> is a module of diffusers' UNet, e.g. `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`):

    attn-processor  <attention>.processor.to_q_lora.down.weight   diffusers <= 0.20: the released I-LoRAs
    peft            unet.<m>.lora_A.weight                        diffusers and peft today; alpha in the header, if any
    kohya           lora_unet_<m_with_underscores>.lora_down.weight, .alpha
    ldm             diffusion_model.input_blocks.1.1.<...>.lora_up.weight   CompVis names, as ComfyUI writes them

Other libraries skip keys that they do not understand, and the only symptom is a bad picture. This reader, the only
place in the project that parses these keys, therefore returns everything in a file or raises.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import continued
from .header import MAX_BYTES, PREFIX, LoRAHeader, file_kind, named_intrinsic, open_safetensors
from .names import LDM, Spelling, foreign_kind, guess_base, made_for

MAX_NAME = 1000  # characters of a tensor's name

_PREFIXES = re.compile(r"(base_model\.model\.)?(unet\.|model\.diffusion_model\.|diffusion_model\.|lora_unet_)?")
_DOWN = r"\.lora_A(?:\.[^.]+)?\.weight|\.lora_down\.weight|[._]lora\.down\.weight"
_UP = r"\.lora_B(?:\.[^.]+)?\.weight|\.lora_up\.weight|[._]lora\.up\.weight"
_KEY = re.compile(rf"(?P<module>.+?)(?:(?P<A>{_DOWN})|(?P<B>{_UP})|(?P<alpha>(?:[._]lora)?\.alpha))")


Weights = Mapping[str, tuple[Tensor, Tensor, float]]


@dataclass(frozen=True)
class LoRA:
    """Weights and metadata of a LoRA.

    Attributes:
        weights: `{module_name: (A, B, alpha)}`; `alpha / r * B @ A` is added to each module's weight.
            A is (r, in) and B (out, r), float32 on the CPU; for a convolution A is (r, in, kh, kw) and B
            (out, r, 1, 1).
        header: metadata of the file; empty for other sources.
        format: family of keys: "attn-processor", "peft", "kohya", "ldm" or "diffusers" (plain diffusers names).
        path: the file it was read from, None for a dict.
    """

    weights: Weights
    header: LoRAHeader = field(default_factory=LoRAHeader)
    format: str = ""
    path: Path | None = None

    @property
    def intrinsic(self) -> str | None:
        """The intrinsic it predicts: from the header, else from the file name, else None."""
        return self.header.intrinsic or named_intrinsic(self.path)

    @property
    def base_model(self) -> str | None:
        """The base model it was trained on: from the header, else guessed from names and shapes, else None."""
        return self.header.base_model or guess_base({module: a.shape for module, (a, _, _) in self.weights.items()})


def read_lora(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    model: nn.Module | Mapping[str, tuple[int, ...]] | Iterable[str] | None = None,
) -> LoRA:
    """Read all weights of a LoRA, or raise.

    Args:
        source: a `.safetensors` or `.bin`/`.pt` file (detected by content; the latter must contain only tensors and
            be written by torch >= 1.6), or a state dict.
        model: the UNet of the LoRA, or {module name: weight shape}, to check all names and shapes, or its module names
            to check names only. Without it, shapes are not checked, LDM names are read with two layers per block (as
            in all Stable Diffusion models), and kohya names with unknown parts keep their `lora_unet_` form.

    Returns:
        The LoRA, with module names of diffusers. A missing alpha means alpha = r.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, contains code, is not a plain UNet LoRA, or does not fit `model` completely.
    """
    path, header = None, LoRAHeader()
    if isinstance(source, Mapping):
        where, state = "LoRA state dict", dict(source)
    else:
        where, path = str(source), Path(source)
        state, header = _load_file(path)
    _check_tensors(state, where)

    shapes = _module_shapes(model)  # {module: weight shape or None}
    parts, families = _group(state, where)
    spelling = Spelling(shapes)
    header_alpha = _header_alpha(header.entries, where)

    weights: dict[str, tuple[Tensor, Tensor, float]] = {}
    for spelt, keys in parts.items():
        for half, other in ("AB", "BA"):
            if half not in keys:
                key = keys.get(other) or keys["alpha"]
                raise ValueError(f"{where}: the other half of {key!r} is missing; the file is incomplete.")
        key = keys["A"]

        module = spelling.resolve(spelt)
        if shapes is not None and module not in shapes:
            made = f"; this LoRA was made for a {header.family}" if header.family else made_for(state, shapes)
            raise ValueError(f"{where}: the base model has no module for {key!r}{made}.")
        if module in weights:
            raise ValueError(f"{where}: {key!r} is a second LoRA for {module}; keep one of the two.")

        A, B = (state[keys[half]].detach().to("cpu", torch.float32, copy=True) for half in "AB")
        shape = shapes[module] if shapes is not None else None  # (out, in) or (out, in, kh, kw)
        ndim = len(shape) if shape else max(A.ndim, B.ndim)
        A, B = _fit(A, ndim), _fit(B, ndim)
        rank = A.shape[0]
        if not (A.ndim == B.ndim and rank == B.shape[1] and rank > 0 and B.shape[2:].numel() == 1):
            raise ValueError(f"{where}: {key!r} is {_size(A)} and its other half {_size(B)}, which do not multiply.")
        if shape and shape != (B.shape[0], *A.shape[1:]):
            raise ValueError(
                f"{where}: {key!r} is for a weight of {_size((B.shape[0], *A.shape[1:]))}, but {module} of the base "
                f"model has {_size(shape)}{made_for(state, shapes)}."
            )
        for half, values in (("A", A), ("B", B)):
            if not torch.isfinite(values).all():
                raise ValueError(f"{where}: {keys[half]!r} contains NaN or infinity; the LoRA is damaged or diverged.")
        alpha = float(state[keys["alpha"]]) if "alpha" in keys else header_alpha(module, rank)
        if not 0 < alpha <= 1000 * rank:  # also rejects NaN, and 0, which would have no effect
            key = keys.get("alpha", key)
            raise ValueError(f"{where}: the alpha of {key!r} is {alpha:g}, which is invalid for rank {rank}.")
        weights[module] = (A, B, alpha)

    return LoRA(weights, header, "+".join(sorted(families)), path)


# --- Files


def _load_file(path: Path) -> tuple[dict[str, Any], LoRAHeader]:
    """Load the raw state dict and header of a file without executing code or trusting sizes in it."""
    if file_kind(path) == "torch":
        return _load_torch(path), LoRAHeader(where=str(path))
    with open_safetensors(path, "pt") as file:
        header = LoRAHeader.parse(file.metadata() or {}, str(path))
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    # Checked for our files only, which always have it; other tools edit tensors and keep the old hash.
    ours = any(entry.startswith(PREFIX) for entry in header.entries)
    if ours and header.entries.get("modelspec.hash_sha256") != _file_hash(path):
        raise ValueError(f"{path} is damaged: its contents do not match its checksum; download or copy it again.")
    return state, header


def _load_torch(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            is_torch = any(entry.filename.endswith("/data.pkl") for entry in entries)
            # torch stores entries uncompressed and does not verify their checksums.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            small = sum(entry.file_size for entry in entries) <= path.stat().st_size
            intact = stored and small and archive.testzip() is None
        if not is_torch:
            raise ValueError("It is a zip archive without tensors.")
        if not intact:
            raise ValueError("Its contents do not match its checksums.")
        # Memory-mapped, because older torch allocates any size that the pickle claims.
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return state
    except Exception as error:  # damaged pickles raise many kinds of errors
        reason = continued(str(error).split("\n")[0]).removesuffix(".")
        if "Unsupported" in str(error) or "Weights only" in str(error):
            reason = "it holds more than tensors, and code in files is never executed"
        raise ValueError(f"{path} is not a readable torch file: {reason}; save it again as .safetensors.") from error


def payload_hash(data: bytes) -> str:
    """Compute ModelSpec's `hash_sha256` of a safetensors file's bytes: the hash of everything after the header."""
    return "0x" + hashlib.sha256(memoryview(data)[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _file_hash(path: Path) -> str:
    """Compute `payload_hash` of a file without reading it into memory."""
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return "0x" + hashlib.file_digest(file, "sha256").hexdigest()


# --- Keys


def _check_tensors(state: Any, where: str) -> None:
    """Raise ValueError unless this is a flat, non-empty dict of dense tensors of bounded size, as in a plain LoRA."""
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{where} contains no weights.")
    size = 0
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise ValueError(f"{where}: {key!r} is not a plain tensor; a LoRA file holds named tensors only.")
        if len(key) > MAX_NAME:
            raise ValueError(f"{where}: the name {key[:60]!r}... has {len(key):,} characters; this is not a LoRA.")
        size += 4 * value.numel()
        if size > MAX_BYTES:
            raise ValueError(f"{where}: {key!r} brings the tensors past {MAX_BYTES >> 30} GiB; this is not a LoRA.")
    for key in state:
        if kind := foreign_kind(key):
            raise ValueError(f"{where}: {key!r} belongs to {kind}; only plain LoRAs of the UNet can be loaded.")


def _group(state: Mapping[str, Tensor], where: str) -> tuple[dict[str, dict[str, str]], set[str]]:
    """Group keys as {module as spelt: {"A" | "B" | "alpha": key}} and return the families of keys."""
    parts: dict[str, dict[str, str]] = {}
    families = set()
    for key, value in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{where}: {key!r} is not a LoRA weight{made_for(state, None)}.")
        part = str(match.lastgroup)
        if part == "alpha":  # some trainers write integers
            fits = value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool
        else:
            fits = value.ndim in (2, 4) and value.is_floating_point()
        if not fits:
            raise ValueError(f"{where}: {key!r} is a {value.dtype} tensor of {_size(value)}, which is not LoRA data.")
        spelt = match["module"]
        prefix = _PREFIXES.match(spelt).group()  # type: ignore[union-attr]
        name = spelt[len(prefix) :]
        if part != "alpha":
            if prefix.endswith("lora_unet_"):
                families.add("kohya")
            elif ".processor." in name:
                families.add("attn-processor")
            elif LDM.match(name):
                families.add("ldm")
            else:
                families.add("peft" if "lora_A" in key or "lora_B" in key else "diffusers")
        keys = parts.setdefault(f"lora_unet_{name}" if prefix.endswith("lora_unet_") else name, {})
        if part in keys:
            raise ValueError(f"{where}: {keys[part]!r} and {key!r} are the same weight twice; keep one of them.")
        keys[part] = key
    return parts, families


# --- Values


def _module_shapes(
    model: nn.Module | Mapping[str, tuple[int, ...]] | Iterable[str] | None,
) -> dict[str, tuple[int, ...] | None] | None:
    """Return {module: weight shape} of linear layers and convolutions; shapes are None if only names are given."""
    if model is None:
        return None
    if isinstance(model, Mapping):
        return dict(model)
    if not isinstance(model, nn.Module):
        return dict.fromkeys(model)
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name, module in model.named_modules():
        module = getattr(module, "base_layer", module)  # peft wraps the layers of a UNet with loaded LoRAs
        if isinstance(module, nn.Linear):  # not .weight.shape, because quantised weights are packed
            shapes[name] = (module.out_features, module.in_features)
        elif isinstance(module, nn.Conv2d):
            shapes[name] = tuple(module.weight.shape)
    return shapes


def _fit(weight: Tensor, ndim: int) -> Tensor:
    """Convert between the weights of a 1x1 convolution and of a linear layer.

    SD 1.x and SD 2.x differ in this, and trainers write both forms.
    """
    if ndim == 2 and weight.ndim == 4 and weight.shape[2:] == (1, 1):
        return weight[:, :, 0, 0]
    if ndim == 4 and weight.ndim == 2:
        return weight[:, :, None, None]
    return weight


def _header_alpha(metadata: Mapping[str, str], where: str) -> Callable[[str, int], float]:
    """Return a function (module, rank) -> alpha, from the peft configuration in the header, else the rank.

    peft matches `alpha_pattern` as regular expressions against the end of a module's name. In practice these are
    names, and only names are accepted, because a regular expression from a file can be made to run forever.
    """
    if "lora_adapter_metadata" not in metadata:
        return lambda module, rank: float(rank)
    try:
        config = {k.removeprefix("unet."): v for k, v in json.loads(metadata["lora_adapter_metadata"]).items()}
        common = config.get("lora_alpha")
        common = None if common is None else float(common)
        patterns = {
            k.removeprefix("^").replace("\\.", "."): float(v) for k, v in config.get("alpha_pattern", {}).items()
        }
        unusable = [pattern for pattern in patterns if not re.fullmatch(r"[\w.]+", pattern)]
        if unusable:
            raise ValueError(f"{unusable[0]!r} in alpha_pattern is not a module name.")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where}: its lora_adapter_metadata cannot be read: {continued(error)}") from error

    def alpha(module: str, rank: int) -> float:
        found = [value for name, value in patterns.items() if f".{module}".endswith(f".{name}")]
        value = found[0] if found else common if common is not None else float(rank)
        return value * rank**0.5 if config.get("use_rslora") else value  # rslora scales by alpha / sqrt(r)

    return alpha


def _size(tensor: Tensor | Iterable[int]) -> str:
    return " x ".join(map(str, tensor.shape if isinstance(tensor, Tensor) else tensor)) or "one number"
