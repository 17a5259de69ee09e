"""Decompose and Model Patch in a real ComfyUI, against the diffusers pipeline on the same checkpoint and LoRAs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics.display import display_map
from intrinsic_lora.intrinsics.registry import INTRINSICS
from torch import Tensor

INSIDE = (Path(__file__).parent / "inside.py").read_text()
TOLERANCE = 2 / 255


def photos(count: int, height: int, width: int, seed: int = 1) -> Tensor:
    """(B, 3, H, W) in [0, 1]: smooth colours with some texture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 8, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (x + 0.03 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


# Name: (photos, the node's settings, the pipeline's).
CASES = {
    "not a multiple of 8": (photos(1, 101, 139), {"resolution": 64}, {"processing_resolution": 64}),
    "own size": (photos(1, 75, 90), {"resolution": 0, "upsample": "bilinear"}, {"processing_resolution": 0}),
    "shrunk": (photos(1, 150, 130), {"resolution": 64}, {"processing_resolution": 64}),
    "batch": (
        photos(3, 101, 77),
        {"resolution": 64, "batch_size": 2, "upsample": "bilinear"},
        {"processing_resolution": 64, "batch_size": 2, "upsample": "bilinear"},
    ),
    "off": (
        photos(1, 60, 44),
        {"resolution": 64, "upsample": "off"},
        {"processing_resolution": 64, "match_input_resolution": False},
    ),
    "512": (photos(1, 512, 512), {"maps": "normals"}, {"intrinsics": "normals"}),
}


@pytest.fixture(scope="module")
def inside(run_in_comfy, server, tmp_path_factory):
    """`inside(code, **tensors)` runs code after `inside.py` with the tensors as variables; returns its `result`."""

    def run(code: str, **tensors: object) -> dict:
        folder = tmp_path_factory.mktemp("inside")
        torch.save(tensors, folder / "in.pt")
        load = "globals().update(torch.load(OUT / 'in.pt', weights_only=True))\n"
        save = "\ntorch.save(result, OUT / 'out.pt')"
        print(run_in_comfy(f"{INSIDE}\n{load}{code}{save}", server.base, server.pack, folder))
        return torch.load(folder / "out.pt", weights_only=True)

    return run


@pytest.fixture(scope="module")
def made(inside) -> dict[str, dict[str, Tensor]]:
    """Per case, what the node gives: pictures (B, H, W, 3), confidence (B, H, W), and the packet's maps."""
    code = """
from dataclasses import asdict
model, clip, vae = base_model()
result = {}
for name, (photo, settings) in cases.items():
    packet, *pictures, mask = node("Decompose", image=photo.movedim(1, -1), model=model, clip=clip, vae=vae, **settings)
    named = zip(("normals", "depth", "albedo", "shading"), pictures)
    result[name] = {key: x for key, x in named if isinstance(x, torch.Tensor)} | {"mask": mask}
    result[name]["packet"] = {k: v for k, v in vars(packet).items() if isinstance(v, torch.Tensor)}
"""
    return inside(code, cases={name: (photo, settings) for name, (photo, settings, _) in CASES.items()})


@pytest.mark.parametrize("case", CASES)
def test_equals_the_pipeline(made, pipeline, case):
    photo, settings, options = CASES[case]
    expected = pipeline(photo, **options)
    names = [settings["maps"]] if "maps" in settings else list(INTRINSICS)
    assert set(made[case]) == {*names, "mask", "packet"}
    for name in names:
        picture = display_map(expected[name], name).expand(-1, 3, -1, -1).movedim(1, -1)  # (B, H, W, 3)
        assert made[case][name].shape == picture.shape and made[case][name].dtype == torch.float32
        error = (made[case][name] - picture).abs().max().item()
        print(f"{case}, {name}: {255 * error:.3f} / 255, spread {made[case][name].std():.3f}")
        assert error <= TOLERANCE
        assert made[case][name].std() > 0.02  # a picture of something
        assert (made[case]["packet"][name] - expected[name]).abs().max() <= TOLERANCE * expected[name].abs().max()
    assert (made[case]["mask"][:, None] - expected.confidence).abs().max() <= TOLERANCE
