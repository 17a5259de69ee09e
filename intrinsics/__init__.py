"""The core: conventions of the intrinsics, their codecs, and their files. Does not import diffusers or peft.

Names are resolved on first use (PEP 562), so that the vocabulary can be imported without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codec import confidence, decode, encode
    from .color import linear_to_srgb, srgb_to_linear
    from .depth import normalize_depth, render_depth
    from .display import display_map
    from .lora import LoRA, LoRAHeader, read_header, read_lora, write_lora
    from .normals import convert_normals, mirror_normals, normalize_normals
    from .pictures import Picture, read_picture, write_npz, write_png
    from .resizing import ProcessingSize, crop_to, guided_upsample, pad_to, processing_size, resize
    from .vocabulary import (
        DEPTH_POLARITIES,
        DEPTH_SCOPES,
        INTRINSICS,
        NORMAL_FRAMES,
        Intrinsic,
        get_intrinsic,
    )

__all__ = [
    "DEPTH_POLARITIES",
    "DEPTH_SCOPES",
    "INTRINSICS",
    "NORMAL_FRAMES",
    "Intrinsic",
    "LoRA",
    "LoRAHeader",
    "Picture",
    "ProcessingSize",
    "confidence",
    "convert_normals",
    "crop_to",
    "decode",
    "display_map",
    "encode",
    "get_intrinsic",
    "guided_upsample",
    "linear_to_srgb",
    "mirror_normals",
    "normalize_depth",
    "normalize_normals",
    "pad_to",
    "processing_size",
    "read_header",
    "read_lora",
    "read_picture",
    "render_depth",
    "resize",
    "srgb_to_linear",
    "write_lora",
    "write_npz",
    "write_png",
]

# Module -> its names. No module may share a name with one of them: importing it would hide that name.
_LAZY = {
    "codec": ("confidence", "decode", "encode"),
    "color": ("linear_to_srgb", "srgb_to_linear"),
    "depth": ("normalize_depth", "render_depth"),
    "display": ("display_map",),
    "lora": ("LoRA", "LoRAHeader", "read_header", "read_lora", "write_lora"),
    "normals": ("convert_normals", "mirror_normals", "normalize_normals"),
    "pictures": ("Picture", "read_picture", "write_npz", "write_png"),
    "resizing": ("ProcessingSize", "crop_to", "guided_upsample", "pad_to", "processing_size", "resize"),
    "vocabulary": (
        "DEPTH_POLARITIES",
        "DEPTH_SCOPES",
        "INTRINSICS",
        "NORMAL_FRAMES",
        "Intrinsic",
        "get_intrinsic",
    ),
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
