"""`extract` on real folders: duplicate names, subfolders, links, pipes, animations, hostile names."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from intrinsic_lora.cli.progress import printable
from intrinsic_lora.diffusers_pipeline.pipeline import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics.files import atomic_path, list_files
from intrinsic_lora.intrinsics.vocabulary import RESERVED_NAMES, Intrinsic
from intrinsic_lora.tests.cli.test_cli import cli
from intrinsic_lora.tests.support import tiny
from intrinsic_lora.train.data.listing import files_by_stem
from intrinsic_lora.train.scoring.folders import find_stems
from PIL import Image


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Save a pipeline with one LoRA, resolution 16."""
    folder = tmp_path_factory.mktemp("base")
    pipe = IntrinsicLoRAPipeline(**tiny.components(), default_processing_resolution=16)
    tiny.write_loras(folder / "written", pipe.unet, ("depth",), timestep=100)
    pipe.load_intrinsics(folder / "written")
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def photo(path, seed=0, **options):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((24, 16), Image.Resampling.BICUBIC).save(path, **options)


def extract(base, *arguments, status=0):
    return cli("extract", *arguments, "--base", base, "--device", "cpu", status=status)


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_twins_get_their_ending_and_the_rest_runs(base, photos, tmp_path):
    for i, name in enumerate(("a.png", "a.jpg", "b.png", "a_jpg.bmp")):
        photo(photos / name, i)
    text = extract(base, photos, "--out", tmp_path / "out", "--format", "npz")
    assert "4 extracted" in text and "share a name" in text
    # a.jpg becomes a_jpg, the name of the results of a_jpg.bmp, so that file needs a distinct name as well.
    stems = {Path(name).stem for name in names(tmp_path / "out") if name.endswith(".npz")}
    assert stems == {"a_png", "a_jpg", "a_jpg_bmp", "b"}
    assert "0 extracted, 4 skipped (already exist)" in extract(
        base, photos, "--out", tmp_path / "out", "--format", "npz"
    )


def test_maps_of_twins_are_found_again(base, photos, tmp_path):
    from intrinsic_lora.cli.relight_steps import maps_from_files
    from intrinsic_lora.intrinsics.pictures import read_picture
    from intrinsic_lora.train.scoring.folders import pair_stems

    for i, name in enumerate(("a.png", "a.jpg", "b.png")):
        photo(photos / name, i)
        stem = name.replace(".", "_") if name[0] == "a" else "b"
        normals = np.zeros((16, 24, 3), np.float32)
        normals[..., i] = 1
        np.savez(tmp_path / f"{stem}.npz", normals=normals)
    for i, name in enumerate(("a.png", "a.jpg", "b.png")):
        maps = maps_from_files(tmp_path, photos / name, read_picture(photos / name), "opengl", None)
        assert maps["normals"][0, i].min() == 1
    there = {stem: Path(f"{stem}.npz") for stem in ("a_jpg", "a_png", "b", "0_rgb_png", "c_jpg", "x_txt")}
    truths = {stem: Path(f"{stem}.npz") for stem in ("a", "a_png", "b", "0", "x")}
    assert pair_stems(there, truths) == {"a_jpg": "a", "a_png": "a_png", "b": "b", "0_rgb_png": "0"}


def test_subfolders_are_mirrored(base, photos, tmp_path):
    for i, name in enumerate(("a.png", "x/a.png", "x/y/a.jpg", "x/y/a.png", ".hidden/a.png")):
        photo(photos / name, i)
    text = extract(base, photos, "--out", tmp_path / "out", "--recursive", "--format", "npz")
    assert "4 extracted" in text
    found = {name for name in names(tmp_path / "out") if name.endswith(".npz")}
    assert found == {"a.npz", "x/a.npz", "x/y/a_jpg.npz", "x/y/a_png.npz"}
    assert "1 extracted" in extract(base, photos, "--out", tmp_path / "top", "--format", "npz")
    assert "choose another folder" in extract(base, photos, "--out", photos / "x" / "out", "--recursive", status=2)


def test_every_kind_of_photo_in_a_folder(base, photos, tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    suffixes = ("png", "jpg", "jfif", "webp", "tif", "gif", "bmp", "ppm", "avif", "heic")
    for i, suffix in enumerate(suffixes):
        kind = {"jfif": "JPEG"}.get(suffix)
        photo(photos / f"{suffix}.{suffix}", i, **({"format": kind} if kind else {}))
    Image.new("L", (24, 16)).save(photos / "grey.pgm", format="PPM")
    text = extract(base, photos, "--out", tmp_path / "out")
    assert (
        f"{len(suffixes) + 1} extracted, 0 skipped (already exist), 0 failed" in text and "not supported" not in text
    )


def test_heic_without_its_package_names_it(photos, monkeypatch):
    from intrinsic_lora.intrinsics.pictures import read_picture

    (photos / "x.heic").write_bytes(bytes(4) + b"ftypheic" + bytes(20))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImportError, match="pip install pillow-heif"):
        read_picture(photos / "x.heic")


def test_skipped_files_are_reported_once(base, photos, tmp_path):
    photo(photos / "a.png")
    for name in ("film.mov", "raw.cr2", "notes.txt", "a.json", "Thumbs.db", ".DS_Store"):
        (photos / name).write_bytes(b"x")
    (photos / "dangling.png").symlink_to("nowhere.png")
    (photos / "linked.png").symlink_to("a.png")
    os.mkfifo(photos / "pipe.png")  # opening it would wait for ever
    text = extract(base, photos, "--out", tmp_path / "out")
    assert "2 files are not supported pictures: film.mov, raw.cr2." in text
    assert "1 broken link was skipped: dangling.png." in text and "1 pipe or device was skipped: pipe.png." in text
    assert "2 extracted, 0 skipped (already exist), 0 failed" in text and "notes" not in text and "Thumbs" not in text
    assert "pipe or a device" in extract(base, photos / "pipe.png", "--out", tmp_path / "out", status=1)


def test_hidden_files_are_looked_at_nowhere(base, photos, tmp_path):
    photo(photos / "x.png")
    for name in ("._x.png", ".y.0a1b2c3d4e5f.tmp.png"):
        (photos / name).write_bytes(b"Mac OS X        ")
    assert "1 extracted, 0 skipped (already exist), 0 failed" in extract(base, photos, "--out", tmp_path / "out")
    assert [path.name for path in list_files(photos)] == ["x.png"]
    assert list(files_by_stem(photos, (".png",))[0]) == ["x"]
    np.savez(photos / "x.npz", depth=np.zeros((2, 2)))
    (photos / "._x.npz").write_bytes(b"Mac OS X        ")
    assert list(find_stems(photos)) == ["x"]
    loras = tmp_path / "loras"
    loras.mkdir()
    (loras / "intrinsic_lora_depth.safetensors").write_bytes(
        (base / "loras" / "intrinsic_lora_depth.safetensors").read_bytes()
    )
    (loras / "._intrinsic_lora_depth.safetensors").write_bytes(b"Mac OS X        ")
    assert "1 extracted" in extract(base, photos, "--out", tmp_path / "again", "--loras", loras)


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_the_first_frame_is_taken_and_reported(base, photos, tmp_path, suffix):
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(photos / f"x.{suffix}", save_all=True, append_images=frames[1:])
    assert "only the first of 3 frames or pages is read" in extract(base, photos, "--out", tmp_path / "out")
    assert "first of" not in extract(base, photos, "--out", tmp_path / "out")  # already there


def test_a_name_too_long_for_its_results_fails_alone(base, photos, tmp_path):
    long = "m" * 245 + ".png"
    for name in ("a.png", long, "z.png"):
        photo(photos / name)
    text = extract(base, photos, "--out", tmp_path / "out", status=1)
    assert (
        "2 extracted, 0 skipped (already exist), 1 failed" in text
        and "names of its results would have 260 bytes" in text
    )
    assert not [name for name in names(tmp_path / "out") if name.startswith("m")]
    (photos / ("é" * 120 + ".png")).write_bytes((photos / "a.png").read_bytes())  # 240 bytes, and they fit
    assert "1 extracted" in extract(base, photos, "--out", tmp_path / "out", status=1)


def test_nothing_extracted_names_no_contact_sheets(base, photos, tmp_path):
    (photos / "a.png").write_bytes(b"x")
    text = extract(base, photos, "--out", tmp_path / "out", status=1)
    assert "0 extracted, 0 skipped (already exist), 1 failed" in text and "contact sheets" not in text


def test_control_characters_do_not_reach_the_terminal(base, photos, tmp_path):
    evil = "a\x1b[31m\x07\nb\u202e.png"
    (photos / evil).write_bytes(b"x")
    text = extract(base, photos, "--out", tmp_path / "out", status=1)
    assert "\x1b[31m" not in text and "\x07" not in text and "\u202e" not in text
    assert r"a\x1b[31m\x07\nb\u202e.png" in text.replace(" ", "")
    assert "\x1b" not in cli("info", photos / evil, status=1)
    assert printable("grün 日本 😀.png") == "grün 日本 😀.png"
    assert printable(os.fsdecode(b"\xe9.png")) == r"\udce9.png"  # a Latin-1 name, which cannot be encoded


def test_sizes_are_reported_width_first(base, photos, tmp_path):
    Image.new("RGB", (4000, 3)).save(photos / "strip.png")
    assert "4000 x 3 pixels" in extract(base, photos, "--out", tmp_path / "out", status=1)


@pytest.mark.parametrize("name", ["sheet", "confidence", "rgb", "image", "mask"])
def test_an_intrinsic_cannot_be_called_like_another_file(name):
    assert name in RESERVED_NAMES
    with pytest.raises(ValueError, match="is a reserved name"):
        Intrinsic(name, "a prompt", 1, "linear")


def test_stale_temporary_files_are_removed_and_others_kept(tmp_path):
    old, new, mine = (tmp_path / name for name in (".a.0123456789ab.tmp.png", ".b.0123456789ab.tmp", ".cache.tmp"))
    for path in (old, new, mine):
        path.write_bytes(b"x")
    for path in (old, mine):
        os.utime(path, (1e9, 1e9))
    with atomic_path(tmp_path / ("ü" * 120)) as temporary:  # 240 bytes
        temporary.write_bytes(b"y")
    assert {path.name for path in tmp_path.iterdir()} == {new.name, mine.name, "ü" * 120}


def test_a_full_disk_names_the_file(tmp_path):
    code = (
        "import resource, sys; from intrinsic_lora.intrinsics.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary: temporary.write_bytes(bytes(10**6))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "big.png"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5)),
    )
    assert f"OSError: Cannot write {tmp_path / 'big.png'}: {os.strerror(errno.EFBIG)}; make room" in done.stderr
    assert not list(tmp_path.iterdir())
