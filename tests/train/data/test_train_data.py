"""Label files in every format and convention, and the resizing of samples for the network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics import INTRINSICS, Intrinsic
from intrinsic_lora.tests.support.data_files import (
    SIZE,
    exr,
    hwc,
    npz,
    one,
    png8,
    png16,
    put,
    rendered_scenes,
    rgb8,
    to_srgb,
)
from intrinsic_lora.train.data import open_source
from intrinsic_lora.train.data.sample import Sample, prepare, variant
from PIL import Image

NORMALS, DEPTH, ALBEDO, SHADING = INTRINSICS.values()


@pytest.fixture
def scenes() -> list[dict[str, np.ndarray]]:
    return rendered_scenes()


@pytest.fixture
def photo(tmp_path, scenes) -> Path:
    """Create a data folder with the photo `a.png` of the first scene."""
    put(tmp_path / "photos" / "a.png", rgb8(scenes[0]))
    return tmp_path


# ------------------------------------------------------------------------------------------ label files


@pytest.mark.parametrize(
    ("frame", "signs"),
    [(None, (1, 1, 1)), ("canonical", (1, 1, 1)), ("opengl", (1, 1, 1)), ("directx", (1, -1, 1)),
     ("opencv", (1, -1, -1)), ("controlnet", (-1, 1, 1))],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["npz", "exr", "png8", "png16"])
def test_normals_files_in_every_frame_and_format(photo, scenes, frame, signs, kind):
    truth = scenes[0]["normals"]
    stored = (truth * np.array(signs)).astype(np.float32)
    if frame:
        put(photo / "normals" / "label.json", {"convention": frame, "teacher": "none"})
    (photo / "normals").mkdir(exist_ok=True)
    if kind == "npz":
        put(photo / "normals" / "a.npz", npz(normals=stored))
    elif kind == "exr":
        exr(photo / "normals" / "a.exr", "normals", "XYZ", stored)
    else:
        put(photo / "normals" / "a.png", (png8 if kind == "png8" else png16)(stored * 0.5 + 0.5))
    read = hwc(one(photo, NORMALS).labels["normals"])
    tolerance = {"npz": 1e-6, "exr": 1e-6, "png8": 0.01, "png16": 4e-5}[kind]
    np.testing.assert_allclose(read, truth, atol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(read, axis=-1), 1, atol=1e-5)


def test_depth_files_of_every_kind_say_the_same(photo, scenes):
    truth, metric = scenes[0]["depth"], scenes[0]["depth_metric"]
    near, far = metric.min(), metric.max()
    folder = photo / "depth"
    cases = [
        ("a.npz", npz(depth=truth.astype(np.float16)), None, 1e-3),
        ("a.npz", npz(depth=truth[..., None]), "near-black", 1e-6),
        ("a.npz", npz(arr_0=truth), "canonical", 1e-6),
        ("a.npz", npz(depth=metric), "metric", 1e-6),
        ("a.png", png16(1 - truth), None, 1e-5),
        ("a.png", png8(1 - truth), "near-white", 3e-3),
        ("a.png", png16(truth), "near-black", 1e-5),
        ("a.png", png16(truth), "distance", 1e-5),
    ]
    for name, data, convention, tolerance in cases:
        for old in folder.glob("*"):
            old.unlink()
        put(folder / name, data)
        if convention:
            put(folder / "label.json", {"convention": convention})
        np.testing.assert_allclose(hwc(one(photo, DEPTH).labels["depth"]), truth, atol=tolerance, err_msg=convention)
    for old in folder.glob("*"):
        old.unlink()
    put(folder / "a.npz", npz(depth=7 - 3 / metric))  # any affine disparity, here one that grows with distance ...
    put(folder / "label.json", {"convention": "disparity", "near": float(near), "far": float(far)})
    with pytest.raises(AssertionError):  # ... which is not what disparity means
        np.testing.assert_allclose(hwc(one(photo, DEPTH).labels["depth"]), truth, atol=0.1)
    put(folder / "a.npz", npz(depth=2 + 3 / metric))
    np.testing.assert_allclose(hwc(one(photo, DEPTH).labels["depth"]), truth, atol=1e-4)


@pytest.mark.parametrize("intrinsic", [ALBEDO, SHADING])
def test_light_in_files(photo, scenes, intrinsic):
    name = intrinsic.name
    truth = scenes[0][name]
    plain = truth.squeeze()
    folder = photo / name
    (folder).mkdir()
    for file, data, convention, tolerance in [
        ("a.npz", npz(**{name: truth}), None, 1e-6),
        ("a.npz", npz(**{name: to_srgb(truth)}), "srgb", 1e-5),
        ("a.png", png16(to_srgb(plain)), None, 4e-5),
        ("a.png", png8(to_srgb(plain)), "srgb", 5e-3),
        ("a.png", png16(plain), "linear", 1e-5),
        ("a.exr", None, None, 1e-6),
    ]:
        for old in folder.glob("*"):
            old.unlink()
        if data is None:
            exr(folder / file, name, "RGB" if plain.ndim == 3 else "Y", plain)
        else:
            put(folder / file, data)
        if convention:
            put(folder / "label.json", {"convention": convention})
        read = one(photo, intrinsic).labels[name]
        assert len(read) == (3 if name == "albedo" else 1)
        np.testing.assert_allclose(hwc(read), plain, atol=tolerance, err_msg=f"{file} {convention}")


def test_coloured_shading_keeps_its_colours(photo, scenes):
    tinted = (scenes[0]["shading"] * np.array([1.0, 0.8, 0.5])).astype(np.float32)
    put(photo / "shading" / "a.npz", npz(shading=tinted))
    np.testing.assert_allclose(hwc(one(photo, SHADING).labels["shading"]), tinted)


def test_custom_intrinsics_of_one_and_three_channels(photo, scenes):
    shadow = Intrinsic("shadow", "shadow mask", 1, "linear")
    tint = Intrinsic("tint", "tint", 3, "srgb")
    values = scenes[0]["depth"]
    put(photo / "shadow" / "a.png", png16(values))
    put(photo / "tint" / "a.png", png16(to_srgb(scenes[0]["albedo"])))
    sample = one(photo, shadow, tint)
    assert sample.labels["shadow"].shape == (1, SIZE, SIZE)
    np.testing.assert_allclose(hwc(sample.labels["shadow"]), values, atol=1e-5)
    np.testing.assert_allclose(hwc(sample.labels["tint"]), scenes[0]["albedo"], atol=4e-5)
    put(photo / "shadow" / "a.npz", npz(shadow=np.repeat(values[..., None], 3, -1)))  # floats come before pictures
    put(photo / "tint" / "a.npz", npz(tint=values))
    sample = one(photo, shadow, tint)
    np.testing.assert_allclose(hwc(sample.labels["shadow"]), values, atol=1e-6)
    np.testing.assert_allclose(hwc(sample.labels["tint"]), np.repeat(values[..., None], 3, -1), atol=1e-6)
    put(photo / "shadow" / "a.npz", npz(shadow=values * 255))
    with pytest.raises(ValueError, match=r"a\.npz.*lies in 0\.\.1"):
        one(photo, shadow)


@pytest.mark.parametrize(
    ("sidecar", "words"),
    [
        (b"{", "is not JSON"),
        (b"[]", "JSON object"),
        (b"[" * 100_000, "is not JSON"),  # deeper than Python recurses
        ({"convention": "srgb"}, "one of opengl, directx, opencv, controlnet, canonical"),
        ({"convention": ["opengl"]}, "one of opengl"),
    ],
)
def test_a_wrong_sidecar_is_one_sentence(photo, sidecar, words):
    put(photo / "normals" / "label.json", sidecar)
    with pytest.raises(ValueError, match=words) as caught:
        open_source("folder", photo, [NORMALS])
    assert "label.json" in str(caught.value) and "\n" not in str(caught.value)


def test_disparity_needs_its_range(photo):
    put(photo / "depth" / "label.json", {"convention": "disparity", "near": 2, "far": 1})
    with pytest.raises(ValueError, match="0 < near < far"):
        open_source("folder", photo, [DEPTH])


# ------------------------------------------------------------------------------------------ masks


def test_masks_of_all_kinds_are_combined(photo, scenes):
    rgba = np.dstack([rgb8(scenes[0]), np.full((SIZE, SIZE), 255, np.uint8)])
    rgba[:4, :, 3] = 0
    put(photo / "photos" / "a.png", rgba)
    depth = scenes[0]["depth"].copy()
    depth[4:6] = np.nan
    keep = np.ones((SIZE, SIZE), np.uint8)
    keep[6:8] = 0
    put(photo / "depth" / "a.npz", npz(depth=depth, mask=keep))
    normals = scenes[0]["normals"].copy()
    normals[8:10] = 0
    put(photo / "normals" / "a.npz", npz(normals=normals))
    white = np.full((SIZE, SIZE), 255, np.uint8)
    white[10:12] = 0
    put(photo / "mask" / "a.png", white)
    sample = one(photo, NORMALS, DEPTH)
    expected = np.ones((SIZE, SIZE))
    expected[:12] = 0
    np.testing.assert_array_equal(hwc(sample.mask), expected)
    assert all(x.isfinite().all() for x in sample.labels.values())
    assert (sample.labels["normals"][:, 8:10] == torch.tensor([0.0, 0, 1])[:, None, None]).all()
    assert (sample.labels["depth"][0, 4:6] == 1).all() or sample.labels["depth"][0, 4:6].min() >= np.nanmax(
        depth
    ) - 1e-6
    np.testing.assert_allclose(sample.photo[:, :4], 0.5)


def test_masks_are_resampled_to_what_counts_in_full(photo, scenes):
    mask = np.ones((2 * SIZE, 2 * SIZE))
    mask[:7], mask[-4:] = 0, 0.5
    put(photo / "mask" / "a.png", png16(mask))
    put(photo / "depth" / "a.npz", npz(depth=scenes[0]["depth"]))
    sample = one(photo, DEPTH)
    inner = hwc(sample.mask)
    assert set(np.unique(inner)) == {0, 1}
    assert (inner[:4] == 0).all() and (inner[5:-3] == 1).all() and (inner[-2:] == 0).all()
    small = hwc(prepare(sample, SIZE // 2).mask)
    assert (small[:2] == 0).all() and (small[3:-2] == 1).all() and set(np.unique(small)) == {0, 1}
    put(photo / "mask" / "a.png", png16(np.zeros((SIZE, SIZE))))
    with pytest.raises(ValueError, match="It has no valid pixels"):
        one(photo, DEPTH)


def test_without_masks_there_is_none(photo, scenes):
    put(photo / "normals" / "a.npz", npz(normals=scenes[0]["normals"]))
    assert one(photo, NORMALS).mask is None


@pytest.mark.parametrize("convention", ["distance", "near-white", "metric", "disparity"])
def test_unknown_depth_is_farthest(photo, scenes, convention):
    metric, truth = scenes[0]["depth_metric"], scenes[0]["depth"]
    stored = {"distance": truth, "near-white": 1 - truth, "metric": metric, "disparity": 1 / metric}[convention].copy()
    hole = np.zeros((SIZE, SIZE), bool)
    hole[5:8, 5:8] = True
    stored[hole] = np.nan
    put(photo / "depth" / "a.npz", npz(depth=stored))
    put(photo / "depth" / "label.json", {"convention": convention, "near": 1, "far": 2})
    sample = one(photo, DEPTH)
    depth = hwc(sample.labels["depth"])
    assert (depth[hole] == depth[~hole].max()).all()
    np.testing.assert_array_equal(hwc(sample.mask), ~hole)


def test_metric_depth_is_stretched_over_what_counts(photo, scenes):
    metric = scenes[0]["depth_metric"].copy()
    keep = np.ones((SIZE, SIZE))
    metric[:3], keep[3:6] = 0, 0
    metric[3:6] = 1000
    put(photo / "depth" / "a.npz", npz(depth=metric, mask=keep))
    put(photo / "depth" / "label.json", {"convention": "metric"})
    sample = one(photo, DEPTH)
    rest = metric[6:]
    np.testing.assert_allclose(hwc(sample.labels["depth"])[6:], (rest - rest.min()) / np.ptp(rest), atol=1e-6)
    assert (sample.labels["depth"][0, :6] == 1).all() and (sample.mask[0, :6] == 0).all()


# ------------------------------------------------------------------------------------------ preparing


def mapped(photo: np.ndarray, **labels: np.ndarray) -> Sample:
    tensors = {k: torch.from_numpy(np.atleast_3d(v).astype(np.float32)).permute(2, 0, 1) for k, v in labels.items()}
    return Sample("x", torch.from_numpy(photo.astype(np.float32)).permute(2, 0, 1), tensors, None)


@pytest.mark.parametrize(("height", "width"), [(30, 47), (47, 30), (31, 31), (64, 33), (16, 16), (13, 20), (100, 17)])
def test_prepare_is_the_papers_resize_and_crop(height, width):
    """Against Pillow, which the paper's torchvision transforms called on 8-bit pictures."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
    vectors = rng.normal(size=(height, width, 3))
    sample = prepare(mapped(np.asarray(picture) / 255, normals=vectors, depth=np.asarray(picture)[..., 0] / 255), 16)
    short = min(height, width)
    new_height, new_width = (16, int(16 * width / height)) if height == short else (int(16 * height / width), 16)
    small = picture.resize((new_width, new_height), Image.BILINEAR)
    left, top = round((new_width - 16) / 2), round((new_height - 16) / 2)
    expected = np.asarray(small.crop((left, top, left + 16, top + 16))) / 255
    np.testing.assert_allclose(hwc(sample.photo), expected, atol=1.5 / 255)  # Pillow rounds between its two passes
    np.testing.assert_allclose(hwc(sample.labels["depth"]), expected[..., 0], atol=1.5 / 255)
    np.testing.assert_allclose(np.linalg.norm(hwc(sample.labels["normals"]), axis=-1), 1, atol=1e-5)
    assert sample.mask is None


def test_the_mirror_negates_x():
    """A sphere seen from the front is its own mirror image, and so must be its normals."""
    y, x = np.mgrid[1:-1:33j, -1:1:33j] * 0.7
    sphere = np.stack([x, y, np.sqrt(1 - x**2 - y**2)], -1)
    sample = mapped(np.dstack([x, y, x]), normals=sphere, depth=x)
    mirrored = variant(sample, mirrored=True)
    np.testing.assert_allclose(hwc(mirrored.labels["normals"]), sphere, atol=1e-6)
    np.testing.assert_allclose(hwc(mirrored.labels["depth"]), -x, atol=1e-6)
    np.testing.assert_allclose(hwc(mirrored.photo)[..., 0], -x, atol=1e-6)
    twice = variant(mirrored, mirrored=True)
    assert torch.equal(twice.photo, sample.photo) and torch.equal(twice.labels["normals"], sample.labels["normals"])


def test_colours_are_permuted_where_they_are_colours():
    rng = np.random.default_rng(1)
    picture, albedo, warm = rng.random((4, 4, 3)), rng.random((4, 4, 3)), rng.random((4, 4, 3))
    sample = mapped(picture, albedo=albedo, shading=warm, normals=albedo, tint=albedo, depth=albedo[..., 0])
    permuted = variant(sample, order=(2, 0, 1))
    np.testing.assert_allclose(hwc(permuted.photo), picture[..., [2, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(hwc(permuted.labels["albedo"]), albedo[..., [2, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(hwc(permuted.labels["shading"]), warm[..., [2, 0, 1]], atol=1e-6)
    for name in ("normals", "tint", "depth"):
        assert torch.equal(permuted.labels[name], sample.labels[name])


def test_labels_of_another_size_are_resampled(photo, scenes):
    ramp = np.linspace(0, 1, 2 * SIZE, dtype=np.float32)[None].repeat(2 * SIZE, 0)
    put(photo / "depth" / "a.npz", npz(depth=ramp))
    big = np.repeat(np.repeat(scenes[0]["normals"], 2, 0), 2, 1)
    put(photo / "normals" / "a.npz", npz(normals=big))
    sample = one(photo, DEPTH, NORMALS)
    assert sample.labels["depth"].shape == (1, SIZE, SIZE)
    inner = slice(2, -2)
    expected = Image.fromarray(ramp).resize((SIZE, SIZE), Image.BILINEAR)
    np.testing.assert_allclose(hwc(sample.labels["depth"])[:, inner], np.asarray(expected)[:, inner], atol=1e-5)
    lengths = np.linalg.norm(hwc(sample.labels["normals"]), axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
