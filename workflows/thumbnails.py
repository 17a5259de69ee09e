"""Draws the pictures that ComfyUI's template browser shows: NAME.jpg beside each NAME.json.

    python workflows/thumbnails.py

Two rendered rooms stand in for photos. Where a picture shows maps, the embedded model made them; where it shows new
light, the maps are the renderer's own, as good as those of a large model on a photo.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.intrinsics.display import display_map
from intrinsic_lora.intrinsics.normals import convert_normals
from intrinsic_lora.intrinsics.relight import (
    PRESETS,
    Ambient,
    Environment,
    GBuffer,
    Light,
    Point,
    Rim,
    Sun,
    make_gbuffer,
    relight,
)
from intrinsic_lora.intrinsics.relight.animate import animate
from intrinsic_lora.train.scenes.render import render, sample_scene
from PIL import Image
from torch import Tensor

SIZE = 400  # pixels, square as the browser shows them
SEED, FRIENDS, BALL = 11, 5, 4  # a room with two balls and a tin, and one with a large ball


def room(number: int, size: int = SIZE) -> tuple[Tensor, GBuffer]:
    """Return the picture (1, 3, H, W), sRGB, and the renderer's exact maps."""
    found = render(sample_scene(np.random.default_rng([SEED, number])), size)

    def image(name: str) -> Tensor:
        return torch.from_numpy(np.atleast_3d(found[name])).permute(2, 0, 1)[None].float()  # (1,C,H,W)

    photo = linear_to_srgb(image("rgb_linear")).clamp(0, 1)
    return photo, make_gbuffer(photo, *(image(name) for name in ("normals", "depth", "albedo", "shading")))


def lit(gbuffer: GBuffer, *lights: Light, **look: float) -> Tensor:
    """(1,3,H,W), sRGB."""
    return linear_to_srgb(relight(gbuffer, lights, **look).image).clamp(0, 1)


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Join the left half of one picture and the right half of another with a white line between them."""
    half = SIZE // 2
    joined = torch.cat((left[..., :half], right[..., half:]), -1)
    joined[..., half - 1 : half + 1] = 1
    return joined


def quarters(*pictures: Tensor) -> Tensor:
    """Four pictures in one of the same size."""
    small = [torch.nn.functional.interpolate(picture, scale_factor=0.5, mode="area") for picture in pictures]
    return torch.cat((torch.cat(small[:2], -1), torch.cat(small[2:], -1)), -2)


def studio() -> Tensor:
    """Return a panorama (1, 3, 64, 128) in linear light: a grey room, a bright window behind the left shoulder."""
    panorama = torch.full((1, 3, 64, 128), 0.25)
    panorama[..., :32, :] = 0.5
    panorama[..., 12:30, 8:28] = torch.tensor([5.0, 5.5, 6.5])[:, None, None]
    return panorama


def pictures() -> dict[str, Callable[[], Tensor]]:
    """Return the functions that draw the thumbnails, by the name of the workflow."""
    photo, gbuffer = room(FRIENDS)
    ball, round_gbuffer = room(BALL)
    maps = IntrinsicLoRAPipeline.from_pretrained()(photo)
    drawn = {name: display_map(getattr(maps, name), name) for name in ("normals", "depth", "albedo", "shading")}
    drawn = {name: picture.expand(-1, 3, -1, -1) for name, picture in drawn.items()}

    rim = Rim(az=140, el=30, intensity=0.6, kelvin=7500)
    softboxes = (Point(x=-0.1, y=0.2, height=1.2, softness=0.5, kelvin=5600, intensity=1.6),)
    softboxes += (Point(x=1.15, y=0.35, height=1.0, softness=0.7, kelvin=6500, intensity=0.7),)
    evening = Sun(az=70, el=20, softness=0.15, kelvin=3800, intensity=1.2), Ambient(intensity=0.15)
    lamp = Sun(az=-60, el=35, softness=0.15, kelvin=3600, intensity=1.2), Ambient(intensity=0.15)
    orbit = [lit(gbuffer, *rig) for rig in animate([lamp], 4, "orbit")]
    for_controlnet = convert_normals(gbuffer.normals, "opengl", "controlnet") * 0.5 + 0.5
    mixed = make_gbuffer(photo, gbuffer.normals, gbuffer.depth, None, maps.shading)
    return {
        "1-photo-to-four-maps": lambda: quarters(*drawn.values()),
        "2-portrait-light": lambda: side_by_side(ball, lit(round_gbuffer, *PRESETS["rembrandt"], rim)),
        "3-product-hdri-softboxes": lambda: lit(round_gbuffer, Environment(image=studio(), intensity=0.6), *softboxes),
        "4-relight-then-diffusion": lambda: side_by_side(for_controlnet, lit(gbuffer, *evening)),
        "5-moving-light-video": lambda: quarters(*orbit),
        "6-other-maps-our-shading": lambda: quarters(
            photo, gbuffer.normals * 0.5 + 0.5, drawn["shading"], lit(mixed, *PRESETS["window"])
        ),
        "vanilla-core-nodes": lambda: side_by_side(photo, drawn["shading"]),
    }


if __name__ == "__main__":
    for name, draw in pictures().items():
        pixels = (draw()[0].permute(1, 2, 0) * 255).round().byte().numpy()  # (H,W,3)
        Image.fromarray(pixels).save(Path(__file__).parent / f"{name}.jpg", quality=88, optimize=True)
