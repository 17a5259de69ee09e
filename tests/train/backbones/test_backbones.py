"""Stable Diffusion as a backbone: against the pipeline, against diffusers' own calls, on every family of bases."""

import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.diffusers_pipeline.base import EMBEDDED
from intrinsic_lora.intrinsics import INTRINSICS, Intrinsic, encode, read_lora, write_lora
from intrinsic_lora.tests.support import tiny
from intrinsic_lora.tests.support.closeness import MAP_ERROR, assert_rounded
from intrinsic_lora.tests.support.tiny_xl import xl_pipeline
from intrinsic_lora.train.backbones.adapted import Adapted
from intrinsic_lora.train.backbones.stable_diffusion import StableDiffusion
from intrinsic_lora.train.methods import SingleStep
from safetensors.torch import save_file

DEPTH, NORMALS = INTRINSICS["depth"], INTRINSICS["normals"]
SHADOW = Intrinsic("shadow", "shadow mask", 1, "linear")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of stock pipelines: SD 1.x, SD 2.x with v-prediction, SDXL."""
    root = tmp_path_factory.mktemp("bases")
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**tiny.components(), **none).save_pretrained(root / "sd1")
    second = tiny.components(seed=1, linear_projection=True)
    second["scheduler"] = DDPMScheduler.from_config(second["scheduler"].config, prediction_type="v_prediction")
    StableDiffusionPipeline(**second, **none).save_pretrained(root / "sd2")
    xl_pipeline().save_pretrained(root / "sdxl")
    return root


def pictures(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (size, size), mode="bilinear")


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def randomise(backbone: StableDiffusion, name: str, seed: int = 0) -> None:
    """Fill B, which is zero in a new LoRA and would make many tests pass trivially."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in backbone.lora_parameters(name)[1::2]:
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


def make_batch(backbone: StableDiffusion, intrinsic: Intrinsic, count: int = 2) -> dict[str, torch.Tensor]:
    truth = pictures(count, seed=1)[:, : intrinsic.channels]
    truth = F.normalize(truth - 0.5, dim=1) if intrinsic.name == "normals" else truth
    mean, std = backbone.encode_target(encode(truth, intrinsic))
    name = intrinsic.name
    return {"image": backbone.encode_picture(pictures(count)), f"{name}_mean": mean, f"{name}_std": std, name: truth}


# ---------------------------------------------------------------------- against the pipeline


def test_the_embedded_loras_predict_what_the_pipeline_predicts():
    pipe = IntrinsicLoRAPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    backbone = StableDiffusion.load(None, list(INTRINSICS.values()))
    photos = pictures(2, 64)
    latents = pipe.encode_image(photos)
    maps = pipe(photos, processing_resolution=64)
    for name in INTRINSICS:
        lora = read_lora(EMBEDDED / "loras" / f"intrinsic_lora_{name}.safetensors")
        rank, timestep = len(next(iter(lora.weights.values()))[0]), lora.header.timestep
        backbone.add_lora(name, rank, rank, sorted({module.split(".", 5)[-1] for module in lora.weights}), seed=0)
        backbone.load_lora_weights(name, lora.weights)
        with torch.no_grad():
            wanted = pipe.predict_latents(latents, (name,))[0]
            assert_rounded(backbone.predict(latents, name, timestep), wanted)
        ours = SingleStep(backbone, timestep).maps(backbone.encode_picture(photos), name)
        torch.testing.assert_close(ours, maps[name], atol=MAP_ERROR, rtol=0)


@pytest.mark.parametrize("base", ["sd1", "sd2"])
def test_a_written_lora_draws_the_same_in_the_pipeline(bases, tmp_path, base):
    backbone = StableDiffusion.load(bases / base, [DEPTH, SHADOW])
    pipe = IntrinsicLoRAPipeline.from_pretrained(bases / base)
    pipe.set_progress_bar_config(disable=True)
    photos = pictures(2)
    for intrinsic, targets, timestep in ((DEPTH, tiny.ATTENTION, 999), (SHADOW, ("to_q", "conv1", "proj_in"), 50)):
        name = intrinsic.name
        backbone.add_lora(name, rank=4, alpha=2.0, targets=targets, seed=0)
        randomise(backbone, name)
        path = tmp_path / f"{name}.safetensors"
        write_lora(path, backbone.lora_weights(name), intrinsic=intrinsic, timestep=timestep)
        pipe.load_intrinsics(path)
        output = pipe(photos, intrinsics=name, processing_resolution=32)
        drawn = output.custom[name] if intrinsic is SHADOW else output[name]
        ours = SingleStep(backbone, timestep).maps(backbone.encode_picture(photos), name)
        assert ours.shape == (2, 1, 32, 32)
        torch.testing.assert_close(drawn, ours, atol=MAP_ERROR, rtol=0)
        assert ours.std() > 0.01


# ---------------------------------------------------------------------- against diffusers


def test_latents_are_diffusers_own(bases):
    backbone = StableDiffusion.load(bases / "sd1", [DEPTH])
    vae = AutoencoderKL.from_pretrained(bases / "sd1", subfolder="vae")
    photos = pictures(2)
    with torch.no_grad():
        posterior = vae.encode(photos * 2 - 1).latent_dist
    sample = posterior.sample(torch.Generator().manual_seed(3)) * vae.config.scaling_factor
    torch.testing.assert_close(backbone.encode_picture(photos), posterior.mode() * vae.config.scaling_factor)
    mean, std = backbone.encode_target(photos)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(mean + std * noise, sample)
    assert std.min() > 0
    with torch.no_grad():
        wanted = vae.decode(mean / vae.config.scaling_factor).sample * 0.5 + 0.5
        many = mean.repeat(200, 1, 1, 1)  # more than one chunk
        assert_rounded(backbone.decode(many)[[0, -1]], wanted)
    assert backbone.decode(mean.requires_grad_()).requires_grad
    assert (backbone.latent_channels, backbone.downsample, backbone.timesteps) == (4, 4, 1000)


def test_sdxl_is_conditioned_as_its_own_pipeline_does_it(bases):
    backbone = StableDiffusion.load(bases / "sdxl", [DEPTH])
    backbone.add_lora("depth", rank=4, alpha=4, targets=tiny.ATTENTION, seed=0)
    randomise(backbone, "depth")
    pipe = StableDiffusionXLPipeline.from_pretrained(bases / "sdxl", dtype=torch.float32)
    tiny.fold(pipe.unet, backbone.lora_weights("depth"))
    latents = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text, _, pooled, _ = pipe.encode_prompt("depth map", device="cpu", do_classifier_free_guidance=False)
        ids = pipe._get_add_time_ids((24, 32), (0, 0), (24, 32), torch.float32, text_encoder_projection_dim=16)
        condition = {"text_embeds": pooled.expand(2, -1), "time_ids": ids.expand(2, -1)}
        wanted = pipe.unet(latents, 999, text.expand(2, -1, -1), added_cond_kwargs=condition).sample
        assert_rounded(backbone.predict(latents, "depth", 999), wanted)
        assert not torch.allclose(backbone.predict(latents, "", 999), wanted, atol=1e-3)  # the empty prompt


def xl_checkpoint(pipe: StableDiffusionXLPipeline) -> dict[str, torch.Tensor]:
    """Rename the weights as in SDXL checkpoints: two embedders, the second with OpenCLIP's names."""
    state = {}
    for key, value in tiny.ldm_checkpoint(pipe.components).items():
        key = key.replace("cond_stage_model.", "conditioner.embedders.0.")
        for ours, theirs in (("linear_1", "0.0"), ("linear_2", "0.2")):
            key = key.replace(f"add_embedding.{ours}", f"label_emb.{theirs}")
        state[key] = value
    words = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj", "self_attn": "attn"}
    words |= {"text_model.encoder.layers": "transformer.resblocks", "text_model.final_layer_norm": "ln_final"}
    words |= {"text_model.embeddings.token_embedding": "token_embedding"}
    words |= {"text_model.embeddings.position_embedding.weight": "positional_embedding"}
    weights = pipe.text_encoder_2.state_dict()
    for key, value in weights.items():
        if "q_proj" in key:
            value = torch.cat([weights[key.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            key = key.replace("q_proj.", "in_proj_")
        elif "k_proj" in key or "v_proj" in key:
            continue
        for ours, theirs in words.items():
            key = key.replace(ours, theirs)
        if key == "text_projection.weight":
            key, value = "text_projection", value.T
        state[f"conditioner.embedders.1.model.{key}"] = value.contiguous()
    return state


@pytest.mark.parametrize("base", ["sd1", "sdxl"])
def test_a_single_file_is_the_same_base(bases, tmp_path, base):
    state = xl_checkpoint(xl_pipeline()) if base == "sdxl" else tiny.ldm_checkpoint(tiny.components())
    save_file(state, tmp_path / "base.safetensors")
    file = StableDiffusion.load(tmp_path / "base.safetensors", [DEPTH], base_config=bases / base)
    folder = StableDiffusion.load(bases / base, [DEPTH])
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert_rounded(file.predict(latents, "depth", 999), folder.predict(latents, "depth", 999))
    assert (file.name, folder.name) == ("base", base)


# ---------------------------------------------------------------------- LoRAs


def test_the_papers_parameter_count():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)  # SD 1.5's shape
    backbone = Adapted(unet)
    size = sum(parameter.numel() for parameter in unet.parameters())
    backbone.add_lora("normals", 8, 8, tiny.ATTENTION, seed=0)
    backbone.add_lora("depth", 2, 2, tiny.ATTENTION, seed=0)
    count = {n: sum(p.numel() for p in backbone.lora_parameters(n)) for n in ("normals", "depth")}
    assert count == {"normals": 1_594_368, "depth": 398_592}
    assert len(backbone.lora_parameters("normals")) == 256
    assert size == 859_520_964  # 0.185 %


def test_a_new_lora_is_gaussian_seeded_and_changes_nothing(bases):
    backbone = StableDiffusion.load(bases / "sd1", [DEPTH])
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        before = backbone.predict(latents, "depth", 999)
    state = torch.random.get_rng_state()
    for name, seed in (("depth", 5), ("again", 5), ("other", 6)):
        backbone.add_lora(name, 16, 16, tiny.ATTENTION, seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        assert torch.equal(backbone.predict(latents, "depth", 999), before)
    first, again, other = (backbone.lora_parameters(name) for name in ("depth", "again", "other"))
    down, up = first[::2], first[1::2]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    values = torch.cat([a.flatten() for a in down])
    assert values.std().item() == pytest.approx(1 / 16, rel=0.02)  # N(0, 1/r): 1/r is peft's deviation
    assert all(b.abs().max() == 0 for b in up)


def test_one_lora_is_on_and_trains_and_the_others_do_not(bases):
    backbone = StableDiffusion.load(bases / "sd1", [DEPTH, NORMALS])
    plain = UNet2DConditionModel.from_pretrained(bases / "sd1", subfolder="unet")
    for name, targets in (("depth", tiny.ATTENTION), ("normals", ("to_q", "ff.net.2"))):  # not the same layers
        backbone.add_lora(name, 4, 4, targets, seed=0)
        randomise(backbone, name)
    latents = torch.randn(2, 4, 8, 8)
    prompt = backbone.prompts["depth"].expand(2, -1, -1)
    for active in ("depth", "normals", "depth", None):
        backbone.activate(active)
        alone = UNet2DConditionModel.from_pretrained(bases / "sd1", subfolder="unet")
        if active is not None:
            tiny.fold(alone, backbone.lora_weights(active))
        with torch.no_grad():
            wanted = alone(latents, 999, prompt).sample
            assert_rounded(backbone.predict(latents, "depth", 999), wanted)
        trainable = {id(p) for p in backbone.model.parameters() if p.requires_grad}
        assert trainable == ({id(p) for p in backbone.lora_parameters(active)} if active else set())

    before = backbone.lora_weights("normals")
    optimizer = torch.optim.AdamW([p for name in ("depth", "normals") for p in backbone.lora_parameters(name)], lr=0.1)
    SingleStep(backbone, 999).loss(make_batch(backbone, DEPTH), "depth", generators(0, 1)).backward()
    optimizer.step()
    for module, (a, b, _) in backbone.lora_weights("normals").items():
        assert torch.equal(a, before[module][0])
        assert torch.equal(b, before[module][1])
    base = {k.replace(".base_layer", ""): v for k, v in backbone.unet.state_dict().items() if ".lora_" not in k}
    assert all(torch.equal(value, base[key]) for key, value in plain.state_dict().items())


def test_weights_return_bit_for_bit(bases, tmp_path):
    backbone = StableDiffusion.load(bases / "sd1", [DEPTH])
    for name, alpha in (("depth", 2.0), ("copy", 4.0)):
        backbone.add_lora(name, 4, alpha, (*tiny.ATTENTION, "conv1"), seed=len(name))
    randomise(backbone, "depth")
    write_lora(tmp_path / "x.safetensors", backbone.lora_weights("depth"), intrinsic="depth")
    latents = torch.randn(1, 4, 8, 8)
    backbone.activate("depth")
    with torch.no_grad():
        wanted = backbone.predict(latents, "depth", 999)
    for weights in (backbone.lora_weights("depth"), read_lora(tmp_path / "x.safetensors", backbone.unet).weights):
        backbone.load_lora_weights("copy", weights)
        backbone.activate("copy")
        with torch.no_grad():
            assert torch.equal(backbone.predict(latents, "depth", 999), wanted)
        for module, (a, b, alpha) in backbone.lora_weights("copy").items():
            assert alpha == 2.0
            assert torch.equal(a, weights[module][0])
            assert torch.equal(b, weights[module][1])
    backbone.add_lora("few", 4, 4, ["to_q"], seed=0)
    with pytest.raises(ValueError, match="targets it was saved with"):
        backbone.load_lora_weights("few", weights)
    backbone.add_lora("thin", 2, 2, (*tiny.ATTENTION, "conv1"), seed=0)
    with pytest.raises(ValueError, match=r"rank 4 .* rank 2"):
        backbone.load_lora_weights("thin", weights)


def test_targets_that_are_not_there(bases):
    backbone = StableDiffusion.load(bases / "sd1", [DEPTH])
    for targets, message in (
        (["to_q", "to_quack"], r"no layer called to_quack; its layers are .*ff\.net\.2.*to_k, to_out\.0, to_q, to_v"),
        (["o_q"], "no layer called o_q"),
        ([], "no LoRA targets"),
    ):
        with pytest.raises(ValueError, match=message):
            backbone.add_lora("depth", 4, 4, targets, seed=0)
    backbone.add_lora("depth", 4, 4, ["to_q"], seed=0)
    with pytest.raises(ValueError, match="already"):
        backbone.add_lora("depth", 4, 4, ["to_q"], seed=0)
    with pytest.raises(KeyError, match="normals"):
        backbone.activate("normals")


@pytest.mark.bfloat16
def test_a_half_precision_base_has_loras_in_float32(bases):
    backbone = StableDiffusion.load(bases / "sd1", [DEPTH], dtype=torch.bfloat16)
    backbone.add_lora("depth", 4, 4, tiny.ATTENTION, seed=0)
    assert {p.dtype for p in backbone.lora_parameters("depth")} == {torch.float32}
    assert {p.dtype for p in backbone.vae.parameters()} == {torch.float32}
    loss = SingleStep(backbone, 999).loss(make_batch(backbone, DEPTH), "depth", generators(0, 1))
    loss.backward()
    assert loss.dtype == torch.float32
    assert backbone.lora_parameters("depth")[1].grad.abs().max() > 0


def test_the_fingerprint_is_of_the_base_alone(bases):
    plain, adapted, other = (StableDiffusion.load(bases / base, [DEPTH]) for base in ("sd1", "sd1", "sd2"))
    adapted.add_lora("depth", 4, 4, tiny.ATTENTION, seed=0)
    assert plain.fingerprint == adapted.fingerprint != other.fingerprint


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("base", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("loss", ["latent", "pixel", "latent+pixel"])
def test_steps_reduce_the_loss(bases, base, loss):
    backbone = StableDiffusion.load(bases / base, [NORMALS])
    backbone.add_lora("normals", 4, 4, tiny.ATTENTION, seed=0)
    batch, method = make_batch(backbone, NORMALS), SingleStep(backbone, 999, loss)
    parameters = backbone.lora_parameters("normals")
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(4):
        value = method.loss(batch, "normals", generators(0, 1))  # the same noise each time
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.99 * losses[0]
    assert all(parameter.grad is None for parameter in backbone.vae.parameters())


def test_the_latent_loss_written_out(bases):
    backbone = StableDiffusion.load(bases / "sd1", [DEPTH])
    backbone.add_lora("depth", 4, 4, tiny.ATTENTION, seed=0)
    batch, method = make_batch(backbone, DEPTH), SingleStep(backbone, 999)
    noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators(7, 8)])
    with torch.no_grad():
        drawn = backbone.predict(batch["image"], "depth", 999)
        wanted = F.mse_loss(drawn, batch["depth_mean"] + batch["depth_std"] * noise)
        torch.testing.assert_close(method.loss(batch, "depth", generators(7, 8)), wanted)


@pytest.mark.parametrize("loss", ["latent", "latent+pixel"])
def test_a_batch_in_pieces_has_the_mean_of_their_losses(bases, loss):
    backbone = StableDiffusion.load(bases / "sd1", [DEPTH])
    backbone.add_lora("depth", 4, 4, tiny.ATTENTION, seed=0)
    method = SingleStep(backbone, 999, loss, pixel_weight=0.5)
    batch = make_batch(backbone, DEPTH, 3)
    batch["mask"] = torch.ones(3, 1, 32, 32)
    batch["mask"][0, :, :20] = 0
    with torch.no_grad():
        pieces = [
            method.loss({k: v[i : i + 1] for k, v in batch.items()}, "depth", generators(i)).item() for i in range(3)
        ]
        assert method.loss(batch, "depth", generators(0, 1, 2)).item() == pytest.approx(sum(pieces) / 3, rel=1e-5)


def test_checkpointing_changes_no_gradient(bases):
    gradients = []
    for checkpointing in (False, True):
        backbone = StableDiffusion.load(bases / "sd1", [DEPTH])
        backbone.add_lora("depth", 4, 4, tiny.ATTENTION, seed=0)
        randomise(backbone, "depth")
        if checkpointing:
            backbone.enable_gradient_checkpointing()
        method = SingleStep(backbone, 999, "latent+pixel")
        method.loss(make_batch(backbone, DEPTH), "depth", generators(0, 1)).backward()
        gradients.append([p.grad for p in backbone.lora_parameters("depth")])
    assert backbone.unet.is_gradient_checkpointing
    torch.testing.assert_close(gradients[0], gradients[1])


def test_wrong_settings(bases):
    backbone = StableDiffusion.load(bases / "sd1", [DEPTH])
    with pytest.raises(ValueError, match=r"latent, pixel, latent\+pixel"):
        SingleStep(backbone, 999, "perceptual")
    with pytest.raises(ValueError, match="0 to 999"):
        SingleStep(backbone, 1000)
    with pytest.raises(ValueError, match=r"30 x 32.*multiples of 4"):
        backbone.encode_picture(torch.rand(1, 3, 32, 30))


# ---------------------------------------------------------------------- what is refused


def index(folder, **parts):
    folder.mkdir()
    entries = {name: value.split(".") if value else [None, None] for name, value in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "SomePipeline", **entries}))
    return folder


def test_bases_of_other_kinds(tmp_path):
    sd3 = index(tmp_path / "sd3", transformer="diffusers.SD3Transformer2DModel", vae="diffusers.AutoencoderKL")
    video = index(tmp_path / "video", unet="diffusers.UNet3DConditionModel", vae="diffusers.AutoencoderKL")
    refiner = index(
        tmp_path / "refiner",
        unet="diffusers.UNet2DConditionModel",
        vae="diffusers.AutoencoderKL",
        text_encoder="",
        text_encoder_2="transformers.CLIPTextModelWithProjection",
    )
    flux, svd = tmp_path / "flux.safetensors", tmp_path / "svd.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2)}, flux)
    sd = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({sd: torch.zeros(2), "model.diffusion_model.input_blocks.1.0.time_stack.x": torch.zeros(2)}, svd)
    for base in (sd3, video, refiner, flux, svd):
        with pytest.raises(ValueError, match=r"is not a Stable Diffusion 1.x, 2.x or SDXL base"):
            StableDiffusion.load(base, [DEPTH])


def test_bases_that_are_not_there(tmp_path):
    xl = tmp_path / "xl.safetensors"
    sd, text = "model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.ln_final.weight"
    save_file({sd: torch.zeros(2), text: torch.zeros(2)}, xl)
    with pytest.raises(ValueError, match="base_config"):
        StableDiffusion.load(xl, [DEPTH])
    for base in (tmp_path / "no.safetensors", tmp_path / "nowhere", "nobody/nothing"):
        with pytest.raises(FileNotFoundError, match="check the"):
            StableDiffusion.load(base, [DEPTH])


def test_inpainting_bases(bases, tmp_path):
    parts = xl_pipeline().components
    parts["unet"] = UNet2DConditionModel.from_config(dict(parts["unet"].config), in_channels=9)
    StableDiffusionXLPipeline(**parts, add_watermarker=False).save_pretrained(tmp_path / "xl")
    with pytest.raises(ValueError, match="text-to-image"):
        StableDiffusion.load(tmp_path / "xl", [DEPTH])
