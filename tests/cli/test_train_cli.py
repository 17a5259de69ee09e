"""`intrinsic-lora train` as typed: help, dry run, sentences for mistakes, and the whole cycle with the others."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.cli.main import app
from intrinsic_lora.tests.support import tiny, tiny_training
from intrinsic_lora.train.config import PRESETS, describe
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return (base, scenes)."""
    folder = tmp_path_factory.mktemp("parts")
    return tiny_training.write_base(folder / "base"), tiny_training.write_scenes(folder / "scenes", 6)


def cli(*arguments, status=0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    assert result.exit_code == status, result.output
    return result.output


def settings(parts, out, **changes) -> list[str]:
    base, data = parts
    given = {"base": base, "data.path": data, "out": out, "intrinsics": "[normals]", "data.resolution": 32}
    given |= {"data.val_count": 2, "lora.rank": 2, "max_steps": 2, "batch_size": 2, "log": "files"}
    return [f"{key}={value}" for key, value in (given | changes).items()]


def test_help_names_the_presets_and_keys_lists_every_key():
    text = cli("train", "--help")
    assert all(preset in text for preset in PRESETS)
    text = cli("train", "--keys")
    assert all(key in text for key, _, _ in describe())


def test_a_dry_run_tells_and_writes_nothing(parts, tmp_path):
    out = tmp_path / "run"
    before = sorted(tmp_path.rglob("*"))
    text = cli("train", *settings(parts, out, **{"data.flip": "true", "accumulation": 2}), "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before and not out.exists()
    assert "rank: 2" in text and "4 x 2 variants to train on, 2 to validate on" in text
    # Counted on the UNet here, not read from the run.
    unet = tiny.components()["unet"]
    layers = [m for n, m in unet.named_modules() if n.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    trainable = sum(2 * (m.in_features + m.out_features) for m in layers)
    share = 100 * trainable / sum(p.numel() for p in unet.parameters())
    assert f"{len(layers)} per intrinsic" in text and f"{trainable:,}, {share:.3f} % of the base" in text
    assert "s a step on cpu" in text and "GiB" in text


def test_missing_labels_are_counted_and_listed(parts, tmp_path):
    photos = tmp_path / "data" / "photos"
    photos.mkdir(parents=True)
    (tmp_path / "data" / "normals").mkdir()
    for file in sorted(parts[1].glob("*_rgb.png")):
        (photos / file.name.replace("_rgb", "")).write_bytes(file.read_bytes())
    for file in sorted(parts[1].glob("*.npz"))[:4]:
        (tmp_path / "data" / "normals" / file.name).write_bytes(file.read_bytes())
    given = settings((parts[0], tmp_path / "data"), tmp_path / "run", **{"data.val_count": 1})
    expected = "2 of 6 photos have no label of normals and are skipped: 0004, 0005"
    assert expected in cli("train", *given, "--dry-run")
    assert expected in cli("train", *given)
    assert expected in (tmp_path / "run" / "problems.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora.rnk": 2}, "did you mean lora.rank?"),
        ({"data.path": "nowhere"}, "data.path=nowhere: folder not found."),
        ({"base": "nowhere/none/no"}, "nowhere/none/no"),
        ({"lora.targets": "[to_q,to_x]"}, "no layer called to_x"),
        ({"data.val_count": 6}, "are to be held out"),
        ({"intrinsics": "[shadow]", "custom.shadow.prompt": "shadow"}, "shadow"),
        pytest.param(
            {"optimizer.name": "adamw8bit"},
            "bitsandbytes",
            marks=pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"),
        ),
        ({"timestep": 1000}, "Timestep 1000"),
    ],
)
def test_mistakes_end_with_one_sentence(parts, tmp_path, changes, expected):
    text = cli("train", *settings(parts, tmp_path / "run", **changes), status=1)
    (line,) = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert expected in line and "Traceback" not in text
    assert not (tmp_path / "run").exists()  # or the corrected command would reject it


def test_a_refused_run_is_not_in_the_way_of_the_mended_one(parts, tmp_path):
    run = tmp_path / "run"
    photos = tmp_path / "data" / "photos"
    photos.mkdir(parents=True)
    (tmp_path / "data" / "normals").mkdir()
    for i in range(4):  # photos and labels that do not match, which encoding detects
        (photos / f"{i}.png").write_bytes((parts[1] / f"{i:04d}_rgb.png").read_bytes())
        np.savez(tmp_path / "data" / "normals" / f"{i}.npz", normals=np.ones((8, 32, 3), np.float32))
    broken = settings((parts[0], tmp_path / "data"), run, **{"data.resolution": 16, "data.val_count": 0})
    text = cli("train", *broken, status=1)
    assert "None of the 4 samples can be read" in text and not (run / "config.yaml").exists()
    cli("train", *settings(parts, run))
    assert "holds a run with data.path=" in cli("train", *broken, status=1)
    assert "holds a run with data.path=" in cli("train", *broken, "--dry-run", status=1)


def test_validation_data_that_is_not_there_is_named(parts, tmp_path):
    text = cli("train", *settings(parts, tmp_path / "run"), "data.val_path=nowhere", status=1)
    assert "data.val_path=nowhere: folder not found; set it to other data, or to null" in text


def test_nothing_given_is_a_question():
    assert "--preset" in cli("train", "--dry-run", status=2)


def test_label_train_extract_evaluate(parts, tmp_path):
    """The whole cycle: a tiny teacher labels rendered photos, a LoRA learns them, its maps are scored."""
    base, scenes = parts
    photos, data, run, maps = (tmp_path / name for name in ("photos", "data", "run", "maps"))
    photos.mkdir()
    for file in scenes.glob("*_rgb.png"):
        (photos / file.name.replace("_rgb", "")).write_bytes(file.read_bytes())
    teacher = IntrinsicLoRAPipeline(**tiny.components(seed=5), default_processing_resolution=32)
    tiny.write_loras(tmp_path / "teachers_loras", teacher.unet, ("normals", "depth"))
    teacher.load_intrinsics(tmp_path / "teachers_loras")
    teacher.save_pretrained(tmp_path / "teacher")

    cli("label", photos, "--out", data, "--teacher", "intrinsic-lora", "--model", tmp_path / "teacher")
    given = settings((base, data), run, intrinsics="[normals,depth]", **{"optimizer.lr": 1e-2, "max_steps": 24})
    cli("train", *given, "data.val_count=0")
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]
    for name in ("normals", "depth"):
        early, late = (sum(row[name] for row in some) for some in (losses[:8], losses[-8:]))
        assert late < early
    cli("extract", photos, "--out", maps, "--base", base, "--loras", run, "--format", "npz", "--resolution", 32)
    text = cli("evaluate", maps, scenes, "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())["summary"]
    assert scores["normals"]["images"] == 6 and 0 < scores["normals"]["mean_angle"] < 180
    assert scores["depth"]["images"] == 6 and "mean_angle" in text


def test_a_custom_intrinsic_from_pictures_to_maps(parts, tmp_path):
    """A folder of pictures and a prompt are enough; the map comes out of `extract` under its name."""
    from PIL import Image

    base, scenes = parts
    data, run = tmp_path / "data", tmp_path / "run"
    (data / "photos").mkdir(parents=True)
    (data / "floor").mkdir()
    for file in scenes.glob("*.npz"):
        up = np.load(file)["normals"][..., 1] > 0.7
        Image.fromarray((up * 255).astype(np.uint8)).save(data / "floor" / f"{file.stem}.png")
        (data / "photos" / f"{file.stem}.png").write_bytes((scenes / f"{file.stem}_rgb.png").read_bytes())
    own = {"custom.floor.prompt": "floor", "custom.floor.channels": 1, "custom.floor.convention": "linear"}
    cli("train", *settings((base, data), run, intrinsics="[floor]", **own))
    maps = tmp_path / "maps"
    cli("extract", data / "photos", "--out", maps, "--base", base, "--loras", run, "--format", "npz,png")
    floor = np.load(maps / "0000.npz")["floor"]
    assert floor.shape[:2] == (32, 32) and np.isfinite(floor).all()
    assert (maps / "0000_floor.png").exists() and Path(run / "README.md").read_text().count("floor") > 2
