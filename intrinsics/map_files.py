"""Reading of maps from disk: STEM.npz, STEM.exr, STEM_<map>.npy and STEM_<map>.png.

Float files (.npz, .npy, .exr) contain vectors, linear light, and depth of any kind. Pictures (.png) contain
n * 0.5 + 0.5 for normals, grey depth, and sRGB-encoded light. Names of arrays and layers are case-insensitive;
`normal` is accepted for `normals`, and layers may be render passes such as `ViewLayer.Normal`, `N` or `Z`.
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
RENDER_PASSES = {"normals": ("n",), "depth": ("z",)}  # names of layers written by renderers
SUFFIXES = (".npz", ".exr", ".npy", ".png")  # in order of precedence
UNNAMED = "arr_0"  # numpy's name for an array saved without one
WHOLE_NUMBERS = ("depth", "mask")  # maps that may be integers; integers in other maps would be a picture


@dataclass(frozen=True, eq=False)
class StoredMap:
    """A map as stored in a file.

    Attributes:
        values: (C, H, W) float32; vector components for normals, one channel for depth.
        picture: whether it was read from a picture, so that light is sRGB-encoded.
        mask: (1, H, W) in [0, 1], 1 = valid: a picture's alpha, or the mask in the same file. None = all valid.
        foreign: name of the render pass it was read from, whose normals Blender and Arnold write in world space; ""
            for a map with its canonical name.
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
    """Return a photo's stem without `_rgb`: `0003_rgb.png` belongs to `0003.npz`."""
    return stem.removesuffix("_rgb")


def find_maps(folder: Path, stem: str) -> list[Path]:
    """Find the files with the maps of a photo: `STEM.npz`, else `STEM.exr`, else `STEM_<map>.npy` and `.png`.

    If there are none, the stem without `_rgb` is used. The list may be empty.
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
    """List a file of maps and, if it is `STEM_<map>.npy` or `.png`, the other maps with the same stem.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an unsupported file format, or a name that does not state the map.
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
    """Read maps from one file.

    Args:
        path: an `.npz` with arrays (H, W) or (H, W, C), an `.exr` with layers, or an `.npy` or `.png` with the only
            map in `names`.
        names: canonical names of the maps.
        lone: also accept numpy's unnamed array, or a single layer of plain R, G, B, for the only map in `names`.

    Returns:
        {name: map} of the maps found.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is unreadable or too large, or an array or layer is not a valid map; names the file.
        ImportError: the file is an EXR and OpenEXR is not installed.
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
    """Return the error message for a render pass of normals whose frame is not specified."""
    return (
        f"{path}: its normals are the layer {normals.foreign}. Renderers such as Blender and Arnold write this pass "
        "in world space: convert it to camera space and name the layer normals, or, if it is in camera space already, "
        "state its frame (opengl: X right, Y up, Z towards the viewer)."
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
    """Validate an array (H, W) or (H, W, C) as the map `name` and return it as (C, H, W) float32.

    Raises:
        ValueError: wrong shape, not numbers, integers for a map that has to be float, or not a valid map. The message
            begins with `what`.
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
    """Validate a map (C, H, W), reducing depth and masks to one channel; ValueError if normals are not vectors."""
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
    """Read arrays of an `.npz` by their canonical names, without pickle. Sizes are checked before reading.

    Args:
        path: the file.
        names: canonical names of the arrays to read; None for all.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, not an `.npz`, contains Python objects, or exceeds the memory limit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    damaged = f"{path} cannot be read: it is damaged or not an .npz file of maps."
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
    """List the canonical names of the arrays in an `.npz` without reading them; empty if it is damaged."""
    try:
        with ZipFile(path) as archive:
            return list(_chosen([k.removesuffix(".npy") for k in archive.namelist() if k.endswith(".npy")], None))
    except Exception:
        return []


def _chosen(keys: Sequence[str], names: Collection[str] | None) -> dict[str, str]:
    """Return {canonical name: key}; a key that is the canonical name takes precedence over synonyms."""
    chosen: dict[str, str] = {}
    for key in sorted(keys, key=lambda key: key != proper_name(key)):
        if names is None or proper_name(key) in names:
            chosen.setdefault(proper_name(key), key)
    return chosen


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an `.npy` without pickle. Its size is checked before reading.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, not an `.npy`, contains Python objects, or exceeds the memory limit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    damaged = f"{path} cannot be read: it is damaged or not an .npy file."
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
    """Return the size in bytes of the stored array plus its float32 copy, from the header."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return math.prod(shape) * (dtype.itemsize + 4)
