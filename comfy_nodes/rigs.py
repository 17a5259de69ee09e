"""Lights from a node's inputs, and photo maps under them frame by frame, as pure functions. No ComfyUI here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..intrinsics.color import linear_to_srgb, srgb_to_linear
from ..intrinsics.relight import (
    LIGHT_FIELDS,
    LIGHT_TYPES,
    MODES,
    PRESETS,
    Environment,
    Field,
    Light,
    relight,
    rig_from_json,
)
from ..intrinsics.relight.gbuffer import COLOR_ENCODINGS
from ..intrinsics.resizing import resize
from .gbuffers import check_choice, check_input, frame_of, to_gbuffer, with_maps
from .photo_maps import PhotoMaps, channels_first, from_mask

Rig = tuple[Light, ...]
TYPES = tuple(kind for kind in LIGHT_TYPES if kind != "environment")  # those of the node Light
NO_PRESET = "none"


@dataclass(frozen=True)
class LightInput:
    """One input of the node Light: a field, and the types of light that have it.

    Attributes:
        field: its ranges and default; where types differ in the default, the first one's.
        tooltip: what it means, with the types that have it.
        types: those that have it.
    """

    field: Field
    tooltip: str
    types: tuple[str, ...]


def light_inputs() -> dict[str, LightInput]:
    """Return every field of every type except pictures: {name: input}."""
    tooltips: dict[str, dict[str, list[str]]] = {}  # field -> tooltip -> types that have it
    first: dict[str, Field] = {}
    for kind in TYPES:
        for name, field in LIGHT_FIELDS[kind].items():
            if field.kind != "picture":
                tooltips.setdefault(name, {}).setdefault(field.tooltip, []).append(kind)
                first.setdefault(name, field)
    return {
        name: LightInput(
            first[name],
            " ".join(_whose(text, kinds) for text, kinds in tooltips[name].items()),
            tuple(kind for kind in TYPES if name in LIGHT_FIELDS[kind]),
        )
        for name in sorted(first, key=lambda name: name in ("name", "enabled"))
    }


def _whose(tooltip: str, kinds: Sequence[str]) -> str:
    return tooltip if len(kinds) == len(TYPES) else f"{', '.join(kinds).capitalize()}: {tooltip}"


def light_from_inputs(kind: str, values: dict[str, Any], mask: Tensor | None = None) -> Light:
    """Make a light from the node's inputs.

    Args:
        kind: one of `TYPES`.
        values: by the names of `light_inputs`, others' fields too; a kelvin of 0 is none.
        mask: MASK.

    Raises:
        ValueError: one sentence that names the input.
    """
    check_choice("type", kind, TYPES)
    own = {name: field for name, field in LIGHT_FIELDS[kind].items() if name in values}
    given = values | {"kelvin": values.get("kelvin") or None}
    checked = {name: check_input(name, given[name], field) for name, field in own.items()}
    return LIGHT_TYPES[kind](**checked, mask=None if mask is None else from_mask(mask).clamp(0, 1))


def environment_from_image(image: Tensor, encoding: str, rotation: float, intensity: float) -> Environment:
    """Make an environment from an IMAGE (1, H, W, 3), sRGB-encoded (also beyond 1) or linear light.

    Raises:
        ValueError: several pictures, not twice as wide as high, NaN or infinity, an unknown encoding.
    """
    check_choice("encoding", encoding, COLOR_ENCODINGS)
    panorama = channels_first(image)[:, :3].expand(-1, 3, -1, -1)
    count, _, height, width = panorama.shape
    if count != 1:
        raise ValueError(f"An environment is one panorama, not {count} pictures: choose one (Image From Batch).")
    if abs(width - 2 * height) > 2 or height == 0:
        raise ValueError(
            f"The image has {width} x {height} pixels: an equirectangular panorama is twice as wide as high."
        )
    if not panorama.isfinite().all():
        raise ValueError("The image contains NaN or infinity; repair it first.")
    linear = srgb_to_linear(panorama) if encoding == "srgb" else panorama.clamp(min=0)
    fields = {"rotation": rotation, "intensity": intensity}
    checked = {name: check_input(name, v, LIGHT_FIELDS["environment"][name]) for name, v in fields.items()}
    return Environment(image=linear, **checked)


def chained(lights: Sequence[Rig] | None, *more: Light) -> list[Rig]:
    """Return the frames of `lights`, each with `more`."""
    return [(*rig, *more) for rig in (lights or [()])]


def all_lights(lights: Sequence[Rig] | None, preset: str, rig: str) -> list[Rig]:
    """Return what the node Relight shows: frames with the lights of the preset and the JSON rig added.

    One frame without a light where none of the three gives one (the only Light is bypassed).

    Raises:
        ValueError: an unknown preset, or a bad rig.
    """
    check_choice("preset", preset, (NO_PRESET, *PRESETS))
    more = (*(PRESETS[preset] if preset != NO_PRESET else ()), *(rig_from_json(rig) if rig.strip() else ()))
    return chained(lights, *more)


def mixed(photo_maps: PhotoMaps, relit: Tensor, share: float) -> Tensor:
    """Blend the photo with `share` of the relit picture, as a layer of that opacity in an image editor.

    Args:
        photo_maps: one photo, or one per frame.
        relit: (N, H, W, 3) sRGB-encoded in [0,1]; changed in place.
        share: in [0,1].
    """
    if share < 1:
        for i, frame in enumerate(relit):  # not all at once: a clip would be in memory twice
            photo = photo_maps.photo[i % len(photo_maps.photo)].clamp(0, 1).movedim(0, -1)
            frame.lerp_(photo, 1 - share)
    return relit


def relight_frames(
    photo_maps: PhotoMaps,
    rigs: Sequence[Rig],
    *,
    mask: Tensor | None = None,
    camera: dict[str, float] | None = None,
    roughness: float = 0.5,
    device: torch.device | str = "cpu",
    step: Callable[[], None] = lambda: None,
    **look: Any,
) -> dict[str, Tensor]:
    """Relight one picture under many rigs, a batch under one rig, or frame by frame.

    Args:
        photo_maps: with normals.
        rigs: frames.
        mask: MASK, where the light may change; one, or one per frame.
        camera, roughness: see `to_gbuffer`.
        device: where to compute, a frame at a time; results are on the CPU.
        step: called before each frame.
        look: of `intrinsics.relight.relight`.

    Returns:
        "relit", "diffuse", "specular", "shading" (N, H, W, 3) sRGB-encoded in [0,1] and "shadow" (N, H, W).

    Raises:
        ValueError: one sentence: numbers that do not go together, no normals, an unknown mode.
    """
    check_choice("mode", look.get("mode", MODES[0]), MODES)
    photos, count = len(photo_maps.photo), max(len(photo_maps.photo), len(rigs))
    if photos not in (1, count) or len(rigs) not in (1, count):
        raise ValueError(
            f"There are {photos} pictures and {len(rigs)} frames of lights: give one picture, one rig, or as many of "
            "one as of the other."
        )
    masks = None if mask is None else from_mask(mask)
    results: dict[str, Tensor] = {}
    for i in range(count):
        step()
        if i == 0 or photos > 1 or masks is not None:
            one = with_maps(frame_of(photo_maps, i % photos), lambda x: x.to(device))
            gbuffer = to_gbuffer(
                one, roughness=roughness, mask=_frame("mask", masks, i, count, device), **camera or {}
            )
        size = gbuffer.photo.shape[-2], gbuffer.photo.shape[-1]
        lights = [_fitted(light, size, i, count, device) for light in rigs[i % len(rigs)]]
        found = relight(gbuffer, lights, **look)
        for name in ("relit", "diffuse", "specular", "shading", "shadow"):
            x = found.image if name == "relit" else getattr(found, name)  # (1, C, H, W)
            x = x[0, 0] if name == "shadow" else linear_to_srgb(x[0]).movedim(0, -1)
            if i == 0:  # not a list to be joined in the end: a clip would be in memory twice
                results[name] = torch.empty(count, *x.shape)
            results[name][i] = x.clamp(0, 1)
    return results


def _fitted(light: Light, size: tuple[int, int], i: int, count: int, device: torch.device | str) -> Light:
    mask = _frame("a light's mask", light.mask, i, count, device)
    return light if mask is None else replace(light, mask=resize(mask, size))


def _frame(name: str, masks: Tensor | None, i: int, count: int, device: torch.device | str) -> Tensor | None:
    """Return one (1, 1, H, W) of (N, 1, H, W)."""
    if masks is None:
        return None
    if len(masks) not in (1, count):
        raise ValueError(f"There are {len(masks)} masks in {name} and {count} frames: give one for all, or as many.")
    return masks[i % len(masks)][None].to(device)
