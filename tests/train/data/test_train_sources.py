"""Sources of photos and labels: folders, DIODE, WebDataset shards, datasets; and their errors."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from intrinsic_lora.intrinsics import INTRINSICS, Intrinsic, encode
from intrinsic_lora.tests.support.data_files import SIZE, hwc, npz, png8, png16, put, rendered_scenes, rgb8
from intrinsic_lora.train.data import open_source
from intrinsic_lora.train.data.sample import Sample, Selection, usable

NORMALS, DEPTH, ALBEDO, SHADING = INTRINSICS.values()
ALL = list(INTRINSICS.values())


@pytest.fixture
def scenes() -> list[dict[str, np.ndarray]]:
    return rendered_scenes()


@pytest.fixture
def photo(tmp_path, scenes) -> Path:
    """Create a data folder with the photo `a.png` of the first scene."""
    put(tmp_path / "photos" / "a.png", rgb8(scenes[0]))
    return tmp_path


# ------------------------------------------------------------------------------------------ folders


def scene_folder(root: Path, scenes: list[dict[str, np.ndarray]]) -> Path:
    """Write a folder as `render-scenes` does."""
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
    duplicate, depth, albedo = source.problems
    assert "09.jpg" in duplicate or "09.png" in duplicate
    assert depth == "9 of 12 photos have no label of depth and are skipped: 00, 01, 02, 03, 04 and 4 more"
    assert albedo == "1 of 12 photos have no label of albedo and are skipped: 11"


def test_nothing_left_says_what_was_looked_for_and_found(tmp_path, scenes):
    put(tmp_path / "photos" / "a.png", rgb8(scenes[0]))
    put(tmp_path / "depth" / "b.png", png8(scenes[0]["depth"]))
    with pytest.raises(ValueError) as caught:
        open_source("folder", tmp_path, [DEPTH, NORMALS])
    sentence = str(caught.value)
    assert "1 photos" in sentence and "1 labels in depth/" in sentence and "0 labels in normals/" in sentence
    assert "photos/STEM.jpg" in sentence and "normals/STEM.npz" in sentence and "\n" not in sentence
    with pytest.raises(FileNotFoundError, match="not found"):
        open_source("folder", tmp_path / "nowhere", [DEPTH])
    with pytest.raises(ValueError, match="folder, diode, datasets, webdataset"):
        open_source("zip", tmp_path, [DEPTH])
    with pytest.raises(ValueError, match="limit"):
        open_source("folder", tmp_path, [DEPTH], limit=0)


def damaged(root: Path, scenes: list[dict[str, np.ndarray]]) -> set[str]:
    """Write samples with all kinds of errors; only `good` can be read."""
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
    assert len(source.problems) == len(bad)  # reported once
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
    """Compare with the formulas of the paper's diode.py (plot_normal_map, plot_depth_map) in numpy."""
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
    assert source.problems == [f"1 of 4 photos have no label of normals and are skipped: {stems[2]}"]
    np.testing.assert_array_equal(hwc(source[0].mask), mask)
    assert (source[0].labels["depth"][0, :5] == 1).all() and source[0].labels["depth"][0, 5:].min() == 0
    np.testing.assert_array_equal(hwc(source[1].mask)[-3:], 0)
    assert usable(source) == [0, 1] and "damaged" in source.problems[1]
    assert len(open_source("diode", tmp_path, [DEPTH], limit=2)) == 2
    with pytest.raises(ValueError, match="not albedo"):
        open_source("diode", tmp_path, [ALBEDO])
    for path in tmp_path.rglob("*_depth.npy"):
        path.unlink()
    with pytest.raises(ValueError, match=r"expected X.png with X_normal.npy and X_depth.npy.*4 pictures and 7"):
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
    """Write a tar file of these members; a str instead of bytes makes a symbolic link to it."""
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
        with pytest.raises(ValueError, match="contains no labelled photos"):
            open_source("webdataset", tmp_path / name, [DEPTH])
    with pytest.raises(FileNotFoundError, match="No shards were found"):
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
    with pytest.raises(FileNotFoundError, match=r"File or folder .* not found"):
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
