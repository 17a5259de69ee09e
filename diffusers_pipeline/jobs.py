"""Which pictures `extract_folder` reads and what their results are called. No torch here: it is checked before a
model is loaded."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..intrinsics.files import list_files, map_paths, with_ending
from ..intrinsics.vocabulary import PICTURE_SUFFIXES

Failed = Callable[[Path, Exception], None]

# What lies beside pictures and is not expected to be read: nothing is said about it.
SIDECARS = (".json", ".txt", ".csv", ".xmp", ".aae", ".md", ".yaml", ".yml", ".html", ".npz", ".safetensors")
NOWHERE = ("link leads nowhere", "links lead nowhere")
NO_FILE = ("pipe or device is no picture", "pipes or devices are no pictures")
NO_PICTURE = ("file is not a picture that can be read", "files are not pictures that can be read")
CLUTTER = ("thumbs.db", "desktop.ini")


class UnsuitablePictures(ValueError):
    """The pictures cannot be extracted together, or there are none."""


class UnsuitableOutput(ValueError):
    """The output folder cannot be used for these pictures; another one can."""


@dataclass(frozen=True)
class Job:
    """A picture and what its results are called: `name` is a path below the output folder, without ending."""

    path: Path
    name: str


@dataclass
class Collected:
    """The pictures to be read, and what has to be said about the rest of their folders."""

    jobs: list[Job]
    notes: list[str]


def collect(paths: Sequence[Path], out: Path, recursive: bool = False) -> Collected:
    """Find the pictures meant by `paths`. Those of one folder and stem, a.jpg and a.png, get results called a_jpg and
    a_png; subfolders are mirrored.

    Raises:
        UnsuitableOutput: a folder of pictures holds `out`.
        UnsuitablePictures: a folder without pictures, or pictures whose results would have the same names for all
            that.
    """
    found: dict[Path, Path] = {}  # {picture: its folder below the output folder}
    others: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = Path()
            continue
        here, there = path.resolve(), out.resolve()
        if there == here or (recursive and there.is_relative_to(here)):
            raise UnsuitableOutput(
                f"{out} is also read as input, so a rerun would read its own results; choose another folder."
            )
        before = len(found)
        for file in list_files(path, recursive):
            reason = _left_out(file, PICTURE_SUFFIXES)
            if reason is None:
                found[file] = file.parent.relative_to(path)
            elif reason:
                others.setdefault(reason, []).append(file.name)
        if len(found) == before:
            raise UnsuitablePictures(
                f"{path} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))})."
                + ("" if recursive else " Subfolders are read only when asked for (recursive).")
            )
    notes = [f"{len(names)} {reason[len(names) > 1]}: {_some(names)}." for reason, names in others.items()]
    names = {path: (folder / path.stem).as_posix() for path, folder in found.items()}
    twins = _alike(names)
    while twins:
        apart = {path: (found[path] / with_ending(path)).as_posix() for path in twins}
        if all(names[path] == name for path, name in apart.items()):
            raise UnsuitablePictures(
                f"{', '.join(map(str, twins[:4]))} would write the same files; rename them or extract them to "
                "different folders."
            )
        names |= apart
        notes += [f"{_some([path.name for path in twins])} share a name: their results are called {_example(apart)}."]
        twins = _alike(names)
    return Collected([Job(path, name) for path, name in names.items()], notes)


def _left_out(file: Path, suffixes: tuple[str, ...]) -> tuple[str, ...] | None:
    """Why a file of a folder is not read, said of one and of several: None where it is read, () where that goes
    without saying."""
    suffix = file.suffix.lower()
    if file.is_symlink() and not file.exists():
        return NOWHERE
    if not file.is_file():
        return NO_FILE
    if suffix in suffixes:
        return None
    return () if suffix in SIDECARS or file.name.lower() in CLUTTER else NO_PICTURE


def _alike(names: dict[Path, str]) -> list[Path]:
    # Lower case, because Windows and macOS keep one file for both spellings.
    counts = Counter(name.lower() for name in names.values())
    return [path for path, name in names.items() if counts[name.lower()] > 1]


def _example(names: dict[Path, str]) -> str:
    return f"{Path(next(iter(names.values()))).name}_*.png and so on"


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def refuse_overwriting(jobs: Sequence[Job], out: Path, names: Sequence[str], formats: Collection[str]) -> None:
    """Raises UnsuitableOutput when a result would be one of the pictures."""
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
    """(the jobs whose results are not all there, how many are). Reports those whose results cannot be written for
    their long names, before the network runs. `out` exists."""
    limit = os.pathconf(out, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    todo, there = [], 0
    for job in jobs:
        results = files_of(job)
        longest = max(len(os.fsencode(result.name)) for result in results)
        if longest > limit:
            reason = f"its results would have names of {longest} bytes, and {limit} is the most here; rename it"
            failed(job.path, OSError(reason))
        elif overwrite or not all(result.exists() for result in results):
            todo.append(job)
        else:
            there += 1
    return todo, there
