"""Relighting from files and to files: photo and maps in, the relit photo and its passes out."""

import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..color import linear_to_srgb, srgb_to_linear
from ..exr import read_exr, write_exr
from ..files import relit_files
from ..normals import picture_to_normals
from ..pictures import MID_GREY, Picture, read_picture, write_npz, write_png
from ..resizing import resize
from ..vocabulary import PASSES
from .gbuffer import GBuffer
from .render import Relit

MAPS = ("normals", "depth", "albedo", "shading", "roughness", "mask")
DRAWN_AS_LIGHT = ("diffuse", "specular", "shading")  # sRGB-encoded in a PNG; the other passes are shares, not light


def linear_photo(picture: Picture) -> Tensor:
    """The picture's own colour, (1,3,H,W) linear light >= 0: what `read_picture` composited on grey is taken off.

    Where the picture is fully transparent there is no colour, and the grey stays.
    """
    if picture.alpha is None:
        return srgb_to_linear(picture.rgb)
    alpha = picture.alpha
    straight = (picture.rgb - (1 - alpha) * MID_GREY) / alpha.clamp(min=1e-6)
    return srgb_to_linear(torch.where(alpha > 0, straight, MID_GREY))


def read_maps(
    path: str | os.PathLike, stem: str = "", *, normals_frame: str = "opengl", depth_kind: str | None = None
) -> dict[str, Any]:
    """Maps from files, as keyword arguments of `make_gbuffer`: `make_gbuffer(photo, **read_maps(...))`.

    From a folder the first of `STEM.npz`, `STEM.exr` and `STEM_normals.png` (with `STEM_depth.png` and so on beside
    it) is read; where none is there, those of the stem without `_rgb`, as `render-scenes` names its files. Floats are
    taken as canonical: vectors, and linear light. PNGs as `extract` writes them: n * 0.5 + 0.5, near = white, sRGB.

    Args:
        path: what `extract` wrote: the folder, the `.npz` (normals (H,W,3), depth (H,W), albedo (H,W,3), shading
            (H,W,C), roughness (H,W), mask (H,W), or some of them) or the `.exr` (layers of the same names).
        stem: of the photo's file name, when `path` is a folder.
        normals_frame: of these normals, one of `NORMAL_FRAMES`.
        depth_kind: of this depth, one of `DEPTH_KINDS`; None = "distance" in float files, "near-white" in PNGs.

    Returns:
        (1,C,H,W) float32 tensors, each of the size it is stored in (see `fit_maps`), and the two conventions.

    Raises:
        FileNotFoundError: nothing there for this photo.
        ValueError: no normals among the maps, a file that cannot be read, or an array that is no map.
    """
    path = Path(path)
    found = _find(path, stem) if path.is_dir() else path
    if not found.is_file():
        raise FileNotFoundError(f"There is no file {found}.")
    match found.suffix.lower():
        case ".npz":
            maps = _read_npz(found)
        case ".exr":
            maps = {name: layer[None] for name, layer in read_exr(found).items() if name in MAPS}
        case ".png":
            maps = _read_pngs(found)
            depth_kind = depth_kind or "near-white"
        case _:
            raise ValueError(f"Maps are read from a folder, an .npz or an .exr, not from {path}.")
    if "normals" not in maps:
        raise ValueError(f"{found} holds no normals (only {', '.join(maps) or 'nothing of use'}): without them there "
                         "is nothing to light.")  # fmt: skip
    return {**maps, "normals_frame": normals_frame, "depth_kind": depth_kind or "distance"}


def fit_maps(maps: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Resample what `read_maps` returned to the photo's size (bilinear; `make_gbuffer` normalises the normals).

    Raises:
        ValueError: a map whose aspect is off by more than one of its own pixels.
    """
    fitted = dict(maps)
    for name, map in maps.items():
        if isinstance(map, Tensor):
            h, w = map.shape[-2:]
            if abs(h - height * w / width) > 1 and abs(w - width * h / height) > 1:
                raise ValueError(
                    f"The {name} map is {w} x {h} pixels and the photo {width} x {height}: they do not show the same "
                    "picture; crop one of them."
                )
            fitted[name] = resize(map, (height, width))
    return fitted


def _find(folder: Path, stem: str) -> Path:
    for name in dict.fromkeys((stem, stem.removesuffix("_rgb"))):
        for ending in (".npz", ".exr", "_normals.png"):
            if (folder / f"{name}{ending}").is_file():
                return folder / f"{name}{ending}"
    raise FileNotFoundError(f"{folder} holds no maps of {stem}: {stem}.npz, {stem}.exr or {stem}_normals.png.")


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in MAPS if name in file}
    except (ValueError, EOFError, BadZipFile, OSError) as error:
        raise ValueError(f"{path} cannot be read as an .npz of maps: it is damaged or something else.") from error
    maps = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" or array.ndim not in (2, 3) or 0 in array.shape:
            raise ValueError(f"{path}: {name} must hold numbers (H,W) or (H,W,C), not {array.dtype} {array.shape}.")
        channels_last = torch.from_numpy(np.atleast_3d(array).astype(np.float32))  # (H,W,C)
        maps[name] = channels_last.permute(2, 0, 1)[None]
    return maps


def _read_pngs(normals: Path) -> dict[str, Tensor]:
    stem = normals.name.removesuffix("_normals.png")
    files = {name: normals.with_name(f"{stem}_{name}.png") for name in MAPS}
    maps: dict[str, Tensor] = {}
    for name, file in files.items():
        if file.is_file():
            drawn = read_picture(file).rgb  # (1,3,H,W)
            match name:
                case "normals":
                    maps[name] = picture_to_normals(drawn)
                case "albedo" | "shading":
                    maps[name] = srgb_to_linear(drawn)
                case _:
                    maps[name] = drawn.mean(1, keepdim=True)
    return maps


def write_relit(
    path: str | os.PathLike,
    gbuffer: GBuffer,
    relit: Relit,
    alpha: Tensor | None = None,
    passes: bool = False,
    bits: int = 8,
) -> None:
    """Write one relit photo, atomically; the suffix of `path` chooses the form.

    `.png`: sRGB-encoded, clipped at white, passes in files of their own (`relit_files`). `.exr`: float32 linear light,
    the picture plain R, G, B (premultiplied where there is alpha, as EXR demands), each pass a layer. `.npz`: float32
    linear light, `relit` (H,W,3), each pass (H,W,C), and `alpha` (H,W).

    Args:
        path: ends in .png, .exr or .npz.
        gbuffer, relit: of one picture.
        alpha: (1,1,H,W) in [0,1], kept in the file.
        passes: write `PASSES` too.
        bits: 8 or 16, for PNG.

    Raises:
        ValueError: another suffix; NaN or infinite values.
    """
    if not relit.image.isfinite().all():
        raise ValueError("The result is not finite: lower the exposure or the intensity of the lights.")
    image = relit.image[0].detach().cpu()  # (3,H,W)
    layers = {n: gbuffer.residual if n == "residual" else getattr(relit, n) for n in PASSES} if passes else {}
    layers = {name: layer[0].detach().cpu() for name, layer in layers.items()}  # (C,H,W)
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
            arrays = {name: x.permute(1, 2, 0) for name, x in {"relit": image, **layers}.items()}  # (H,W,C)
            write_npz(path, **arrays, **({} if alpha is None else {"alpha": alpha[0, 0]}))
        case _:
            raise ValueError(f"The relit photo is written as .png, .exr or .npz, not as {path.name}.")
