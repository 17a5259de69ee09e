"""Parts of PNG that Pillow does not support: limits on chunks, colour chunks as a profile, and 16-bit colour."""

import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

import numpy as np

from .profiles import SRGB, matrix_profile

MAGIC = b"\x89PNG\r\n\x1a\n"
LARGEST_PROFILE = 2**24  # bytes; ten times a large CMYK profile
LARGEST_XMP = 2**20
PRIMARIES = {  # by code in cICP (ITU-T H.273): x, y of white, red, green, blue
    1: SRGB,
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
TRANSFERS = {4: 2.2, 5: 2.8, 8: 1.0, 13: None}  # by code in cICP: decoding exponents; None is the sRGB curve


@dataclass(frozen=True)
class PngParts:
    """The parts of a PNG that are used.

    Attributes:
        pixels: the file without text, profile and animation, whose size the decoder would otherwise have to limit.
        profile: an ICC profile, from iCCP or built from cICP or from gAMA and cHRM; None for sRGB.
        frames: number of frames of an animated PNG; else 1.
    """

    pixels: BinaryIO
    profile: bytes | None
    frames: int


def png_parts(file: BinaryIO) -> PngParts:
    """Split a PNG without reading its pixels. A damaged file is passed on unchanged from the damage on."""
    kept: list[tuple[int, int]] = [(0, len(MAGIC))]
    chunks: dict[bytes, bytes] = {}
    size = file.seek(0, io.SEEK_END)
    offset = len(MAGIC)
    while offset < size:
        file.seek(offset)
        head = file.read(8)
        length, kind = (struct.unpack(">I", head[:4])[0], head[4:]) if len(head) == 8 else (size, b"")
        end = min(offset + 12 + length, size)
        if kind in (b"iCCP", b"sRGB", b"cICP", b"gAMA", b"cHRM", b"acTL") and length <= LARGEST_PROFILE:
            chunks[kind] = file.read(length)
        elif kind[:1].isupper() or kind in (b"", b"tRNS") or _may_hold_orientation(file, kind, length):
            if sum(kept[-1]) == offset:
                kept[-1] = (kept[-1][0], end - kept[-1][0])
            else:
                kept.append((offset, end - offset))
        offset = end
    frames = struct.unpack(">I", chunks[b"acTL"][:4])[0] if len(chunks.get(b"acTL", b"")) >= 8 else 1
    return PngParts(io.BufferedReader(_Excerpt(file, kept)), _profile(chunks), max(1, frames))


def _may_hold_orientation(file: BinaryIO, kind: bytes, length: int) -> bool:
    """Return whether a chunk is readable EXIF, or XMP, in which some programs store the orientation."""
    if kind == b"eXIf":
        return file.read(2) in (b"II", b"MM")
    return kind == b"iTXt" and length <= LARGEST_XMP and file.read(20).startswith(b"XML:com.adobe.xmp\0\0")


def _profile(chunks: dict[bytes, bytes]) -> bytes | None:
    """Return the ICC profile that the colour chunks define, in the precedence of the PNG specification."""
    if len(chunks.get(b"cICP", b"")) == 4:
        primaries, transfer = chunks[b"cICP"][:2]
        if primaries in PRIMARIES and transfer in TRANSFERS:
            return (
                None if (primaries, transfer) == (1, 13) else matrix_profile(PRIMARIES[primaries], TRANSFERS[transfer])
            )
    if b"iCCP" in chunks:
        _, _, packed = chunks[b"iCCP"].partition(b"\0")
        try:
            unpacker = zlib.decompressobj()
            profile = unpacker.decompress(packed[1:], LARGEST_PROFILE)
        except zlib.error:
            return None
        return profile if unpacker.eof else None
    if b"sRGB" in chunks or len(chunks.get(b"gAMA", b"")) != 4:
        return None
    exponent = 100000 / (struct.unpack(">I", chunks[b"gAMA"])[0] or 45455)
    numbers = struct.unpack(">8I", chunks[b"cHRM"]) if len(chunks.get(b"cHRM", b"")) == 32 else ()
    chromaticities = [number / 100000 for number in numbers] or SRGB
    usual = abs(exponent - 2.2) < 0.05  # the value written for sRGB
    if usual and np.allclose(chromaticities, SRGB, atol=0.002):
        return None
    return matrix_profile(chromaticities, None if usual else exponent)


class _Excerpt(io.RawIOBase):
    """A file-like view of parts (offset, length) of a file, without a copy."""

    def __init__(self, file: BinaryIO, parts: list[tuple[int, int]]) -> None:
        self.file, self.parts, self.position = file, parts, 0
        self.starts = [0, *accumulate(length for _, length in parts)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = max(0, offset + (0, self.position, self.starts[-1])[whence])
        return self.position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        if self.position >= self.starts[-1]:
            return 0
        part = bisect_right(self.starts, self.position) - 1
        inside = self.position - self.starts[part]
        self.file.seek(self.parts[part][0] + inside)
        data = self.file.read(min(len(buffer), self.parts[part][1] - inside))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def png16(bands: Iterable[tuple[slice, np.ndarray]], shape: tuple[int, int, int]) -> Iterator[bytes]:
    """Encode bands of rows of uint16 (h, W, C) as the parts of a PNG file of shape (H, W, C).

    C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha. Neither Pillow nor any library shipped with ComfyUI can write
    16-bit colour.
    """
    height, width, channels = shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    yield MAGIC + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    packer = zlib.compressobj(6)
    above = np.zeros((1, 2 * width * channels), np.uint8)
    for _, levels in bands:
        band = np.ascontiguousarray(levels, ">u2").view(np.uint8).reshape(-1, 2 * width * channels)
        # Filter 2: every byte minus the one above it, modulo 256. Each row begins with its filter's number.
        filtered = np.insert(np.diff(band, axis=0, prepend=above), 0, 2, axis=1)
        if packed := packer.compress(filtered.tobytes()):
            yield chunk(b"IDAT", packed)
        above = band[-1:]
    yield chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b"")
