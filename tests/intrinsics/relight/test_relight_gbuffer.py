"""The G-buffer: one scene from every convention, defaults of missing maps, the fitted scale, rejected input."""

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics.relight import Camera, fit_scale, make_gbuffer
from intrinsic_lora.tests.support.relit import FAR, FOV, NEAR, array, ball, tensor

ONE = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(1, 3, 6, 8)


def noise(channels, seed, size=(6, 8), low=0.1, high=0.9):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(1, channels, *size, generator=generator)


# --- one scene from every convention


@pytest.mark.parametrize(
    ("frame", "matrix"),
    [
        ("opengl", np.eye(3)),
        ("directx", [[1, 0, 0], [0, -1, 0], [0, 0, 1]]),
        ("opencv", [[1, 0, 0], [0, -1, 0], [0, 0, -1]]),
        ("controlnet", [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    ],
)
def test_normals_of_every_frame(frame, matrix):
    scene = ball()
    given = 0.7 * scene.normals @ np.transpose(matrix)  # of any length
    gbuffer = make_gbuffer(tensor(scene.rays * 0 + 0.5), tensor(given), normals_frame=frame)
    assert abs(array(gbuffer.normals) - scene.normals).max() < 1e-6


@pytest.mark.parametrize(
    ("kind", "drawn"),
    [
        ("distance", lambda z: (z - z.min()) / (z.max() - z.min())),
        ("near-white", lambda z: (z.max() - z) / (z.max() - z.min())),
        ("disparity", lambda z: 37 / z - 2),
        ("metric", lambda z: z),
    ],
)
def test_depth_of_every_kind_brings_the_same_points(kind, drawn):
    scene = ball()
    camera = Camera(scene.z.min(), scene.z.max(), FOV) if kind != "metric" else Camera(0.3, 77.0, FOV)
    gbuffer = make_gbuffer(
        tensor(scene.rays * 0 + 0.5), tensor(scene.normals), tensor(drawn(scene.z)), depth_kind=kind, camera=camera
    )
    assert gbuffer.camera.near == pytest.approx(scene.z.min())
    assert gbuffer.camera.far == pytest.approx(FAR)
    assert (gbuffer.depth.min(), gbuffer.depth.max()) == (pytest.approx(0, abs=1e-6), pytest.approx(1))
    assert abs(array(gbuffer.geometry.points) - scene.points).max() < 1e-5
    assert abs(array(gbuffer.geometry.view) + scene.rays / np.linalg.norm(scene.rays, axis=-1)[..., None]).max() < 1e-5


def test_metric_depths_of_a_batch_share_one_range():
    near, far = torch.full((1, 1, 6, 8), 2.0), torch.full((1, 1, 6, 8), 5.0)
    photo, up = noise(3, 0).repeat(2, 1, 1, 1), ONE.repeat(2, 1, 1, 1)
    gbuffer = make_gbuffer(photo, up, torch.cat([near, far]), depth_kind="metric")
    torch.testing.assert_close(gbuffer.geometry.z, torch.cat([near, far]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_encodings_and_half_precision(dtype):
    light = noise(3, 1).double()
    encoded = torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    gbuffer = make_gbuffer(
        light.to(dtype),
        albedo=encoded.to(dtype),
        shading=encoded.to(dtype),
        normals=ONE.to(dtype),
        depth=noise(1, 2).to(dtype),
        photo_encoding="linear",
        albedo_encoding="srgb",
        shading_encoding="srgb",
    )
    tolerance = 2e-3 if dtype == torch.float16 else 1e-6
    assert abs(gbuffer.photo.double() - light).max() < tolerance
    assert abs(gbuffer.albedo.double() - light).max() < tolerance
    assert abs((gbuffer.shading / gbuffer.scale).double() - light).max() < tolerance
    srgb = make_gbuffer(encoded.to(dtype), ONE.to(dtype))
    assert abs(srgb.photo.double() - light).max() < tolerance
    for gb in (gbuffer, srgb):
        names = ("photo", "normals", "depth", "albedo", "shading", "roughness", "mask", "scale")
        assert {getattr(gb, n).dtype for n in names} == {torch.float32}


# --- defaults of missing maps


def test_only_photo_and_normals():
    photo = noise(3, 0)
    gbuffer = make_gbuffer(photo, ONE, photo_encoding="linear")
    assert gbuffer.assumed == ("depth", "albedo", "shading", "roughness", "mask")
    assert torch.equal(gbuffer.albedo, photo)
    for name, value in {"depth": 0.5, "shading": 1, "roughness": 0.5, "mask": 1, "scale": 1, "residual": 0}.items():
        values = getattr(gbuffer, name)
        torch.testing.assert_close(values, torch.full_like(values, value))
    assert gbuffer.camera == Camera(1.0, 4.0, 45.0)
    torch.testing.assert_close(gbuffer.geometry.z, torch.full((1, 1, 6, 8), 2.5))


def test_albedo_and_shading_are_made_from_each_other():
    photo, albedo, grey, coloured = noise(3, 0), noise(3, 1), noise(1, 2), noise(3, 3)
    weights = torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]
    for shading in (grey, coloured):
        gbuffer = make_gbuffer(photo, ONE, shading=shading, photo_encoding="linear")
        torch.testing.assert_close(gbuffer.albedo, photo / shading)
        assert torch.equal(gbuffer.shading, shading)
        assert gbuffer.residual.max() < 1e-5
    gbuffer = make_gbuffer(photo, ONE, albedo=albedo, photo_encoding="linear")
    torch.testing.assert_close(gbuffer.shading, (photo * weights).sum(1, True) / (albedo * weights).sum(1, True))
    torch.testing.assert_close(gbuffer.scale, torch.ones(1, 1, 1, 1))


def test_dark_pixels_neither_blow_up_nor_spoil_the_others():
    albedo, shading = noise(3, 1, (32, 32)), noise(1, 2, (32, 32))
    photo = albedo * shading
    albedo[..., 4, 7], photo[..., 4, 7] = 0, 1  # a black albedo where the photo is white
    up = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(1, 3, 32, 32)
    gbuffer = make_gbuffer(photo, up, albedo=albedo, photo_encoding="linear")
    elsewhere = torch.ones(32, 32, dtype=torch.bool)
    elsewhere[4, 7] = False
    torch.testing.assert_close(gbuffer.shading[..., elsewhere], shading[..., elsewhere])
    # a black shading is lifted to 2 % of the bright one, so `ratio` amplifies no further
    shading[..., :8, :] = 0
    gbuffer = make_gbuffer(photo, up, shading=shading, photo_encoding="linear")
    floor = gbuffer.shading[..., :8, :].amax() / shading.quantile(0.99)
    assert floor.item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(gbuffer.shading[..., 8:, :], shading[..., 8:, :].clamp(min=gbuffer.shading.min()))


# --- the scale between photo and maps


@pytest.mark.parametrize("factor", [1e-3, 0.37, 1.0, 25.0, 1e4])
def test_scale_is_found_although_two_fifths_of_the_pixels_are_wrong(factor):
    generator = torch.Generator().manual_seed(4)
    photo = noise(3, 0, (40, 50)).repeat(2, 1, 1, 1)
    product = photo / torch.tensor([factor, 3 * factor])[:, None, None, None]
    order = torch.randperm(2000, generator=generator)
    for wrong, by in ((order[:800], 7.0), (order[:400], 0.0)):
        product.flatten(2)[..., wrong] *= by
    scale = fit_scale(photo, product, torch.ones(2, 1, 40, 50))
    assert scale.shape == (2, 1, 1, 1)
    torch.testing.assert_close(scale.flatten(), torch.tensor([factor, 3 * factor]))


def test_clipped_black_and_masked_pixels_do_not_vote():
    photo = noise(3, 0, (10, 10), 0.1, 0.4)
    product, mask = photo / 2, torch.ones(1, 1, 10, 10)
    photo[..., :3, :], product[..., :3, :] = 1.0, 0.001 + 0.0 * product[..., :3, :]  # clipped
    photo[:, 0, 3], product[..., 3, :] = 1.0, 9.0  # clipped in one channel
    photo[..., 4:6, :] = 1e-3  # black
    product[..., 6, :] = 0
    mask[..., 7:9, :] = 0
    product[..., 7:9, :] *= 5
    torch.testing.assert_close(fit_scale(photo, product, mask), torch.full((1, 1, 1, 1), 2.0))
    for nobody in (torch.zeros_like(photo), torch.ones_like(photo)):
        assert fit_scale(nobody, product, mask).item() == 1
    assert fit_scale(photo, product, 0 * mask).item() == 1
    assert fit_scale(photo, 0 * product, mask).item() == 1


def test_scale_and_residual_of_a_gbuffer():
    albedo, shading = noise(3, 1), noise(1, 2)
    photo = albedo * shading
    wrong = albedo.clone()
    wrong[..., :2, :2] = 1 - wrong[..., :2, :2].round()
    gbuffer = make_gbuffer(photo, ONE, albedo=wrong, shading=6 * shading, photo_encoding="linear")
    torch.testing.assert_close(gbuffer.scale, torch.full((1, 1, 1, 1), 1 / 6))
    torch.testing.assert_close(gbuffer.shading, shading)
    assert gbuffer.residual[..., 2:, :].max() < 1e-5
    assert gbuffer.residual[..., :2, :2].min() > 0.1
    # the mean over RGB of what a viewer sees: black for white is 1
    black = make_gbuffer(torch.ones(1, 3, 6, 8), ONE, albedo=torch.zeros(1, 3, 6, 8), shading=shading)
    torch.testing.assert_close(black.residual, torch.ones(1, 1, 6, 8))
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(1, 3, 6, 8)
    third = make_gbuffer(red, ONE, albedo=torch.zeros(1, 3, 6, 8), shading=shading).residual
    torch.testing.assert_close(third, torch.full((1, 1, 6, 8), 1 / 3))


# --- refusals


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"photo": torch.rand(3, 6, 8)}, r"photo must have shape \(B, 3, H, W\), not \(3, 6, 8\)"),
        ({"photo": torch.rand(1, 4, 6, 8)}, r"photo must have shape \(B, 3, H, W\), not \(1, 4, 6, 8\)"),
        ({"photo": torch.rand(1, 3, 0, 8)}, r"photo must have shape"),
        ({"photo": torch.full((1, 3, 6, 8), torch.nan)}, "photo holds NaN or infinite"),
        ({"normals": torch.rand(1, 3, 8, 6)}, r"normals must have shape \(1, 3, 6, 8\).*not \(1, 3, 8, 6\)"),
        ({"normals": torch.rand(2, 3, 6, 8)}, r"normals must have shape"),
        ({"depth": torch.rand(1, 3, 6, 8)}, r"depth must have shape \(1, 1, 6, 8\)"),
        (
            {"depth": torch.full((1, 1, 6, 8), torch.inf)},
            "depth, of the kind distance, holds no finite number",
        ),
        ({"depth": torch.full((1, 1, 6, 8), 3.0)}, "Depth of the kind distance lies in 0..1"),
        ({"depth": torch.zeros(1, 1, 6, 8), "depth_kind": "metric"}, "holds no distance above 0 and below 1e\\+09"),
        ({"depth": torch.rand(1, 1, 6, 8), "depth_kind": "inverse"}, "Unknown kind of depth 'inverse'; choose from"),
        ({"albedo": torch.rand(1, 1, 6, 8)}, r"albedo must have shape \(1, 3, 6, 8\)"),
        ({"shading": torch.rand(1, 2, 6, 8)}, r"shading must have shape \(1, 1 or 3, 6, 8\)"),
        ({"roughness": torch.rand(1, 3, 6, 8)}, "roughness must have shape"),
        ({"mask": torch.rand(6, 8)}, "mask must have shape"),
        ({"photo_encoding": "gamma"}, "Unknown encoding 'gamma' of the photo; choose from linear, srgb"),
        ({"albedo": torch.rand(1, 3, 6, 8), "albedo_encoding": "x"}, "Unknown encoding 'x' of the albedo"),
        ({"shading": torch.rand(1, 1, 6, 8), "shading_encoding": "x"}, "Unknown encoding 'x' of the shading"),
        ({"normals_frame": "maya"}, "Unknown normal-map frame 'maya'; choose from"),
    ],
)
def test_refusals_are_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make_gbuffer(**({"photo": torch.rand(1, 3, 6, 8), "normals": ONE} | change))
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    "fields", [(0, 4, 45), (4, 4, 45), (NEAR, 0.5, 45), (1, 4, 0), (1, 4, 180), (1, float("nan"), 9)]
)
def test_impossible_cameras_are_refused(fields):
    with pytest.raises(ValueError, match=r"depth range must be|field of view must be"):
        Camera(*fields)
