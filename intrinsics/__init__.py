"""The core: what each intrinsic means, how it is stored, and the files around it. No diffusers, no peft."""

from .codec import confidence, decode, encode
from .color import linear_to_srgb, srgb_to_linear
from .depth import DEPTH_POLARITIES, DEPTH_SCOPES, normalize_depth, render_depth
from .display import display_map
from .lora import LoRA, LoRAHeader, read_header, read_lora, write_lora
from .normals import NORMAL_FRAMES, convert_normals, mirror_normals, normalize_normals
from .pictures import Picture, read_picture, write_npz, write_png
from .registry import INTRINSICS, Intrinsic, get_intrinsic
from .resize import ProcessingSize, crop_to, guided_upsample, pad_to, processing_size, resize

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
