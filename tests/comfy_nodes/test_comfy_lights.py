"""What the ComfyUI nodes do with lights, without ComfyUI: against the library's own functions."""

import pytest
import torch
from intrinsic_lora.comfy_nodes.gbuffers import to_gbuffer
from intrinsic_lora.comfy_nodes.photo_maps import PhotoMaps, to_image
from intrinsic_lora.comfy_nodes.rigs import (
    TYPES,
    all_lights,
    chained,
    environment_from_image,
    light_from_inputs,
    light_inputs,
    mixed,
    relight_frames,
)
from intrinsic_lora.intrinsics import linear_to_srgb, srgb_to_linear
from intrinsic_lora.intrinsics.relight import (
    LIGHT_FIELDS,
    LIGHT_TYPES,
    PRESETS,
    Ambient,
    Point,
    Sun,
    relight,
    rig_to_json,
)
from intrinsic_lora.tests.support.relit import ball, tensor

SUN, LAMP = Sun(az=-60, el=20), Point(x=0.8, y=0.2)


@pytest.fixture
def photo_maps():
    """Three photos of the ball, their maps alike."""
    b = ball()
    depth = tensor((b.z - b.z.min()) / (b.z.max() - b.z.min()))
    maps = {"normals": tensor(b.normals), "depth": depth, "shading": torch.ones_like(depth)}
    photo = torch.rand(3, 3, *depth.shape[2:], generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    return PhotoMaps(photo=photo, **{name: values.expand(3, -1, -1, -1) for name, values in maps.items()})


def alone(photo_maps, index):
    return PhotoMaps(**{n: x[index : index + 1] for n, x in vars(photo_maps).items() if isinstance(x, torch.Tensor)})


def assert_shows(found, index, gbuffer, lights, **look):
    expected = relight(gbuffer, lights, **look)
    for name, x in {"relit": expected.image, "diffuse": expected.diffuse, "specular": expected.specular}.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name][index], to_image(linear_to_srgb(x).clamp(0, 1))[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found["shadow"][index], expected.shadow[0, 0].clamp(0, 1), atol=1e-6, rtol=0)
    shading = linear_to_srgb(expected.shading).clamp(0, 1)
    torch.testing.assert_close(found["shading"][index], to_image(shading)[0], atol=1e-6, rtol=0)


# --- one light


def test_a_field_is_shown_for_the_types_that_have_it():
    for name, entry in light_inputs().items():
        assert entry.types == tuple(kind for kind in TYPES if hasattr(LIGHT_TYPES[kind](), name)), name


def test_the_node_offers_every_field_of_the_table():
    offered = light_inputs()
    for kind in TYPES:
        for name, field in LIGHT_FIELDS[kind].items():
            assert (name in offered) == (field.kind != "picture")
            if field.kind == "number":
                assert (offered[name].field.min, offered[name].field.max) == (field.min, field.max)
            if name in offered:
                assert field.tooltip in offered[name].tooltip
    assert offered["az"].tooltip.startswith("Sun, rim: Azimuth")
    assert not offered["intensity"].tooltip.startswith(("Sun", "Ambient"))


@pytest.mark.parametrize("kind", TYPES)
def test_untouched_inputs_give_a_light_of_the_types_own_fields(kind):
    values = {name: entry.field.default for name, entry in light_inputs().items()}
    values |= {"color": "#ffffff", "kelvin": 0.0, "intensity": 2.5}
    light = light_from_inputs(kind, values)
    assert type(light) is LIGHT_TYPES[kind] and light.intensity == 2.5
    assert light.kelvin is None and light.color == pytest.approx((1, 1, 1)) and light.mask is None


def test_inputs_mean_what_they_say():
    mask = torch.rand(5, 7)
    values = {"az": -30.0, "el": 10.0, "color": "#808080", "kelvin": 3200.0, "name": "key", "shadow": False, "x": 9.0}
    light = light_from_inputs("sun", values, mask)
    assert (light.az, light.el, light.kelvin, light.name, light.shadow) == (-30, 10, 3200, "key", False)
    assert light.color[0] == pytest.approx(srgb_to_linear(torch.tensor(128 / 255)).item())
    assert torch.equal(light.mask[0, 0], mask) and not hasattr(light, "x")


@pytest.mark.parametrize(
    "kind, values, names",
    [
        ("area", {}, "type must be one of sun, point, spot, rim, ambient, not 'area'"),
        ("environment", {}, "type must be one of sun"),
        ("sun", {"color": "white"}, "The input color must be a colour such as #ff8040, not 'white'"),
        ("sun", {"kelvin": 12.0}, "kelvin must be 1000 to 40000"),
        ("sun", {"az": float("nan")}, "az must be"),
        ("spot", {"angle": 0.0}, "angle must be 0.1 to 179.9"),
    ],
)
def test_inputs_are_checked(kind, values, names):
    with pytest.raises(ValueError, match=names):
        light_from_inputs(kind, values)


def test_environments_keep_what_is_brighter_than_white():
    image = torch.rand(1, 8, 16, 3) * 40
    linear = environment_from_image(image, "linear", 30.0, 2.0)
    assert torch.equal(to_image(linear.image), image) and (linear.rotation, linear.intensity) == (30, 2)
    torch.testing.assert_close(to_image(environment_from_image(image, "srgb", 0.0, 1.0).image), srgb_to_linear(image))
    for bad, names in (
        (image.expand(2, -1, -1, -1), "one panorama, not 2"),
        (image[:, :, :9], "9 x 8 pixels: an equirectangular panorama is twice as wide"),
        (image * torch.inf, "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=names):
            environment_from_image(bad, "linear", 0.0, 1.0)
    with pytest.raises(ValueError, match="encoding must be one of linear, srgb"):
        environment_from_image(image, "hdr", 0.0, 1.0)


# --- rigs


def test_lights_presets_and_json_add_up():
    still = chained(chained(None, SUN), LAMP)
    assert still == [(SUN, LAMP)]
    assert chained([(SUN,), (LAMP,)], LAMP) == [(SUN, LAMP), (LAMP, LAMP)]
    rigs = all_lights(still, "rembrandt", rig_to_json([Ambient(intensity=0.3)]))
    assert rigs[0][:2] == (SUN, LAMP) and rigs[0][2:5] == PRESETS["rembrandt"] and rigs[0][5].intensity == 0.3
    assert all_lights(None, "split", "") == [PRESETS["split"]]
    muted = [(Sun(enabled=False),)]
    assert all_lights(muted, "none", " ") == muted
    assert all_lights(None, "none", "") == all_lights(None, "none", rig_to_json([])) == [()]
    for arguments, names in (
        ((None, "noir", ""), "preset must be one of none, rembrandt"),
        ((None, "none", "{"), "not valid JSON"),
        ((None, "none", '{"format": "intrinsic-lora-rig", "version": 2, "lights": []}'), "newer version"),
    ):
        with pytest.raises(ValueError, match=names):
            all_lights(*arguments)


def test_without_a_light_there_is_ambient(photo_maps):
    """As where the only Light is bypassed."""
    found = relight_frames(photo_maps, all_lights(None, "none", ""), ambient=0.3)
    flat = linear_to_srgb(srgb_to_linear(photo_maps.photo) * 0.3)  # shading is 1 everywhere
    torch.testing.assert_close(found["relit"], to_image(flat), atol=1e-5, rtol=0)


def test_mix_is_the_opacity_of_the_result(photo_maps):
    relit = torch.rand(6, *photo_maps.photo.shape[2:], 3)
    one = alone(photo_maps, 0)
    for share in (0.0, 0.25, 1.0):
        found = mixed(one, relit.clone(), share)
        for i in range(6):  # one photo under six lights
            torch.testing.assert_close(found[i], to_image(one.photo)[0] * (1 - share) + relit[i] * share)
    found = mixed(photo_maps, relit[:3].clone(), 0.0)  # frame by frame
    torch.testing.assert_close(found, to_image(photo_maps.photo))


# --- frames


def test_a_batch_under_one_rig(photo_maps):
    steps = []
    look = {"mode": "albedo", "specular": 0.4, "shadow": 0.7, "occlusion": 0.5, "exposure": 0.3}
    found = relight_frames(photo_maps, [(SUN, LAMP)], roughness=0.3, step=lambda: steps.append(1), **look)
    assert len(steps) == 3 and found["relit"].shape == (3, 30, 44, 3) and found["shadow"].shape == (3, 30, 44)
    assert found["shadow"].min() < 0.99 and found["specular"].max() > 0.05
    for i in range(3):
        assert_shows(found, i, to_gbuffer(alone(photo_maps, i), roughness=0.3), [SUN, LAMP], **look)


def test_one_picture_under_many_rigs_and_frame_by_frame(photo_maps):
    rigs = [(SUN,), (LAMP,), (SUN, LAMP)]
    many = relight_frames(alone(photo_maps, 1), rigs, camera={"near": 2.0, "fov": 60.0})
    each = relight_frames(photo_maps, rigs)
    for i, rig in enumerate(rigs):
        assert_shows(many, i, to_gbuffer(alone(photo_maps, 1), near=2.0, fov=60.0), rig)
        assert_shows(each, i, to_gbuffer(alone(photo_maps, i)), rig)


def test_masks_of_any_size_one_or_one_per_frame(photo_maps):
    left = torch.zeros(1, 1, 3, 4)
    left[..., :2] = 1
    frames = torch.stack([left[0], 1 - left[0], left[0]])  # (3,1,3,4)
    lamp = Ambient(mask=frames)
    found = relight_frames(photo_maps, [(lamp,)], mode="albedo", mask=torch.ones(3, 5, 5))
    lit = found["shading"].mean((1, 3))  # (3,44)
    assert (lit[[0, 2], :14] > 0.999).all() and (lit[[0, 2], -14:] == 0).all()
    assert (lit[1, :14] == 0).all() and (lit[1, -14:] > 0.999).all()
    masks = torch.stack([torch.zeros(5, 5), torch.ones(5, 5), torch.zeros(5, 5)])
    kept = relight_frames(photo_maps, [(SUN,)], mask=masks, exposure=-3.0)
    original = to_image(photo_maps.photo)
    torch.testing.assert_close(kept["relit"][[0, 2]], original[[0, 2]], atol=1e-5, rtol=0)
    assert (kept["relit"][1] - original[1]).abs().mean() > 0.1
    still = relight_frames(alone(photo_maps, 0), [(SUN,)] * 3, mask=masks, exposure=-3.0)
    torch.testing.assert_close(still["relit"][2], original[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "arguments, names",
    [
        ({"rigs": [(SUN,)] * 2}, "3 pictures and 2 frames of lights"),
        ({"rigs": [(SUN,)], "mode": "multiply"}, "mode must be one of ratio, albedo, add"),
        ({"rigs": [(SUN,)], "mask": torch.ones(2, 4, 4)}, "2 masks in mask and 3 frames"),
        ({"rigs": [(Sun(mask=torch.ones(2, 1, 4, 4)),)]}, "2 masks in a light's mask and 3 frames"),
        ({"rigs": [(SUN,)], "camera": {"near": 9.0}}, "0 < near < far, not 9 and 4"),
    ],
)
def test_what_does_not_go_together_is_said(photo_maps, arguments, names):
    with pytest.raises(ValueError, match=names):
        relight_frames(photo_maps, **arguments)
    with pytest.raises(ValueError, match="has no normals"):
        relight_frames(PhotoMaps(photo=photo_maps.photo), [(SUN,)])
