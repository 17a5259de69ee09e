"""The pipeline's arithmetic, against the published inference written out plainly."""

import copy
import inspect
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from diffusers import AutoencoderTiny, MarigoldIntrinsicsPipeline, StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from intrinsic_lora import IntrinsicLoRAOutput, IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics import INTRINSICS
from intrinsic_lora.intrinsics.codec import confidence, decode
from intrinsic_lora.intrinsics.lora import LoRA, LoRAHeader
from intrinsic_lora.intrinsics.normals import convert_normals
from intrinsic_lora.tests.support import tiny
from intrinsic_lora.tests.support.closeness import MAP_ERROR
from PIL import Image

NAMES = tuple(INTRINSICS)


def make_pipe(**kwargs) -> IntrinsicLoRAPipeline:
    """Four loaded LoRAs of different ranks, alphas and timesteps; processes at 32 px."""
    pipe = IntrinsicLoRAPipeline(**tiny.components(**kwargs), default_processing_resolution=32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_intrinsics(
        {
            name: LoRA(
                tiny.random_lora(pipe.unet, rank=2 + i, alpha=1.5 + i, seed=i),
                LoRAHeader(timestep=999 - 300 * i),
            )
            for i, name in enumerate(NAMES)
        }
    )
    return pipe


@pytest.fixture(scope="module")
def pipe() -> IntrinsicLoRAPipeline:
    return make_pipe()


def photo(height: int, width: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth random colours (N, 3, H, W) in [0, 1], so that resizing is meaningful."""
    noise = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear").clamp(0, 1)


def published(pipe: IntrinsicLoRAPipeline, rgb: torch.Tensor, name: str, spoil=lambda lora: lora) -> torch.Tensor:
    """Run the authors' inference for one intrinsic with its LoRA folded into the weights: (1, 3, H, W) picture."""
    lora = pipe.loras[name]
    unet = copy.deepcopy(pipe.unet)
    tiny.fold(unet, spoil(lora.weights))
    tokenizer, timestep = pipe.tokenizer, lora.header.timestep
    with torch.no_grad():
        z = pipe.vae.encode(rgb * 2 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
        ids = tokenizer(
            {"normals": "surface normal", "depth": "depth map"}.get(name, name),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        x0 = unet(z, timestep, encoder_hidden_states=pipe.text_encoder(ids)[0]).sample
        return pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample * 0.5 + 0.5


@pytest.mark.parametrize("name", NAMES)
def test_equals_published_inference(pipe, name):
    rgb = photo(32, 40)
    picture = published(pipe, rgb, name)
    maps = pipe(rgb)
    torch.testing.assert_close(maps[name], decode(picture, name), atol=MAP_ERROR, rtol=0)
    alone = pipe(rgb, intrinsics=name)
    torch.testing.assert_close(alone[name], decode(picture, name), atol=MAP_ERROR, rtol=0)
    torch.testing.assert_close(alone.confidence, confidence(picture, name), atol=MAP_ERROR, rtol=0)


MISTAKES = {
    "sign": lambda a, b, alpha: (a, -b, alpha),
    "gain": lambda a, b, alpha: (a, b, 0.98 * alpha),
    "axis": lambda a, b, alpha: (a, b.flip(0), alpha),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_lora_is_no_rounding(pipe, name, mistake):
    """The bound of the comparisons here lets none of these pass."""
    rgb, spoil = photo(32, 40), MISTAKES[mistake]
    spoilt = published(pipe, rgb, name, lambda lora: {layer: spoil(*weights) for layer, weights in lora.items()})
    assert (pipe(rgb, intrinsics=name)[name] - decode(spoilt, name)).abs().max() > 2 * MAP_ERROR


def test_every_intrinsic_differs_and_depends_on_its_timestep(pipe):
    rgb = photo(32, 32)
    latents = pipe(rgb, output_latent=True).latents
    for i, a in enumerate(NAMES):
        for b in NAMES[:i]:
            assert (latents[a] - latents[b]).abs().max() > 0.05
    lora = pipe.loras["depth"]
    other = make_pipe()
    other.load_intrinsics({"depth": replace(lora, header=LoRAHeader(timestep=20))})
    assert (other(rgb, intrinsics="depth", output_latent=True).latents["depth"] - latents["depth"]).abs().max() > 0.01


def test_subset_is_none_elsewhere_and_confidence_is_the_least(pipe):
    rgb = photo(32, 32)
    maps = pipe(rgb, intrinsics=["depth", "normal"])
    assert maps.albedo is None and maps.shading is None and maps.latents is None
    each = [pipe(rgb, intrinsics=name).confidence for name in ("depth", "normals")]
    torch.testing.assert_close(maps.confidence, torch.minimum(*each), atol=MAP_ERROR, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_alone_equals_in_batch(pipe, batch_size):
    batch = photo(24, 50, count=3)
    together = pipe(batch, batch_size=batch_size)
    for i in range(3):
        alone = pipe(batch[i])
        for name in NAMES:
            torch.testing.assert_close(together[name][i : i + 1], alone[name], atol=MAP_ERROR, rtol=0)


def test_matching_resolution_equals_no_resize(pipe):
    rgb = photo(48, 48)
    resized, native = pipe(rgb, processing_resolution=48), pipe(rgb, processing_resolution=0)
    for name in NAMES:
        assert torch.equal(resized[name], native[name])
        torch.testing.assert_close(native[name], decode(published(pipe, rgb, name), name), atol=MAP_ERROR, rtol=0)


@settings(max_examples=12, deadline=None)
@given(height=st.integers(2, 90), width=st.integers(2, 90), upsample=st.sampled_from(["guided", "bilinear"]))
def test_any_size_comes_back_exactly(pipe, height, width, upsample):
    if max(height, width) > 16 * min(height, width):
        return
    maps = pipe(photo(height, width), processing_resolution=16, upsample=upsample)
    for name in NAMES:
        assert maps[name].shape == (1, INTRINSICS[name].channels, height, width)
        assert maps[name].dtype == torch.float32 and torch.isfinite(maps[name]).all()
    assert torch.allclose(maps.normals.norm(dim=1), torch.ones(1), atol=1e-4)
    assert maps.depth.min() == 0 and maps.depth.max() in (0, 1)
    assert maps.albedo.min() >= 0 and maps.shading.min() >= 0
    assert maps.confidence.min() >= 0 and maps.confidence.max() <= 1


def test_without_matching_the_short_side_is_the_resolution(pipe):
    maps = pipe(photo(60, 90), processing_resolution=40, match_input_resolution=False)
    assert maps.normals.shape == (1, 3, 40, 60) and maps.confidence.shape == (1, 1, 40, 60)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest"])
def test_depth_is_enlarged_by_the_output_method(pipe, method):
    """Against torch's own interpolation of what the network drew."""
    rgb = photo(64, 96)
    drawn = pipe(rgb, intrinsics="depth", processing_resolution=32, output_type="raw").depth  # (1, 3, 32, 48)
    assert drawn.shape == (1, 3, 32, 48)
    mode = {} if method == "nearest" else {"align_corners": False}
    distance = -F.interpolate(drawn, (64, 96), mode="nearest-exact" if method == "nearest" else method, **mode).mean(1)
    wanted = (distance - distance.min()) / (distance.max() - distance.min())
    maps = pipe(rgb, intrinsics="depth", processing_resolution=32, resample_method_output=method)
    torch.testing.assert_close(maps.depth[:, 0], wanted, atol=MAP_ERROR, rtol=0)


def test_arguments_named_as_marigolds_have_its_defaults():
    ours, theirs = (
        inspect.signature(cls.__call__).parameters for cls in (IntrinsicLoRAPipeline, MarigoldIntrinsicsPipeline)
    )
    shared = {
        "processing_resolution", "match_input_resolution", "resample_method_input", "resample_method_output",
        "batch_size", "output_latent", "return_dict",
    }  # fmt: skip
    assert shared <= theirs.keys()
    assert {name: ours[name].default for name in shared} == {name: theirs[name].default for name in shared}


def test_guided_upsampling_follows_the_photo(pipe):
    rgb = photo(96, 96)
    rgb[..., 40:] = 1 - rgb[..., 40:]  # an edge that falls between pixels of the processing size
    guided, plain = (pipe(rgb, intrinsics="albedo", upsample=u).albedo for u in ("guided", "bilinear"))
    step = lambda x: (x[..., 40] - x[..., 39]).abs().mean()  # noqa: E731
    assert step(guided) > 1.5 * step(plain)
    guided, plain = (pipe(rgb, intrinsics="depth", upsample=u).depth for u in ("guided", "bilinear"))
    assert torch.equal(guided, plain)


def test_inputs_of_every_kind_agree(pipe):
    levels = (photo(32, 40) * 255).round().byte()  # (1, 3, H, W)
    array = levels[0].permute(1, 2, 0).numpy()
    wanted = pipe(levels.float() / 255)
    kinds = [levels, levels[0], array, array[None], array.astype(np.float64) / 255, Image.fromarray(array), [array]]
    for kind in kinds:
        torch.testing.assert_close(pipe(kind).depth, wanted.depth, atol=MAP_ERROR, rtol=0)


def test_alpha_is_composited_on_mid_grey(pipe):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    torch.testing.assert_close(pipe(clear).albedo, pipe(torch.full((3, 32, 32), 0.5)).albedo, atol=MAP_ERROR, rtol=0)


def test_mixed_sizes_give_lists(pipe):
    images = [photo(32, 40)[0], photo(50, 33)[0]]
    maps = pipe(images)
    for image, normals in zip(images, maps.normals, strict=True):
        torch.testing.assert_close(normals, pipe(image).normals)
    pictures = maps.visualize()
    assert [x.size for x in pictures["depth"]] == [(40, 32), (33, 50)]
    assert [x.shape for x in pipe(images, output_type="np").shading] == [(1, 32, 40, 1), (1, 50, 33, 1)]


def test_output_types(pipe):
    rgb = photo(32, 40, count=2)
    tensors, arrays = pipe(rgb, output_type="pt"), pipe(rgb, output_type="np")
    pictures = pipe(rgb, output_type="pil")
    assert isinstance(pictures, IntrinsicLoRAOutput)
    for name in (*NAMES, "confidence"):
        np.testing.assert_array_equal(arrays[name], tensors[name].permute(0, 2, 3, 1).numpy())
        assert len(pictures[name]) == 2 and pictures[name][0].size == (40, 32)
    assert arrays.visualize()["albedo"][1].tobytes() == pictures.albedo[1].tobytes()
    values = pipe(rgb, intrinsics="depth", return_dict=False)
    assert values[0] is None and len(values) == len(fields(IntrinsicLoRAOutput))
    torch.testing.assert_close(values[1], tensors["depth"], atol=1e-4, rtol=0)


def test_visualize_obeys_frame_and_polarity(pipe):
    maps = pipe(photo(32, 32))
    near = np.unravel_index(int(maps.depth.argmin()), (32, 32))
    assert np.asarray(maps.visualize()["depth"][0])[near] == 255
    assert np.asarray(maps.visualize(depth="near-black")["depth"][0])[near] == 0
    red, green, blue = (np.asarray(maps.visualize()["normals"][0])[..., i] / 127.5 - 1 for i in range(3))
    np.testing.assert_allclose(np.stack([red, green, blue]), maps.normals[0].numpy(), atol=0.005)
    raw = np.asarray(maps.visualize(normals="opencv")["normals"][0]).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(raw, convert_normals(maps.normals, "opengl", "opencv")[0].numpy(), atol=0.005)


def test_depth_scope_batch_shares_one_range(pipe):
    rgb = photo(32, 32, count=3)
    depth = pipe(rgb, intrinsics="depth", depth_scope="batch").depth
    assert depth.min() == 0 and depth.max() == 1 and len({x.max().item() for x in depth}) == 3


def test_progress_bar_counts_every_stage(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    pipe(photo(32, 32, count=3), batch_size=2)
    pipe.set_progress_bar_config(disable=True)
    assert "10/10" in capsys.readouterr().err  # 2 encodes, 2 UNet forwards, 6 decodes of 12 pictures


# ---------------------------------------------------------------------- precision, memory and company


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=pytest.mark.bfloat16), torch.float16])
def test_half_precision_is_close(pipe, dtype):
    half = make_pipe().to(dtype)
    assert half.intrinsics == NAMES
    maps, wanted = half(photo(32, 32)), pipe(photo(32, 32))
    for name in ("depth", "shading"):
        assert maps[name].dtype == torch.float32
        bound = 0.15 * wanted[name].abs().mean() + 0.01
        assert (maps[name] - wanted[name]).abs().mean() < bound
        assert (maps[name].flip(-1) - wanted[name]).abs().mean() > bound  # so that a mirrored map would fail


def test_overflow_in_half_precision_is_decoded_again_in_float32():
    full = make_pipe()
    # Large activations inside the decoder that cancel before its end: beyond 65504, yet harmless in float32.
    with torch.no_grad():
        full.vae.decoder.conv_in.weight *= 2e5
        full.vae.decoder.conv_in.bias *= 2e5
    half = copy.deepcopy(full)
    half = IntrinsicLoRAPipeline(**half.components, default_processing_resolution=32)
    half.set_progress_bar_config(disable=True)
    half.load_intrinsics(dict(full.loras))
    half.to(torch.float16)
    rgb = photo(32, 32)
    with torch.no_grad():
        z = half.encode_image(rgb)
        assert not torch.isfinite(half.vae.decode((z / 0.18215).half()).sample).all()  # the premise
    torch.testing.assert_close(
        half(rgb, intrinsics="depth").depth, full(rgb, intrinsics="depth").depth, atol=0.05, rtol=0
    )
    assert half.vae.dtype == torch.float16


def test_nan_that_float32_does_not_cure_is_an_error():
    pipe = make_pipe()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        pipe(photo(32, 32))


def test_autoencoder_tiny_in_place_of_the_vae(pipe):
    torch.manual_seed(0)
    small = AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
    ).eval()
    other = IntrinsicLoRAPipeline(**{**pipe.components, "vae": small}, default_processing_resolution=32)
    other.set_progress_bar_config(disable=True)
    other.load_intrinsics(dict(pipe.loras))
    rgb = photo(32, 40)
    lora = pipe.loras["normals"]
    unet = copy.deepcopy(pipe.unet)
    tiny.fold(unet, lora.weights)
    with torch.no_grad():
        embeds = other.encode_prompt("surface normal", torch.device("cpu"), torch.float32)
        x0 = unet(small.encode(rgb * 2 - 1).latents, 999, encoder_hidden_states=embeds).sample
        picture = small.decode(x0).sample * 0.5 + 0.5
    torch.testing.assert_close(
        other(rgb, intrinsics="normals").normals, decode(picture, "normals"), atol=MAP_ERROR, rtol=0
    )


def test_prompts_are_embedded_once(pipe):
    fresh = make_pipe()
    wanted = fresh(photo(32, 32)).depth
    fresh.text_encoder = None  # not needed any more
    assert torch.equal(fresh(photo(32, 32)).depth, wanted)


def test_sequential_offload_hooks(pipe):
    """Install the hooks of enable_sequential_cpu_offload with the CPU as accelerator.

    The weights stay on the meta device and are loaded layer by layer. (Called with "cpu", diffusers makes that
    "cpu:0", which accelerate takes for another device.)
    """
    offloaded = make_pipe()
    for model in (offloaded.text_encoder, offloaded.unet, offloaded.vae):
        cpu_offload(model, torch.device("cpu"))
    assert offloaded.unet.device.type == "meta"
    maps = offloaded(photo(32, 32))
    torch.testing.assert_close(maps.depth, pipe(photo(32, 32)).depth, atol=1e-5, rtol=0)


def test_model_offload_hooks(pipe):
    offloaded = make_pipe()
    offloaded.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        maps = offloaded(photo(32, 32))
        torch.testing.assert_close(maps.depth, pipe(photo(32, 32)).depth, atol=1e-5, rtol=0)


def test_channels_last_and_slicing(pipe):
    other = make_pipe()
    other.unet.to(memory_format=torch.channels_last)
    other.vae.to(memory_format=torch.channels_last)
    other.enable_attention_slicing("max")
    torch.testing.assert_close(other(photo(32, 32)).depth, pipe(photo(32, 32)).depth, atol=MAP_ERROR, rtol=0)


def test_a_stock_pipeline_on_the_same_components_is_unaffected(pipe):
    fresh = make_pipe()
    stock = StableDiffusionPipeline(
        **fresh.components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    stock.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return stock("a", num_inference_steps=2, height=32, width=32, generator=generator, output_type="pt").images

    before = draw()
    fresh(photo(32, 32))
    assert torch.equal(draw(), before)
