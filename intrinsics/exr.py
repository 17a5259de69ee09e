"""OpenEXR files of several layers, named as Nuke and Blender name them. The codec is OpenEXR's own Python binding."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .files import atomic_path

HALF_MAX = 65504.0
COMPONENTS = "RGBXYZUVA"  # the order in which a layer's channels are stacked; OpenEXR itself sorts them by letter


def optional_library(name: str, purpose: str) -> ModuleType:
    """Import a library that the core can do without; ImportError says what it is for and how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{purpose} needs the package {name}: pip install {name}") from error


def check_pixel_count(width: int, height: int) -> None:
    """Pillow's own limit against decompression bombs (`Image.MAX_IMAGE_PIXELS`, twice), for the other decoders."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")


def write_exr(path: str | Path, layers: Mapping[str, Tensor], half: bool = False) -> None:
    """Write one single-part EXR (ZIP, scan lines), atomically.

    Args:
        path: the file to write.
        layers: layer name -> (C,H,W), all of one size, written as they are: EXR colour is linear light by definition.
            Channels are named `<layer>.<component>`: X Y Z for `normals`, Z for `depth`, otherwise R G B for three
            channels, R G B A for four, Y (luminance) for one. The layer `rgb` is the unnamed one (plain R, G, B, A
            or Y), which every viewer opens first.
        half: store 16-bit floats instead of 32-bit ones.

    Raises:
        ValueError: layers missing, of different sizes or of 2 or more than 4 channels, or too large for half floats.
        ImportError: OpenEXR is not installed.
    """
    OpenEXR = optional_library("OpenEXR", "writing EXR")
    sizes = {tuple(layer.shape[1:]) for layer in layers.values() if layer.ndim == 3}
    if len(sizes) != 1 or any(layer.ndim != 3 for layer in layers.values()) or 0 in next(iter(sizes)):
        shapes = ", ".join(f"{name} {tuple(layer.shape)}" for name, layer in layers.items()) or "no layer"
        raise ValueError(f"an EXR needs layers (C,H,W) that share one height and width, not {shapes}")

    channels = {}
    for name, layer in layers.items():
        layer = layer.detach().float().cpu()
        if half and (layer.isfinite() & (layer.abs() > HALF_MAX)).any():
            raise ValueError(f"the layer {name} goes beyond {HALF_MAX:.0f}, the most a half float holds: write floats")
        planes = layer.numpy().astype(np.float16 if half else np.float32)  # (C,H,W)
        for component, plane in zip(_components(name, len(planes)), planes, strict=True):
            channels[component if name == "rgb" else f"{name}.{component}"] = np.ascontiguousarray(plane)

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with atomic_path(path) as temporary, OpenEXR.File(header, channels) as file:
        file.write(str(temporary))


def _components(layer: str, count: int) -> str:
    by_count = {1: "Z" if layer == "depth" else "Y", 3: "XYZ" if layer == "normals" else "RGB", 4: "RGBA"}
    if count not in by_count:
        raise ValueError(f"the EXR layer {layer} has {count} channels; 1, 3 or 4 can be named")
    return by_count[count]


def read_exr(path: str | Path) -> dict[str, Tensor]:
    """Read every layer of an EXR file, ours or another program's, single- or multi-part.

    Returns:
        layer name -> (C,H,W) float32, as stored (linear light for colour), over the *display* window: pixels outside
        the data window are 0. Channels come in the order R G B X Y Z U V A, then by name. Unnamed channels are the
        layer `rgb`, an unnamed Z alone is `depth`; in later parts of a multi-part file they take the part's name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an EXR, damaged, truncated, deep or with subsampled channels, or far too large.
        ImportError: OpenEXR is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        layers = exr_channels(path)
    except (ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the EXR file {path}: {error}") from error
    return {
        name: torch.from_numpy(np.stack(list(layer.values())).astype(np.float32)) for name, layer in layers.items()
    }


def exr_channels(path: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """`read_exr` before stacking: layer name -> {component: (H,W) array of the type stored}.

    Its ValueErrors do not name the file: the caller does.
    """
    OpenEXR = optional_library("OpenEXR", "reading EXR")
    try:
        # Leaving a `with` empties the file's own dicts, so what is kept is copied.
        with OpenEXR.File(str(path), header_only=True) as file:
            headers = [dict(file.header(index)) for index in range(len(file.parts))]
        for header in headers:
            for window in ("dataWindow", "displayWindow"):
                check_pixel_count(*_size(header[window]))
        with OpenEXR.File(str(path), separate_channels=True) as file:
            # OpenEXR warns about a damaged part on stderr and leaves it out.
            if len(file.parts) != len(headers):
                raise ValueError("OpenEXR could not decode all of its pixels")
            parts = [(part.name(), {c: channel.pixels for c, channel in part.channels.items()}) for part in file.parts]
    except RuntimeError as error:  # its text only says that the file cannot be opened
        raise ValueError("it is damaged or not an EXR at all") from error
    layers: dict[str, dict[str, np.ndarray]] = {}
    for index, (part_name, channels) in enumerate(parts):
        for channel, pixels in channels.items():
            layer, _, component = channel.rpartition(".")
            if not layer:
                lone_z = channel == "Z" and "X" not in channels
                layer = part_name if index else "depth" if lone_z else "rgb"
            layers.setdefault(layer, {})[component] = _on_display_window(pixels, headers[index])
    return {name: dict(sorted(layer.items(), key=_component_order)) for name, layer in layers.items()}


def _component_order(item: tuple[str, np.ndarray]) -> tuple[int, str]:
    name = item[0].upper()
    return (COMPONENTS.index(name) if len(name) == 1 and name in COMPONENTS else len(COMPONENTS), name)


def _size(window: tuple[np.ndarray, np.ndarray]) -> tuple[int, int]:
    (x0, y0), (x1, y1) = (corner.tolist() for corner in window)  # both corners are inside the window
    return x1 - x0 + 1, y1 - y0 + 1


def _on_display_window(pixels: np.ndarray, header: dict) -> np.ndarray:
    """(H,W) of the data window -> (H,W) of the display window; renderers crop or overscan the former."""
    data, display = header["dataWindow"], header["displayWindow"]
    width, height = _size(data)
    if pixels.shape != (height, width) or pixels.dtype == object:
        raise ValueError("deep pixels and subsampled channels are not pictures that can be used here")
    if all(np.array_equal(a, b) for a, b in zip(data, display, strict=True)):
        return pixels
    canvas_width, canvas_height = _size(display)
    canvas = np.zeros((canvas_height, canvas_width), pixels.dtype)
    x, y = (data[0] - display[0]).tolist()
    inside = canvas[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    top, left = max(-y, 0), max(-x, 0)
    inside[...] = pixels[top : top + inside.shape[0], left : left + inside.shape[1]]
    return canvas
