"""The conventions measured on the authors' own published results (read from a data folder, never committed)."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics import INTRINSICS, decode, guided_upsample, linear_to_srgb, resize
from intrinsic_lora.intrinsics.color import luminance
from intrinsic_lora.intrinsics.relight import Sun, make_gbuffer, relight
from PIL import Image

_DATA = Path(os.environ.get("INTRINSIC_LORA_DATA", Path(__file__).parents[2] / "../shared/data/paper_examples"))

if not _DATA.is_dir():
    pytest.skip(f"the paper's example pictures are not at {_DATA}", allow_module_level=True)


def load(folder, name):
    rgb = np.asarray(Image.open(next((_DATA / folder).glob(f"{name}.*"))).convert("RGB"))
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 255  # (1, 3, 1024, 1024)


@pytest.mark.parametrize(("folder", "degrees"), [("6", 25.3), ("10", 20.0)])
def test_normals_differ_from_the_teachers_by_the_published_angle(folder, degrees):
    lora, teacher = (decode(load(folder, f"{who}_normal"), "normals") for who in ("ilora", "teacher"))
    error = torch.rad2deg(torch.acos((lora * teacher).sum(1).clamp(-1, 1))).mean()
    assert error.item() == pytest.approx(degrees, abs=0.05)


@pytest.mark.parametrize("who", ["ilora", "teacher"])
def test_ceilings_look_down_floors_look_up_and_walls_face_us(who):
    kitchen = decode(load("10", f"{who}_normal"), "normals")[0]
    ceiling, floor = kitchen[:, :100], kitchen[:, -60:, -200:]
    left_wall, back_wall = kitchen[:, 230:265, 60:160], kitchen[:, 250:360, 220:400]
    assert (ceiling[1] < -0.7).float().mean() > 0.98
    assert (floor[1] > 0.7).float().mean() > 0.98
    assert (left_wall[0] > 0.5).float().mean() > 0.98  # a wall on the left faces right
    assert (back_wall[2] > 0.5).float().mean() > 0.98  # and what we see faces us
    dining_room_floor = decode(load("6", f"{who}_normal"), "normals")[0][:, -60:]
    assert (dining_room_floor[1] > 0.5).float().mean() > 0.98


@pytest.mark.parametrize("who", ["ilora", "teacher"])
def test_depth_is_distance(who):
    depth = decode(load("10", f"{who}_depth"), "depth")[0, 0]
    sofa, stools, window = depth[900:1000, 30:200], depth[705:730, 350:430], depth[260:340, 800:830]
    assert sofa.mean() < 0.2 < stools.mean() < 0.75 < window.mean()


@pytest.mark.parametrize(("folder", "error"), [("6", 0.057), ("10", 0.109)])
def test_albedo_times_shading_is_the_photo_up_to_one_scale(folder, error):
    """In display space, where the figures were measured."""
    albedo, shading = (linear_to_srgb(decode(load(folder, f"teacher_{m}"), m)) for m in ("albedo", "shading"))
    photo, product = load(folder, "photo"), albedo * shading
    scale = (photo * product).sum() / product.square().sum()
    assert (photo - scale * product).square().mean().sqrt().item() == pytest.approx(error, abs=1e-3)


@pytest.mark.parametrize("folder", ["6", "10"])
@pytest.mark.parametrize(("name", "margin"), [("normal", 0.97), ("depth", 0.97), ("albedo", 0.85), ("shading", 0.80)])
def test_guided_upsampling_beats_bilinear_on_every_map(folder, name, margin):
    photo, true = (resize(load(folder, file), (512, 512)) for file in ("photo", f"teacher_{name}"))
    low = resize(true, (64, 64))
    guided, bilinear = (
        (up - true).square().mean().sqrt() for up in (guided_upsample(low, photo), resize(low, (512, 512)))
    )
    assert guided < margin * bilinear


@pytest.mark.parametrize("who", ["ilora", "teacher"])
@pytest.mark.parametrize("folder", ["6", "10"])
def test_light_from_one_side_brightens_what_faces_that_side(folder, who):
    names = ("photo", *(f"{who}_{name}" for name in ("normal", "depth", "albedo", "shading")))
    photo, *pictures = (resize(load(folder, name), (256, 256)) for name in names)
    maps = {name: decode(picture, name) for name, picture in zip(INTRINSICS, pictures, strict=True)}
    gbuffer = make_gbuffer(photo, **maps)
    assert gbuffer.assumed == ("roughness", "mask")
    assert 1 < gbuffer.scale.item() < 4 and 0.01 < gbuffer.residual.median() < 0.15

    def difference(one, other, shadow):
        pair = [relight(gbuffer, [sun], ambient=0.1, shadow=shadow).image for sun in (one, other)]
        assert all(image.isfinite().all() and image.min() >= 0 for image in pair)
        return luminance(pair[0]) - luminance(pair[1])  # (1, 1, H, W)

    for axis, one, other in (
        (0, Sun(az=60, el=20), Sun(az=-60, el=20)),
        (1, Sun(az=0, el=50), Sun(az=0, el=-50)),
    ):
        facing, turned = (gbuffer.normals[:, axis : axis + 1] * sign > 0.3 for sign in (1, -1))
        assert facing.sum() > 50 and turned.sum() > 50  # the dining room is seen from above
        # Without shadows every single surface must obey (some see neither sun); with them, the mean.
        plain = difference(one, other, shadow=0)
        assert (plain[facing] >= 0).all() and (plain[turned] <= 0).all()
        assert (plain[facing] > 0).float().mean() > 0.8 and (plain[turned] < 0).float().mean() > 0.8
        shadowed = difference(one, other, shadow=1)
        assert shadowed[facing].mean() > 0 > shadowed[turned].mean()
