"""Pictures in and out. What comes in is sRGB-encoded RGB in [0,1], upright, at the file's full depth."""

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
MID_GREY = 0.5  # sRGB-encoded: the zero of what the VAE is shown
# Bytes per pixel: of a picture and one map of it, in float32, and alpha. What the decoder takes comes on top.
FLOATS_PER_PIXEL = 28
PILLOW_PER_PIXEL = 8  # 8-bit channels, padded to four, and once more while they are converted
DRAFT_SCALES = (1, 2, 4, 8)  # by which a JPEG can be decoded smaller


@dataclass(frozen=True)
class Picture:
    """A picture as the network is to see it.

    Attributes:
        rgb: (1, 3, H, W) float32, sRGB-encoded, [0,1] unless `clip=False`. Where `alpha` < 1 it is composited
            on mid grey (0.5 encoded).
        alpha: (1, 1, H, W) float32 in [0,1], 1 = opaque; None for a file without transparency.
        bit_depth: bits per channel in the file: 1 to 16 for integers, 16 or 32 for floats.
        frames: of an animation, or pages, in the file, of which this is the first.
        full_size: (height, width) in the file, as it is stored, where it was too large and was read smaller.
    """

    rgb: Tensor
    alpha: Tensor | None
    bit_depth: int
    frames: int = 1
    full_size: tuple[int, int] | None = None


def read_picture(path: str | os.PathLike[str], clip: bool = True) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF, EXR, GIF, BMP, PPM, AVIF or HEIC file, recognised by content, not by its name.

    EXIF orientation is applied, grey becomes RGB, of several frames or pages the first is taken. Integers are brought
    to sRGB by the colour profile (ICC, or a PNG's cICP, gAMA and cHRM) and are taken as sRGB without one; CMYK
    without a profile is converted as Pillow does. Floats (EXR, TIFF) are taken as linear light: they are sRGB-encoded
    and what exceeds 1 is clipped to white. Of an EXR the layer is read that `read_exr_colour` chooses, its primaries
    being converted to Rec. 709. Broken profiles, EXIF and text are ignored. A JPEG beyond `budget.memory_limit` is
    read at half, a quarter or an eighth of its size.

    Args:
        path: the file.
        clip: False keeps what exceeds 1 in a float file, sRGB-encoded by the same curve.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: one sentence that names the file: not a picture, damaged, truncated, zero-size, with NaN or
            infinite values, not a regular file, or larger than `budget.memory_limit` allows.
        ImportError: the format needs an optional library; the sentence names it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a picture file.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if not path.is_file():  # opening a pipe would wait for its writer
        raise ValueError(f"{path} is a pipe or a device: name a picture file.")
    with path.open("rb") as file:
        try:
            return _read(file, path, clip)
        except (ImportError, TooLarge):
            raise
        except UnidentifiedImageError as error:
            refuse_lfs_pointer(path)
            raise ValueError(f"{path} is not a picture that can be read (these can: {FORMATS}).") from error
        except Exception as error:  # decoders raise nearly anything on a damaged file
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
        _check_size(*_webp_size(head), PILLOW_PER_PIXEL + 8, path)  # its decoder takes two canvases at once
    image = _open(file, head)
    _check_size(*image.size, PILLOW_PER_PIXEL, path)
    frames = 1
    if image.format != "HEIF":  # of which the main picture is taken
        with suppress(Exception):  # a damaged later frame does not matter
            frames = getattr(image, "n_frames", 1)
    return replace(picture_from_pil(image), frames=frames)


def _open(file: BinaryIO, head: bytes) -> Image.Image:
    """Open a picture with a decoder that is safe on untrusted files; Pillow's EPS decoder runs Ghostscript.

    Named one by one, because `Image.open` has a limit in pixels of its own.
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
    imagecodecs = optional_library("imagecodecs", "Reading 16-bit PNG")  # Pillow cuts 16-bit colour to 8
    _check_size(*image.size, 16, path)  # samples, and once more while they are converted
    orientation = _orientation(image)
    parts.pixels.seek(0)
    samples = np.atleast_3d(imagecodecs.png_decode(parts.pixels.read()))
    picture = _picture(samples_to_srgb(samples, parts.profile), 16, orientation)
    return replace(picture, frames=parts.frames)


def _read_tiff(file: BinaryIO, path: Path, clip: bool) -> Picture:
    tifffile = optional_library("tifffile", "Reading TIFF")
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        deep = page.bitspersample > 8  # Pillow cuts 16-bit colour to 8 and knows no float colour
        taken = 2 * page.samplesperpixel * max(1, page.bitspersample // 8) if deep else PILLOW_PER_PIXEL
        _check_size(page.imagewidth, page.imagelength, taken, path)
        frames = 1
        with suppress(Exception):  # a damaged later page does not matter
            frames = max(1, sum(not each.is_reduced for each in tiff.pages))
        if deep:
            return replace(_read_deep_tiff(page, clip), frames=frames)
    file.seek(0)
    return replace(picture_from_pil(TiffImagePlugin.TiffImageFile(file)), frames=frames)


def _read_jpeg(file: BinaryIO, path: Path) -> Picture:
    """Decode a photo, one larger than the memory limit at half, a quarter or an eighth of its size."""
    image = JpegImagePlugin.JpegImageFile(file)
    width, height = image.size
    # A progressive file is held whole as coefficients, at its full size.
    held = width * height * 2 * len(image.getbands()) if image.info.get("progressive") else 0

    def needs(scale: int) -> int:
        return held + width * height * (FLOATS_PER_PIXEL + PILLOW_PER_PIXEL) // scale**2

    scale = next((scale for scale in DRAFT_SCALES if needs(scale) <= memory_limit()), DRAFT_SCALES[-1])
    check_memory(needs(scale), f"{path} ({width} x {height} pixels)")
    if scale == 1:
        return picture_from_pil(image)
    image.draft(None, (width // scale, height // scale))
    return replace(picture_from_pil(image), full_size=(height, width))


def _check_size(width: int, height: int, decoder_bytes: int, path: Path) -> None:
    """Refuse a picture whose decoder, which takes so many bytes per pixel, and floats exceed the memory limit."""
    check_memory(width * height * (FLOATS_PER_PIXEL + decoder_bytes), f"{path} ({width} x {height} pixels)")


def _webp_size(head: bytes) -> tuple[int, int]:
    """(width, height) from the first chunk of a WebP, of which there are three kinds."""
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def picture_from_pil(image: Image.Image) -> Picture:
    """Any Pillow image, the current frame; EXIF orientation and colour profile are applied if it still carries them.

    Mode I is taken as 16-bit grey (what Pillow makes of a 16-bit PGM), mode F as linear light, the rest as 8 bits.

    Raises:
        ValueError: zero-size, NaN or infinite values, a mode that Pillow cannot convert, or mode I beyond 16 bits.
    """
    if 0 in image.size:
        raise ValueError(f"The picture has no pixels ({image.width} x {image.height}).")
    image.load()  # before getexif: Pillow turns a TIFF upright here and forgets the tag
    orientation = _orientation(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 65535:
            raise ValueError("Integers beyond 16 bits have no agreed white: save the picture with 8 or 16 bits.")
        return _picture(
            samples_to_srgb(samples.astype(np.uint16)[..., None], image.info.get("icc_profile")), 16, orientation
        )
    if image.mode == "F":
        return _picture(np.asarray(image), 32, orientation)
    return _picture(np.asarray(image_to_srgb(image)), 8, orientation)


def _orientation(image: Image.Image) -> Any:
    with suppress(Exception):  # Pillow raises nearly anything on a broken block: upright then, as viewers take it
        return image.getexif().get(ORIENTATION)
    return None


def _read_exr_picture(path: Path, clip: bool) -> Picture:
    samples, alpha, bits = read_exr_colour(path)
    # EXR alpha is premultiplied by definition.
    return _picture(samples, bits, premultiplied=alpha, clip=clip)


def _read_deep_tiff(page: Any, clip: bool) -> Picture:
    """Decode a tifffile page of more than 8 bits per channel: grey or RGB, integers or floats, any alpha."""
    samples, photometric = page.asarray(), page.photometric
    colours = {0: 1, 1: 1, 2: 3}.get(photometric)  # white is zero, black is zero, RGB
    if colours is None or samples.dtype.kind not in "uf" or page.axes not in ("YX", "YXS", "SYX"):
        raise ValueError("A TIFF of more than 8 bits must be grey or RGB, unsigned or float: convert it.")
    samples = np.atleast_3d(np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples)  # (H, W, C)
    if photometric == 0:
        samples = samples.dtype.type(1 if samples.dtype.kind == "f" else 2**page.bitspersample - 1) - samples
    extra = [int(kind) for kind in page.extrasamples]  # 1 = premultiplied alpha, 2 = straight alpha, 0 = anything
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
    """(H, W) or (H, W, C) samples, C = grey, grey + alpha, RGB or RGB + alpha.

    Floats are linear light; integers are sRGB-encoded and span 0 .. 2**bit_depth - 1.
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
    """Composite straight-alpha sRGB (B, C, H, W) by `alpha` (B, 1, H, W) on mid grey, the zero of the VAE."""
    return alpha * colour + (1 - alpha) * MID_GREY


def _upright(samples: np.ndarray, orientation: Any) -> np.ndarray:
    """Undo EXIF orientation 1..8 on (H, W, C); other values mean upright. Returns a view, not a copy."""
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
        picture: (C, H, W) or (1, C, H, W) in [0,1], clipped; 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + straight alpha.
        bits: 8 or 16 per channel; values are rounded to the nearest level.
        draw: applied to `picture` band by band: a function of its rows (1, C, h, W) to the same shape.

    Raises:
        ValueError: another shape, another depth, NaN.
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
    """Round (C, H, W) in [0,1], clipped to it, to bands of rows (h, W, C) of uint8 or uint16. `draw`: see `write_png`.

    Raises:
        ValueError: NaN.
    """
    for rows in row_bands(picture.shape[1], picture.shape[2]):
        band = picture.detach()[:, rows]
        band = band if draw is None else draw(band[None])[0]
        if band.isnan().any():
            raise ValueError("The picture holds NaN and cannot be written as PNG.")
        levels = (band.cpu().double().clamp(0, 1) * (2**bits - 1)).round().permute(1, 2, 0)  # (h, W, C)
        yield rows, np.ascontiguousarray(levels.numpy().astype(np.uint8 if bits == 8 else np.uint16))


def write_npz(path: str | os.PathLike[str], **arrays: Tensor | np.ndarray) -> None:
    """Write named arrays or tensors as they are into one compressed `.npz`, atomically; loads without pickle.

    Raises:
        ValueError: an array of Python objects, which only pickle could store.
    """
    stored = {name: a.detach().cpu().numpy() if isinstance(a, Tensor) else np.asarray(a) for name, a in arrays.items()}
    objects = [name for name, array in stored.items() if array.dtype.hasobject]
    if objects:
        raise ValueError(f"{', '.join(objects)}: an npz takes numbers and text, not Python objects.")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:  # a handle: savez adds .npz to a bare name
        np.savez_compressed(file, **stored)  # type: ignore[arg-type]


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON (UTF-8, indented), atomically.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
        TypeError: something else that JSON does not have.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        # A file name that is not UTF-8 has lone surrogates in it: escaped as JSON escapes them.
        temporary.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))
