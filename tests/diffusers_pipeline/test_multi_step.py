"""The multi-step pipeline: against an oracle velocity, and the published sampling written out plainly."""

import copy
import doctest
import json
from pathlib import Path

import intrinsic_lora
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from intrinsic_lora import IntrinsicLoRAMultiStepPipeline, IntrinsicLoRAPipeline
from intrinsic_lora.diffusers_pipeline.aug_unet import (
    IMAGE_CHANNELS,
    ImageChannels,
    read_image_channels,
    zero_snr_noise,
    zero_snr_solver,
)
from intrinsic_lora.intrinsics import INTRINSICS
from intrinsic_lora.intrinsics.codec import decode
from intrinsic_lora.intrinsics.lora import LoRA, write_lora
from intrinsic_lora.tests.support import tiny, tiny_training
from intrinsic_lora.train.backbones.stable_diffusion import StableDiffusion
from intrinsic_lora.train.loop import train
from intrinsic_lora.train.methods.multi_step import MultiStep
from intrinsic_lora.train.recipes.embedded.studies import picture_scores
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

NAMES = tuple(INTRINSICS)
LOADER = Path(intrinsic_lora.__file__).parent / "diffusers_pipeline" / "multi_step_pipeline.py"
PROMPTS = {"normals": "surface normal", "depth": "depth map", "albedo": "albedo", "shading": "shading"}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def components(seed: int = 0) -> dict:
    """SD 2.1 in small: linear projections, OpenCLIP's text tower (gelu, padded with token 0), v-prediction by DDIM."""
    parts = tiny.components(seed, linear_projection=True)
    config = parts["text_encoder"].config.to_dict() | {"hidden_act": "gelu", "pad_token_id": 0, "projection_dim": 16}
    parts["text_encoder"] = CLIPTextModel(CLIPTextConfig(**config)).eval()
    parts["tokenizer"].pad_token = "a"  # token 0, as SD 2.1's "!" is
    parts["scheduler"] = DDIMScheduler(
        **BETAS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return parts


def channels(seed: int = 0) -> torch.Tensor:
    """Image channels for the tiny UNet (32, 4, 3, 3)."""
    return 0.1 * torch.randn(32, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def make_pipe(**kwargs) -> IntrinsicLoRAMultiStepPipeline:
    pipe = IntrinsicLoRAMultiStepPipeline(**components(**kwargs), default_processing_resolution=32)
    pipe.set_progress_bar_config(disable=True)
    loras = {n: LoRA(tiny.random_lora(pipe.unet, 2 + i, 1.5 + i, seed=i)) for i, n in enumerate(NAMES)}
    pipe.load_intrinsics(loras, image_channels=channels())
    return pipe


@pytest.fixture(scope="module")
def pipe() -> IntrinsicLoRAMultiStepPipeline:
    return make_pipe()


def photo(height: int, width: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    noise = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear").clamp(0, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def zero_snr_alphas() -> np.ndarray:
    """Cumulative alphas of SD's schedule under algorithm 1 of arXiv 2305.08891, in float64."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


# ---------------------------------------------------------------------- schedule and sampler


def test_schedules_follow_the_formula():
    base, wanted = components()["scheduler"], zero_snr_alphas()
    noise, solver = zero_snr_noise(base), zero_snr_solver(base)
    assert noise.alphas_cumprod[-1] == 0 and 0 < solver.alphas_cumprod[-1] < 1e-7
    np.testing.assert_allclose(noise.alphas_cumprod.numpy(), wanted, atol=2e-5)
    np.testing.assert_allclose(solver.alphas_cumprod.numpy(), wanted, atol=2e-5)
    assert isinstance(solver, DPMSolverMultistepScheduler)
    assert solver.config.prediction_type == "v_prediction" and solver.config.timestep_spacing == "trailing"
    solver.set_timesteps(25)
    assert solver.timesteps.tolist() == [1000 - 40 * i - 1 for i in range(25)]


def test_a_scheduler_that_has_zero_snr_is_kept():
    ours = DDIMScheduler(
        **BETAS, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    assert zero_snr_solver(ours) is ours
    assert zero_snr_solver(zero_snr_solver(components()["scheduler"])).config.rescale_betas_zero_snr


class Oracle(nn.Module):
    """Knows that the clean latent is tanh of the photo's unscaled one, mirrored, and gives its exact velocity."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(4, 32, 3, padding=1)
        self.config = components()["unet"].config
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.alphas = zero_snr_alphas()
        self.seen: list[torch.Tensor] = []

    def forward(self, rows, t, encoder_hidden_states, return_dict):
        assert self.conv_in.in_channels == 8 and rows.shape[1] == 8
        x, image = rows.chunk(2, dim=1)
        self.seen.append(image)
        clean = image.tanh().flip(-1)
        a, s = self.alphas[int(t)] ** 0.5, (1 - self.alphas[int(t)]) ** 0.5
        return (a * (x - a * clean) / s - s * clean,)


@pytest.mark.parametrize("steps", [1, 2, 25, 50])
def test_an_oracle_velocity_gives_the_clean_latent(steps):
    pipe = IntrinsicLoRAMultiStepPipeline(**(components() | {"unet": Oracle()}), default_processing_resolution=32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_intrinsics({"normals": LoRA({}), "depth": LoRA({})}, image_channels="zeros")
    rgb = photo(32, 40, count=3)
    latents = pipe(rgb, num_inference_steps=steps, batch_size=2, output_latent=True, generator=seeded()).latents
    unscaled = pipe.vae.encode(rgb * 2 - 1).latent_dist.mode()
    tolerance = 1e-5 if steps > 1 else 2e-3  # the solver takes sqrt(2^-24), not 0, for the last signal level
    for name in ("normals", "depth"):
        torch.testing.assert_close(latents[name], unscaled.tanh().flip(-1), atol=tolerance, rtol=0)
    assert len(pipe.unet.seen) == 2 * steps and len(pipe.unet.seen[0]) == 2 * 2 * 2  # one batch per step
    torch.testing.assert_close(pipe.unet.seen[0], unscaled[:2].repeat(4, 1, 1, 1), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- against the published sampling


def published(pipe, rgb, name, noise, scale=3.0, rescale=0.7, steps=25) -> torch.Tensor:
    """Sample one intrinsic as the authors do: three forward passes per step, on a widened UNet with folded weights."""
    config = {k: v for k, v in pipe.unet.config.items() if not k.startswith("_")}
    unet = UNet2DConditionModel(**(config | {"in_channels": 8})).eval()
    state = copy.deepcopy(pipe.unet.state_dict())
    state["conv_in.weight"] = torch.cat([state["conv_in.weight"], channels()], dim=1)
    unet.load_state_dict(state)
    for layer, (a, b, alpha) in pipe.loras[name].weights.items():
        weight = unet.get_submodule(layer).weight.data
        weight += (alpha / len(a) * b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
    vae, words = pipe.vae, pipe.tokenizer
    scheduler = DPMSolverMultistepScheduler(
        **BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)

    def embed(text):
        ids = words(text, padding="max_length", max_length=words.model_max_length, return_tensors="pt").input_ids
        return pipe.text_encoder(ids)[0]

    with torch.no_grad():
        image = vae.encode(rgb * 2 - 1).latent_dist.mode()
        x = noise
        for t in scheduler.timesteps:
            text = unet(torch.cat([x, image], dim=1), t, embed(PROMPTS[name])).sample
            image_only = unet(torch.cat([x, image], dim=1), t, embed("")).sample
            none = unet(torch.cat([x, torch.zeros_like(image)], dim=1), t, embed("")).sample
            v = none + scale * (text - image_only) + 1.0 * (image_only - none)
            v = rescale * v * (text.std() / v.std()) + (1 - rescale) * v
            x = scheduler.step(v, t, x).prev_sample
        return x


@pytest.mark.parametrize(("name", "steps"), [("normals", None), ("depth", 3), ("albedo", 3), ("shading", 3)])
def test_equals_the_published_sampling(pipe, name, steps):
    rgb = photo(32, 40)
    options = {"num_inference_steps": steps} if steps else {}  # by default, 25
    output = pipe(rgb, intrinsics=None if steps else name, generator=seeded(3), output_latent=True, **options)
    noise = torch.randn(1, 4, 8, 10, generator=seeded(3))
    wanted = published(pipe, rgb, name, noise, steps=steps or 25)
    torch.testing.assert_close(output.latents[name], wanted, atol=2e-4, rtol=1e-3)
    with torch.no_grad():
        picture = pipe.vae.decode(wanted / pipe.vae.config.scaling_factor).sample * 0.5 + 0.5
    torch.testing.assert_close(output[name], decode(picture, name), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(("scale", "rescale", "steps"), [(1.0, 0.0, 4), (5.0, 0.0, 7), (5.0, 1.0, 10)])
def test_guidance_rescale_and_steps(pipe, scale, rescale, steps):
    rgb, options = photo(32, 32), {"guidance_scale": scale, "guidance_rescale": rescale, "num_inference_steps": steps}
    got = pipe(rgb, intrinsics="albedo", generator=seeded(), output_latent=True, **options).latents["albedo"]
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    wanted = published(pipe, rgb, "albedo", noise, scale, rescale, steps)
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-3)
    other = published(pipe, rgb, "albedo", noise, 2.0, 0.5, steps)
    assert (got - other).abs().max() > 0.01  # the settings matter at all


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_alone_equals_in_batch(pipe, batch_size):
    batch = photo(32, 40, count=3)
    together = pipe(batch, batch_size=batch_size, num_inference_steps=3, generator=seeded())
    generator = seeded()
    for i in range(3):  # one draw per photo, in order, whatever the batch
        alone = pipe(batch[i], num_inference_steps=3, generator=generator)
        for name in NAMES:
            torch.testing.assert_close(together[name][i : i + 1], alone[name], atol=2e-3, rtol=1e-3)
    subset = pipe(
        batch, intrinsics=["shading", "depth"], batch_size=batch_size, num_inference_steps=3, generator=seeded()
    )
    torch.testing.assert_close(subset.depth, together.depth, atol=2e-3, rtol=1e-3)
    assert subset.normals is None and subset.confidence.shape == (3, 1, 32, 40)


def test_the_call_is_the_single_step_ones(pipe):
    maps = pipe(photo(50, 70), processing_resolution=16, num_inference_steps=2, output_type="np")
    assert maps.normals.shape == (1, 50, 70, 3) and maps.depth.shape == (1, 50, 70, 1)
    maps = pipe([photo(20, 30)[0], photo(30, 20)[0]], processing_resolution=16, num_inference_steps=2)
    assert [x.shape[-2:] for x in maps.albedo] == [(20, 30), (30, 20)]
    with pytest.raises(ValueError, match="num_inference_steps"):
        pipe(photo(16, 16), num_inference_steps=0)
    with pytest.raises(TypeError, match="ensemble"):
        pipe(photo(16, 16), ensemble_size=3)


def test_the_base_is_unchanged_also_after_an_error(pipe, monkeypatch):
    before = copy.deepcopy(pipe.unet.state_dict())
    conv_in = pipe.unet.conv_in
    pipe(photo(16, 16), num_inference_steps=1)
    assert pipe.unet.conv_in is conv_in
    monkeypatch.setattr(pipe.scheduler, "step", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe(photo(16, 16), num_inference_steps=1)
    assert pipe.unet.conv_in is conv_in
    after = pipe.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_sequential_offload(pipe):
    rgb = photo(32, 32)
    wanted = pipe(rgb, num_inference_steps=2, generator=seeded()).normals
    other = make_pipe()
    cpu_offload(other.unet, torch.device("cpu"))
    assert next(other.unet.parameters()).device.type == "meta"
    torch.testing.assert_close(
        other(rgb, num_inference_steps=2, generator=seeded()).normals, wanted, atol=1e-3, rtol=0
    )


def test_a_lora_on_the_widened_convolution(pipe, tmp_path):
    """It lets image channels that InstructPix2Pix did not train learn, and survives a file."""
    generator = seeded(5)
    a, b = (torch.randn(shape, generator=generator) * 0.2 for shape in [(3, 8, 3, 3), (32, 3, 1, 1)])
    weights = tiny.random_lora(pipe.unet, seed=0) | {"conv_in": (a, b, 6.0)}
    write_lora(tmp_path / "normals.safetensors", weights, intrinsic="normals", method="multi-step")
    other = make_pipe()
    other.load_intrinsics(tmp_path, image_channels=channels())
    got = other(photo(32, 32), num_inference_steps=3, generator=seeded(), output_latent=True).latents
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    for name in NAMES:  # those without a LoRA there are not disturbed by the one with it
        wanted = published(other, photo(32, 32), name, noise, steps=3)
        torch.testing.assert_close(got[name], wanted, atol=2e-4, rtol=1e-3)


# ---------------------------------------------------------------------- image channels


def test_image_channels_from_everywhere(tmp_path):
    parts = components()
    config = {k: v for k, v in parts["unet"].config.items() if not k.startswith("_")}
    torch.manual_seed(1)
    pix2pix = UNet2DConditionModel(**(config | {"in_channels": 8}))
    wanted, conv_in = pix2pix.conv_in.weight[:, 4:].detach(), parts["unet"].conv_in
    pix2pix.save_pretrained(tmp_path / "model" / "unet")
    pix2pix.save_pretrained(tmp_path / "half", variant="fp16")
    save_file(
        {"model.diffusion_model.input_blocks.0.0.weight": pix2pix.conv_in.weight.detach()},
        tmp_path / "ldm.safetensors",
    )
    ImageChannels(wanted, "somewhere").write(tmp_path)
    places = [tmp_path / "model", tmp_path / "model" / "unet", tmp_path / "half", str(tmp_path / "ldm.safetensors")]
    for source in [wanted, pix2pix, pix2pix.conv_in.weight, *places, tmp_path / IMAGE_CHANNELS]:
        assert torch.equal(read_image_channels(source, conv_in).weight, wanted)
    assert read_image_channels(tmp_path / IMAGE_CHANNELS, conv_in).origin == "somewhere"
    assert read_image_channels(tmp_path / "model", conv_in).origin == "model"
    assert not read_image_channels("zeros", conv_in).weight.any()
    copied = read_image_channels("copy", conv_in, 0.5).weight
    latents = torch.randn(1, 4, 6, 6)
    convolve = torch.nn.functional.conv2d
    torch.testing.assert_close(
        convolve(latents / 0.5, copied), convolve(latents, conv_in.weight)
    )  # unscaled as scaled


def test_half_precision_copies_share_the_hash():
    kernel = channels()
    assert ImageChannels(kernel, "").hash == ImageChannels(kernel.half().float(), "").hash
    assert ImageChannels(kernel, "").hash != ImageChannels(channels(1), "").hash


def test_wrong_image_channels_are_refused(tmp_path):
    conv_in = components()["unet"].conv_in
    with pytest.raises(ValueError, match=r"their weight is \(32, 3, 3, 3\), not \(32, 4, 3, 3\)"):
        read_image_channels(torch.zeros(32, 3, 3, 3), conv_in)
    with pytest.raises(ValueError, match=r"\(32, 4, 3, 3\), not \(32, 8, 3, 3\)"):
        read_image_channels(components()["unet"], conv_in)  # of four channels: not an editing model
    with pytest.raises(FileNotFoundError, match="check the path"):
        read_image_channels(tmp_path / "nowhere", conv_in)
    with pytest.raises(FileNotFoundError, match="No image channels"):
        read_image_channels(tmp_path, conv_in)
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match="damaged"):
        read_image_channels(tmp_path, conv_in)


# ---------------------------------------------------------------------- loading and saving


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """sd/ a stock SD 2.1 folder, loras/ as the trainer writes them: with the image channels beside."""
    folder = tmp_path_factory.mktemp("base")
    parts = components()
    stock = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    stock.save_pretrained(folder / "sd")
    (folder / "loras").mkdir()
    image_channels = ImageChannels(channels(), "a test")
    for i, name in enumerate(NAMES):
        weights = tiny.random_lora(parts["unet"], rank=2 + i, seed=i)
        path = folder / "loras" / f"intrinsic_lora_{name}.safetensors"
        write_lora(path, weights, intrinsic=name, method="multi-step", extra=image_channels.header)
    image_channels.write(folder / "loras")
    return folder


def predict(pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    options = {"processing_resolution": 32, "num_inference_steps": 2, "output_latent": True}
    latents = pipe(photo(32, 40), generator=seeded(), **options).latents
    return torch.stack([latents[name] for name in NAMES])


@pytest.fixture(scope="module")
def wanted(folder) -> torch.Tensor:
    pipe = IntrinsicLoRAMultiStepPipeline.from_pretrained(folder / "sd")
    pipe.load_intrinsics(folder / "loras")
    return predict(pipe)


def test_custom_pipeline_by_path(folder, wanted):
    pipe = DiffusionPipeline.from_pretrained(folder / "sd", custom_pipeline=str(LOADER), trust_remote_code=True)
    assert type(pipe) is IntrinsicLoRAMultiStepPipeline and pipe.intrinsics == ()
    pipe.load_intrinsics(folder / "loras")
    assert torch.equal(predict(pipe), wanted)


def test_the_example_in_the_docstring_runs(folder, tmp_path, monkeypatch):
    (tmp_path / "sd21").symlink_to(folder / "sd")
    (tmp_path / "multi_step_loras").symlink_to(folder / "loras")
    monkeypatch.chdir(tmp_path)
    text = IntrinsicLoRAMultiStepPipeline.__call__.__doc__.replace("=768", "=32")  # the tiny model's size
    test = doctest.DocTestParser().get_doctest(text, {}, "example", None, 0)
    failures, attempted = doctest.DocTestRunner().run(test)
    assert (failures, attempted) == (0, 9)


@pytest.mark.parametrize("door", ["diffusers", "ours"])
def test_save_and_reload(folder, wanted, tmp_path, door):
    pipe = IntrinsicLoRAMultiStepPipeline.from_pretrained(folder / "sd")
    pipe.load_intrinsics(folder / "loras")
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["multi_step_pipeline", "IntrinsicLoRAMultiStepPipeline"]
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
    assert (tmp_path / LOADER.name).read_bytes() == LOADER.read_bytes()
    if door == "diffusers":
        again = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    else:
        again = IntrinsicLoRAMultiStepPipeline.from_pretrained(tmp_path)
    assert type(again) is IntrinsicLoRAMultiStepPipeline
    assert again.intrinsics == NAMES and again.unet.config.in_channels == 4
    assert torch.equal(predict(again), wanted)
    assert again.loras["depth"].header.entries["intrinsic_lora.image_channels_origin"] == "a test"
    again.save_pretrained(tmp_path)  # over itself
    assert torch.equal(predict(IntrinsicLoRAMultiStepPipeline.from_pretrained(tmp_path)), wanted)
    again.unload_intrinsics()
    again.save_pretrained(tmp_path)
    assert IntrinsicLoRAMultiStepPipeline.from_pretrained(tmp_path).intrinsics == ()
    # The folder is a base like any other: the single-step pipeline finds no LoRA of its own kind in it.
    assert IntrinsicLoRAPipeline.from_pretrained(tmp_path).intrinsics == ()


def test_what_does_not_belong_is_refused_and_changes_nothing(folder, wanted, tmp_path):
    pipe = IntrinsicLoRAMultiStepPipeline.from_pretrained(folder / "sd")
    depth = folder / "loras" / "intrinsic_lora_depth.safetensors"
    (tmp_path / "intrinsic_lora_depth.safetensors").write_bytes(depth.read_bytes())
    with pytest.raises(ValueError, match=r"image_channels.safetensors was found .*instruct-pix2pix"):
        pipe.load_intrinsics(tmp_path)
    assert pipe.intrinsics == ()
    pipe.load_intrinsics(folder / "loras")
    pipe.load_intrinsics(tmp_path)  # those in use serve
    assert torch.equal(predict(pipe), wanted)
    with pytest.raises(ValueError, match="other image channels"):
        pipe.load_intrinsics(tmp_path, image_channels=channels(1))
    tiny.write_loras(tmp_path / "single", pipe.unet, ("normals",))
    with pytest.raises(ValueError, match="single-step prediction; this is multi-step"):
        pipe.load_intrinsics(tmp_path / "single")
    with pytest.raises(ValueError, match="multi-step prediction; this is single-step"):
        IntrinsicLoRAPipeline.from_pretrained(folder / "sd").load_intrinsics(folder / "loras")
    assert torch.equal(predict(pipe), wanted)
    with pytest.raises(ValueError, match="AutoencoderTiny"):
        IntrinsicLoRAMultiStepPipeline(**(components() | {"vae": AutoencoderTiny()}))


# ---------------------------------------------------------------------- training


@pytest.fixture
def backbone(folder) -> StableDiffusion:
    return StableDiffusion.load(folder / "sd", [INTRINSICS["normals"], INTRINSICS["depth"]])


def batch_of(backbone: StableDiffusion, name: str, count: int = 4) -> dict[str, torch.Tensor]:
    mean, std = backbone.encode_target(photo(32, 32, count, seed=9))
    return {"image": backbone.encode_picture(photo(32, 32, count)), f"{name}_mean": mean, f"{name}_std": std}


def test_the_training_loss_is_the_published_one(backbone):
    method = MultiStep(backbone, image_channels=channels())
    for name in ("normals", "depth"):
        backbone.add_lora(name, 4, 4, tiny.ATTENTION, seed=0)
    batch, alphas, total = batch_of(backbone, "depth"), zero_snr_alphas(), 0.0
    for i in range(4):
        g = seeded(i)
        t = torch.randint(1000, (), generator=g)
        noise, spread = (torch.randn(1, 4, 8, 8, generator=g) for _ in range(2))
        clean = batch["depth_mean"][i : i + 1] + batch["depth_std"][i : i + 1] * spread
        a, s = alphas[t] ** 0.5, (1 - alphas[t]) ** 0.5
        unscaled = batch["image"][i : i + 1] / backbone.vae.config.scaling_factor
        with torch.no_grad():
            seen = torch.cat([a * clean + s * noise, unscaled], dim=1).float()
            v = backbone.unet(seen, t, backbone.prompts["depth"]).sample
        total += ((v - (a * noise - s * clean)) ** 2).mean().item() / 4
    loss = method.loss(batch, "depth", [seeded(i) for i in range(4)])
    assert backbone.active == "depth"
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_the_last_timestep_shows_nothing_of_the_answer(backbone, monkeypatch):
    method = MultiStep(backbone, image_channels=channels())
    backbone.add_lora("depth", 4, 4, tiny.ATTENTION, seed=0)
    seen = []
    predict = backbone.predict
    monkeypatch.setattr(backbone, "predict", lambda rows, name, t: seen.append((rows, t)) or predict(rows, name, t))
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.tensor(999))
    batch = batch_of(backbone, "depth")
    method.loss(batch, "depth", [seeded(i) for i in range(4)])
    rows, t = seen[0]
    assert t.tolist() == [999] * 4
    noise = torch.stack([torch.randn(4, 8, 8, generator=seeded(i)) for i in range(4)])
    torch.testing.assert_close(rows[:, :4], noise)


@pytest.mark.parametrize("where", ["memory", "zeros"])
def test_train_save_load_sample(backbone, folder, tmp_path, where):
    """A few steps lower the loss; the written files give the pipeline exactly what the trainer's validation saw."""
    method = MultiStep(backbone, image_channels=channels() if where == "memory" else where, steps=3)
    targets = tiny.ATTENTION if where == "memory" else (*tiny.ATTENTION, "conv_in")
    backbone.add_lora("normals", 4, 4, targets, seed=0)
    base = {k: v.clone() for k, v in backbone.unet.state_dict().items() if "lora" not in k}
    batch = batch_of(backbone, "normals")
    optimizer = torch.optim.AdamW(backbone.lora_parameters("normals"), lr=1e-2)

    def score() -> float:
        with torch.no_grad():
            runs = [method.loss(batch, "normals", [seeded(100 * j + i) for i in range(4)]) for j in range(8)]
        return sum(x.item() for x in runs) / len(runs)

    before = score()
    for step in range(12):
        optimizer.zero_grad()
        method.loss(batch, "normals", [seeded(1000 + 4 * step + i) for i in range(4)]).backward()
        optimizer.step()
    assert score() < 0.9 * before
    after = backbone.unet.state_dict()
    assert all(torch.equal(after[k], v) for k, v in base.items())  # the image channels too

    weights = backbone.lora_weights("normals")
    path = tmp_path / "intrinsic_lora_normals.safetensors"
    write_lora(path, weights, intrinsic="normals", method="multi-step", extra=method.image_channels.header)
    method.image_channels.write(tmp_path)
    pipe = IntrinsicLoRAMultiStepPipeline.from_pretrained(folder / "sd")
    pipe.set_progress_bar_config(disable=True)
    pipe.load_intrinsics(tmp_path)
    rgb = photo(32, 32)
    output = pipe(rgb, processing_resolution=32, num_inference_steps=3, generator=seeded(0), output_latent=True)
    latents = method.latents(backbone.encode_picture(rgb), "normals")
    torch.testing.assert_close(output.latents["normals"], latents, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(output.normals, method.maps(backbone.encode_picture(rgb), "normals"), atol=5e-3, rtol=0)
    assert pipe.loras["normals"].header.entries["intrinsic_lora.image_channels_origin"] == where


def test_a_network_that_cannot_see_is_refused(backbone):
    method = MultiStep(backbone, image_channels="zeros")
    backbone.add_lora("normals", 4, 4, tiny.ATTENTION, seed=0)
    with pytest.raises(ValueError, match="never sees the photo; put conv_in"):
        method.loss(batch_of(backbone, "normals"), "normals", [seeded()] * 4)


def test_the_training_command_makes_what_the_pipeline_loads(tmp_path):
    base, data = tiny_training.write_base(tmp_path / "base"), tiny_training.write_scenes(tmp_path / "data", 4)
    changes = {"method": "multi-step", "image_channels": "copy", "intrinsics": "[normals,depth]", "max_steps": 2}
    out = train(tiny_training.config(base, data, tmp_path / "run", data__val_count=0, **changes))
    pipe = IntrinsicLoRAMultiStepPipeline.from_pretrained(base)
    pipe.load_intrinsics(out)
    assert pipe.intrinsics == ("normals", "depth")
    for name in pipe.intrinsics:
        header = pipe.loras[name].header.entries
        assert header["intrinsic_lora.method"] == "multi-step"
        assert header["intrinsic_lora.image_channels_origin"] == "copy"
    with pytest.raises(ValueError, match="multi-step prediction"):
        IntrinsicLoRAPipeline.from_pretrained(base).load_intrinsics(out)


def test_the_study_sees_displacement_and_colour_shift():
    true = photo(32, 32, count=3)
    same = picture_scores(true, true, true)
    assert same["edges_truth"] == pytest.approx(1, abs=1e-5) and same["displaced"] == same["colour_shift"] == 0
    moved = picture_scores(true.roll((1, -2), (2, 3)), true, true)
    assert moved["displaced"] == 1 and moved["edges_truth"] < 0.95
    tinted = picture_scores(true + torch.tensor([0.3, 0.0, -0.4]).view(1, 3, 1, 1), true, true)
    assert tinted["colour_shift"] == pytest.approx(0.5, abs=1e-5)  # a 3-4-5 triangle
    assert tinted["edges_truth"] == pytest.approx(1, abs=1e-4) and tinted["displaced"] == 0
