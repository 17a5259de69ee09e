"""Names of files, and writing them so that a reader never sees half of one. Standard library only."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .vocabulary import PASSES

MODEL_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def may_be_hub_id(text: str) -> bool:
    """Whether a text has the form of a Hugging Face id, owner/name, and not that of a path."""
    return bool(_HUB_ID.fullmatch(text)) and Path(text).suffix not in MODEL_SUFFIXES


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    The temporary file has the same suffix (image libraries choose the format by it) and does not exist yet: the
    body of the `with` creates it. If the body raises, the temporary file is removed and whatever was at `path`
    stays as it was.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {path.name}: the folder {path.parent} does not exist; create it first.")
    temporary = path.with_name(f".{path.stem[:64]}.{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:  # Windows only flushes files opened for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def relit_files(path: str | os.PathLike, passes: bool = False) -> list[Path]:
    """The files that `write_relit` writes: `path`, and beside a PNG one per pass."""
    path = Path(path)
    pngs = passes and path.suffix.lower() == ".png"
    return [path, *(path.with_name(f"{path.stem}_{name}.png") for name in PASSES if pngs)]


def refuse_lfs_pointer(path: str | os.PathLike) -> None:
    """Raise ValueError if a file is what Git leaves in a clone without LFS: a short text in place of the contents."""
    with open(path, "rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise ValueError(
                f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its clone, or download it."
            )
