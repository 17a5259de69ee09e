"""From canonical maps to pictures people look at."""

from torch import Tensor

from .color import linear_to_srgb
from .depth import render_depth
from .normals import convert_normals, normals_to_picture
from .vocabulary import Intrinsic


def display_map(
    canonical: Tensor, name: str | Intrinsic, normals: str = "opengl", depth: str = "near-white"
) -> Tensor:
    """Draw a canonical map.

    Args:
        canonical: (B, C, H, W) of the intrinsic `name`; any other name (confidence, a mask) is returned as it is.
        name: normals, depth, albedo, shading, a custom intrinsic, or anything else.
        normals: the frame of the normals picture, one of `NORMAL_FRAMES`.
        depth: the polarity of the depth picture, one of `DEPTH_POLARITIES`.

    Returns:
        (B, C, H, W) float32 in [0, 1]: albedo, shading and custom intrinsics of convention "srgb" sRGB-encoded
        (clipped at 1), the others linear.

    Raises:
        ValueError: unknown frame or polarity.
    """
    if isinstance(name, Intrinsic):  # only the convention of a custom one is known
        name = "albedo" if name.raw_convention == "srgb" else name.name
    match name:
        case "normals":
            return normals_to_picture(convert_normals(canonical, "opengl", normals))
        case "depth":
            # 0..1 already. Not per image again, which would undo the scope it was normalised with.
            return render_depth(canonical, depth, scope="batch")
        case "albedo" | "shading":
            return linear_to_srgb(canonical.clamp(max=1))
        case _:
            return canonical
