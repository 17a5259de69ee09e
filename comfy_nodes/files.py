"""A G-buffer on disk, as EXR or PNGs. No ComfyUI here."""

from collections.abc import Callable
from pathlib import Path

from ..intrinsics.color import srgb_to_linear
from ..intrinsics.exr import optional_library, write_exr
from ..intrinsics.map_writer import write_map_png
from .gbuffers import MAPS, check_choice, frame_of, needed
from .photo_maps import PhotoMaps

FORMATS = ("EXR half float", "EXR float", "PNG 16 bit")
LAYERS = ("photo", *(name for name in MAPS if name != "photo"))


def chosen_layers(photo_maps: PhotoMaps, layers: str) -> list[str]:
    """Split a list of layer names with commas; "all" is every map that is there.

    Raises:
        ValueError: an unknown name, or a map that is not there.
    """
    names = [name.strip() for name in layers.split(",") if name.strip()]
    if names in ([], ["all"]):
        return [name for name in LAYERS if getattr(photo_maps, name) is not None]
    for name in names:
        check_choice("layers", name, ("all", *LAYERS) if len(names) == 1 else LAYERS)
        needed(photo_maps, name)
    return list(dict.fromkeys(names))


def check_format(name: str) -> None:
    """Check that files of a format can be written here.

    Raises:
        ValueError: an unknown format.
        ImportError: EXR without OpenEXR.
    """
    check_choice("format", name, FORMATS)
    if name.startswith("EXR"):
        try:
            optional_library("OpenEXR", "Writing EXR")
        except ImportError as error:
            raise ImportError(
                f"{str(error).removesuffix('.')} (in ComfyUI's Python), or choose {FORMATS[2]}."
            ) from error


def save_layers(
    photo_maps: PhotoMaps,
    names: list[str],
    format_name: str,
    folder: Path,
    stem: str,
    counter: int,
    step: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write `folder/STEM_00001_.exr` (or `STEM_00001_normals.png`, ...), a number per picture, from `counter`.

    ComfyUI finds the next free number only if an underscore follows it.

    EXR: canonical maps (see `PhotoMaps`; the photo linear, as the plain R, G, B that viewers open first), layers as
    `write_exr` names them. PNG: 16 bits, drawn and named as `intrinsic-lora extract` does. `step` is called before
    each picture.

    Raises:
        ValueError, ImportError: see `check_format`.
    """
    check_format(format_name)
    written = []
    for i in range(len(photo_maps.photo)):
        step()
        one = frame_of(photo_maps, i)
        maps = {name: needed(one, name)[0] for name in names}  # (C, H, W)
        base = folder / f"{stem}_{counter + i:05}"
        if format_name.startswith("EXR"):
            if "photo" in maps:
                maps = {"rgb": srgb_to_linear(maps.pop("photo")), **maps}
            written.append(Path(f"{base}_.exr"))
            write_exr(written[-1], maps, half=format_name == "EXR half float")
        else:
            written += [write_map_png(base, name, values, bits=16) for name, values in maps.items()]
    return written
