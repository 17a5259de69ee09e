"""Reading of label files as canonical maps, with the convention in `label.json` or the defaults below.

`label.json` in the folder of an intrinsic's labels is an object with `convention` (a string, below) and further
entries of its writer (teacher, version). Conventions:

- normals: one of `NORMAL_FRAMES`, opengl by default. Pictures contain n * 0.5 + 0.5, float files vectors.
- depth: one of `DEPTH_KINDS`, or `near-black`, a synonym of `distance`; by default floats are distance (0 nearest, 1
  farthest) and pictures near-white, as written by `extract`. `disparity` requires the numbers `near` and `far`.
- other intrinsics: `srgb` or `linear`; by default floats are linear and pictures as the intrinsic's `raw_convention`.

`canonical` means opengl, distance and linear.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...intrinsics.color import srgb_to_linear
from ...intrinsics.depth import grey_depth, to_distance, valid_depth
from ...intrinsics.files import continued
from ...intrinsics.map_files import SUFFIXES as LABEL_SUFFIXES
from ...intrinsics.map_files import as_map, foreign_normals, layer_names, npz_names, read_maps
from ...intrinsics.normals import MIN_LENGTH, convert_normals, normalize_normals
from ...intrinsics.vocabulary import DEPTH_KINDS, NORMAL_FRAMES, Intrinsic

__all__ = [
    "LABEL_SUFFIXES",
    "as_map",
    "canonical",
    "default_convention",
    "npz_names",
    "read_label",
    "read_mask",
    "read_sidecar",
]

SIDECAR = "label.json"


def read_sidecar(folder: Path, intrinsic: Intrinsic) -> dict[str, Any]:
    """Read `label.json` in the folder of an intrinsic's labels, with `convention` resolved; {} if it does not exist.

    Raises:
        ValueError: not JSON, not an object, or an invalid convention for this intrinsic.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return {}
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(sidecar, dict):
        raise ValueError(f'{path} must hold a JSON object such as {{"convention": "canonical"}}.')
    if "convention" in sidecar:
        known = _conventions(intrinsic)
        if str(sidecar["convention"]) not in known:
            raise ValueError(
                f"{path} has the convention {sidecar['convention']!r}; for {intrinsic.name} choose one of "
                f"{', '.join(known)}."
            )
        sidecar["convention"] = known[sidecar["convention"]]
        if sidecar["convention"] == "disparity":
            near, far = sidecar.get("near"), sidecar.get("far")
            if not (isinstance(near, int | float) and isinstance(far, int | float) and 0 < near < far):
                raise ValueError(f"{path}: disparity requires the distances 0 < near < far that it spans.")
    return sidecar


def _conventions(intrinsic: Intrinsic) -> dict[str, str]:
    """Return {accepted convention: resolved convention}."""
    match intrinsic.name:
        case "normals":
            return {name: name for name in NORMAL_FRAMES} | {"canonical": "opengl"}
        case "depth":
            return {name: name for name in DEPTH_KINDS} | {"near-black": "distance", "canonical": "distance"}
        case _:
            return {"srgb": "srgb", "linear": "linear", "canonical": "linear"}


def read_label(path: Path, intrinsic: Intrinsic, sidecar: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Read one label.

    An `.npz` contains an array (H, W) or (H, W, C) named like the intrinsic, or numpy's unnamed `arr_0`, and
    optionally a `mask` of valid pixels. An `.exr` contains a layer named like the intrinsic, or only plain R, G, B. An
    `.npy` is the array. A `.png` has 8 or 16 bits; its alpha is a mask. Names are those of `map_files`.

    Args:
        path: ends in one of `LABEL_SUFFIXES`.
        intrinsic: the intrinsic of the label.
        sidecar: from `read_sidecar`.

    Returns:
        The canonical map (C, H, W) float32, and its mask (1, H, W) in [0, 1], 1 = valid; None if all pixels are valid.

    Raises:
        ValueError: the file is unreadable, has no such label, or values outside the range of the convention; the
            message names the file.
    """
    stored = read_maps(path, [intrinsic.name], lone=True).get(intrinsic.name)
    if stored is None:
        raise ValueError(f"{path} holds no {intrinsic.name}: no array or layer has this name{_found_instead(path)}.")
    if stored.foreign and intrinsic.name == "normals" and "convention" not in sidecar:
        raise ValueError(foreign_normals(path, stored))
    convention = sidecar.get("convention") or default_convention(intrinsic, stored.picture)
    try:
        return canonical(
            stored.values, stored.mask, intrinsic, convention, sidecar.get("near", 1.0), sidecar.get("far", 2.0)
        )
    except ValueError as error:
        raise ValueError(f"{path}: {continued(error)}") from error


def default_convention(intrinsic: Intrinsic, picture: bool) -> str:
    """Return the convention of labels without `label.json`."""
    match intrinsic.name:
        case "normals":
            return "opengl"
        case "depth":
            return "near-white" if picture else "distance"
        case _:
            return intrinsic.raw_convention if picture else "linear"


def canonical(
    values: Tensor, mask: Tensor | None, intrinsic: Intrinsic, convention: str, near: float = 1.0, far: float = 2.0
) -> tuple[Tensor, Tensor | None]:
    """Convert stored values to the canonical map.

    Invalid pixels (NaN, infinity, normals of length 0, depth that is invalid by `valid_depth`) are removed from the
    mask and filled: normals face the viewer, depth is farthest, other maps are 0.

    Args:
        values: (C, H, W) as stored; vectors for normals.
        mask: (1, H, W), above 0 where the label is valid, or None.
        intrinsic: the intrinsic of the map.
        convention: resolved, see `read_sidecar`.
        near, far: for disparity, see `to_distance`.

    Returns:
        The map (C, H, W) and the mask, as `read_label`.

    Raises:
        ValueError: a wrong number of channels, no valid pixel, or depth outside the range of its kind.
    """
    if mask is not None and mask.shape[-2:] != values.shape[-2:]:
        raise ValueError(f"Its mask has {_size(mask)} pixels, but its map {_size(values)}.")
    known = values.isfinite().all(0, keepdim=True)  # (1, H, W)
    if intrinsic.name != "depth":
        values = torch.where(known, values, 0.0)
    match intrinsic.name:
        case "normals":
            if len(values) != 3:
                raise ValueError(f"Normals have 3 channels, not {len(values)}.")
            known = known & (values.square().sum(0, keepdim=True) >= MIN_LENGTH**2)
            result = normalize_normals(convert_normals(values, convention, "opengl"))  # (3, H, W)
        case "depth":
            depth = grey_depth(values)  # (1, H, W)
            known = valid_depth(depth, convention)
            if convention in ("metric", "disparity") and mask is not None:  # masked pixels do not affect the range
                known = known & (mask > 0)
            if known.any():
                stored = torch.where(known, depth, torch.nan)[None]
                result = to_distance(stored, convention, near, far)[0][0]  # (1, H, W)
        case _:
            light = srgb_to_linear(values) if convention == "srgb" else values.clamp(min=0)
            if intrinsic.raw_convention == "linear" and light.max() > 1 + 1e-3:
                raise ValueError(f"A map of {intrinsic.name} lies in 0..1, but this one reaches {light.max():g}.")
            result = _channels(light, intrinsic)
    valid = known.float() if mask is None else known * mask.clamp(0, 1)
    if not valid.any():
        raise ValueError("It has no valid pixels: it is empty or masked out.")
    return result, None if valid.min() == 1 else valid


def _channels(light: Tensor, intrinsic: Intrinsic) -> Tensor:
    """Convert to the channels of the intrinsic; shading keeps three channels if they differ (coloured light)."""
    if len(light) not in (1, 3):
        raise ValueError(f"A map of {intrinsic.name} has 1 or 3 channels, not {len(light)}.")
    if intrinsic.name == "shading":
        return light[:1] if len(light) == 1 or (light == light[:1]).all() else light
    return light.mean(0, keepdim=True) if intrinsic.channels == 1 else light.expand(3, -1, -1)


def _size(x: Tensor) -> str:
    return f"{x.shape[-1]} x {x.shape[-2]}"


def _found_instead(path: Path) -> str:
    names = layer_names(path) if path.suffix.lower() == ".exr" else npz_names(path)
    return f" (only {', '.join(names)})" if names else ""


def read_mask(path: Path) -> Tensor:
    """Read a mask (1, H, W) in [0, 1], 1 = valid, from a grey picture or a file with one array or layer.

    Raises:
        ValueError: the file cannot be read.
    """
    stored = read_maps(path, ["mask"], lone=True).get("mask")
    if stored is None:
        raise ValueError(f"{path} holds no mask: no array or layer has this name{_found_instead(path)}.")
    return stored.values.clamp(0, 1)
