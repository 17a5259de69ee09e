"""Photo maps from pictures and pictures from photo maps, as pure functions. No ComfyUI here."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..intrinsics.color import linear_to_srgb, luminance, srgb_to_linear
from ..intrinsics.depth import grey_depth, render_depth, to_distance, valid_depth
from ..intrinsics.display import display_map
from ..intrinsics.normals import (
    check_normal_picture,
    convert_normals,
    normalize_normals,
    normals_to_picture,
    picture_to_normals,
    scale_relief,
)
from ..intrinsics.relight import Camera, Field, GBuffer, combine, make_gbuffer
from ..intrinsics.relight.edit import edit_shading
from ..intrinsics.relight.fields import check_field
from ..intrinsics.relight.files import fit_maps
from ..intrinsics.relight.gbuffer import COLOR_ENCODINGS
from ..intrinsics.resizing import resize
from .photo_maps import PhotoMaps, channels_first, from_mask, photo_from_image

MAPS = ("normals", "depth", "albedo", "shading", "roughness", "mask", "confidence", "photo")
WHERE_FROM = "make it with Intrinsic Decompose, or connect it to Make G-Buffer"


def check_choice(name: str, value: str, options: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of `options`, which v0.3.64 does not check in a graph sent by HTTP."""
    if value not in options:
        raise ValueError(f"The input {name} must be one of {', '.join(options)}, not {value!r}.")


def check_input(name: str, value: Any, field: Field) -> Any:
    """Return the value of an input as a light holds it, see `check_field`.

    Raises:
        ValueError: it is not allowed; one sentence that names the input.
    """
    try:
        return check_field(value, field, f"The input {name}")
    except ValueError as error:
        if field.kind != "color":
            raise
        raise ValueError(f"The input {name} must be a colour such as #ff8040, not {value!r}.") from error


def needed(photo_maps: PhotoMaps, name: str) -> Tensor:
    """Return one of the maps; raise ValueError if it is missing."""
    found = getattr(photo_maps, name)
    if found is None:
        have = ", ".join(n for n in MAPS if getattr(photo_maps, n) is not None)
        raise ValueError(f"The gbuffer has no {name} (only {have}): {WHERE_FROM}.")
    return found


def frame_of(photo_maps: PhotoMaps, index: int) -> PhotoMaps:
    """Return one picture of the batch, as a batch of one."""
    return with_maps(photo_maps, lambda x: x[index : index + 1])


def with_maps(photo_maps: PhotoMaps, change: Callable[[Tensor], Tensor]) -> PhotoMaps:
    """Return the photo maps with every map, and the photo, changed."""
    maps: dict[str, Any] = {name: change(x) for name, x in vars(photo_maps).items() if isinstance(x, Tensor)}
    return replace(photo_maps, **maps)


def draw_map(
    photo_maps: PhotoMaps,
    name: str,
    *,
    frame: str = "opengl",
    strength: float = 1.0,
    near: str = "near-white",
    scope: str = "image",
    low: float = 0.0,
    high: float = 100.0,
    gamma: float = 1.0,
    encoding: str = "srgb",
    exposure: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Draw a map as a picture.

    Args:
        name: one of `MAPS`.
        frame, strength: of normals, see `convert_normals` and `scale_relief`.
        near, scope, low, high, gamma: of depth, see `render_depth`.
        encoding, exposure: of albedo, shading and photo: "srgb" or "linear", and stops.

    Returns:
        The picture (B, 1 or 3, H, W) in [0,1], and one channel of it (B, 1, H, W): of normals how much they face the
        viewer, of colours their luminance as drawn.

    Raises:
        ValueError: no such map, or an unknown convention.
    """
    check_choice("map", name, MAPS)
    values = needed(photo_maps, name)
    match name:
        case "normals":
            values = scale_relief(values, strength)
            return display_map(values, "normals", normals=frame), values[:, 2:].clamp(0, 1)
        case "depth":
            raw = values if photo_maps.raw_depth is None else photo_maps.raw_depth
            grey = render_depth(raw, near, scope, low=low, high=high, gamma=gamma)
            return grey, grey
        case "albedo" | "shading" | "photo":
            check_choice("encoding", encoding, COLOR_ENCODINGS)
            light = (srgb_to_linear(values) if name == "photo" else values) * 2**exposure
            picture = (linear_to_srgb(light) if encoding == "srgb" else light).clamp(0, 1)
            return picture, luminance(picture)
        case _:
            return values.clamp(0, 1), values.clamp(0, 1)


def convert_normal_picture(
    picture: Tensor,
    source: str,
    target: str,
    *,
    strength: float = 1.0,
    renormalize: bool = True,
    background: Tensor | None = None,
) -> Tensor:
    """Convert a normal map to another frame.

    Args:
        picture: (B, 3, H, W), n * 0.5 + 0.5.
        source, target: from `NORMAL_FRAMES`.
        strength: see `scale_relief`.
        renormalize: to unit length; vectors without direction then face the viewer.
        background: (B or 1, 1, H, W) in [0,1]: where it is 1, the map is to face the viewer.

    Returns:
        (B, 3, H, W) in [0,1].
    """
    normals = convert_normals(picture_to_normals(picture), source, "opengl")  # (B, 3, H, W)
    if background is not None:
        viewer = normals.new_tensor([0.0, 0.0, 1.0])[:, None, None]
        normals = normals + resize(background, _size(picture)) * (viewer - normals)
    if renormalize:
        normals = normalize_normals(normals)
    return normals_to_picture(convert_normals(scale_relief(normals, strength), "opengl", target)).clamp(0, 1)


def photo_maps_from_images(
    image: Tensor,
    *,
    normals: Tensor | None = None,
    normals_frame: str = "opengl",
    depth: Tensor | None = None,
    depth_kind: str = "near-white",
    albedo: Tensor | None = None,
    albedo_encoding: str = "srgb",
    shading: Tensor | None = None,
    shading_encoding: str = "srgb",
    roughness: Tensor | None = None,
    mask: Tensor | None = None,
    camera: Camera | None = None,
) -> PhotoMaps:
    """Convert maps of any source, as ComfyUI's pictures, to photo maps of the photo's size.

    Args:
        image: IMAGE (B, H, W, 1, 3 or 4).
        normals, depth, albedo, shading, roughness: IMAGE, one or B. Normals are n * 0.5 + 0.5.
        normals_frame, depth_kind: from `NORMAL_FRAMES`, `DEPTH_KINDS`.
        albedo_encoding, shading_encoding: "srgb" or "linear".
        mask: MASK.
        camera: of metric depth only the field of view counts.

    Raises:
        ValueError: one sentence that names the input: another aspect or number of pictures, NaN, or an unknown
            convention.
    """
    check_choice("albedo_encoding", albedo_encoding, COLOR_ENCODINGS)
    check_choice("shading_encoding", shading_encoding, COLOR_ENCODINGS)
    photo, alpha = photo_from_image(image)
    size, camera = _size(photo), camera or Camera()
    pictures = {"normals": normals, "depth": depth, "albedo": albedo, "shading": shading, "roughness": roughness}
    maps = {name: _picture(name, x, len(photo)) for name, x in pictures.items() if x is not None}
    if "normals" in maps:
        check_normal_picture(maps["normals"])
        maps["normals"] = convert_normals(picture_to_normals(maps["normals"]), normals_frame, "opengl")
    for name, encoding in (("albedo", albedo_encoding), ("shading", shading_encoding)):
        if name in maps:
            maps[name] = srgb_to_linear(maps[name]) if encoding == "srgb" else maps[name].clamp(min=0)
    if "roughness" in maps:
        maps["roughness"] = maps["roughness"].mean(1, keepdim=True)  # (B, 1, h, w)
    if "depth" in maps:
        maps["depth"] = grey_depth(maps["depth"])  # (B, 1, h, w)
    maps = fit_maps(maps | {"depth_kind": depth_kind}, *size)
    del maps["depth_kind"]
    if "normals" in maps:
        maps["normals"] = normalize_normals(maps["normals"])
    if "roughness" in maps:
        maps["roughness"] = maps["roughness"].clamp(0, 1)
    if "depth" in maps:
        there = valid_depth(maps["depth"], depth_kind)
        if not there.all():
            maps["there"] = there
        maps["depth"], near, far = to_distance(maps["depth"], depth_kind, camera.near, camera.far)
        camera = replace(camera, near=near, far=far)
    if mask is not None:  # of any size, as core's nodes take them
        alpha = _per_picture("mask", resize(from_mask(mask), size), len(photo)).clamp(0, 1)
    return PhotoMaps(photo=photo, mask=alpha, camera=camera, **maps)


def to_gbuffer(
    photo_maps: PhotoMaps, *, roughness: float = 0.5, mask: Tensor | None = None, **camera: float
) -> GBuffer:
    """Prepare photo maps for relighting.

    Args:
        roughness: where there is no map of it.
        mask: (B or 1, 1, h, w), in addition to the one in `photo_maps`.
        camera: near, far, fov; 0 keeps the value of `photo_maps`, else the default of `Camera`.

    Raises:
        ValueError: no normals, or not near < far.
    """
    normals = needed(photo_maps, "normals")
    parts = [m if m is None else resize(m, _size(photo_maps.photo)) for m in (photo_maps.mask, mask)]
    masks = [m.clamp(0, 1).expand(len(photo_maps.photo), -1, -1, -1) for m in parts if m is not None]
    given = (
        torch.full_like(photo_maps.photo[:, :1], roughness) if photo_maps.roughness is None else photo_maps.roughness
    )
    return make_gbuffer(
        photo_maps.photo,
        normals,
        photo_maps.depth,
        photo_maps.albedo,
        photo_maps.shading,
        given,
        torch.stack(masks).prod(0) if masks else None,
        camera=replace(photo_maps.camera or Camera(), **{name: value for name, value in camera.items() if value > 0}),
        there=photo_maps.there,
    )


def edit(
    photo_maps: PhotoMaps,
    step: Callable[[], None] = lambda: None,
    device: torch.device | str = "cpu",
    **edits: float | tuple[float, float, float],
) -> PhotoMaps:
    """Edit the light: return photo maps with another photo and shading, see `edit_shading`.

    The photo keeps what becomes brighter than white, so that relighting the result is relighting the photo. Outside
    the mask the photo stays.

    Args:
        photo_maps: with shading, or albedo.
        step: called before each picture: a clip takes no more memory than one, above the result.
        device: where to compute; the result is on the CPU.
        edits: of `edit_shading`.
    """
    if photo_maps.shading is None and photo_maps.albedo is None:
        raise ValueError(f"The gbuffer has neither shading nor albedo, so there is no light to edit: {WHERE_FROM}.")
    # An edit can do without normals.
    seen = (
        photo_maps
        if photo_maps.normals is not None
        else replace(photo_maps, normals=torch.zeros_like(photo_maps.photo))
    )
    photos, shadings = [], []
    for i in range(len(photo_maps.photo)):
        step()
        gbuffer = to_gbuffer(with_maps(frame_of(seen, i), lambda x: x.to(device)))
        if photo_maps.normals is None:
            gbuffer = replace(gbuffer, assumed=(*gbuffer.assumed, "normals"))
        shading = edit_shading(gbuffer, **edits)  # type: ignore[arg-type]  # (1, 3, H, W)
        shading = gbuffer.shading + gbuffer.mask * (shading - gbuffer.shading)
        photos.append(linear_to_srgb(combine(gbuffer, shading, "ratio")).cpu())
        shadings.append(shading.cpu())
    return replace(photo_maps, photo=torch.cat(photos), shading=torch.cat(shadings))


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _picture(name: str, image: Tensor, count: int) -> Tensor:
    """Convert IMAGE to (count, 3, h, w), without any change of its values."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"The input {name} must be pictures of 1, 3 or 4 channels, not a tensor {tuple(image.shape)}."
        )
    x = channels_first(image)[:, :3].expand(-1, 3, -1, -1)
    if name != "depth" and not x.isfinite().all():
        raise ValueError(f"The input {name} contains NaN or infinity; repair it first.")
    return _per_picture(name, x, count)


def _per_picture(name: str, x: Tensor, count: int) -> Tensor:
    if len(x) not in (1, count):
        raise ValueError(f"There are {len(x)} pictures in {name} and {count} in image: give one for all, or as many.")
    return x.expand(count, -1, -1, -1)
