"""Which pictures `extract` reads and which files it writes of each."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..intrinsics.vocabulary import PICTURE_SUFFIXES, DepthPolarity, Intrinsic, NormalFrame
from .progress import say

if TYPE_CHECKING:
    from torch import Tensor

    from ..intrinsics.pictures import Picture

Failed = Callable[[Path, Exception], None]

# What lies beside pictures and is not expected to be read: nothing is said about it.
SIDECARS = (".json", ".txt", ".csv", ".xmp", ".aae", ".md", ".yaml", ".yml", ".html", ".npz", ".safetensors")
NOWHERE = ("link leads nowhere", "links lead nowhere")
NO_FILE = ("pipe or device is no picture", "pipes or devices are no pictures")
NO_PICTURE = ("file is not a picture that can be read", "files are not pictures that can be read")
CLUTTER = ("thumbs.db", "desktop.ini")


def choices(given: list[str], known: tuple[str, ...], option: str, others: bool = False) -> list[str]:
    """Comma-separated and repeated values -> the chosen names in their fixed order, then `others` if allowed."""
    chosen = list(dict.fromkeys(name.strip() for value in given for name in value.split(",") if name.strip()))
    for name in chosen:
        if name not in known and not others:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}.", param_hint=f"'{option}'")
    return [*(name for name in known if name in chosen), *(name for name in chosen if name not in known)]


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


def collect(paths: list[Path], out: Path, recursive: bool = False) -> Collected:
    """Find the pictures meant by `paths`. Those of one folder and stem, a.jpg and a.png, get results called a_jpg and
    a_png; subfolders are mirrored.

    Raises:
        typer.BadParameter: a folder without pictures, one that holds `out`, or pictures whose results would have the
            same names for all that.
    """
    from ..intrinsics.files import list_files, with_ending

    found: dict[Path, Path] = {}  # {picture: its folder below the output folder}
    others: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = Path()
            continue
        here, there = path.resolve(), out.resolve()
        if there == here or (recursive and there.is_relative_to(here)):
            raise typer.BadParameter(
                f"{out} is also read as input, so a rerun would read its own results; choose another folder.",
                param_hint="'--out'",
            )
        before = len(found)
        for file in list_files(path, recursive):
            reason = _left_out(file, PICTURE_SUFFIXES)
            if reason is None:
                found[file] = file.parent.relative_to(path)
            elif reason:
                others.setdefault(reason, []).append(file.name)
        if len(found) == before:
            raise typer.BadParameter(
                f"{path} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))})."
                + ("" if recursive else " With --recursive its subfolders are read too."),
                param_hint="'PATH'",
            )
    notes = [f"{len(names)} {reason[len(names) > 1]}: {_some(names)}." for reason, names in others.items()]
    names = {path: (folder / path.stem).as_posix() for path, folder in found.items()}
    twins = _alike(names)
    while twins:
        apart = {path: (found[path] / with_ending(path)).as_posix() for path in twins}
        if all(names[path] == name for path, name in apart.items()):
            raise typer.BadParameter(
                f"{', '.join(map(str, twins[:4]))} would write the same files; rename them or extract them to "
                "different folders.",
                param_hint="'PATH'",
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


def read_and_say(path: Path, note: Callable[[str], None]) -> "Picture":
    """Read a picture, and say where it is not the whole file."""
    from ..intrinsics.pictures import read_picture

    picture = read_picture(path)
    if picture.frames > 1:
        note(f"{path}: the first of {picture.frames} frames or pages is taken.")
    if picture.full_size is not None:
        (height, width), (h, w) = picture.full_size, picture.rgb.shape[-2:]
        note(f"{path}: {width} x {height} pixels are more than memory allows; read at {w} x {h}.")
    return picture


def refuse_overwriting(jobs: list[Job], out: Path, names: list[str], kinds: list[str]) -> None:
    """Raises typer.BadParameter when a result would be one of the pictures."""
    inputs = {job.path.resolve() for job in jobs}
    for job in jobs:
        for result in results_of(job, out, names, kinds):
            if result.resolve() in inputs:
                raise typer.BadParameter(
                    f"the results of {job.path} would overwrite the picture {result}; choose another folder.",
                    param_hint="'--out'",
                )


def to_do(
    jobs: list[Job], files_of: Callable[[Job], list[Path]], out: Path, overwrite: bool, failed: Failed
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


def finish(written: int, there: int, failures: int, started: float, out: Path) -> None:
    """The last line; exit status 1 where a picture failed."""
    sheets = f"; contact sheets: {out}/*_sheet.png" if written else ""
    seconds = time.monotonic() - started
    say(f"{written} extracted, {there} already there, {failures} failed in {seconds:.1f} s{sheets}")
    if failures:
        raise typer.Exit(1)


def results_of(job: Job, out: Path, names: list[str], kinds: list[str]) -> list[Path]:
    """The files that `write_results` makes of a picture."""
    files = [out / f"{job.name}_sheet.png"]
    if "png" in kinds or "png16" in kinds:
        files += [out / f"{job.name}_{name}.png" for name in (*names, "confidence")]
    return files + [out / f"{job.name}.{kind}" for kind in ("npz", "exr") if kind in kinds]


def write_results(
    job: Job,
    picture: "Picture",
    maps: "Iterable[tuple[str, Tensor]]",
    out: Path,
    kinds: list[str],
    frame: NormalFrame,
    polarity: DepthPolarity,
    definitions: dict[str, Intrinsic],
) -> None:
    """Canonical maps (1, C, H, W) of a picture as pictures, npz, exr and a contact sheet; `definitions` of those that
    are not built in. PNGs are written one by one, as the maps come, and none is kept that npz and exr do not need."""
    from ..intrinsics.display import display_map
    from ..intrinsics.files import atomic_path
    from ..intrinsics.pictures import write_npz, write_png
    from ..intrinsics.sheet import contact_sheet, thumbnail

    stem = out / job.name
    stem.parent.mkdir(parents=True, exist_ok=True)
    columns, kept = [("photo", [thumbnail(picture.rgb[0])])], {}
    for name, map in maps:
        draw = partial(display_map, name=definitions.get(name, name), normals=frame, depth=polarity)
        if "png" in kinds or "png16" in kinds:
            write_png(f"{stem}_{name}.png", map, 16 if "png16" in kinds else 8, draw)
        columns.append((name, [thumbnail(map[0], draw=draw)]))
        if "npz" in kinds or "exr" in kinds:
            kept[name] = map[0].cpu()  # (C, H, W)
        del map  # or it would be held while the next one is made
    if picture.alpha is not None:
        kept["mask"] = picture.alpha[0]
    if "npz" in kinds:
        arrays = {name: map.permute(1, 2, 0).numpy() for name, map in kept.items()}  # (H, W, C)
        flat = ("depth", "confidence", "mask")
        write_npz(f"{stem}.npz", **{n: a[..., 0] if n in flat else a for n, a in arrays.items()})
    if "exr" in kinds:
        from ..intrinsics.exr import write_exr

        write_exr(f"{stem}.exr", kept)
    with atomic_path(f"{stem}_sheet.png") as temporary:
        contact_sheet(columns).save(temporary)
