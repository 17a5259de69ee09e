"""Multi-layer OpenEXR files with the layer names of Nuke and Blender, using OpenEXR's Python binding."""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .budget import TooLarge, check_memory
from .color import REC_709
from .files import atomic_path, continued

HALF_MAX = 65504.0
COMPONENTS = "RGBXYZUVA"  # order in which a layer's channels are stacked; OpenEXR sorts them alphabetically
COLOURS = {"red": "R", "green": "G", "blue": "B", "alpha": "A"}  # channel names of Nuke and others


def optional_library(name: str, purpose: str) -> ModuleType:
    """Import an optional library; the ImportError names its purpose and the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{purpose} needs the package {name}: pip install {name}.") from error


def write_exr(path: str | Path, layers: Mapping[str, Tensor], half: bool = False) -> None:
    """Write one single-part EXR (ZIP, scan lines), atomically.

    Args:
        path: the file to write.
        layers: layer name -> (C, H, W), all of one size, stored unchanged: EXR colour is linear light by definition,
            and the header states the primaries of Rec. 709.
            Channels are named `<layer>.<component>`: X Y Z for `normals`, Z for `depth`, otherwise R G B for three
            channels, R G B A for four, Y (luminance) for one. The layer `rgb` is unnamed (plain R, G, B, A
            or Y), so that viewers open it first.
        half: store 16-bit floats instead of 32-bit ones.

    Raises:
        ValueError: no layers, layers of different sizes or of other than 1, 3 or 4 channels, or values too large for
            half floats.
        ImportError: OpenEXR is not installed.
    """
    OpenEXR = optional_library("OpenEXR", "Writing EXR")
    sizes = {tuple(layer.shape[1:]) for layer in layers.values() if layer.ndim == 3}
    if len(sizes) != 1 or any(layer.ndim != 3 for layer in layers.values()) or 0 in next(iter(sizes)):
        shapes = ", ".join(f"{name} {tuple(layer.shape)}" for name, layer in layers.items()) or "no layer"
        raise ValueError(f"An EXR needs layers (C, H, W) that share one height and width, not {shapes}.")

    channels = {}
    for name, layer in layers.items():
        layer = layer.detach().float().cpu()
        if half and (layer.isfinite() & (layer.abs() > HALF_MAX)).any():
            raise ValueError(f"The layer {name} exceeds {HALF_MAX:.0f}, the largest half float; write 32-bit floats.")
        planes = layer.numpy().astype(np.float16 if half else np.float32)  # (C, H, W)
        for component, plane in zip(_components(name, len(planes)), planes, strict=True):
            channels[component if name == "rgb" else f"{name}.{component}"] = np.ascontiguousarray(plane)

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, "chromaticities": REC_709}
    with atomic_path(path) as temporary, OpenEXR.File(header, channels) as file:
        file.write(str(temporary))


def _components(layer: str, count: int) -> str:
    by_count = {1: "Z" if layer == "depth" else "Y", 3: "XYZ" if layer == "normals" else "RGB", 4: "RGBA"}
    if count not in by_count:
        raise ValueError(f"The EXR layer {layer} has {count} channels; 1, 3 or 4 can be named.")
    return by_count[count]


class Plane(NamedTuple):
    """A channel as stored, (h, w) of the data window, and the header of its part."""

    pixels: np.ndarray
    header: dict[str, Any]


Layers = dict[str, dict[str, Plane]]


def read_exr(path: str | Path) -> dict[str, Tensor]:
    """Read all layers of a single- or multi-part EXR file of any program.

    Returns:
        layer name -> (C, H, W) float32, as stored (linear light for colour), over the *display* window: pixels outside
        the data window are 0. Channels are in the order R G B X Y Z U V A, then by name; see `open_exr` for names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not an EXR, damaged, truncated, deep, with subsampled channels, or beyond the memory limit.
        ImportError: OpenEXR is not installed.
    """
    with naming(path):
        layers = open_exr(path)
        planes = [plane for layer in layers.values() for plane in layer.values()]
        size = sum(8 * math.prod(_size(plane.header["displayWindow"])) for plane in planes)
        check_memory(size, f"{path} ({len(planes)} channels)")
        return {name: torch.from_numpy(stack(list(layer.values()))) for name, layer in layers.items()}


def open_exr(path: str | Path) -> Layers:
    """Read an EXR file's channels without stacking them.

    The components red, green, blue and alpha, in any case, are renamed R, G, B and A; single letters are capitalised.
    Channels without a layer belong to the layer `rgb`, a single Z to `depth`; in later parts, to the part's name.

    Returns:
        layer name -> {component: plane}, components in the order R G B X Y Z U V A, then by name.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: as `read_exr`, but the message does not name the file: see `naming`.
        ImportError: OpenEXR is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    OpenEXR = optional_library("OpenEXR", "Reading EXR")
    try:
        # The file's dicts are emptied at the end of the `with`, hence the copies.
        with OpenEXR.File(str(path), header_only=True) as file:
            headers = [dict(file.header(index)) for index in range(len(file.parts))]
        _check_size(path, headers)
        with OpenEXR.File(str(path), separate_channels=True) as file:
            # OpenEXR skips a damaged part with a warning on stderr.
            if len(file.parts) != len(headers):
                raise ValueError("OpenEXR could not decode all of its pixels.")
            parts = [(p.name(), {c: channel.pixels for c, channel in p.channels.items()}) for p in file.parts]
    except RuntimeError as error:  # its message only says that the file cannot be opened
        raise ValueError("It is damaged or not an EXR file.") from error
    return _by_layer(parts, headers)


def _check_size(path: Path, headers: list[dict[str, Any]]) -> None:
    stored, largest = 0, (0, 0)
    for header in headers:
        data, display = _size(header["dataWindow"]), _size(header["displayWindow"])
        stored += 4 * len(header["channels"]) * math.prod(data)
        largest = max(largest, display, key=math.prod)
    # All channels as stored, and a picture of four channels built from some of them.
    check_memory(stored + 4 * 12 * math.prod(largest), f"{path} ({largest[0]} x {largest[1]} pixels)")


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Add the file's name to ValueErrors of the body, except `TooLarge`, which has it already."""
    try:
        yield
    except TooLarge:
        raise
    except ValueError as error:
        raise ValueError(f"Cannot read the EXR file {path}: {continued(error)}") from error


def _by_layer(parts: list[tuple[str, dict[str, np.ndarray]]], headers: list[dict[str, Any]]) -> Layers:
    layers: Layers = {}
    for index, (part_name, channels) in enumerate(parts):
        components = {channel: _component(channel.rpartition(".")[2]) for channel in channels}
        unnamed = {components[channel] for channel in channels if "." not in channel}
        for channel, pixels in channels.items():
            layer, component = channel.rpartition(".")[0], components[channel]
            if not layer:
                lone_z = component == "Z" and "X" not in unnamed
                layer = part_name if index else "depth" if lone_z else "rgb"
            planes = layers.setdefault(layer, {})
            if component in planes and not index:
                raise ValueError(f"Two channels of its layer {layer} mean {component}.")
            planes[component] = Plane(pixels, headers[index])
    return {name: dict(sorted(layer.items(), key=_component_order)) for name, layer in layers.items()}


def _component(name: str) -> str:
    """Normalise a component: red and r become R, and so on; other names are unchanged."""
    name = COLOURS.get(name.lower(), name)
    return name.upper() if len(name) == 1 else name


def _component_order(item: tuple[str, Plane]) -> tuple[int, str]:
    name = item[0]
    return (COMPONENTS.index(name) if len(name) == 1 and name in COMPONENTS else len(COMPONENTS), name)


def stack(planes: Sequence[Plane]) -> np.ndarray:
    """Stack channels of one display window as (C, H, W) float32; pixels outside a data window are 0.

    Raises:
        ValueError: deep or subsampled pixels.
    """
    return np.stack([_on_display_window(plane.pixels, plane.header) for plane in planes]).astype(np.float32)


def _size(window: tuple[np.ndarray, np.ndarray]) -> tuple[int, int]:
    (x0, y0), (x1, y1) = (corner.tolist() for corner in window)  # both corners are inside the window
    return x1 - x0 + 1, y1 - y0 + 1


def _on_display_window(pixels: np.ndarray, header: dict[str, Any]) -> np.ndarray:
    """Crop or pad (H, W) of the data window to the display window, which differ in crops and overscan."""
    data, display = header["dataWindow"], header["displayWindow"]
    width, height = _size(data)
    if pixels.shape != (height, width) or pixels.dtype == object:
        raise ValueError("Deep pixels and subsampled channels are not supported.")
    if all(np.array_equal(a, b) for a, b in zip(data, display, strict=True)):
        return pixels
    canvas_width, canvas_height = _size(display)
    canvas = np.zeros((canvas_height, canvas_width), pixels.dtype)
    x, y = (data[0] - display[0]).tolist()
    inside = canvas[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    top, left = max(-y, 0), max(-x, 0)
    inside[...] = pixels[top : top + inside.shape[0], left : left + inside.shape[1]]
    return canvas
