"""Relighting for all inputs: nothing is ever NaN or infinite, mirrored scenes mirror, light is linear."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intrinsic_lora.intrinsics import mirror_normals
from intrinsic_lora.intrinsics.relight import (
    MODES,
    Ambient,
    Camera,
    Environment,
    Point,
    Rim,
    Spot,
    Sun,
    make_gbuffer,
    relight,
)

PASSES = ("image", "diffuse", "specular", "shadow", "shading", "ambient_occlusion")
NUMBERS = ("az", "el", "intensity", "x", "y", "height", "softness", "aim_x", "aim_y", "angle", "blend", "width")
SIZES = [(1, 1), (1, 5), (6, 1), (2, 2), (5, 7)]


def some(*values):
    """Draw critical values of formulas, or any value between the first and the last."""
    return st.sampled_from(values) | st.floats(min(values), max(values))


angles = some(-180.0, -90.0, 0.0, 45.0, 90.0, 180.0)
spread = some(0.0, 1e-6, 0.1, 2.0)
anywhere = {"x": some(-2.0, 0.0, 0.5, 1.0, 3.0), "y": some(-2.0, 0.0, 0.5, 1.0, 3.0)}
aim = {f"aim_{k}": v for k, v in anywhere.items()}
common = {"intensity": some(0.0, 1.0, 50.0), "kelvin": st.sampled_from([None, 1000.0, 6500.0, 40000.0])}
sun = common | {"az": angles, "el": some(-90.0, 0.0, 30.0, 90.0), "softness": spread}
point = common | anywhere | {"height": some(-5.0, -0.5, 0.0, 1e-6, 0.5, 2.5, 9.0), "softness": spread}
SUNS = [st.builds(Ambient, **common), st.builds(Sun, **sun), st.builds(Rim, **sun, width=some(0.01, 0.5, 1.0))]
LAMPS = [
    st.builds(Point, **point),
    st.builds(Spot, **point, **aim, angle=some(0.01, 30.0, 179.9), blend=some(0.0, 0.3, 1.0)),
]
# No lamp in a surface and no sharp cone: there a rounding error decides between light and dark.
point = point | {"height": some(0.1, 1.0, 3.0), "softness": some(0.03, 2.0)}
PLAIN_LAMPS = [
    st.builds(Point, **point),
    st.builds(Spot, **point, **aim, angle=some(10.0, 30.0, 150.0), blend=some(0.2, 1.0)),
]
PANORAMAS = {"black": torch.zeros(1, 3, 2, 4), "bright": 9 * torch.rand(1, 3, 4, 8, generator=torch.Generator())}
panorama = st.sampled_from(list(PANORAMAS)).map(PANORAMAS.get)
ANY_LIGHT = st.one_of(*SUNS, *LAMPS, st.builds(Environment, image=panorama, rotation=angles))


def up(b, h, w):
    return torch.tensor([0.0, 0.0, 1.0])[:, None, None].repeat(b, 1, h, w)


@st.composite
def maps(draw, dtypes=(torch.float32,)):
    """Keyword arguments of `make_gbuffer`, each map zero, flat, random or missing."""
    b, (h, w) = draw(st.integers(1, 2)), draw(st.sampled_from(SIZES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from(dtypes))

    def picture(channels, *others):
        kinds = [torch.zeros, torch.ones, lambda *size: torch.rand(*size, generator=generator), *others]
        kind = draw(st.sampled_from(kinds))
        return None if kind is None else kind(b, channels, h, w).to(dtype)

    random_normals = torch.randn(b, 3, h, w, generator=generator)
    choices = [torch.zeros(b, 3, h, w), up(b, h, w), -up(b, h, w), random_normals]
    given_maps = {
        "photo": picture(3),
        "normals": draw(st.sampled_from(choices)).to(dtype),
        "depth": picture(1, None),
        "albedo": picture(3, None),
        "shading": picture(draw(st.sampled_from([1, 3])), None),
        "roughness": picture(1, None),
        "mask": picture(1, None),
    }
    kinds = ["distance", "near-white", "disparity"]
    if given_maps["depth"] is not None and given_maps["depth"].min() > 0.01:
        kinds.append("metric")
    return given_maps | {
        "depth_kind": draw(st.sampled_from(kinds)),
        "photo_encoding": draw(st.sampled_from(["srgb", "linear"])),
    }


options = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(MODES),
        "keep_original": some(0.0, 1.0),
        "ambient": some(0.0, 1.0),
        "exposure": some(-8.0, 0.0, 8.0),
        "shadow": some(0.0, 1.0),
        "specular": some(0.0, 0.5, 1.0),
        "occlusion": some(0.0, 1.0),
    }
)


@settings(max_examples=120, deadline=None)
@given(maps((torch.float32, torch.float16)), st.lists(ANY_LIGHT, max_size=3), options)
def test_every_pass_is_finite_and_not_negative(maps, lights, options):
    gbuffer = make_gbuffer(**maps)
    assert gbuffer.residual.isfinite().all()
    assert (gbuffer.shading > 0).all()
    relit = relight(gbuffer, lights, **options)
    for name in PASSES:
        value = getattr(relit, name)
        assert value.dtype == torch.float32
        assert value.shape == (*gbuffer.photo.shape[:1], value.shape[1], *gbuffer.photo.shape[2:])
        assert value.isfinite().all(), name
        assert (value >= 0).all(), name
    assert (relit.shadow <= 1 + 1e-5).all()
    assert (relit.ambient_occlusion <= 1).all()


def check_gradients(maps, lights, options):
    for name in ("photo", "normals", "depth", "albedo", "shading", "roughness"):
        if maps[name] is not None:
            maps[name].requires_grad_()
    lights = [
        replace(light, **{k: torch.tensor(v, requires_grad=True) for k, v in vars(light).items() if k in NUMBERS})
        for light in lights
    ]
    relit = relight(make_gbuffer(**maps), lights, **options)
    total = sum(getattr(relit, name).mean() for name in PASSES)
    wanted = {k: v for k, v in maps.items() if isinstance(v, torch.Tensor) and v.requires_grad}
    for i, light in enumerate(lights):
        wanted |= {f"{type(light).__name__} {i} {k}": getattr(light, k) for k in NUMBERS if hasattr(light, k)}
    grads = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    for name, grad in zip(wanted, grads, strict=True):
        assert grad is None or grad.isfinite().all(), name
    return dict(zip(wanted, grads, strict=True))


@settings(max_examples=100, deadline=None)
@given(maps(), st.lists(st.one_of(*SUNS, *LAMPS), min_size=1, max_size=2), options)
def test_every_gradient_is_finite(maps, lights, options):
    check_gradients(maps, lights, options)


@pytest.mark.parametrize(
    "light",
    [
        Point(x=0.5, y=0.5, height=0.0, softness=0.0),  # the lamp is the surface point
        Spot(x=0.5, y=0.5, height=0.0, aim_x=0.5, aim_y=0.5),  # and is aimed at itself
        Spot(x=0.5, y=0.5, height=1.0, aim_x=0.5, aim_y=0.5, blend=0.0),
        Point(x=0.5, y=0.5, height=2.5),  # the lamp is the camera
        Sun(az=180.0, el=0.0),  # no half vector
        Sun(az=0.0, el=0.0, softness=0.0),  # the half vector is the normal
        Rim(az=180.0, el=0.0),  # no side
        Rim(az=0.0, el=0.0, softness=0.0),  # nor here; and no edge
    ],
)
@pytest.mark.parametrize("towards", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_where_directions_vanish(light, towards, mode):
    # the only pixel lies on the optical axis at distance 2.5
    half, normals = torch.full((1, 1, 1, 1), 0.5), towards * up(1, 1, 1)
    maps = {"photo": half.expand(1, 3, 1, 1).clone(), "normals": normals, "depth": half.clone(), "albedo": None}
    maps |= {"shading": half.clone(), "roughness": 0 * half}
    grads = check_gradients(maps, [light], {"mode": mode, "specular": 0.5, "occlusion": 1.0})
    assert grads["photo"] is not None


def scene(seed=0, size=(5, 8)):
    generator = torch.Generator().manual_seed(seed)
    names = {"photo": 3, "depth": 1, "albedo": 3, "shading": 1, "roughness": 1}
    maps = {k: torch.rand(1, c, *size, generator=generator) for k, c in names.items()}
    return maps | {"normals": torch.randn(1, 3, *size, generator=generator) + up(1, *size)}


def turned(light, **signs):
    """Mirror a light: negate angles, and count positions from the other border."""
    fields = {k: -getattr(light, k) for k in ("az", "el") if k in signs and hasattr(light, k)}
    fields |= {k: 1 - getattr(light, k) for k in ("x", "aim_x", "y", "aim_y") if k in signs and hasattr(light, k)}
    return replace(light, **fields)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(*SUNS, *PLAIN_LAMPS), min_size=1, max_size=2), options, st.sampled_from([(5, 8), (8, 5)]))
def test_a_mirrored_scene_under_mirrored_light_is_the_mirrored_picture(lights, options, size):
    options |= {"shadow": 0.0, "occlusion": 0.0}  # their rays are spread over tiles that have no mirror image
    maps = scene(size=size)
    image = relight(make_gbuffer(**maps), lights, **options).image
    across = {k: v.flip(-1) for k, v in maps.items()} | {"normals": mirror_normals(maps["normals"])}
    mirrored = relight(make_gbuffer(**across), [turned(n, az=1, x=1, aim_x=1) for n in lights], **options).image
    torch.testing.assert_close(mirrored.flip(-1), image, rtol=1e-3, atol=1e-4)
    upside_down = {k: v.flip(-2) for k, v in maps.items()}
    upside_down["normals"] = upside_down["normals"] * torch.tensor([1.0, -1.0, 1.0])[:, None, None]
    mirrored = relight(make_gbuffer(**upside_down), [turned(n, el=1, y=1, aim_y=1) for n in lights], **options).image
    torch.testing.assert_close(mirrored.flip(-2), image, rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.lists(ANY_LIGHT, min_size=1, max_size=3), options, some(0.0, 0.5, 20.0))
def test_light_is_linear(lights, options, factor):
    options |= {"ambient": 0.0, "keep_original": 0.0, "exposure": 0.0}
    gbuffer = make_gbuffer(**scene())
    own = gbuffer.photo if options["mode"] == "add" else 0 * gbuffer.photo

    def added(lights):
        return relight(gbuffer, lights, **options).image - own

    dimmed = [replace(n, intensity=factor * n.intensity) for n in lights]
    one_by_one = sum(factor * added([n]) for n in reversed(lights))
    tolerance = 1e-5 * (1 + one_by_one.abs().max().item())
    torch.testing.assert_close(added(dimmed), one_by_one, rtol=1e-4, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(st.one_of(*PLAIN_LAMPS), some(0.5, 3.0, 100.0))
def test_a_scene_of_twice_the_size_needs_four_times_the_light(light, size):
    maps = scene()
    small, large = (make_gbuffer(**maps, camera=Camera(s, 4 * s, 45)) for s in (1.0, size))
    grown = replace(light, height=light.height * size, softness=light.softness * size)
    grown = replace(grown, intensity=light.intensity * size**2)
    before, after = (relight(g, [n], shadow=0).shading for g, n in ((small, light), (large, grown)))
    torch.testing.assert_close(after, before, rtol=2e-3, atol=2e-3 * (1e-2 + before.max().item()))
