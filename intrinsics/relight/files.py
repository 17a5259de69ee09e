"""Input and output of relighting: reading of photos and maps, writing of the relit photo and its passes."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..color import linear_to_srgb, srgb_to_linear
from ..depth import valid_depth
from ..exr import write_exr
from ..exr_layers import listed
from ..files import relit_files
from ..map_files import MAPS, StoredMap, files_beside, find_maps, foreign_normals, layer_names
from ..map_files import read_maps as read_stored
from ..pictures import MID_GREY, Picture, write_npz, write_png
from ..resizing import resize
from ..vocabulary import PASSES
from .gbuffer import GBuffer
from .render import Relit

DRAWN_AS_LIGHT = ("diffuse", "specular", "shading")  # sRGB-encoded in a PNG; the other passes are not light


def linear_photo(picture: Picture) -> Tensor:
    """Return the picture's colour, (1, 3, H, W) linear light >= 0, without the composite on grey.

    Fully transparent pixels have no colour and stay grey.
    """
    if picture.alpha is None:
        return srgb_to_linear(picture.rgb)
    alpha = picture.alpha
    straight = (picture.rgb - (1 - alpha) * MID_GREY) / alpha.clamp(min=1e-6)
    return srgb_to_linear(torch.where(alpha > 0, straight, MID_GREY))


def read_maps(
    path: str | os.PathLike[str], stem: str = "", *, normals_frame: str | None = None, depth_kind: str | None = None
) -> dict[str, Any]:
    """Read maps from files as keyword arguments of `make_gbuffer`: `make_gbuffer(photo, **read_maps(...))`.

    Float files contain canonical maps (vectors, linear light); PNGs are as written by `extract` (n * 0.5 + 0.5,
    near = white, sRGB).

    Args:
        path: a folder, in which the photo's files are searched (see `find_maps`); an `.npz` with any of normals
            (H, W, 3), depth (H, W), albedo (H, W, 3), shading (H, W, C), roughness (H, W), mask (H, W); an `.exr` with
            layers of these names; or one `STEM_<map>.npy` or `.png`, which is read with its siblings.
        stem: stem of the photo's file name, if `path` is a folder.
        normals_frame: frame of the normals, one of `NORMAL_FRAMES`; None = "opengl".
        depth_kind: kind of the depth, one of `DEPTH_KINDS`; None = "distance" in float files, "near-white" in PNGs.

    Returns:
        (1, C, H, W) float32 tensors in their stored sizes (see `fit_maps`), and the two conventions.

    Raises:
        FileNotFoundError: no maps of this photo were found.
        ValueError: there are no normals, a file cannot be read, an array is not a valid map, or the normals are a
            render pass whose frame is not specified.
    """
    path = Path(path)
    files = find_maps(path, stem) if path.is_dir() else files_beside(path)
    if not files:
        raise FileNotFoundError(
            f"{path} holds no maps of {stem}; expected {stem}.npz, {stem}.exr, or {stem}_normals.png or .npy etc."
        )
    found: dict[str, StoredMap] = {}
    for file in files:
        whole = file.suffix.lower() in (".npz", ".exr")
        found |= read_stored(file, MAPS if whole else [file.stem.rpartition("_")[2]])
    if "normals" not in found:
        raise ValueError(
            f"{files[0]} holds no normals (only {', '.join(found) or 'other data'}{_also(files[0])}), which "
            "relighting requires. Name the array or layer normals, or the file STEM_normals.npy or .png."
        )
    if normals_frame is None and found["normals"].foreign:
        raise ValueError(foreign_normals(files[0], found["normals"]))
    maps = {name: stored.values[None] for name, stored in found.items()}
    for name in ("albedo", "shading"):
        if name in found and found[name].picture:
            maps[name] = srgb_to_linear(maps[name])
    drawn = "depth" in found and found["depth"].picture
    depth_kind = depth_kind or ("near-white" if drawn else "distance")
    return {**maps, "normals_frame": normals_frame or "opengl", "depth_kind": depth_kind}


def _also(path: Path) -> str:
    """List the layers of an EXR for an error message."""
    return f"; {listed(layer_names(path))}" if path.suffix.lower() == ".exr" else ""


def fit_maps(maps: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Resample the result of `read_maps` to the photo's size (bilinear; `make_gbuffer` normalises the normals).

    Invalid depth (see `valid_depth`; the kind is `maps["depth_kind"]`, "distance" by default) is excluded from
    averages and becomes NaN.

    Raises:
        ValueError: the aspect ratio of a map differs from the photo's by more than one of the map's pixels.
    """
    fitted = dict(maps)
    for name, values in maps.items():
        if isinstance(values, Tensor):
            h, w = values.shape[-2:]
            if abs(h - height * w / width) > 1 and abs(w - width * h / height) > 1:
                raise ValueError(
                    f"The {name} map is {w} x {h} pixels and the photo {width} x {height}: they do not show the same "
                    "picture; crop one of them."
                )
            size = (height, width)
            there = valid_depth(values, maps.get("depth_kind", "distance")) if name == "depth" else None
            if there is None or there.all():
                fitted[name] = resize(values, size)
            else:  # invalid depth has weight 0
                weight = resize(there.float(), size)  # (B, 1, H, W)
                depth = resize(torch.where(there, values, 0.0), size) / weight
                fitted[name] = torch.where(weight > 0.5, depth, torch.nan)
    return fitted


def write_relit(
    path: str | os.PathLike[str],
    gbuffer: GBuffer,
    relit: Relit,
    alpha: Tensor | None = None,
    passes: bool = False,
    bits: int = 8,
) -> None:
    """Write one relit photo, atomically, in the format given by the suffix of `path`.

    `.png`: sRGB-encoded, clipped at white, passes in separate files (`relit_files`). `.exr`: float32 linear light,
    the picture as plain R, G, B (premultiplied by alpha, as defined by EXR), each pass a layer. `.npz`: float32
    linear light, `relit` (H, W, 3), each pass (H, W, C), and `alpha` (H, W).

    Args:
        path: ends in .png, .exr or .npz.
        gbuffer, relit: of one picture.
        alpha: (1, 1, H, W) in [0, 1], stored in the file.
        passes: also write `PASSES`.
        bits: 8 or 16, for PNG.

    Raises:
        ValueError: another suffix; NaN or infinity.
    """
    if not relit.image.isfinite().all():
        raise ValueError("The result is not finite: lower the exposure or the intensity of the lights.")
    image = relit.image[0].detach().cpu()  # (3, H, W)
    layers = {n: gbuffer.residual if n == "residual" else getattr(relit, n) for n in PASSES} if passes else {}
    layers = {name: layer[0].detach().cpu() for name, layer in layers.items()}  # (C, H, W)
    path = Path(path)
    match path.suffix.lower():
        case ".png":
            drawn = linear_to_srgb(image)
            write_png(path, drawn if alpha is None else torch.cat([drawn, alpha[0]]), bits)
            for file, (name, layer) in zip(relit_files(path, passes)[1:], layers.items(), strict=True):
                write_png(file, linear_to_srgb(layer) if name in DRAWN_AS_LIGHT else layer, bits)
        case ".exr":
            write_exr(path, {"rgb": image if alpha is None else torch.cat([image * alpha[0], alpha[0]]), **layers})
        case ".npz":
            arrays = {name: x.permute(1, 2, 0) for name, x in {"relit": image, **layers}.items()}  # (H, W, C)
            write_npz(path, **arrays, **({} if alpha is None else {"alpha": alpha[0, 0]}))
        case _:
            raise ValueError(f"The relit photo is written as .png, .exr or .npz, not as {path.name}.")
