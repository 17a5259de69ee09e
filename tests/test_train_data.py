"""Where photos and labels come from. Files are written by numpy, Pillow, imagecodecs, OpenEXR, never by our code."""

import io
import json
import os
import tarfile
from pathlib import Path

import imagecodecs
import numpy as np
import OpenEXR
import pytest
import torch
from intrinsic_lora.intrinsics import INTRINSICS, Intrinsic, encode
from intrinsic_lora.train.data import Sample, Selection, open_source, prepare, usable, variant
from intrinsic_lora.train.scenes import render, sample_scene
from PIL import Image

NORMALS, DEPTH, ALBEDO, SHADING = INTRINSICS.values()
ALL = list(INTRINSICS.values())
SIZE = 24


def to_srgb(x: np.ndarray) -> np.ndarray:
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)


@pytest.fixture(scope="session")
def scenes() -> list[dict[str, np.ndarray]]:
    """Four rendered scenes, arrays (H, W, C) or (H, W); shading at most 1, so that a picture can hold it."""
    rendered = [render(sample_scene(np.random.default_rng([5, i])), SIZE) for i in range(4)]
    for scene in rendered:
        scene["shading"] = scene["shading"] / max(1.0, scene["shading"].max())
    return rendered


def rgb8(scene: dict[str, np.ndarray]) -> np.ndarray:
    return np.round(to_srgb(np.clip(scene["rgb_linear"], 0, 1)) * 255).astype(np.uint8)


def png8(x: np.ndarray) -> bytes:
    """(H, W) or (H, W, C) in [0, 1]."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def png16(x: np.ndarray) -> bytes:
    return imagecodecs.png_encode(np.round(np.clip(x, 0, 1) * 65535).astype(np.uint16))


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def exr(path: Path, layer: str, components: str, x: np.ndarray) -> None:
    channels = {f"{layer}.{c}" if layer else c: np.ascontiguousarray(p) for c, p in
                zip(components, np.moveaxis(np.atleast_3d(x).astype(np.float32), -1, 0), strict=True)}  # fmt: skip
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, channels).write(str(path))


def put(path: Path, data: bytes | np.ndarray | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, np.ndarray):
        Image.fromarray(data).save(path)
    else:
        path.write_bytes(json.dumps(data).encode() if isinstance(data, dict) else data)
    return path


def one(root: Path, *intrinsics: Intrinsic) -> Sample:
    source = open_source("folder", root, intrinsics)
    assert len(source) == 1
    return source[0]


def hwc(x: torch.Tensor) -> np.ndarray:
    return x.permute(1, 2, 0).numpy().squeeze()


@pytest.fixture
def photo(tmp_path, scenes) -> Path:
    """A data folder with the photo `a.png` of the first scene."""
    put(tmp_path / "photos" / "a.png", rgb8(scenes[0]))
    return tmp_path


# ------------------------------------------------------------------------------------------ what label files mean


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
    with pytest.raises(ValueError, match="nothing of it counts"):
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


# ------------------------------------------------------------------------------------------ folders


def scene_folder(root: Path, scenes: list[dict[str, np.ndarray]]) -> Path:
    """As `render-scenes` writes it."""
    for i, scene in enumerate(scenes):
        put(root / f"{i:04d}_rgb.png", rgb8(scene))
        keys = ("normals", "depth", "depth_metric", "albedo", "shading", "rgb_linear")
        put(root / f"{i:04d}.npz", npz(**{k: scene[k] for k in keys}, caption=np.array("x"), seed=np.array(5)))
    return root


def test_rendered_scenes(tmp_path, scenes):
    source = open_source("folder", scene_folder(tmp_path, scenes), ALL)
    assert list(source.names) == ["0000_rgb", "0001_rgb", "0002_rgb", "0003_rgb"] and source.problems == []
    for sample, scene in zip((source[i] for i in range(4)), scenes, strict=True):
        np.testing.assert_array_equal(np.round(hwc(sample.photo) * 255), rgb8(scene))
        for name in INTRINSICS:
            np.testing.assert_allclose(hwc(sample.labels[name]), scene[name].squeeze(), atol=1e-6)


def test_rendered_scenes_by_the_command(tmp_path):
    from intrinsic_lora.cli.main import app
    from typer.testing import CliRunner

    assert CliRunner().invoke(app, ["render-scenes", "--out", str(tmp_path), "--count", "2", "--seed", "3", "--size",
                                    "16"]).exit_code == 0  # fmt: skip
    put(tmp_path / "shadow" / "0000.png", png8(np.eye(16)))  # a new label beside them
    source = open_source("folder", tmp_path, [DEPTH, Intrinsic("shadow", "shadow", 1, "linear")])
    assert list(source.names) == ["0000_rgb"]
    np.testing.assert_array_equal(hwc(source[0].labels["shadow"]), np.eye(16, dtype=np.float32))


def test_order_limit_subfolders_and_hidden_files(tmp_path, scenes):
    for stem in ("b/2", "b/10", "a", "c/d/e", "f", "g"):
        put(tmp_path / "photos" / f"{stem}.PNG", png8(scenes[0]["albedo"]))
        put(tmp_path / "depth" / f"{stem}.png", png8(scenes[0]["depth"]))
    put(tmp_path / "photos" / "._a.png", b"rubbish of another system")
    put(tmp_path / "photos" / ".trash" / "z.png", png8(scenes[0]["albedo"]))
    put(tmp_path / "depth" / ".trash" / "z.png", png8(scenes[0]["depth"]))
    source = open_source("folder", tmp_path, [DEPTH])
    assert list(source.names) == ["a", "b/10", "b/2", "c/d/e", "f", "g"] and source.problems == []
    assert list(open_source("folder", tmp_path, [DEPTH], limit=3).names) == ["a", "b/2", "f"]
    assert list(open_source("folder", tmp_path, [DEPTH], limit=99).names) == list(source.names)
    part = Selection(source, [4, 1])
    assert part.names == ["f", "b/10"] and part[1].name == "b/10" and part.stamp(0) == source.stamp(4)


def test_missing_labels_and_twins_are_counted_and_listed(tmp_path, scenes):
    for i in range(12):
        put(tmp_path / "photos" / f"{i:02d}.png", rgb8(scenes[0]))
        if i >= 9:
            put(tmp_path / "depth" / f"{i:02d}.png", png8(scenes[0]["depth"]))
        if i != 11:
            put(tmp_path / "albedo" / f"{i:02d}.png", png8(scenes[0]["albedo"]))
    put(tmp_path / "photos" / "09.jpg", png8(scenes[0]["albedo"]))
    source = open_source("folder", tmp_path, [DEPTH, ALBEDO])
    assert list(source.names) == ["09", "10"]
    twin, depth, albedo = source.problems
    assert "09.jpg" in twin or "09.png" in twin
    assert depth == "9 of 12 photos have no label of depth and are left out: 00, 01, 02, 03, 04 and 4 more"
    assert albedo == "1 of 12 photos have no label of albedo and are left out: 11"


def test_nothing_left_says_what_was_looked_for_and_found(tmp_path, scenes):
    put(tmp_path / "photos" / "a.png", rgb8(scenes[0]))
    put(tmp_path / "depth" / "b.png", png8(scenes[0]["depth"]))
    with pytest.raises(ValueError) as caught:
        open_source("folder", tmp_path, [DEPTH, NORMALS])
    sentence = str(caught.value)
    assert "1 photos" in sentence and "1 labels in depth/" in sentence and "0 labels in normals/" in sentence
    assert "photos/STEM.jpg" in sentence and "normals/STEM.npz" in sentence and "\n" not in sentence
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_source("folder", tmp_path / "nowhere", [DEPTH])
    with pytest.raises(ValueError, match="folder, diode, datasets, webdataset"):
        open_source("zip", tmp_path, [DEPTH])
    with pytest.raises(ValueError, match="limit"):
        open_source("folder", tmp_path, [DEPTH], limit=0)


def damaged(root: Path, scenes: list[dict[str, np.ndarray]]) -> set[str]:
    """Samples with everything that can be wrong with a file; only `good` can be read."""
    photo, depth = png8(scenes[0]["albedo"]), png8(scenes[0]["depth"])
    good = npz(depth=scenes[0]["depth"])
    compressed = io.BytesIO()
    np.savez_compressed(compressed, depth=scenes[0]["depth"])
    flipped = bytearray(compressed.getvalue())
    flipped[len(flipped) // 2] ^= 0xFF
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        huge, {"descr": "<f4", "fortran_order": False, "shape": (200_000, 200_000, 100)}
    )
    bomb = io.BytesIO()
    import zipfile

    with zipfile.ZipFile(bomb, "w") as file:
        file.writestr("depth.npy", huge.getvalue() + b"\0" * 64)
    pickled = io.BytesIO()
    np.savez(pickled, depth=np.array([print], dtype=object), allow_pickle=True)
    for name, picture, label, suffix in [
        ("good", photo, good, "npz"),
        ("photo-empty", b"", good, "npz"),
        ("photo-truncated", photo[: len(photo) // 2], good, "npz"),
        ("photo-text", b"not a picture at all", good, "npz"),
        ("label-empty", photo, b"", "npz"),
        ("label-truncated", photo, good[: len(good) // 2], "npz"),
        ("label-flipped", photo, bytes(flipped), "npz"),
        ("label-bomb", photo, bomb.getvalue(), "npz"),
        ("label-pickle", photo, pickled.getvalue(), "npz"),
        ("label-npy", photo, good[:0] + npy(scenes[0]["depth"]), "npz"),
        ("label-integers", photo, npz(depth=(scenes[0]["depth"] * 255).astype(np.uint8)), "npz"),
        ("label-other", photo, npz(albedo=scenes[0]["albedo"]), "npz"),
        ("label-1d", photo, npz(depth=scenes[0]["depth"].ravel()), "npz"),
        ("label-nan", photo, npz(depth=scenes[0]["depth"] * np.nan), "npz"),
        ("label-range", photo, npz(depth=scenes[0]["depth"] * 7), "npz"),
        ("label-aspect", photo, npz(depth=scenes[0]["depth"][:10]), "npz"),
        ("label-masksize", photo, npz(depth=scenes[0]["depth"], mask=np.ones((3, 3))), "npz"),
        ("label-png", photo, depth[: len(depth) // 2], "png"),
        ("label-exr", photo, b"v/1\x01 and nothing more", "exr"),
    ]:
        put(root / "photos" / f"{name}.png", picture)
        put(root / "depth" / f"{name}.{suffix}", label)
    return {p.stem for p in (root / "photos").iterdir()} - {"good"}


def npy(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


def test_damaged_files_are_named_and_never_fatal(tmp_path, scenes, capfd):
    bad = damaged(tmp_path, scenes)
    source = open_source("folder", tmp_path, [DEPTH])  # opening reads none of them
    assert source.problems == [] and len(source) == len(bad) + 1
    steps = []
    assert [source.names[i] for i in usable(source, lambda *step: steps.append(step))] == ["good"]
    assert steps[-1] == (len(source), len(source))
    assert len(source.problems) == len(bad)
    for name in bad:
        (sentence,) = [p for p in source.problems if p.startswith(f"{name}: ")]
        assert "\n" not in sentence and len(sentence) > len(name) + 10
    usable(source)
    assert len(source.problems) == len(bad)  # said once
    (tmp_path / "photos" / "good.png").write_bytes(b"")
    with pytest.raises(ValueError, match="None of the"):
        usable(open_source("folder", tmp_path, [DEPTH]))


def test_a_file_that_vanishes_is_a_problem(photo, scenes):
    label = put(photo / "depth" / "a.png", png8(scenes[0]["depth"]))
    source = open_source("folder", photo, [DEPTH])
    before = source.stamp(0)
    label.unlink()
    assert source.stamp(0) != before
    with pytest.raises(FileNotFoundError):
        source[0]


def test_stamps_follow_photo_label_mask_and_convention(photo, scenes):
    label = put(photo / "depth" / "a.png", png8(scenes[0]["depth"]))
    mask = put(photo / "mask" / "a.png", png8(np.ones((SIZE, SIZE))))

    def stamp() -> str:
        return open_source("folder", photo, [DEPTH]).stamp(0)

    stamps = [stamp(), stamp()]
    assert stamps[0] == stamps[1]
    for path in (label, mask, photo / "photos" / "a.png"):
        os.utime(path, ns=(1, 1))
        stamps.append(stamp())
    put(photo / "depth" / "label.json", {"convention": "near-black"})
    stamps.append(stamp())
    assert len(set(stamps)) == 5


def test_hostile_names_are_only_names(tmp_path, scenes):
    stems = ["..", "...", "a..b", "$(touch x)", "%s%n", "-rf", "räka 写真", "x\ny", "../"[:2] + "a"]
    for stem in stems:
        put(tmp_path / "photos" / f"{stem}.png", png8(scenes[0]["albedo"]))
        put(tmp_path / "depth" / f"{stem}.png", png8(scenes[0]["depth"]))
    source = open_source("folder", tmp_path, [DEPTH])
    assert set(source.names) == {stem for stem in stems if not stem.startswith(".")}  # hidden ones are not looked at
    for i in range(len(source)):
        np.testing.assert_allclose(hwc(source[i].labels["depth"]), 1 - np.round((scenes[0]["depth"]) * 255) / 255,
                                   atol=1e-6)  # fmt: skip


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


# ------------------------------------------------------------------------------------------ DIODE


def diode(root: Path, normals_root: Path, scenes: list[dict[str, np.ndarray]]) -> list[str]:
    stems = []
    for i, scene in enumerate(scenes):
        place = f"val/{'indoors' if i % 2 else 'outdoor'}/scene_0001{i}/scan_00183"
        stem = f"{place}/0001{i}_00183_indoors_000_010"
        put(root / f"{stem}.png", rgb8(scene))
        put(root / f"{stem}_depth.npy", npy(scene["depth_metric"][..., None].astype(np.float32)))
        put(root / f"{stem}_depth_mask.npy", npy(np.ones((SIZE, SIZE))))
        put(normals_root / f"{stem}_normal.npy", npy(scene["normals"].astype(np.float64)))
        stems.append(stem)
    return sorted(stems)


@pytest.mark.parametrize("split", [False, True])
def test_diode_means_what_the_papers_code_says(tmp_path, scenes, split):
    """Against the formulas of the paper's diode.py (plot_normal_map, plot_depth_map), written out in numpy."""
    roots = (tmp_path / "depths", tmp_path / "normals") if split else (tmp_path, tmp_path)
    stems = diode(*roots, scenes)
    put(roots[0] / "diode_meta.json", {})
    source = open_source("diode", tmp_path, [NORMALS, DEPTH])
    assert list(source.names) == stems and source.problems == []
    for i, stem in enumerate(stems):
        scene = scenes[int(Path(stem).name[4])]
        sample = source[i]
        picture = hwc(encode(sample.labels["normals"][None], "normals")[0])
        np.testing.assert_allclose(picture, (scene["normals"] * [1, -1, -1] + 1) / 2, atol=1e-6)
        metres = scene["depth_metric"]
        clipped = np.clip(metres, 0.5, min(300, np.percentile(metres, 99)))
        near_bright = 1 - (clipped - clipped.min()) / np.ptp(clipped)
        picture = hwc(encode(sample.labels["depth"][None], "depth")[0])
        np.testing.assert_allclose(picture, np.repeat(near_bright[..., None], 3, -1), atol=1e-5)
        assert sample.mask is None
        np.testing.assert_array_equal(np.round(hwc(sample.photo) * 255), rgb8(scene))


def test_diode_masks_and_gaps(tmp_path, scenes):
    stems = diode(tmp_path, tmp_path, scenes)
    mask = np.ones((SIZE, SIZE))
    mask[:5] = 0
    depth = np.load(tmp_path / f"{stems[0]}_depth.npy")
    depth[:5] = 0
    put(tmp_path / f"{stems[0]}_depth.npy", npy(depth))
    put(tmp_path / f"{stems[0]}_depth_mask.npy", npy(mask))
    normals = np.load(tmp_path / f"{stems[1]}_normal.npy")
    normals[-3:] = 0
    put(tmp_path / f"{stems[1]}_normal.npy", npy(normals))
    (tmp_path / f"{stems[2]}_normal.npy").unlink()
    put(tmp_path / f"{stems[3]}_normal.npy", b"damaged")
    source = open_source("diode", tmp_path, [NORMALS, DEPTH])
    assert source.problems == [f"1 of 4 photos have no label of normals and are left out: {stems[2]}"]
    np.testing.assert_array_equal(hwc(source[0].mask), mask)
    assert (source[0].labels["depth"][0, :5] == 1).all() and source[0].labels["depth"][0, 5:].min() == 0
    np.testing.assert_array_equal(hwc(source[1].mask)[-3:], 0)
    assert usable(source) == [0, 1] and "damaged" in source.problems[1]
    assert len(open_source("diode", tmp_path, [DEPTH], limit=2)) == 2
    with pytest.raises(ValueError, match="not albedo"):
        open_source("diode", tmp_path, [ALBEDO])
    for path in tmp_path.rglob("*_depth.npy"):
        path.unlink()
    with pytest.raises(ValueError, match=r"looked for X.png with X_normal.npy and X_depth.npy.*4 pictures and 7"):
        open_source("diode", tmp_path, [NORMALS, DEPTH])


# ------------------------------------------------------------------------------------------ WebDataset


def check_scene(sample: Sample, scene: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(np.round(hwc(sample.photo) * 255), rgb8(scene))
    np.testing.assert_allclose(hwc(sample.labels["normals"]), scene["normals"], atol=1e-4)
    np.testing.assert_allclose(hwc(sample.labels["depth"]), scene["depth"], atol=1e-4)


def test_shards_written_by_webdataset(tmp_path, scenes, monkeypatch):
    webdataset = pytest.importorskip("webdataset")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "train-%02d.tar"), maxcount=3, verbose=0) as writer:
        for i, scene in enumerate(scenes):
            writer.write({
                "__key__": f"sub/{i:03d}",
                "png": put(tmp_path / "x.png", rgb8(scene)).read_bytes(),
                "normals.png": png16(scene["normals"] * 0.5 + 0.5),
                "depth.npz": npz(depth=scene["depth"]),
                "mask.png": png8(np.tri(SIZE)),
                "json": b"{}",
            })  # fmt: skip
    source = open_source("webdataset", str(tmp_path / "train-*.tar"), [NORMALS, DEPTH])
    assert list(source.names) == ["train-00/sub/000", "train-00/sub/001", "train-00/sub/002", "train-01/sub/003"]
    for i, scene in enumerate(scenes):
        check_scene(source[i], scene)
        np.testing.assert_array_equal(hwc(source[i].mask), np.tri(SIZE))
    assert not list((tmp_path / "temporary").iterdir())
    assert len(open_source("webdataset", tmp_path, [DEPTH], limit=2)) == 2
    assert len({source.stamp(i) for i in range(4)}) == 4
    assert len(open_source("webdataset", tmp_path / "train-01.tar", [DEPTH])) == 1


def tar(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    """Members of these names; a str instead of bytes makes a symbolic link to it."""
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                file.addfile(info)
            else:
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


def test_hostile_shards_write_nothing(tmp_path, scenes, monkeypatch):
    inside = tmp_path / "inside"
    (inside / "temporary").mkdir(parents=True)
    monkeypatch.chdir(inside)
    monkeypatch.setenv("TMPDIR", str(inside / "temporary"))
    rgb, labels = png8(scenes[0]["albedo"]), npz(depth=scenes[0]["depth"], normals=scenes[0]["normals"])
    outside = tmp_path / "outside"
    keys = [str(outside / "a"), "../../escape", "..", "x/../../y", "C:\\windows\\z", "ok"]
    members = [(f"{key}.{kind}", data) for key in keys for kind, data in (("png", rgb), ("npz", labels))]
    members += [("link.png", "/etc/passwd"), ("link.npz", "/etc/passwd"), ("\udcff.png", rgb), ("\udcff.npz", labels)]
    shard = tar(tmp_path / "inside" / "hostile.tar", members)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    source = open_source("webdataset", shard, [DEPTH, NORMALS])
    assert len(source) == 6  # not the links, nor the file that begins with a dot
    assert all(name.encode("utf-8") for name in source.names)
    assert usable(source) == list(range(6))
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before and not outside.exists()


def test_damaged_shards_give_what_is_left(tmp_path, scenes):
    rgb, label = png8(scenes[0]["albedo"]), png16(1 - scenes[0]["depth"])
    members = [(f"{i}.{kind}", data) for i in range(4) for kind, data in (("jpg", rgb), ("depth.png", label))]
    whole = tar(tmp_path / "a.tar", members).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: int(len(whole) * 0.35)])
    (tmp_path / "c.tar").write_bytes(b"no tar")
    (tmp_path / "d.tar").write_bytes(b"")
    tar(tmp_path / "e.tar", [("bare.depth.png", label), ("broken.png", b"?"), ("broken.depth.png", label)])
    with tarfile.open(tmp_path / "f.tar", "w:gz") as file:
        file.add(tmp_path / "a.tar", "0.jpg")
    source = open_source("webdataset", tmp_path, [DEPTH])
    good = [source.names[i] for i in usable(source)]
    assert good[:4] == [f"a/{i}" for i in range(4)] and "e/broken" not in good
    text = "\n".join(source.problems)
    assert "c.tar" in text and "f.tar" in text and "e/broken" in text and "no photo" in text
    for name in ("c.tar", "d.tar"):
        with pytest.raises(ValueError, match="nothing to train on"):
            open_source("webdataset", tmp_path / name, [DEPTH])
    with pytest.raises(FileNotFoundError, match="no shards"):
        open_source("webdataset", tmp_path / "nowhere-*.tar", [DEPTH])
    with pytest.raises(ValueError, match="download them first"):
        open_source("webdataset", "https://example.org/a.tar", [DEPTH])


# ------------------------------------------------------------------------------------------ datasets


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf_cache")
    module.disable_progress_bars()
    return module


def table(datasets, tmp_path, scenes):
    rows = {
        "image": [{"bytes": put(tmp_path / "x.png", rgb8(s)).read_bytes(), "path": None} for s in scenes],
        "normals": [{"bytes": png16(s["normals"] * 0.5 + 0.5), "path": None} for s in scenes],
        "depth": [s["depth"].astype(np.float32) for s in scenes],
        "albedo": [s["albedo"].astype(np.float32) for s in scenes],
        "mask": [(np.tri(SIZE) * 255).astype(np.uint8) > 0 for _ in scenes],
        "text": ["ignored"] * len(scenes),
    }
    features = datasets.Features({
        "image": datasets.Image(), "normals": datasets.Image(),
        "depth": datasets.Array2D((SIZE, SIZE), "float32"), "albedo": datasets.Array3D((SIZE, SIZE, 3), "float32"),
        "mask": datasets.Array2D((SIZE, SIZE), "bool"), "text": datasets.Value("string"),
    })  # fmt: skip
    return datasets.Dataset.from_dict(rows, features=features)


def test_datasets_from_disk_and_parquet(tmp_path, scenes, datasets):
    data = table(datasets, tmp_path, scenes)
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    data.to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    data.select([2]).to_parquet(tmp_path / "parquet" / "test-00000.parquet")
    datasets.DatasetDict({"train": data, "held": data.select([3])}).save_to_disk(tmp_path / "splits")
    for path, count in (("saved", 4), ("parquet", 4), ("parquet/train-00000.parquet", 4), ("splits", 4)):
        source = open_source("datasets", tmp_path / path, [NORMALS, DEPTH, ALBEDO])
        assert len(source) == count and list(source.names) == ["0", "1", "2", "3"]
        for i, scene in enumerate(scenes):
            check_scene(source[i], scene)  # 16-bit normals: to 1e-4, which 8 bits cannot hold
            np.testing.assert_allclose(hwc(source[i].labels["albedo"]), scene["albedo"], atol=1e-6)
            np.testing.assert_array_equal(hwc(source[i].mask), np.tri(SIZE))
        assert len({source.stamp(i) for i in range(count)}) == count
    held = open_source("datasets", f"{tmp_path / 'splits'}#held", [NORMALS, DEPTH])
    assert len(held) == 1
    check_scene(held[0], scenes[3])
    check_scene(open_source("datasets", f"{tmp_path / 'parquet'}#test", [NORMALS, DEPTH])[0], scenes[2])
    with pytest.raises(ValueError, match="splits train, held"):
        open_source("datasets", f"{tmp_path / 'splits'}#test", [DEPTH])


def test_datasets_say_what_is_wrong(tmp_path, scenes, datasets):
    data = table(datasets, tmp_path, scenes)
    data.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"photo or image or rgb, and shading; found 4 rows of image, normals"):
        open_source("datasets", tmp_path / "saved", [SHADING])
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_source("datasets", tmp_path / "nowhere", [DEPTH])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be opened as a data set"):
        open_source("datasets", tmp_path / "empty", [DEPTH])
    holes = datasets.Dataset.from_dict(
        {"photo": [None, {"bytes": b"?", "path": None}, {"bytes": png8(scenes[0]["albedo"]), "path": None}],
         "shadow": [np.ones((SIZE, SIZE)).tolist()] * 3},
        features=datasets.Features({"photo": datasets.Image(), "shadow": datasets.List(datasets.List(
            datasets.Value("float32")))}),
    )  # fmt: skip
    holes.save_to_disk(tmp_path / "holes")
    source = open_source("datasets", tmp_path / "holes", [Intrinsic("shadow", "shadow", 1, "linear")])
    assert usable(source) == [2] and len(source.problems) == 2
    assert "row 0 has no photo" in source.problems[0] and "photo of row 1" in source.problems[1]


def test_datasets_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        open_source("datasets", tmp_path, [DEPTH])
