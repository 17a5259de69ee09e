"""I-LoRA files: reading without ignoring any key, and writing the format that other programs load."""

from .header import MAX_BYTES, PREFIX, LoRAHeader, canonical_name, named_intrinsic, read_header
from .read import LoRA, Weights, payload_hash, read_lora
from .write import FORMAT_VERSION, write_lora

__all__ = [
    "FORMAT_VERSION",
    "MAX_BYTES",
    "PREFIX",
    "LoRA",
    "LoRAHeader",
    "Weights",
    "canonical_name",
    "named_intrinsic",
    "payload_hash",
    "read_header",
    "read_lora",
    "write_lora",
]
