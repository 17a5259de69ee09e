"""Selection of the layer of an EXR file that holds the picture or a map."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from .color import to_rec709
from .exr import Layers, Plane, open_exr, stack

PICTURES = ("rgb", "rgba", "combined")  # unnamed, Nuke, Blender


def read_exr_colour(path: str | Path) -> tuple[np.ndarray, bool, int]:
    """Read the picture in an EXR file: the unnamed layer, else `rgba`, else Blender's `Combined`, else the only one.

    Only R, G, B layers are considered, or Y layers if there are none. Colours are converted to Rec. 709 from the
    primaries in the header (ACEScg, Rec. 2020, P3), which default to Rec. 709 by the definition of EXR.

    Returns:
        (H, W, C) float32 linear light, C = RGB, RGB + alpha (premultiplied), grey or grey + alpha;
        whether there is alpha; and the bits per channel in the file.

    Raises:
        FileNotFoundError, ImportError: as `open_exr`.
        ValueError: as `open_exr`, or the layer of the picture is ambiguous; the message lists the layers.
    """
    layers = open_exr(path)
    usable = [name for name, layer in layers.items() if {"R", "G", "B"} <= layer.keys()]
    usable = usable or [name for name, layer in layers.items() if "Y" in layer and "X" not in layer]
    chosen = next((found for word in PICTURES if (found := _called(usable, [word]))), usable)
    if len(chosen) != 1:
        raise ValueError(f"{listed(layers)}, and it is unclear which is the picture: save it as plain R, G, B.")
    layer = layers[chosen[0]]
    alpha = "A" in layer
    planes = [layer[name] for name in (*("RGB" if "R" in layer else "Y"), *("A" if alpha else ""))]
    samples = np.moveaxis(stack(planes), 0, -1)  # (H, W, C)
    return in_rec709(samples, planes), alpha, 8 * planes[0].pixels.itemsize


def in_rec709(samples: np.ndarray, planes: Sequence[Plane]) -> np.ndarray:
    """Convert (H, W, C) of these planes, the first three of which are R, G, B, to the primaries of Rec. 709."""
    stated = planes[0].header.get("chromaticities")
    matrix = None if stated is None or len(planes) < 3 else to_rec709(stated)
    if matrix is None:
        return samples
    colour = (torch.from_numpy(samples[..., :3]) @ matrix.T.float()).numpy()  # (H, W, 3)
    finite = np.isfinite(samples[..., :3]).all(-1, keepdims=True)  # infinity minus infinity would be NaN
    return np.concatenate([np.where(finite, colour, samples[..., :3]), samples[..., 3:]], axis=-1)


def map_layer(layers: Layers, names: Sequence[str]) -> str | None:
    """Return the name of the layer that holds a map, or None.

    Args:
        layers: from `open_exr`.
        names: accepted names of the map, in lower case, the canonical one first. The canonical name takes precedence
            over the others, and a whole layer name over its last part, as in Blender's `ViewLayer.Normal`.

    Raises:
        ValueError: several layers match.
    """
    found = _called(layers, names[:1], whole=True) or _called(layers, names, whole=True) or _called(layers, names)
    if len(found) > 1:
        raise ValueError(f"{listed(layers)}, and {' and '.join(found)} may all be its {names[0]}: keep only one.")
    return found[0] if found else None


def _called(layers: Collection[str], names: Sequence[str], whole: bool = False) -> list[str]:
    return [name for name in layers if (name if whole else name.rpartition(".")[2]).lower() in names]


def map_values(layer: Mapping[str, Plane], name: str) -> tuple[np.ndarray, bool]:
    """Stack the layer of a map: one channel of any name, R G B, or X Y Z; alpha is ignored.

    Returns:
        (C, H, W) float32 as stored, and whether the channels are R, G, B.

    Raises:
        ValueError: the layer has other channels.
    """
    names = [component for component in layer if component != "A"] or list(layer)
    for three in ("RGB", "XYZ"):
        if set(three) <= set(names):
            return stack([layer[component] for component in three]), three == "RGB"
    if len(names) != 1:
        raise ValueError(f"The channels of its layer {name} are {', '.join(names)}, neither R, G, B nor X, Y, Z.")
    return stack([layer[names[0]]]), False


def listed(layers: Collection[str]) -> str:
    """Return the start of a sentence that lists the layers found."""
    return f"it has the {'layer' if len(layers) == 1 else 'layers'} {', '.join(layers) or 'none'}"
