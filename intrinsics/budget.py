"""How much memory one input file may claim. Checked from its header, before anything is allocated."""

import os

DEFAULT_LIMIT_GB = 4.0
LIMIT_VARIABLE = "INTRINSIC_LORA_MEMORY_GB"


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
        ValueError: it needs too much; the sentence names the size and how to raise the limit.
    """
    limit = memory_limit()
    if size > limit:
        raise ValueError(
            f"{what} needs {size / 1e9:.1f} GB of memory, more than the limit of {limit / 1e9:g} GB; "
            f"set {LIMIT_VARIABLE} to allow more."
        )
