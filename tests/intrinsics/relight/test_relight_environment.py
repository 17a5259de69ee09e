"""Environment light against brute-force integrals in numpy (float64) that share no code with it."""

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics.relight import Ambient, Environment, Sun, make_gbuffer, relight
from intrinsic_lora.intrinsics.relight.environment import (
    area_average,
    environment_brdf,
    irradiance,
    prefilter,
    reflection,
    sh_basis,
    sh_coefficients,
)
from intrinsic_lora.intrinsics.relight.lights import light_direction
from intrinsic_lora.intrinsics.relight.shading import ggx
from intrinsic_lora.tests.support.closeness import SUM, assert_rounded
from scipy.special import sph_harm_y

ONE = torch.ones(1, 1, 1, 1)


def panorama_grid(height, width):
    """Directions (h,w,3) of the pixels' centres and their solid angles (h,w), as `Environment` documents them."""
    az = -2 * np.pi * (np.arange(width) + 0.5) / width
    edges = np.pi / 2 - np.pi * np.arange(height + 1) / height
    el = (edges[1:] + edges[:-1]) / 2
    az, el = np.meshgrid(az, el)
    directions = np.stack([np.sin(az) * np.cos(el), np.sin(el), np.cos(az) * np.cos(el)], -1)
    return directions, np.repeat(-np.diff(np.sin(edges))[:, None], width, 1) * 2 * np.pi / width


def sky(d):
    """Evaluate a smooth environment (..., 3): sky gradient, ground, a warm lobe upper right, a cold one behind."""

    def lobe(x, y, z, sharpness):
        centre = np.array([x, y, z]) / np.linalg.norm([x, y, z])
        return np.exp(sharpness * (d @ centre - 1))[..., None]

    gradient = 0.3 + 0.25 * d[..., 1:2] * np.array([0.4, 0.7, 1.0])
    warm, cold = np.array([2.0, 1.2, 0.6]), np.array([0.2, 0.5, 0.9])
    return gradient + lobe(1, 0.6, 0.5, 3) * warm + lobe(-1, 0.1, -0.7, 2) * cold


def as_image(values):
    return torch.from_numpy(values).float().permute(2, 0, 1)[None]  # (h,w,3) -> (1,3,h,w)


def as_map(vectors):
    return torch.from_numpy(np.asarray(vectors)).float().T[None, :, None]  # (n,3) -> (1,3,1,n)


def random_directions(count, seed=0):
    v = np.random.default_rng(seed).standard_normal((count, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def pixel(az, el, height=64, width=128, size=1):
    """Build a black panorama with a patch of radiance 1 around a direction."""
    image = torch.zeros(1, 3, height, width)
    column, row = int(-az / 360 % 1 * width), int((90 - el) / 180 * height)
    image[..., max(row - size + 1, 0) : row + size, column - size + 1 : column + size] = 1
    return image


# Diffuse


def test_irradiance_matches_the_cosine_integral():
    normals = random_directions(300)
    directions, solid_angle = panorama_grid(128, 256)
    cosine = np.clip(normals @ directions.reshape(-1, 3).T, 0, None)  # (n,h*w)
    expected = cosine @ (sky(directions) * solid_angle[..., None]).reshape(-1, 3) / np.pi
    light = Environment(image=as_image(sky(panorama_grid(64, 128)[0])))
    found = irradiance(light, as_map(normals))[0, :, 0].T.double().numpy()
    assert expected.std(0).min() > 0.1 * expected.mean()  # the test has something to tell apart
    assert np.abs(found - expected).max() < 0.02 * expected.mean()


def test_a_small_sun_gives_the_band_limited_cosine():
    az, el = 60.0, 25.0
    image = pixel(az, el, 256, 512) * 1e4
    directions, solid_angle = panorama_grid(256, 512)
    lit = image[0, 0].numpy() > 0
    assert lit.sum() == 1
    normals = random_directions(2000)
    c = normals @ directions[lit][0]
    power = 1e4 * solid_angle[lit][0] / np.pi
    found = irradiance(Environment(image=image), as_map(normals))[0, 0, 0].double().numpy() / power
    # Funk-Hecke: bands 0, 1, 2 of max(c, 0); the pixel itself is 0.7 degrees wide.
    np.testing.assert_allclose(found, np.clip(1 / 4 + c / 2 + 5 / 32 * (3 * c**2 - 1), 0, None), atol=1e-4)
    assert 0.09 < np.abs(found - np.clip(c, 0, None)).max() < 0.0945  # what the docstring says


def test_coefficients_are_the_harmonics_of_scipy():
    """Random pixels, cut into 32 x 32, projected on scipy's spherical harmonics, and summed up again at normals."""
    image = np.random.default_rng(3).random((4, 7, 3))
    fine = image.repeat(32, 0).repeat(32, 1)
    directions, solid_angle = panorama_grid(*fine.shape[:2])
    normals = random_directions(20)
    expected = 0.0
    for degree, cosine_lobe in enumerate((np.pi, 2 * np.pi / 3, np.pi / 4)):
        for order in range(-degree, degree + 1):

            def harmonic(d, degree=degree, order=order):  # complex: a sum over orders is the same in either basis
                return sph_harm_y(degree, order, np.arccos(d[..., 2]), np.arctan2(d[..., 1], d[..., 0]))

            coefficient = np.einsum("hwc,hw,hw->c", fine, solid_angle, harmonic(directions).conj())
            expected = expected + cosine_lobe / np.pi * harmonic(normals)[:, None] * coefficient
    coefficients = sh_coefficients(as_image(image))
    assert coefficients.shape == (9, 3)
    found = torch.einsum("bihw,ic->wc", sh_basis(as_map(normals)), coefficients)
    np.testing.assert_allclose(found.numpy(), expected.real, atol=2e-4)
    # The same one by one, in the basis that is documented: a coefficient is p's integral times a constant.
    basis = sh_basis(as_map(directions.reshape(-1, 3)))[0, :, 0].double().numpy()  # (9,n)
    moments = basis @ (fine * solid_angle[..., None]).reshape(-1, 3)
    energy = (basis**2 * solid_angle.reshape(-1)).sum(1)
    band = np.array([1, 2 / 3, 2 / 3, 2 / 3, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4])
    np.testing.assert_allclose(coefficients.numpy(), moments * (band / energy)[:, None], atol=2e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 5), (4, 8), (200, 400)])
def test_a_uniform_panorama_of_any_size_is_ambient_light(size):
    light = Environment(image=torch.tensor([1.0, 0.5, 3.0])[None, :, None, None].expand(1, 3, *size))
    normals = as_map(random_directions(50))
    found = irradiance(light, normals)
    assert_rounded(found, light.image[..., :1, :1].expand_as(found), SUM)
    stack = prefilter(light.image)
    assert_rounded(stack, light.image[:, :, None, :1, :1].expand_as(stack), SUM)


# Frame


@pytest.mark.parametrize(
    ("where", "az", "el", "normal"),
    [
        ((0.5, 0.75), 90, 0, (1, 0, 0)),  # (row, column) as shares: three quarters of the width is the camera's right
        ((0.5, 0.25), -90, 0, (-1, 0, 0)),
        ((0.5, 0.5), 180, 0, (0, 0, -1)),  # the centre is what the camera looks at
        ((0.5, 0.0), 0, 0, (0, 0, 1)),  # the edges meet behind the camera
        ((0.0, 0.5), 0, 90, (0, 1, 0)),
        ((1.0, 0.5), 0, -90, (0, -1, 0)),
    ],
)
def test_every_side_of_the_panorama_lights_what_faces_it(where, az, el, normal):
    image = torch.zeros(1, 3, 32, 64)
    row, column = round(where[0] * 32), round(where[1] * 64)
    columns = (torch.arange(-3, 3) + column) % 64 if row in range(1, 32) else slice(None)  # a pole is a whole row
    image[:, :, max(row - 3, 0) : row + 3, columns] = 1
    light = Environment(image=image)
    normals = as_map([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)])
    direction = torch.tensor(normal, dtype=torch.float32)[None, :, None, None]
    torch.testing.assert_close(light_direction(float(az), float(el), normals), direction, rtol=0, atol=5e-6)
    brightest = irradiance(light, normals)[0, 0, 0].argmax()
    assert normals[0, :, 0, brightest].tolist() == list(normal)
    # A mirror that sends the eye's ray there shows the patch, another one does not.
    mirrors = torch.nn.functional.normalize(torch.tensor([0.6, 0.48, 0.64])[None, :, None, None] + normals, dim=1)
    view = torch.tensor([0.6, 0.48, 0.64])[None, :, None, None].expand_as(mirrors)
    seen = reflection(light, mirrors, view, torch.zeros(1, 1, 1, 6), ONE)[0, 0, 0]
    assert seen[brightest] > 0.99
    assert seen.sum() - seen[brightest] < 0.01


def test_a_sun_in_the_panorama_is_the_sun_of_that_azimuth_and_elevation():
    normals = as_map(random_directions(500))
    for az, el in [(30.0, 40.0), (-100.0, 10.0), (170.0, -30.0)]:
        found = irradiance(Environment(image=pixel(az, el)), normals)[0, 0, 0]
        facing = (normals * light_direction(az, el, normals)).sum(1)[0, 0]
        assert facing[found.argmax()] > 0.99
        assert torch.corrcoef(torch.stack([found, facing.clamp(min=0)]))[0, 1] > 0.97


def test_rotation_is_added_to_the_azimuth():
    image = torch.rand(1, 3, 8, 16, generator=torch.manual_seed(0))
    normals, view = as_map(random_directions(64)), as_map(random_directions(64, 1))
    roughness = torch.linspace(0, 1, 64)[None, None, None]
    angle = np.deg2rad(67.5)  # three columns; to the left, since azimuth grows to the left
    turn = torch.tensor(  # about Y, +Z towards +X
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]], dtype=torch.float32
    )
    turned = [torch.einsum("ij,bjhw->bihw", turn, v) for v in (normals, view)]
    there = Environment(image=image)
    rotated, rolled = Environment(image=image, rotation=67.5), Environment(image=image.roll(-3, -1))
    for shade in (irradiance, lambda light, n, v=view: reflection(light, n, v, roughness, ONE)):
        torch.testing.assert_close(shade(rotated, normals), shade(rolled, normals), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(irradiance(rotated, turned[0]), irradiance(there, normals), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        reflection(rotated, *turned, roughness, ONE),
        reflection(there, normals, view, roughness, ONE),
        rtol=0,
        atol=2e-4,
    )


# Specular


def sharper_sky(d):
    """`sky` with a lamp of 20 degrees in it."""
    return sky(d) + 6 * np.exp(40 * (d @ np.array([0.48, 0.6, 0.64]) - 1))[..., None]


@pytest.mark.parametrize("roughness", [0.2, 0.3, 0.45, 0.5, 0.7, 0.8, 0.9, *(i / 7 for i in range(2, 8))])
def test_specular_matches_importance_sampled_ggx(roughness):
    """N = V = R, half vectors drawn from GGX. Between levels linear interpolation is allowed a little more."""
    tolerance = 0.015 if (roughness * 7).is_integer() else 0.03
    normals = np.concatenate([random_directions(40), [[0, 1, 0], [0, -1, 0], [0, 0, 1], [0.48, 0.6, 0.64]]])
    u1, u2 = (np.stack(np.meshgrid(np.arange(96), np.arange(96))) + 0.5).reshape(2, -1) / 96
    cosine = np.sqrt((1 - u1) / (1 + (roughness**4 - 1) * u1))
    sine = np.sqrt(1 - cosine**2)
    expected = []
    for n in normals:
        t = np.cross(n, [0.0, 1.0, 0.0] if abs(n[1]) < 0.9 else [1.0, 0.0, 0.0])
        t /= np.linalg.norm(t)
        b = np.cross(n, t)
        h = (sine * np.cos(2 * np.pi * u2))[:, None] * t + (sine * np.sin(2 * np.pi * u2))[:, None] * b
        h += cosine[:, None] * n
        to_light = 2 * (h @ n)[:, None] * h - n
        weight = np.clip(to_light @ n, 0, None)
        expected.append(weight @ sharper_sky(to_light) / weight.sum())
    expected = np.stack(expected)
    light = Environment(image=as_image(sharper_sky(panorama_grid(128, 256)[0])))
    n = as_map(normals)
    rough = torch.full_like(n[:, :1], roughness)
    found = reflection(light, n, n, rough, ONE) / environment_brdf(ONE, rough, ONE)
    error = np.abs(found[0, :, 0].T.numpy() - expected)
    assert expected.std(0).min() > 0.1
    assert error.max() < tolerance * expected.max()


def test_a_mirror_shows_the_panorama():
    image = torch.rand(1, 3, 64, 128, generator=torch.manual_seed(0))
    directions = as_map(panorama_grid(64, 128)[0].reshape(-1, 3))
    found = reflection(Environment(image=image), directions, directions, torch.zeros_like(directions[:, :1]), ONE)
    torch.testing.assert_close(found.reshape(image.shape), image, rtol=0, atol=5e-3)


def test_reflection_is_continuous_across_the_edges_and_the_poles():
    image = as_image(sharper_sky(panorama_grid(64, 128)[0]))
    near = []
    for d in ([1e-4, 0.3, 1], [-1e-4, 0.3, 1], [1e-4, 1, 0], [-1e-4, 1, 0], [0, -1, 1e-4], [0, -1, -1e-4]):
        near.append(np.array(d) / np.linalg.norm(d))
    n = as_map(near)
    for roughness in (0.0, 0.5):
        pairs = reflection(Environment(image=image), n, n, torch.full_like(n[:, :1], roughness), ONE)[0, :, 0]
        torch.testing.assert_close(pairs[:, 0::2], pairs[:, 1::2], rtol=0, atol=2e-3)


@pytest.mark.parametrize("f0", [0.04, 0.08])
def test_environment_brdf_matches_the_integral_of_our_ggx(f0):
    mu, phi = (np.arange(256) + 0.5) / 256, (np.arange(256) + 0.5) / 256 * 2 * np.pi
    sine = np.sqrt(1 - mu**2)[:, None]
    to_light = np.stack([sine * np.cos(phi), sine * np.sin(phi), mu[:, None] + 0 * phi])
    to_light = torch.from_numpy(to_light).float()[None]  # (1,3,256,256), uniform over the hemisphere
    normal = torch.tensor([0.0, 0, 1])[None, :, None, None].expand_as(to_light)
    errors = []
    for roughness in (0.3, 0.5, 0.7, 1.0):
        for n_v in (1.0, 0.7, 0.4, 0.2):
            view = torch.tensor([(1 - n_v**2) ** 0.5, 0, n_v])[None, :, None, None].expand_as(to_light)
            rough = torch.full_like(to_light[:, :1], roughness)
            integral = 2 * ggx(normal, view, to_light, rough, f0).double().mean().item()  # 2 pi of solid angle, / pi
            fitted = environment_brdf(n_v * ONE, roughness * ONE, f0 * ONE).item()
            errors.append(abs(fitted - integral))
    assert max(errors) < 0.05
    assert np.mean(errors) < 0.02


def test_energy_is_never_created():
    n_v, roughness = torch.meshgrid(torch.linspace(-0.2, 1, 25), torch.linspace(0, 1, 21), indexing="ij")
    for f0 in (0.0, 0.04, 0.5, 1.0):
        share = environment_brdf(n_v[None, None], roughness[None, None], f0 * ONE)
        assert share.min() >= 0 and share.max() <= 1
        assert f0 or not share.any()
    smooth = environment_brdf(n_v[None, None], torch.full((1, 1, 25, 21), 0.05), ONE)
    assert smooth.min() > 0.95


@pytest.mark.parametrize("size", [(512, 1024), (37, 75), (5, 9), (64, 128)])
def test_a_sun_of_one_pixel_keeps_its_power_when_the_panorama_shrinks(size):
    for row in (0, size[0] // 3, size[0] - 1):
        image = torch.full((1, 3, *size), 0.1)
        image[..., row, size[1] // 4] = 5e4
        small = area_average(image)
        before = (image[0, 0].double().numpy() * panorama_grid(*size)[1]).sum()
        after = (small[0, 0].double().numpy() * panorama_grid(*small.shape[-2:])[1]).sum()
        assert after == pytest.approx(before, rel=1e-5)
        assert_rounded(sh_coefficients(small)[0], sh_coefficients(image)[0], 5 * SUM)  # half a million pixels


# Robustness, gradients, batches, relight


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 4)])
@pytest.mark.parametrize("value", [0.0, 1.0, 6e4])
def test_nothing_is_ever_nan(size, value):
    axes = [(0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1), (1, 0, 0), (0, 0, 0)]
    normals = as_map([n for n in axes for _ in axes]).requires_grad_()
    view = as_map([*axes[:5], (0, 1, 0)] * 6)
    image = torch.full((1, 3, *size), value).requires_grad_()
    light = Environment(image=image, rotation=10.0)
    for roughness in (0.0, 0.5, 1.0):
        shade = irradiance(light, normals) + reflection(
            light, normals, view, torch.full_like(view[:, :1], roughness), 0.04 * ONE
        )
        assert shade.isfinite().all() and (shade >= 0).all()
        gradients = torch.autograd.grad(shade.sum(), (image, normals))
        assert all(g.isfinite().all() for g in gradients)


def test_gradients():
    """Both are linear in the image (Euler: x . grad = value); along the normals, finite differences."""
    image = (torch.rand(1, 3, 6, 12, generator=torch.manual_seed(0)) + 0.5).requires_grad_()
    normals, view = as_map(random_directions(20)), as_map(random_directions(20, 1))
    view = view * (normals * view).sum(1, keepdim=True).sign()
    roughness = torch.full_like(view[:, :1], 0.6)
    light = Environment(image=image)
    for shade in (irradiance, lambda light, n: reflection(light, n, view, roughness, 0.5 * ONE)):
        value = shade(light, normals).sum()
        for _ in range(2):  # a second backward must not meet a freed graph
            (gradient,) = torch.autograd.grad(shade(light, normals).sum(), image)
        assert (gradient * image).sum().item() == pytest.approx(value.item(), rel=1e-4)
        towards = 1e-3 * as_map(random_directions(20, 2))
        n = normals.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(shade(light, n).sum(), n)
        difference = (shade(light, normals + towards) - shade(light, normals - towards)).sum().item() / 2
        assert (gradient * towards).sum().item() == pytest.approx(difference, rel=0.05)


def test_a_batch_is_its_pictures_one_by_one():
    image = torch.rand(1, 3, 6, 12, generator=torch.manual_seed(0))
    normals = torch.cat([as_map(random_directions(9, i)) for i in range(3)])  # (3,3,1,9)
    view, roughness = normals.roll(1, -1), torch.rand(3, 1, 1, 9)
    rotation, f0 = torch.tensor([0.0, 50.0, -120.0]), torch.tensor([0.0, 0.04, 1.0])[:, None, None, None]
    for n, v, r in ((normals, view, roughness), (normals[:1], view[:1], roughness[:1])):
        light = Environment(image=image, rotation=rotation)
        together = irradiance(light, n), reflection(light, n, v, r, f0)
        for i in range(3):
            k = min(i, len(n) - 1)
            one = Environment(image=image, rotation=float(rotation[i]))
            alone = (
                irradiance(one, n[k : k + 1]),
                reflection(one, n[k : k + 1], v[k : k + 1], r[k : k + 1], f0[i : i + 1]),
            )
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[i : i + 1], b, rtol=1e-5, atol=1e-6)


@pytest.fixture
def gbuffer():
    generator = torch.manual_seed(0)
    photo = torch.rand(1, 3, 12, 16, generator=generator) * 0.8 + 0.1
    normals = torch.randn(1, 3, 12, 16, generator=generator)
    normals[:, 2] = normals[:, 2].abs() + 0.2
    return make_gbuffer(photo, normals, torch.rand(1, 1, 12, 16, generator=generator))


@pytest.mark.parametrize("mode", ["ratio", "albedo", "add"])
def test_relight_under_a_uniform_panorama_is_ambient_light(gbuffer, mode):
    colour = (0.9, 0.5, 0.2)
    panorama = Environment(image=torch.ones(1, 3, 4, 8), color=colour, intensity=1.5)
    expected = relight(gbuffer, [Ambient(color=colour, intensity=1.5)], mode=mode).image
    torch.testing.assert_close(relight(gbuffer, [panorama], mode=mode).image, expected, rtol=1e-5, atol=1e-6)


def test_relight_by_a_panorama_of_one_sun_resembles_that_sun(gbuffer):
    image = pixel(-40.0, 35.0, 128, 256)
    image = image * np.pi / torch.from_numpy(panorama_grid(128, 256)[1])[image[0, 0] > 0].float()  # E = pi
    of_sun = relight(gbuffer, [Sun(az=-40.0, el=35.0, shadow=False)]).shading[:, :1]
    of_panorama = relight(gbuffer, [Environment(image=image)]).shading[:, :1]
    assert (of_panorama - of_sun).abs().max() < 0.1  # order 2 differs by 0.094 at most


def test_relight_passes_gradients_to_the_panorama(gbuffer):
    image = torch.rand(1, 3, 8, 16, generator=torch.manual_seed(1)).requires_grad_()
    light = Environment(image=image, rotation=30.0, intensity=2.0)
    target = relight(gbuffer, [Environment(image=torch.rand(1, 3, 8, 16))], specular=0.5).image.detach()
    optimizer = torch.optim.Adam([image], lr=0.02)
    losses = []
    for _ in range(8):
        loss = (relight(gbuffer, [light], specular=0.5, occlusion=1.0).image - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert image.grad.isfinite().all() and image.grad.abs().max() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_an_image_of_another_shape_is_refused_in_one_sentence():
    for shape in ((3, 4, 8), (2, 3, 4, 8), (1, 4, 4, 8), (1, 3, 0, 8)):
        with pytest.raises(ValueError, match=r"must have shape \(1, 3, height, width\)"):
            Environment(image=torch.zeros(shape))
