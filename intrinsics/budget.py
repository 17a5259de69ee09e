"""Limit of the memory that one input file may require, checked from its header before allocation."""

import os
from collections.abc import Iterator

DEFAULT_LIMIT_GB = 4.0
LIMIT_VARIABLE = "INTRINSIC_LORA_MEMORY_GB"
BAND_PIXELS = 2**20  # pixels of a large picture that are processed at a time; a dozen float copies are 150 MB


class TooLarge(ValueError):
    """An input requires more memory than the limit; the message names the input, its size and the variable to set."""


def memory_limit() -> int:
    """Return the limit in bytes: the environment variable `INTRINSIC_LORA_MEMORY_GB`, 4 GB by default.

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
    """Reject an input that requires more memory than `memory_limit`.

    Args:
        size: peak memory of reading it, in bytes.
        what: start of the error message: the file and its dimensions, as in "photo.png (13000 x 13000 pixels)".

    Raises:
        TooLarge: it exceeds the limit.
    """
    limit = memory_limit()
    if size > limit:
        raise TooLarge(
            f"{what} needs {size / 1e9:.1f} GB of memory, more than the limit of {limit / 1e9:g} GB; "
            f"set {LIMIT_VARIABLE} to allow more."
        )


def row_bands(height: int, width: int) -> Iterator[slice]:
    """Split a picture into bands of rows of about `BAND_PIXELS`, from the top, to avoid full-size temporaries."""
    rows = max(1, BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))
