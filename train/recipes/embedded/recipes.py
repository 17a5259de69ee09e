"""The two recipes of the embedded model: sizes of pictures, networks and runs.

`64` is the recipe of the model in `assets/embedded`; `128` has twice the resolution at the same cost of the UNet.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ....intrinsics.pictures import write_json


@dataclass(frozen=True)
class Recipe:
    """The settings in which the recipes differ."""

    size: int  # width and height of a picture in pixels
    scenes: dict[str, int]  # number of rendered scenes of each world for the base, in this order
    vae_widths: tuple[int, ...]  # one per level; every level except the last halves the picture
    vae_groups: int  # of the autoencoder's group norms
    vae_attention: bool  # in the autoencoder's middle block
    latent_channels: int
    crop: int  # size of the crops in three of four steps of the autoencoder; equal to `size` for no crops
    vae_steps: int
    vae_peak: float  # peak learning rate; halved for the decoder alone
    decoder_steps: int  # of the decoder alone, afterwards; 0 = none
    vae_batch: int  # number of crops; batches of whole pictures have the same area
    unet_steps: int
    label_worlds: tuple[str, ...]  # worlds of the LoRAs' labels, alternating

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
    """Store the recipe of a run in its folder.

    Raises:
        ValueError: the recipe does not exist, or the run has another one.
    """
    if name not in RECIPES:
        raise ValueError(f"Recipe {name} not found; choose one of {', '.join(RECIPES)}.")
    path = run / "recipe.json"
    if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))) != name:
        raise ValueError(f"{run} has the recipe {before}; choose another folder.")
    run.mkdir(parents=True, exist_ok=True)
    write_json(path, name)
    return RECIPES[name]


def recipe_of(run: Path) -> Recipe:
    """Return the recipe stored by the run's first stage."""
    return RECIPES[json.loads((run / "recipe.json").read_text(encoding="utf-8"))]
