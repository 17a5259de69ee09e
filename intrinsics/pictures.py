"""Reading and writing of pictures. Pictures are read as upright sRGB-encoded RGB in [0, 1], at full bit depth."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from .budget import TooLarge, check_memory, memory_limit, row_bands
from .color import linear_to_srgb
from .exr import optional_library
from .exr_layers import read_exr_colour
from .files import atomic_path, continued, refuse_lfs_pointer
from .png import MAGIC as PNG_MAGIC
from .png import png16, png_parts
from .profiles import image_to_srgb, samples_to_srgb

FORMATS = "EXR, PNG, JPEG, WebP, TIFF, GIF, BMP, PPM, AVIF, HEIC"

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two are BigTIFF
EXR_MAGIC = b"v/1\x01"
PNM_MAGIC = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"Py")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ORIENTATION = 274  # the EXIF and TIFF tag
PROFILE = 34675  # the TIFF tag
MID_GREY = 0.5  # sRGB-encoded; zero in the input of the VAE
# Bytes per pixel. 31 were measured for a photo of 102 megapixels and one map at a time, temporaries included; alpha
# takes 4 more. While the photo is read there is no map yet, but the buffers of the decoder.
USED_PER_PIXEL = 36
READ_PER_PIXEL = 16  # red, green, blue and alpha in float32
PILLOW_PER_PIXEL = 8  # two copies, during conversion, of 8-bit channels padded to four
DRAFT_SCALES = (1, 2, 4, 8)  # factors by which JPEG decoding can reduce the size


@dataclass(frozen=True)
class Picture:
    """A picture as input of the network.

    Attributes:
        rgb: (1, 3, H, W) float32, sRGB-encoded, in [0, 1] unless `clip=False`. Transparent pixels are composited
            on mid grey (0.5 encoded).
        alpha: (1, 1, H, W) float32 in [0, 1], 1 = opaque; None for a file without transparency.
        bit_depth: bits per channel in the file: 1 to 16 for integers, 16 or 32 for floats.
        frames: number of frames or pages in the file; this picture is the first.
        full_size: (height, width) as stored in the file, if the picture was read at a smaller size.
    """

    rgb: Tensor
    alpha: Tensor | None
    bit_depth: int
    frames: int = 1
    full_size: tuple[int, int] | None = None


def read_picture(path: str | os.PathLike[str], clip: bool = True) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF, EXR, GIF, BMP, PPM, AVIF or HEIC file, detected by its content.

    EXIF orientation is applied, grey is converted to RGB, and only the first frame or page is read. Integers are
    converted to sRGB by the colour profile (ICC, or a PNG's cICP, gAMA and cHRM); without one they are assumed to be
    sRGB, and CMYK is converted by Pillow. Floats (EXR, TIFF) are assumed to be linear light; they are sRGB-encoded
    and clipped at 1. The layer of an EXR is chosen by `read_exr_colour`, and its primaries are
    converted to Rec. 709. Broken profiles, EXIF and text are ignored. A JPEG that exceeds `budget.memory_limit` is
    read at half, a quarter or an eighth of its size.

    Args:
        path: the file.
        clip: False keeps values above 1 in a float file, sRGB-encoded by the same curve.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a picture, damaged, truncated, empty, not a regular file, contains NaN or
            infinity, or exceeds `budget.memory_limit`; the message names the file.
        ImportError: the format requires an optional library, named by the message.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a picture file.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if not path.is_file():  # opening a pipe would block
        raise ValueError(f"{path} is a pipe or a device: name a picture file.")
    with path.open("rb") as file:
        try:
            return _read(file, path, clip)
        except (ImportError, TooLarge):
            raise
        except UnidentifiedImageError as error:
            refuse_lfs_pointer(path)
            raise ValueError(f"{path} is not a picture in a supported format ({FORMATS}).") from error
        except Exception as error:  # decoders raise many kinds of errors on damaged files
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"Cannot read the picture {path}: {continued(reason)}") from error


def _read(file: BinaryIO, path: Path, clip: bool) -> Picture:
    head = file.read(32)
    file.seek(0)
    if not head:
        raise ValueError("The file is empty.")
    if head.startswith(EXR_MAGIC):
        return _read_exr_picture(path, clip)
    if head.startswith(PNG_MAGIC):
        return _read_png(file, head, path)
    if head.startswith(TIFF_MAGIC):
        return _read_tiff(file, path, clip)
    if head.startswith(b"\xff\xd8\xff"):
        return _read_jpeg(file, path)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        _check_size(*_webp_size(head), PILLOW_PER_PIXEL + 8, path)  # its decoder allocates two canvases
    image = _open(file, head)
    _check_size(*image.size, PILLOW_PER_PIXEL, path)
    frames = 1
    if image.format != "HEIF":  # the main picture is read, which need not be the first
        with suppress(Exception):  # a damaged later frame does not matter
            frames = getattr(image, "n_frames", 1)
    return replace(picture_from_pil(image), frames=frames)


def _open(file: BinaryIO, head: bytes) -> Image.Image:
    """Open a picture with a decoder that is safe for untrusted files.

    `Image.open` is not used, because it limits the number of pixels and its EPS decoder runs Ghostscript.
    """
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return GifImagePlugin.GifImageFile(file)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(file)
    if head[:2] == b"BM":
        return BmpImagePlugin.BmpImageFile(file)
    if head[:2] in PNM_MAGIC:
        return PpmImagePlugin.PpmImageFile(file)
    if head[4:8] == b"ftyp" and (head[8:12] in (b"avif", b"avis") or b"avif" in head[16:]):
        try:
            from PIL.AvifImagePlugin import AvifImageFile
        except ImportError as error:
            raise ImportError("Reading AVIF needs Pillow 11.3 or later: pip install -U pillow.") from error
        return AvifImageFile(file)
    if head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS:
        try:
            from pillow_heif import HeifImageFile
        except ImportError as error:
            raise ImportError("Reading HEIC needs the package pillow-heif: pip install pillow-heif.") from error
        return HeifImageFile(file)
    raise UnidentifiedImageError


def _read_png(file: BinaryIO, head: bytes, path: Path) -> Picture:
    parts = png_parts(file)
    image = PngImageFile(parts.pixels)
    if head[24] < 16:  # the bit depth in IHDR
        _check_size(*image.size, PILLOW_PER_PIXEL, path)
        image.info["icc_profile"] = parts.profile
        return replace(picture_from_pil(image), frames=parts.frames)
    imagecodecs = optional_library("imagecodecs", "Reading 16-bit PNG")  # Pillow reduces 16-bit colour to 8 bits
    _check_size(*image.size, 16, path)  # two copies of the samples, during conversion
    orientation = _orientation(image)
    parts.pixels.seek(0)
    samples = np.atleast_3d(imagecodecs.png_decode(parts.pixels.read()))
    picture = _picture(samples_to_srgb(samples, parts.profile), 16, orientation)
    return replace(picture, frames=parts.frames)


def _read_tiff(file: BinaryIO, path: Path, clip: bool) -> Picture:
    tifffile = optional_library("tifffile", "Reading TIFF")
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        deep = page.bitspersample > 8  # Pillow reduces 16-bit colour to 8 bits and does not support float colour
        per_pixel = 2 * page.samplesperpixel * max(1, page.bitspersample // 8) if deep else PILLOW_PER_PIXEL
        _check_size(page.imagewidth, page.imagelength, per_pixel, path)
        frames = 1
        with suppress(Exception):  # a damaged later page does not matter
            frames = max(1, sum(not other.is_reduced for other in tiff.pages))
        if deep:
            return replace(_read_deep_tiff(page, clip), frames=frames)
    file.seek(0)
    return replace(picture_from_pil(TiffImagePlugin.TiffImageFile(file)), frames=frames)


def _read_jpeg(file: BinaryIO, path: Path) -> Picture:
    """Decode a JPEG, at half, a quarter or an eighth of its size if it exceeds the memory limit."""
    image = JpegImagePlugin.JpegImageFile(file)
    width, height = image.size
    # The decoder holds all coefficients of a progressive file, at full size.
    coefficients = width * height * 2 * len(image.getbands()) if image.info.get("progressive") else 0

    def required(scale: int) -> int:
        return _peak(width * height // scale**2, PILLOW_PER_PIXEL, coefficients)

    scale = next((scale for scale in DRAFT_SCALES if required(scale) <= memory_limit()), DRAFT_SCALES[-1])
    check_memory(required(scale), f"{path} ({width} x {height} pixels)")
    if scale == 1:
        return picture_from_pil(image)
    image.draft(None, (width // scale, height // scale))
    return replace(picture_from_pil(image), full_size=(height, width))


def _check_size(width: int, height: int, decoder_bytes: int, path: Path) -> None:
    """Reject a picture that exceeds the memory limit; its decoder takes `decoder_bytes` per pixel."""
    check_memory(_peak(width * height, decoder_bytes), f"{path} ({width} x {height} pixels)")


def _peak(pixels: int, decoder_bytes: int, held: int = 0) -> int:
    """Return the peak in bytes, during decoding or after it; the decoder also holds `held` bytes."""
    return max(USED_PER_PIXEL * pixels, held + (READ_PER_PIXEL + decoder_bytes) * pixels)


def _webp_size(head: bytes) -> tuple[int, int]:
    """Return (width, height) from the first chunk of a WebP, which has one of three kinds."""
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def picture_from_pil(image: Image.Image) -> Picture:
    """Convert the current frame of a Pillow image, applying its EXIF orientation and colour profile, if any.

    Mode I is read as 16-bit grey (as Pillow opens a 16-bit PGM), mode F as linear light, other modes as 8 bits.

    Raises:
        ValueError: the image is empty, contains NaN or infinity, mode I values beyond 16 bits, or has a mode that
            Pillow cannot convert.
    """
    if 0 in image.size:
        raise ValueError(f"The picture has no pixels ({image.width} x {image.height}).")
    image.load()  # before getexif, because Pillow turns a TIFF upright here and removes the tag
    orientation = _orientation(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 65535:
            raise ValueError("Integers beyond 16 bits have no defined white: save the picture with 8 or 16 bits.")
        return _picture(
            samples_to_srgb(samples.astype(np.uint16)[..., None], image.info.get("icc_profile")), 16, orientation
        )
    if image.mode == "F":
        return _picture(np.asarray(image), 32, orientation)
    return _picture(np.asarray(image_to_srgb(image)), 8, orientation)


def _orientation(image: Image.Image) -> Any:
    with suppress(Exception):  # broken EXIF means upright, as in viewers; Pillow raises many kinds of errors
        return image.getexif().get(ORIENTATION)
    return None


def _read_exr_picture(path: Path, clip: bool) -> Picture:
    samples, alpha, bits = read_exr_colour(path)
    # EXR alpha is premultiplied by definition.
    return _picture(samples, bits, premultiplied=alpha, clip=clip)


def _read_deep_tiff(page: Any, clip: bool) -> Picture:
    """Decode a tifffile page of more than 8 bits per channel: grey or RGB, integers or floats, any alpha."""
    samples, photometric = page.asarray(), page.photometric
    colours = {0: 1, 1: 1, 2: 3}.get(photometric)  # MinIsWhite, MinIsBlack, RGB
    if colours is None or samples.dtype.kind not in "uf" or page.axes not in ("YX", "YXS", "SYX"):
        raise ValueError("A TIFF of more than 8 bits must be grey or RGB, unsigned or float: convert it.")
    samples = np.atleast_3d(np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples)  # (H, W, C)
    if photometric == 0:
        samples = samples.dtype.type(1 if samples.dtype.kind == "f" else 2**page.bitspersample - 1) - samples
    extra = [int(kind) for kind in page.extrasamples]  # 1 = premultiplied alpha, 2 = straight alpha, 0 = unspecified
    alpha = next((index for index, kind in enumerate(extra) if kind in (1, 2)), None)
    keep = [*range(colours)] + ([] if alpha is None else [colours + alpha])
    premultiplied = alpha is not None and extra[alpha] == 1
    samples, bits = samples[..., keep], page.bitspersample
    if samples.dtype.itemsize * 8 == bits and (samples.dtype.kind == "f" or bits == 16) and not premultiplied:
        samples = samples_to_srgb(
            samples.astype("f4") if samples.dtype.kind == "f" else samples, page.tags.valueof(PROFILE)
        )
    return _picture(samples, bits, page.tags.valueof(ORIENTATION), premultiplied, clip)


def _picture(
    samples: np.ndarray, bit_depth: int, orientation: Any = None, premultiplied: bool = False, clip: bool = True
) -> Picture:
    """Convert samples (H, W) or (H, W, C), C = grey, grey + alpha, RGB or RGB + alpha.

    Floats are linear light; integers are sRGB-encoded in 0 .. 2**bit_depth - 1.
    """
    if 0 in samples.shape:
        raise ValueError("The picture has no pixels.")
    samples = _upright(np.atleast_3d(samples), orientation)
    linear = samples.dtype.kind == "f"
    white = np.float32(1 if linear else 2**bit_depth - 1)
    height, width, channels = samples.shape
    rgb = torch.empty(1, 3, height, width)
    opacity = torch.empty(1, 1, height, width) if channels in (2, 4) else None
    for rows in row_bands(height, width):
        values = np.ascontiguousarray(samples[rows] / white, np.float32)
        x = torch.from_numpy(values).permute(2, 0, 1)[None]  # (1, C, h, W)
        if not x.isfinite().all():
            raise ValueError("It holds NaN or infinite values.")
        alpha = None if opacity is None else x[:, -1:].clamp(0, 1)
        x = x if alpha is None else x[:, :-1]
        if alpha is not None and premultiplied:
            x = torch.where(alpha > 0, x / alpha, 0.0)
        colour = (linear_to_srgb(x) if linear else x).clamp(0, 1 if clip else None)
        if alpha is not None:
            opacity[..., rows, :] = alpha  # type: ignore[index]
            colour = on_mid_grey(colour, alpha)
        rgb[..., rows, :] = colour
    return Picture(rgb, opacity, bit_depth)


def on_mid_grey(colour: Tensor, alpha: Tensor) -> Tensor:
    """Composite straight-alpha sRGB (B, C, H, W) by `alpha` (B, 1, H, W) on mid grey, zero in the VAE's input."""
    return alpha * colour + (1 - alpha) * MID_GREY


def _upright(samples: np.ndarray, orientation: Any) -> np.ndarray:
    """Undo EXIF orientation 1..8 on (H, W, C); other values mean upright. The result is a view."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    axes = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    return np.flip(samples, axes)


def write_png(
    path: str | os.PathLike[str], picture: Tensor, bits: int = 8, draw: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Write a PNG, atomically.

    Args:
        path: the file to write.
        picture: (C, H, W) or (1, C, H, W) in [0, 1], clipped; C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + straight
            alpha.
        bits: 8 or 16 per channel; values are rounded to the nearest level.
        draw: function from a band of rows (1, C, h, W) to the band to write, of the same shape.

    Raises:
        ValueError: invalid shape or bit depth, or NaN.
    """
    x = picture[0] if picture.ndim == 4 and len(picture) == 1 else picture
    if x.ndim != 3 or not 1 <= x.shape[0] <= 4 or 0 in x.shape:
        raise ValueError(f"A PNG holds one picture (C, H, W) of 1 to 4 channels, not {tuple(picture.shape)}.")
    if bits not in (8, 16):
        raise ValueError(f"A PNG is written with 8 or 16 bits, not {bits}.")
    channels, height, width = x.shape
    bands = level_bands(x, bits, draw)
    with atomic_path(path) as temporary:
        if bits == 16:
            with temporary.open("wb") as file:
                file.writelines(png16(bands, (height, width, channels)))
        else:
            image = Image.new(("L", "LA", "RGB", "RGBA")[channels - 1], (width, height))
            for rows, levels in bands:
                image.paste(Image.fromarray(levels[..., 0] if channels == 1 else levels), (0, rows.start))
            image.save(temporary, format="PNG")


def level_bands(
    picture: Tensor, bits: int = 8, draw: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Clip (C, H, W) to [0, 1] and yield bands of rows (h, W, C) of uint8 or uint16. `draw`: see `write_png`.

    Raises:
        ValueError: the picture contains NaN.
    """
    for rows in row_bands(picture.shape[1], picture.shape[2]):
        band = picture.detach()[:, rows]
        band = band if draw is None else draw(band[None])[0]
        if band.isnan().any():
            raise ValueError("The picture holds NaN and cannot be written as PNG.")
        levels = (band.cpu().double().clamp(0, 1) * (2**bits - 1)).round().permute(1, 2, 0)  # (h, W, C)
        yield rows, np.ascontiguousarray(levels.numpy().astype(np.uint8 if bits == 8 else np.uint16))


def write_npz(path: str | os.PathLike[str], **arrays: Tensor | np.ndarray) -> None:
    """Write named arrays or tensors to one compressed `.npz`, atomically.

    Raises:
        ValueError: an array of Python objects, which would require pickle.
    """
    stored = {name: a.detach().cpu().numpy() if isinstance(a, Tensor) else np.asarray(a) for name, a in arrays.items()}
    objects = [name for name, array in stored.items() if array.dtype.hasobject]
    if objects:
        raise ValueError(f"{', '.join(objects)}: an npz holds numbers and text, not Python objects.")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:  # given a path, savez would append .npz
        np.savez_compressed(file, **stored)  # type: ignore[arg-type]


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON (UTF-8, indented), atomically.

    Raises:
        ValueError: the value contains NaN or infinity.
        TypeError: the value contains another type that JSON does not support.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        # File names that are not UTF-8 contain lone surrogates, which are escaped as in JSON.
        temporary.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))
