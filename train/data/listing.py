"""Files of a data set: listing by stem, stamps that detect changes, and messages about missing ones."""

import os
from collections.abc import Sequence
from pathlib import Path

from ...intrinsics.files import list_files


def spread(names: list[str], limit: int | None) -> list[str]:
    """Select `limit` of the names, evenly spaced."""
    if limit is None or limit >= len(names):
        return names
    return [names[i * len(names) // limit] for i in range(limit)]


def lacking(intrinsic: str, stems: Sequence[str], count: int) -> str:
    """Return the message about photos without a label."""
    some = ", ".join(stems[:5]) + (f" and {len(stems) - 5} more" if len(stems) > 5 else "")
    return f"{len(stems)} of {count} photos have no label of {intrinsic} and are skipped: {some}"


def files_by_stem(
    folder: Path, suffixes: Sequence[str], deep: bool = True, ending: str = ""
) -> tuple[dict[str, Path], list[str]]:
    """List files by their path relative to `folder`, without suffix; hidden files are skipped.

    Args:
        folder: need not exist.
        suffixes: accepted suffixes in lower case, in order of precedence.
        deep: also list subfolders.
        ending: list only files whose stem ends so.

    Returns:
        {relative path without suffix: file}, sorted, and the other files with a name that is in it.
    """
    found: dict[str, Path] = {}
    duplicates: list[str] = []
    files: list[tuple[str, int, str]] = []
    for file in list_files(folder, deep):
        stem, suffix = os.path.splitext(file.relative_to(folder).as_posix())
        if suffix.lower() in suffixes and stem.endswith(ending):
            files.append((stem, suffixes.index(suffix.lower()), str(file)))
    for key, _, path in sorted(files):
        if key in found:
            duplicates.append(path)
        else:
            found[key] = Path(path)
    return found, duplicates


def file_stamp(path: Path) -> str:
    """Return a text with the name, size and modification time of a file."""
    try:
        status = path.stat()
    except OSError:  # removed since the folder was listed; reading it will report that
        return f"{path.name} is gone"
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"
