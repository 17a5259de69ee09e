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

import numpy as np
import torch
from torch import Tensor

from ..intrinsics.color import srgb_to_linear
from ..intrinsics.depth import to_distance
from ..intrinsics.exr import read_exr
from ..intrinsics.normals import MIN_LENGTH, convert_normals, normalize_normals, picture_to_normals
from ..intrinsics.pictures import read_picture
from ..intrinsics.vocabulary import DEPTH_KINDS, NORMAL_FRAMES, Intrinsic

LABEL_SUFFIXES = (".npz", ".exr", ".png")  # where several are there, the first is read
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
    says where it counts. An `.exr` holds a layer named like the intrinsic, or nothing but plain R, G, B. A `.png` has
    8 or 16 bits; its alpha is a mask.

    Args:
        path: ends in one of `LABEL_SUFFIXES`.
        intrinsic: whose label it is.
        sidecar: from `read_sidecar`.

    Returns:
        The canonical map (C,H,W) float32, and where it counts, (1,H,W) in [0,1]; None where it counts everywhere.

    Raises:
        ValueError: one sentence naming the file: unreadable, without this label, or out of its convention's range.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        picture = read_picture(path)
        values = picture.rgb[0]
        values = picture_to_normals(values) if intrinsic.name == "normals" else values
        mask = None if picture.alpha is None else picture.alpha[0]
    elif suffix == ".npz":
        values, mask = _read_npz(path, intrinsic.name)
    else:
        layers = read_exr(path)
        if intrinsic.name not in layers and list(layers) != ["rgb"]:
            raise ValueError(f"{path} holds no layer named {intrinsic.name} but {', '.join(layers)}.")
        values = layers.get(intrinsic.name, layers.get("rgb"))  # type: ignore[assignment]
        mask = layers["mask"][:1] if "mask" in layers else None
    convention = sidecar.get("convention") or default_convention(intrinsic, picture=suffix == ".png")
    try:
        return canonical(values, mask, intrinsic, convention, sidecar.get("near", 1.0), sidecar.get("far", 2.0))
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

    Pixels that say nothing (NaN, infinity, normals without length, metric depth not above 0) leave the mask and are
    filled: normals face the viewer, depth is farthest, the rest is 0.

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
    values = torch.where(known, values, 0.0)
    match intrinsic.name:
        case "normals":
            if len(values) != 3:
                raise ValueError(f"normals have 3 channels, not {len(values)}.")
            known = known & (values.square().sum(0, keepdim=True) >= MIN_LENGTH**2)
            map = normalize_normals(convert_normals(values, convention, "opengl"))  # (3,H,W)
        case "depth":
            depth = values.mean(0, keepdim=True)  # (1,H,W)
            if convention == "metric":
                known = known & (depth > 0)
            if convention in ("metric", "disparity") and mask is not None:  # their range is that of what counts
                known = known & (mask > 0)
            if known.any():
                inverse = convention in ("disparity", "near-white")
                farthest = depth[known].min() if inverse else depth[known].max()
                map = to_distance(torch.where(known, depth, farthest)[None], convention, near, far)[0][0]  # (1,H,W)
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


def _read_npz(path: Path, name: str) -> tuple[Tensor, Tensor | None]:
    """The array of this name, (C,H,W), and the mask, (1,H,W), if there is one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in (name, "arr_0", "mask") if key in file.files}
    except Exception as error:  # zlib, zipfile and numpy raise nearly anything on a damaged file
        raise ValueError(f"{path} cannot be read as an .npz of maps: it is damaged or something else.") from error
    values = arrays.get(name, arrays.get("arr_0"))
    if values is None:
        raise ValueError(f"{path} holds no array named {name}.")
    mask = as_map(arrays["mask"], f"{path}: mask", masks=True)[:1] if "mask" in arrays else None
    return as_map(values, f"{path}: {name}", masks=name == "mask"), mask


def as_map(array: np.ndarray, what: str, masks: bool = False) -> Tensor:
    """(H,W) or (H,W,C) floats, or for masks any numbers, as (C,H,W) float32.

    Raises:
        ValueError: another shape, or other things than that.
    """
    if array.dtype.kind not in ("fiub" if masks else "f") or array.ndim not in (2, 3) or 0 in array.shape:
        kind = "numbers" if masks else "floating-point numbers"
        raise ValueError(f"{what} must hold {kind} (H,W) or (H,W,C), not {array.dtype} {array.shape}.")
    return torch.from_numpy(np.atleast_3d(array).astype(np.float32)).permute(2, 0, 1)


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in an `.npz`, without reading them; none where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except Exception:
        return []


def read_mask(path: Path) -> Tensor:
    """(1,H,W) in [0,1]: a grey picture, white = counts, or an `.npz` of one array.

    Raises:
        ValueError: unreadable.
    """
    if path.suffix.lower() == ".npz":
        return _read_npz(path, "mask")[0][:1].clamp(0, 1)
    return read_picture(path).rgb[0].mean(0, keepdim=True)
