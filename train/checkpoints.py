"""Checkpoints that survive a kill at any moment: a folder is written under another name, flushed and renamed.

    RUN/checkpoints/step_000500/
        intrinsic_lora_<name>.safetensors   the weights in the published format, float32
        state.pt                            optimiser, step, best scores, average of the weights
        manifest.json                       SHA-256 of the two kinds of files above: how damage is found

The order of the pictures and the noise are functions of (seed, step), so there is no random state to keep.
"""

import io
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..intrinsics.files import file_sha256, naming_full_disk

STATE = "state.pt"
MANIFEST = "manifest.json"


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], None], state: dict[str, Any], keep: int) -> Path:
    """Write `folder/step_<step>` with what `write(temporary folder)` puts there and `state`; keep the newest `keep`.

    Args:
        state: tensors and plain values only, so that it loads with `weights_only=True`.

    Raises:
        OSError: the disk is full; nothing is left of the new checkpoint and the older ones are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    temporary, final = folder / f".step_{step:06d}.{secrets.token_hex(4)}", folder / f"step_{step:06d}"
    temporary.mkdir()
    try:
        with naming_full_disk(final):
            write(temporary)
            content = io.BytesIO()  # torch's own writer turns a full disk into an error that does not say so
            torch.save(state, content)
            (temporary / STATE).write_bytes(content.getbuffer())
            sums = {path.name: file_sha256(path) for path in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps(sums, indent=2), encoding="utf-8")
            for path in (*temporary.iterdir(), temporary):
                _flush(path)
        if final.exists():  # a damaged one that was skipped on resuming
            _remove(final)
        os.replace(temporary, final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in checkpoints(folder)[:-keep]:
        _remove(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def newest_sound(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint whose files are intact, with its state; None if there is none.

    Damaged ones are skipped with a warning.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        trouble = _damage(path)
        if trouble is None:
            return path, torch.load(path / STATE, map_location="cpu", weights_only=True)
        warnings.warn(f"{path} is damaged ({trouble}) and is skipped; the previous one is used.", stacklevel=2)
    if found:
        raise ValueError(f"Every checkpoint in {folder} is damaged; delete the folder to start over.")
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left half written or half removed."""
    for path in folder.glob(".step_*"):
        shutil.rmtree(path)


def _damage(path: Path) -> str | None:
    try:
        sums = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return f"{MANIFEST} cannot be read"
    for name, expected in sums.items():
        try:
            if file_sha256(path / name) != expected:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _remove(path: Path) -> None:
    # Renamed first: a kill half way through must not leave something that looks like a checkpoint.
    doomed = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot flush a folder
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
