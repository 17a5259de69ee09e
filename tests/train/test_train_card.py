"""The model card beside trained LoRAs: its commands run, and give the maps of training's validation."""

import re

import numpy as np
import pytest
import torch
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.cli.main import app
from intrinsic_lora.intrinsics import INTRINSICS, crop_to, pad_to, processing_size, read_picture, resize
from intrinsic_lora.tests.support import tiny_training
from intrinsic_lora.tests.support.tiny_xl import xl_pipeline
from intrinsic_lora.train.backbones.stable_diffusion import StableDiffusion
from intrinsic_lora.train.loop import train
from intrinsic_lora.train.methods import SingleStep
from PIL import Image
from typer.testing import CliRunner

TIMESTEP = 500


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """sd/ and xl/: bases; scenes/; photo.png, whose sides are not multiples of 64."""
    folder = tmp_path_factory.mktemp("card")
    tiny_training.write_base(folder / "sd")
    xl_pipeline().save_pretrained(folder / "xl")
    tiny_training.write_scenes(folder / "scenes", 4)
    coarse = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((50, 37)).save(folder / "photo.png")
    return folder


def trained(parts, out, base, **changes):
    changes = {"max_steps": 2, "data__val_count": 0, "timestep": TIMESTEP, "optimizer__lr": 0.1} | changes
    return train(tiny_training.config(parts / base, parts / "scenes", out, **changes))


def typed(card: str, language: str, parts, out, base) -> str:
    """Return the card's only block of that language, with local paths."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", card.partition("## Figures")[0], re.DOTALL)
    assert f"'{base}'" in block or f"--base {base} " in block  # not its path on the training machine
    block = block.replace(f"'{base}'", repr(str(parts / base))).replace(f"--base {base}", f"--base {parts / base}")
    block = block.replace("photo.jpg", str(parts / "photo.png"))
    return block.replace("path/to/this/folder", str(out))


def seen_by_training(parts, out, base):
    """Predict the map of the photo by the trainer's network, at the processing size (1, 3, h, w)."""
    backbone = StableDiffusion.load(parts / base, [INTRINSICS["normals"]])
    backbone.add_lora("normals", 2, 2.0, ("to_q", "to_k", "to_v", "to_out.0"), seed=0)
    backbone.load_lora(out / "intrinsic_lora_normals.safetensors", "normals")
    rgb = read_picture(parts / "photo.png").rgb
    fit = processing_size(*rgb.shape[-2:], 32, 8)
    latents = backbone.encode_picture(pad_to(resize(rgb, fit.resized), *fit.padded))
    return crop_to(SingleStep(backbone, TIMESTEP).maps(latents, "normals"), *fit.resized)


def test_the_card_of_an_sdxl_lora_draws_with_diffusers(parts, tmp_path):
    out = trained(parts, tmp_path / "run", "xl")
    card = (out / "README.md").read_text()
    ran: dict = {}
    exec(typed(card, "python", parts, out, "xl"), ran)
    torch.testing.assert_close(ran["map"], seen_by_training(parts, out, "xl"), atol=2e-3, rtol=0)
    ran["pipe"].unload_lora_weights()
    assert "intrinsic-lora extract photo" not in card and "Pipeline.load_intrinsics" not in card


def test_sdxl_is_refused_with_one_sentence_elsewhere(parts, tmp_path):
    out = trained(parts, tmp_path / "run", "xl", max_steps=1)
    given = ["extract", str(parts / "photo.png"), "--out", str(tmp_path / "maps"), "--loras", str(out), "--base"]
    for base, expected in (
        ("xl", "This base is an SDXL"),
        ("sd", "made for a model with text embeddings of width 80"),
    ):
        result = CliRunner().invoke(app, [*given, str(parts / base)])
        assert result.exit_code == 1 and result.output.startswith("Error: ") and expected in result.output
        assert len(result.output.strip().splitlines()) == 1 and not (tmp_path / "maps").exists()


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_the_card_of_a_stable_diffusion_lora(parts, tmp_path, method):
    out = trained(parts, tmp_path / "run", "sd", method=method)
    card = (out / "README.md").read_text()
    command = typed(card, "", parts, out, "sd").split()
    assert command[0] == "intrinsic-lora"
    command[command.index("maps")] = str(tmp_path / "maps")
    fast = ["--steps", "2"] if method == "multi-step" else []
    result = CliRunner().invoke(app, [*command[1:], "--format", "npz", "--resolution", "32", *fast])
    assert result.exit_code == 0, result.output
    drawn = np.load(tmp_path / "maps" / "photo.npz")["normals"]

    photo = read_picture(parts / "photo.png").rgb
    code = typed(card, "python", parts, out, "sd").replace("pipe(photo)", "pipe(photo, **options)")
    options = {"processing_resolution": 32}
    if method == "multi-step":
        options |= {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    ran = {"photo": photo, "options": options}
    exec(code, ran)
    np.testing.assert_allclose(drawn, ran["maps"].normals[0].permute(1, 2, 0).numpy(), atol=1e-4)
    assert isinstance(ran["pipe"], IntrinsicLoRAPipeline) == (method == "single-step")
