"""A G-buffer on disk to be loaded again, as a safetensors file. No ComfyUI here."""

import json
from dataclasses import asdict, fields
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..intrinsics.budget import check_memory
from ..intrinsics.files import atomic_path
from ..intrinsics.relight import Camera
from .gbuffers import check_choice
from .photo_maps import PhotoMaps

SUFFIX = ".gbuffer.safetensors"
FORMAT = "intrinsic-lora-gbuffer-1"
PRECISIONS = {"half float": torch.float16, "float": torch.float32}
CHANNELS = {
    "photo": (3,), "normals": (3,), "depth": (1,), "albedo": (3,), "shading": (1, 3), "roughness": (1,), "mask": (1,),
    "confidence": (1,), "raw_depth": (1,), "there": (1,),
}  # fmt: skip


def save_photo_maps(photo_maps: PhotoMaps, precision: str, path: Path) -> None:
    """Write all of a G-buffer, atomically.

    Args:
        photo_maps: of B pictures.
        precision: of `PRECISIONS`. Half floats are off by at most 1/2048 of a value: a tenth of an 8-bit level.

    Raises:
        ValueError: an unknown precision.
    """
    check_choice("precision", precision, PRECISIONS)
    maps = {name: values for name in CHANNELS if (values := getattr(photo_maps, name)) is not None}
    metadata = {"format": FORMAT}
    if photo_maps.camera is not None:
        metadata["camera"] = json.dumps(asdict(photo_maps.camera))
    # Copies, since safetensors refuses tensors that share memory, as the parts of one picture may.
    stored = {name: x.to(PRECISIONS[precision], copy=True).contiguous() for name, x in maps.items()}
    with atomic_path(path) as temporary:
        save_file(stored, temporary, metadata)


def load_photo_maps(path: Path) -> PhotoMaps:
    """Read what `save_photo_maps` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file, damaged, or far too large; one sentence that names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path.name}: save one with Save G-Buffer, and refresh (R).")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no mapping
            _check(path, metadata, shapes)
            maps = {name: file.get_tensor(name).float() for name in shapes}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or not a G-buffer: save it again with Save G-Buffer.") from error
    for name, values in maps.items():
        if not values.isfinite().all():
            raise ValueError(f"{path.name} contains NaN or infinity in {name}: save it again with Save G-Buffer.")
    if "there" in maps:
        maps["there"] = maps["there"] > 0.5
    return PhotoMaps(**maps, camera=_camera(path, metadata.get("camera")))


def _check(path: Path, metadata: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path.name} is not a G-buffer of this version: choose a file saved by Save G-Buffer.")
    if "photo" not in shapes:
        raise ValueError(f"{path.name} has no photo: choose a file saved by Save G-Buffer.")
    photo = shapes["photo"]
    for name, shape in shapes.items():
        alike = len(shape) == len(photo) == 4 and (shape[0], *shape[2:]) == (photo[0], *photo[2:])
        if not alike or 0 in shape or shape[1] not in CHANNELS.get(name, ()):
            raise ValueError(f"{path.name} has {name} of shape {shape}, which no map has: save it again.")
    count, _, height, width = photo
    values = sum(prod(shape) for shape in shapes.values())
    check_memory(4 * values, f"{path.name} ({count} pictures of {width} x {height} pixels)")


def _camera(path: Path, text: str | None) -> Camera | None:
    if text is None:
        return None
    try:
        values = json.loads(text)
        return Camera(**{field.name: float(values[field.name]) for field in fields(Camera)})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path.name} has an invalid camera: save it again with Save G-Buffer.") from error
