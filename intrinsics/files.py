"""File names, atomic writes, and listing of folders."""

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .vocabulary import PASSES

MODEL_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def may_be_hub_id(text: str) -> bool:
    """Return whether a text has the form of a Hugging Face id, owner/name, rather than a path."""
    return bool(_HUB_ID.fullmatch(text)) and Path(text).suffix not in MODEL_SUFFIXES


def continued(error: Exception | str) -> str:
    """Turn a message into the end of a sentence that names the file: "The file is empty" -> "the file is empty."."""
    text = str(error).strip()
    word = text.partition(" ")[0]
    if word == "A" or (word.isalpha() and word[1:].islower()):  # not a path, or a name such as OpenEXR or TIFF
        text = text[:1].lower() + text[1:]
    return text if text.endswith((".", "?")) else f"{text}."


def some_names(names: Sequence[str]) -> str:
    """List the first four names and the number of the others: "a, b, c, d and 2 more"."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{12}\.tmp(\.[^.]*)?")
STALE = 24 * 3600  # age in seconds after which a temporary file is abandoned
_swept: set[Path] = set()  # folders whose stale temporary files this process has removed


@contextmanager
def naming_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block, convert errors about a full disk to an OSError that names `path`.

    Errors of the operating system, zipfile and Pillow do not name the file, and safetensors and OpenEXR raise others.

    Raises:
        OSError: no space is left, or the file is too large for the file system or quota; has an `errno`.
    """
    try:
        yield
    except Exception as error:
        code: int | None = error.errno if isinstance(error, OSError) else None
        if not isinstance(error, OSError | ValueError):
            code = next((one for one in FULL if os.strerror(one) in str(error)), None)
        if code is None or code not in FULL:
            raise
        full = OSError(f"Cannot write {path}: {os.strerror(code)}; make room and run it again.")
        full.errno = code
        raise full from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success flush the file to disk and rename it to `path`.

    The body of the `with` creates the temporary file, which has the same suffix (image libraries choose the format by
    it). If the body raises, the temporary file is removed and an existing file at `path` is unchanged. Temporary files
    of killed processes are removed after a day.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        OSError: the disk is full; the sentence names the file.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {path.name}: the folder {path.parent} does not exist; create it first.")
    _sweep(path.parent)
    stem = path.stem.encode("utf-8", "surrogateescape")[:64].decode("utf-8", "ignore")  # names are limited in bytes
    temporary = path.with_name(f".{stem}.{secrets.token_hex(6)}.tmp{path.suffix}")
    try:
        with naming_full_disk(path):
            yield temporary
            with open(temporary, "rb+") as file:  # Windows only flushes files opened for writing
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def relit_files(path: str | os.PathLike[str], passes: bool = False) -> list[Path]:
    """List the files that `write_relit` writes: `path`, and for a PNG one file per pass."""
    path = Path(path)
    pngs = passes and path.suffix.lower() == ".png"
    return [path, *(path.with_name(f"{path.stem}_{name}.png") for name in PASSES if pngs)]


def map_paths(stem: str | os.PathLike[str], names: Iterable[str], formats: Collection[str]) -> list[Path]:
    """List the files that `map_writer.write_maps` writes for the maps `names` and confidence in these formats."""
    files = [Path(f"{stem}_sheet.png")]
    if "png" in formats or "png16" in formats:
        files += [Path(f"{stem}_{name}.png") for name in (*names, "confidence")]
    return files + [Path(f"{stem}.{suffix}") for suffix in ("npz", "exr") if suffix in formats]


def refuse_lfs_pointer(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if a file is a Git LFS pointer, a short text in place of the contents."""
    with open(path, "rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise ValueError(
                f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its clone, or download it."
            )


def _sweep(folder: Path) -> None:
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):  # another process may be doing the same
        for entry in os.scandir(folder):
            if TEMPORARY.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > STALE:
                os.unlink(entry.path)


def list_files(folder: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """List the files of a folder, sorted.

    Files and folders whose names begin with a dot are skipped, such as temporary files and macOS metadata. Broken
    links, pipes and devices are included; check them with `is_file`. Linked folders are not entered.
    """
    found: list[Path] = []
    for parent, folders, names in os.walk(os.fspath(folder)):
        folders[:] = [name for name in folders if not name.startswith(".")] if recursive else []
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)


def with_ending(path: Path) -> str:
    """Return the result name of a picture that shares its stem with another one: `a.jpg` -> `a_jpg`."""
    return f"{path.stem}_{path.suffix[1:]}" if path.suffix else path.stem


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
