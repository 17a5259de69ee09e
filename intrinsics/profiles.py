"""Conversion of colours to sRGB by the colour profile of a file, with LittleCMS.

8 bits are converted by Pillow's binding; 16 bits and floats by imagecodecs, which keeps their precision. The intent is
relative colorimetric with black point compensation, the default of photo editors: colours inside sRGB are unchanged,
whereas the perceptual tables of a profile would shift all colours. Colours outside sRGB are clipped.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageCms

from .exr import optional_library

INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
GRID = np.stack(np.meshgrid(*[np.arange(0, 256, 51, dtype=np.uint8)] * 3), axis=-1).reshape(1, -1, 3)  # 216 colours
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x, y of white, red, green, blue
MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # Pillow mode by a profile's colour space


def profile_mode(profile: bytes | None) -> str | None:
    """Return the Pillow mode, RGB, L or CMYK, that a profile is for; None if no conversion is needed.

    No conversion is needed without a profile, or for a broken profile, one of another colour space, or any version of
    sRGB, which is detected by converting 216 colours: no channel changes by more than one level of 8 bits.
    """
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = MODES.get(source.profile.xcolor_space)
        if mode is None:
            return None
        transform = _transform(source, mode)
        if mode == "RGB":
            changed = np.asarray(ImageCms.applyTransform(Image.fromarray(GRID), transform))
            if np.abs(changed.astype(int) - GRID).max() <= 1:
                return None
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return None
    return mode


def image_to_srgb(image: Image.Image) -> Image.Image:
    """Convert an 8-bit image of any mode to L, RGB or RGBA in sRGB, by its embedded profile, if any.

    Palettes and key colours are resolved. A profile for another colour mode is ignored.
    """
    mode = profile_mode(image.info.get("icc_profile"))
    alpha = None
    if (mode == "CMYK") != (image.mode == "CMYK"):
        mode = None
    if mode == "L" and image.mode not in ("1", "L", "LA", "La"):
        mode = None
    if image.has_transparency_data:
        image = image.convert("RGBA")  # also un-premultiplies
        alpha = image.getchannel("A")
    elif image.mode not in ("L", "CMYK" if mode == "CMYK" else "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if mode is None:
        return image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    plain = image if image.mode == mode else image.convert(mode)
    converted = ImageCms.applyTransform(plain, _transform(source, mode))
    assert converted is not None  # None is returned for in-place conversion only
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def samples_to_srgb(samples: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Convert samples of more than 8 bits to sRGB by a profile.

    Args:
        samples: (H, W, C) uint16 or float32, C = grey, grey + alpha, RGB or RGB + alpha.
        profile: the ICC profile of the file, if any.

    Returns:
        (H, W, C) or, for grey, (H, W, 3 or 4) of the same dtype: integers sRGB-encoded, floats linear light with sRGB
        primaries, not clipped. Unchanged if `profile_mode` is None or does not match the samples; floats are then
        assumed to be linear light, even with an sRGB profile.

    Raises:
        ImportError: imagecodecs is not installed.
    """
    floats = samples.dtype.kind == "f"
    channels = samples.shape[2]
    colours = 1 if channels < 3 else 3
    mode = profile_mode(profile)
    if profile is None or mode != ("L" if colours == 1 else "RGB"):
        return samples
    imagecodecs = optional_library("imagecodecs", "A colour profile of more than 8 bits")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    try:
        converted = imagecodecs.cms_transform(
            np.ascontiguousarray(samples[..., :colours] if colours == 3 else samples[..., 0]),
            profile,
            matrix_profile(SRGB, 1.0) if floats else srgb,
            colorspace="rgb" if colours == 3 else "gray",
            outcolorspace="rgb",
            intent=int(INTENT),
            flags=int(FLAGS | ImageCms.Flags.NOOPTIMIZE),  # optimised tables err by up to 350 of 65535 levels
        )
    except imagecodecs.CmsError:
        return samples
    return converted if channels == colours else np.concatenate([converted, samples[..., -1:]], axis=-1)


def matrix_profile(chromaticities: Sequence[float], gamma: float | None) -> bytes | None:
    """Build an ICC profile from primaries and a transfer curve.

    Args:
        chromaticities: x and y of white, red, green and blue.
        gamma: the decoding exponent; None for the sRGB curve.

    Returns:
        The profile; None if these numbers do not define one.
    """
    imagecodecs = optional_library("imagecodecs", "A PNG with gAMA, cHRM or cICP")
    x = np.linspace(0, 1, 4096)
    curve = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    transfer = {"transferfunction": curve.astype(np.float32)} if gamma is None else {"gamma": gamma}
    try:
        profile: bytes = imagecodecs.cms_profile(
            "rgb", whitepoint=[*chromaticities[:2], 1.0], primaries=list(chromaticities[2:]), **transfer
        )
        return profile
    except (imagecodecs.CmsError, ValueError):
        return None


def _transform(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", INTENT, FLAGS)
