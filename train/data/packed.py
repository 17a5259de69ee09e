"""Sources with many samples per file: Hugging Face `datasets` and WebDataset tar shards."""

import glob
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...intrinsics.budget import check_memory
from ...intrinsics.exr import optional_library
from ...intrinsics.pictures import read_picture
from ...intrinsics.vocabulary import Intrinsic
from .label_files import LABEL_SUFFIXES, as_map, canonical, default_convention, read_label, read_mask, read_sidecar
from .listing import lacking, spread
from .sample import Label, Sample, assemble

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
PHOTO_COLUMNS = ("photo", "image", "rgb")
# WebDataset's rule: the key is the path up to the first dot of the file name, the rest is the kind of file.
MEMBER = re.compile(r"^(?P<key>(?:.*/)?[^./][^./]*)\.(?P<kind>[^/]+)$", re.DOTALL)


@contextmanager
def as_file(data: bytes, suffix: str, what: str) -> Iterator[Path]:
    """Write `data` to a temporary file; ValueErrors of the body name `what` instead of this file."""
    with tempfile.TemporaryDirectory(prefix="intrinsic_lora_") as folder:
        path = Path(folder) / f"data{suffix}"
        path.write_bytes(data)
        try:
            yield path
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), what)) from error


class ShardSource:
    """WebDataset tar shards on a local disk, read in place without unpacking.

    PATH is a `.tar`, a folder of them, or a pattern such as `train-*.tar`; compressed shards are not supported,
    because they do not allow random access. Members with the same key are one sample:

        000017.jpg           the photo, or .png, .webp, .tif; or photo.png, image.png, rgb.png after the key
        000017.normals.png   or .npz, .exr; or one `000017.npz` with an array per intrinsic
        000017.mask.png      white where the labels are valid; optional

    The folder of the shards may contain `normals/label.json` and so on, like a folder of labels (`label_files`).
    """

    def __init__(self, path: str | Path, intrinsics: Sequence[Intrinsic], limit: int | None = None) -> None:
        self.intrinsics, self.problems = list(intrinsics), []
        shards = _shard_files(str(path))
        self.sidecars = {i.name: read_sidecar(shards[0].parent / i.name, i) for i in intrinsics}
        found: dict[str, dict[str, tuple[Path, int, int]]] = {}  # {name: {kind: (shard, offset, size)}}
        distinct = len({shard.stem for shard in shards}) == len(shards)
        for shard in shards:
            self._index(shard, shard.stem if distinct else str(shard), found)
        self.items: dict[str, dict[str, tuple[Path, int, int]]] = {}
        missing: dict[str, list[str]] = {i.name: [] for i in intrinsics}
        photos = [name for name in sorted(found) if _photo_kind(found[name])]
        for name in photos:
            unlabelled = [i.name for i in intrinsics if _label_kind(found[name], i.name) is None]
            for intrinsic in unlabelled:
                missing[intrinsic].append(name)
            if not unlabelled:
                self.items[name] = found[name]
        if without_photo := len(found) - len(photos):
            self.problems.append(f"{without_photo} of {len(found)} samples have no photo and are skipped")
        self.problems += [lacking(name, stems, len(photos)) for name, stems in missing.items() if stems]
        if not self.items:
            wanted = ", ".join(f"KEY.{i.name}.png, .npz or .exr" for i in intrinsics)
            raise ValueError(
                f"{path} contains no labelled photos: expected KEY.jpg with {wanted} (or KEY.npz), found "
                f"{len(found)} keys with {len(photos)} photos in {len(shards)} shards{_first(self.problems)}."
            )
        self.stamps = {shard: shard.stat() for shard in shards}
        self.names = spread(list(self.items), limit)

    def _index(self, shard: Path, prefix: str, found: dict[str, dict[str, tuple[Path, int, int]]]) -> None:
        count = 0
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    # Escaped, because a name may contain bytes that are not UTF-8.
                    name = member.name.encode("utf-8", "backslashreplace").decode()
                    match = MEMBER.match(name)
                    if match and member.isreg() and not member.issparse():
                        kinds = found.setdefault(f"{prefix}/{match['key']}", {})
                        kinds[match["kind"].lower()] = (shard, member.offset_data, member.size)
                        count += 1
        except (tarfile.TarError, OSError, ValueError) as error:
            self.problems.append(f"{shard} is damaged or compressed, {count} of its files are used: {error}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        item = self.items[name]
        kind = _photo_kind(item)
        with self._member(item, kind) as path:
            photo = read_picture(path)
        labels: dict[str, Label] = {}
        for intrinsic in self.intrinsics:
            kind = _label_kind(item, intrinsic.name)
            with self._member(item, kind) as path:
                labels[intrinsic.name] = read_label(path, intrinsic, self.sidecars[intrinsic.name])
        masks = []
        for kind in ("mask.png", "mask.npz"):
            if kind in item:
                with self._member(item, kind) as path:
                    masks.append(read_mask(path))
        return assemble(name, photo, labels, masks)

    @contextmanager
    def _member(self, item: dict[str, tuple[Path, int, int]], kind: str | None) -> Iterator[Path]:
        assert kind is not None  # checked when the shard was opened
        shard, offset, size = item[kind]
        check_memory(size, f"{kind} in {shard}")
        with shard.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        with as_file(data, f".{kind.rpartition('.')[2]}", f"{kind} in {shard}") as path:
            yield path

    def stamp(self, index: int) -> str:
        name = self.names[index]
        kinds = sorted((kind, offset, size) for kind, (_, offset, size) in self.items[name].items())
        status = self.stamps[next(iter(self.items[name].values()))[0]]
        return f"{name} {kinds} {status.st_size} {status.st_mtime_ns} {self.sidecars}"


def _shard_files(path: str) -> list[Path]:
    if "://" in path or path.startswith("pipe:"):
        raise ValueError(f"{path} is not on this machine: shards require random access, so download them first.")
    local = Path(path)
    files = (
        sorted(local.glob("*.tar"))
        if local.is_dir()
        else [local]
        if local.is_file()
        else sorted(map(Path, glob.glob(path)))
    )
    if not files:
        raise FileNotFoundError(
            f"No shards were found at {path}: give a .tar, a folder of them, or a pattern like *.tar."
        )
    return files


def _photo_kind(item: dict[str, Any]) -> str | None:
    names = ("", *(f"{column}." for column in PHOTO_COLUMNS))
    return next((kind for n in names for s in PHOTO_SUFFIXES if (kind := f"{n}{s[1:]}") in item), None)


def _label_kind(item: dict[str, Any], name: str) -> str | None:
    kinds = (*(f"{name}{suffix}" for suffix in LABEL_SUFFIXES), "npz")
    return next((kind for kind in kinds if kind in item), None)


def _first(problems: list[str]) -> str:
    return f" ({problems[0]})" if problems else ""


class DatasetsSource:
    """A dataset of the `datasets` package with one column for the photo and one per intrinsic.

    PATH is a folder written by `save_to_disk`, a parquet file, a local folder that `load_dataset` supports (such as
    one of parquet files), or a name on the Hugging Face hub, from which it is downloaded. `PATH#validation` selects
    a split; the default is `train`, or the only one. The photo is the column `photo`, `image` or `rgb`; labels are
    pictures or arrays (H, W) or (H, W, C) in the default conventions of `label_files`: pictures as written by
    `extract`, floats canonical. A column `mask` marks valid pixels.
    """

    def __init__(self, path: str | Path, intrinsics: Sequence[Intrinsic], limit: int | None = None) -> None:
        self.problems: list[str] = []
        datasets = optional_library("datasets", "The data source `datasets`")
        self.intrinsics = list(intrinsics)
        data = _load(datasets, str(path))
        columns = data.column_names
        photo = next((column for column in PHOTO_COLUMNS if column in columns), None)
        wanted = [i.name for i in intrinsics]
        if photo is None or not set(wanted) <= set(columns) or not len(data):
            raise ValueError(
                f"{path} contains no labelled photos: expected the columns {' or '.join(PHOTO_COLUMNS)}, and "
                f"{', '.join(wanted)}; found {len(data)} rows of {', '.join(columns) or 'nothing'}."
            )
        self.photo = photo
        used = [photo, *wanted, *(["mask"] if "mask" in columns else [])]
        data = data.select_columns(used)
        for column in used:  # not decoded, because Pillow would reduce 16-bit pictures to 8 bits
            if isinstance(data.features[column], datasets.Image):
                data = data.cast_column(column, datasets.Image(decode=False))
        arrays = [column for column in used if not isinstance(data.features[column], datasets.Image)]
        self.data = data.with_format("numpy", columns=arrays, output_all_columns=True)
        self.fingerprint = data._fingerprint
        width = len(str(len(data) - 1))
        self.names = spread([f"{i:0{width}d}" for i in range(len(data))], limit)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        row = self.data[int(name)]
        if row[self.photo] is None:
            raise ValueError(f"Row {name} has no {self.photo}.")
        with self._cell(row, self.photo, name) as path:
            photo = read_picture(path)
        labels: dict[str, Label] = {}
        for intrinsic in self.intrinsics:
            value = row[intrinsic.name]
            if value is None:
                raise ValueError(f"Row {name} has no {intrinsic.name}.")
            if isinstance(value, dict):
                with self._cell(row, intrinsic.name, name) as path:
                    labels[intrinsic.name] = read_label(path, intrinsic, {})
            else:
                values = as_map(np.asarray(value), f"{intrinsic.name} of row {name}", intrinsic.name)
                labels[intrinsic.name] = canonical(values, None, intrinsic, default_convention(intrinsic, False))
        masks = []
        if row.get("mask") is not None:
            if isinstance(row["mask"], dict):
                with self._cell(row, "mask", name) as path:
                    masks.append(read_mask(path))
            else:
                masks.append(as_map(np.asarray(row["mask"]), f"mask of row {name}", "mask").clamp(0, 1))
        return assemble(name, photo, labels, masks)

    @contextmanager
    def _cell(self, row: dict[str, Any], column: str, name: str) -> Iterator[Path]:
        """Write a picture's cell {"bytes", "path"} to a temporary file."""
        cell = row[column]
        data, file = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (None, None)
        if data is None and isinstance(file, str):
            data = Path(file).read_bytes()
        if not isinstance(data, bytes):
            raise ValueError(f"{column} of row {name} is not a picture: it contains neither bytes nor a path.")
        with as_file(data, ".png", f"{column} of row {name}") as path:
            yield path

    def stamp(self, index: int) -> str:
        return f"{self.fingerprint} {self.names[index]}"


def _load(datasets: Any, path: str) -> Any:
    """Load one split as a `datasets.Dataset`."""
    source, _, split = path.partition("#")
    local = Path(source)
    if not local.exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):  # otherwise it may be a name on the hub
        raise FileNotFoundError(f"File or folder {source} not found.")
    try:
        if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(source)
        elif local.suffix == ".parquet":
            data = datasets.load_dataset("parquet", data_files=source)
        else:
            data = datasets.load_dataset(source)
    except Exception as error:  # of the package, pyarrow or the network
        raise ValueError(f"{source} cannot be opened as a data set: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        return data
    chosen = split or ("train" if "train" in data else next(iter(data)) if len(data) == 1 else "")
    if chosen not in data:
        raise ValueError(f"{source} has the splits {', '.join(data)}: choose one as {source}#{next(iter(data))}.")
    return data[chosen]
