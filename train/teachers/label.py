"""Labelling of a folder of photos by a teacher, in the layout of `data.FolderSource`.

    OUT/photos/beach.jpg         hard links to the photos (or copies)
    OUT/normals/beach.npz        one label per photo and intrinsic, in the same subfolder
    OUT/normals/label.json       the teacher, and the convention of the labels

A photo is added to OUT/photos after its labels are written, so that the folder is valid training data at any time.
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
from ...intrinsics.vocabulary import INTRINSICS, PICTURE_SUFFIXES, LabelFormat
from ..data import open_source
from ..data.label_files import SIDECAR, read_sidecar
from ..data.listing import files_by_stem, spread
from .base import Teacher

# Conventions of the files, as defined in `label_files`: canonical maps in float files, pictures as in `extract`.
CONVENTIONS = {
    "npz": {"normals": "opengl", "depth": "distance", "albedo": "linear", "shading": "linear"},
    "png16": {"normals": "opengl", "depth": "near-white", "albedo": "srgb", "shading": "srgb"},
}
SUFFIXES = {"npz": ".npz", "png16": ".png"}
SHEET_PHOTOS = 8

Failed = Callable[[Path, Exception], None]


@dataclass(frozen=True)
class Labelled:
    """Numbers of photos that were labelled, skipped because they have labels, and failed."""

    written: int
    skipped: int
    failed: int


def label_photos(
    photos: Path,
    out: Path,
    teacher: Teacher,
    intrinsics: Sequence[str] | None = None,
    file_format: LabelFormat = "npz",
    batch_size: int = 1,
    limit: int | None = None,
    overwrite: bool = False,
    failed: Failed = lambda path, error: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Labelled:
    """Label all photos in a folder and its subfolders. Photos that are already labelled are skipped.

    Args:
        photos: the folder.
        out: folder of the data set; created if missing.
        teacher: the teacher model.
        intrinsics: names of the maps to keep; None for all of the teacher's.
        file_format: "npz" (canonical maps, float16) or "png16".
        batch_size: maximum number of photos, all of the same size, in a batch.
        limit: maximum number of photos, spread evenly over the folder.
        overwrite: overwrite existing labels; those of another teacher or with other settings are removed first.
        failed: called with the path and the error of every photo that fails.
        progress: called with the numbers of photos done and to do.

    Raises:
        ValueError: no photos, `out` inside `photos`, photos that would share labels, an intrinsic that the teacher
            does not predict, or, without `overwrite`, labels in `out` of another teacher or with other settings.
        OSError: `out` cannot be written. Files already written are complete, and the call can be resumed.
    """
    names = list(intrinsics or teacher.intrinsics)
    for name in names:
        if name not in teacher.intrinsics:
            raise ValueError(f"The teacher {teacher.name} predicts {', '.join(teacher.intrinsics)}, not {name}.")
    found = find_photos(photos, out)
    _claim_folders(out, {name: stamp(teacher, name, file_format) for name in names}, overwrite)

    def files(photo: Path) -> dict[str, Path]:
        return {name: (out / name / photo).with_suffix(SUFFIXES[file_format]) for name in names}

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
        if broken := [name for name, values in maps.items() if not values.isfinite().all()]:
            reason = f"The teacher's {', '.join(broken)} is not finite (if it runs in half precision, use float32)."
            give_up(photo, ValueError(reason))
            continue
        for name, file in files(photo).items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_label(file, maps[name][0], name)
        _link(photos / photo, out / "photos" / photo)
        written += 1
        progress(written + bad, len(todo))
    return Labelled(written, len(chosen) - len(todo), bad)


def stamp(teacher: Teacher, intrinsic: str, file_format: LabelFormat) -> dict[str, Any]:
    """Return the content of `label.json`, which is the same in every run."""
    return {
        "teacher": teacher.name,
        "model": teacher.model,
        "version": teacher.version,
        "licence": teacher.licence,
        "library": teacher.library,
        "intrinsic": intrinsic,
        "format": file_format,
        "convention": CONVENTIONS[file_format][intrinsic],
        "settings": teacher.settings,
    }


def write_label(path: Path, canonical: Tensor, intrinsic: str) -> None:
    """Write a canonical map (C, H, W) as `.npz` (float16, (H, W, C), depth (H, W)) or 16-bit `.png`, atomically."""
    if path.suffix == ".png":
        if intrinsic == "shading":  # known up to scale, and pictures are clipped at 1
            canonical = canonical / canonical.max().clamp(min=1)
        write_png(path, display_map(canonical[None], intrinsic, normals="opengl", depth="near-white"), bits=16)
        return
    write_map_npz(path, {intrinsic: canonical.half()})


def find_photos(photos: Path, out: Path) -> list[Path]:
    """List the photos as sorted paths relative to `photos`; ValueError if they cannot be labelled into `out`."""
    if not photos.is_dir():
        raise FileNotFoundError(f"Folder {photos} not found.")
    if out.resolve().is_relative_to(photos.resolve()):
        raise ValueError(f"{out} is inside {photos}, so labels would be read as photos; choose another folder.")
    found, duplicates = files_by_stem(photos, PICTURE_SUFFIXES)
    if not found:
        raise ValueError(f"{photos} contains no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}).")
    existing = files_by_stem(out / "photos", PICTURE_SUFFIXES)[0]
    # Lower case, because file names on Windows and macOS are case-insensitive.
    owners = {stem.lower(): path for stem, path in existing.items()}
    for stem, path in found.items():
        owner = owners.setdefault(stem.lower(), path)
        if owner != path and (owner.name != path.name or not filecmp.cmp(owner, path)):
            duplicates += [str(owner), str(path)]
    if duplicates:
        raise ValueError(f"{', '.join(duplicates[:4])}: photos of the same name share labels; rename one of them.")
    return [path.relative_to(photos) for path in found.values()]


def _claim_folders(out: Path, stamps: dict[str, dict[str, Any]], overwrite: bool) -> None:
    """Create the label folders with `label.json`; reject or remove labels of another teacher."""
    obsolete = []
    for name, new in stamps.items():
        folder = out / name
        labels = [path for path in folder.rglob("*") if path.suffix in SUFFIXES.values() and path.is_file()]
        if not labels:
            continue
        old = read_sidecar(folder, INTRINSICS[name])
        if "teacher" not in old:
            raise ValueError(f"{folder} contains labels that were not made by a teacher; choose another folder.")
        # The version of the library is recorded, but a new version does not invalidate labels.
        different = [key for key in new if key != "library" and old.get(key) != new[key]]
        if different and not overwrite:
            changes = "; ".join(f"{key} {old.get(key)}, now {new[key]}" for key in different)
            raise ValueError(
                f"The labels in {folder} were made with other settings ({changes}): choose another folder, or "
                "overwrite them."
            )
        if different:
            obsolete += labels
    # Removed before the new stamps are written, so that an interruption leaves no old labels with new stamps.
    for label in obsolete:
        label.unlink()
    for name, new in stamps.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        write_json(out / name / SIDECAR, new)


def _link(photo: Path, target: Path) -> None:
    """Hard-link a photo into the data set, or copy it if that is not supported."""
    if target.exists():  # the same picture, as checked by `find_photos`
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    photo = photo.resolve()
    try:
        os.link(photo, target)
    except OSError:  # another file system, or one without hard links
        with atomic_path(target) as temporary:
            shutil.copyfile(photo, temporary)
            # With equal times, `filecmp.cmp` recognises the copy without reading both files.
            os.utime(temporary, ns=(photo.stat().st_atime_ns, photo.stat().st_mtime_ns))


def label_sheet(out: Path, intrinsics: Sequence[str]) -> Image.Image:
    """Draw a contact sheet of some photos with these labels, as read from `out` by the trainer."""
    source = open_source("folder", out, [INTRINSICS[name] for name in intrinsics], limit=SHEET_PHOTOS)
    samples = [source[i] for i in range(len(source))]
    columns: list[tuple[str, list[Tensor]]] = [("photo", [sample.photo for sample in samples])]
    for name in intrinsics:
        columns.append((name, [display_map(sample.labels[name][None], name)[0] for sample in samples]))
    return contact_sheet(columns, row_labels=[sample.name for sample in samples])
