"""Conversion of published generators to folders of this package, without executing code in the files."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .folders import atomic_folder, save_generator
from .official import stylegan_from_official
from .stylegan2 import StyleGAN2
from .stylegan3 import StyleGAN3
from .taming import averaged_entries, vqgan_entries, vqgan_from_taming
from .unpickle import MAX_BYTES, read_untrusted
from .unpickle_values import Array, printable


def import_generator(file: str | os.PathLike, out: str | os.PathLike, max_bytes: int = MAX_BYTES) -> str:
    """Convert a pickle of StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL, or a checkpoint of taming-transformers' VQGAN.

    The kind of file is detected by its content, which is read by `read_untrusted` without executing code.

    Args:
        file: the published file.
        out: output folder; must be new or empty.
        max_bytes: maximum size of the file, and of the tensors of its generator.

    Returns:
        A sentence that describes the generator.

    Raises:
        FileExistsError: `out` is not empty.
        FileNotFoundError: the file does not exist.
        ValueError: the file is hostile, damaged, or not a supported generator.
    """
    file, out = Path(file), Path(out)
    if out.is_file() or (out.exists() and any(out.iterdir())):
        raise FileExistsError(f"{out} already exists; choose a new folder.")
    content, note = read_untrusted(file, max_bytes), ""
    try:
        if isinstance(content, dict) and "G_ema" in content:
            name, config, state = stylegan_from_official(content["G_ema"], max_bytes)
            model = _filled(StyleGAN2 if name == "StyleGAN2" else StyleGAN3, config, state)
            save_generator(model, out, source=file.name, family=name)
            size, kinds = config["resolution"], f"{config['label_dim'] or 'no'} classes"
        else:
            from diffusers import VQModel  # slow to import, and not required for StyleGAN

            entries, note = averaged_entries(vqgan_entries(content))
            name, (config, state) = "VQGAN", vqgan_from_taming(_tensors(entries, max_bytes))
            model = _filled(VQModel, config, state)
            with atomic_folder(out) as temporary:
                model.save_pretrained(temporary)
            size, kinds = config["sample_size"], f"{config['num_vq_embeddings']} codes"
    except KeyError as error:
        raise ValueError(f"{file} cannot be imported: {printable(error)} is missing.") from error
    except ValueError as error:
        raise ValueError(f"{file} cannot be imported: {printable(error)}") from error
    count = sum(value.numel() for value in model.parameters())
    return f"{name}, {size} x {size} pixels, {kinds}, {count / 1e6:.1f} million parameters{note and f', {note}'}."


def _tensors(entries: dict[str, Any], max_bytes: int) -> dict[str, Tensor]:
    if not any(key.startswith("encoder.") for key in entries):
        raise ValueError('it holds neither "G_ema" (StyleGAN) nor the weights of a VQGAN of taming-transformers.')
    tensors, size = {}, 0
    for key, value in entries.items():
        if not isinstance(value, Array) or value.value is None:
            found = getattr(value, "problem", None) or getattr(value, "what", "not a tensor")
            raise ValueError(f"its {key} is {found}.")
        size += 4 * value.value.size
        if size > max_bytes:
            raise ValueError(f"its tensors take more than {max_bytes:,} bytes.")
        tensors[key] = torch.from_numpy(value.value.copy()).float()
    return tensors


def _filled(cls: type[nn.Module], config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """Build the model with these weights; ValueError unless names and shapes match exactly."""
    try:
        with torch.device("meta"):  # no memory is allocated for the sizes claimed by the file
            model = cls(**config)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"its layers do not fit together ({error}).") from error
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    for key in sorted(wanted.keys() | state.keys()):
        if key not in state or key not in wanted:
            raise ValueError(f"{key} is {'missing' if key in wanted else 'unknown'}.")
        if state[key].shape != wanted[key]:
            raise ValueError(f"{key} has the shape {tuple(state[key].shape)}, not {tuple(wanted[key])}.")
    model.load_state_dict(state, assign=True)
    return model
