"""Drawing of canonical maps as pictures for display."""

from torch import Tensor

from .color import linear_to_srgb
from .depth import render_depth
from .normals import convert_normals, normals_to_picture
from .vocabulary import Intrinsic


def display_map(
    canonical: Tensor, name: str | Intrinsic, normals: str = "opengl", depth: str = "near-white"
) -> Tensor:
    """Draw a canonical map as a picture.

    Args:
        canonical: (B, C, H, W) map of `name`; maps with other names (confidence, mask) are returned unchanged.
        name: normals, depth, albedo, shading, a custom intrinsic, or any other name.
        normals: frame of the normals picture, one of `NORMAL_FRAMES`.
        depth: polarity of the depth picture, one of `DEPTH_POLARITIES`.

    Returns:
        (B, C, H, W) float32 in [0, 1]: albedo, shading and custom intrinsics of convention "srgb" sRGB-encoded
        (clipped at 1), the others linear.

    Raises:
        ValueError: unknown frame or polarity.
    """
    if isinstance(name, Intrinsic):  # a custom one is drawn by its convention
        name = "albedo" if name.raw_convention == "srgb" else name.name
    match name:
        case "normals":
            return normals_to_picture(convert_normals(canonical, "opengl", normals))
        case "depth":
            # Canonical depth is in 0..1 already; scope "image" would undo the scope of its normalisation.
            return render_depth(canonical, depth, scope="batch")
        case "albedo" | "shading":
            return linear_to_srgb(canonical.clamp(max=1))
        case _:
            return canonical
