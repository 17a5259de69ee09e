"""Maps to disk: the one writer of STEM.npz, STEM.exr, STEM_<map>.png and STEM_sheet.png.

The conventions are those of `map_files`, which reads them; `files.map_paths` lists what is written.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from .display import display_map
from .exr import write_exr
from .files import atomic_path
from .pictures import Picture, write_npz, write_png
from .sheet import contact_sheet, thumbnail
from .vocabulary import Intrinsic

FLAT = ("depth", "confidence", "mask")  # stored as (H, W); all others as (H, W, C)


def write_maps(
    stem: str | os.PathLike[str],
    picture: Picture,
    maps: Iterable[tuple[str, Tensor]],
    formats: Collection[str],
    normals: str = "opengl",
    depth: str = "near-white",
    definitions: Mapping[str, Intrinsic] | None = None,
) -> None:
    """Write the canonical maps of one picture, each file atomically, and a contact sheet of them.

    PNGs are written one by one, as the maps come, and no map is kept that npz and exr do not need.

    Args:
        stem: the files' path without `_<map>.png` and the like; its folder is made when missing.
        picture: the picture; its alpha becomes the map `mask` of npz and exr.
        maps: (name, canonical map (1, C, H, W)), one after the other.
        formats: of "png" (8 bits), "png16", "npz" and "exr".
        normals: frame of the normals in PNGs, one of `NORMAL_FRAMES`.
        depth: polarity of the depth in PNGs, one of `DEPTH_POLARITIES`.
        definitions: of the maps that are none of `INTRINSICS`.

    Raises:
        OSError: a file cannot be written.
        ImportError: exr without OpenEXR.
    """
    definitions = definitions or {}
    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    columns, kept = [("photo", [thumbnail(picture.rgb[0])])], {}
    for name, values in maps:
        draw = partial(display_map, name=definitions.get(name, name), normals=normals, depth=depth)
        if "png" in formats or "png16" in formats:
            write_map_png(stem, name, values, 16 if "png16" in formats else 8, draw)
        columns.append((name, [thumbnail(values[0], draw=draw)]))
        if "npz" in formats or "exr" in formats:
            kept[name] = values[0].cpu()  # (C, H, W)
        del values  # or it would be held while the next one is made
    if picture.alpha is not None:
        kept["mask"] = picture.alpha[0]
    if "npz" in formats:
        write_map_npz(f"{stem}.npz", kept)
    if "exr" in formats:
        write_exr(f"{stem}.exr", kept)
    with atomic_path(f"{stem}_sheet.png") as temporary:
        contact_sheet(columns).save(temporary)


def write_map_png(
    stem: str | os.PathLike[str],
    name: str,
    values: Tensor,
    bits: int = 8,
    draw: Callable[[Tensor], Tensor] | None = None,
) -> Path:
    """Write one map as `STEM_<name>.png`, atomically, and return the path.

    Args:
        stem: the file's path without `_<name>.png`.
        name: of the map.
        values: the canonical map (C, H, W) or (1, C, H, W).
        bits: 8 or 16 per channel.
        draw: how to draw it, see `write_png`; None = as `display_map` draws `name`.
    """
    path = Path(f"{stem}_{name}.png")
    write_png(path, values, bits, draw or partial(display_map, name=name))
    return path


def write_map_npz(path: str | os.PathLike[str], maps: Mapping[str, Tensor]) -> None:
    """Write maps (C, H, W) into one `.npz`, atomically: arrays (H, W, C), those of `FLAT` (H, W), in their dtype."""
    arrays = {name: values.permute(1, 2, 0).numpy() for name, values in maps.items()}  # (H, W, C)
    write_npz(path, **{name: array[..., 0] if name in FLAT else array for name, array in arrays.items()})
