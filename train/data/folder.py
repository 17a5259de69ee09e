"""A folder of photos and labels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...intrinsics.pictures import read_picture
from ...intrinsics.vocabulary import PICTURE_SUFFIXES, Intrinsic
from .conditions import FOLDER as CONDITIONS
from .conditions import SUFFIX as CONDITION_SUFFIX
from .conditions import read_condition
from .label_files import LABEL_SUFFIXES, npz_names, read_label, read_mask, read_sidecar
from .listing import file_stamp, files_by_stem, lacking, spread
from .sample import Sample, assemble


class FolderSource:
    """A folder of photos with one folder per intrinsic, or the output of `render-scenes`.

        PATH/photos/beach.jpg       the photo; subfolders are searched too
        PATH/normals/beach.npz      or .exr, .npy, .png; same name without suffix (or beach_normals), same subfolder
        PATH/normals/label.json     convention of the labels, see `label_files`; optional
        PATH/mask/beach.png         white where the labels are valid; optional
        PATH/conditions/beach.safetensors   the generator's condition of the photo, see `make-set`; optional

    Without a folder `photos`, the photos are `PATH/*_rgb.png` (.jpg, ...), and `STEM.npz` next to `STEM_rgb.png`
    contains the labels of all intrinsics that do not have a folder.
    """

    def __init__(self, path: str | Path, intrinsics: Sequence[Intrinsic], limit: int | None = None) -> None:
        self.root = Path(path)
        if not self.root.is_dir():
            raise FileNotFoundError(f"Folder {path} not found.")
        self.intrinsics, self.problems = list(intrinsics), []
        nested = (self.root / "photos").is_dir()
        photos = self._photos(nested)
        labels = {i.name: files_by_stem(self.root / i.name, LABEL_SUFFIXES)[0] for i in intrinsics}
        combined = {} if nested else files_by_stem(self.root, (".npz",), deep=False)[0]
        masks = files_by_stem(self.root / "mask", LABEL_SUFFIXES)[0]
        conditions = files_by_stem(self.root / CONDITIONS, (CONDITION_SUFFIX,))[0] if nested else {}
        self.sidecars = {i.name: read_sidecar(self.root / i.name, i) for i in intrinsics}
        self.items: dict[str, dict[str, Path]] = {}  # {name: {"photo" | "mask" | "condition" | intrinsic: file}}
        missing: dict[str, list[str]] = {i.name: [] for i in intrinsics}
        for stem, photo in photos.items():
            item = {"photo": photo}
            short = stem.removesuffix("_rgb")
            arrays = dict.fromkeys(npz_names(combined[short]), combined[short]) if short in combined else {}
            for name in missing:
                named = (stem, short, f"{stem}_{name}")  # the last is used by other programs
                file = next((labels[name][key] for key in named if key in labels[name]), arrays.get(name))
                if file is None:
                    missing[name].append(stem)
                else:
                    item[name] = file
            if mask := masks.get(stem) or masks.get(short):
                item["mask"] = mask
            if stem in conditions:
                item["condition"] = conditions[stem]
            if all(name in item for name in missing):
                self.items[stem] = item
        self.problems += [lacking(name, stems, len(photos)) for name, stems in missing.items() if stems]
        if not self.items:
            wanted = " and ".join(f"{name}/STEM.npz, .exr or .png" for name in missing)
            found = ", ".join(f"{len(labels[name])} labels in {name}/" for name in missing)
            place = "photos/" if nested else "*_rgb.png"
            raise ValueError(
                f"{self.root} contains no labelled photos: expected photos/STEM.jpg with {wanted} (or STEM_rgb.png "
                f"with STEM.npz), found {len(photos)} photos ({place}), {found}."
            )
        self.names = spread(list(self.items), limit)

    def _photos(self, nested: bool) -> dict[str, Path]:
        if nested:
            photos, duplicates = files_by_stem(self.root / "photos", PICTURE_SUFFIXES)
        else:
            photos, duplicates = files_by_stem(self.root, PICTURE_SUFFIXES, deep=False, ending="_rgb")
        self.problems += [f"{file} has the same name as another photo and is skipped" for file in duplicates]
        return photos

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        item = self.items[name]
        labels = {i.name: read_label(item[i.name], i, self.sidecars[i.name]) for i in self.intrinsics}
        masks = [read_mask(item["mask"])] if "mask" in item else []
        condition = read_condition(item["condition"]) if "condition" in item else None
        return replace(assemble(name, read_picture(item["photo"]), labels, masks), condition=condition)

    def stamp(self, index: int) -> str:
        item = self.items[self.names[index]]
        return f"{self.names[index]} {[file_stamp(item[key]) for key in sorted(item)]} {self.sidecars}"
