"""The intrinsics as data: what each is called, how the network is asked for it, what it looks like raw.

Four are known by name. Any other is an `Intrinsic` of its own, made from a name, a prompt and a folder of pictures.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .normals import NORMAL_FRAMES

MAX_PROMPT = 1000  # characters; a text encoder reads 77 tokens
# Names of other things in the same places: keys of .npz files, folders of a data set, fields of a pipeline's output.
_TAKEN = ("confidence", "custom", "depth_metric", "image", "latents", "mask", "normal", "photo", "photos", "rgb")


@dataclass(frozen=True)
class Intrinsic:
    """One scene property that a LoRA makes the network draw.

    Attributes:
        name: key in outputs, file names and metadata: lower-case letters, digits and underscores.
        prompt: the exact text the LoRA was trained with. Not the user's to change: a plural or a trailing comma
            already costs accuracy.
        channels: channels of the canonical map (shading may also be coloured, with 3).
        raw_convention: what the network's picture means. Normals: a frame (see `NORMAL_FRAMES`); depth: "near-bright";
            shading: "srgb". Albedo and any other name: "srgb", where the picture is display-referred and the map
            linear light, or "linear", where the map is the picture itself (a mask, say), in 0..1.

    Raises:
        ValueError: a name, a prompt, a number of channels or a convention that cannot be used.
    """

    name: str
    prompt: str
    channels: int
    raw_convention: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.name):
            raise ValueError(
                f"An intrinsic cannot be called {self.name!r}; use lower-case letters, digits and underscores, and "
                "begin with a letter."
            )
        if self.name in _TAKEN:
            raise ValueError(f"An intrinsic cannot be called {self.name!r}, which means something else here.")
        if len(self.prompt) > MAX_PROMPT:
            raise ValueError(
                f"The prompt of {self.name} has {len(self.prompt):,} characters; use at most {MAX_PROMPT:,}."
            )
        if self.channels not in (1, 3):
            raise ValueError(f"{self.name} must have 1 or 3 channels, not {self.channels}.")
        fixed: dict[str, tuple[str, ...]] = {
            "normals": tuple(NORMAL_FRAMES),
            "depth": ("near-bright",),
            "shading": ("srgb",),
        }
        known = fixed.get(self.name, ("srgb", "linear"))
        if self.raw_convention not in known:
            raise ValueError(
                f"The convention of {self.name} cannot be {self.raw_convention!r}; choose from {', '.join(known)}."
            )


# Prompts and raw conventions of the released LoRAs, the latter measured on the authors' published pictures.
INTRINSICS: Mapping[str, Intrinsic] = MappingProxyType(
    {
        "normals": Intrinsic("normals", "surface normal", 3, "opencv"),
        "depth": Intrinsic("depth", "depth map", 1, "near-bright"),
        "albedo": Intrinsic("albedo", "albedo", 3, "srgb"),
        "shading": Intrinsic("shading", "shading", 1, "srgb"),
    }
)


def get_intrinsic(intrinsic: str | Intrinsic) -> Intrinsic:
    """Look an intrinsic up by name; an `Intrinsic` is returned as it is.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(intrinsic, Intrinsic):
        return intrinsic
    if intrinsic not in INTRINSICS:
        raise ValueError(f"Unknown intrinsic {intrinsic!r}; choose from {', '.join(INTRINSICS)}.")
    return INTRINSICS[intrinsic]
