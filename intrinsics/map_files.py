"""Maps on disk: the one reader of STEM.npz, STEM.exr, STEM_<map>.npy and STEM_<map>.png.

Floats (.npz, .npy, .exr) are what they say: vectors, linear light, depth of whatever kind. Pictures (.png) are drawn:
normals as n * 0.5 + 0.5, depth in grey, light sRGB-encoded. Names of arrays and layers are understood in any case;
`normal` is `normals`, and layers may be renderers' passes, as `ViewLayer.Normal`, `N` or `Z`.
"""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor

from .budget import check_memory
from .depth import grey_depth
from .exr import Layers, naming, open_exr
from .exr_layers import in_rec709, listed, map_layer, map_values
from .files import continued
from .normals import check_vectors, picture_to_normals
from .pictures import read_picture

MAPS = ("normals", "depth", "albedo", "shading", "roughness", "mask")
SYNONYMS = {"normals": ("normals", "normal")}
RENDER_PASSES = {"normals": ("n",), "depth": ("z",)}  # as renderers call their layers
SUFFIXES = (".npz", ".exr", ".npy", ".png")  # where several are there, the first is read
UNNAMED = "arr_0"  # numpy's name of an array that was saved without one
WHOLE_NUMBERS = ("depth", "mask")  # of these, integers mean what they say; of the others they would be a picture


@dataclass(frozen=True, eq=False)
class StoredMap:
    """One map as it is stored.

    Attributes:
        values: (C, H, W) float32; vector components for normals, one channel for depth.
        picture: it comes from a picture, so that light is sRGB-encoded.
        mask: (1, H, W), where it counts, in [0,1]: a picture's alpha, or the mask in the same file. None = everywhere.
        foreign: the name of the renderer's pass it comes from, whose normals are in world space in Blender and
            Arnold; "" for a map that is called by its proper name.
    """

    values: Tensor
    picture: bool = False
    mask: Tensor | None = None
    foreign: str = ""


def names_of(name: str) -> tuple[str, ...]:
    """Return the accepted array names of a map, in lower case, the canonical one first."""
    return SYNONYMS.get(name, (name.lower(),))


def proper_name(name: str) -> str:
    """Return the canonical name of a map (Normals, normal, DEPTH); other names are returned unchanged."""
    known = {other: proper for proper in MAPS for other in names_of(proper)}
    return known.get(name.lower(), name)


def plain_stem(stem: str) -> str:
    """Return the stem of a photo's maps: `0003_rgb.png` goes with `0003.npz`."""
    return stem.removesuffix("_rgb")


def find_maps(folder: Path, stem: str) -> list[Path]:
    """Find the files that hold the maps of a photo: `STEM.npz`, else `STEM.exr`, else `STEM_<map>.npy` and `.png`.

    Where there is none of them, those of the stem without `_rgb`. An empty list where there is nothing.
    """
    for name in dict.fromkeys((stem, plain_stem(stem))):
        for suffix in (".npz", ".exr"):
            if (folder / f"{name}{suffix}").is_file():
                return [folder / f"{name}{suffix}"]
        if found := _siblings(folder, name):
            return found
    return []


def _siblings(folder: Path, stem: str) -> list[Path]:
    candidates = [[folder / f"{stem}_{name}{suffix}" for suffix in (".npy", ".png")] for name in MAPS]
    return [next(path for path in paths if path.is_file()) for paths in candidates if any(p.is_file() for p in paths)]


def files_beside(path: Path) -> list[Path]:
    """List a file of maps and, where it is `STEM_<map>.npy` or `.png`, those of the same stem.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a file of another kind, or of one map whose name does not say which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    suffix = path.suffix.lower()
    if suffix in (".npz", ".exr"):
        return [path]
    if suffix not in SUFFIXES:
        raise ValueError(
            f"Maps are read from a folder, an .npz, an .exr, or files such as STEM_depth.npy, not from {path}."
        )
    stem, _, name = path.stem.rpartition("_")
    if name not in MAPS:
        raise ValueError(
            f"{path} does not say which map it is: call it STEM_depth{suffix}, STEM_normals{suffix} or such."
        )
    return [path, *(other for other in _siblings(path.parent, stem) if other.stem != path.stem)]


def read_maps(path: str | os.PathLike[str], names: Sequence[str], lone: bool = False) -> dict[str, StoredMap]:
    """Read the maps of these names that one file holds.

    Args:
        path: an `.npz` with arrays (H, W) or (H, W, C), an `.exr` with layers, or an `.npy` or `.png`, which holds
            the one map that `names` ask for.
        names: which maps; proper names.
        lone: names hold one name, and the only layer of plain R, G, B, or numpy's unnamed array, will do for it.

    Returns:
        {name: map} of those that are there.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: one sentence that names the file: unreadable, too large, or an array or layer that is no such map.
        ImportError: EXR without OpenEXR.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".npz":
            return _from_npz(path, names, lone)
        case ".exr":
            with naming(path):
                return _from_exr(open_exr(path), names, lone)
        case ".npy":
            return {names[0]: StoredMap(as_map(read_npy(path), f"{path}: its array", names[0]))}
        case _:
            return {names[0]: _from_picture(path, names[0])}


def foreign_normals(path: Path, normals: StoredMap) -> str:
    """Return the error message for a renderer's normal pass whose frame is not stated."""
    return (
        f"{path}: its normals are the layer {normals.foreign}. Renderers such as Blender and Arnold write this pass "
        "in world space: convert it to the camera's and call the layer normals, or, where it is in the camera's "
        "already, state its frame (opengl: X right, Y up, Z towards the viewer)."
    )


def layer_names(path: Path) -> list[str]:
    """List the names of an EXR file's layers, see `open_exr`."""
    with naming(path):
        return list(open_exr(path))


def _from_npz(path: Path, names: Sequence[str], lone: bool) -> dict[str, StoredMap]:
    arrays = read_npz(path, [*names, "mask", *([UNNAMED] if lone else [])])
    if lone and names[0] not in arrays and UNNAMED in arrays:
        arrays[names[0]] = arrays[UNNAMED]
    maps = {name: as_map(arrays[name], f"{path}: {name}", name) for name in (*names, "mask") if name in arrays}
    mask = maps["mask"][:1] if "mask" in maps else None
    return {name: StoredMap(maps[name], mask=mask) for name in names if name in maps}


def _from_exr(layers: Layers, names: Sequence[str], lone: bool) -> dict[str, StoredMap]:
    found = {name: map_layer(layers, names_of(name) + RENDER_PASSES.get(name, ())) for name in (*names, "mask")}
    if lone and found[names[0]] is None and list(layers) == ["rgb"]:
        found[names[0]] = "rgb"
    used = {name: layer for name, layer in found.items() if layer is not None}
    values: dict[str, Tensor] = {}
    for name, layer in used.items():
        planes, coloured = map_values(layers[layer], layer)
        if coloured and name != "normals":
            planes = np.moveaxis(in_rec709(np.moveaxis(planes, 0, -1), list(layers[layer].values())), -1, 0)
        values[name] = _checked(torch.from_numpy(np.ascontiguousarray(planes)), name)
    mask = values["mask"][:1] if "mask" in values else None
    foreign = {
        name: "" if layer.rpartition(".")[2].lower() in (name, "rgb") else f"{layer} ({listed(layers)})"
        for name, layer in used.items()
    }
    return {name: StoredMap(values[name], mask=mask, foreign=foreign[name]) for name in names if name in used}


def _from_picture(path: Path, name: str) -> StoredMap:
    picture = read_picture(path)
    values = picture.rgb[0]  # (3, H, W)
    try:
        values = picture_to_normals(values) if name == "normals" else _one_channel(values, name)
    except ValueError as error:
        raise ValueError(f"{path}: {continued(error)}") from error
    return StoredMap(values, picture=True, mask=None if picture.alpha is None else picture.alpha[0])


def as_map(array: np.ndarray, what: str, name: str) -> Tensor:
    """Check an array (H, W) or (H, W, C) that is to be the map `name` and return it as (C, H, W) float32.

    Raises:
        ValueError: a sentence that begins with `what`: another shape, not numbers, integers where they do not mean
            what they say, or not such a map.
    """
    kinds = "fiub" if name in WHOLE_NUMBERS else "f"
    if array.dtype.kind not in kinds or array.ndim not in (2, 3) or 0 in array.shape:
        wanted = "numbers" if name in WHOLE_NUMBERS else "floating-point numbers"
        raise ValueError(f"{what} must hold {wanted} (H, W) or (H, W, C), not {array.dtype} {array.shape}.")
    try:
        return _checked(torch.from_numpy(np.atleast_3d(array).astype(np.float32)).permute(2, 0, 1), name)
    except ValueError as error:
        raise ValueError(f"{what}: {continued(error)}") from error


def _checked(values: Tensor, name: str) -> Tensor:
    """(C, H, W) -> the same, depth and mask of one channel; ValueError where normals are not vectors."""
    if name == "normals":
        if len(values) != 3:
            raise ValueError(f"Normals have 3 channels, not {len(values)}.")
        check_vectors(values)
    return _one_channel(values, name)


def _one_channel(values: Tensor, name: str) -> Tensor:
    if name == "depth":
        return grey_depth(values)
    return values.mean(0, keepdim=True) if name in ("mask", "roughness") else values


def read_npz(path: str | os.PathLike[str], names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read arrays of an `.npz` by their proper names, without pickle; its headers are looked at first.

    Args:
        path: the file.
        names: proper names of those wanted; None for all.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: damaged, no `.npz`, with Python objects, or too large for the memory.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    damaged = f"{path} cannot be read as an .npz of maps: it is damaged or something else."
    try:
        with ZipFile(path) as archive:
            stored = {key.removesuffix(".npy"): key for key in archive.namelist() if key.endswith(".npy")}
            chosen = _chosen(list(stored), names)
            sizes = {}
            for key in chosen.values():
                with archive.open(stored[key]) as member:
                    sizes[key] = _size_of_npy(member)
    except Exception as error:  # zlib, zipfile and numpy raise nearly anything on a damaged file
        raise ValueError(damaged) from error
    check_memory(sum(sizes.values()), f"{path} ({len(sizes)} arrays)")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[key] for name, key in chosen.items()}
    except Exception as error:
        raise ValueError(damaged) from error


def npz_names(path: str | os.PathLike[str]) -> list[str]:
    """Proper names of the arrays in an `.npz`, without reading them; none where it is damaged."""
    try:
        with ZipFile(path) as archive:
            return list(_chosen([k.removesuffix(".npy") for k in archive.namelist() if k.endswith(".npy")], None))
    except Exception:
        return []


def _chosen(keys: Sequence[str], names: Collection[str] | None) -> dict[str, str]:
    """{proper name: key}; a key that is itself the proper name goes before others."""
    chosen: dict[str, str] = {}
    for key in sorted(keys, key=lambda key: key != proper_name(key)):
        if names is None or proper_name(key) in names:
            chosen.setdefault(proper_name(key), key)
    return chosen


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an `.npy` without pickle; its header is looked at first.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: damaged, no `.npy`, with Python objects, or too large for the memory.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    damaged = f"{path} cannot be read as a .npy array: it is damaged or something else."
    try:
        with path.open("rb") as file:
            size = _size_of_npy(file)
    except Exception as error:
        raise ValueError(damaged) from error
    check_memory(size, f"{path}")
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
        return array
    except Exception as error:
        raise ValueError(damaged) from error


def _size_of_npy(file: Any) -> int:
    """Bytes that the array takes, as it is stored and as float32, from its header."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return math.prod(shape) * (dtype.itemsize + 4)
