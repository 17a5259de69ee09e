"""Names of intrinsics, conventions, modes, presets and file formats.

The only definition of every list of choices, as a type for annotations and as a tuple of its values. Uses only the
standard library, so that the command line can show and check choices without importing torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

NormalFrame = Literal["opengl", "directx", "opencv", "controlnet"]
# Signs of (X, Y, Z) relative to opengl. Only signs differ, so each conversion is its own inverse.
_SIGNS: Mapping[NormalFrame, tuple[int, int, int]] = {
    "opengl": (1, 1, 1),  # X right, Y up,   Z to the viewer
    "directx": (1, -1, 1),  # X right, Y down, Z to the viewer
    "opencv": (1, -1, -1),  # X right, Y down, Z into the scene: the released LoRAs
    "controlnet": (-1, 1, 1),  # X left,  Y up,   Z to the viewer: NormalBae, DSINE, Lotus
}
NORMAL_FRAMES: Mapping[str, tuple[int, int, int]] = MappingProxyType({f: _SIGNS[f] for f in get_args(NormalFrame)})

DepthScope = Literal["image", "batch", "clip"]
DEPTH_SCOPES: tuple[DepthScope, ...] = get_args(DepthScope)
DepthPolarity = Literal["near-white", "near-black"]
DEPTH_POLARITIES: tuple[DepthPolarity, ...] = get_args(DepthPolarity)
DepthKind = Literal["distance", "near-white", "disparity", "metric"]
DEPTH_KINDS: tuple[DepthKind, ...] = get_args(DepthKind)

Upsample = Literal["guided", "bilinear"]  # how maps are upsampled to the photo's size
UPSAMPLE: tuple[Upsample, ...] = get_args(Upsample)

Method = Literal["single-step", "multi-step"]  # how a LoRA's network predicts
METHODS: tuple[Method, ...] = get_args(Method)

Convention = Literal["srgb", "linear"]  # raw convention of albedo and of custom intrinsics
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

# Files. png16 is a PNG of 16 bits.
Format = Literal["png", "png16", "exr", "npz"]
FORMATS: tuple[Format, ...] = get_args(Format)
LabelFormat = Literal["npz", "png16"]  # of pseudo labels
CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")  # base models in one file
PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".exr", ".gif", ".bmp"),
    *(".jfif", ".ppm", ".pgm", ".avif", ".heic", ".heif"),
)

# Relighting.
Mode = Literal["ratio", "albedo", "add"]
MODES: tuple[Mode, ...] = get_args(Mode)
PASSES = ("diffuse", "specular", "shadow", "shading", "ambient_occlusion", "residual")
PRESET_DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "rembrandt": "Key from well to the side and high, little fill: a bright triangle on the shaded cheek.",
        "loop": "Key a little to the side and above, with fill: the everyday portrait light.",
        "butterfly": "Key from straight ahead and high: a small shadow under nose and chin, the classic beauty light.",
        "split": "Key from exactly the side: one half lit, the other dark.",
        "rim": "Two lights from behind draw the outline on both sides; the front stays dim.",
        "three-point": "Key, softer fill from the other side, and a rim light from behind: film and interview light.",
        "clamshell": "Butterfly with a weak fill from below: hardly a shadow, smooth skin.",
        "window": "One large window at the side on an overcast day: soft and cool.",
        "moonlight": "Dim blue light from high behind, with deep shadows.",
    }
)

MAX_PROMPT = 1000  # characters; a text encoder reads 77 tokens
# Names that files, arrays (`a_sheet.png`), folders of a data set or fields of a pipeline's output already have.
RESERVED_NAMES = (
    *("arr_0", "caption", "conditions", "confidence", "custom", "definitions", "depth_metric", "image", "latents"),
    *("mask", "normal", "photo", "photos", "relit", "rgb", "rgb_linear", "seed", "sheet"),
)


@dataclass(frozen=True)
class Intrinsic:
    """A scene property that a LoRA makes the network predict as a picture.

    Attributes:
        name: key in outputs, file names and metadata: lower-case letters, digits and underscores.
        prompt: the exact text the LoRA was trained with. Even a plural or a trailing comma costs accuracy.
        channels: channels of the canonical map (shading may also be coloured, with 3).
        raw_convention: encoding of the network's picture. Normals: one of `NORMAL_FRAMES`; depth: "near-bright";
            shading: "srgb". Albedo and custom intrinsics: "srgb" if the picture is display-referred and the map
            linear light, or "linear" if the map is the picture itself, in 0..1 (such as a mask).

    Raises:
        ValueError: an invalid name, prompt, number of channels or convention.
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
        if self.name in RESERVED_NAMES:
            raise ValueError(f"An intrinsic cannot be called {self.name!r}, which is a reserved name; choose another.")
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
        known = fixed.get(self.name, CONVENTIONS)
        if self.raw_convention not in known:
            raise ValueError(
                f"The convention of {self.name} cannot be {self.raw_convention!r}; choose from {', '.join(known)}."
            )


# Prompts and raw conventions of the released LoRAs; the conventions were measured on the authors' published pictures.
INTRINSICS: Mapping[str, Intrinsic] = MappingProxyType(
    {
        "normals": Intrinsic("normals", "surface normal", 3, "opencv"),
        "depth": Intrinsic("depth", "depth map", 1, "near-bright"),
        "albedo": Intrinsic("albedo", "albedo", 3, "srgb"),
        "shading": Intrinsic("shading", "shading", 1, "srgb"),
    }
)


def get_intrinsic(intrinsic: str | Intrinsic) -> Intrinsic:
    """Look up an intrinsic by name; an `Intrinsic` is returned unchanged.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(intrinsic, Intrinsic):
        return intrinsic
    if intrinsic not in INTRINSICS:
        raise ValueError(f"Unknown intrinsic {intrinsic!r}; choose from {', '.join(INTRINSICS)}.")
    return INTRINSICS[intrinsic]
