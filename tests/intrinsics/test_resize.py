"""Sizes there and back, resampling against Pillow, and upsampling to the edges of a photo."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intrinsic_lora.intrinsics import crop_to, guided_upsample, pad_to, processing_size, resize
from PIL import Image

fast = settings(max_examples=100, deadline=None)


def rmse(a, b):
    return (a - b).square().mean().sqrt().item()


# --- sizes


@pytest.mark.parametrize(
    ("height", "width", "resolution", "resized", "padded"),
    [
        (512, 512, 512, (512, 512), (512, 512)),
        (512, 777, 512, (512, 777), (512, 784)),  # short side already right: untouched
        (1080, 1920, 512, (512, 910), (512, 912)),
        (1920, 1080, 512, (910, 512), (912, 512)),
        (1, 1, 512, (512, 512), (512, 512)),
        (100, 1600, 64, (64, 1024), (64, 1024)),
        (301, 203, 0, (301, 203), (304, 208)),  # 0: native
    ],
)
def test_processing_size_by_hand(height, width, resolution, resized, padded):
    size = processing_size(height, width, resolution)
    assert (size.resized, size.padded) == (resized, padded)


@fast
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 128), st.sampled_from([1, 8, 64]))
def test_processing_size_keeps_the_short_side_the_aspect_and_the_multiple(height, width, steps, multiple):
    resolution = steps * multiple
    if max(height, width) > 16 * min(height, width):
        with pytest.raises(ValueError, match=f"{width} x {height}.*16:1"):
            processing_size(height, width, resolution, multiple)
        return
    size = processing_size(height, width, resolution, multiple)
    assert min(size.resized) == (resolution or min(height, width))
    assert all(p % multiple == 0 and 0 <= p - r < multiple for p, r in zip(size.padded, size.resized, strict=True))
    scale = min(size.resized) / min(height, width)
    assert size.resized == pytest.approx((height * scale, width * scale), abs=0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 10, 512), "empty"),
        ((10, 161, 512), "crop it to 16:1"),
        ((10, 10, 500), "0 or a multiple of 8, got 500"),
        ((10, 10, -8), "got -8"),
    ],
)
def test_impossible_sizes_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        processing_size(*arguments)


# --- there and back


@fast
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([0, 8, 16]), st.sampled_from(["bilinear", "bicubic"]))
def test_any_size_comes_back_at_its_size(height, width, resolution, mode):
    if max(height, width) > 16 * min(height, width):
        return
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height * 100 + width))
    size = processing_size(height, width, resolution)
    small = resize(x, size.resized, mode)
    padded = pad_to(small, *size.padded)
    assert padded.shape[-2:] == size.padded
    cropped = crop_to(padded, *size.resized)
    assert torch.equal(cropped, small)  # padding and cropping lose nothing
    back = resize(cropped, (height, width), mode)
    assert back.shape == x.shape and back.isfinite().all()
    assert guided_upsample(cropped, x).shape == x.shape
    if size.resized == (height, width):
        assert torch.equal(back, x)


def test_padding_reflects_where_it_can_and_repeats_where_it_cannot():
    row = torch.arange(5.0)[None, None, None]  # (1, 1, 1, 5): its height cannot be reflected
    padded = pad_to(row, 3, 8)
    expected = np.pad(np.arange(5.0), (0, 3), mode="reflect")
    assert np.array_equal(padded[0, 0].numpy(), np.stack([expected] * 3))
    assert torch.equal(pad_to(row[..., :1], 8, 8), torch.zeros(1, 1, 8, 8))


def test_processing_a_row_of_pixels_up_to_16_to_1():
    for shape in ((1, 16), (16, 1), (40, 640)):
        size = processing_size(*shape, 64)
        assert sorted(size.padded) == [64, 1024]
        x = torch.rand(1, 3, *shape)
        padded = pad_to(resize(x, size.resized), *size.padded)
        assert resize(crop_to(padded, *size.resized), shape).shape == x.shape


# --- resampling


@pytest.mark.parametrize(("mode", "pillow"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
def test_shrinking_is_antialiased_like_pillow(mode, pillow):
    x = torch.rand(1, 1, 60, 83, generator=torch.Generator().manual_seed(0))
    expected = Image.fromarray(x[0, 0].numpy()).resize((20, 16), pillow)
    np.testing.assert_allclose(resize(x, (16, 20), mode)[0, 0].numpy(), np.asarray(expected), atol=1e-4)


def test_resize_nearest_halves_and_wrong_modes():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert torch.equal(resize(x, (4, 4), "nearest"), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    half = torch.rand(1, 3, 9, 7).to(torch.bfloat16)
    assert torch.equal(resize(half, (4, 12)), resize(half.float(), (4, 12)))
    with pytest.raises(ValueError, match="bilinear, bicubic, nearest"):
        resize(x, (4, 4), "lanczos")


# --- upsampling to the photo's edges


def disc_scene(size=256):
    """Albedo of a slanted step and two discs, lit by a smooth ramp: (albedo, photo), each (1, 3, size, size)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    albedo = torch.tensor([0.2, 0.35, 0.6])[:, None, None].expand(3, size, size).clone()
    albedo[:, x + 0.3 * y > 0.65] = torch.tensor([0.7, 0.5, 0.3])[:, None]
    albedo[:, (x - 0.3) ** 2 + (y - 0.3) ** 2 < 0.03] = torch.tensor([0.8, 0.1, 0.2])[:, None]
    albedo[:, (x - 0.7) ** 2 + (y - 0.7) ** 2 < 0.02] = torch.tensor([0.1, 0.6, 0.3])[:, None]
    return albedo[None], (albedo * (0.5 + 0.5 * x))[None]


@pytest.mark.parametrize(("factor", "margin"), [(2, 0.45), (4, 0.45), (8, 0.45)])
def test_guided_beats_bilinear_at_edges(factor, margin):
    albedo, photo = disc_scene()
    low = resize(albedo, (256 // factor, 256 // factor))
    bilinear = rmse(resize(low, (256, 256)), albedo)
    assert rmse(guided_upsample(low, photo), albedo) < margin * bilinear


def test_guided_restores_a_step_the_photo_shares():
    photo = torch.zeros(1, 3, 64, 64)
    photo[..., 27:] = 1  # not on a boundary of the 8 x 8 low-resolution pixels
    step = 0.2 + 0.6 * photo[:, :1]
    low = resize(step, (8, 8))
    guided = guided_upsample(low, photo)
    assert (guided[..., 27] - guided[..., 26]).min() > 0.5  # most of the step of 0.6, in one pixel
    assert (resize(low, (64, 64))[..., 27] - resize(low, (64, 64))[..., 26]).max() < 0.1


def test_guided_does_not_paint_the_photos_texture_on_a_map_without_it():
    g = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 128).expand(1, 1, 128, 128)
    low = resize(ramp, (16, 16))
    guided = guided_upsample(low, torch.rand(1, 3, 128, 128, generator=g))
    assert rmse(guided, ramp) < 0.015


@pytest.mark.parametrize("photo", ["flat", "ramp"])
def test_linear_ramps_survive(photo):
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 96), indexing="ij")
    ramp = (0.3 * x - 0.5 * y)[None, None]
    guide = torch.full((1, 3, 96, 96), 0.5) if photo == "flat" else (x * 0.8)[None, None].expand(1, 3, 96, 96)
    low = resize(ramp, (24, 24))
    guided, bilinear = guided_upsample(low, guide), resize(low, (96, 96))
    inner = (..., slice(8, -8), slice(8, -8))  # bilinear itself flattens the outermost half pixel
    torch.testing.assert_close(guided[inner], ramp[inner], atol=2e-3, rtol=0)
    if photo == "flat":
        torch.testing.assert_close(guided, bilinear, atol=1e-5, rtol=0)


@fast
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.floats(-2, 2),
    st.integers(0, 999),
)
def test_constants_survive_and_nothing_leaves_the_maps_range(low_size, high_size, value, seed):
    g = torch.Generator().manual_seed(seed)
    photo = torch.rand(1, 3, *high_size, generator=g)
    constant = torch.full((1, 1, *low_size), value)
    torch.testing.assert_close(guided_upsample(constant, photo), torch.full((1, 1, *high_size), value))
    low = torch.rand(1, 4, *low_size, generator=g)
    guided = guided_upsample(low, photo)
    assert guided.isfinite().all() and guided.min() >= low.min() - 1e-5 and guided.max() <= low.max() + 1e-5


def test_guided_at_equal_size_and_per_image_and_in_half_precision():
    g = torch.Generator().manual_seed(1)
    low, photo = torch.rand(2, 3, 16, 12, generator=g), torch.rand(2, 3, 16, 12, generator=g)
    torch.testing.assert_close(guided_upsample(low, photo), low, atol=1e-5, rtol=0)
    large = torch.rand(2, 3, 48, 40, generator=g)
    both = guided_upsample(low, large)
    torch.testing.assert_close(both[1:], guided_upsample(low[1:], large[1:]))
    half = guided_upsample(low.half(), large.half())
    assert torch.equal(half, guided_upsample(low.half().float(), large.half().float()))


def test_guided_passes_gradients():
    low = torch.zeros(1, 1, 4, 4, requires_grad=True)
    guided_upsample(low, torch.zeros(1, 3, 12, 12)).sum().backward()
    assert low.grad.isfinite().all() and low.grad.abs().sum() > 0
