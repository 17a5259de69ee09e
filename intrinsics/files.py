"""Writing files so that a reader never sees half of one."""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def naming_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """Within the block, an error that says the disk is full becomes an OSError that names `path`.

    Neither the operating system nor zipfile or Pillow names the file, and safetensors and OpenEXR raise other errors.

    Raises:
        OSError: with its `errno`: no space is left, or the file is too large for the file system or a quota.
    """
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if not isinstance(error, OSError | ValueError):
            code = next((one for one in FULL if os.strerror(one) in str(error)), None)
        if code not in FULL:
            raise
        raise OSError(code, f"Cannot write {path}: {os.strerror(code)}; free some space") from error


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    The temporary file has the same suffix (image libraries choose the format by it) and does not exist yet: the
    body of the `with` creates it. If the body raises, the temporary file is removed and whatever was at `path`
    stays as it was.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        OSError: the disk is full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {path.name}: the folder {path.parent} does not exist; create it first.")
    temporary = path.with_name(f".{path.stem[:64]}.{secrets.token_hex(6)}{path.suffix}")
    try:
        with naming_full_disk(path):
            yield temporary
            with open(temporary, "rb+") as file:  # Windows only flushes files opened for writing
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
