"""One label file to one canonical map. What its numbers mean is said by `label.json`, or by these defaults.

`label.json` in the folder of an intrinsic's labels is an object with `convention` (a string, below) and whatever else
its writer stamps (teacher, version). Conventions:

- normals: one of `NORMAL_FRAMES`; opengl unless said otherwise. A picture holds n * 0.5 + 0.5, floats hold vectors.
- depth: one of `DEPTH_KINDS`, `near-black` being the same as `distance`; floats are distance (0 nearest, 1 farthest)
  and pictures near-white, as `extract` writes them. `disparity` needs the numbers `near` and `far` beside it.
- every other intrinsic: `srgb` or `linear`; floats are linear, pictures as the intrinsic's `raw_convention` says.

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
    """What `label.json` in `folder` says of this intrinsic's labels, its `convention` resolved; {} without one.

    Raises:
        ValueError: not JSON, not an object, or a convention that this intrinsic does not have.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f'{path} must hold a JSON object such as {{"convention": "canonical"}}.')
    if "convention" in said:
        known = _conventions(intrinsic)
        if str(said["convention"]) not in known:
            raise ValueError(
                f"{path} says that the convention is {said['convention']!r}; for {intrinsic.name} it is one of "
                f"{', '.join(known)}."
            )
        said["convention"] = known[said["convention"]]
        if said["convention"] == "disparity":
            near, far = said.get("near"), said.get("far")
            if not (isinstance(near, int | float) and isinstance(far, int | float) and 0 < near < far):
                raise ValueError(f"{path}: disparity needs 0 < near < far beside it, the distances it spans.")
    return said


def _conventions(intrinsic: Intrinsic) -> dict[str, str]:
    """{what may be said: what it means}"""
    match intrinsic.name:
        case "normals":
            return {name: name for name in NORMAL_FRAMES} | {"canonical": "opengl"}
        case "depth":
            return {name: name for name in DEPTH_KINDS} | {"near-black": "distance", "canonical": "distance"}
        case _:
            return {"srgb": "srgb", "linear": "linear", "canonical": "linear"}


def read_label(path: Path, intrinsic: Intrinsic, sidecar: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Read one label.

    An `.npz` holds an array (H,W) or (H,W,C) named like the intrinsic, or numpy's unnamed `arr_0`; `mask` beside it
    says where it counts. An `.exr` holds a layer named like the intrinsic, or nothing but plain R, G, B. An `.npy` is
    the array. A `.png` has 8 or 16 bits; its alpha is a mask. Names are understood as `map_files` says.

    Args:
        path: ends in one of `LABEL_SUFFIXES`.
        intrinsic: whose label it is.
        sidecar: from `read_sidecar`.

    Returns:
        The canonical map (C,H,W) float32, and where it counts, (1,H,W) in [0,1]; None where it counts everywhere.

    Raises:
        ValueError: one sentence naming the file: unreadable, without this label, or out of its convention's range.
    """
    stored = read_maps(path, [intrinsic.name], lone=True).get(intrinsic.name)
    if stored is None:
        raise ValueError(f"{path} holds no {intrinsic.name}: no array or layer is called so{_found_instead(path)}.")
    if stored.foreign and intrinsic.name == "normals" and "convention" not in sidecar:
        raise ValueError(foreign_normals(path, stored))
    convention = sidecar.get("convention") or default_convention(intrinsic, stored.picture)
    try:
        return canonical(
            stored.values, stored.mask, intrinsic, convention, sidecar.get("near", 1.0), sidecar.get("far", 2.0)
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def default_convention(intrinsic: Intrinsic, picture: bool) -> str:
    """What the numbers mean where no `label.json` says so."""
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
    """Bring stored numbers to the canonical map.

    Pixels that say nothing (NaN, infinity, normals without length, depth that `valid_depth` leaves out) leave the mask
    and are filled: normals face the viewer, depth is farthest, the rest is 0.

    Args:
        values: (C,H,W) as stored; vectors for normals.
        mask: (1,H,W), above 0 where the label counts, or None.
        intrinsic: whose map it is.
        convention: resolved, see `read_sidecar`.
        near, far: for disparity, see `to_distance`.

    Returns:
        The map (C,H,W) and the mask, as `read_label`.

    Raises:
        ValueError: a wrong number of channels, no pixel that counts, or depth outside its kind's range.
    """
    if mask is not None and mask.shape[-2:] != values.shape[-2:]:
        raise ValueError(f"its mask is {_size(mask)} pixels and its map {_size(values)}.")
    known = values.isfinite().all(0, keepdim=True)  # (1,H,W)
    if intrinsic.name != "depth":
        values = torch.where(known, values, 0.0)
    match intrinsic.name:
        case "normals":
            if len(values) != 3:
                raise ValueError(f"normals have 3 channels, not {len(values)}.")
            known = known & (values.square().sum(0, keepdim=True) >= MIN_LENGTH**2)
            map = normalize_normals(convert_normals(values, convention, "opengl"))  # (3,H,W)
        case "depth":
            depth = grey_depth(values)  # (1,H,W)
            known = valid_depth(depth, convention)
            if convention in ("metric", "disparity") and mask is not None:  # their range is that of what counts
                known = known & (mask > 0)
            if known.any():
                map = to_distance(torch.where(known, depth, torch.nan)[None], convention, near, far)[0][0]  # (1,H,W)
        case _:
            light = srgb_to_linear(values) if convention == "srgb" else values.clamp(min=0)
            if intrinsic.raw_convention == "linear" and light.max() > 1 + 1e-3:
                raise ValueError(f"a map of {intrinsic.name} lies in 0..1, and this one reaches {light.max():g}.")
            map = _channels(light, intrinsic)
    counts = known.float() if mask is None else known * mask.clamp(0, 1)
    if not counts.any():
        raise ValueError("no pixel of it counts: it is empty or masked out.")
    return map, None if counts.min() == 1 else counts


def _channels(light: Tensor, intrinsic: Intrinsic) -> Tensor:
    """As many channels as the intrinsic has. Shading keeps three where they differ: the light is coloured."""
    if len(light) not in (1, 3):
        raise ValueError(f"a map of {intrinsic.name} has 1 or 3 channels, not {len(light)}.")
    if intrinsic.name == "shading":
        return light[:1] if len(light) == 1 or (light == light[:1]).all() else light
    return light.mean(0, keepdim=True) if intrinsic.channels == 1 else light.expand(3, -1, -1)


def _size(x: Tensor) -> str:
    return f"{x.shape[-1]} x {x.shape[-2]}"


def _found_instead(path: Path) -> str:
    names = layer_names(path) if path.suffix.lower() == ".exr" else npz_names(path)
    return f" (only {', '.join(names)})" if names else ""


def read_mask(path: Path) -> Tensor:
    """(1,H,W) in [0,1]: a grey picture, white = counts, or a file of one array or layer.

    Raises:
        ValueError: unreadable.
    """
    stored = read_maps(path, ["mask"], lone=True).get("mask")
    if stored is None:
        raise ValueError(f"{path} holds no mask: no array or layer is called so{_found_instead(path)}.")
    return stored.values.clamp(0, 1)
