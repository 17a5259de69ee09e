"""The header of a LoRA file as typed fields, read without loading its tensors."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from safetensors import safe_open

from ..files import refuse_lfs_pointer
from ..vocabulary import INTRINSICS, Intrinsic

MAX_BYTES = 2 << 30  # of a file and of its tensors in float32; a rank-128 LoRA on every layer of SD 1.5 has 0.54 GB
MAX_HEADER = 16 << 20  # bytes; trainers that store every caption reach a few MB
MAX_ENTRY = 5000  # characters of one of our entries; the longest is the path of a base
PREFIX = "intrinsic_lora."  # of our header entries


@dataclass(frozen=True)
class LoRAHeader:
    """Metadata of a LoRA file. Fields are None for files of other programs, including the released ones.

    Attributes:
        version: version of these entries.
        intrinsic: the intrinsic that the LoRA predicts.
        prompt: the prompt it was trained with.
        convention: encoding of the network's picture, see `Intrinsic.raw_convention`.
        channels: channels of the canonical map.
        method: "single-step", "multi-step", or "generator" for the generators in `train.generators`.
        timestep: the training timestep at which a single-step LoRA is run.
        base_model: name or hub id of the model it was trained on.
        base_hash, family: fingerprint and kind of that model, for LoRAs of generators only.
        image_channels, image_channels_origin: hash and origin of the image channels, for multi-step LoRAs only.
        entries: all header entries of the file, including those of other programs.
        where: name of the file in error messages.
    """

    version: str | None = None
    intrinsic: str | None = None
    prompt: str | None = None
    convention: str | None = None
    channels: int | None = None
    method: str | None = None
    timestep: int | None = None
    base_model: str | None = None
    base_hash: str | None = None
    family: str | None = None
    image_channels: str | None = None
    image_channels_origin: str | None = None
    entries: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)
    where: str = field(default="This LoRA", compare=False)

    @classmethod
    def parse(cls, entries: Mapping[str, str], where: str = "This LoRA") -> Self:
        """Parse the header entries of a file.

        Raises:
            ValueError: one of our entries has more than 5000 characters, or is not a number where one is required.
        """
        values: dict[str, Any] = {}
        for name in _FIELD_NAMES:
            value = entries.get(PREFIX + name)
            if value is None:
                continue
            if len(value) > MAX_ENTRY:
                raise ValueError(
                    f"{where}: its header entry {PREFIX}{name} has {len(value):,} characters, and {MAX_ENTRY:,} are "
                    "the limit; the file is damaged or not a LoRA."
                )
            if name in ("channels", "timestep"):
                if not re.fullmatch(r"[0-9]{1,9}", value):
                    raise ValueError(
                        f"{where}: its header entry {PREFIX}{name} is {value[:40]!r}, not a whole number."
                    )
                values[name] = int(value)
            else:
                values[name] = value
        if "intrinsic" in values:
            values["intrinsic"] = canonical_name(values["intrinsic"])
        return cls(**values, entries=dict(entries), where=where)

    def own_entries(self) -> dict[str, str]:
        """Return the header entries from which `parse` reads these fields."""
        values = {PREFIX + name: getattr(self, name) for name in _FIELD_NAMES}
        return {key: str(value) for key, value in values.items() if value is not None}

    @property
    def training(self) -> Any:
        """The trainer's record: resolved configuration, data fingerprint, metrics. None if there is no such entry.

        Raises:
            ValueError: the entry is not JSON.
        """
        text = self.entries.get(f"{PREFIX}training")
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.where}: its header entry {PREFIX}training cannot be read ({error}).") from error

    def definition(self, name: str) -> Intrinsic:
        """Return the definition of the intrinsic `name` from the header, else from `INTRINSICS`.

        Raises:
            ValueError: the name is not in `INTRINSICS` and its definition in the header is incomplete or invalid.
        """
        known = INTRINSICS.get(name)
        header = self if self.intrinsic in (None, name) else LoRAHeader()  # an explicit name overrides the header
        if known is not None:
            convention = header.convention or known.raw_convention
            return replace(known, prompt=header.prompt or known.prompt, raw_convention=convention)
        if header.prompt is None or header.convention is None or header.channels not in (1, 3):
            raise ValueError(
                f"Unknown intrinsic {name!r}; choose from {', '.join(INTRINSICS)}, or use a LoRA whose header defines "
                "it (prompt, convention, channels), as written by the trainer."
            )
        return Intrinsic(name, header.prompt, header.channels, header.convention)

    @property
    def single_step_timestep(self) -> int:
        """The training timestep to run at; the last of 1000 for files without an entry, such as the released ones."""
        return 999 if self.timestep is None else self.timestep

    def check_method(self, name: str, method: str) -> None:
        """Raise ValueError if this LoRA for the intrinsic `name` was trained with a method other than `method`."""
        if self.method not in (None, method):
            raise ValueError(f"The LoRA for {name} was trained for {self.method} prediction; this is {method}.")

    def check_single_step(self, name: str, timesteps: int) -> None:
        """Raise ValueError unless this LoRA predicts in one step, at one of the base model's `timesteps`."""
        self.check_method(name, "single-step")
        if not 0 <= self.single_step_timestep < timesteps:
            raise ValueError(
                f"The LoRA for {name} requires timestep {self.timestep}, but the base has only 0 to {timesteps - 1}."
            )


_FIELD_NAMES = tuple(one.name for one in fields(LoRAHeader) if one.name not in ("entries", "where"))


def read_header(path: str | os.PathLike[str]) -> LoRAHeader:
    """Read the header of a LoRA file without its tensors; torch files (.bin, .pt) have no header.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, not a LoRA, or has invalid entries, see `LoRAHeader.parse`.
    """
    path = Path(path)
    if file_kind(path) == "torch":
        return LoRAHeader(where=str(path))
    with open_safetensors(path, "numpy") as file:
        return LoRAHeader.parse(file.metadata() or {}, str(path))


def named_intrinsic(path: Path | None) -> str | None:
    """Return the intrinsic whose name is part of a file name; None if there is none or several."""
    stem = path.stem.lower() if path else ""
    named = [name for name in INTRINSICS if name.removesuffix("s") in stem]  # the released files use "normal"
    return named[0] if len(named) == 1 else None


def canonical_name(name: str) -> str:
    """Return the canonical name of an intrinsic; the released files use "normal" for normals."""
    return "normals" if name == "normal" else name


# --- Files


def file_kind(path: Path) -> Literal["safetensors", "torch"]:
    """Detect the format of a file by its first bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format or is too large.
    """
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
        if (header := int.from_bytes(start[:8], "little")) > min(size, MAX_HEADER):
            limit = f"its header would have {header:,} bytes, and {min(size, MAX_HEADER):,} are the most"
            raise ValueError(f"{path} is damaged or not a LoRA file ({limit}); download or copy it again.")
        return "safetensors"
    if start.startswith(b"PK"):
        return "torch"
    if start.startswith(b"\x80"):
        raise ValueError(f"{path} is a bare pickle, and pickles are never opened; save it again as .safetensors.")
    refuse_lfs_pointer(path)
    raise ValueError(f"{path} is damaged or not a LoRA file; download or copy it again.")


def open_safetensors(path: Path, framework: Literal["pt", "numpy"]) -> Any:
    """Call `safe_open`, converting every error to a ValueError. "numpy" does not import torch."""
    try:
        return safe_open(path, framework=framework)
    except Exception as error:  # the parser raises errors of several kinds
        reason = str(error).split("\n")[0][:200].rstrip(".")
        raise ValueError(f"{path} is damaged or not a LoRA file ({reason}); download or copy it again.") from error
