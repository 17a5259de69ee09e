"""ComfyUI's core nodes give what our pipeline gives, from the same files: the LoRA's keys and the timestep fit."""

import copy

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics.lora import read_lora
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS
from intrinsic_lora.tests.comfy.client import Client
from intrinsic_lora.tests.comfy.graphs import vanilla
from intrinsic_lora.tests.support import tiny
from safetensors.torch import load


def encode(pipeline, photo: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) -> (1, 4, h, w), as the UNet sees it."""
    return pipeline.encode_image(torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255)


@pytest.fixture(scope="module")
def results(server, photo) -> dict:
    """Per intrinsic, what ComfyUI makes of the photo: ((1, 4, h, w) as the UNet gives it, uint8 (H, W, 3)).

    And under "log", what ComfyUI wrote meanwhile.
    """
    client, begin = Client(server.url), server.log.stat().st_size
    image = client.upload_image("photo.png", photo)
    found = {}
    for name, intrinsic in INTRINSICS.items():
        result = client.queue(vanilla(image, f"intrinsic_lora_{name}.safetensors", intrinsic.prompt))
        latent = load(client.fetch(result.files("latent", "latents")[0]))["latent_tensor"] * 0.18215
        found[name] = latent, client.fetch_image(result.files("picture")[0])
    return found | {"log": server.log.read_bytes()[begin:].decode(errors="replace")}


@pytest.mark.parametrize("name", INTRINSICS)
@torch.no_grad()
def test_equals_the_pipeline(results, pipeline, photo, name):
    latent, picture = results[name]
    expected = pipeline.predict_latents(encode(pipeline, photo), (name,))[0]
    assert latent.dtype == torch.float32
    assert torch.allclose(latent, expected, rtol=0, atol=1e-4), (latent - expected).abs().max()

    drawn = pipeline.decode_latents(expected)[0].permute(1, 2, 0).clamp(0, 1).numpy()  # (H, W, 3)
    assert picture.shape == photo.shape
    assert picture.std() > 10  # a picture of something
    assert np.abs(picture / 255 - drawn).max() <= 2 / 255


@pytest.mark.parametrize("name", INTRINSICS)
@torch.no_grad()
def test_equals_folded_weights_at_timestep_999_alone(results, pipeline, loras, photo, name):
    unet = copy.deepcopy(pipeline.unet)
    tiny.fold(unet, read_lora(loras / f"intrinsic_lora_{name}.safetensors", unet).weights)
    prompt = pipeline.encode_prompt(INTRINSICS[name].prompt, torch.device("cpu"), torch.float32)
    seen = encode(pipeline, photo)
    latent = results[name][0]
    error = {t: (unet(seen, t, prompt).sample - latent).abs().max().item() for t in (999, 998)}
    assert error[999] < 1e-4, error
    assert error[998] > 1e-2, error  # or this test could not tell
    assert (pipeline.unet(seen, 999, prompt).sample - latent).abs().max() > 0.1  # without the LoRA


def test_every_key_found_its_place(results):
    """ComfyUI only logs what a file lacks, or has too much of."""
    log = results["log"].lower()
    assert log.count("prompt executed") == 4
    assert "missing" not in log and "unexpected" not in log and "not loaded" not in log
