"""What MoGe and Depth Anything 3 give, as our maps: against a plane and a camera that are known in closed form."""

from math import atan, degrees, radians, tan

import pytest
import torch
from intrinsic_lora.comfy_nodes.gbuffers import photo_maps_from_images, to_gbuffer
from intrinsic_lora.comfy_nodes.geometry import geometry_maps, moge_geometry
from intrinsic_lora.intrinsics.relight import Camera

HEIGHT, WIDTH, FOV = 24, 40, 55.0
TILT = torch.tensor([0.3, -0.2, -1.0]) / torch.tensor([0.3, -0.2, -1.0]).norm()  # towards the viewer, OpenCV


def plane(height=HEIGHT, width=WIDTH):
    """Distances (1,H,W) along the axis to the plane through (0, 0, 3) with normal TILT, seen with FOV."""
    half = tan(radians(FOV) / 2) / max(height, width)
    u = (2 * torch.arange(width) + 1 - width) * half
    v = (2 * torch.arange(height) + 1 - height) * half
    return (3 * TILT[2] / (u * TILT[0] + v[:, None] * TILT[1] + TILT[2]))[None]


def moge(height=HEIGHT, width=WIDTH, **more):
    """As core's node gives it: focal lengths as shares of width and height."""
    focal = max(height, width) / (2 * tan(radians(FOV) / 2))  # pixels
    k = torch.tensor([[focal / width, 0, 0.5], [0, focal / height, 0.5], [0, 0, 1]])[None]
    depth = plane(height, width)
    return {"depth": depth, "intrinsics": k, "image": torch.zeros(*depth.shape, 3), **more}


@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_normals_from_distances_and_the_field_of_view(size):
    found = geometry_maps(moge(*size))
    assert found.fov == pytest.approx(FOV, abs=1e-3)
    inner = found.normals[:, 1:-1, 1:-1] * 2 - 1
    torch.testing.assert_close(inner, TILT.expand_as(inner), atol=2e-4, rtol=0)  # float32 differences of 1e-2
    torch.testing.assert_close(found.depth[..., 0], plane(*size))


def test_the_models_own_normals_go_first():
    own = torch.tensor([0.6, 0.0, -0.8]).expand(1, HEIGHT, WIDTH, 3)
    torch.testing.assert_close(geometry_maps(moge(normal=own)).normals * 2 - 1, own, atol=1e-6, rtol=0)


def test_where_there_is_nothing_there_is_no_surface():
    depth = plane()
    mask = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, :8] = False
    holes = depth.masked_fill(~mask, torch.inf)
    for geometry in (moge(mask=mask), moge(sky=(~mask).float()), moge() | {"depth": holes}):
        found = geometry_maps(geometry)
        assert torch.equal(found.depth[..., 0].isfinite(), mask)
        assert (found.normals[:, :8] == torch.tensor([0.5, 0.5, 0.0])).all() and found.normals.isfinite().all()
        photo = torch.full((1, HEIGHT, WIDTH, 3), 0.5)
        maps = {"normals": found.normals, "normals_frame": "opencv", "depth": found.depth, "depth_kind": "metric"}
        assert torch.equal(photo_maps_from_images(photo, **maps).there[:, 0], mask)


def test_depth_anything():
    """One picture without a camera, as core assumes it; several views in pixels."""
    mono = {"depth": plane(), "mode": "mono", "image": torch.zeros(1, HEIGHT, WIDTH, 3)}
    assert geometry_maps(mono).fov == pytest.approx(degrees(2 * atan(1 / 1.4)))
    focal = WIDTH / (2 * tan(radians(FOV) / 2))
    k = torch.tensor([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]])
    views = mono | {"mode": "multiview", "depth": plane().expand(2, -1, -1), "intrinsics": k.expand(1, 2, 3, 3)}
    assert geometry_maps(views).fov == pytest.approx(FOV, abs=1e-3)
    assert geometry_maps(views).normals.shape == (2, HEIGHT, WIDTH, 3)


def test_in_a_gbuffer_the_plane_lies_where_it_was():
    found = geometry_maps(moge())
    photo = torch.full((1, HEIGHT, WIDTH, 3), 0.5)
    photo_maps = photo_maps_from_images(
        photo, normals=found.normals, normals_frame="opencv", depth=found.depth, depth_kind="metric",
        camera=Camera(fov=found.fov),
    )  # fmt: skip
    gbuffer = to_gbuffer(photo_maps)
    points = gbuffer.geometry.points  # (1,3,H,W), OpenGL
    normal = TILT * torch.tensor([1.0, -1, -1])
    distance = (points * normal.view(3, 1, 1)).sum(1)
    expected = -3 * normal[2]
    torch.testing.assert_close(distance, expected.expand_as(distance), atol=1e-4, rtol=0)
    torch.testing.assert_close(gbuffer.normals[0, :, 5, 5], normal, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("geometry", "words"),
    [({"image": torch.zeros(1, 2, 2, 3)}, "has no depth"), ({"depth": plane()}, "is of a panorama")],
)
def test_what_cannot_be_used_is_refused(geometry, words):
    with pytest.raises(ValueError, match=words):
        geometry_maps(geometry)


@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_maps_become_a_geometry_of_core(size):
    """The plane again: its points satisfy its equation, and the camera is the one that core's node would give."""
    given = moge(*size)
    photo = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0))
    found = geometry_maps(given)
    maps = photo_maps_from_images(
        photo,
        normals=found.normals,
        normals_frame="opencv",
        depth=found.depth,
        depth_kind="metric",
        camera=Camera(fov=found.fov),
    )
    made = moge_geometry(maps)
    torch.testing.assert_close(made["depth"], given["depth"], atol=1e-5, rtol=0)  # distances of about 3 in float32
    torch.testing.assert_close(made["points"] @ TILT, (3 * TILT[2]).expand(1, *size), atol=1e-5, rtol=0)
    torch.testing.assert_close(made["normal"][:, 1:-1, 1:-1], found.normals[:, 1:-1, 1:-1] * 2 - 1, atol=1e-5, rtol=0)
    torch.testing.assert_close(made["intrinsics"], given["intrinsics"], atol=1e-5, rtol=0)
    torch.testing.assert_close(made["image"], photo)
    assert made["mask"].all() and made["mask"].shape == (1, *size)
    wide = moge_geometry(maps, fov=90.0)
    assert geometry_maps(wide).fov == pytest.approx(90.0, abs=1e-3)


def test_a_geometry_of_core_ends_where_there_is_no_surface():
    mask = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, :8] = False
    found = geometry_maps(moge(mask=mask))
    photo = torch.full((1, HEIGHT, WIDTH, 3), 0.5)
    options = {"normals": found.normals, "normals_frame": "opencv", "depth": found.depth, "depth_kind": "metric"}
    made = moge_geometry(photo_maps_from_images(photo, **options))
    assert torch.equal(made["mask"], mask)
    assert torch.equal(made["depth"].isfinite(), mask) and made["normal"].isfinite().all()
    assert not made["points"].isnan().any()
    with pytest.raises(ValueError, match="no depth"):
        moge_geometry(photo_maps_from_images(photo, normals=found.normals, normals_frame="opencv"))
