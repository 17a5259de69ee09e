"""Label a folder of photos with a teacher, in the layout that the folder source of `data` reads.

    OUT/photos/beach.jpg         hard links to the photos (copies where the file system has none)
    OUT/normals/beach.npz        one label per photo and intrinsic, in the same subfolder
    OUT/normals/label.json       who made them, and what the numbers mean

A photo appears in OUT/photos only once all its labels are written, so that the folder can be trained on at any time.
"""

import filecmp
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...intrinsics.batches import run_batches
from ...intrinsics.display import display_map
from ...intrinsics.files import atomic_path
from ...intrinsics.map_writer import write_map_npz
from ...intrinsics.pictures import read_picture, write_json, write_png
from ...intrinsics.sheet import contact_sheet
from ...intrinsics.vocabulary import INTRINSICS, PICTURE_SUFFIXES
from ..data import open_source
from ..data.label_files import SIDECAR, read_sidecar
from ..data.listing import files_by_stem, spread
from .base import Teacher

# What the numbers in the files mean, in the words of `label_files`. Float files hold canonical maps, pictures what
# `extract` draws.
CONVENTIONS = {
    "npz": {"normals": "opengl", "depth": "distance", "albedo": "linear", "shading": "linear"},
    "png16": {"normals": "opengl", "depth": "near-white", "albedo": "srgb", "shading": "srgb"},
}
SUFFIXES = {"npz": ".npz", "png16": ".png"}
SHEET_PHOTOS = 8

Failed = Callable[[Path, Exception], None]


@dataclass(frozen=True)
class Labelled:
    """How many photos were labelled now, had their labels already, and could not be."""

    written: int
    there: int
    failed: int


def label_photos(
    photos: Path,
    out: Path,
    teacher: Teacher,
    intrinsics: Sequence[str] | None = None,
    format: str = "npz",
    batch_size: int = 1,
    limit: int | None = None,
    overwrite: bool = False,
    failed: Failed = lambda path, error: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Labelled:
    """Label every photo in a folder and its subfolders. What is labelled already is left as it is.

    Args:
        photos: the folder.
        out: where labels and photos go; made when missing.
        teacher: who labels.
        intrinsics: which of the teacher's maps are kept; None for all.
        format: "npz" (canonical maps, float16) or "png16".
        batch_size: photos of one size that the teacher sees together.
        limit: label only that many photos, spread evenly over the folder.
        overwrite: label again what is labelled already; labels of another teacher, or made with other settings, are
            removed first.
        failed: called with every photo that cannot be read or labelled, and why.
        progress: called with the photos done and all photos to do.

    Raises:
        ValueError: no photos, `out` within `photos`, photos that would have the same labels, or, without `overwrite`,
            labels in `out` that another teacher or other settings made; an intrinsic the teacher does not make.
        OSError: `out` cannot be written. What has been written is whole, and the next call goes on from there.
    """
    names = list(intrinsics or teacher.intrinsics)
    for name in names:
        if name not in teacher.intrinsics:
            raise ValueError(f"The teacher {teacher.name} makes {', '.join(teacher.intrinsics)}, not {name}.")
    found = find_photos(photos, out)
    _claim_folders(out, {name: stamp(teacher, name, format) for name in names}, overwrite)

    def files(photo: Path) -> dict[str, Path]:
        return {name: (out / name / photo).with_suffix(SUFFIXES[format]) for name in names}

    chosen = [Path(photo) for photo in spread([str(photo) for photo in found], limit)]
    todo = []
    for photo in chosen:
        if overwrite or not all(file.exists() for file in files(photo).values()):
            todo.append(photo)
        else:
            _link(photos / photo, out / "photos" / photo)
    written = bad = 0

    def give_up(photo: Path, error: Exception) -> None:
        nonlocal bad
        bad += 1
        failed(photos / photo, error)
        progress(written + bad, len(todo))

    labelled = run_batches(
        todo,
        lambda photo: read_picture(photos / photo),
        teacher,
        batch_size,
        give_up,
        refusals=(ValueError, RuntimeError),
    )
    for photo, _, maps in labelled:
        if broken := [name for name, map in maps.items() if not map.isfinite().all()]:
            what = f"the teacher's {', '.join(broken)} is not finite (if it runs in half precision, try float32)"
            give_up(photo, ValueError(what))
            continue
        for name, file in files(photo).items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_label(file, maps[name][0], name)
        _link(photos / photo, out / "photos" / photo)
        written += 1
        progress(written + bad, len(todo))
    return Labelled(written, len(chosen) - len(todo), bad)


def stamp(teacher: Teacher, intrinsic: str, format: str) -> dict[str, Any]:
    """What `label.json` says. Nothing in it changes from one run to the next."""
    return {
        "teacher": teacher.name,
        "model": teacher.model,
        "version": teacher.version,
        "licence": teacher.licence,
        "library": teacher.library,
        "intrinsic": intrinsic,
        "format": format,
        "convention": CONVENTIONS[format][intrinsic],
        "settings": teacher.settings,
    }


def write_label(path: Path, map: Tensor, intrinsic: str) -> None:
    """Write a canonical map (C, H, W) as `.npz` (float16, (H, W, C), depth (H, W)) or 16-bit `.png`, atomically."""
    if path.suffix == ".png":
        if intrinsic == "shading":  # up to scale, and a picture ends at 1
            map = map / map.max().clamp(min=1)
        write_png(path, display_map(map[None], intrinsic, normals="opengl", depth="near-white"), bits=16)
        return
    write_map_npz(path, {intrinsic: map.half()})


def find_photos(photos: Path, out: Path) -> list[Path]:
    """Paths relative to `photos`, sorted; ValueError where labelling them into `out` would go wrong."""
    if not photos.is_dir():
        raise FileNotFoundError(f"Folder {photos} not found.")
    if out.resolve().is_relative_to(photos.resolve()):
        raise ValueError(f"{out} lies within {photos}, so that labels would be read as photos; choose another folder.")
    found, twins = files_by_stem(photos, PICTURE_SUFFIXES)
    if not found:
        raise ValueError(f"{photos} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
    there = files_by_stem(out / "photos", PICTURE_SUFFIXES)[0]
    # Lower case, because Windows and macOS keep one file for both spellings.
    owners = {stem.lower(): path for stem, path in there.items()}
    for stem, path in found.items():
        owner = owners.setdefault(stem.lower(), path)
        if owner != path and (owner.name != path.name or not filecmp.cmp(owner, path)):
            twins += [str(owner), str(path)]
    if twins:
        raise ValueError(f"{', '.join(twins[:4])}: a photo of the same name has the same labels; rename one of them.")
    return [path.relative_to(photos) for path in found.values()]


def _claim_folders(out: Path, stamps: dict[str, dict[str, Any]], overwrite: bool) -> None:
    """Make the labels' folders with their `label.json`; refuse or clear those of another teacher."""
    strangers = []
    for name, ours in stamps.items():
        folder = out / name
        labels = [path for path in folder.rglob("*") if path.suffix in SUFFIXES.values() and path.is_file()]
        if not labels:
            continue
        theirs = read_sidecar(folder, INTRINSICS[name])
        if "teacher" not in theirs:
            raise ValueError(f"{folder} holds labels that this command did not make; choose another folder.")
        # A library's version is recorded, but a new one need not mean that all labels are made again.
        different = [key for key in ours if key != "library" and theirs.get(key) != ours[key]]
        if different and not overwrite:
            changes = "; ".join(f"{key} {theirs.get(key)}, now {ours[key]}" for key in different)
            raise ValueError(
                f"The labels in {folder} were made otherwise ({changes}): choose another folder, or overwrite them."
            )
        if different:
            strangers += labels
    # Before the new stamps are written, lest an interruption leaves the old labels under them.
    for label in strangers:
        label.unlink()
    for name, ours in stamps.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        write_json(out / name / SIDECAR, ours)


def _link(photo: Path, target: Path) -> None:
    """Put a photo where the folder source looks for it, without a second copy of its data where that can be had."""
    if target.exists():  # `find_photos` saw that it is the same picture
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    photo = photo.resolve()
    try:
        os.link(photo, target)
    except OSError:  # another file system, or one without hard links
        with atomic_path(target) as temporary:
            shutil.copyfile(photo, temporary)
            # Equal times are how the copy is known for the same photo without reading both.
            os.utime(temporary, ns=(photo.stat().st_atime_ns, photo.stat().st_mtime_ns))


def label_sheet(out: Path, intrinsics: Sequence[str]) -> Image.Image:
    """Some photos with these labels, as training will see them: read back from the files in `out`."""
    source = open_source("folder", out, [INTRINSICS[name] for name in intrinsics], limit=SHEET_PHOTOS)
    samples = [source[i] for i in range(len(source))]
    columns: list[tuple[str, list[Tensor]]] = [("photo", [sample.photo for sample in samples])]
    for name in intrinsics:
        columns.append((name, [display_map(sample.labels[name][None], name)[0] for sample in samples]))
    return contact_sheet(columns, row_labels=[sample.name for sample in samples])
