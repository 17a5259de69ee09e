"""StyleGAN3 and StyleGAN-XL as base models: the map is painted by the generator's own layers, through their styles."""

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
