"""Depth that says nothing (sky, holes): one rule for relighting, labels, scores and ComfyUI's pictures."""

import json
import math
import os

import numpy as np
import pytest
import torch
from intrinsic_lora.comfy_nodes.gbuffers import photo_maps_from_images, to_gbuffer
from intrinsic_lora.intrinsics.color import srgb_to_linear
from intrinsic_lora.intrinsics.depth import NOTHING_THERE, grey_depth, to_distance, valid_depth
from intrinsic_lora.intrinsics.pictures import write_json
from intrinsic_lora.intrinsics.relight import ambient_occlusion, make_gbuffer, parse_light, relight
from intrinsic_lora.intrinsics.relight.files import fit_maps
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS
from intrinsic_lora.train.data.label_files import canonical
from intrinsic_lora.train.scoring.folders import evaluate_folders
from intrinsic_lora.train.scoring.report import write_report

NOTHING = [0.0, -1.0, NOTHING_THERE, 1e10, math.inf, -math.inf, math.nan]
H, W = 24, 32


@pytest.fixture
def scene():
    """Return a ramp from 2 to 4 (1, 1, H, W), and the mask of its upper third, the sky."""
    depth = torch.linspace(2, 4, W).expand(1, 1, H, W).clone()
    sky = torch.zeros(1, 1, H, W, dtype=torch.bool)
    sky[:, :, : H // 3] = True
    return depth, sky


@pytest.mark.parametrize("nothing", NOTHING)
def test_one_rule_in_torch_and_numpy(nothing):
    values = [nothing, 1e-3, 1.0, 9.9e8]
    for dtype in (np.float32, np.float64):
        assert valid_depth(np.array(values, dtype)).tolist() == [False, True, True, True]
        assert valid_depth(torch.tensor(values, dtype=torch.from_numpy(np.zeros(1, dtype)).dtype)).tolist() == [
            False, True, True, True,
        ]  # fmt: skip
    assert valid_depth(np.array(values), "disparity").tolist() == [math.isfinite(nothing), True, True, True]


@pytest.mark.parametrize("nothing", NOTHING)
def test_nothing_is_farthest_and_leaves_the_range_alone(scene, nothing):
    depth, sky = scene
    distance, near, far = to_distance(torch.where(sky, nothing, depth), "metric", 1.0, 9.0)
    assert (near, far) == (2, 4)
    torch.testing.assert_close(distance, torch.where(sky, 1.0, (depth - 2) / 2))


@pytest.mark.parametrize("kind", ["distance", "near-white", "disparity"])
def test_holes_of_other_kinds_too(scene, kind):
    depth, sky = scene
    stored = {"distance": (depth - 2) / 2, "near-white": (4 - depth) / 2, "disparity": 7 / depth - 3}[kind]
    distance, _, _ = to_distance(torch.where(sky, torch.nan, stored), kind, 2.0, 4.0)
    torch.testing.assert_close(distance, torch.where(sky, 1.0, (depth - 2) / 2))


def test_a_few_stray_distances_do_not_flatten_the_rest(scene):
    depth, _ = scene
    depth[0, 0, 0, :3] = 1e6
    distance, _, far = to_distance(depth, "metric", 1.0, 9.0)
    assert far == pytest.approx(20 * depth.median().item())
    assert (distance[0, 0, 0, :3] == 1).all() and distance.median() == pytest.approx((3 - 2) / (far - 2), rel=0.05)


def test_a_picture_without_any_depth_beside_one_with(scene):
    depth, _ = scene
    both = torch.cat([depth, torch.full_like(depth, torch.inf)])
    for kind in ("metric", "disparity"):
        distance, _, _ = to_distance(both, kind, 1.0, 2.0)
        torch.testing.assert_close(distance[:1], to_distance(depth, kind, 1.0, 2.0)[0])
        assert (distance[1] == 1).all()
    with pytest.raises(ValueError, match=r"^The depth, of the kind metric, holds no distance above 0"):
        to_distance(both[1:], "metric", 1.0, 2.0)


@pytest.mark.parametrize("nothing", [0.0, 1e10, math.inf, math.nan])
@pytest.mark.parametrize("light", ["point x=.3 y=.8 height=.5", "spot x=.3 y=.8 height=.5", "sun az=180 el=20"])
def test_the_scene_is_lit_as_without_its_sky(scene, nothing, light):
    """Cropping the sky away is the independent answer: what remains must not notice it."""
    depth, sky = scene
    generator = torch.Generator().manual_seed(0)
    photo = torch.rand(1, 3, H, W, generator=generator)
    normals = torch.tensor([-0.3, 0.5, 0.8])[:, None, None].expand(1, 3, H, W)
    whole = make_gbuffer(photo, normals, torch.where(sky, nothing, depth), depth_kind="metric")
    flat = make_gbuffer(photo, normals, torch.where(sky, 4.0, depth), depth_kind="metric")
    lights = [parse_light(light)]
    relit, plain = (relight(g, lights, occlusion=1.0, ambient=0.2) for g in (whole, flat))
    assert torch.equal(relit.image[sky.expand(-1, 3, -1, -1)], srgb_to_linear(photo)[sky.expand(-1, 3, -1, -1)])
    below = slice(H // 3 + 8, None)  # beyond what shadows are averaged over
    unshadowed = [relight(g, lights, shadow=0.0).image[..., below, :] for g in (whole, flat)]
    torch.testing.assert_close(*unshadowed)
    assert (relit.shadow >= plain.shadow - 1e-6)[..., below, :].all()
    assert relit.image[..., below, :].mean() > 0.01


def test_nothing_casts_no_shadow_and_darkens_nothing():
    """A ramp before a sky: a light from behind passes where the same depth as a wall would hold it up."""
    z = torch.full((1, 1, 48, 48), 4.0)
    z[:, :, 24:] = 1 / torch.linspace(1 / 4, 1 / 2, 24)[:, None].expand(24, 48)  # rows down to the viewer
    sky = torch.zeros_like(z, dtype=torch.bool)
    sky[:, :, :24] = True
    normals = torch.tensor([0.0, 0.92, 0.38])[:, None, None].expand(1, 3, 48, 48)
    photo = torch.full((1, 3, 48, 48), 0.5)
    open_sky = make_gbuffer(photo, normals, torch.where(sky, torch.inf, z), depth_kind="metric")
    wall = make_gbuffer(photo, normals, z, depth_kind="metric")
    assert open_sky.camera == wall.camera and torch.equal(open_sky.depth, wall.depth)
    lights = [parse_light("sun az=180 el=35")]
    floor = (..., slice(24, None), slice(None))  # tilted by 22.5 degrees
    seen = [relight(g, lights).shadow[floor] for g in (open_sky, wall)]
    assert seen[1].min() < 0.5 and seen[0].min() > 0.99
    occluded = [1 - ambient_occlusion(g.geometry, g.normals)[floor] for g in (open_sky, wall)]
    assert occluded[1].max() > 0.05 and occluded[0].sum() < 0.2 * occluded[1].sum()


@pytest.mark.parametrize("nothing", [0.0, 1e10, math.inf, math.nan])
def test_resampling_does_not_mix_nothing_into_its_neighbours(scene, nothing):
    depth, sky = scene
    maps = {"depth": torch.where(sky, nothing, depth), "depth_kind": "metric"}
    for size in ((H // 2, W // 2), (3 * H, 3 * W)):
        fitted = fit_maps(maps, *size)["depth"]
        there = valid_depth(fitted)
        assert abs(there.float().mean().item() - 2 / 3) < 1 / size[0]
        assert fitted[there].min() >= 2 - 1e-5 and fitted[there].max() <= 4 + 1e-5
        bottom = fit_maps({"depth": depth}, *size)["depth"][..., -size[0] // 2 :, :]
        torch.testing.assert_close(fitted[..., -size[0] // 2 :, :], bottom)


@pytest.mark.parametrize("nothing", [0.0, 1e10, math.inf, math.nan])
def test_labels_and_comfyui_take_the_same_pixels(scene, nothing):
    depth, sky = scene
    stored = torch.where(sky, nothing, depth)
    label, mask = canonical(stored[0], None, INTRINSICS["depth"], "metric")
    gbuffer = make_gbuffer(torch.rand(1, 3, H, W), torch.ones(1, 3, H, W), stored, depth_kind="metric")
    image = torch.rand(1, H, W, 3)
    photo_maps = photo_maps_from_images(
        image, normals=torch.full((1, H, W, 3), 0.75), depth=stored.movedim(1, -1).expand(-1, -1, -1, 3),
        depth_kind="metric",
    )  # fmt: skip
    node = to_gbuffer(photo_maps)
    for found, there in ((label, mask[None] > 0), (gbuffer.depth, gbuffer.there), (node.depth, node.there)):
        torch.testing.assert_close(found.reshape(1, 1, H, W), gbuffer.depth)
        assert torch.equal(there, ~sky)
    assert torch.equal(node.mask > 0, ~sky) and torch.equal(gbuffer.mask > 0, ~sky)


def test_a_depth_map_in_colours_is_refused_and_a_grey_one_of_three_channels_taken(scene):
    depth = (scene[0] - 2) / 2
    x = depth * 255
    jet = torch.cat([(x * 4 - 382).abs().clamp(0, 255), 255 - x, x.flip(-1)], 1) / 255
    with pytest.raises(ValueError, match="channels of the depth map differ, as in a colour map; save it"):
        grey_depth(jet)
    torch.testing.assert_close(grey_depth(depth.expand(-1, 3, -1, -1)), depth)
    noisy = depth + 0.02 * torch.randn(1, 3, H, W, generator=torch.Generator().manual_seed(0))  # as a network draws it
    torch.testing.assert_close(grey_depth(noisy), noisy.mean(1, keepdim=True))


def test_scores_leave_out_holes_and_sky_and_survive_names_that_are_no_text(tmp_path):
    truth = np.linspace(1, 4, 48 * 64, dtype=np.float32).reshape(48, 64)
    top = np.arange(48)[:, None] < 10
    for folder in ("pred", "gt"):
        (tmp_path / folder).mkdir()
    stems = {b"clean": truth, b"caf\xe9": np.where(top, 0, truth), b"far": np.where(top, 1e10, truth)}
    for stem, metric in stems.items():
        for folder, arrays in (("pred", {"depth": (truth - 1) / 3}), ("gt", {"depth_metric": metric})):
            with open(os.fsencode(tmp_path / folder) + b"/" + stem + b".npz", "wb") as file:
                np.savez(file, **arrays)
    (tmp_path / "gt" / "._clean.npz").write_bytes(b"what macOS leaves beside a file")
    result = evaluate_folders(tmp_path / "pred", tmp_path / "gt")
    assert len(result["images"]) == 3
    for image in result["images"].values():
        assert image["depth"]["abs_rel"] < 1e-5 and image["depth"]["rmse"] < 1e-5 and image["depth"]["delta1"] == 1
    write_report(tmp_path / "report.html", result, tmp_path / "pred", tmp_path / "gt")
    write_json(tmp_path / "scores.json", result)
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == result
