"""Editing a photo's shading, and lights that move, against closed forms."""

import json
from math import erf

import pytest
import torch
from intrinsic_lora.intrinsics.color import luminance
from intrinsic_lora.intrinsics.relight import (
    Ambient,
    Camera,
    Environment,
    Point,
    Rim,
    Spot,
    Sun,
    combine,
    make_gbuffer,
)
from intrinsic_lora.intrinsics.relight.animate import EASES, animate, orbit, read_keyframes, sweep
from intrinsic_lora.intrinsics.relight.edit import blur_on_surface, edit_shading
from intrinsic_lora.intrinsics.relight.geometry import Geometry


@pytest.fixture
def shading():
    return torch.rand(2, 1, 14, 18, generator=torch.Generator().manual_seed(1)) + 0.05


@pytest.fixture
def scene(shading):
    """Photo = albedo * shading, to the last bit of float32."""
    albedo = torch.rand(2, 3, 14, 18, generator=torch.Generator().manual_seed(2)) * 0.5 + 0.2
    facing = torch.tensor([0.0, 0, 1]).view(1, 3, 1, 1).expand(2, -1, 14, 18)
    return make_gbuffer(albedo * shading, facing, albedo=albedo, shading=shading, photo_encoding="linear")


# --- shading


def lit(shading):
    """Build a G-buffer with exactly this shading (no floor, no scale), without depth, facing the viewer."""
    facing = torch.tensor([0.0, 0, 1]).view(1, 3, 1, 1).expand(len(shading), -1, *shading.shape[2:])
    scene = make_gbuffer(shading.expand(-1, 3, -1, -1), facing, shading=shading, photo_encoding="linear")
    assert torch.equal(scene.shading, shading)
    return scene


def test_neutral_settings_return_the_photo(scene):
    picture = combine(scene, edit_shading(scene), "ratio")
    torch.testing.assert_close(picture, scene.photo, atol=1e-5, rtol=0)


def test_flat_light_leaves_the_albedo_times_one_number(scene):
    picture = combine(scene, edit_shading(scene, flatten=1), "ratio")
    ratio = picture / scene.albedo  # (B,3,H,W)
    middle = scene.shading.flatten(1).sort(1).values[:, (14 * 18 - 1) // 2]
    torch.testing.assert_close(ratio, middle.view(2, 1, 1, 1).expand_as(ratio), rtol=1e-4, atol=0)


def test_contrast_multiplies_the_stops_from_the_median(shading):
    middle = shading.flatten(1).median(1).values.view(2, 1, 1, 1)
    edited = edit_shading(lit(shading), contrast=1.7)
    expected = 1.7 * (shading / middle).log2()
    torch.testing.assert_close((edited / middle).log2(), expected.expand(-1, 3, -1, -1), atol=1e-4, rtol=0)
    even = edit_shading(lit(shading), contrast=0)
    torch.testing.assert_close(even, middle.expand_as(even), rtol=1e-5, atol=0)


def test_flatten_mixes_the_light_with_even_light(shading):
    middle = shading.flatten(1).median(1).values.view(2, 1, 1, 1)
    expected = (0.75 * shading + 0.25 * middle).expand(-1, 3, -1, -1)
    torch.testing.assert_close(edit_shading(lit(shading), flatten=0.25), expected, rtol=1e-5, atol=0)


def test_tint_colours_the_light_and_keeps_its_luminance(shading):
    edited = edit_shading(lit(shading), tint=(0.8, 0.4, 0.1))
    torch.testing.assert_close(luminance(edited), shading, rtol=1e-5, atol=0)
    torch.testing.assert_close(edited[:, 1] / edited[:, 0], torch.full_like(edited[:, 0], 0.5), rtol=1e-5, atol=0)


def test_flat_light_is_white_whatever_its_colour_was(shading):
    coloured = shading * torch.tensor([1.3, 1.0, 0.7]).view(3, 1, 1)
    flat = edit_shading(lit(coloured), flatten=1)
    assert (flat.amax((1, 2, 3)) / flat.amin((1, 2, 3))).max() < 1.0001


@pytest.mark.parametrize("sigma", [1.5, 5.0, 20.0])
def test_a_blur_that_nothing_stops_makes_an_error_function_of_a_step(sigma):
    size = round(12 * sigma)
    step = (torch.arange(size) >= size // 2).float().expand(1, 2, 7, size)
    blurred = blur_on_surface(step, sigma)
    expected = torch.tensor([0.5 + 0.5 * erf((x + 0.5 - size // 2) / sigma / 2**0.5) for x in range(size)])
    torch.testing.assert_close(blurred, expected.expand_as(blurred), atol=0.04, rtol=0)
    slope = blurred[0, 0, 3].diff()
    at = torch.arange(1, size) - size // 2
    assert (slope * at.square()).sum().sqrt().item() == pytest.approx(sigma, rel=0.02)
    torch.testing.assert_close(blur_on_surface(step.mT, sigma), blurred.mT, atol=1e-5, rtol=0)


def surfaces(normals, distances):
    """Two halves of a picture, (3,) and distance each, without perspective to speak of."""
    n = torch.tensor(normals).mT[None, :, None].repeat_interleave(32, -1).expand(-1, -1, 48, -1)  # (1,3,48,64)
    depth = (torch.tensor(distances) - 1).repeat_interleave(32).expand(1, 1, 48, 64) / 3
    shading = torch.ones(1, 1, 48, 64)
    shading[..., 32:] = 0.1
    return make_gbuffer(shading.expand(-1, 3, -1, -1), n, depth, shading=shading, photo_encoding="linear")


@pytest.mark.parametrize(
    ("normals", "distances", "bleeds"),
    [
        ([[0.0, 0, 1], [0.0, 0, 1]], [2.0, 2.0], True),
        ([[0.0, 0, 1], [0.0, 0, 1]], [2.0, 3.0], False),  # one before the other
        ([[0.0, 0, 1], [1.0, 0, 0]], [2.0, 2.0], False),  # round a corner
    ],
)
def test_soften_stays_on_one_surface(normals, distances, bleeds):
    scene = surfaces(normals, distances)
    edited = edit_shading(scene, soften=0.08)
    step = scene.shading.expand_as(edited)
    assert ((edited / step).log().abs().max() > 0.5) == bleeds
    if not bleeds:
        torch.testing.assert_close(edited, step, rtol=0.01, atol=0)


def test_soften_follows_a_slanted_floor():
    """Its depth changes all the way, and still it is one surface: only the shadow's edge is softened."""
    camera = Camera(1, 4, 45)
    normal = torch.tensor([0.0, 1, 0.6]) / 1.36**0.5
    rays = Geometry(torch.ones(1, 1, 48, 64), camera).points[0]  # (3,48,64) at distance 1
    z = -1.2 / torch.einsum("c,chw->hw", normal, rays)  # the plane normal . p = -1.2
    floor = (z > 1) & (z < 4)
    depth = ((z - 1) / 3).clamp(0, 1).view(1, 1, 48, 64)
    shading = torch.where(torch.arange(64) < 32, 1.0, 0.1).expand(1, 1, 48, 64)
    facing = normal.view(1, 3, 1, 1).expand(-1, -1, 48, 64)
    photo = shading.expand(-1, 3, -1, -1)
    scene = make_gbuffer(photo, facing, depth, shading=shading, photo_encoding="linear", camera=camera)
    edited = edit_shading(scene, soften=0.05)[0, 0]
    plain = blur_on_surface(scene.shading.log(), 0.05 * 48)[0, 0].exp()
    rows = floor.all(1)
    rows[:-8] = rows[:-8] & rows[8:].clone()  # away from where the plane leaves the depth range
    assert rows.sum() > 10
    torch.testing.assert_close(edited[rows], plain[rows], rtol=0.02, atol=0)


def test_soften_blurs_the_logarithm():
    """A step from 1 to 16: 4 stops. In the middle of the blurred step there are 2 stops, the geometric mean."""
    step = torch.where(torch.arange(101) > 50, 16.0, 1.0).expand(1, 1, 101, 101).contiguous()
    step[..., 50] = 4
    edited = edit_shading(lit(step), soften=0.05)
    assert edited[0, 0, 50, 50].item() == pytest.approx(4, rel=0.01)
    assert edited[0, 0, 50, 20].item() == pytest.approx(1, rel=0.01) and edited[0, 0, 50, 80].item() > 15.8


@pytest.mark.parametrize(
    "edits, names",
    [
        ({"flatten": 1.1}, "flatten in 0..1"),
        ({"contrast": -1}, "contrast >= 0"),
        ({"soften": float("nan")}, "soften >= 0"),
        ({"tint": (0, 0, 0)}, "black tint"),
    ],
)
def test_edits_are_checked(shading, edits, names):
    with pytest.raises(ValueError, match=names):
        edit_shading(lit(shading), **edits)


# --- movement

RIG = (Sun(az=-40, el=30, name="key"), Point(x=0.2, y=0.3), Spot(x=0.9), Rim(az=150), Ambient(intensity=0.1))


def test_orbit_loops():
    rigs = animate([RIG], 8, "orbit")
    assert [rig[0].az for rig in rigs] == [-40 + 45 * i for i in range(8)]
    for i, rig in enumerate(rigs):
        assert (rig[1].x, rig[3].az) == (orbit(RIG, i / 8)[1].x, 150 + 45 * i)
    assert [rig[0].az for rig in animate([RIG], 4, "orbit", amount=-0.5)] == [-40, 275, 230, 185]  # 360 less


def test_sweep_goes_from_side_to_side():
    rigs = animate([RIG], 5, "sweep", amount=0.5)
    assert [rig[0].az for rig in rigs] == [-85, -62.5, -40, -17.5, 5]
    assert [round(rig[1].x, 6) for rig in rigs] == [-0.05, 0.075, 0.2, 0.325, 0.45]
    assert all(rig[1].y == 0.3 and rig[2].aim_x == 0.5 and rig[4] is RIG[4] for rig in rigs)
    panorama = Environment(image=torch.ones(1, 3, 2, 4))
    assert sweep((panorama,), 1)[0].rotation == 90


def test_one_frame_of_every_path():
    for path in ("orbit", "sweep", "flicker"):
        assert len(animate([RIG], 1, path)) == 1


def test_flicker_stays_within_its_strength_loops_and_repeats():
    rigs = animate([RIG], 60, "flicker", amount=0.4, seed=3)
    levels = torch.tensor([[light.intensity for light in rig] for rig in rigs])  # (frames, lights)
    assert (levels[:, 4] == torch.tensor(0.1)).all()  # ambient
    assert levels[:, :4].min() >= 0.6 and levels[:, :4].max() <= 1 and (levels[:, :4].std(0) > 0.05).all()
    steps = levels.diff(dim=0, append=levels[:1]).abs()
    assert steps.max() < 0.4 * 0.6  # smoothly, also from the last frame to the first: a third of a step's 3/2
    assert (levels[:, 0] - levels[:, 1]).abs().max() > 0.1  # each by itself
    again = animate([RIG], 60, "flicker", amount=0.4, seed=3)
    assert [light.intensity for light in again[7]] == [light.intensity for light in rigs[7]]
    assert animate([RIG], 60, "flicker", amount=0.4, seed=4)[7][0].intensity != rigs[7][0].intensity


def test_keyframes_are_interpolated_per_light_and_field():
    keys = [
        {"frame": 2, "light": "key", "az": 0, "color": "#ffffff"},
        {"frame": 6, "light": "key", "az": 80, "color": [0, 0.5, 1]},
        {"frame": -1, "light": "key", "az": 0},
        {"frame": 0, "light": 2, "height": 2},
        {"frame": 4, "intensity": 3},
    ]
    rigs = animate([RIG], 9, "keyframes", keyframes=json.dumps(keys))
    assert [rig[0].az for rig in rigs] == [0, 0, 0, 20, 40, 60, 80, 40, 0]
    assert rigs[4][0].color == pytest.approx((0.5, 0.75, 1)) and rigs[8][0].color == (0, 0.5, 1)
    assert all(rig[1].height == 2 and rig[2].height == RIG[2].height and rig[3].az == 150 for rig in rigs)
    assert all(light.intensity == 3 for rig in rigs for light in rig)


@pytest.mark.parametrize("ease", EASES)
def test_eases_start_and_end_where_they_should(ease):
    values = [EASES[ease](i / 20) for i in range(21)]
    assert values[0] == 0 and values[-1] == pytest.approx(1) and values == sorted(values)
    start, end = values[1] - values[0], values[-1] - values[-2]
    assert (start < 0.04) == (ease in ("in", "in-out")) and (end < 0.04) == (ease in ("out", "in-out"))
    keys = json.dumps([{"frame": 0, "az": 0}, {"frame": 20, "az": 1}])
    rigs = animate([RIG[:1]], 21, "keyframes", keyframes=keys, ease=ease)
    assert [rig[0].az for rig in rigs] == pytest.approx(values)


def test_movements_add_up():
    turning = animate([RIG], 4, "orbit")
    both = animate(turning, 4, "flicker", amount=0.5)
    assert [rig[0].az for rig in both] == [rig[0].az for rig in turning] and both[1][0].intensity < 1


@pytest.mark.parametrize(
    "arguments, names",
    [
        (([RIG], 4, "loop"), "orbit, sweep, flicker, keyframes"),
        (([RIG], 0, "orbit"), "at least one frame"),
        (([RIG, RIG], 4, "orbit"), "already animated over 2 frames"),
    ],
)
def test_animations_are_checked(arguments, names):
    with pytest.raises(ValueError, match=names):
        animate(*arguments)
    with pytest.raises(ValueError, match="linear, in, out, in-out"):
        animate([RIG], 4, "orbit", ease="bounce")
    with pytest.raises(ValueError, match=r"0\.\.1"):
        animate([RIG], 4, "flicker", amount=2)


@pytest.mark.parametrize(
    "text, names",
    [
        ("", "Keyframes are JSON"),
        ("[" * 100_000, "Keyframes are JSON"),
        ("{}", "Keyframes are a list"),
        ("[]", "Keyframes are a list"),
        ("[3]", "Keyframe 1 must be an object"),
        ('[{"frame": 0}]', "Keyframe 1 must be an object with a field"),
        ('[{"az": 3}]', "frame must be 0 to 9"),
        ('[{"frame": 10, "az": 3}]', "frame must be 0 to 9, not 10"),
        ('[{"frame": 0, "az": 3}, {"frame": true, "az": 3}]', "Keyframe 2: frame"),
        ('[{"frame": 0, "azimuth": 3}]', "no light here has a number or colour 'azimuth'"),
        ('[{"frame": 0, "shadow": true}]', "no light here"),
        ('[{"frame": 0, "light": "rim", "az": 3}]', "there is no light 'rim'"),
        ('[{"frame": 0, "light": 6, "az": 3}]', "1 to 5"),
        ('[{"frame": 0, "el": 91}]', "el: must be -90 to 90"),
        ('[{"frame": 0, "az": NaN}]', "az: must be"),
        ('[{"frame": 0, "kelvin": null}]', "kelvin: must be a number"),
    ],
)
def test_keyframes_are_checked(text, names):
    with pytest.raises(ValueError, match=names):
        read_keyframes(text, RIG, 10)
