"""Core's lights and ours: what core computes of its lights (comfy_extras/nodes_light_3d.py), in closed form."""

from math import pi, sqrt

import pytest
import torch
from intrinsic_lora.comfy_nodes.light_info import info_from_lights, lights_from_info
from intrinsic_lora.intrinsics import srgb_to_linear
from intrinsic_lora.intrinsics.relight import Ambient, Camera, Point, Rim, Spot, Sun, make_gbuffer, relight

ORIGIN = {"x": 0.0, "y": 0.0, "z": 0.0}
FRONT = {"x": 0.0, "y": 0.0, "z": 2.0}


def facing():
    """Build a grey wall that faces the viewer, 9 x 9 pixels."""
    photo, normals = torch.full((1, 3, 9, 9), 0.5), torch.zeros(1, 3, 9, 9)
    normals[:, 2] = 1
    flat = torch.full((1, 1, 9, 9), 0.5)
    return make_gbuffer(photo, normals, flat, photo, torch.ones_like(flat), camera=Camera(1, 4, 45))


def shading(light):
    """Of the wall's middle pixel, without anything but the light itself."""
    found = relight(facing(), [light], ambient=0.0, specular=0.0, shadow=0.0, occlusion=0.0)
    return found.shading[0, :, 4, 4]


def test_a_directional_light_shines_as_in_core():
    """Its irradiance: color * intensity * n.l, of which a white surface reflects 1 / pi."""
    position, target = {"x": 3.0, "y": 1.0, "z": 2.0}, {"x": 1.0, "y": 0.0, "z": 1.0}
    info = {"type": "directional", "color": "#ff8000", "intensity": 2.5, "position": position, "target": target}
    [light] = lights_from_info([info])
    n_l = 1 / sqrt(2**2 + 1**2 + 1**2)  # of (2, 1, 1) with (0, 0, 1)
    expected = srgb_to_linear(torch.tensor([255, 128, 0]) / 255) * 2.5 * n_l / pi
    torch.testing.assert_close(shading(light), expected, atol=1e-5, rtol=0)
    assert light.az == pytest.approx(63.4349, abs=1e-3)  # atan(2 / 1)


def test_a_point_light_falls_off_with_the_square_of_its_distance():
    near, far = (
        {"type": "point", "color": "#ffffff", "intensity": 1.0, "position": {"x": 0.0, "y": 0.0, "z": z}}
        for z in (1, 2)
    )
    one, two = (shading(light)[0].item() for light in lights_from_info([near, far]))
    assert one == pytest.approx(1 / pi, rel=1e-3) and two == pytest.approx(1 / (4 * pi), rel=1e-3)


def test_a_position_is_a_place_in_the_picture():
    info = {"type": "point", "position": {"x": -1.0, "y": 1.0, "z": 0.5}, "radius": 0.3, "castShadow": False}
    [light] = lights_from_info([info])
    assert (light.x, light.y, light.height, light.softness, light.shadow) == (0, 0, 0.5, 0.3, False)


def test_a_cone_is_that_of_core():
    """Core fades from the inner to the outer half angle by the cosine; so does a spot from (1 - blend) * half."""
    info = {"type": "spot", "position": FRONT, "target": ORIGIN, "innerConeAngle": 10.0, "outerConeAngle": 40.0}
    [spot] = lights_from_info([info])
    assert (spot.aim_x, spot.aim_y, spot.angle) == (0.5, 0.5, 80)
    assert spot.angle / 2 * (1 - spot.blend) == pytest.approx(10)


def test_there_and_back():
    lights = [
        Sun(az=-60.0, el=20.0, softness=0.2, intensity=0.7),
        Point(x=0.8, y=0.2, height=0.4, softness=0.05, shadow=False),
        Spot(x=0.1, y=0.9, height=1.5, aim_x=0.4, aim_y=0.7, angle=70.0, blend=0.25),
    ]
    for light, again in zip(lights, lights_from_info(info_from_lights(lights)), strict=True):
        assert type(light) is type(again)
        for name, value in vars(light).items():
            if isinstance(value, float):
                assert getattr(again, name) == pytest.approx(value, abs=1e-5), name
            else:
                assert getattr(again, name) == value or name == "color", name


def test_what_core_cannot_show_is_left_out_and_colours_stay_in_range():
    lights = [Ambient(), Sun(enabled=False), Rim(az=180.0, el=0.0, color=(4.0, 2.0, 0.0))]
    [info] = info_from_lights(lights)
    assert info["type"] == "directional" and info["position"]["z"] == pytest.approx(-2.5)
    red, green, blue = (int(info["color"][i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = srgb_to_linear(torch.tensor([red, green, blue])) * info["intensity"] / pi
    torch.testing.assert_close(linear, torch.tensor([4.0, 2.0, 0.0]), atol=4 / 255, rtol=0)
    assert info["radius"] == pytest.approx(2 * 11.3099, abs=1e-3)  # atan(0.2)


@pytest.mark.parametrize(
    ("light", "words"),
    [
        ({"type": "area"}, "type 'area'"),
        ({"type": "point", "intensity": -1.0}, "The intensity of a light"),
        ({"type": "point", "color": "red"}, "The color of a light"),
        ({"type": "directional", "intensity": float("nan")}, "The intensity of a light"),
    ],
)
def test_a_bad_light_is_refused_in_one_sentence(light, words):
    with pytest.raises(ValueError, match=words) as refused:
        lights_from_info([light])
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
