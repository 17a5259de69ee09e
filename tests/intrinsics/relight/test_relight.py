"""Relighting against closed forms: lights on a ray-cast ball, GGX integrated numerically, ways to combine."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics.color import luminance
from intrinsic_lora.intrinsics.relight import (
    MODES,
    Ambient,
    Light,
    Point,
    Rim,
    Spot,
    Sun,
    combine,
    kelvin_to_linear,
    make_gbuffer,
    relight,
)
from intrinsic_lora.intrinsics.relight.lights import Incidence
from intrinsic_lora.intrinsics.relight.shading import LIGHT_WIDTH, ggx, lambert, rim
from intrinsic_lora.tests.support.relit import array, ball, direction, tensor, textbook_ggx, unit
from scipy.spatial.transform import Rotation

LIGHTS = {
    "ambient": Ambient(intensity=0.3, color=(1.0, 0.8, 0.6)),
    "sun": Sun(az=-35.0, el=25.0, intensity=1.2),
    "rim": Rim(az=150.0, kelvin=4000.0),
    "point": Point(x=0.2, y=0.3, height=0.7, color=(0.2, 0.6, 1.0)),
    "spot": Spot(x=0.9, y=0.1, height=1.5, aim_x=0.5, aim_y=0.6, intensity=3.0),
}


@pytest.fixture(scope="module")
def scene():
    return ball()


@pytest.fixture(scope="module")
def textured(scene):
    """Build a G-buffer with noisy albedo, a ball lit from the right, and maps that explain the photo."""
    generator = torch.Generator().manual_seed(0)
    albedo = 0.1 + 0.7 * torch.rand(1, 3, *scene.z.shape, generator=generator)
    shading = tensor(0.1 + np.clip(scene.normals @ direction(50, 20), 0, None))
    return scene.gbuffer(photo=albedo * shading, albedo=albedo, shading=shading)


def shading_of(gbuffer, *lights, **options):
    return array(relight(gbuffer, lights, shadow=0, **options).shading)[..., 0]


# --- lights on the ball


@pytest.mark.parametrize(("az", "el"), [(0, 0), (-40, 35), (75, -20), (10, 80), (-130, 5)])
def test_sun_on_a_ball(scene, az, el):
    truth = np.clip(scene.normals @ direction(az, el), 0, None)
    assert truth.max() > 0.1
    assert abs(shading_of(scene.gbuffer(), Sun(az=az, el=el, intensity=2.5)) - 2.5 * truth).max() < 1e-4


@pytest.mark.parametrize("size", [(30, 44), (44, 30), (32, 32)])
@pytest.mark.parametrize(("row", "column", "height"), [(14, 25, 0.9), (14, 25, -0.4), (2, 40, 1.6), (28, 3, 0.05)])
def test_point_light_stands_exactly_its_height_before_the_pixel_it_is_dragged_to(size, row, column, height):
    column = column * size[1] // 44
    scene = ball(*size)
    lamp = scene.points[row, column] + [0, 0, height]
    to_lamp = lamp - scene.points
    d = np.linalg.norm(to_lamp, axis=-1)
    truth = np.clip((scene.normals * to_lamp).sum(-1) / d, 0, None) / np.maximum(d, 0.25) ** 2
    light = Point(x=(column + 0.5) / size[1], y=(row + 0.5) / size[0], height=height, softness=0.25)
    position = light.incidence(geometry := scene.gbuffer().geometry)
    assert abs(array(position.direction * position.distance + geometry.points) - lamp).max() < 1e-5
    # A lamp that is 1e-5 off lies in another direction by 1e-5 / d, and near it the light is 16 times as strong.
    bound = 1e-5 + 1e-5 / (d * np.maximum(d, 0.25) ** 2)
    assert (abs(shading_of(scene.gbuffer(), light) - truth) < bound).all()


@pytest.mark.parametrize(("x", "y"), [(-0.3, 0.5), (1.4, -0.2), (0.02, 1.2), (0.013, 0.029)])
def test_beyond_the_frame_a_lamp_hangs_before_the_continued_wall(scene, x, y):
    height, width = scene.z.shape
    half = np.tan(np.radians(25))
    at = np.array([(2 * x - 1) * half, (1 - 2 * y) * half * height / width, -1]) * 4 + [0, 0, 1.1]
    to_lamp = at - scene.points
    d = np.linalg.norm(to_lamp, axis=-1)
    truth = np.clip((scene.normals * to_lamp).sum(-1), 0, None) / d**3
    assert abs(shading_of(scene.gbuffer(), Point(x=x, y=y, height=1.1)) - truth).max() < 1e-4


@pytest.mark.parametrize(("angle", "blend"), [(40.0, 0.3), (90.0, 1.0), (20.0, 0.05), (1.0, 0.3)])
def test_spot_on_a_ball(scene, angle, blend):
    height, width = scene.z.shape
    lamp, aim = scene.points[3, 8] + [0, 0, 3.0], scene.points[16, 20]
    to_lamp = lamp - scene.points
    d = np.linalg.norm(to_lamp, axis=-1)
    off_axis = (-to_lamp / d[..., None]) @ unit(aim - lamp)
    outer, inner = np.cos(np.radians(angle / 2)), np.cos(np.radians(angle / 2 * (1 - blend)))
    t = np.clip((off_axis - outer) / (inner - outer), 0, 1)
    truth = np.clip((scene.normals * to_lamp).sum(-1), 0, None) / d**3 * (3 * t**2 - 2 * t**3)
    assert truth[16, 20] > 0.02
    assert (truth == 0).mean() > 0.1
    light = Spot(x=8.5 / width, y=3.5 / height, height=3.0, aim_x=20.5 / width, aim_y=16.5 / height)
    ours = shading_of(scene.gbuffer(), replace(light, angle=angle, blend=blend))
    # float32 holds the cosines of a one-degree cone to some per mille of the cone
    assert abs(ours - truth).max() < (1e-4 if angle > 1 else 1e-2 * truth.max())


def test_rim_draws_the_edges_on_its_side():
    def shade(n, direction_, **fields):
        n, d = (torch.tensor(v, dtype=torch.float32).reshape(1, 3, 1, 1) for v in (n, direction_))
        view = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
        return rim(n, view, Incidence(d, torch.ones(1, 1, 1, 1), None), Rim(**fields))[0].item()

    left, right, facing = (-1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    for az in (-170, -120, -90):
        assert shade(left, direction(az, 0)) == pytest.approx(1, abs=1e-4)
        assert shade(right, direction(az, 0), softness=0) == 0
        assert shade(facing, direction(az, 0)) == pytest.approx(0, abs=1e-4)
    for edge in (left, right, (0.0, 1.0, 0.0), (0.0, -1.0, 0.0)):
        assert shade(edge, (0.0, 0.0, -1.0)) == pytest.approx(1, abs=1e-3)
    # halfway to the edge, (1 - N.V) ** (1 / width): the wider, the further it reaches in
    slant = (-np.sin(1.0), 0.0, np.cos(1.0))
    for width in (0.2, 0.5, 1.0):
        assert shade(slant, left, width=width, softness=0.9) == pytest.approx(
            (1 - np.cos(1.0)) ** (1 / width) * (np.sin(1.0) + 0.9) / 1.9, abs=1e-4
        )
    n, *_ = random_directions()  # a surface seen face on, where N.V rounds to above 1
    n = columns(n).requires_grad_()
    face_on = rim(n, n.detach(), Incidence(n.detach().flip(1), 0 * n[:, :1], None), Rim(width=0.3))[0]
    assert (face_on.abs() < 1e-6).all()
    assert torch.autograd.grad(face_on.sum(), n)[0].isfinite().all()
    ball_ = ball()
    drawn = shading_of(ball_.gbuffer(), Rim(az=-140.0, el=0.0)) * ball_.hit
    middle = int(np.flatnonzero(ball_.hit.any(0)).mean()) + 1
    assert drawn[:, :middle].sum() > 10 * drawn[:, middle:].sum()


def test_colour_kelvin_and_intensity_multiply(scene):
    plain = relight(scene.gbuffer(), [Sun()], shadow=0).shading
    light = Sun(color=(0.9, 0.5, 0.1), kelvin=3000.0, intensity=2.0)
    tint = 2 * torch.tensor([0.9, 0.5, 0.1]) * kelvin_to_linear(3000)
    coloured = relight(scene.gbuffer(), [light], shadow=0).shading
    torch.testing.assert_close(coloured, plain * tint[:, None, None])


def planck_rgb(kelvin):
    """Planck's law seen by the CIE 1931 observer (lobes of Wyman, Sloan, Shirley 2013): linear sRGB, Y = 1."""
    nm = np.arange(360.0, 831.0)

    def lobe(mu, below, above):
        return np.exp(-0.5 * ((nm - mu) * np.where(nm < mu, below, above)) ** 2)

    x = 0.362 * lobe(442.0, 0.0624, 0.0374) + 1.056 * lobe(599.8, 0.0264, 0.0323) - 0.065 * lobe(501.1, 0.0490, 0.0382)
    y = 0.821 * lobe(568.8, 0.0213, 0.0247) + 0.286 * lobe(530.9, 0.0613, 0.0322)
    z = 1.217 * lobe(437.0, 0.0845, 0.0278) + 0.681 * lobe(459.0, 0.0385, 0.0725)
    spectrum = nm**-5 / np.expm1(1.438777e7 / (nm * kelvin))
    xyz = np.array([(spectrum * bar).sum() for bar in (x, y, z)])
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    return np.linalg.solve(to_xyz, xyz / xyz[1])


@pytest.mark.parametrize("kelvin", [2000, 2700, 3200, 4000, 5000, 6500, 9000, 15000, 25000])
def test_kelvin_is_a_black_body_relative_to_6500_k(kelvin):
    truth = planck_rgb(kelvin).clip(0) / planck_rgb(6500)
    truth /= truth @ [0.2126, 0.7152, 0.0722]
    ours = kelvin_to_linear(kelvin)
    # 3 % of the brightest channel: the fit of the observer and the spline of the locus both err by about 1 %.
    assert abs(ours.numpy() - truth).max() < 0.03 * truth.max()
    assert luminance(ours[:, None, None]).item() == pytest.approx(1, abs=1e-4)


def test_kelvin_at_its_limits():
    assert kelvin_to_linear(6500).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    warm, cool = kelvin_to_linear(1000), kelvin_to_linear(40000)
    assert warm[0] > warm[1] > warm[2] == 0
    assert cool[2] > cool[1] > cool[0] > 0
    for kelvin in (999, 40001, float("nan")):
        with pytest.raises(ValueError, match="between 1000 and 40000 kelvin"):
            kelvin_to_linear(kelvin)


# --- GGX


def hemisphere(cos_view, steps=400, turns=180):
    """Return the view, its reflections (N, 3) at half vectors dense around the normal, and their solid angles (N,)."""
    u = (np.arange(steps) + 0.5) / steps
    theta, phi = np.meshgrid(np.pi / 2 * u**4, (np.arange(turns) + 0.5) / turns * 2 * np.pi, indexing="ij")
    weight = np.sin(theta) * (np.pi / 2 * 4 * u**3 / steps)[:, None] * 2 * np.pi / turns
    half = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1).reshape(-1, 3)
    view = np.array([np.sqrt(1 - cos_view**2), 0, cos_view])
    v_h = half @ view
    light = 2 * v_h[:, None] * half - view
    return view, light, weight.ravel() * 4 * np.clip(v_h, 0, None) * (light[:, 2] > 0)


def columns(v, like=None):
    v = np.broadcast_to(v, np.shape(v if like is None else like))
    return torch.tensor(v.T, dtype=torch.float32)[None, :, :, None]  # (1,3,N,1)


@pytest.mark.parametrize("roughness", [0.05, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("widen", [0.0, 0.15])
def test_ggx_reflects_no_more_than_it_receives(roughness, widen):
    for cos_view in (1.0, 0.8, 0.5, 0.2, 0.05):
        view, light, weight = hemisphere(cos_view)
        n, v, direction_ = columns([0, 0, 1.0], light), columns(view, light), columns(light)
        rough = torch.full_like(n[:, :1], roughness)
        lobe = ggx(n, v, direction_, rough, 1.0, widen).flatten().double().numpy() / np.pi
        energy = (lobe * weight).sum()
        assert energy < 1.002
        if cos_view == 1 and widen == 0 and roughness <= 0.3:
            assert energy > 0.99


def random_directions(n=4000):
    rng = np.random.default_rng(1)
    turn = Rotation.random(n, random_state=2)
    cosine, angle = rng.uniform(0.05, 1, (2, n)), rng.uniform(0, 2 * np.pi, (2, n))
    sine = np.sqrt(1 - cosine**2)
    v, light = np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine], -1)
    return turn.apply([0, 0, 1.0]), turn.apply(v), turn.apply(light), rng.uniform(0.1, 1, n)


def test_ggx_is_the_textbook_formula_and_reciprocal():
    n, v, light, roughness = random_directions()
    rough = torch.from_numpy(roughness).float().reshape(1, 1, -1, 1)
    for f0 in (0.02, 0.04, 1.0):
        ours = ggx(columns(n), columns(v), columns(light), rough, f0)
        truth = textbook_ggx(n, v, light, roughness, f0)
        np.testing.assert_allclose(ours.flatten().numpy(), truth, rtol=1e-3, atol=1e-6)
        back = ggx(columns(n), columns(light), columns(v), rough, f0) / lambert(columns(n), columns(v))
        torch.testing.assert_close(ours / lambert(columns(n), columns(light)), back, rtol=1e-3, atol=1e-5)
    assert not ggx(columns(n), columns(v), columns(light), rough, 0.0).any()


@pytest.mark.parametrize(("roughness", "softness"), [(0.5, 0.1), (0.5, 0.3), (0.8, 0.5), (0.3, 0.1)])
def test_a_widened_highlight_is_the_mean_over_the_lights_disc(roughness, softness):
    _, directions, weight = hemisphere(1.0, 120, 32)  # from where one looks; the light stands along the normal
    n, v = columns([0, 0, 1.0], directions), columns(directions)
    rough = torch.full_like(n[:, :1], roughness)
    k = np.arange(200)
    radius, angle = softness * np.sqrt((k + 0.5) / 200), k * 2.399963
    disc = unit(np.stack([radius * np.cos(angle), radius * np.sin(angle), np.ones(200)], -1))
    truth = sum(ggx(n, v, columns(d, directions), rough, 1.0) for d in disc).flatten().double().numpy() / 200
    ours = ggx(n, v, n, rough, 1.0, LIGHT_WIDTH * softness).flatten().double().numpy()
    assert (abs(ours - truth) * weight).sum() < 0.1 * (truth * weight).sum()


def test_highlights_on_a_ball(scene):
    gbuffer = scene.gbuffer(roughness=torch.full((1, 1, *scene.z.shape), 0.4))
    light = Sun(az=-30, el=40, softness=0, intensity=2.0)
    ours = array(relight(gbuffer, [light], specular=0.5, shadow=0).specular)[..., 0]
    towards, view = direction(-30, 40), unit(-scene.points)
    with np.errstate(all="ignore"):
        truth = 2 * textbook_ggx(scene.normals, view, np.broadcast_to(towards, view.shape), 0.4, 0.04)
    lit = (scene.normals @ towards > 1e-3) & ((scene.normals * view).sum(-1) > 1e-2)
    np.testing.assert_allclose(ours[lit], truth[lit], rtol=1e-3, atol=1e-5)
    assert not ours[scene.normals @ towards <= 0].any()
    half = (scene.normals * unit(view + towards)).sum(-1) * scene.hit
    assert (ours * scene.hit).argmax() == half.argmax()
    assert not relight(gbuffer, [light], specular=0, shadow=0).specular.any()

    lamp = scene.points[10, 12] + [0, 0, 1.5]
    to_lamp = lamp - scene.points
    d = np.linalg.norm(to_lamp, axis=-1)
    light = Point(x=12.5 / 44, y=10.5 / 30, height=1.5, softness=0)
    ours = array(relight(gbuffer, [light], specular=1.0, shadow=0).specular)[..., 0]
    with np.errstate(all="ignore"):
        truth = textbook_ggx(scene.normals, view, to_lamp / d[..., None], 0.4, 0.08) / d**2
    lit = ((scene.normals * to_lamp).sum(-1) > 1e-3) & ((scene.normals * view).sum(-1) > 1e-2)
    np.testing.assert_allclose(ours[lit], truth[lit], rtol=1e-3, atol=1e-5)


# --- how light and photo come together


def test_the_estimated_shading_gives_the_photo_back(textured):
    photo, shading = textured.photo.clone(), textured.shading.clone()
    photo[..., :10, :] = 0
    shading[..., 5:15, :] = 0
    dark = make_gbuffer(photo, textured.normals, albedo=textured.albedo, shading=shading, photo_encoding="linear")
    for gbuffer in (textured, dark):
        assert (combine(gbuffer, gbuffer.shading) - gbuffer.photo).abs().max() < 1e-5
        # the same through the renderer: an ambient light whose mask draws the estimated shading
        light = Ambient(intensity=gbuffer.shading.max(), mask=gbuffer.shading / gbuffer.shading.max())
        assert (relight(gbuffer, [light]).image - gbuffer.photo).abs().max() < 1e-5


def test_ratio_and_albedo_agree_where_the_maps_explain_the_photo(textured):
    assert textured.residual.max() < 1e-4
    for light in LIGHTS.values():
        ratio, albedo = (relight(textured, [light], mode=mode).image for mode in ("ratio", "albedo"))
        torch.testing.assert_close(ratio, albedo, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_no_light_is_black_and_light_adds_up(textured, mode):
    def image(lights, **options):
        return relight(textured, lights, mode=mode, specular=0.5, **options).image

    own = textured.photo if mode == "add" else torch.zeros_like(textured.photo)
    assert torch.equal(image([]), own)
    single = {name: image([light]) - own for name, light in LIGHTS.items()}
    torch.testing.assert_close(image(list(LIGHTS.values())), own + sum(single.values()))
    for name, light in LIGHTS.items():
        assert single[name].max() > 0.01
        torch.testing.assert_close(image([replace(light, intensity=3 * light.intensity)]), own + 3 * single[name])
        assert torch.equal(image([replace(light, enabled=False)]), own)
    torch.testing.assert_close(image([LIGHTS["sun"]], ambient=0.3), image([LIGHTS["sun"], Ambient(intensity=0.3)]))


def test_keep_original_exposure_and_masks(textured):
    sun = [LIGHTS["sun"]]
    plain = relight(textured, sun).image
    torch.testing.assert_close(relight(textured, sun, keep_original=0.25).image, plain + 0.25 * textured.photo)
    add = relight(textured, sun, mode="add")
    assert torch.equal(add.image, relight(textured, sun, mode="add", keep_original=0.5).image)
    torch.testing.assert_close(add.image, textured.photo + textured.albedo * add.shading)
    for stops in (-2.0, 1.0, 0.5):
        torch.testing.assert_close(relight(textured, sun, exposure=stops).image, plain * 2**stops)
    left = torch.zeros_like(textured.depth)
    left[..., :20] = 1
    masked = relight(replace(textured, mask=left), sun, exposure=1.0).image
    assert torch.equal(masked[..., 20:], textured.photo[..., 20:])
    assert torch.equal(masked[..., :20], 2 * plain[..., :20])
    for light in LIGHTS.values():
        full = relight(textured, [light], specular=0.5).image
        partly = relight(textured, [replace(light, mask=0.5 * left)], specular=0.5).image
        torch.testing.assert_close(partly, 0.5 * left * full)


def test_passes_make_up_the_picture(textured):
    lights = list(LIGHTS.values())
    relit = relight(textured, lights, specular=0.5, occlusion=0.7, exposure=0.4, ambient=0.1)
    torch.testing.assert_close(relit.image, (relit.diffuse + relit.specular) * 2**0.4)
    torch.testing.assert_close(relit.diffuse, textured.photo / textured.shading * relit.shading)
    assert relit.ambient_occlusion.min() < 0.99
    for how in ({"lights": [Ambient()]}, {"lights": [], "ambient": 1.0}):
        dimmed = relight(textured, occlusion=0.7, **how).shading
        torch.testing.assert_close(dimmed, relit.ambient_occlusion.expand_as(dimmed))
    # the shadow pass is what the shading without shadows was multiplied with, and strength fades it
    one = relight(textured, [LIGHTS["sun"]])
    free, half = (relight(textured, [LIGHTS["sun"]], shadow=s) for s in (0.0, 0.5))
    assert one.shadow.min() < 0.5
    assert (free.shadow == 1).all()
    torch.testing.assert_close(one.shading, free.shading * one.shadow)
    torch.testing.assert_close(half.shadow, 0.5 + 0.5 * one.shadow)
    glints = [relight(textured, [LIGHTS["sun"]], specular=0.5, shadow=s).specular for s in (0.0, 1.0)]
    torch.testing.assert_close(glints[1], glints[0] * one.shadow)
    never = relight(textured, [replace(LIGHTS["sun"], shadow=False)])
    assert torch.equal(never.image, free.image)


def test_unknown_mode_and_light_are_refused(textured):
    with pytest.raises(ValueError, match=r"mode 'multiply'; choose from ratio, albedo, add"):
        relight(textured, [], mode="multiply")
    with pytest.raises(TypeError, match="Light is not a light that can be rendered"):
        relight(textured, [Light()])
    with pytest.raises(ValueError, match=r"mask has 3 x 5 pixels and the picture \d+ x \d+; resize the mask"):
        relight(textured, [Sun(mask=torch.ones(1, 1, 3, 5))])


# --- batches, turned scenes, gradients


def batched(light, names=None):
    """Return the light with these fields (or all) as tensors of three values, and one light per value."""
    names = names or [k for k, v in vars(light).items() if isinstance(v, float) and k != "kelvin"]
    scaled = {k: [getattr(light, k) * s for s in (1.0, 0.8, 0.5)] for k in names}
    singles = [replace(light, **{k: scaled[k][i] for k in scaled}) for i in range(3)]
    return replace(light, **{k: torch.tensor(v) for k, v in scaled.items()}), singles


@pytest.mark.parametrize("name", LIGHTS)
@pytest.mark.parametrize("pictures", [1, 3])
def test_a_batch_is_its_pictures_one_by_one(name, pictures):
    scenes = [ball(18, 24, center=(x, 0.1, -2.4)) for x in (-0.3, 0.0, 0.4)[:pictures]]
    photos = torch.rand(pictures, 3, 18, 24, generator=torch.Generator().manual_seed(3))
    single = [s.gbuffer(photo=p[None]) for s, p in zip(scenes, photos, strict=True)]
    stacked = replace(
        single[0],
        **{
            k: torch.cat([getattr(g, k) for g in single])
            for k in ("photo", "normals", "depth", "albedo", "shading", "roughness", "mask", "scale")
        },
    )
    light, lights = batched(LIGHTS[name])
    options = {"exposure": (0.0, 1.0, -1.0), "specular": (0.5, 0.0, 1.0), "keep_original": (0.0, 0.5, 1.0)}
    options |= {"ambient": (0.0, 0.1, 0.2), "shadow": (1.0, 0.0, 0.5), "occlusion": (0.5, 1.0, 0.0)}
    together = relight(stacked, [light], **{k: torch.tensor(v) for k, v in options.items()})
    for i in range(3):
        alone = relight(single[i % pictures], [lights[i]], **{k: v[i] for k, v in options.items()})
        for key, value in vars(alone).items():
            torch.testing.assert_close(vars(together)[key][i : i + 1], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LIGHTS)
def test_one_picture_under_several_values_of_each_field(textured, name):
    fields = [k for k, v in vars(LIGHTS[name]).items() if isinstance(v, float) and k != "kelvin"]
    assert "intensity" in fields
    small = {k: getattr(textured, k)[..., ::3, ::3] for k in ("photo", "normals", "depth", "albedo", "shading")}
    gbuffer = make_gbuffer(**small, photo_encoding="linear", camera=textured.camera)
    for field in fields:
        light, lights = batched(LIGHTS[name], [field])
        together = relight(gbuffer, [light], specular=0.5)
        for i in range(3):
            for key, value in vars(relight(gbuffer, [lights[i]], specular=0.5)).items():
                torch.testing.assert_close(vars(together)[key][i : i + 1], value, rtol=1e-4, atol=1e-5)


def test_turning_scene_and_light_together_changes_nothing():
    n, v, light, roughness = random_directions(500)
    rough = torch.from_numpy(roughness).float().reshape(1, 1, -1, 1)

    def shade(turn):
        normals, view, to_light = (columns(turn.apply(a)) for a in (n, v, light))
        edges = rim(normals, view, Incidence(to_light, rough, None), Rim(softness=0.3))
        return lambert(normals, to_light), ggx(normals, view, to_light, rough, 0.04, 0.1), edges[0]

    before = shade(Rotation.identity())
    for turn in Rotation.random(4, random_state=5):
        for was, now in zip(before, shade(turn), strict=True):
            torch.testing.assert_close(now, was, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_sun_is_found_again_by_its_light(textured, mode):
    target = relight(textured, [Sun(az=-40.0, el=30.0, intensity=1.7)], mode=mode, shadow=0).image
    az, el, intensity = (torch.tensor(v, requires_grad=True) for v in (-70.0 / 30, 60.0 / 30, 0.7))
    optimizer = torch.optim.LBFGS([az, el, intensity], max_iter=36, max_eval=48, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        light = Sun(az=30 * az, el=30 * el, intensity=intensity)
        error = (relight(textured, [light], mode=mode, shadow=0).image - target).square().mean()
        error.backward()
        return error

    optimizer.step(loss)
    assert (30 * az).item() == pytest.approx(-40, abs=0.1)
    assert (30 * el).item() == pytest.approx(30, abs=0.1)
    assert intensity.item() == pytest.approx(1.7, abs=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(textured):
    on_gpu = make_gbuffer(
        *(getattr(textured, k).cuda() for k in ("photo", "normals", "depth", "albedo", "shading")),
        photo_encoding="linear",
        camera=textured.camera,
    )
    for light in LIGHTS.values():
        here, there = (relight(g, [light], specular=0.5, occlusion=0.5) for g in (textured, on_gpu))
        for key, value in vars(here).items():
            # a ray that ends on an edge may fall to either side
            assert ((vars(there)[key].cpu() - value).abs() > 1e-3).float().mean() < 0.01, key
