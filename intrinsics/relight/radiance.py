"""Reading of Radiance HDR pictures (.hdr): flat, run-length encoded, and with old run lengths, mixed line by line.

imagecodecs rejects files that other readers accept: mixed lines, old run lengths, and bytes after the last pixel.
Implemented from the file formats in Radiance's reference manual and its `color.c`.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..budget import check_memory

RADIANCE_MAGIC = b"#?"
MAX_HEADER = 65536  # bytes; programs append their command lines
RUN = 128  # a count n > 128 repeats the next byte n - 128 times; otherwise n literal bytes follow
SHORTEST, LONGEST = 8, 32767  # widths for which run-length encoding is defined


def read_radiance(path: Path) -> Tensor:
    """Read a Radiance RGBE file. EXPOSURE and primaries in its header are not applied, as in other programs.

    Returns:
        (1, 3, h, w) float32 linear light.

    Raises:
        ValueError: the file contains CIE XYZ, has an unsupported orientation, is damaged or truncated, or exceeds the
            memory limit; the message names the file.
    """
    data = path.read_bytes()
    head = re.match(rb"#\?[^\0]*?\n\r?\n([^\r\n]{1,80})\r?\n", data[:MAX_HEADER])
    if head is None:
        raise ValueError(f"Cannot read the Radiance file {path}: its header is damaged.")
    if b"32-bit_rle_xyze" in head[0]:
        raise ValueError(f"{path} holds CIE XYZ colours: convert it to RGB first, for instance with ra_xyze -r.")
    size = re.fullmatch(rb"-Y +([1-9]\d*) +\+X +([1-9]\d*) *", head[1])
    if size is None:  # the other seven orientations do not occur in practice
        line = head[1].decode("ascii", "replace")
        raise ValueError(f"Cannot read the Radiance file {path}: its size is {line!r}, not '-Y <height> +X <width>'.")
    height, width = int(size[1]), int(size[2])
    check_memory(32 * height * width, f"{path} ({width} x {height} pixels)")  # RGBE, and two copies of three floats
    try:
        rgbe = _decode(data, head.end(), height, width)
    except (IndexError, ValueError) as error:
        raise ValueError(f"Cannot read the Radiance file {path}: its pixels are damaged or cut off.") from error
    # Three mantissas of 8 bits share one exponent, which is 0 for black.
    scale = np.where(rgbe[..., 3:] > 0, np.ldexp(np.float32(1), rgbe[..., 3:].astype(np.int32) - 136), 0)
    return torch.from_numpy(rgbe[..., :3] * scale.astype(np.float32)).permute(2, 0, 1)[None].contiguous()


def _decode(data: bytes, start: int, height: int, width: int) -> np.ndarray:
    """Decode (h, w, 4) bytes from `start`; data after the last pixel is ignored.

    Raises:
        IndexError, ValueError: the data ends too early, or a run goes beyond its line.
    """
    rgbe = np.empty((height, width, 4), np.uint8)
    for y in range(height):
        encoded = SHORTEST <= width <= LONGEST and data[start : start + 4] == bytes([2, 2, width >> 8, width & 255])
        if encoded:
            planes, start = _run_lengths(data, start + 4, width)
            rgbe[y] = np.frombuffer(planes, np.uint8).reshape(4, width).T
        else:
            start = _flat(data, start, rgbe, y)
    return rgbe


def _run_lengths(data: bytes, start: int, width: int) -> tuple[bytearray, int]:
    """Decode one line to its planes of red, green, blue and exponents; also return the start of the next line."""
    planes = bytearray()
    for end in range(width, 5 * width, width):  # runs do not cross planes
        while len(planes) < end:
            count = data[start]
            if count > RUN:
                planes += data[start + 1 : start + 2] * (count - RUN)
                start += 2
            else:
                planes += data[start + 1 : start + 1 + count]
                start += 1 + count
            if count == 0 or start > len(data) or len(planes) > end:
                raise ValueError("A run is empty or too long.")
    return planes, start


def _flat(data: bytes, start: int, rgbe: np.ndarray, y: int) -> int:
    """Decode one line of four bytes per pixel into `rgbe[y]` and return the start of the next line.

    1 1 1 n repeats the previous pixel n times; in a sequence, each n has 256 times the weight of the previous one.
    """
    width = rgbe.shape[1]
    flat = rgbe.reshape(-1, 4)  # a view; the pixel before a line is the last of the previous line
    x, end = y * width, (y + 1) * width
    line = np.frombuffer(data, np.uint8, min(4 * width, len(data) - start) // 4 * 4, start).reshape(-1, 4)
    repeats: list[int] = np.flatnonzero((line[:, :3] == 1).all(1)).tolist()
    at: int = 0
    shift: int = 0
    for repeat in [*repeats, len(line)]:
        plain = min(repeat - at, end - x)
        flat[x : x + plain] = line[at : at + plain]
        x, at = x + plain, at + plain
        if plain:
            shift = 0
        if x == end:
            return start + 4 * at
        if at == len(line):
            break
        count = int(line[at, 3]) << shift
        if x == 0 or x + count > end:
            raise ValueError("A run has no pixel before it or goes beyond its line.")
        flat[x : x + count] = flat[x - 1]
        x, at, shift = x + count, at + 1, shift + 8
        if x == end:
            return start + 4 * at
    raise ValueError("The data ends within a line.")
