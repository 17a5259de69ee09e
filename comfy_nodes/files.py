"""A packet on disk, as EXR or PNGs. No ComfyUI here."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..intrinsics.color import srgb_to_linear
from ..intrinsics.exr import optional_library, write_exr
from ..intrinsics.pictures import write_png
from .gbuffers import MAPS, check_choice, draw_map, frame_of, needed
from .packet import Packet

FORMATS = ("EXR half float", "EXR float", "PNG 16 bit")
LAYERS = ("photo", *(name for name in MAPS if name != "photo"))


def chosen_layers(packet: Packet, layers: str) -> list[str]:
    """The names of a list with commas; "all" is every map that is there.

    Raises:
        ValueError: an unknown name, or a map that the packet does not have.
    """
    names = [name.strip() for name in layers.split(",") if name.strip()]
    if names in ([], ["all"]):
        return [name for name in LAYERS if getattr(packet, name) is not None]
    for name in names:
        check_choice("layers", name, ("all", *LAYERS) if len(names) == 1 else LAYERS)
        needed(packet, name)
    return list(dict.fromkeys(names))


def check_format(format: str) -> None:
    """Whether files of `format` can be written here.

    Raises:
        ValueError: an unknown format.
        ImportError: EXR without OpenEXR.
    """
    check_choice("format", format, FORMATS)
    if format.startswith("EXR"):
        try:
            optional_library("OpenEXR", "Writing EXR")
        except ImportError as error:
            raise ImportError(
                f"{str(error).removesuffix('.')} (in ComfyUI's Python), or choose {FORMATS[2]}."
            ) from error


def save_layers(
    packet: Packet,
    names: list[str],
    format: str,
    folder: Path,
    stem: str,
    counter: int,
    step: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write `folder/STEM_00001_.exr` (or `STEM_00001_normals.png`, ...), a number per picture, from `counter`.

    ComfyUI finds the next free number only if an underscore follows it.

    EXR: canonical maps (see `Packet`; the photo linear, as the plain R, G, B that viewers open first), layers as
    `write_exr` names them. PNG: 16 bits, as `draw_map` draws them, named as `intrinsic-lora extract` names its own.
    `step` is called before each picture.

    Raises:
        ValueError, ImportError: see `check_format`.
    """
    check_format(format)
    exr = format.startswith("EXR")
    written = []
    for i in range(len(packet.photo)):
        step()
        one, base = frame_of(packet, i), f"{stem}_{counter + i:05}"
        if exr:
            layers = {"rgb" if name == "photo" else name: _linear(one, name)[0] for name in names}
            written.append(folder / f"{base}_.exr")
            write_exr(written[-1], layers, half=format == "EXR half float")
        else:
            for name in names:
                picture, _ = draw_map(one, name)
                written.append(folder / f"{base}_{name}.png")
                write_png(written[-1], picture, bits=16)
    return written


def _linear(packet: Packet, name: str) -> Tensor:
    map = needed(packet, name)
    return srgb_to_linear(map) if name == "photo" else map
