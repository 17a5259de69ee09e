"""Labelling a folder: the files it writes, that training reads them, and that it resumes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from intrinsic_lora.cli.main import app
from intrinsic_lora.intrinsics.lora import write_lora
from intrinsic_lora.intrinsics.pictures import read_picture, write_png
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS, Intrinsic
from intrinsic_lora.train.data import open_source
from intrinsic_lora.train.scenes.render import render, sample_scene
from intrinsic_lora.train.teachers.base import LoadedTeacher
from intrinsic_lora.train.teachers.label import CONVENTIONS, find_photos, label_photos, label_sheet, stamp
from intrinsic_lora.train.teachers.load import load_teacher
from typer.testing import CliRunner

NAMES = tuple(INTRINSICS)


def formula(pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute maps that depend on every pixel, in closed form."""
    red, green, blue = pictures.double().unbind(1)
    normals = torch.stack([red - 0.5, green - 0.3, blue + 0.2], 1)
    low, high = red.amin((1, 2), keepdim=True), red.amax((1, 2), keepdim=True)  # (B, 1, 1)
    return {
        "normals": (normals / normals.norm(dim=1, keepdim=True)).float(),
        "depth": ((red - low) / (high - low))[:, None].float(),
        "albedo": pictures**2,
        "shading": 3 * blue[:, None].float(),  # beyond 1: it is up to scale
    }


def formula_teacher(version: str = "0123456789abcdef", draw=formula, **settings) -> LoadedTeacher:
    return LoadedTeacher("formula", "none", version, "public domain", "torch", NAMES, settings, draw)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five scenes of two sizes, in two folders, under three suffixes."""
    folder = tmp_path / "pictures"
    (folder / "trip").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "c.jpg", "trip/a.png", "trip/d.PNG")):
        rgb = render(sample_scene(np.random.default_rng([9, i])), 16 if i < 3 else 24)["rgb_linear"]
        picture = torch.from_numpy(rgb).permute(2, 0, 1)[:, :12]  # (3, 12, W)
        write_png(folder / "scene.png", picture.clamp(0, 1) ** 0.45)
        if name.endswith("jpg"):
            from PIL import Image

            Image.open(folder / "scene.png").save(folder / name, quality=95)
            (folder / "scene.png").unlink()
        else:
            (folder / "scene.png").rename(folder / name)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_trainer_reads_the_labels(photos, tmp_path):
    done = label_photos(photos, tmp_path / "data", formula_teacher(), batch_size=2)
    assert (done.written, done.skipped, done.failed) == (5, 0, 0)
    source = open_source("folder", tmp_path / "data", list(INTRINSICS.values()))
    assert sorted(source.names) == ["a", "b", "c", "trip/a", "trip/d"]
    assert not source.problems
    suffixes = {"c": ".jpg", "trip/d": ".PNG"}
    for sample in (source[i] for i in range(len(source))):
        original = read_picture(photos / f"{sample.name}{suffixes.get(sample.name, '.png')}").rgb
        assert torch.equal(sample.photo[None], original)
        for name, values in formula(original).items():
            expected = values[0]
            # float16: 11 bits
            torch.testing.assert_close(sample.labels[name], expected, atol=1e-3, rtol=1e-3)


def test_sixteen_bit_pictures_say_the_same(photos, tmp_path):
    label_photos(photos, tmp_path / "floats", formula_teacher())
    label_photos(photos, tmp_path / "drawn", formula_teacher(), file_format="png16")
    floats, pictures = (
        open_source("folder", tmp_path / kind, list(INTRINSICS.values())) for kind in ("floats", "drawn")
    )
    for i in range(5):
        for name in ("normals", "depth", "albedo"):
            torch.testing.assert_close(pictures[i].labels[name], floats[i].labels[name], atol=1e-3, rtol=1e-3)
        shading = floats[i].labels["shading"]
        torch.testing.assert_close(
            pictures[i].labels["shading"], shading / max(shading.max(), 1), atol=1e-3, rtol=1e-3
        )
    head = (tmp_path / "drawn/depth/a.png").read_bytes()[:26]
    assert (head[24], head[25]) == (16, 0)  # IHDR: 16 bits, grey


def test_the_sidecar_says_who_and_what(photos, tmp_path):
    for file_format, names in CONVENTIONS.items():
        label_photos(
            photos, tmp_path / file_format, formula_teacher(steps=3), intrinsics=["depth"], file_format=file_format
        )
        assert sorted(os.listdir(tmp_path / file_format)) == ["depth", "photos"]
        assert json.loads((tmp_path / file_format / "depth/label.json").read_text()) == {
            "teacher": "formula",
            "model": "none",
            "version": "0123456789abcdef",
            "licence": "public domain",
            "library": "torch",
            "intrinsic": "depth",
            "format": format,
            "convention": names["depth"],
            "settings": {"steps": 3},
        }


def test_two_runs_write_the_same_bytes(photos, tmp_path):
    for run in ("one", "two"):
        label_photos(photos, tmp_path / run, formula_teacher(), batch_size=3 if run == "one" else 1)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_photos_are_linked_not_copied(photos, tmp_path):
    label_photos(photos, tmp_path / "data", formula_teacher())
    assert os.path.samefile(photos / "trip/a.png", tmp_path / "data/photos/trip/a.png")
    label_photos(tmp_path / "data/photos", tmp_path / "data", formula_teacher())  # the layout of a data set


def test_photos_are_copied_where_links_are_not_to_be_had(photos, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    label_photos(photos, tmp_path / "data", formula_teacher())
    assert content(tmp_path / "data/photos") == content(photos)
    assert not os.path.samefile(photos / "a.png", tmp_path / "data/photos/a.png")
    done = label_photos(photos, tmp_path / "data", formula_teacher())
    assert (done.written, done.skipped) == (0, 5)


def test_what_is_labelled_is_not_labelled_again(photos, tmp_path):
    out, seen = tmp_path / "data", []

    def watched(pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(len(pictures))
        return formula(pictures)

    teacher = formula_teacher(draw=watched)
    done = label_photos(photos, out, teacher, limit=2)
    assert (done.written, sum(seen)) == (2, 2)
    (out / "depth/a.npz").unlink()
    before = content(out)
    done = label_photos(photos, out, teacher)
    assert (done.written, done.skipped) == (4, 1)
    assert sum(seen) == 6
    assert before.items() <= content(out).items()
    label_photos(photos, out, teacher, overwrite=True)
    assert sum(seen) == 11


def test_bad_pictures_are_reported_and_left_out(photos, tmp_path):
    (photos / "broken.png").write_bytes((photos / "b.png").read_bytes()[:60])
    (photos / "text.jpg").write_text("hello")
    write_png(photos / "c2.png", torch.full((3, 12, 16), 0.25))

    def picky(pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        if (pictures == 64 / 255).all((1, 2, 3)).any():
            raise RuntimeError("I do not label grey")
        maps = formula(pictures)
        maps["depth"][(pictures.shape[-1] == 24 and slice(0, 1)) or slice(0, 0)] = torch.nan
        return maps

    failures, steps = {}, []
    done = label_photos(
        photos,
        tmp_path / "data",
        formula_teacher(draw=picky),
        batch_size=8,
        failed=lambda path, error: failures.update({path.relative_to(photos).as_posix(): str(error)}),
        progress=lambda count, total: steps.append((count, total)),
    )
    assert failures.keys() == {"broken.png", "text.jpg", "c2.png", "trip/a.png"}
    assert failures["c2.png"] == "I do not label grey"
    assert "depth is not finite" in failures["trip/a.png"]
    assert (done.written, done.failed) == (4, 4)
    assert steps[-1] == (8, 8)
    labelled = {"a.png", "b.png", "c.jpg", "trip/d.PNG"}
    assert content(tmp_path / "data/photos").keys() == labelled
    assert not open_source("folder", tmp_path / "data", list(INTRINSICS.values())).problems


def test_another_teachers_labels_are_refused_unless_overwritten(photos, tmp_path):
    out = tmp_path / "data"
    label_photos(photos, out, formula_teacher())
    before = content(out)
    for other, change in (
        (formula_teacher("fedcba9876543210"), "version 0123456789abcdef, now fedcba9876543210"),
        (formula_teacher(ensemble=5), "settings {}, now {'ensemble': 5}"),
    ):
        with pytest.raises(ValueError, match="made with other settings") as refusal:
            label_photos(photos, out, other)
        assert change in str(refusal.value)
        assert content(out) == before
    with pytest.raises(ValueError, match="format npz, now png16"):
        label_photos(photos, out, formula_teacher(), file_format="png16")

    # A partial overwrite leaves no labels of the old teacher.
    done = label_photos(photos, out, formula_teacher("fedcba9876543210"), ["depth"], limit=2, overwrite=True)
    assert done.written == 2
    assert len(list((out / "depth").rglob("*.npz"))) == 2
    assert len(list((out / "normals").rglob("*.npz"))) == 5
    assert json.loads((out / "depth/label.json").read_text())["version"] == "fedcba9876543210"
    done = label_photos(photos, out, formula_teacher("fedcba9876543210"), ["depth"])
    assert (done.written, done.skipped) == (3, 2)


def test_user_labels_are_never_removed(photos, tmp_path):
    (tmp_path / "data/depth").mkdir(parents=True)
    write_png(tmp_path / "data/depth/a.png", torch.rand(1, 12, 16), bits=16)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="contains labels that were not made by a teacher"):
            label_photos(photos, tmp_path / "data", formula_teacher(), overwrite=overwrite)
    assert (tmp_path / "data/depth/a.png").exists()
    assert not (tmp_path / "data/normals").exists()


def test_folders_that_would_go_wrong_are_refused(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="not found"):
        find_photos(tmp_path / "nothing", tmp_path / "data")
    for out in (photos, photos / "labels"):
        with pytest.raises(ValueError, match="is inside"):
            find_photos(photos, out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no pictures"):
        find_photos(tmp_path / "empty", tmp_path / "data")
    with pytest.raises(ValueError, match="predicts normals, depth, albedo, shading, not roughness"):
        label_photos(photos, tmp_path / "data", formula_teacher(), intrinsics=["roughness"])
    label_photos(photos, tmp_path / "data", formula_teacher())
    other = tmp_path / "other"
    other.mkdir()
    write_png(other / "A.png", torch.rand(3, 12, 16))
    with pytest.raises(ValueError, match=r"a\.png, .*A\.png: photos of the same name"):
        label_photos(other, tmp_path / "data", formula_teacher())
    write_png(photos / "a.tif.png", torch.rand(3, 12, 16))  # a.tif is another stem
    assert len(find_photos(photos, tmp_path / "data")) == 6
    (photos / "b.jpg").write_bytes((photos / "c.jpg").read_bytes())
    with pytest.raises(ValueError, match="rename one of them"):
        find_photos(photos, tmp_path / "data")


def test_the_sheet_is_read_back_from_the_files(photos, tmp_path):
    label_photos(photos, tmp_path / "data", formula_teacher())
    sheet = np.asarray(label_sheet(tmp_path / "data", NAMES))
    (tmp_path / "data/depth/a.npz").write_bytes((tmp_path / "data/depth/b.npz").read_bytes())
    changed = np.asarray(label_sheet(tmp_path / "data", NAMES))
    assert sheet.shape == changed.shape
    assert (sheet != changed).any()


KILLED = """
    import sys, time
    from pathlib import Path
    from intrinsic_lora.tests.train.teachers import test_label
    from intrinsic_lora.train.teachers.label import label_photos

    def slow(pictures):
        time.sleep(0.01)
        return test_label.formula(pictures)

    label_photos(Path(sys.argv[1]), Path(sys.argv[2]), test_label.formula_teacher(draw=slow))
"""


def test_a_killed_run_leaves_nothing_half_written_and_goes_on(photos, tmp_path, root):
    for i in range(30):
        write_png(photos / f"many{i:02d}.png", torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)))
    whole, out = tmp_path / "whole", tmp_path / "data"
    label_photos(photos, whole, formula_teacher())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for count in (1, 9, 20):  # labels written when it is killed
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(photos), str(out)]
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None and len(list(out.glob("*/*.npz"))) < 4 * count:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        finished = {file: data for file, data in content(out).items() if not Path(file).name.startswith(".")}
        assert finished.items() <= content(whole).items()
    done = label_photos(photos, out, formula_teacher())
    assert done.written > 0
    assert done.skipped >= 19  # of the 20 the last may have been under its temporary name
    finished = {file: data for file, data in content(out).items() if not Path(file).name.startswith(".")}
    assert finished == content(whole)


def test_the_command_end_to_end(photos, tmp_path):
    """The embedded model labels scenes; repeating the command does nothing; a different one is rejected."""
    (photos / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "data"
    command = ["label", str(photos), "--out", str(out), "--teacher", "intrinsic-lora", "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, "--intrinsics", "normals,depth", "--batch-size", "2"])
    assert result.exit_code == 0, result.output
    assert "5 labelled, 0 skipped (already labelled), 1 failed" in result.output
    assert (out / "sheet_intrinsic-lora.png").exists()
    source = open_source("folder", out, [INTRINSICS["normals"], INTRINSICS["depth"]])
    teacher = load_teacher("intrinsic-lora")
    sidecar = json.loads((out / "normals/label.json").read_text())
    assert sidecar == stamp(teacher, "normals", "npz")
    maps = teacher(source[0].photo[None])
    torch.testing.assert_close(source[0].labels["depth"], maps["depth"][0], atol=2e-3, rtol=0)

    again = CliRunner().invoke(app, [*command, "--intrinsics", "normals,depth"])
    assert "0 labelled, 5 skipped (already labelled)" in again.output
    refused = CliRunner().invoke(app, [*command, "--resolution", "32"])
    assert refused.exit_code == 1
    assert "Error: The labels in" in refused.output
    unknown = CliRunner().invoke(app, [*command[:4], "--teacher", "oracle"])
    assert unknown.exit_code == 2
    assert "zoedepth" in unknown.output
    offline = CliRunner().invoke(app, ["label", str(photos), "--out", str(out), "--teacher", "zoedepth"])
    assert offline.exit_code == 1
    assert "HF_HUB_OFFLINE" in offline.output


def test_help_names_teachers_models_and_licences():
    from intrinsic_lora.train.teachers.table import TEACHERS

    text = " ".join(CliRunner().invoke(app, ["label", "--help"], env={"COLUMNS": "400"}).output.split())
    for name, info in TEACHERS.items():
        assert f"{name}: {', '.join(info.makes)}; {info.model}; {info.licence}" in text


def test_custom_intrinsics_are_not_labelled(photos, tmp_path):
    """They are not skipped silently: the embedded model would label its four."""
    command = ["label", str(photos), "--out", str(tmp_path / "data"), "--teacher", "intrinsic-lora", "--device", "cpu"]
    asked = CliRunner().invoke(app, [*command, "--intrinsics", "normals,shadow"], env={"COLUMNS": "300"})
    assert asked.exit_code == 2
    assert "shadow: teachers label only normals, depth, albedo, shading. For another intrinsic, put" in asked.output
    (tmp_path / "loras").mkdir()
    weights = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (torch.ones(1, 8), torch.ones(8, 1), 1.0)}
    shadow = Intrinsic("shadow", "shadow mask", 1, "linear")
    write_lora(tmp_path / "loras" / "intrinsic_lora_shadow.safetensors", weights, intrinsic=shadow)
    drawn = CliRunner().invoke(app, [*command, "--loras", str(tmp_path / "loras")])
    assert drawn.exit_code == 1
    assert "predict shadow, but teachers label only normals, depth, albedo, shading" in drawn.output
    assert not (tmp_path / "data").exists()
