"""The four intrinsics as data: what each is called, how the network is asked for it, what it looks like raw."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Intrinsic:
    """One scene property that a LoRA makes the network draw.

    Attributes:
        name: key in outputs, file names and metadata.
        prompt: the exact text the LoRA was trained with. Not the user's to change: a plural or a trailing comma
            already costs accuracy.
        channels: channels of the canonical map (shading may also be coloured, with 3).
        raw_convention: what the network's picture means: a normal-map frame (see `NORMAL_FRAMES`), "near-bright"
            (depth), or "srgb" (display-referred light).
    """

    name: str
    prompt: str
    channels: int
    raw_convention: str


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
