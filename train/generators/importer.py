"""Published generators to folders that this package reads: config.json and safetensors. Nothing in the file is run."""

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
    """Converts a pickle of StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL, or a checkpoint of taming-transformers' VQGAN.

    What the file is, is decided by what it holds. It is read by `read_untrusted`, which runs nothing.

    Args:
        out: the folder to write; it must not exist, or be empty.
        max_bytes: of the file, and of the tensors of its generator.

    Returns:
        One sentence that says what it was.

    Raises:
        FileExistsError: there is something in `out`.
        FileNotFoundError: there is no such file.
        ValueError: it is hostile, damaged, or no generator of these.
    """
    file, out = Path(file), Path(out)
    if out.is_file() or (out.exists() and any(out.iterdir())):
        raise FileExistsError(f"{out} is there already; name a new folder.")
    content, note = read_untrusted(file, max_bytes), ""
    try:
        if isinstance(content, dict) and "G_ema" in content:
            name, config, state = stylegan_from_official(content["G_ema"], max_bytes)
            model = _filled(StyleGAN2 if name == "StyleGAN2" else StyleGAN3, config, state)
            save_generator(model, out, source=file.name, family=name)
            size, kinds = config["resolution"], f"{config['label_dim'] or 'no'} classes"
        else:
            from diffusers import VQModel  # seconds to import, and not needed for StyleGAN

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
            raise ValueError(f"its {key} is {getattr(value, 'problem', None) or getattr(value, 'what', 'no tensor')}.")
        size += 4 * value.value.size
        if size > max_bytes:
            raise ValueError(f"its tensors take more than {max_bytes:,} bytes.")
        tensors[key] = torch.from_numpy(value.value.copy()).float()
    return tensors


def _filled(cls: type[nn.Module], config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """The model with these weights; ValueError unless names and shapes are exactly the model's."""
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes the file claims
            model = cls(**config)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"its layers do not fit together ({error}).") from error
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    for key in sorted(wanted.keys() | state.keys()):
        if key not in state or key not in wanted:
            raise ValueError(f"{key} is {'missing' if key in wanted else 'not known'}.")
        if state[key].shape != wanted[key]:
            raise ValueError(f"{key} has the shape {tuple(state[key].shape)}, not {tuple(wanted[key])}.")
    model.load_state_dict(state, assign=True)
    return model
