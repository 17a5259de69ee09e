"""StyleGAN-v2 as a base model: the map is painted by the generator's own layers, steered through their styles."""

from ..generators.stylegan2 import StyleGAN2
from .stylegan import StyleGAN


class StyleGAN2Backbone(StyleGAN):
    """The LoRAs sit on every affine layer, from w to the styles of a convolution, ToRGB's included."""

    network = StyleGAN2
    family = "StyleGAN2"
    targets = (r"affine",)
