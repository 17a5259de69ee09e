"""The procedural scenes against independently computed geometry."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from intrinsic_lora.train.scenes.files import write_scenes
from intrinsic_lora.train.scenes.render import KINDS, Light, Solid, render, sample_scene, scene_caption
from intrinsic_lora.train.scenes.worlds import render_scene, sample_world
from intrinsic_lora.train.scenes.worlds import scene_of as scene_of_worlds

SIZE = 48


def scene_of(index: int, seed: int = 5):
    """Render a scene of the plain world; from index 100 on, of the rich one."""
    return sample_world("rich" if index >= 100 else "plain", np.random.default_rng([seed, index]))


def positions(scene, buffers):
    """World positions (H, W, 3) from the metric depth, by the pinhole model written out."""
    size = buffers["depth_metric"].shape[0]
    half = np.tan(np.radians(scene.fov / 2))
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    rays = np.stack([(2 * x + 1 - size) / size * half, (size - 2 * y - 1) / size * half, -np.ones_like(x, float)], -1)
    return scene.camera + (rays * buffers["depth_metric"][..., None]) @ scene.orientation.T.astype(float)


def only(scene, solid, **changes):
    return replace(scene, solids=(solid,), **changes)


@pytest.mark.parametrize("index", [*range(8), *range(100, 108)])
def test_the_picture_is_albedo_times_shading_and_every_map_is_in_range(index):
    scene = scene_of(index)
    b = render(scene, SIZE)
    np.testing.assert_allclose(b["rgb_linear"], b["albedo"] * b["shading"], atol=1e-6)
    assert b["rgb_linear"].min() >= 0 and b["rgb_linear"].max() <= 1
    assert b["shading"].shape == (SIZE, SIZE, 1 if index < 100 else 3) and b["shading"].max() == pytest.approx(1)
    assert b["depth"].min() == 0 and b["depth"].max() == 1 and b["depth_metric"].min() > 0
    metric = b["depth_metric"]
    np.testing.assert_allclose(b["depth"], (metric - metric.min()) / np.ptp(metric), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(b["normals"], axis=-1), 1, atol=1e-5)
    assert all(b[name].dtype == np.float32 for name in b if name != "object")


@pytest.mark.parametrize("index", [*range(40), *range(100, 140)])
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
        elif solid.kind == "cone":
            radius, half = solid.size[:2]
            radial = np.linalg.norm(q[:, [0, 2]], axis=-1)
            on_base = np.abs(q[:, 1] + half) < 1e-4
            np.testing.assert_allclose(radial[~on_base], radius * (half - q[~on_base, 1]) / (2 * half), atol=2e-4)
            assert (np.abs(q[:, 1]) <= half + 1e-4).all() and (radial <= radius + 1e-4).all()
            inner = on_base & (radial < radius - 1e-2)
            np.testing.assert_allclose(n[inner], np.broadcast_to([0, -1, 0], n[inner].shape), atol=1e-4)
            # The lateral normal is at a right angle to the line from the point to the apex, and to the circle.
            lateral = ~on_base & (radial > 1e-2)
            slant = np.array([0, half, 0]) - q[lateral]
            circle = np.stack([-q[lateral, 2], 0 * q[lateral, 0], q[lateral, 0]], -1)
            for tangent in (slant, circle):
                tangent = tangent / np.linalg.norm(tangent, axis=-1, keepdims=True)
                np.testing.assert_allclose((n[lateral] * tangent).sum(-1), 0, atol=2e-3)
            assert ((n[lateral] * q[lateral])[:, [0, 2]].sum(-1) > 0).all()  # outward
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
    sizes = {"sphere": [0.5] * 3, "box": [0.4, 0.5, 0.3], "cylinder": [0.4, 0.5, 0.0], "cone": [0.5, 0.6, 0.0]}
    size = sizes[kind]
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
            elif kind == "cone":
                reach = size[0] * (size[1] - q[:, 1]) / (2 * size[1])
                inside = (np.linalg.norm(q[:, [0, 2]], axis=-1) < reach) & (np.abs(q[:, 1]) < size[1])
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


def test_the_plain_world_is_what_it_was():
    """Published figures depend on this world, so it must equal the stored pictures."""
    with np.load(Path(__file__).with_name("plain_scenes.npz")) as stored:
        for i in range(len(stored["normals"])):
            b = render(sample_scene(np.random.default_rng([2, i])), 12)
            for name in stored.files:
                # Float16 has 11 bits. A pattern's edge may fall on either side of a pixel by another maths library.
                near = np.isclose(b[name], stored[name][i].astype(np.float32), rtol=2**-10, atol=2**-12)
                assert near.mean() > 0.99, (i, name)


def test_a_white_scene_in_coloured_light_is_lit_lamp_by_lamp():
    """Light adds up: shading under two lamps is the sum of each lamp's, times its colour, and ambient is white."""
    scene = scene_of(3)
    lamps = [Light(np.float32([x, 2.2, 0.3]), 0.9, 0.2, color=None) for x in (-0.8, 0.9)]
    colours = np.float32([[1, 0.5, 0.2], [0.3, 0.6, 1]])

    def unscaled(lights, ambient):
        b = render(replace(scene, lights=tuple(lights), ambient=ambient), SIZE)
        return b["shading"] * b["shading_scale"], b

    white = [unscaled([lamp], 0.0)[0] for lamp in lamps]
    ambient = unscaled([replace(lamps[0], intensity=0.0)], 0.2)[0]
    coloured, b = unscaled([replace(lamp, color=c) for lamp, c in zip(lamps, colours, strict=True)], 0.2)
    expected = ambient + white[0] * colours[0] + white[1] * colours[1]
    np.testing.assert_allclose(coloured, expected, atol=1e-5)
    np.testing.assert_allclose(b["rgb_linear"], b["albedo"] * b["shading"], atol=1e-6)
    plain, _ = unscaled(lamps, 0.2)
    np.testing.assert_allclose(plain, ambient + white[0] + white[1], atol=1e-5)


def test_a_picture_on_a_wall_changes_albedo_alone_and_only_inside_its_frame():
    hung = next(s for s in map(scene_of, range(100, 140)) if s.pictures and picture_pixels(s).sum() > 50)
    a, b = render(hung, SIZE), render(replace(hung, pictures=()), SIZE)
    inside = picture_pixels(hung)
    for name in ("normals", "depth_metric", "object", "shading"):
        np.testing.assert_array_equal(a[name], b[name])
    np.testing.assert_array_equal(a["albedo"][~inside], b["albedo"][~inside])
    assert (a["albedo"][inside] != b["albedo"][inside]).any(-1).mean() > 0.9


def picture_pixels(scene):
    """(H, W) bool: where the room's wall is covered by a picture, from the positions of its pixels."""
    b = render(scene, SIZE)
    p = positions(scene, b)
    covered = np.zeros((SIZE, SIZE), bool)
    for picture in scene.pictures:
        axis, side = divmod(picture.wall, 2)
        on_wall = np.abs(p[..., axis] - scene.room[side, axis]) < 1e-4
        along = p[..., 2 - axis]
        near = (np.abs(along - picture.center[0]) < picture.half[0]) & (
            np.abs(p[..., 1] - picture.center[1]) < picture.half[1]
        )
        covered |= on_wall & near & (b["object"] < 0)
    return covered


def test_the_rich_world_has_what_it_promises():
    scenes = [scene_of(i) for i in range(100, 220)]
    solids = [solid for scene in scenes for solid in scene.solids]
    assert {solid.kind for solid in solids} == set(KINDS)
    lying = [s for s in solids if s.kind == "cylinder" and abs(s.rotation[1, 1]) < 1e-6]
    assert lying
    for solid in lying:
        assert solid.center[1] >= solid.size[0] - 1e-6  # above the floor, or on it
    assert all(light.color is not None for scene in scenes for light in scene.lights)
    assert any(scene.pictures for scene in scenes)
    for scene in scenes:
        for a in range(len(scene.solids)):
            for b in range(a):
                apart = np.linalg.norm(scene.solids[a].center - scene.solids[b].center)
                assert apart > scene.solids[a].radius + scene.solids[b].radius
        for picture in scene.pictures:
            along = 2 if picture.wall // 2 == 0 else 0
            low, high = scene.room[:, along]
            assert low <= picture.center[0] - picture.half[0] and picture.center[0] + picture.half[0] <= high + 1e-6
            assert picture.center[1] - picture.half[1] > 0 and picture.center[1] + picture.half[1] < scene.room[1, 1]


def test_worlds_take_turns_and_share_the_channels_of_shading(tmp_path):
    worlds = ("plain", "rich")
    for i in range(4):
        own = sample_world(worlds[i % 2], np.random.default_rng([7, i // 2]))
        a, b = render(own, 16), render_scene(scene_of_worlds(7, i, worlds), 16, worlds)
        np.testing.assert_array_equal(a["rgb_linear"], b["rgb_linear"])
        np.testing.assert_array_equal(np.broadcast_to(a["shading"], (16, 16, 3)), b["shading"])
    write_scenes(tmp_path, 2, 7, 16, worlds=worlds)
    for i in range(2):
        with np.load(tmp_path / f"{i:04d}.npz") as file:
            expected = render_scene(scene_of_worlds(7, i, worlds), 16, worlds)
            np.testing.assert_array_equal(file["albedo"], expected["albedo"])
            assert file["shading"].shape == (16, 16, 3)
    with pytest.raises(ValueError, match=r"^World flat not found; choose one of plain, rich\.$"):
        sample_world("flat", np.random.default_rng(0))
