"""Where photos and their labels come from: folders, DIODE, Hugging Face `datasets`, WebDataset shards.

A source lists what is there when it is opened and reads one sample at a time, so memory does not grow with the set.
Nothing that is wrong with single files is fatal: it is put into words in `problems`, and the rest is used.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..intrinsics.normals import mirror_normals, normalize_normals
from ..intrinsics.pictures import PICTURE_SUFFIXES, Picture, read_picture
from ..intrinsics.registry import Intrinsic
from ..intrinsics.relight.files import fit_maps
from ..intrinsics.resize import resize
from .conditions import FOLDER as CONDITIONS
from .conditions import SUFFIX as CONDITION_SUFFIX
from .conditions import Condition, read_condition
from .label_files import LABEL_SUFFIXES, npz_names, read_label, read_mask, read_sidecar

PERMUTED = ("albedo", "shading")  # what takes the photo's colours with it when these are permuted


@dataclass(frozen=True, eq=False)
class Sample:
    """One photo and its labels, all of one size.

    Attributes:
        name: unique in its source.
        photo: (3,H,W) sRGB in [0,1]; what is transparent is mid grey.
        labels: {intrinsic: canonical map (C,H,W)}, finite everywhere.
        mask: (1,H,W) of 0 and 1, 1 where all labels count (opaque, masked out by nothing, valid); None = everywhere.
            Where it comes from grey or from resampling, only what counts in full is 1.
        condition: what a generator drew the photo from, if `make-set` made it.
    """

    name: str
    photo: Tensor
    labels: dict[str, Tensor]
    mask: Tensor | None
    condition: Condition | None = None


def stack_maps(maps: Sequence[Tensor]) -> Tensor:
    """Maps (C,H,W) as one (N,C,H,W); grey and coloured shading may meet, and grey then has equal channels."""
    channels = max(len(x) for x in maps)
    return torch.stack([x if len(x) == channels else x.expand(channels, -1, -1) for x in maps])


class Source(Protocol):
    """A list of samples.

    Attributes:
        names: of the samples, in their order, which is sorted.
        problems: sentences about what was left out, with counts. Reading may add to them.
    """

    names: Sequence[str]
    problems: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read a sample. ValueError or OSError, one sentence that names the file, where that cannot be done."""
        ...

    def stamp(self, index: int) -> str:
        """A text that changes when the sample's files or their convention do; made without reading the files."""
        ...


def open_source(kind: str, path: str | Path, intrinsics: Sequence[Intrinsic], limit: int | None = None) -> Source:
    """Open a source.

    Args:
        kind: "folder" (see `FolderSource`), "diode" (`DiodeSource`), "datasets" (`DatasetsSource`) or "webdataset"
            (`ShardSource`).
        path: the folder, file, or name on the hub.
        intrinsics: every one of these labels must be there for a photo to count.
        limit: use at most so many samples, spread evenly over all: neighbours in a set often show the same scene.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: an unknown kind, or nothing usable: the sentence says what was looked for and what was found.
        ImportError: the kind needs a package that is not installed.
    """
    from .data_diode import DiodeSource
    from .data_packed import DatasetsSource, ShardSource

    kinds: dict[str, Any] = {
        "folder": FolderSource,
        "diode": DiodeSource,
        "datasets": DatasetsSource,
        "webdataset": ShardSource,
    }
    if kind not in kinds:
        raise ValueError(f"Unknown kind of data source {kind!r}; choose from {', '.join(kinds)}.")
    if limit is not None and limit < 1:
        raise ValueError(f"The limit of samples must be at least 1, got {limit}.")
    return kinds[kind](path, intrinsics, limit)


class Selection:
    """Some samples of a source, for instance the training or the validation part of it. Shares its problems."""

    def __init__(self, source: Source, indices: Iterable[int]) -> None:
        self.source, self.indices = source, list(indices)
        self.names = [source.names[i] for i in self.indices]
        self.problems = source.problems

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self.indices[index]]

    def stamp(self, index: int) -> str:
        return self.source.stamp(self.indices[index])


def usable(source: Source, progress: Callable[[int, int], None] | None = None) -> list[int]:
    """Read every sample once and return the indices of those that can be read; the others go to `problems`.

    Raises:
        ValueError: none can be read.
    """
    good = []
    for i in range(len(source)):
        if try_read(source, i) is not None:
            good.append(i)
        if progress:
            progress(i + 1, len(source))
    if not good:
        raise nothing_readable(source)
    return good


def try_read(source: Source, index: int, resolution: int | None = None) -> Sample | None:
    """The sample, prepared if a resolution is given, or None and a sentence in `source.problems`."""
    try:
        return source[index] if resolution is None else prepare(source[index], resolution)
    except (ValueError, OSError, MemoryError) as error:
        sentence = f"{source.names[index]}: {error}"
        if sentence not in source.problems:
            source.problems.append(sentence)
        return None


def nothing_readable(source: Source) -> ValueError:
    """The error for a source of which no sample can be read."""
    return ValueError(f"None of the {len(source)} samples can be read; the last one: {source.problems[-1]}")


def prepare(sample: Sample, resolution: int) -> Sample:
    """The paper's preprocessing: the short side to `resolution` (bilinear, antialiased), then the centre square.

    Sizes are rounded as torchvision's Resize and CenterCrop do, which the paper used. Normals are brought back to
    unit length. Depth is not stretched again: the square keeps the distances of the whole picture.

    Raises:
        ValueError: nothing in the square counts, or the photo has a condition, which is of the whole photo, and is of
            another size.
    """
    height, width = sample.photo.shape[-2:]
    if sample.condition is not None and (height, width) != (resolution, resolution):
        raise ValueError(
            f"it is {width} x {height} and comes with its generator's condition, so that it cannot be resized to "
            f"{resolution}: set data.resolution to the size of the set's pictures."
        )
    short = min(height, width)
    size = (int(resolution * height / short), int(resolution * width / short))
    top, left = (round((side - resolution) / 2) for side in size)

    def square(x: Tensor) -> Tensor:
        return resize(x[None], size)[0, :, top : top + resolution, left : left + resolution].contiguous()  # (C,R,R)

    labels = {name: square(map) for name, map in sample.labels.items()}
    if "normals" in labels:
        labels["normals"] = normalize_normals(labels["normals"])
    mask = None if sample.mask is None else _in_full(square(sample.mask))
    return replace(sample, photo=square(sample.photo), labels=labels, mask=mask)


def variant(sample: Sample, mirrored: bool = False, order: Sequence[int] = (0, 1, 2)) -> Sample:
    """The sample seen in a mirror (normals' X negated), with its colour channels in another order.

    Albedo and coloured shading change their channels with the photo; other labels do not depend on its colours.

    Raises:
        ValueError: the sample has a condition, which is of the photo as it is.
    """
    if sample.condition is not None and (mirrored or tuple(order) != (0, 1, 2)):
        raise ValueError(
            "Pictures of make-set come with their conditions, and those of mirrored or recoloured ones are not known: "
            "set data.flip=false and data.color_permutations=false."
        )
    labels, photo, mask = dict(sample.labels), sample.photo[list(order)], sample.mask
    for name in PERMUTED:
        if name in labels and len(labels[name]) == 3:
            labels[name] = labels[name][list(order)]
    if mirrored:
        photo = photo.flip(-1)
        mask = None if mask is None else mask.flip(-1)
        labels = {name: mirror_normals(x) if name == "normals" else x.flip(-1) for name, x in labels.items()}
    return replace(sample, photo=photo, labels=labels, mask=mask)


class FolderSource:
    """A folder of photos and one folder per intrinsic, or what `render-scenes` writes.

        PATH/photos/beach.jpg       the photo; subfolders are searched too
        PATH/normals/beach.npz      or .exr, or .png; same name without suffix, in the same subfolder
        PATH/normals/label.json     what the numbers mean, see `label_files`; optional
        PATH/mask/beach.png         white where the labels count; optional
        PATH/conditions/beach.safetensors   what a generator drew the photo from, see `make-set`; optional

    Without a folder `photos`, the photos are `PATH/*_rgb.png` (.jpg, ...), and `STEM.npz` beside `STEM_rgb.png`
    holds the labels of every intrinsic that has no folder of its own.
    """

    def __init__(self, path: str | Path, intrinsics: Sequence[Intrinsic], limit: int | None = None) -> None:
        self.root = Path(path)
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder {path}.")
        self.intrinsics, self.problems = list(intrinsics), []
        nested = (self.root / "photos").is_dir()
        photos = self._photos(nested)
        labels = {i.name: files_by_stem(self.root / i.name, LABEL_SUFFIXES)[0] for i in intrinsics}
        beside = {} if nested else files_by_stem(self.root, (".npz",), deep=False)[0]
        masks = files_by_stem(self.root / "mask", LABEL_SUFFIXES)[0]
        conditions = files_by_stem(self.root / CONDITIONS, (CONDITION_SUFFIX,))[0] if nested else {}
        self.sidecars = {i.name: read_sidecar(self.root / i.name, i) for i in intrinsics}
        self.items: dict[str, dict[str, Path]] = {}  # {name: {"photo" | "mask" | "condition" | intrinsic: file}}
        missing: dict[str, list[str]] = {i.name: [] for i in intrinsics}
        for stem, photo in photos.items():
            item = {"photo": photo}
            short = stem.removesuffix("_rgb")
            held = dict.fromkeys(npz_names(beside[short]), beside[short]) if short in beside else {}
            for name in missing:
                file = labels[name].get(stem) or labels[name].get(short) or held.get(name)
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
                f"{self.root} holds nothing to train on: looked for photos/STEM.jpg with {wanted} (or STEM_rgb.png "
                f"with STEM.npz), found {len(photos)} photos ({place}), {found}."
            )
        self.names = spread(list(self.items), limit)

    def _photos(self, nested: bool) -> dict[str, Path]:
        if nested:
            photos, twins = files_by_stem(self.root / "photos", PICTURE_SUFFIXES)
        else:
            photos, twins = files_by_stem(self.root, PICTURE_SUFFIXES, deep=False, ending="_rgb")
        self.problems += [f"{twin} has the name of another photo and is left out" for twin in twins]
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


Label = tuple[Tensor, Tensor | None]


def assemble(name: str, photo: Picture, labels: dict[str, Label], masks: list[Tensor]) -> Sample:
    """A sample of the photo's size: labels and masks are resampled to it.

    Raises:
        ValueError: a label or mask of another aspect.
    """
    height, width = photo.rgb.shape[-2:]
    maps = {label: fit_maps({label: map[None]}, height, width)[label][0] for label, (map, _) in labels.items()}
    if "normals" in maps and maps["normals"].shape != labels["normals"][0].shape:
        maps["normals"] = normalize_normals(maps["normals"])
    masks = masks + [mask for _, mask in labels.values() if mask is not None]
    masks = [fit_maps({"mask": mask[None]}, height, width)["mask"][0] for mask in masks]
    if photo.alpha is not None:
        masks.append(photo.alpha[0])
    mask = _in_full(torch.stack(masks).amin(0)) if masks else None  # (1,H,W)
    return Sample(name, photo.rgb[0], maps, mask)


def _in_full(mask: Tensor) -> Tensor:
    if not (mask > 0.99).any():
        raise ValueError("nothing of it counts: its masks leave no pixel.")
    return (mask > 0.99).float()


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
    for parent, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")] if deep else []
        below = Path(parent).relative_to(folder).as_posix()
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in suffixes and stem.endswith(ending) and not name.startswith("."):
                key = stem if below == "." else f"{below}/{stem}"
                files.append((key, suffixes.index(suffix.lower()), os.path.join(parent, name)))
    for key, _, file in sorted(files):
        if key in found:
            twins.append(file)
        else:
            found[key] = Path(file)
    return found, twins


def file_stamp(path: Path) -> str:
    """Name, size and time of a file."""
    try:
        status = path.stat()
    except OSError:  # gone since the folder was listed, which reading it will say
        return f"{path.name} is gone"
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"
