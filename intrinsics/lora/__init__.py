"""I-LoRA files: read all of one or raise, write the one format that loads everywhere."""

from .read import (
    MAX_BYTES,
    PREFIX,
    LoRA,
    check_single_step,
    lora_base,
    lora_definition,
    lora_intrinsic,
    lora_prompt,
    lora_timestep,
    payload_hash,
    read_lora,
)
from .write import FORMAT_VERSION, write_lora

__all__ = [
    "FORMAT_VERSION",
    "MAX_BYTES",
    "PREFIX",
    "LoRA",
    "check_single_step",
    "lora_base",
    "lora_definition",
    "lora_intrinsic",
    "lora_prompt",
    "lora_timestep",
    "payload_hash",
    "read_lora",
    "write_lora",
]
