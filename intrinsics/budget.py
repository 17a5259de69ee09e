"""How much memory one input file may claim. Checked from its header, before anything is allocated."""

import os
from collections.abc import Iterator

DEFAULT_LIMIT_GB = 4.0
LIMIT_VARIABLE = "INTRINSIC_LORA_MEMORY_GB"
BAND_PIXELS = 2**20  # what is computed at a time of a large picture; a dozen float copies of it are 150 MB


class TooLarge(ValueError):
    """An input needs more memory than the limit; the sentence names it, its size and how to raise the limit."""


def memory_limit() -> int:
    """Return the limit in bytes: 4 GB unless the environment variable `INTRINSIC_LORA_MEMORY_GB` says otherwise.

    Raises:
        ValueError: the variable is not a positive number.
    """
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise ValueError(f"{LIMIT_VARIABLE} must be a positive number of gigabytes, not {text!r}.")
    return int(min(limit * 1e9, 2**62))


def check_memory(size: int, what: str) -> None:
    """Refuse an input that would need more memory than `memory_limit`.

    Args:
        size: bytes that reading it takes at its peak.
        what: the start of the error message: the file and its dimensions, as in "photo.png (13000 x 13000 pixels)".

    Raises:
        TooLarge: it needs too much; the sentence names the size and how to raise the limit.
    """
    limit = memory_limit()
    if size > limit:
        raise TooLarge(
            f"{what} needs {size / 1e9:.1f} GB of memory, more than the limit of {limit / 1e9:g} GB; "
            f"set {LIMIT_VARIABLE} to allow more."
        )


def row_bands(height: int, width: int) -> Iterator[slice]:
    """Cut a picture into bands of rows of about `BAND_PIXELS`, from the top.

    Work done band by band needs no copy of the whole picture.
    """
    rows = max(1, BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))
