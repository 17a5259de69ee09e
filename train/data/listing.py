"""Files of a data set: found by stem, stamped, and counted where they are missing."""

import os
from collections.abc import Sequence
from pathlib import Path

from ...intrinsics.files import list_files


def spread(names: list[str], limit: int | None) -> list[str]:
    """`limit` of the names, evenly spaced."""
    if limit is None or limit >= len(names):
        return names
    return [names[i * len(names) // limit] for i in range(limit)]


def lacking(intrinsic: str, stems: Sequence[str], count: int) -> str:
    """The sentence about photos without a label."""
    some = ", ".join(stems[:5]) + (f" and {len(stems) - 5} more" if len(stems) > 5 else "")
    return f"{len(stems)} of {count} photos have no label of {intrinsic} and are left out: {some}"


def files_by_stem(
    folder: Path, suffixes: Sequence[str], deep: bool = True, ending: str = ""
) -> tuple[dict[str, Path], list[str]]:
    """{path below `folder` without suffix: file}, sorted, and the files whose name was taken; hidden files are not
    looked at. Of several suffixes the first in `suffixes` wins."""
    found: dict[str, Path] = {}
    twins: list[str] = []
    files: list[tuple[str, int, str]] = []
    for file in list_files(folder, deep):
        stem, suffix = os.path.splitext(file.relative_to(folder).as_posix())
        if suffix.lower() in suffixes and stem.endswith(ending):
            files.append((stem, suffixes.index(suffix.lower()), str(file)))
    for key, _, path in sorted(files):
        if key in found:
            twins.append(path)
        else:
            found[key] = Path(path)
    return found, twins


def file_stamp(path: Path) -> str:
    """Name, size and time of a file."""
    try:
        status = path.stat()
    except OSError:  # gone since the folder was listed, which reading it will say
        return f"{path.name} is gone"
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"
