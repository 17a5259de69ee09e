"""The header of a LoRA file as typed fields, read without its tensors."""

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
MAX_HEADER = 16 << 20  # bytes; trainers that list every caption in it reach a few MB
MAX_ENTRY = 5000  # characters of one of our own entries, the longest of which is the path of a base
PREFIX = "intrinsic_lora."  # of our own header entries


@dataclass(frozen=True)
class LoRAHeader:
    """What a LoRA file says about itself. Files of other programs, the released ones too, leave it all at None.

    Attributes:
        version: of these entries and their meaning.
        intrinsic: what the LoRA draws.
        prompt: the text it was trained with.
        convention: what the network's picture means, see `Intrinsic.raw_convention`.
        channels: of the canonical map.
        method: "single-step", "multi-step", or "generator" for the generators of `train.generators`.
        timestep: the training timestep a single-step LoRA is always run at.
        base_model: name or hub id of the model it was trained on.
        base_hash, family: fingerprint and kind of that model, of a generator's LoRA only.
        image_channels, image_channels_origin: hash and origin of the image channels, of a multi-step LoRA only.
        entries: all entries of the file, those of other programs included.
        where: what messages call the file.
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
            ValueError: one of our own entries has more than 5000 characters, or is not the number it should be.
        """
        values: dict[str, Any] = {}
        for name in _FIELD_NAMES:
            value = entries.get(PREFIX + name)
            if value is None:
                continue
            if len(value) > MAX_ENTRY:
                raise ValueError(
                    f"{where}: its header entry {PREFIX}{name} has {len(value):,} characters, and {MAX_ENTRY:,} are "
                    "the limit; the file is damaged or not what it says."
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
        """Return the entries that `parse` reads these fields from."""
        values = {PREFIX + name: getattr(self, name) for name in _FIELD_NAMES}
        return {key: str(value) for key, value in values.items() if value is not None}

    @property
    def training(self) -> Any:
        """Record of the trainer: resolved configuration, data fingerprint, metrics. None if there is no such entry.

        Raises:
            ValueError: the entry is not JSON.
        """
        text = self.entries.get(f"{PREFIX}training")
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.where}: its header entry {PREFIX}training cannot be read ({error}).") from error

    def definition(self, name: str) -> Intrinsic:
        """Return what this LoRA predicts for the intrinsic `name`: from the header, else from the registry.

        Raises:
            ValueError: the name is not in the registry and the header does not say all of it, or says what cannot be.
        """
        known = INTRINSICS.get(name)
        said = self if self.intrinsic in (None, name) else LoRAHeader()  # an explicit other name overrides the header
        if known is not None:
            convention = said.convention or known.raw_convention
            return replace(known, prompt=said.prompt or known.prompt, raw_convention=convention)
        if said.prompt is None or said.convention is None or said.channels not in (1, 3):
            raise ValueError(
                f"Unknown intrinsic {name!r}; choose from {', '.join(INTRINSICS)}, or give a LoRA whose header says "
                "what it draws (prompt, convention, channels), as the trainer writes them."
            )
        return Intrinsic(name, said.prompt, said.channels, said.convention)

    @property
    def single_step_timestep(self) -> int:
        """The training timestep to run at; files without an entry, the released ones, use the last of 1000."""
        return 999 if self.timestep is None else self.timestep

    def check_method(self, name: str, method: str) -> None:
        """Raise ValueError unless this LoRA, for the intrinsic `name`, is of `method` or does not say its method."""
        if self.method not in (None, method):
            raise ValueError(f"The LoRA for {name} was trained for {self.method} prediction; this is {method}.")

    def check_single_step(self, name: str, timesteps: int) -> None:
        """Raise ValueError unless this LoRA predicts in one step, at one of the base model's `timesteps`."""
        self.check_method(name, "single-step")
        if not 0 <= self.single_step_timestep < timesteps:
            raise ValueError(f"The LoRA for {name} wants timestep {self.timestep}; the base has 0 to {timesteps - 1}.")


_FIELD_NAMES = tuple(one.name for one in fields(LoRAHeader) if one.name not in ("entries", "where"))


def read_header(path: str | os.PathLike[str]) -> LoRAHeader:
    """Read the header of a LoRA file and none of its tensors; torch files (.bin, .pt) have no header.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or of another kind, see `LoRAHeader.parse`.
    """
    path = Path(path)
    if file_kind(path) == "torch":
        return LoRAHeader(where=str(path))
    with open_safetensors(path, "numpy") as file:
        return LoRAHeader.parse(file.metadata() or {}, str(path))


def named_intrinsic(path: Path | None) -> str | None:
    """Return the one of the four intrinsics that a file name mentions, else None."""
    stem = path.stem.lower() if path else ""
    named = [name for name in INTRINSICS if name.removesuffix("s") in stem]  # the released files say "normal"
    return named[0] if len(named) == 1 else None


def canonical_name(name: str) -> str:
    """Return the canonical name of an intrinsic; the released files call normals "normal"."""
    return "normals" if name == "normal" else name


# --- Files


def file_kind(path: Path) -> Literal["safetensors", "torch"]:
    """Tell the format of a file by its first bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is neither, or too large.
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
    """Call `safe_open`, turning every error into a ValueError. "numpy" does not need torch."""
    try:
        return safe_open(path, framework=framework)
    except Exception as error:  # the parser's own errors are not one family
        reason = str(error).split("\n")[0][:200].rstrip(".")
        raise ValueError(f"{path} is damaged or not a LoRA file ({reason}); download or copy it again.") from error
