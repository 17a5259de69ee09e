"""Steps of `intrinsic-lora relight`: build a G-buffer from maps, report on it, write a contact sheet."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..intrinsics.files import atomic_path
from .model import sampling
from .progress import say

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..diffusers_pipeline.base import IntrinsicsPipeline
    from ..intrinsics.pictures import Picture
    from ..intrinsics.relight import Camera, GBuffer, Light

# Median over pixels of `GBuffer.residual`, a difference of sRGB values. On its own scenes the embedded model has 0.01
# to 0.03; the paper's published maps have 0.04 to 0.12.
DOUBTFUL, BAD = 0.05, 0.15


def maps_from_files(
    path: Path, image: Path, picture: "Picture", normals_frame: str | None, depth_kind: str | None
) -> dict[str, Any]:
    """Read maps as keyword arguments of `make_gbuffer`, resampled to the picture's size; report on stderr."""
    import torch

    from ..intrinsics.files import with_ending
    from ..intrinsics.relight.files import fit_maps, read_maps

    try:  # a.jpg in the same folder as a.png
        maps = read_maps(path, with_ending(image), normals_frame=normals_frame, depth_kind=depth_kind)
    except FileNotFoundError:
        maps = read_maps(path, image.stem, normals_frame=normals_frame, depth_kind=depth_kind)
    height, width = picture.rgb.shape[-2:]
    sizes = {f"{x.shape[-1]} x {x.shape[-2]}" for x in maps.values() if isinstance(x, torch.Tensor)}
    fitted = fit_maps(maps, height, width)
    if sizes != {f"{width} x {height}"}:
        say(f"{image}: resampled maps from {', '.join(sorted(sizes))} to {width} x {height} pixels.", err=True)
    return fitted


def extracted_maps(pipe: "IntrinsicsPipeline", picture: "Picture", resolution: int | None) -> dict[str, Any]:
    """Extract maps as keyword arguments of `make_gbuffer`."""
    from ..intrinsics.vocabulary import INTRINSICS

    if "normals" not in pipe.intrinsics:
        raise ValueError(f"Relighting requires a LoRA for normals; loaded: {', '.join(pipe.intrinsics)}.")
    names = [name for name in INTRINSICS if name in pipe.intrinsics]  # custom intrinsics are not used
    output: Any = pipe(  # type: ignore[operator]  # the signature depends on the pipeline
        picture.rgb.clamp(max=1), intrinsics=names, processing_resolution=resolution, **sampling(pipe)
    )
    maps = output.maps()
    return {name: maps[name] for name in names}


def gbuffer_of(
    picture: "Picture", maps: dict[str, Any], roughness: float | None, camera: "Camera", device: "torch.device"
) -> "GBuffer":
    """Build the G-buffer of one picture, on `device` if relighting supports it."""
    import torch

    from ..intrinsics.relight import make_gbuffer
    from ..intrinsics.relight.files import linear_photo

    photo = linear_photo(picture)  # (1, 3, H, W)
    if picture.alpha is not None:
        # Not alpha itself, because semi-transparent pixels are fully lit too.
        maps = maps | {"mask": (picture.alpha > 0).float()}
    if roughness is not None:
        maps = maps | {"roughness": torch.full_like(photo[:, :1], roughness)}
    # MPS does not support sampling beyond a border, which shadow rays require.
    device = device if device.type == "cuda" else torch.device("cpu")
    maps = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in maps.items()}
    return make_gbuffer(photo.to(device), photo_encoding="linear", camera=camera, **maps)


def fitted(lights: Sequence["Light"], gbuffer: "GBuffer") -> list["Light"]:
    """Resize the masks of the lights to the size and device of the G-buffer."""
    from ..intrinsics.resizing import resize

    depth = gbuffer.depth
    return [
        light
        if light.mask is None
        else replace(light, mask=resize(light.mask.to(depth.device), (depth.shape[-2], depth.shape[-1])))
        for light in lights
    ]


def report(gbuffer: "GBuffer") -> str:
    """Describe how well the maps explain the photo, and what was assumed for missing maps."""
    missing = set(gbuffer.assumed)
    notes = []
    if not {"albedo", "shading"} & missing:
        residual = gbuffer.residual[gbuffer.mask > 0.5]
        median = residual.median().item() if len(residual) else 0.0
        verdict, advice = "well", ""
        if median > DOUBTFUL:
            verdict, advice = "roughly", ": albedo mode will change its look"
        if median > BAD:
            verdict, advice = "poorly", ": check the maps before you trust the result"
        notes.append(
            f"albedo x shading explains the photo {verdict} (scale {gbuffer.scale.item():.3g}, median residual "
            f"{median:.3f}){advice}"
        )
    if {"albedo", "shading"} <= missing:
        notes.append("no albedo or shading: the photo keeps its original light")
    elif "albedo" in missing:
        notes.append("no albedo: using photo / shading")
    elif "shading" in missing:
        notes.append("no shading: using photo / albedo")
    if "depth" in missing:
        notes.append("no depth: assuming a flat scene without shadows")
    if gbuffer.there is not None:
        share = 1 - gbuffer.there.float().mean().item()
        notes.append(f"no valid depth in {share:.1%} of the picture: the photo is unchanged there")
    return "; ".join(notes)


def sheet_row(gbuffer: "GBuffer", rigs: list[list["Light"]], look: dict[str, Any]) -> list["Tensor"]:
    """Return the photo and the photo relit by each rig, (3, H, W), sRGB-encoded."""
    from ..intrinsics.color import linear_to_srgb
    from ..intrinsics.relight import relight

    lit = [relight(gbuffer, lights, **look).image for lights in rigs]
    return [linear_to_srgb(image)[0].cpu() for image in (gbuffer.photo, *lit)]


def write_sheet(out: Path, names: list[str], rows: list[list["Tensor"]]) -> None:
    from ..intrinsics.sheet import contact_sheet

    columns = zip(("photo", *names), zip(*rows, strict=True), strict=True)
    with atomic_path(out) as temporary:
        contact_sheet([(name, list(pictures)) for name, pictures in columns]).save(temporary, optimize=True)
