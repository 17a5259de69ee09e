"""The two recipes of the embedded model: sizes of the pictures, the networks and the runs. A run knows its own.

`64` made what is in `assets/embedded`; `128` is its successor: twice the resolution at the same cost of the UNet.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ....intrinsics.pictures import write_json


@dataclass(frozen=True)
class Recipe:
    """Everything in which the recipes differ."""

    size: int  # pixels of a picture's side
    scenes: dict[str, int]  # how many rendered scenes of each world the base sees, in this order
    vae_widths: tuple[int, ...]  # one a level; every level but the last halves the picture
    vae_groups: int  # of the autoencoder's group norms
    vae_attention: bool  # in its middle
    latent_channels: int
    crop: int  # three in four of the autoencoder's steps see crops of this size; as `size`: none does
    vae_steps: int
    vae_peak: float  # learning rate; half of it for the decoder alone
    decoder_steps: int  # of the decoder alone, afterwards; 0: none
    vae_batch: int  # of crops; whole pictures are as many as have the same area
    unet_steps: int
    label_worlds: tuple[str, ...]  # that the LoRAs' labels are drawn from, in turns

    @property
    def latent_size(self) -> int:
        """Height and width of the latents."""
        return self.size >> (len(self.vae_widths) - 1)


RECIPES = {
    "64": Recipe(
        size=64,
        scenes={"plain": 50_000},
        vae_widths=(32, 48, 96),
        vae_groups=16,
        vae_attention=True,
        latent_channels=8,
        crop=64,
        vae_steps=2400,
        vae_peak=2e-3,
        decoder_steps=0,
        vae_batch=32,
        unet_steps=4400,
        label_worlds=("plain",),
    ),
    "128": Recipe(
        size=128,
        scenes={"plain": 20_000, "rich": 20_000},
        vae_widths=(16, 48, 96, 128),
        vae_groups=4,
        vae_attention=False,
        latent_channels=16,
        crop=64,
        vae_steps=7000,
        vae_peak=1e-3,
        decoder_steps=4000,
        vae_batch=16,
        unet_steps=16_000,
        label_worlds=("plain", "rich"),
    ),
}


def choose_recipe(run: Path, name: str) -> Recipe:
    """Note in the run's folder by which recipe it is made.

    Raises:
        ValueError: there is no such recipe, or the run follows another one.
    """
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name}; choose one of {', '.join(RECIPES)}.")
    path = run / "recipe.json"
    if path.exists() and json.loads(path.read_text()) != name:
        raise ValueError(f"{run} follows recipe {json.loads(path.read_text())}; choose another folder.")
    run.mkdir(parents=True, exist_ok=True)
    write_json(path, name)
    return RECIPES[name]


def recipe_of(run: Path) -> Recipe:
    """The recipe that the run's first stage chose."""
    return RECIPES[json.loads((run / "recipe.json").read_text())]
