"""Every stage of the embedded model's recipe, run end to end with a handful of pictures and steps."""

import json

import pytest
import torch
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics import INTRINSICS, read_lora
from intrinsic_lora.train.embedded import data, loras, package, report, unet, vae
from intrinsic_lora.train.embedded.common import learning_rate
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The stages up to the report, once for this file."""
    folder = tmp_path_factory.mktemp("recipe") / "run"
    data.main(folder, count=12, workers=1)
    vae.main(folder, steps=2, batch=4)
    unet.main(folder, steps=2, batch=4)
    loras.main(folder, seeds="0", steps=2, batch=4, rank=2, labels=2, workers=1)
    loras.main(folder, "normals", seeds="0", control=True, steps=2, batch=4, rank=2, labels=2, workers=1)
    report.main(folder, count=2)
    return folder


def test_the_recipe_ends_in_a_model_the_pipeline_loads(run, tmp_path):
    out = tmp_path / "model"
    package.main(run, out)
    pipe = IntrinsicLoRAPipeline.from_pretrained(out)
    assert pipe.intrinsics == tuple(INTRINSICS)
    assert pipe.config.default_processing_resolution == data.SIZE
    maps = pipe(torch.rand(1, 3, 40, 56))
    assert maps.normals.shape == (1, 3, 40, 56) and torch.isfinite(maps.depth).all()
    assert all(t.dtype == torch.float16 for t in load_file(out / "unet/diffusion_pytorch_model.safetensors").values())
    lora = read_lora(out / "loras/intrinsic_lora_normals.safetensors", pipe.unet)
    assert lora.metadata["intrinsic_lora.timestep"] == str(
        json.loads(lora.metadata["intrinsic_lora.training"])["timestep"]
    )
    card = (out / "README.md").read_text()
    assert "12 rendered scenes" in card and "LoRA, control (1)" in card


def test_labels_are_never_part_of_what_the_base_sees(run):
    assert sorted(p.name for p in run.glob("*.npy")) == ["rgb.npy"]
    assert len(json.loads((run / "captions.json").read_text())) == 12


def test_training_resumes_where_it_stopped(run):
    before = torch.load(run / "vae.ckpt", weights_only=True)
    vae.main(run, steps=2, batch=4)  # nothing left to do
    assert torch.equal(
        torch.load(run / "vae.ckpt", weights_only=True)["model"]["decoder.conv_out.bias"],
        before["model"]["decoder.conv_out.bias"],
    )
    vae.main(run, steps=3, batch=4)
    after = torch.load(run / "vae.ckpt", weights_only=True)
    assert after["step"] == 3
    assert not torch.equal(after["model"]["decoder.conv_out.bias"], before["model"]["decoder.conv_out.bias"])


def test_the_text_model_can_tell_every_caption_and_prompt_apart(run):
    captions = json.loads((run / "captions.json").read_text())
    tokenizer = unet.build_tokenizer(sorted(set(captions)))
    texts = sorted({*captions, *(i.prompt for i in INTRINSICS.values()), ""})
    tokens = unet.tokenize(tokenizer, texts)
    assert tokens.shape == (len(texts), unet.TOKENS)
    assert len({tuple(row.tolist()) for row in tokens}) == len(texts)
    assert all(
        tokenizer.decode(row, skip_special_tokens=True) == text for row, text in zip(tokens, texts, strict=True)
    )
    assert (unet.tokenize(tokenizer, ["ümlaut €"]) < len(tokenizer)).all()


def test_mirroring_is_its_own_inverse_and_keeps_the_geometry():
    maps = data.labelled("train", 2)
    twice = loras.mirrored(loras.mirrored(maps))
    assert all(torch.equal(twice[name], maps[name]) for name in maps)
    # A wall on the left that faces right becomes a wall on the right that faces left.
    flipped = loras.mirrored(maps)
    assert torch.equal(flipped["normals"][:, 0], -maps["normals"][:, 0].flip(-1))
    assert torch.equal(flipped["normals"][:, 1:], maps["normals"][:, 1:].flip(-1))


def test_training_latents_pair_each_picture_with_its_own_label(run):
    from diffusers import AutoencoderKL
    from intrinsic_lora.intrinsics import encode

    model = AutoencoderKL.from_pretrained(run / "vae").eval()
    scale, maps = model.config.scaling_factor, data.labelled("train", 2)
    images, means, _ = loras.training_latents(model, "albedo", 2)
    assert len(images) == len(means) == 2 * 6 * 2  # mirrorings x channel orders x labels
    with torch.no_grad():
        order, flipped = [2, 1, 0], loras.mirrored(maps)  # the last variant
        picture = model.encode(flipped["rgb"][:, order] * 2 - 1).latent_dist.mode() * scale
        label = model.encode(encode(flipped["albedo"][:, order], "albedo") * 2 - 1).latent_dist.mean * scale
    torch.testing.assert_close(images[-2:], picture)
    torch.testing.assert_close(means[-2:], label)


def test_the_learning_rate_rises_holds_and_ends_at_zero():
    rates = [learning_rate(step, 1000, 1.0, warmup=100) for step in range(1001)]
    assert rates[0] == 0.01 and rates[99] == rates[700] == 1.0 and rates[1000] == 0.0
    assert rates[875] == pytest.approx(0.5)
