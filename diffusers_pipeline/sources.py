"""Sources of LoRAs: a file, a folder, a dict, a hub repository or the package itself."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ..intrinsics.files import continued, list_files, may_be_hub_id
from ..intrinsics.lora import canonical_name, named_intrinsic, read_header
from ..intrinsics.vocabulary import INTRINSICS

EMBEDDED = Path(str(files("intrinsic_lora"))) / "assets" / "embedded"
LORA_SUFFIXES = (".safetensors", ".bin")
LoRASource = str | Path | Mapping[str, Any]


def find_loras(source: LoRASource, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Find the LoRAs of `source`, as `{intrinsic: file, state dict or LoRA}`.

    Args:
        source: as for `IntrinsicLoRAPipeline.load_intrinsics`.
        hub_kwargs: passed to `huggingface_hub.snapshot_download` for a hub id.

    Raises:
        FileNotFoundError: the source does not exist or contains no LoRA.
        ValueError: a damaged file, a file of an unknown intrinsic, or two files for one intrinsic.
    """
    if isinstance(source, Mapping):
        if not source:
            raise ValueError("The dict of LoRAs is empty; give at least one, as in {'normals': 'file.safetensors'}.")
        return {canonical_name(name): item for name, item in source.items()}
    if not str(source):
        raise FileNotFoundError("The name of the LoRAs is empty; give a folder, a file or a hub id.")
    if source == "embedded":
        return find_loras(EMBEDDED / "loras", hub_kwargs)
    path = Path(source).expanduser()
    if "," in str(source) and not path.exists():
        joined: dict[str, Any] = {}
        for part in str(source).split(","):
            joined |= find_loras(part.strip(), hub_kwargs)
        return joined
    if path.is_file():
        name = _intrinsic_of(path)
        if name is None:
            raise ValueError(f"{path} does not state its intrinsic; pass {{'normals': {str(path)!r}}}.")
        return {name: path}
    if not path.is_dir():
        names = [name.removesuffix("s") for name in INTRINSICS]  # the released files use "normal"
        patterns = [
            f"*{name}*{suffix}" for name in [*names, "image_channels", "intrinsic_lora_"] for suffix in LORA_SUFFIXES
        ]
        path = fetch(str(source), patterns, hub_kwargs)
    found: dict[str, Path] = {}
    for file in [*list_files(path), *list_files(path / "loras")]:
        name = _intrinsic_of(file) if file.suffix in LORA_SUFFIXES else None
        if name is None:
            continue
        if name in found:
            both = f"{found[name].name} and {file.name}"
            raise ValueError(f"{both} in {path} are both for {name}; pass {{{name!r}: the file}} to choose one.")
        found[name] = file
    if not found:
        files = ", ".join(x.name for x in sorted(path.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"No intrinsic LoRA (.safetensors or .bin) was found in {path}; it contains {files}.")
    return found


def _intrinsic_of(file: Path) -> str | None:
    return read_header(file).intrinsic or named_intrinsic(file)


def fetch(source: str, patterns: list[str], hub_kwargs: dict[str, Any]) -> Path:
    """Download a hub repository and return its folder; only files that match one of `patterns` are downloaded."""
    if not may_be_hub_id(source):
        raise FileNotFoundError(f"File or folder {source} not found; check the path.")
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, **hub_kwargs))
    except Exception as error:  # offline, no such repository, no permission, ...
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{source} is neither a local folder nor available from the hub: {continued(reason)}"
        ) from error
