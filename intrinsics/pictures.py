"""Pictures in and out. What comes in is sRGB-encoded RGB in [0,1], upright, at the file's full depth."""

import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .color import linear_to_srgb
from .exr import check_pixel_count, optional_library
from .exr_layers import read_exr_colour
from .files import atomic_path

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".exr", ".gif", ".bmp")

# Decoders that are safe on a stranger's file; Pillow's whole list would, for one, run Ghostscript on an EPS.
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two are BigTIFF
EXR_MAGIC = b"v/1\x01"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 274  # the EXIF and TIFF tag
MID_GREY = 0.5  # sRGB-encoded: the zero of what the VAE is shown


@dataclass(frozen=True)
class Picture:
    """A picture as the network is to see it.

    Attributes:
        rgb: (1,3,H,W) float32, sRGB-encoded, [0,1] unless read with `clip=False`. Where `alpha` < 1 it is composited
            on mid grey (0.5 encoded).
        alpha: (1,1,H,W) float32 in [0,1], 1 = opaque; None for a file without transparency.
        bit_depth: bits per channel in the file: 1 to 16 for integers, 16 or 32 for floats.
    """

    rgb: Tensor
    alpha: Tensor | None
    bit_depth: int


def read_picture(path: str | os.PathLike, clip: bool = True) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF, EXR, GIF, BMP or PPM file, recognised by content and not by its name.

    EXIF orientation is applied, grey becomes RGB, CMYK is converted as Pillow does, of several frames or pages the
    first is taken. Integers are taken as sRGB-encoded (colour profiles are not applied). Floats (EXR, TIFF) are taken
    as linear light: they are sRGB-encoded and what exceeds 1 is clipped to white. Of an EXR the layer is read that
    `read_exr_colour` chooses, its primaries being converted to Rec. 709.

    Args:
        path: the file.
        clip: False keeps what exceeds 1 in a float file, sRGB-encoded by the same curve.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one sentence that names the file: not a picture, damaged, truncated, zero-size, with NaN or
            infinite values, or a decompression bomb (more than twice `PIL.Image.MAX_IMAGE_PIXELS`).
        ImportError: the format needs an optional library; the sentence names it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a picture file")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        try:
            return _read(file, path, clip)
        except ImportError:
            raise
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path} is too large to be read safely: {error}") from error
        except Image.UnidentifiedImageError as error:
            known = ", ".join(("EXR", *PILLOW_FORMATS))
            raise ValueError(f"{path} is not a picture that can be read (these can: {known})") from error
        except Exception as error:  # decoders raise nearly anything on a damaged file
            raise ValueError(f"cannot read the picture {path}: {error}") from error


def _read(file: BinaryIO, path: Path, clip: bool) -> Picture:
    head = file.read(26)
    file.seek(0)
    if not head:
        raise ValueError("the file is empty")
    if head.startswith(EXR_MAGIC):
        return _read_exr_picture(path, clip)
    if head.startswith(TIFF_MAGIC):
        tifffile = optional_library("tifffile", "reading TIFF")
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages[0]
            check_pixel_count(page.imagewidth, page.imagelength)
            if page.bitspersample > 8:  # Pillow cuts 16-bit colour to 8 and knows no float colour
                return _read_deep_tiff(page, clip)
        file.seek(0)
    image = Image.open(file, formats=PILLOW_FORMATS)
    if head.startswith(PNG_MAGIC) and head[24] == 16:  # the bit depth in IHDR; Pillow cuts 16-bit colour to 8
        imagecodecs = optional_library("imagecodecs", "reading 16-bit PNG")
        orientation = image.getexif().get(ORIENTATION)
        file.seek(0)
        return _picture(imagecodecs.png_decode(file.read()), 16, orientation)
    return picture_from_pil(image)


def picture_from_pil(image: Image.Image) -> Picture:
    """Any Pillow image, first frame; EXIF orientation is applied if the image still carries it.

    Mode I is taken as 16-bit grey (what Pillow makes of a 16-bit PGM), mode F as linear light, the rest as 8-bit sRGB.

    Raises:
        ValueError: zero-size, NaN or infinite values, a mode that Pillow cannot convert, or mode I beyond 16 bits.
    """
    if 0 in image.size:
        raise ValueError(f"the picture has no pixels ({image.width} x {image.height})")
    image.load()  # before getexif: Pillow turns a TIFF upright here and forgets the tag
    orientation = image.getexif().get(ORIENTATION)
    if image.mode == "I" or image.mode.startswith("I;16"):
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 65535:
            raise ValueError("integers beyond 16 bits have no agreed white: save the picture with 8 or 16 bits")
        return _picture(samples, 16, orientation)
    if image.mode == "F":
        return _picture(np.asarray(image), 32, orientation)
    if image.has_transparency_data:
        image = image.convert("RGBA")  # also un-premultiplies, and resolves palettes and key colours
    elif image.mode != "L":
        image = image.convert("RGB")
    return _picture(np.asarray(image), 8, orientation)


def _read_exr_picture(path: Path, clip: bool) -> Picture:
    samples, alpha, bits = read_exr_colour(path)
    # EXR alpha is premultiplied by definition.
    return _picture(samples, bits, premultiplied=alpha, clip=clip)


def _read_deep_tiff(page: Any, clip: bool) -> Picture:
    """A tifffile page of more than 8 bits per channel: grey or RGB, integers or floats, alpha of either kind."""
    samples, photometric = page.asarray(), page.photometric
    colours = {0: 1, 1: 1, 2: 3}.get(photometric)  # white is zero, black is zero, RGB
    if colours is None or samples.dtype.kind not in "uf" or page.axes not in ("YX", "YXS", "SYX"):
        raise ValueError("a TIFF of more than 8 bits must be grey or RGB, unsigned or float: convert it to that")
    samples = np.atleast_3d(np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples)  # (H,W,C)
    if photometric == 0:
        samples = samples.dtype.type(1 if samples.dtype.kind == "f" else 2**page.bitspersample - 1) - samples
    extra = [int(kind) for kind in page.extrasamples]  # 1 = premultiplied alpha, 2 = straight alpha, 0 = anything
    alpha = next((index for index, kind in enumerate(extra) if kind in (1, 2)), None)
    keep = [*range(colours)] + ([] if alpha is None else [colours + alpha])
    premultiplied = alpha is not None and extra[alpha] == 1
    return _picture(samples[..., keep], page.bitspersample, page.tags.valueof(ORIENTATION), premultiplied, clip)


def _picture(
    samples: np.ndarray, bit_depth: int, orientation: Any = None, premultiplied: bool = False, clip: bool = True
) -> Picture:
    """(H,W) or (H,W,C) samples, C = grey, grey + alpha, RGB or RGB + alpha.

    Floats are linear light; integers are sRGB-encoded and span 0 .. 2**bit_depth - 1.
    """
    if 0 in samples.shape:
        raise ValueError("the picture has no pixels")
    linear = samples.dtype.kind == "f"
    values = np.atleast_3d(samples) / np.float32(1 if linear else 2**bit_depth - 1)
    x = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]  # (1,C,H,W)
    if not x.isfinite().all():
        raise ValueError("it holds NaN or infinite values")
    x = _upright(x, orientation).contiguous()
    if x.shape[1] in (2, 4):
        x, alpha = x[:, :-1], x[:, -1:].clamp(0, 1)
        if premultiplied:
            x = torch.where(alpha > 0, x / alpha, 0.0)
    else:
        alpha = None
    colour = (linear_to_srgb(x) if linear else x).clamp(0, 1 if clip else None)
    if alpha is not None:
        colour = on_mid_grey(colour, alpha)
    return Picture(colour.expand(-1, 3, -1, -1).contiguous(), alpha, bit_depth)


def on_mid_grey(colour: Tensor, alpha: Tensor) -> Tensor:
    """Composite straight-alpha sRGB (B,C,H,W) by `alpha` (B,1,H,W) on mid grey, which the network reads as nothing."""
    return alpha * colour + (1 - alpha) * MID_GREY


def _upright(x: Tensor, orientation: Any) -> Tensor:
    """Undo EXIF orientation 1..8 on (...,H,W); anything else is taken as upright, as viewers do."""
    if orientation in (5, 6, 7, 8):
        x = x.transpose(-1, -2)
    return x.flip({2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}.get(orientation, ()))


def write_png(path: str | os.PathLike, picture: Tensor, bits: int = 8) -> None:
    """Write a PNG, atomically.

    Args:
        path: the file to write.
        picture: (C,H,W) or (1,C,H,W) in [0,1], clipped to it; 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + straight alpha.
        bits: 8 or 16 per channel; values are rounded to the nearest level.

    Raises:
        ValueError: another shape, another depth, NaN.
    """
    x = picture[0] if picture.ndim == 4 and len(picture) == 1 else picture
    if x.ndim != 3 or not 1 <= x.shape[0] <= 4 or 0 in x.shape:
        raise ValueError(f"a PNG holds one picture (C,H,W) of 1 to 4 channels, not {tuple(picture.shape)}")
    if bits not in (8, 16):
        raise ValueError(f"a PNG is written with 8 or 16 bits, not {bits}")
    if x.isnan().any():
        raise ValueError("the picture holds NaN and cannot be written as PNG")
    levels = (x.detach().cpu().double().clamp(0, 1) * (2**bits - 1)).round().permute(1, 2, 0)  # (H,W,C)
    samples = np.ascontiguousarray(levels.numpy().astype(np.uint8 if bits == 8 else np.uint16))
    if samples.shape[2] == 1:
        samples = samples[..., 0]
    with atomic_path(path) as temporary:
        if bits == 16:
            temporary.write_bytes(png16(samples))
        else:
            Image.fromarray(samples).save(temporary, format="PNG")


def png16(samples: np.ndarray) -> bytes:
    """A PNG file of uint16 (H,W) or (H,W,C), C = 2 grey + alpha, 3 RGB, 4 RGB + alpha.

    Ours, because Pillow writes no 16-bit colour and ComfyUI brings no library that does.
    """
    height, width, channels = np.atleast_3d(samples).shape
    rows = np.ascontiguousarray(samples, ">u2").view(np.uint8).reshape(height, -1)  # (H, 2*W*C) bytes
    # Filter 2: every byte less the one above it, modulo 256. The filter's number leads its row.
    filtered = np.insert(np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1])), 0, 2, axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    pixels = zlib.compress(filtered.tobytes(), 6)
    return PNG_MAGIC + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write_npz(path: str | os.PathLike, **arrays: Tensor | np.ndarray) -> None:
    """Write named arrays or tensors as they are into one compressed `.npz`, atomically; loads without pickle.

    Raises:
        ValueError: an array of Python objects, which only pickle could store.
    """
    stored = {name: a.detach().cpu().numpy() if isinstance(a, Tensor) else np.asarray(a) for name, a in arrays.items()}
    objects = [name for name, array in stored.items() if array.dtype.hasobject]
    if objects:
        raise ValueError(f"{', '.join(objects)}: an npz takes numbers and text, not Python objects")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:  # a handle: savez adds .npz to a bare name
        np.savez_compressed(file, **stored)  # type: ignore[arg-type]


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON (UTF-8, indented), atomically.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
        TypeError: something else that JSON does not have.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        # A file name that is not UTF-8 has lone surrogates in it: escaped as JSON escapes them.
        temporary.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))
