"""Input pictures of `extract_folder` and the names of their results. Does not import torch."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..intrinsics.files import list_files, map_paths, some_names, with_ending
from ..intrinsics.vocabulary import PICTURE_SUFFIXES

Failed = Callable[[Path, Exception], None]

# Files commonly stored next to pictures, ignored without a note.
SIDECARS = (".json", ".txt", ".csv", ".xmp", ".aae", ".md", ".yaml", ".yml", ".html", ".npz", ".safetensors")
NOWHERE = ("broken link was skipped", "broken links were skipped")
NO_FILE = ("pipe or device was skipped", "pipes or devices were skipped")
NO_PICTURE = ("file is not a supported picture", "files are not supported pictures")
CLUTTER = ("thumbs.db", "desktop.ini")


class UnsuitablePictures(ValueError):
    """No pictures were found, or they cannot be extracted together."""


class UnsuitableOutput(ValueError):
    """The output folder cannot be used for these pictures."""


@dataclass(frozen=True)
class Job:
    """A picture and the name of its results: a path relative to the output folder, without suffix."""

    path: Path
    name: str


@dataclass
class Collected:
    """The pictures to process, and notes about skipped files."""

    jobs: list[Job]
    notes: list[str]


def collect(paths: Sequence[Path], out: Path, recursive: bool = False) -> Collected:
    """Find the pictures in `paths`.

    The results of a.jpg and a.png in one folder are named a_jpg and a_png. Subfolders are mirrored.

    Raises:
        UnsuitableOutput: `out` is inside a folder of pictures.
        UnsuitablePictures: a folder contains no pictures, or two results would have the same name nevertheless.
    """
    found: dict[Path, Path] = {}  # {picture: its subfolder of the output folder}
    skipped: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = Path()
            continue
        source, target = path.resolve(), out.resolve()
        if target == source or (recursive and target.is_relative_to(source)):
            raise UnsuitableOutput(
                f"{out} is inside the input, so a second run would read its own results; choose another folder."
            )
        before = len(found)
        for file in list_files(path, recursive):
            reason = _skip_reason(file)
            if reason is None:
                found[file] = file.parent.relative_to(path)
            elif reason:
                skipped.setdefault(reason, []).append(file.name)
        if len(found) == before:
            raise UnsuitablePictures(
                f"{path} contains no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})."
                + ("" if recursive else " Subfolders are included only by a recursive search.")
            )
    notes = [f"{len(names)} {reason[len(names) > 1]}: {some_names(names)}." for reason, names in skipped.items()]
    names = {path: (folder / path.stem).as_posix() for path, folder in found.items()}
    clashing = _clashing(names)
    while clashing:
        distinct = {path: (found[path] / with_ending(path)).as_posix() for path in clashing}
        if all(names[path] == name for path, name in distinct.items()):
            raise UnsuitablePictures(
                f"The results of {', '.join(map(str, clashing[:4]))} would have the same names; rename the pictures "
                "or extract them to different folders."
            )
        names |= distinct
        shared = some_names([path.name for path in clashing])
        notes += [f"{shared} share a name: their results are named {_example(distinct)}."]
        clashing = _clashing(names)
    return Collected([Job(path, name) for path, name in names.items()], notes)


def _skip_reason(file: Path) -> tuple[str, ...] | None:
    """Return why a file is skipped, as (singular, plural): None if it is not, () if it is ignored without a note."""
    suffix = file.suffix.lower()
    if file.is_symlink() and not file.exists():
        return NOWHERE
    if not file.is_file():
        return NO_FILE
    if suffix in PICTURE_SUFFIXES:
        return None
    return () if suffix in SIDECARS or file.name.lower() in CLUTTER else NO_PICTURE


def _clashing(names: dict[Path, str]) -> list[Path]:
    # Lower case, because file names on Windows and macOS are case-insensitive.
    counts = Counter(name.lower() for name in names.values())
    return [path for path, name in names.items() if counts[name.lower()] > 1]


def _example(names: dict[Path, str]) -> str:
    return f"{Path(next(iter(names.values()))).name}_*.png and so on"


def refuse_overwriting(jobs: Sequence[Job], out: Path, names: Sequence[str], formats: Collection[str]) -> None:
    """Raise UnsuitableOutput if a result would overwrite one of the pictures."""
    inputs = {job.path.resolve() for job in jobs}
    for job in jobs:
        for result in map_paths(out / job.name, names, formats):
            if result.resolve() in inputs:
                raise UnsuitableOutput(
                    f"The results of {job.path} would overwrite the picture {result}; choose another folder."
                )


def to_do(
    jobs: Sequence[Job], files_of: Callable[[Job], list[Path]], out: Path, overwrite: bool, failed: Failed
) -> tuple[list[Job], int]:
    """Return the jobs with missing results, and the number of complete ones.

    Jobs whose results would have names that are too long are passed to `failed`. `out` must exist.
    """
    limit = os.pathconf(out, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    todo, complete = [], 0
    for job in jobs:
        results = files_of(job)
        longest = max(len(os.fsencode(result.name)) for result in results)
        if longest > limit:
            reason = f"The names of its results would have {longest} bytes, and the limit is {limit}; rename it."
            failed(job.path, OSError(reason))
        elif overwrite or not all(result.exists() for result in results):
            todo.append(job)
        else:
            complete += 1
    return todo, complete
