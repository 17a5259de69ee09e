"""Reads I-LoRA files: every common family of keys in, one form out, and nothing is ever dropped.

A LoRA adds `alpha / r * B @ A` to the weight of a module, with A (r, in) and B (out, r). Four spellings of that are
about (<m> is a module of diffusers' UNet, e.g. `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`):

    attn-processor  <attention>.processor.to_q_lora.down.weight   diffusers <= 0.20: the released I-LoRAs
    peft            unet.<m>.lora_A.weight                        diffusers and peft today; alpha in the header, if any
    kohya           lora_unet_<m_with_underscores>.lora_down.weight, .alpha
    ldm             diffusion_model.input_blocks.1.1.<...>.lora_up.weight   CompVis names, as ComfyUI writes them

The libraries themselves skip, or load half of, a file they do not understand, and the only symptom is a bad picture.
So nothing else in the project parses these keys, and this reader gives everything in a file or raises.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .lora_names import LDM, Spelling, foreign_kind, guess_base, made_for
from .registry import INTRINSICS, Intrinsic

MAX_BYTES = 2 << 30  # of a file and of its tensors in float32; a rank-128 LoRA on every layer of SD 1.5 has 0.54 GB
PREFIX = "intrinsic_lora."  # of our own header entries

_PREFIXES = re.compile(r"(base_model\.model\.)?(unet\.|model\.diffusion_model\.|diffusion_model\.|lora_unet_)?")
_DOWN = r"\.lora_A(?:\.\w+)?\.weight|\.lora_down\.weight|[._]lora\.down\.weight"
_UP = r"\.lora_B(?:\.\w+)?\.weight|\.lora_up\.weight|[._]lora\.up\.weight"
_KEY = re.compile(rf"(?P<module>.+?)(?:(?P<A>{_DOWN})|(?P<B>{_UP})|(?P<alpha>(?:[._]lora)?\.alpha))")


class LoRA(dict[str, tuple[Tensor, Tensor, float]]):
    """`{module_name: (A, B, alpha)}`, the change of each module's weight being `alpha / r * B @ A`.

    A is (r, in) and B (out, r), float32 on the CPU; for a convolution A is (r, in, kh, kw) and B (out, r, 1, 1).

    Attributes:
        metadata: the safetensors header entries, {} for other sources.
        format: the family of keys: "attn-processor", "peft", "kohya", "ldm" or "diffusers" (plain diffusers names).
        path: the file it came from, None if it came from a dict.
    """

    def __init__(
        self,
        weights: Mapping[str, tuple[Tensor, Tensor, float]],
        metadata: dict[str, str] | None = None,
        format: str = "",
        path: Path | None = None,
    ):
        super().__init__(weights)
        self.metadata: dict[str, str] = metadata or {}
        self.format = format
        self.path = path


def read_lora(
    source: str | os.PathLike | Mapping[str, Tensor],
    model: nn.Module | Mapping[str, tuple[int, ...]] | Iterable[str] | None = None,
) -> LoRA:
    """Read all of a LoRA or raise.

    Args:
        source: a `.safetensors` or `.bin`/`.pt` file (told apart by content; the latter holds tensors only and was
            written by torch >= 1.6), or a state dict.
        model: the UNet the LoRA is for or {module name: weight shape} (every name and shape is checked on it), or
            its module names (names are checked). Without it, shapes are taken as they are, LDM names are read as two
            layers per block (all Stable Diffusion models), and a kohya name that is not made of the words of
            diffusers' UNet keeps its `lora_unet_` spelling.

    Returns:
        Module names in diffusers' spelling -> (A, B, alpha). A missing alpha means alpha = r.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds code, is not a plain UNet LoRA, or does not fit `model` entirely.
    """
    path, metadata = None, dict[str, str]()
    if isinstance(source, Mapping):
        where, state = "LoRA state dict", dict(source)
    else:
        where, path = str(source), Path(source)
        state, metadata = _load_file(path)
    _check_tensors(state, where)

    shapes = _module_shapes(model)  # {module: weight shape or None}
    parts, families = _group(state, where)
    spelling = Spelling(shapes)
    header_alpha = _header_alpha(metadata, where)

    weights: dict[str, tuple[Tensor, Tensor, float]] = {}
    for spelt, keys in parts.items():
        for half, other in ("AB", "BA"):
            if half not in keys:
                key = keys.get(other) or keys["alpha"]
                raise ValueError(f"{where}: the other half of {key!r} is missing; the file is incomplete.")
        key = keys["A"]

        module = spelling.resolve(spelt)
        if shapes is not None and module not in shapes:
            generator = metadata.get(f"{PREFIX}family")  # of those that `extract --generator` takes
            made = f"; this LoRA was made for a {generator}" if generator else made_for(state, shapes)
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
        if not 0 < alpha <= 1000 * rank:  # 0 would load and do nothing, and NaN is not in the range either
            key = keys.get("alpha", key)
            raise ValueError(f"{where}: the alpha of {key!r} is {alpha:g}, which makes no sense for rank {rank}.")
        weights[module] = (A, B, alpha)

    return LoRA(weights, metadata, "+".join(sorted(families)), path)


def lora_intrinsic(lora: LoRA | str | os.PathLike) -> str | None:
    """Which intrinsic a LoRA draws: what its header says, else the one intrinsic its file name mentions, else None.

    Raises:
        FileNotFoundError, ValueError: given a path, there is no readable file at it.
    """
    if isinstance(lora, LoRA):
        metadata, path = lora.metadata, lora.path
    else:
        path = Path(lora)
        metadata = _load_file(path)[1]
    if intrinsic := metadata.get(f"{PREFIX}intrinsic"):
        return intrinsic
    stem = path.stem.lower() if path else ""
    named = [name for name in INTRINSICS if name.removesuffix("s") in stem]  # the released files say "normal"
    return named[0] if len(named) == 1 else None


def lora_base(lora: LoRA) -> str | None:
    """The base model a LoRA was made for: what its header says, else what its names and cross-attention width say."""
    shapes = {module: A.shape for module, (A, _, _) in lora.items()}
    return lora.metadata.get(f"{PREFIX}base_model") or guess_base(shapes)


def lora_definition(name: str, lora: LoRA) -> Intrinsic:
    """What a LoRA for the intrinsic `name` draws: as its header says, else as the registry does.

    Raises:
        ValueError: the name is not in the registry and the header does not say all of it, or says what cannot be.
    """
    known, header = INTRINSICS.get(name), lora.metadata
    if header.get(f"{PREFIX}intrinsic", name) != name:
        header = {}  # whoever chose the name knows better; then nothing else there is about it either
    prompt, channels, convention = (header.get(f"{PREFIX}{key}") for key in ("prompt", "channels", "convention"))
    if known is not None:
        return replace(known, prompt=prompt or known.prompt, raw_convention=convention or known.raw_convention)
    if prompt is None or convention is None or channels not in ("1", "3"):
        raise ValueError(
            f"Unknown intrinsic {name!r}; choose from {', '.join(INTRINSICS)}, or give a LoRA whose header says what "
            "it draws (prompt, convention, channels), as those of `intrinsic-lora train` do."
        )
    return Intrinsic(name, prompt, int(channels), convention)


def lora_prompt(name: str, lora: LoRA) -> str:
    """The text a LoRA for the intrinsic `name` was trained with."""
    return lora_definition(name, lora).prompt


def lora_timestep(lora: LoRA) -> int:
    """The training timestep a single-step LoRA is always run at; ValueError where the header says no number."""
    text = lora.metadata.get(f"{PREFIX}timestep", "999")  # the released files have no metadata
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"{lora.path or 'The LoRA'}: its header says timestep {text[:40]!r}, which is no timestep.")
    return int(text)


def check_single_step(name: str, lora: LoRA, timesteps: int) -> None:
    """Raises ValueError unless `lora` predicts in one step, at one of the base model's `timesteps`."""
    method = lora.metadata.get(f"{PREFIX}method", "single-step")
    if method != "single-step":
        raise ValueError(f"The LoRA for {name} was trained for {method} prediction; this is single-step.")
    timestep = lora_timestep(lora)
    if not 0 <= timestep < timesteps:
        raise ValueError(f"The LoRA for {name} wants timestep {timestep}; the base has 0 to {timesteps - 1}.")


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _load_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The raw (state dict, header) of a file. No code in the file runs, and no size in it is believed."""
    if not path.exists():
        raise FileNotFoundError(f"There is no LoRA file at {path}.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the LoRA file itself.")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(
            f"{path} has {size / 1e9:.1f} GB, far more than any LoRA; give the LoRA, not a whole checkpoint."
        )
    with open(path, "rb") as file:
        start = file.read(9)
    if not start:
        raise ValueError(f"{path} is empty; download or copy it again.")
    if start[8:9] == b"{":
        return _load_safetensors(path)
    if start.startswith(b"PK"):
        return _load_torch(path), {}
    if start.startswith(b"\x80"):
        raise ValueError(f"{path} is a bare pickle, and pickles are never opened; save it again as .safetensors.")
    raise ValueError(f"{path} is damaged or not a LoRA file; download or copy it again.")


def _load_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # the parser's own errors are not one family
        raise ValueError(f"{path} is damaged or not a LoRA file ({error}); download or copy it again.") from error
    # Only of our own files, where it is always there: other tools are known to edit tensors and keep the old hash.
    ours = any(entry.startswith(PREFIX) for entry in metadata)
    if ours and metadata.get("modelspec.hash_sha256") != payload_hash(path.read_bytes()):
        raise ValueError(f"{path} is damaged: its contents do not match its checksum; download or copy it again.")
    return state, metadata


def _load_torch(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            is_torch = any(entry.filename.endswith("/data.pkl") for entry in entries)
            # torch stores entries uncompressed and does not look at their checksums.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            small = sum(entry.file_size for entry in entries) <= path.stat().st_size
            intact = stored and small and archive.testzip() is None
        if not is_torch:
            raise ValueError("it is a zip archive without tensors")
        if not intact:
            raise ValueError("its contents do not match its checksums")
        # Memory-mapped: older torch believes whatever size the pickle claims, and a map ends with the file.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).split("\n")[0]
        if "Unsupported" in str(error) or "Weights only" in reason:
            reason = "it holds more than tensors, and code in it is never run"
        raise ValueError(f"{path} is not a readable torch file: {reason}; save it again as .safetensors.") from error


def payload_hash(data: bytes) -> str:
    """ModelSpec's `hash_sha256` of a safetensors file: of all that follows the header."""
    return "0x" + hashlib.sha256(memoryview(data)[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Keys


def _check_tensors(state: Any, where: str) -> None:
    """A flat, non-empty dict of dense tensors of bounded size, none of them of a foreign kind."""
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{where} contains no weights.")
    size = 0
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise ValueError(f"{where}: {key!r} is not a plain tensor; a LoRA file holds named tensors only.")
        size += 4 * value.numel()
        if size > MAX_BYTES:
            raise ValueError(f"{where}: {key!r} brings the tensors past {MAX_BYTES >> 30} GiB; this is not a LoRA.")
    for key in state:
        if kind := foreign_kind(key):
            raise ValueError(f"{where}: {key!r} belongs to {kind}; only plain LoRAs of the UNet can be loaded.")


def _group(state: Mapping[str, Tensor], where: str) -> tuple[dict[str, dict[str, str]], set[str]]:
    """Sort keys into {module as spelt: {"A" | "B" | "alpha": key}} and name the families of keys."""
    parts: dict[str, dict[str, str]] = {}
    families = set()
    for key, value in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{where}: {key!r} is not a LoRA weight{made_for(state, None)}.")
        part = str(match.lastgroup)
        if part == "alpha":  # some trainers write torch.tensor(8)
            fits = value.numel() == 1 and (value.is_floating_point() or value.dtype == torch.int64)
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


# ---------------------------------------------------------------------------------------------------------------------
# Values


def _module_shapes(
    model: nn.Module | Mapping[str, tuple[int, ...]] | Iterable[str] | None,
) -> dict[str, tuple[int, ...] | None] | None:
    """{module: weight shape} of all linear layers and convolutions, with None for shapes when only names are given."""
    if model is None:
        return None
    if isinstance(model, Mapping):
        return dict(model)
    if not isinstance(model, nn.Module):
        return dict.fromkeys(model)
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name, module in model.named_modules():
        module = getattr(module, "base_layer", module)  # peft wraps the layers of a UNet that has other LoRAs loaded
        if isinstance(module, nn.Linear):  # not .weight.shape, which is packed in a quantised layer
            shapes[name] = (module.out_features, module.in_features)
        elif isinstance(module, nn.Conv2d):
            shapes[name] = tuple(module.weight.shape)
    return shapes


def _fit(weight: Tensor, ndim: int) -> Tensor:
    """A 1x1 convolution's weight for a linear layer and the other way round: SD 1.x has the one where SD 2.x has
    the other, and trainers write both."""
    if ndim == 2 and weight.ndim == 4 and weight.shape[2:] == (1, 1):
        return weight[:, :, 0, 0]
    if ndim == 4 and weight.ndim == 2:
        return weight[:, :, None, None]
    return weight


def _header_alpha(metadata: Mapping[str, str], where: str) -> Callable[[str, int], float]:
    """(module, rank) -> alpha by the peft configuration that diffusers puts into the header, else the rank.

    peft matches `alpha_pattern` as regular expressions against the end of a module's name. What is written in
    practice is names, so only names are taken: a regular expression from a file can be made to run for ever.
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
        strange = [pattern for pattern in patterns if not re.fullmatch(r"[\w.]+", pattern)]
        if strange:
            raise ValueError(f"alpha_pattern {strange[0]!r} is not a module name")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where}: its lora_adapter_metadata cannot be understood ({error}).") from error

    def alpha(module: str, rank: int) -> float:
        found = [value for name, value in patterns.items() if f".{module}".endswith(f".{name}")]
        value = found[0] if found else common if common is not None else float(rank)
        return value * rank**0.5 if config.get("use_rslora") else value  # rslora scales by alpha / sqrt(r)

    return alpha


def _size(tensor: Tensor | Iterable[int]) -> str:
    return " x ".join(map(str, tensor.shape if isinstance(tensor, Tensor) else tensor)) or "one number"
