"""Registry, sRGB, normal frames and depth ranges against other libraries, matrices and hand-worked numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from intrinsic_lora.intrinsics import (
    INTRINSICS,
    NORMAL_FRAMES,
    Intrinsic,
    convert_normals,
    get_intrinsic,
    linear_to_srgb,
    normalize_depth,
    normalize_normals,
    render_depth,
    srgb_to_linear,
)
from intrinsic_lora.intrinsics.normals import scale_relief
from skimage.color import rgb2xyz

fast = settings(max_examples=60, deadline=None)


def arrays(low, high, channels, width=32):
    shapes = st.tuples(st.integers(1, 3), st.just(channels), st.integers(1, 5), st.integers(1, 5))
    return hnp.arrays(np.float32, shapes, elements=st.floats(low, high, width=width)).map(torch.from_numpy)


# --- registry


def test_the_four_intrinsics_are_those_the_released_loras_were_trained_for():
    assert [(i.name, i.prompt, i.channels) for i in INTRINSICS.values()] == [
        ("normals", "surface normal", 3),
        ("depth", "depth map", 1),
        ("albedo", "albedo", 3),
        ("shading", "shading", 1),
    ]
    assert list(INTRINSICS) == [i.name for i in INTRINSICS.values()]
    with pytest.raises(TypeError):
        INTRINSICS["normals"] = INTRINSICS["depth"]


def test_get_intrinsic_takes_names_and_intrinsics_and_lists_what_it_knows():
    assert get_intrinsic("depth") is INTRINSICS["depth"]
    own = Intrinsic("normals", "surface normal", 3, "directx")
    assert get_intrinsic(own) is own
    with pytest.raises(ValueError, match=r"'normal'.*normals, depth, albedo, shading"):
        get_intrinsic("normal")


# --- sRGB


def test_srgb_decodes_as_scikit_image_does():
    codes = torch.arange(256) / 255
    grey = np.repeat(codes.double().numpy()[None, :, None], 3, axis=2)
    luminance = rgb2xyz(grey)[0, :, 1]  # Y of a grey is its linear value, because white has Y = 1
    np.testing.assert_allclose(srgb_to_linear(codes).numpy(), luminance, atol=2e-6)
    torch.testing.assert_close(linear_to_srgb(torch.from_numpy(luminance)), codes, atol=2e-6, rtol=0)


@fast
@given(arrays(0, 8, 3))
def test_srgb_round_trips_both_ways_beyond_white(x):
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(x)), x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(srgb_to_linear(linear_to_srgb(x)), x, atol=1e-5, rtol=1e-5)


def test_srgb_is_monotonic_never_negative_and_has_finite_slopes():
    for curve in (srgb_to_linear, linear_to_srgb):
        x = torch.linspace(-0.5, 2, 100_001).requires_grad_()
        y = curve(x)
        assert (y >= 0).all() and (y[x <= 0] == 0).all()
        assert (y.diff() >= 0).all() and y.diff().max() < 1e-3  # also no jump where the two pieces meet
        y.sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_srgb_of_half_precision_is_computed_in_float32(dtype):
    x = torch.rand(64, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert srgb_to_linear(x).dtype == torch.float32
    torch.testing.assert_close(srgb_to_linear(x), srgb_to_linear(x.float()))


# --- normal frames

# The axes of each frame as columns, in opengl coordinates (X right, Y up, Z to the viewer).
RIGHT, UP, VIEWER = np.eye(3)
AXES = {
    "opengl": np.stack([RIGHT, UP, VIEWER], 1),
    "directx": np.stack([RIGHT, -UP, VIEWER], 1),
    "opencv": np.stack([RIGHT, -UP, -VIEWER], 1),
    "controlnet": np.stack([-RIGHT, UP, VIEWER], 1),
}


@pytest.mark.parametrize("source", NORMAL_FRAMES)
@pytest.mark.parametrize("target", NORMAL_FRAMES)
def test_convert_normals_is_the_change_of_basis(source, target):
    n = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    basis = torch.from_numpy(np.linalg.inv(AXES[target]) @ AXES[source]).float()
    torch.testing.assert_close(convert_normals(n, source, target), torch.einsum("ij,bjhw->bihw", basis, n))
    assert torch.equal(convert_normals(convert_normals(n, source, target), target, source), n)
    assert torch.equal(convert_normals(n[0], source, target), convert_normals(n, source, target)[0])


def test_convert_normals_keeps_lengths_and_names_the_frames():
    n = 3 * torch.ones(3, 1, 1, dtype=torch.float16)
    assert torch.equal(convert_normals(n, "opengl", "opencv").flatten(), torch.tensor([3, -3, -3]).half())
    with pytest.raises(ValueError, match=r"'OpenGL'.*opengl, directx, opencv, controlnet"):
        convert_normals(n, "OpenGL", "opencv")


def test_inverting_the_raw_picture_gives_the_controlnet_frame():
    raw = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    inverted = (1 - raw) * 2 - 1  # what the retired ComfyUI node did
    torch.testing.assert_close(convert_normals(raw * 2 - 1, "opencv", "controlnet"), inverted)


@fast
@given(arrays(-4, 4, 3))
def test_normalize_normals_gives_unit_vectors_whatever_comes_in(n):
    unit = normalize_normals(n)
    assert torch.allclose(unit.norm(dim=1), torch.ones(1), atol=1e-5)
    long = n.norm(dim=1, keepdim=True) > 0.02
    assert torch.allclose((unit * n.norm(dim=1, keepdim=True))[long.expand_as(n)], n[long.expand_as(n)], atol=1e-5)


def test_vectors_without_direction_face_the_viewer_and_pass_no_nan_backwards():
    grey = torch.full((1, 3, 1, 1), 128 / 255) * 2 - 1  # the nearest an 8-bit picture has to the zero vector
    n = torch.cat([torch.zeros(1, 3, 1, 1), grey, -grey], 3).requires_grad_()
    unit = normalize_normals(n)
    assert torch.equal(unit[0, :, 0], torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 1, 1]]))
    unit.sum().backward()
    assert n.grad.isfinite().all()


@pytest.mark.parametrize("source", NORMAL_FRAMES)
def test_scaled_relief_multiplies_slopes_in_every_frame(source):
    n = torch.tensor([0.48, -0.6, 0.64]).view(1, 3, 1, 1)
    scaled = convert_normals(scale_relief(convert_normals(n, "opengl", source), 2), source, "opengl").flatten()
    assert scaled.norm().item() == pytest.approx(1)
    assert (scaled / scaled[2]).tolist() == pytest.approx([1.5, -1.875, 1])
    torch.testing.assert_close(scale_relief(n, 1), n)
    assert scale_relief(n, 0).flatten().tolist() == pytest.approx([0, 0, 1])


# --- depth


@fast
@given(arrays(-100, 100, 1), st.floats(0.25, 8), st.floats(-10, 10))
def test_normalized_depth_spans_0_to_1_and_forgets_scale_and_shift(depth, scale, shift):
    spread = depth.amax((1, 2, 3)) - depth.amin((1, 2, 3))
    depth = depth[spread > 0.1]
    got = normalize_depth(depth)
    assert (got.amin((1, 2, 3)) == 0).all() and (got.amax((1, 2, 3)) == 1).all()
    torch.testing.assert_close(normalize_depth(scale * depth + shift), got, atol=5e-3, rtol=0)
    torch.testing.assert_close(normalize_depth(got), got, atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0, 1e4])
@pytest.mark.parametrize("scope", ["image", "batch", "clip"])
def test_flat_depth_is_zero_and_differentiable(value, scope):
    depth = torch.full((3, 1, 2, 2), value)
    depth[1, 0, 0, 0] *= 1 + 1e-7  # rounding noise is still flat
    depth.requires_grad_()
    got = normalize_depth(depth, scope)
    assert torch.equal(got, torch.zeros(3, 1, 2, 2))
    got.sum().backward()
    assert depth.grad.isfinite().all()


def frames(*ranges):
    return torch.tensor(ranges)[:, None, None, :]  # (B, 1, 1, W): the frame's distances in a row


def test_depth_scopes_on_hand_worked_numbers():
    depth = frames([1.0, 2, 3], [3.0, 4, 7])
    assert normalize_depth(depth, "image").flatten().tolist() == pytest.approx([0, 0.5, 1, 0, 0.25, 1])
    assert normalize_depth(depth, "batch").flatten().tolist() == pytest.approx([0, 1 / 6, 1 / 3, 1 / 3, 0.5, 1])
    # second frame's range is 0.75 * (1, 3) + 0.25 * (3, 7) = (1.5, 4): 3 -> 0.6, and 4 and 7 are at the far end
    assert normalize_depth(depth, "clip", 0.75).flatten().tolist() == pytest.approx([0, 0.5, 1, 0.6, 1, 1])
    torch.testing.assert_close(normalize_depth(depth, "clip", 0), normalize_depth(depth, "image"))


def test_clip_scope_damps_the_flicker_that_per_image_scope_shows():
    generator = torch.Generator().manual_seed(3)
    still = torch.linspace(2, 5, 16).expand(40, 1, 1, 16).clone()  # a still scene ...
    still[:, 0, 0, 0] += 1.5 * torch.rand(40, generator=generator)  # ... whose nearest point is noisy

    def flicker(d):
        return d[10:, 0, 0, 8].diff().abs().mean()

    assert flicker(normalize_depth(still, "clip")) < 0.3 * flicker(normalize_depth(still, "image"))
    torch.testing.assert_close(normalize_depth(still[:1].expand(5, -1, -1, -1), "clip")[4], normalize_depth(still)[0])


def test_depth_pictures():
    depth = frames([2.0, 3, 4])
    assert render_depth(depth).flatten().tolist() == pytest.approx([1, 0.5, 0])
    assert render_depth(depth, "near-black").flatten().tolist() == pytest.approx([0, 0.5, 1])
    both = frames([2.0, 3, 4], [4.0, 5, 6])
    assert render_depth(both, "near-black", "batch").flatten().tolist() == pytest.approx([0, 0.25, 0.5, 0.5, 0.75, 1])
    assert torch.equal(render_depth(torch.full((1, 1, 2, 2), 5.0)), torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("scope", ["image", "batch", "clip"])
def test_depth_percentiles_ignore_stray_pixels(scope):
    ramp = torch.linspace(0, 1, 101).view(1, 1, 1, 101).repeat(2, 1, 1, 1)
    got = normalize_depth(ramp, scope, low=10, high=90)
    torch.testing.assert_close(got, ((ramp - 0.1) / 0.8).clamp(0, 1), atol=0.02, rtol=0)
    stray = ramp.clone()
    stray[:, :, 0, 100] = 1000
    torch.testing.assert_close(normalize_depth(stray, scope, low=10, high=90), got)


def test_gamma_of_a_depth_picture_brightens_the_middle():
    depth = torch.tensor([0.0, 0.75, 1.0]).view(1, 1, 1, 3)
    assert render_depth(depth, gamma=2).flatten().tolist() == pytest.approx([1, 0.5, 0])
    assert render_depth(depth, "near-black", gamma=0.5).flatten().tolist() == pytest.approx([0, 0.5625, 1])


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda d: normalize_depth(d, "frame"), "image, batch, clip"),
        (lambda d: normalize_depth(d, "clip", smoothing=1.0), "below 1"),
        (lambda d: render_depth(d, "near=white"), "near-white, near-black"),
        (lambda d: normalize_depth(d, low=60, high=40), "0 <= low < high <= 100, got 60 and 40"),
        (lambda d: render_depth(d, gamma=0), "above 0"),
    ],
)
def test_depth_options_are_named_when_wrong(call, names):
    with pytest.raises(ValueError, match=names):
        call(torch.zeros(1, 1, 2, 2))
