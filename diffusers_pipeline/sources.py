"""Where LoRAs come from: a file, a folder, a dict or a hub repository; and what their metadata asks for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ..intrinsics.files import list_files
from ..intrinsics.lora import lora_intrinsic
from ..intrinsics.registry import INTRINSICS

LORA_SUFFIXES = (".safetensors", ".bin")
LoRASource = str | Path | Mapping[str, Any]


def canonical_name(name: str) -> str:
    return "normals" if name == "normal" else name  # the released files say "normal"


def find_loras(source: LoRASource, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What `source` offers, as `{intrinsic: file, state dict or LoRA}`."""
    if isinstance(source, Mapping):
        if not source:
            raise ValueError("The dict of LoRAs is empty; give at least one, as in {'normals': 'file.safetensors'}.")
        return {canonical_name(name): item for name, item in source.items()}
    path = Path(source).expanduser()
    if path.is_file():
        name = lora_intrinsic(path)
        if name is None:
            raise ValueError(f"{path} does not say which intrinsic it is for; pass {{'normals': {str(path)!r}}}.")
        return {canonical_name(name): path}
    if not path.is_dir():
        names = [name.removesuffix("s") for name in INTRINSICS]  # the released files say "normal"
        patterns = [
            f"*{name}*{suffix}" for name in [*names, "image_channels", "intrinsic_lora_"] for suffix in LORA_SUFFIXES
        ]
        path = fetch(str(source), patterns, hub_kwargs)
    found: dict[str, Path] = {}
    for file in [*list_files(path), *list_files(path / "loras")]:
        name = lora_intrinsic(file) if file.suffix in LORA_SUFFIXES else None
        if name is None:
            continue
        name = canonical_name(name)
        if name in found:
            both = f"{found[name].name} and {file.name}"
            raise ValueError(f"{both} in {path} are both for {name}; pass {{{name!r}: the file}} to choose.")
        found[name] = file
    if not found:
        there = ", ".join(x.name for x in sorted(path.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"No intrinsic LoRA (.safetensors or .bin) in {path}; there is {there}.")
    return found


def fetch(source: str, patterns: list[str], hub_kwargs: dict[str, Any]) -> Path:
    """Local folder of a hub repository; only files that match one of `patterns` are downloaded."""
    if source.count("/") != 1 or source[0] in "./~" or Path(source).suffix in LORA_SUFFIXES:
        raise FileNotFoundError(f"There is no file or folder at {source}; check the path.")
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, **hub_kwargs))
    except Exception as error:  # offline, no such repository, no permission, ...
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"{source} is not a folder here, and the hub did not give it: {reason}") from error
