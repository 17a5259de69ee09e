"""StyleGAN3 and StyleGAN-XL as base models: the map is painted by the generator's own layers, through their styles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from ...intrinsics.vocabulary import Intrinsic
from ..generators.folders import read_config
from ..generators.stylegan3 import StyleGAN3
from .stylegan import StyleGAN


class StyleGANXLBackbone(StyleGAN):
    """The LoRAs sit on every affine layer, from w to the styles of a convolution, ToRGB's included.

    The input's affine layer is none of them: it moves and turns the picture as a whole, and a map lies where the
    picture does.
    """

    network = StyleGAN3
    family = "StyleGAN3"
    targets = (r"layers\..*\.affine",)

    @classmethod
    def load(cls, folder: str | Path, intrinsics: Sequence[Intrinsic], **options: Any) -> Self:
        """Load a folder as `StyleGAN.load` does; its config tells StyleGAN-XL from StyleGAN3."""
        backbone = super().load(folder, intrinsics, **options)
        # Folders of older versions do not say it; they have its table of classes, if they have classes.
        xl = backbone.config["class_embedding"] is not None
        backbone.family = read_config(folder).get("family") or ("StyleGAN-XL" if xl else cls.family)
        if backbone.family == "StyleGAN-XL":
            backbone.class_of_seed = True
            backbone.sample_options = (*cls.sample_options, "centroids")
        return backbone
