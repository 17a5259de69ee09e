"""Pictures to canonical maps and back: closed-form scenes, round trips, degenerate and wrong input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intrinsic_lora.intrinsics import (
    INTRINSICS,
    Intrinsic,
    confidence,
    convert_normals,
    decode,
    encode,
    linear_to_srgb,
    normalize_depth,
    normalize_normals,
)

seeds = st.integers(0, 2**31)
fast = settings(max_examples=40, deadline=None)


def random_map(name, seed):
    g = torch.Generator().manual_seed(seed)
    if name == "normals":
        return normalize_normals(torch.randn(2, 3, 6, 5, generator=g))
    if name == "depth":
        return normalize_depth(torch.rand(2, 1, 6, 5, generator=g))
    return torch.rand(2, INTRINSICS[name].channels, 6, 5, generator=g)


def angle(a, b):
    """Angle in degrees between (B, 3, H, W) vectors; atan2, because acos is blind to small angles."""
    return torch.rad2deg(torch.atan2(torch.linalg.cross(a, b, dim=1).norm(dim=1), (a * b).sum(1)))


# --- closed form


def test_a_rendered_sphere():
    """An orthographic unit sphere: geometry, raw picture, and the slope of its own depth must all agree."""
    size = 128
    step = 2 / size
    axis = (torch.arange(size) + 0.5) * step - 1
    x, y = axis[None, :].expand(size, size), -axis[:, None].expand(size, size)  # image rows go down, Y goes up
    z = (1 - x**2 - y**2).clamp(min=0).sqrt()
    inside = x**2 + y**2 < 0.8
    raw = torch.stack([(1 + x) / 2, (1 - y) / 2, (1 - z) / 2])[None]  # OpenCV frame, written out
    normals = decode(raw, "normals")
    assert angle(normals, torch.stack([x, y, z])[None])[0][inside].max() < 1e-3
    torch.testing.assert_close(encode(torch.stack([x, y, z])[None], "normals")[..., inside], raw[..., inside])

    nearness = (0.2 + 0.7 * z).expand(1, 3, size, size)  # near is bright
    distance = decode(nearness, "depth")[0, 0]
    torch.testing.assert_close(distance, (z.max() - z) / z.max())
    rise = -distance * z.max()  # towards the viewer, in units of the radius again
    up_slope, right_slope = -torch.gradient(rise, spacing=step)[0], torch.gradient(rise, spacing=step)[1]
    from_depth = normalize_normals(torch.stack([-right_slope, -up_slope, torch.ones_like(rise)])[None])
    assert angle(from_depth, normals)[0][inside].max() < 1


@pytest.mark.parametrize(
    ("faces", "normal", "rgb"),
    [
        ("right (a wall on the left)", (1, 0, 0), (1.0, 0.5, 0.5)),
        ("left", (-1, 0, 0), (0.0, 0.5, 0.5)),
        ("up (a floor): purple", (0, 1, 0), (0.5, 0.0, 0.5)),
        ("down (a ceiling): green", (0, -1, 0), (0.5, 1.0, 0.5)),
        ("the viewer: no blue", (0, 0, 1), (0.5, 0.5, 0.0)),
        ("away", (0, 0, -1), (0.5, 0.5, 1.0)),
    ],
)
def test_a_plane_facing_each_axis(faces, normal, rgb):
    plane = torch.tensor(normal).float()[None, :, None, None].expand(1, 3, 4, 6)
    picture = torch.tensor(rgb)[None, :, None, None].expand(1, 3, 4, 6)
    torch.testing.assert_close(encode(plane, "normals"), picture)
    torch.testing.assert_close(decode(picture, "normals"), plane, atol=1e-6, rtol=0)


def test_albedo_times_shading_is_the_photo():
    g = torch.Generator().manual_seed(0)
    albedo, shading = torch.rand(1, 3, 8, 8, generator=g), 5 * torch.rand(1, 1, 8, 8, generator=g)
    product = decode(encode(albedo, "albedo"), "albedo") * decode(encode(shading, "shading"), "shading")
    ratio = product / (albedo * shading)
    torch.testing.assert_close(ratio, (1 / shading.max()).expand_as(ratio), rtol=1e-3, atol=0)  # one scale everywhere


# --- round trips


@fast
@given(st.sampled_from(list(INTRINSICS)), seeds)
def test_decode_undoes_encode(name, seed):
    canonical = random_map(name, seed)
    picture = encode(canonical, name)
    assert picture.shape == (2, 3, 6, 5) and picture.min() >= 0 and picture.max() <= 1
    torch.testing.assert_close(decode(picture, name), canonical, atol=1e-5, rtol=1e-5)


@fast
@given(st.sampled_from(list(INTRINSICS)), seeds)
def test_eight_bits_lose_no_more_than_their_rounding(name, seed):
    canonical = random_map(name, seed)
    picture = encode(canonical, name)
    back = decode((picture * 255).round() / 255, name)
    if name == "normals":  # half a step in each of three components
        assert angle(back, canonical).max() < math.degrees(math.asin(math.sqrt(3) / 255)) + 1e-3
    elif name == "depth":
        assert (back - canonical).abs().max() <= 0.5 / 255 + 1e-5
    else:
        assert (linear_to_srgb(back) - picture[:, : back.shape[1]]).abs().max() <= 0.5 / 255 + 1e-5


@fast
@given(seeds, st.floats(1.0, 50.0))
def test_bright_shading_is_scaled_and_never_clipped(seed, peak):
    shading = random_map("shading", seed)
    shading = shading / shading.amax((1, 2, 3), keepdim=True)
    shading[0] *= peak
    back = decode(encode(shading, "shading"), "shading")
    torch.testing.assert_close(back[0] * peak, shading[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(back[1], shading[1], atol=1e-5, rtol=1e-4)  # each image its own scale


def test_coloured_shading_keeps_its_colour_when_asked():
    shading = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    picture = encode(shading, "shading")
    torch.testing.assert_close(decode(picture, "shading", shading_channels=3), shading)
    torch.testing.assert_close(decode(picture, "shading"), shading.mean(1, True))


def test_a_lora_trained_in_another_frame_says_so_in_its_convention():
    directx = Intrinsic("normals", "surface normal", 3, "directx")
    n = random_map("normals", 5)
    torch.testing.assert_close(encode(n, directx), convert_normals(n, "opengl", "directx") * 0.5 + 0.5)
    torch.testing.assert_close(decode(encode(n, directx), directx), n)


def test_pictures_stay_in_range_for_maps_that_do_not():
    long = torch.tensor([3.0, 0.0, 4.0])[None, :, None, None]
    torch.testing.assert_close(encode(long, "normals"), encode(long / 5, "normals"))
    torch.testing.assert_close(encode(torch.full((1, 3, 2, 2), 1.5), "albedo"), torch.ones(1, 3, 2, 2))
    overshot = torch.tensor([-1e-6, 0.5, 1 + 1e-6])[None, None, None]
    assert encode(overshot, "depth")[0, 0, 0].tolist() == [1, 0.5, 0]


# --- what the decoder of a VAE really gives


def test_values_outside_0_to_1_are_used_not_clamped():
    nearness = torch.tensor([-0.3, 0.0, 1.0, 1.7])
    picture = nearness[None, None, None].expand(1, 3, 1, 4)
    distance = decode(picture, "depth").flatten()
    torch.testing.assert_close(distance, (1.7 - nearness) / 2.0)
    direction = torch.tensor([2.0, -1.0, 2.0]) / 3  # drawn three times too long, opengl
    raw = (torch.tensor([2.0, 1.0, -2.0]) * 0.5 + 0.5)[None, :, None, None]
    torch.testing.assert_close(decode(raw, "normals").flatten(), direction)
    assert decode(torch.full((1, 3, 1, 1), 1.2), "albedo").min() > 1
    assert decode(torch.full((1, 3, 1, 1), -0.2), "shading").max() == 0


def test_depth_reduction_and_scope():
    rgb = torch.tensor([[[0.9, 0.0], [0.6, 0.3], [0.6, 0.0]], [[0.2, 0.1]] * 3])[:, :, None]  # (2, 3, 1, 2)
    spread = torch.cat([rgb, torch.tensor([0.5, 0.4, 0.3])[None, :, None, None].expand(2, 3, 1, 1)], 3)
    # channel means 0.7, 0.1, 0.4 and maxima 0.9, 0.3, 0.5
    assert decode(spread, "depth")[0].flatten().tolist() == pytest.approx([0, 1, 0.5])
    assert decode(spread, "depth", depth_reduce="max")[0].flatten().tolist() == pytest.approx([0, 1, 2 / 3])
    batch = decode(spread, "depth", depth_scope="batch")
    assert batch[1].flatten().tolist() == pytest.approx([5 / 6, 1, 0.5])
    alone = torch.cat([decode(spread[i : i + 1], "depth") for i in range(2)])
    torch.testing.assert_close(decode(spread, "depth"), alone)  # an image alone equals the image in a batch


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", INTRINSICS)
def test_half_precision_is_computed_in_float32(name, dtype):
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert decode(picture, name).dtype == torch.float32
    assert torch.equal(decode(picture, name), decode(picture.float(), name))
    assert torch.equal(confidence(picture, name), confidence(picture.float(), name))
    canonical = decode(picture, name).to(dtype)
    assert torch.equal(encode(canonical, name), encode(canonical.float(), name))


@pytest.mark.parametrize("value", [-2.0, 0.0, 0.5, 128 / 255, 1.0, 3.0])
@pytest.mark.parametrize("name", INTRINSICS)
def test_flat_pictures_decode_without_nan_and_pass_gradients(name, value):
    picture = torch.full((1, 3, 3, 3), value, requires_grad=True)
    canonical = decode(picture, name)
    assert canonical.isfinite().all()
    (canonical.sum() + confidence(picture, name).sum()).backward()
    assert picture.grad.isfinite().all()
    if name == "depth":
        assert (canonical == 0).all()


@pytest.mark.parametrize("name", INTRINSICS)
def test_zero_maps_encode_without_nan_and_pass_gradients(name):
    zero = torch.zeros(1, INTRINSICS[name].channels, 2, 2, requires_grad=True)
    picture = encode(zero, name)
    assert picture.isfinite().all()
    picture.sum().backward()
    assert zero.grad.isfinite().all()


# --- confidence


def test_confidence_by_hand():
    grey = torch.full((1, 3, 1, 2), 0.4)
    tinted = grey + torch.tensor([0.0, 0.1, 0.25])[None, :, None, None]
    for name in ("depth", "shading"):
        assert confidence(grey, name).flatten().tolist() == [1, 1]
        assert confidence(tinted, name).flatten().tolist() == pytest.approx([0.75, 0.75])
    unit = encode(torch.tensor([0.6, 0.0, 0.8])[None, :, None, None], "normals")
    assert confidence(unit, "normals").item() == pytest.approx(1)
    half_length = (unit - 0.5) * 0.5 + 0.5
    assert confidence(half_length, "normals").item() == pytest.approx(0.5)
    assert confidence(torch.full((1, 3, 1, 1), 0.5), "normals").item() == 0
    assert torch.equal(confidence(tinted, "albedo"), torch.ones(1, 1, 1, 2))


@fast
@given(st.sampled_from(list(INTRINSICS)), seeds, st.floats(0, 3))
def test_confidence_is_1_on_true_pictures_and_falls_with_damage(name, seed, damage):
    picture = encode(random_map(name, seed), name)
    torch.testing.assert_close(confidence(picture, name), torch.ones(2, 1, 6, 5))
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
    damaged = confidence(picture + damage * noise, name)
    assert damaged.shape == (2, 1, 6, 5) and damaged.min() >= 0 and damaged.max() <= 1
    if name != "albedo" and damage > 0.1:
        assert damaged.mean() < 0.95


# --- wrong input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: decode(torch.rand(3, 4, 4), "albedo"), r"\(B, 3, H, W\), got \(3, 4, 4\)"),
        (lambda: decode(torch.rand(1, 1, 4, 4), "depth"), r"\(B, 3, H, W\)"),
        (lambda: decode(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "albedo"), "divide 8-bit pictures by 255"),
        (lambda: confidence(torch.rand(1, 4, 4, 4), "normals"), r"\(B, 3, H, W\)"),
        (lambda: encode(torch.rand(1, 3, 4, 4), "depth"), r"map of depth.*\(B, 1, H, W\)"),
        (lambda: encode(torch.rand(1, 2, 4, 4), "shading"), r"\(B, 1 or 3, H, W\)"),
        (lambda: encode(torch.full((1, 1, 4, 4), 3.7), "depth"), "call normalize_depth"),
        (lambda: decode(torch.rand(1, 3, 4, 4), "normal"), "normals, depth, albedo, shading"),
        (lambda: decode(torch.rand(1, 3, 4, 4), "depth", depth_reduce="median"), "mean or max"),
        (lambda: decode(torch.rand(1, 3, 4, 4), "depth", depth_scope="video"), "image, batch, clip"),
        (lambda: decode(torch.rand(1, 3, 4, 4), "shading", shading_channels=2), "1 .grey. or 3"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- custom intrinsics


@pytest.mark.parametrize("channels", [1, 3])
def test_a_custom_intrinsic_as_light(channels):
    light = Intrinsic("specular_light", "specular light", channels, "srgb")
    values = torch.rand(2, channels, 6, 5, generator=torch.Generator().manual_seed(0))
    picture = encode(values, light)
    assert picture.shape == (2, 3, 6, 5)
    torch.testing.assert_close(picture, linear_to_srgb(values).expand(-1, 3, -1, -1))
    torch.testing.assert_close(decode(picture, light), values)
    assert encode(values + 2, light).max() == pytest.approx(1)  # brighter than white cannot be drawn


@pytest.mark.parametrize("channels", [1, 3])
def test_a_custom_intrinsic_as_plain_values(channels):
    mask = Intrinsic("shadow", "shadow mask", channels, "linear")
    values = torch.rand(2, channels, 6, 5, generator=torch.Generator().manual_seed(0))
    picture = encode(values, mask)
    torch.testing.assert_close(picture, values.expand(-1, 3, -1, -1))
    torch.testing.assert_close(decode(picture, mask), values)
    drawn = picture.clone()
    drawn[:, 0] += 0.3
    drawn[:, 2] -= 0.1
    if channels == 1:  # grey: the mean of what is drawn, trusted as far as the channels agree
        torch.testing.assert_close(decode(drawn, mask), (values + 0.2 / 3).clamp(0, 1))
        torch.testing.assert_close(confidence(drawn, mask), torch.full((2, 1, 6, 5), 0.6))
    else:
        torch.testing.assert_close(decode(drawn, mask), drawn.clamp(0, 1))
        assert confidence(drawn, mask).min() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("../shadow", "x", 1, "linear"), "lower-case letters"),
        (("Shadow", "x", 1, "linear"), "lower-case letters"),
        (("", "x", 1, "linear"), "lower-case letters"),
        (("mask", "x", 1, "linear"), "reserved name"),
        (("normal", "x", 3, "srgb"), "reserved name"),
        (("shadow", "x", 2, "linear"), "1 or 3 channels"),
        (("shadow", "x", 1, "opencv"), "srgb, linear"),
        (("normals", "surface normal", 3, "srgb"), "opengl, directx, opencv, controlnet"),
        (("depth", "depth map", 1, "srgb"), "near-bright"),
    ],
)
def test_intrinsics_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Intrinsic(*arguments)
