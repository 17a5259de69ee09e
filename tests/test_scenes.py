"""The procedural scenes against geometry worked out another way."""

from dataclasses import replace

import numpy as np
import pytest
from intrinsic_lora.train.scenes import KINDS, Light, Solid, render, sample_scene, scene_caption

SIZE = 48


def scene_of(index: int, seed: int = 5):
    return sample_scene(np.random.default_rng([seed, index]))


def positions(scene, buffers):
    """World positions (H, W, 3) from the metric depth, by the pinhole model written out."""
    size = buffers["depth_metric"].shape[0]
    half = np.tan(np.radians(scene.fov / 2))
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    rays = np.stack([(2 * x + 1 - size) / size * half, (size - 2 * y - 1) / size * half, -np.ones_like(x, float)], -1)
    return scene.camera + (rays * buffers["depth_metric"][..., None]) @ scene.orientation.T.astype(float)


def only(scene, solid, **changes):
    return replace(scene, solids=(solid,), **changes)


@pytest.mark.parametrize("index", range(8))
def test_the_picture_is_albedo_times_shading_and_every_map_is_in_range(index):
    scene = scene_of(index)
    b = render(scene, SIZE)
    np.testing.assert_allclose(b["rgb_linear"], b["albedo"] * b["shading"], atol=1e-6)
    assert b["rgb_linear"].min() >= 0 and b["rgb_linear"].max() <= 1
    assert b["shading"].shape == (SIZE, SIZE, 1) and b["shading"].max() == pytest.approx(1)
    assert b["depth"].min() == 0 and b["depth"].max() == 1 and b["depth_metric"].min() > 0
    metric = b["depth_metric"]
    np.testing.assert_allclose(b["depth"], (metric - metric.min()) / np.ptp(metric), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(b["normals"], axis=-1), 1, atol=1e-5)
    assert all(b[name].dtype == np.float32 for name in b if name != "object")


@pytest.mark.parametrize("index", range(40))
def test_every_pixel_lies_on_the_surface_it_names_with_that_surfaces_normal(index):
    scene = scene_of(index)
    b = render(scene, SIZE)
    p = positions(scene, b)
    world = b["normals"] @ scene.orientation.T
    room = b["object"] < 0
    wall = np.minimum(np.abs(p[room] - scene.room[0]), np.abs(p[room] - scene.room[1])).min(-1)
    assert wall.max() < 1e-4
    for i, solid in enumerate(scene.solids):
        here = b["object"] == i
        if not here.any():
            continue
        q, n = (p[here] - solid.center) @ solid.rotation, world[here] @ solid.rotation  # own frame
        if solid.kind == "sphere":
            np.testing.assert_allclose(np.linalg.norm(q, axis=-1), solid.size[0], atol=1e-4)
            np.testing.assert_allclose(n, q / solid.size[0], atol=1e-3)
        elif solid.kind == "box":
            np.testing.assert_allclose(np.abs(q / solid.size).max(-1), 1, atol=1e-3)
            np.testing.assert_allclose((n * q / solid.size).sum(-1), 1, atol=1e-3)
        else:
            radial = np.linalg.norm(q[:, [0, 2]], axis=-1)
            on_cap = np.abs(np.abs(q[:, 1]) - solid.size[1]) < 1e-4
            np.testing.assert_allclose(radial[~on_cap], solid.size[0], atol=1e-4)
            assert (radial[on_cap] <= solid.size[0] + 1e-4).all()
            np.testing.assert_allclose(np.abs(n[on_cap & (radial < solid.size[0] - 1e-3), 1]), 1, atol=1e-4)
    # Surfaces that are seen face the viewer.
    assert ((world * (p - scene.camera)).sum(-1) < 1e-4).all()


def test_normals_agree_with_finite_differences_of_depth():
    angles = []
    for index in range(6):
        scene = scene_of(index)
        b = render(scene, 96)
        p = positions(scene, b)
        right, down = p[1:-1, 2:] - p[1:-1, :-2], p[2:, 1:-1] - p[:-2, 1:-1]
        n = np.cross(down, right)
        n /= np.linalg.norm(n, axis=-1, keepdims=True)
        world = b["normals"] @ scene.orientation.T
        flat = np.ones((94, 94), bool)
        for dy in range(3):  # away from creases and silhouettes
            for dx in range(3):
                flat &= np.abs(world[dy : dy + 94, dx : dx + 94] - world[1:-1, 1:-1]).max(-1) < 0.05
        angles.append(np.degrees(np.arccos(np.clip((n * world[1:-1, 1:-1]).sum(-1)[flat], -1, 1))))
    assert np.median(np.concatenate(angles)) < 0.1
    assert np.quantile(np.concatenate(angles), 0.99) < 5


def test_the_camera_frame_is_opengl():
    scene = replace(scene_of(0), solids=(), orientation=np.eye(3, dtype=np.float32), camera=np.float32([0, 1.2, 1.5]))
    n = render(replace(scene, fov=100.0), 65)["normals"]
    np.testing.assert_allclose(n[-1, 32], [0, 1, 0], atol=1e-6)  # the floor looks up
    np.testing.assert_allclose(n[0, 32], [0, -1, 0], atol=1e-6)  # the ceiling looks down
    np.testing.assert_allclose(n[32, 0], [1, 0, 0], atol=1e-6)  # the wall on the left faces right
    np.testing.assert_allclose(n[32, 32], [0, 0, 1], atol=1e-6)  # the back wall faces the viewer


def test_a_picture_three_times_as_large_shows_the_same_scene():
    scene = scene_of(3)
    small, large = render(scene, 32), render(scene, 96)
    for name in ("normals", "depth_metric", "albedo"):
        # Pixel centres coincide; a pattern's edge or a silhouette may fall on either side by rounding.
        same = np.isclose(small[name], large[name][1::3, 1::3], atol=1e-4)
        assert same.mean() > 0.999


def test_shading_of_an_unshadowed_wall_matches_the_closed_form():
    scene = scene_of(1)
    lamp = Light(position=np.float32([0.4, 2.0, 0.2]), intensity=0.8, radius=0.2)
    scene = replace(scene, solids=(), lights=(lamp,), ambient=0.2)
    b = render(scene, SIZE)
    p, n = positions(scene, b), b["normals"] @ scene.orientation.T.astype(float)
    d = lamp.position - p
    expected = 0.2 * (0.75 + 0.25 * n[..., 1])
    expected += 0.8 * np.maximum((n * d).sum(-1), 0) / np.linalg.norm(d, axis=-1) * 4 / (3 + (d**2).sum(-1))
    np.testing.assert_allclose(b["shading"][..., 0], expected / expected.max(), atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_soft_shadows_match_a_brute_force_count_of_blocked_rays(kind):
    """The lamp's sphere sampled densely, each ray marched in small steps through an inside test of the solid."""
    scene = scene_of(2)
    size = {"sphere": [0.5, 0.5, 0.5], "box": [0.4, 0.5, 0.3], "cylinder": [0.4, 0.5, 0.0]}[kind]
    solid = Solid(kind, np.float32([0, 0.7, -0.5]), np.float32(size), np.eye(3, dtype=np.float32), scene.walls[0])
    lamp = Light(position=np.float32([0.6, 2.3, -0.2]), intensity=1.0, radius=0.3)
    scene = only(scene, solid, lights=(lamp,), ambient=0.0)
    b = render(scene, SIZE)
    bare = render(replace(scene, solids=()), SIZE)
    p, n = positions(scene, b), b["normals"] @ scene.orientation.T.astype(float)
    floor = (b["object"] < 0) & (n[..., 1] > 0.99) & (bare["shading"][..., 0] > 1e-3)
    ratio = b["shading"][floor, 0] / bare["shading"][floor, 0]
    seen = ratio / ratio.max()  # both pictures are divided by their own maximum
    rng = np.random.default_rng(2)
    directions = rng.normal(size=(300, 3))
    lamps = lamp.position + lamp.radius * directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    picked = np.concatenate([seen.argsort()[:20], rng.choice(floor.sum(), 40, replace=False)])
    steps = np.linspace(0.001, 1, 250)[:, None]
    expected = []
    for point in p[floor][picked]:
        blocked = 0
        for lamp_point in lamps[:100]:
            q = point + steps * (lamp_point - point) - solid.center
            if kind == "sphere":
                inside = np.linalg.norm(q, axis=-1) < size[0]
            elif kind == "box":
                inside = (np.abs(q) < size).all(-1)
            else:
                inside = (np.linalg.norm(q[:, [0, 2]], axis=-1) < size[0]) & (np.abs(q[:, 1]) < size[1])
            blocked += inside.any()
        expected.append(1 - blocked / 100)
    assert np.ptp(expected) > 0.8, "the test needs points in light and in shadow"
    assert np.abs(seen[picked] - expected).mean() < 0.05
    assert np.abs(seen[picked] - expected).max() < 0.3


def test_other_lights_change_shading_alone():
    scene = scene_of(4)
    a, b = render(scene, SIZE), render(replace(scene, lights=scene_of(9).lights), SIZE)
    for name in ("normals", "depth", "depth_metric", "albedo", "object"):
        np.testing.assert_array_equal(a[name], b[name])
    assert np.abs(a["shading"] - b["shading"]).max() > 0.05


def test_the_caption_counts_what_is_visible():
    scene = scene_of(0)
    ball, box = (Solid(k, np.zeros(3), np.ones(3), np.eye(3), scene.walls[0]) for k in ("sphere", "box"))
    index = np.full((20, 20), -1)
    scene = replace(scene, solids=(ball, ball, box))
    assert scene_caption(scene, index) == "an empty room"
    index[:5] = 0
    assert scene_caption(scene, index) == "a room with one sphere"
    index[5:10], index[10:12] = 1, 2
    assert scene_caption(scene, index) == "a room with two spheres and one box"
    index[10:12] = -1
    index[19, 19] = 2  # one pixel of 400 is below the share that counts
    assert scene_caption(scene, index) == "a room with two spheres"


def test_scenes_are_reproducible_and_differ():
    np.testing.assert_array_equal(render(scene_of(7), 16)["rgb_linear"], render(scene_of(7), 16)["rgb_linear"])
    assert np.abs(render(scene_of(7), 16)["rgb_linear"] - render(scene_of(8), 16)["rgb_linear"]).max() > 0.1


@pytest.mark.parametrize("index", [2, 4, 9])
def test_the_shadow_mask_is_the_light_that_objects_take_away(index):
    scene = replace(scene_of(index), ambient=0.0)
    b, bare = render(scene, SIZE), render(replace(scene, solids=()), SIZE)
    assert b["shadow"].min() >= 0 and b["shadow"].max() <= 1 and b["shadow"].max() > 0.5
    room = b["object"] < 0
    with_objects, without = (x["shading"][..., 0] * x["shading_scale"] for x in (b, bare))
    facing = room & (without > 1e-4)
    np.testing.assert_allclose(1 - b["shadow"][facing], (with_objects / without)[facing], atol=1e-3)
    world, n = positions(scene, b), b["normals"] @ scene.orientation.T.astype(float)
    away = np.all([((light.position - world) * n).sum(-1) < -1e-2 for light in scene.lights], axis=0)
    assert (b["shadow"][away] == 1).all()
    assert bare["shadow"][without > 1e-4].max() == pytest.approx(0, abs=1e-6)
