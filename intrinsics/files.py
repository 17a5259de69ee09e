"""Files: written so that a reader never sees half of one, and told apart from what Git LFS leaves in their place."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def refuse_lfs_pointer(path: str | os.PathLike) -> None:
    """Raise ValueError if a file is what Git leaves in a clone without LFS: a short text in place of the contents."""
    with open(path, "rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise ValueError(
                f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its clone, or download it."
            )
