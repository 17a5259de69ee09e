"""What the ComfyUI nodes do with maps, without ComfyUI: against the library's own functions and closed forms."""

import imagecodecs
import numpy as np
import OpenEXR
import pytest
import torch
from intrinsic_lora.comfy_nodes import files
from intrinsic_lora.comfy_nodes.gbuffers import (
    MAPS,
    convert_normal_picture,
    draw_map,
    edit,
    frame_of,
    photo_maps_from_images,
    to_gbuffer,
)
from intrinsic_lora.comfy_nodes.photo_maps import PhotoMaps, to_image
from intrinsic_lora.intrinsics import NORMAL_FRAMES, convert_normals, linear_to_srgb, normalize_normals, srgb_to_linear
from intrinsic_lora.intrinsics.exr import read_exr
from intrinsic_lora.intrinsics.relight import Camera, Sun, make_gbuffer, relight
from intrinsic_lora.intrinsics.relight.files import read_maps

SIZE = (12, 16)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def photo_maps():
    """Two pictures with every map; the second one's depth is raw three times as deep."""
    depth = rand(2, 1, *SIZE, seed=3)
    depth = (depth - depth.amin((2, 3), True)) / (depth.amax((2, 3), True) - depth.amin((2, 3), True))
    return PhotoMaps(
        photo=rand(2, 3, *SIZE) * 0.8 + 0.1,
        normals=normalize_normals(rand(2, 3, *SIZE, seed=1) * 2 - torch.tensor([1.0, 1, 0]).view(3, 1, 1)),
        depth=depth,
        albedo=rand(2, 3, *SIZE, seed=4) * 0.7 + 0.1,
        shading=rand(2, 1, *SIZE, seed=5) * 1.5 + 0.1,
        roughness=rand(2, 1, *SIZE, seed=6),
        mask=rand(2, 1, *SIZE, seed=7).round(),
        confidence=rand(2, 1, *SIZE, seed=8),
        raw_depth=depth * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1) - 0.7,
    )


def images(photo_maps, frame="opengl"):
    """Its maps as pictures, (B,H,W,3), as Make G-Buffer takes them."""
    return {
        "image": to_image(photo_maps.photo),
        "normals": to_image(convert_normals(photo_maps.normals, "opengl", frame) * 0.5 + 0.5),
        "depth": to_image(1 - photo_maps.depth),
        "albedo": to_image(linear_to_srgb(photo_maps.albedo)),
        "shading": to_image(photo_maps.shading),
        "roughness": to_image(photo_maps.roughness),
        "mask": photo_maps.mask[:, 0],
    }


# --- drawing


@pytest.mark.parametrize("frame", NORMAL_FRAMES)
def test_normals_are_drawn_in_the_frame_asked_for(photo_maps, frame):
    picture, facing = draw_map(photo_maps, "normals", frame=frame)
    back = convert_normals(picture * 2 - 1, frame, "opengl")
    torch.testing.assert_close(back, photo_maps.normals, atol=1e-6, rtol=0)
    torch.testing.assert_close(facing, photo_maps.normals[:, 2:].clamp(min=0))
    flat, _ = draw_map(photo_maps, "normals", frame=frame, strength=0)
    corner = {"opengl": (0.5, 0.5, 1), "directx": (0.5, 0.5, 1), "opencv": (0.5, 0.5, 0), "controlnet": (0.5, 0.5, 1)}
    assert flat[0, :, 3, 3].tolist() == pytest.approx(corner[frame])


def test_depth_scopes_use_the_raw_depth(photo_maps):
    white = [draw_map(photo_maps, "depth", scope=scope)[0] for scope in ("image", "batch")]
    torch.testing.assert_close(white[0], 1 - photo_maps.depth)
    torch.testing.assert_close(white[1], 1 - photo_maps.depth * torch.tensor([1 / 3, 1.0]).view(2, 1, 1, 1))
    clip = draw_map(photo_maps, "depth", scope="clip")[0]
    torch.testing.assert_close(clip[0], white[0][0])
    assert (clip[1] - white[0][1]).abs().max() > 0.1
    black, channel = draw_map(photo_maps, "depth", near="near-black", gamma=2)
    torch.testing.assert_close(black, photo_maps.depth.sqrt())
    assert channel is black


def test_colours_are_exposed_in_linear_light_then_encoded(photo_maps):
    picture, grey = draw_map(photo_maps, "albedo", exposure=-1)
    torch.testing.assert_close(srgb_to_linear(picture), photo_maps.albedo / 2, atol=1e-6, rtol=0)
    weights = torch.tensor([0.2126, 0.7152, 0.0722])
    torch.testing.assert_close(grey[:, 0], torch.einsum("bchw,c->bhw", picture, weights))
    torch.testing.assert_close(draw_map(photo_maps, "shading", encoding="linear")[0], photo_maps.shading.clamp(max=1))
    torch.testing.assert_close(draw_map(photo_maps, "photo")[0], photo_maps.photo)
    torch.testing.assert_close(draw_map(photo_maps, "photo", encoding="linear")[0], srgb_to_linear(photo_maps.photo))


@pytest.mark.parametrize("name", ["roughness", "mask", "confidence"])
def test_shares_are_drawn_as_they_are(photo_maps, name):
    assert torch.equal(draw_map(photo_maps, name)[0], getattr(photo_maps, name))


@pytest.mark.parametrize("name", [name for name in MAPS if name != "photo"])
def test_a_map_that_is_not_there_is_named_with_what_to_do(photo_maps, name):
    with pytest.raises(ValueError, match=f"has no {name} .only photo.*Intrinsic Decompose"):
        draw_map(PhotoMaps(photo=photo_maps.photo), name)


@pytest.mark.parametrize(
    "options, names",
    [
        ({"name": "normal"}, "map must be one of normals, depth"),
        ({"name": "normals", "frame": "maya"}, "opengl, directx, opencv, controlnet"),
        ({"name": "depth", "near": "white"}, "near-white, near-black"),
        ({"name": "depth", "scope": "video"}, "image, batch, clip"),
        ({"name": "albedo", "encoding": "rec709"}, "encoding must be one of linear, srgb"),
    ],
)
def test_conventions_are_checked(photo_maps, options, names):
    with pytest.raises(ValueError, match=names):
        draw_map(photo_maps, **options)


def test_converting_normal_maps(photo_maps):
    picture = photo_maps.normals * 0.5 + 0.5
    directx = convert_normal_picture(picture, "opengl", "directx")
    torch.testing.assert_close(directx, torch.stack([picture[:, 0], 1 - picture[:, 1], picture[:, 2]], 1))
    half = convert_normal_picture(picture * 0.6 + 0.2, "opengl", "opengl")  # vectors of length 0.6
    torch.testing.assert_close(half, picture, atol=1e-5, rtol=0)
    kept = convert_normal_picture(picture * 0.6 + 0.2, "opengl", "opencv", renormalize=False)
    torch.testing.assert_close(kept[:, 2], 1 - (picture[:, 2] * 0.6 + 0.2))
    behind = torch.zeros(1, 1, *SIZE)
    behind[..., 8:] = 1
    masked = convert_normal_picture(picture, "opengl", "opencv", background=behind)
    assert masked[0, :, 3, 12].tolist() == pytest.approx([0.5, 0.5, 0])
    torch.testing.assert_close(masked[..., :8], convert_normal_picture(picture, "opengl", "opencv")[..., :8])


# --- making


@pytest.mark.parametrize("frame", NORMAL_FRAMES)
def test_maps_come_back_from_their_pictures(photo_maps, frame):
    made = photo_maps_from_images(**images(photo_maps, frame), normals_frame=frame, shading_encoding="linear")
    for name in ("photo", "normals", "depth", "albedo", "roughness", "mask"):
        torch.testing.assert_close(getattr(made, name), getattr(photo_maps, name), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.shading, photo_maps.shading.expand(-1, 3, -1, -1))


def test_kinds_of_depth(photo_maps):
    distance = 2 + 3 * photo_maps.depth  # 2 to 5 in both
    photo = to_image(photo_maps.photo)

    def made(depth, kind, **options):
        return photo_maps_from_images(photo, depth=to_image(depth), depth_kind=kind, **options)

    metric = made(distance, "metric", camera=Camera(1, 9, 60))
    torch.testing.assert_close(metric.depth, photo_maps.depth, atol=1e-5, rtol=0)
    assert (metric.camera.near, metric.camera.far, metric.camera.fov) == pytest.approx((2, 5, 60))
    disparity = made(7 / distance + 0.1, "disparity", camera=Camera(2, 5))
    torch.testing.assert_close(disparity.depth, photo_maps.depth, atol=1e-4, rtol=0)
    torch.testing.assert_close(made(photo_maps.depth, "distance").depth, photo_maps.depth)
    with pytest.raises(ValueError, match="use disparity or metric"):
        made(distance, "near-white")


def test_maps_of_another_size_are_resampled_if_the_aspect_agrees(photo_maps):
    photo = to_image(photo_maps.photo)
    half = {n: x[:, ::2, ::2] for n, x in images(photo_maps).items() if n not in ("image", "mask")}
    made = photo_maps_from_images(photo, **half, mask=torch.zeros(64, 64))
    for name in ("normals", "depth", "albedo", "shading", "roughness", "mask"):
        assert getattr(made, name).shape[-2:] == SIZE
    torch.testing.assert_close(made.normals.norm(dim=1), torch.ones(2, *SIZE))
    with pytest.raises(ValueError, match=r"normals map is 16 x 10 pixels and the photo 16 x 12.*crop"):
        photo_maps_from_images(photo, normals=half["normals"].new_zeros(2, 10, 16, 3))


def test_one_map_serves_a_batch_and_other_numbers_are_refused(photo_maps):
    made = photo_maps_from_images(**images(photo_maps) | {"normals": images(photo_maps)["normals"][:1]})
    assert torch.equal(made.normals[0], made.normals[1])
    with pytest.raises(ValueError, match="3 pictures in depth and 2 in image"):
        photo_maps_from_images(to_image(photo_maps.photo), depth=torch.zeros(3, *SIZE, 3))
    with pytest.raises(ValueError, match="3 pictures in mask"):
        photo_maps_from_images(to_image(photo_maps.photo), mask=torch.zeros(3, *SIZE))


@pytest.mark.parametrize(
    "maps, names",
    [
        ({"normals": torch.full((1, *SIZE, 3), torch.nan)}, "normals contains NaN"),
        ({"albedo": torch.zeros(1, *SIZE, 2)}, "albedo must be pictures of 1, 3 or 4"),
        ({"normals": torch.ones(1, *SIZE, 3), "normals_frame": "maya"}, "opengl, directx, opencv, controlnet"),
        ({"depth": torch.ones(1, *SIZE, 3), "depth_kind": "z"}, "distance, near-white, disparity, metric"),
        ({"albedo_encoding": "x"}, "albedo_encoding must be one of linear, srgb"),
        ({"depth": torch.zeros(1, *SIZE, 3), "depth_kind": "metric"}, "no distance above 0"),
    ],
)
def test_bad_maps_are_refused_in_one_sentence(photo_maps, maps, names):
    with pytest.raises(ValueError, match=names):
        photo_maps_from_images(to_image(photo_maps.photo), **maps)


def test_alpha_becomes_the_mask_unless_one_is_given(photo_maps):
    alpha = rand(2, *SIZE, 1, seed=9)
    image = torch.cat([to_image(photo_maps.photo), alpha], -1)
    torch.testing.assert_close(photo_maps_from_images(image).mask[:, 0], alpha[..., 0])
    assert photo_maps_from_images(image, mask=torch.ones(1, *SIZE)).mask.min() == 1


# --- lit


def test_the_gbuffer_is_that_of_the_library(photo_maps):
    ours = to_gbuffer(photo_maps, mask=torch.full((1, 1, 3, 4), 0.5), near=2.0, far=0.0, fov=30.0)
    expected = make_gbuffer(
        photo_maps.photo, photo_maps.normals, photo_maps.depth, photo_maps.albedo, photo_maps.shading,
        photo_maps.roughness, photo_maps.mask * 0.5,
        camera=Camera(2, 4, 30),
    )  # fmt: skip
    for name in ("photo", "normals", "depth", "albedo", "shading", "roughness", "mask"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
    assert ours.camera == expected.camera
    with pytest.raises(ValueError, match=r"has no normals .only.*Make G-Buffer"):
        to_gbuffer(PhotoMaps(photo=photo_maps.photo, depth=photo_maps.depth))
    rough = to_gbuffer(PhotoMaps(photo=photo_maps.photo, normals=photo_maps.normals), roughness=0.3)
    assert (rough.roughness == 0.3).all()


def test_an_edit_that_changes_nothing_returns_the_photo(photo_maps):
    for given in (photo_maps, PhotoMaps(photo=photo_maps.photo, shading=photo_maps.shading)):
        edited = edit(given, contrast=1.0, tint=(1.0, 1.0, 1.0), soften=0.0, flatten=0.0)
        torch.testing.assert_close(edited.photo, photo_maps.photo, atol=1e-5, rtol=0)
    assert edited.normals is None


def test_delighting_keeps_the_photo_outside_the_mask_and_relighting_sees_no_difference(photo_maps):
    edited = edit(photo_maps, flatten=1.0)
    outside = photo_maps.mask.expand(-1, 3, -1, -1) == 0
    torch.testing.assert_close(edited.photo[outside], photo_maps.photo[outside], atol=1e-5, rtol=0)
    assert (edited.photo - photo_maps.photo).abs().max() > 0.2
    direct, again = (relight(to_gbuffer(p), [Sun(az=20)], ambient=0.1).image for p in (photo_maps, edited))
    for i in range(2):  # the shading's scale is fitted to the photo: one number per picture
        ratio = (again / direct)[i][~outside[i]]
        assert ratio.std() / ratio.mean() < 1e-4


def test_there_must_be_light_to_edit(photo_maps):
    with pytest.raises(ValueError, match=r"neither shading nor albedo.*Make G-Buffer"):
        edit(PhotoMaps(photo=photo_maps.photo, normals=photo_maps.normals))


def test_frames_of_a_packet(photo_maps):
    one = frame_of(photo_maps, 1)
    assert all(torch.equal(getattr(one, name), getattr(photo_maps, name)[1:]) for name in (*MAPS, "raw_depth"))


# --- saved


@pytest.mark.parametrize("file_format", files.FORMATS)
def test_saved_maps_are_read_back(photo_maps, tmp_path, file_format):
    names = files.chosen_layers(photo_maps, "all")
    written = files.save_layers(photo_maps, names, file_format, tmp_path, "shot", 7)
    if file_format == "PNG 16 bit":
        assert len(written) == 16 and written[8].name == "shot_00008_photo.png"
        levels = imagecodecs.png_decode((tmp_path / "shot_00008_albedo.png").read_bytes())
        assert levels.dtype == np.uint16
        expected = to_image(linear_to_srgb(photo_maps.albedo))[1].numpy() * 65535
        np.testing.assert_allclose(levels, expected, atol=0.6)
        maps = read_maps(tmp_path, "shot_00008")
        torch.testing.assert_close(maps["normals"], photo_maps.normals[1:], atol=1e-4, rtol=0)
        return
    assert [file.name for file in written] == ["shot_00007_.exr", "shot_00008_.exr"]
    with OpenEXR.File(str(written[1]), separate_channels=True) as file:
        channels = file.channels()
        assert {"R", "normals.X", "depth.Z", "albedo.R", "shading.Y", "mask.Y"} <= channels.keys()
        assert channels["R"].pixels.dtype == (np.float16 if "half" in file_format else np.float32)
    layers, tolerance = read_exr(written[1]), 1e-3 if "half" in file_format else 1e-7
    torch.testing.assert_close(layers.pop("rgb"), srgb_to_linear(photo_maps.photo[1]), atol=tolerance, rtol=0)
    assert layers.keys() == set(names) - {"photo"}
    for name, layer in layers.items():
        torch.testing.assert_close(layer, getattr(photo_maps, name)[1], atol=tolerance, rtol=0)
    torch.testing.assert_close(read_maps(written[1])["depth"], photo_maps.depth[1:], atol=tolerance, rtol=0)


def test_layers_are_chosen_by_name(photo_maps):
    assert files.chosen_layers(photo_maps, "normals, photo,normals") == ["normals", "photo"]
    assert files.chosen_layers(PhotoMaps(photo=photo_maps.photo, depth=photo_maps.depth), "all") == ["photo", "depth"]
    for text, names in (
        ("normal", "layers must be one of all, photo, normals"),
        ("photo, all", "layers must be one of photo"),
    ):
        with pytest.raises(ValueError, match=names):
            files.chosen_layers(photo_maps, text)
    with pytest.raises(ValueError, match="has no depth"):
        files.chosen_layers(PhotoMaps(photo=photo_maps.photo), "photo,depth")


def test_without_openexr_one_sentence_says_what_to_do(photo_maps, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "OpenEXR", None)
    with pytest.raises(ImportError, match=r"needs the package OpenEXR: pip install OpenEXR .*or choose PNG 16 bit\.$"):
        files.save_layers(photo_maps, ["photo"], "EXR float", tmp_path, "x", 1)
    assert not list(tmp_path.iterdir())
