"""Maps on disk: which file, which array or layer, and what is refused. Files of other programs are written here."""

import io
import struct
import zipfile

import numpy as np
import OpenEXR
import pytest
import torch
from intrinsic_lora.comfy_nodes.gbuffers import photo_maps_from_images
from intrinsic_lora.intrinsics.display import display_map
from intrinsic_lora.intrinsics.exr import write_exr
from intrinsic_lora.intrinsics.map_files import MAPS, find_maps, npz_names, proper_name, read_npz
from intrinsic_lora.intrinsics.map_files import read_maps as read_stored
from intrinsic_lora.intrinsics.normals import check_normal_picture, check_vectors
from intrinsic_lora.intrinsics.pictures import read_picture, write_npz, write_png
from intrinsic_lora.intrinsics.relight import read_panorama
from intrinsic_lora.intrinsics.relight.files import read_maps
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS
from intrinsic_lora.train.data.label_files import read_label, read_mask
from intrinsic_lora.train.scoring.folders import load_maps
from PIL import Image

H, W = 12, 16
NORMALS, DEPTH = INTRINSICS["normals"], INTRINSICS["depth"]


@pytest.fixture
def normals():
    """(H,W,3) float32 unit vectors of a half ball."""
    x, y = np.meshgrid(np.linspace(-0.6, 0.6, W), np.linspace(0.6, -0.6, H))
    return np.stack([x, y, np.sqrt(1 - x**2 - y**2)], -1).astype(np.float32)


@pytest.fixture
def depth():
    return np.linspace(0, 1, H * W, dtype=np.float32).reshape(H, W)


def exr(path, channels, **header):
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, **header}
    with OpenEXR.File(header, {name: np.ascontiguousarray(x) for name, x in channels.items()}) as file:
        file.write(str(path))


def layer(name, array, components):
    return {f"{name}.{c}": array[..., i] for i, c in enumerate(components)}


def hwc(x):
    return x[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["normals", "Normals", "NORMALS", "a.normals"])
@pytest.mark.parametrize("components", [("X", "Y", "Z"), ("x", "y", "z"), ("R", "G", "B"), ("red", "green", "blue")])
def test_layers_of_maps_under_any_spelling(tmp_path, normals, depth, name, components):
    exr(tmp_path / "x.exr", {**layer(name, normals, components), "Depth.V": depth})
    maps = read_maps(tmp_path / "x.exr")
    np.testing.assert_array_equal(hwc(maps["normals"]), normals)
    np.testing.assert_array_equal(hwc(maps["depth"])[..., 0], depth)
    label, mask = read_label(tmp_path / "x.exr", NORMALS, {})
    np.testing.assert_allclose(hwc(label[None]), normals, atol=1e-6)
    assert mask is None


@pytest.mark.parametrize("name", ["ViewLayer.Normal", "Normal", "N", "n"])
def test_a_renderers_pass_of_normals_needs_its_frame_stated(tmp_path, normals, depth, name):
    picture = layer("ViewLayer.Combined", normals, "RGB")
    exr(tmp_path / "x.exr", {**layer(name, normals, "XYZ"), "ViewLayer.Depth.Z": depth, **picture})
    found = "it has the layers .*ViewLayer.Combined.*ViewLayer.Depth"
    sentence = rf"x\.exr: its normals are the layer {name} \({found}.*world space.*state its frame .*\.$"
    with pytest.raises(ValueError, match=sentence):
        read_maps(tmp_path / "x.exr")
    with pytest.raises(ValueError, match=sentence):
        read_label(tmp_path / "x.exr", NORMALS, {})
    maps = read_maps(tmp_path / "x.exr", normals_frame="opengl")
    np.testing.assert_array_equal(hwc(maps["normals"]), normals)
    np.testing.assert_array_equal(hwc(maps["depth"])[..., 0], depth)
    label, _ = read_label(tmp_path / "x.exr", NORMALS, {"convention": "opengl"})
    np.testing.assert_allclose(hwc(label[None]), normals, atol=1e-6)


@pytest.mark.parametrize("name", ["", "rgba.", "ViewLayer.Combined.", "beauty."])
@pytest.mark.parametrize("components", [("R", "G", "B"), ("r", "g", "b"), ("red", "green", "blue")])
def test_photos_and_panoramas_choose_the_same_layer(tmp_path, depth, name, components):
    colour = np.random.default_rng(0).random((8, 16, 3), dtype=np.float32)
    exr(tmp_path / "x.exr", {**{name + c: colour[..., i] for i, c in enumerate(components)}, "Z": depth[:8, :16]})
    np.testing.assert_array_equal(hwc(read_panorama(tmp_path / "x.exr")), colour)
    expected = np.where(colour <= 0.0031308, colour * 12.92, 1.055 * colour ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(hwc(read_picture(tmp_path / "x.exr").rgb), expected, atol=1e-5)


def test_layers_that_leave_a_choice_are_listed(tmp_path, normals):
    exr(tmp_path / "x.exr", {**layer("Left.Normals", normals, "XYZ"), **layer("Right.Normals", normals, "XYZ")})
    with pytest.raises(ValueError, match=r"layers Left.Normals, Right.Normals, and .* may all be its normals"):
        read_maps(tmp_path / "x.exr")
    exr(tmp_path / "x.exr", layer("normals", normals, "UVW"))
    with pytest.raises(
        ValueError, match=r"the channels of its layer normals are U, V, W, neither R, G, B nor X, Y, Z"
    ):
        read_maps(tmp_path / "x.exr")
    exr(tmp_path / "x.exr", layer("colour", normals, "RGB"))
    with pytest.raises(ValueError, match=r"x\.exr holds no normals \(only other data; it has the layer colour\)"):
        read_maps(tmp_path / "x.exr")
    with pytest.raises(ValueError, match=r"x\.exr holds no depth: no array or layer has this name \(only colour\)\.$"):
        read_label(tmp_path / "x.exr", DEPTH, {})


def test_depth_of_three_equal_channels_is_one_and_of_colours_refused(tmp_path, normals, depth):
    three = np.repeat(depth[..., None], 3, -1)
    jet = np.stack([depth, 1 - depth, 0.5 * depth], -1)
    for equal in (True, False):
        stored = three if equal else jet
        exr(tmp_path / "x.exr", {**layer("normals", normals, "XYZ"), **layer("depth", stored, "RGB")})
        write_npz(tmp_path / "x.npz", normals=normals, depth=stored)
        write_png(tmp_path / "a_normals.png", torch.from_numpy(normals).permute(2, 0, 1) * 0.5 + 0.5)
        write_png(tmp_path / "a_depth.png", torch.from_numpy(stored).permute(2, 0, 1), bits=16)
        np.save(tmp_path / "y.npy", stored)
        for file in ("x.exr", "x.npz", "a_depth.png"):
            if equal:
                np.testing.assert_allclose(hwc(read_maps(tmp_path / file)["depth"])[..., 0], depth, atol=1e-5)
            else:
                with pytest.raises(ValueError, match=rf"{file}: .*he channels of the depth map differ"):
                    read_maps(tmp_path / file)
        for file in ("x.exr", "x.npz", "a_depth.png", "y.npy"):
            if not equal:
                with pytest.raises(ValueError, match=rf"{file}: .*he channels of the depth map differ"):
                    read_label(tmp_path / file, DEPTH, {})


@pytest.mark.parametrize("key", ["normals", "Normals", "normal", "Normal"])
def test_arrays_under_any_spelling(tmp_path, normals, depth, key):
    np.savez(tmp_path / "x.npz", **{key: normals, "DEPTH": depth, "floor": depth})
    np.testing.assert_array_equal(hwc(read_maps(tmp_path / "x.npz")["normals"]), normals)
    np.testing.assert_allclose(hwc(read_label(tmp_path / "x.npz", NORMALS, {})[0][None]), normals, atol=1e-6)
    assert set(load_maps(tmp_path / "x.npz")) == set(npz_names(tmp_path / "x.npz")) == {"normals", "depth", "floor"}
    assert proper_name("n") == "n"  # a custom intrinsic


def test_the_proper_name_goes_before_others(tmp_path, normals):
    np.savez(tmp_path / "x.npz", Normals=-normals, normals=normals, normal=-normals)
    np.testing.assert_array_equal(read_npz(tmp_path / "x.npz")["normals"], normals)


def test_npy_files_are_maps_and_labels(tmp_path, normals, depth):
    np.save(tmp_path / "photo_depth.npy", 2 + depth)
    for path in (tmp_path, tmp_path / "photo_depth.npy"):
        with pytest.raises(
            ValueError, match=r"photo_depth\.npy holds no normals \(only depth\).* STEM_normals\.npy or"
        ):
            read_maps(path, "photo", depth_kind="metric")
    np.save(tmp_path / "photo_normals.npy", normals)
    for path in (tmp_path, tmp_path / "photo_depth.npy", tmp_path / "photo_normals.npy"):
        maps = read_maps(path, "photo_rgb", depth_kind="metric")
        np.testing.assert_array_equal(hwc(maps["normals"]), normals)
        np.testing.assert_array_equal(hwc(maps["depth"])[..., 0], 2 + depth)
    label, _ = read_label(tmp_path / "photo_depth.npy", DEPTH, {"convention": "metric"})
    np.testing.assert_allclose(label[0].numpy(), depth, atol=1e-6)
    np.save(tmp_path / "mask.npy", depth > 0.5)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.npy")[0].numpy(), depth > 0.5)
    (tmp_path / "photo_depth.npy").rename(tmp_path / "depth-of-photo.npy")
    with pytest.raises(ValueError, match=r"depth-of-photo\.npy does not say which map it is: call it STEM_depth\.npy"):
        read_maps(tmp_path / "depth-of-photo.npy")
    (tmp_path / "x_normals.npy").write_bytes(b"\x93NUMPY damaged")
    with pytest.raises(ValueError, match=r"x_normals\.npy cannot be read: it is damaged"):
        read_maps(tmp_path / "x_normals.npy")


def test_which_files_belong_to_a_photo(tmp_path):
    for name in (
        "a.exr",
        "a_normals.png",
        "b_rgb.npz",
        "b.npz",
        "c_normals.png",
        "c_normals.npy",
        "c_mask.png",
        "d.npy",
    ):
        (tmp_path / name).touch()
    found = {stem: [path.name for path in find_maps(tmp_path, stem)] for stem in ("a_rgb", "b_rgb", "b", "c", "d")}
    assert found == {
        "a_rgb": ["a.exr"], "b_rgb": ["b_rgb.npz"], "b": ["b.npz"], "c": ["c_normals.npy", "c_mask.png"], "d": [],
    }  # fmt: skip


def test_pictures_of_normals_are_no_vectors(tmp_path, normals):
    """The same ball as n * 0.5 + 0.5, as bytes, and as bytes in floats: what estimators leave in float files."""
    picture = normals * 0.5 + 0.5
    for stored in (picture, picture.astype(np.float16), picture * 255):
        np.savez(tmp_path / "x.npz", normals=stored)
        np.save(tmp_path / "x_normals.npy", stored)
        exr(tmp_path / "x.exr", layer("normals", stored.astype(np.float32), "XYZ"))
        for file in ("x.npz", "x_normals.npy", "x.exr"):
            with pytest.raises(ValueError, match=rf"{file}.*ts normals are not vectors: .*length is not 1"):
                read_maps(tmp_path / file)
            with pytest.raises(ValueError, match=rf"{file}.*ts normals are not vectors: .*length is not 1"):
                read_label(tmp_path / file, NORMALS, {})
    for kind in (np.uint8, np.int16, np.uint16):
        np.savez(tmp_path / "x.npz", normals=(picture * 255).astype(kind))
        for read in (read_maps, lambda path: read_label(path, NORMALS, {})):
            with pytest.raises(ValueError, match=r"x\.npz: normals must hold floating-point numbers .* not u?int"):
                read(tmp_path / "x.npz")


def test_vectors_that_happen_to_point_up_right_are_vectors():
    up = torch.tensor([0.0, 0.6, 0.8])[:, None, None].expand(3, 4, 4).clone()
    up[:, 0] = 0  # nothing there
    check_vectors(up)
    check_vectors(torch.zeros(3, 4, 4))
    check_vectors(-2 * up)  # of another length, but plainly no picture
    check_normal_picture(up * 0.5 + 0.5 - 0.01)


def test_comfyuis_images_hold_the_picture_of_normals(normals):
    image = torch.rand(1, H, W, 3)
    vectors = torch.from_numpy(normals)[None]
    photo_maps = photo_maps_from_images(image, normals=vectors * 0.5 + 0.5)
    torch.testing.assert_close(photo_maps.normals, vectors.movedim(-1, 1), atol=1e-5, rtol=0)
    for wrong in (vectors, 3 * vectors - 1):
        with pytest.raises(
            ValueError, match=r"^The normals go down to -.*: these are vectors. Convert them to a picture"
        ):
            photo_maps_from_images(image, normals=wrong)
    overshoot = (vectors * 0.5 + 0.5).clone()
    overshoot[0, :2] = -0.05  # as bicubic resampling leaves it at an edge
    photo_maps_from_images(image, normals=overshoot)


def bomb(path, shape, descr="<f4"):
    """Write an .npz of a few kilobytes with an array of this shape, of zeros that compress well."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "depth.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(99)
        )


def test_arrays_larger_than_the_memory_are_refused_by_their_header(tmp_path):
    bomb(tmp_path / "x.npz", (30000, 30000))
    for read in (read_maps, load_maps, lambda path: read_label(path, DEPTH, {})):
        with pytest.raises(ValueError, match=r"x\.npz .*needs 7\.2 GB of memory, more than the limit of 4 GB; set"):
            read(tmp_path / "x.npz")
    assert npz_names(tmp_path / "x.npz") == ["depth"]
    bomb(tmp_path / "y.npz", (300, 300))
    with pytest.raises(ValueError, match="damaged"):
        load_maps(tmp_path / "y.npz")
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        (tmp_path / "x_normals.npy").write_bytes(archive.read("depth.npy"))
    with pytest.raises(ValueError, match=r"x_normals\.npy needs 7\.2 GB of memory"):
        read_maps(tmp_path / "x_normals.npy")


def test_the_four_forms_hold_the_same_maps(tmp_path, normals, depth):
    """What one photo's maps are does not depend on the file they come in."""
    maps = {"normals": normals, "depth": depth, "albedo": normals * 0.4 + 0.5, "shading": depth[..., None] * 0.9}
    tensors = {n: torch.from_numpy(np.atleast_3d(x)).permute(2, 0, 1) for n, x in maps.items()}
    write_npz(tmp_path / "a.npz", **maps)
    write_exr(tmp_path / "b.exr", tensors)
    for name, x in maps.items():
        np.save(tmp_path / f"c_{name}.npy", x)
    for name, x in tensors.items():
        write_png(tmp_path / f"d_{name}.png", display_map(x[None], name), bits=16)
    expected = read_maps(tmp_path, "a")
    for stem in "bcd":
        found = read_maps(tmp_path, stem)
        assert found["normals_frame"] == "opengl" and set(found) == set(expected)
        if stem == "d":
            assert found["depth_kind"] == "near-white"
            found["depth"] = 1 - found["depth"]
        for name in maps:
            torch.testing.assert_close(
                found[name].mean(1) if name == "shading" else found[name],
                expected[name].mean(1) if name == "shading" else expected[name],
                atol=1e-4, rtol=0,
            )  # fmt: skip


def test_a_mask_beside_and_an_opaque_picture(tmp_path, normals):
    mask = np.zeros((H, W), np.uint8)
    mask[2:] = 1
    np.savez(tmp_path / "x.npz", normals=normals, mask=mask)
    stored = read_stored(tmp_path / "x.npz", MAPS)
    np.testing.assert_array_equal(stored["normals"].mask[0].numpy(), mask)
    levels = np.concatenate([np.full((H, W, 3), 200, np.uint8), mask[..., None] * 255], -1)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    _, counts = read_label(tmp_path / "x.png", DEPTH, {})
    np.testing.assert_array_equal(counts[0].numpy(), mask)
