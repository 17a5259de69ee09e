"""Base models that LoRAs can be trained on. Each draws a picture from a condition, and its LoRAs make it draw maps.

A condition is what fixes the picture: the latent of a photo (Stable Diffusion), the codes of one (VQGAN), a style w
(StyleGAN). Without a LoRA the model draws the picture; with one, the map of the same picture.

`interfaces` says what the rest of the package asks of a backbone. Two base classes implement most of it:
`latent.LatentBackbone` for models that predict latents, `picture.PictureGenerator` for models that draw pixels.
docs/architecture.md lists the members that a new backbone adds.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...intrinsics.vocabulary import Intrinsic
from .interfaces import Backbone, BackboneClass

if TYPE_CHECKING:  # importing them takes seconds
    from .stable_diffusion import StableDiffusion
    from .stylegan2 import StyleGAN2Backbone
    from .stylegan_xl import StyleGANXLBackbone
    from .vqgan import VQGANBackbone

    # A type checker compares every class with the interface.
    _CLASSES: tuple[BackboneClass, ...] = (StableDiffusion, VQGANBackbone, StyleGAN2Backbone, StyleGANXLBackbone)

# Class name in `config.json` -> (module here, class in it). Everything else is Stable Diffusion.
GENERATORS = {
    "VQModel": ("vqgan", "VQGANBackbone"),
    "StyleGAN2": ("stylegan2", "StyleGAN2Backbone"),
    "StyleGAN3": ("stylegan_xl", "StyleGANXLBackbone"),
}


def generator_kind(base: str | Path | None) -> str | None:
    """Return which of `GENERATORS` the folder `base` holds; None for everything else, which is Stable Diffusion."""
    if base is None or not (Path(base) / "config.json").is_file():
        return None
    try:
        kind = json.loads((Path(base) / "config.json").read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{Path(base) / 'config.json'} is not the description of a model: {error}.") from error
    return kind if isinstance(kind, str) and kind in GENERATORS else None


def backbone_class(base: str | Path | None) -> BackboneClass:
    """Return the class for `base`: a folder whose `config.json` names a generator, else Stable Diffusion."""
    kind = generator_kind(base)
    module, name = GENERATORS[kind] if kind else ("stable_diffusion", "StableDiffusion")
    found: BackboneClass = getattr(import_module(f".{module}", __package__), name)
    return found


def load_backbone(
    base: str | Path | None,
    intrinsics: Sequence[Intrinsic],
    *,
    base_config: str | Path | None = None,
    prompts: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Backbone:
    """Load a base model of any family, without LoRAs.

    Args:
        base: None for the embedded Stable Diffusion; a folder that `import-generator` wrote; or a base that
            `StableDiffusion.load` accepts.
        intrinsics: intrinsics that LoRAs will be trained for.
        base_config: for a single-file Stable Diffusion: source of its configuration.
        prompts: for Stable Diffusion: texts to `sample` with.
        dtype: of Stable Diffusion's UNet; the other generators stay in float32.

    Raises:
        FileNotFoundError: the base was not found.
        ValueError: it is of none of the families, damaged, or does not support an option.
    """
    family = backbone_class(base)
    given = {"base_config": base_config, "prompts": prompts}
    options = {key: value for key, value in given.items() if value}
    if unsupported := [key for key in options if key not in family.load_options]:
        raise ValueError(f"{base} is a {family.family}, which does not support {' or '.join(unsupported)}; omit it.")
    return family.load(base, intrinsics, dtype=dtype, device=device, **options)
