"""Folders of converted generators: `config.json` (class and constructor arguments) and `model.safetensors`."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ...intrinsics.files import naming_full_disk, refuse_lfs_pointer

FORMAT_VERSION = 1
Network = TypeVar("Network", bound=nn.Module)


def save_generator(
    model: nn.Module, folder: str | os.PathLike, *, source: str = "", family: str = "", replace: bool = False
) -> None:
    """Write a generator to a folder, atomically.

    Args:
        model: the generator; its attribute `config` contains the constructor's arguments.
        folder: the output folder.
        source: a note on the origin of the weights.
        family: name of the family, if it differs from the class: StyleGAN-XL is a StyleGAN3.
        replace: replace an existing folder.

    Raises:
        FileExistsError: the folder is not empty and `replace` is false.
    """
    config = {"_class_name": type(model).__name__, "format_version": FORMAT_VERSION, "source": source}
    config |= {"family": family} if family else {}
    with atomic_folder(folder, replace=replace) as temporary:
        merged = {**config, **model.config}  # type: ignore[dict-item]
        (temporary / "config.json").write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        save_file(state, temporary / "model.safetensors")


@contextmanager
def atomic_folder(folder: str | os.PathLike, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder next to `folder`; on success flush its files to disk and rename it.

    Raises:
        FileExistsError: `folder` is a file, or is not empty and `replace` is false.
    """
    folder = Path(folder)
    if folder.is_file() or (not replace and folder.exists() and any(folder.iterdir())):
        raise FileExistsError(f"{folder} already exists; choose a new folder.")
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
    temporary.mkdir(parents=True)
    try:
        with naming_full_disk(folder):
            yield temporary
            for file in temporary.iterdir():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """Read `config.json` of a generator's folder.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or has a newer format.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a generator: config.json not found; create it with import-generator."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not the description of a generator: {error}.") from error
    if config.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
        raise ValueError(f"{path} has a newer format than this version of intrinsic-lora supports; update it.")
    return config


def load_generator(cls: type[Network], folder: str | os.PathLike) -> Network:
    """Load an instance of `cls` from its folder, float32, on the CPU, in eval mode, frozen.

    Raises:
        FileNotFoundError: the folder contains no generator.
        ValueError: the generator has another class or a newer format, or config and weights do not match.
    """
    config = read_config(folder)
    name = config.pop("_class_name", None)
    if name != cls.__name__:
        raise ValueError(f"{folder} holds a {name}, not a {cls.__name__}.")
    config = {key: value for key, value in config.items() if key not in ("format_version", "source", "family")}
    file = Path(folder) / "model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is not a complete generator: {file.name} not found; import it again.")
    refuse_lfs_pointer(file)
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); convert or copy the generator again.") from error
    try:
        with torch.device("meta"):  # random initialisation would take longer than reading the weights
            model = cls(**config)
        model.load_state_dict(state, assign=True)
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"Weights and config of {folder} do not match; convert the generator again.") from error
    return model.float().eval().requires_grad_(False)
