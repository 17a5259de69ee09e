"""The command line end to end: a tiny real pipeline saved to disk, real pictures, no mocks."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from intrinsic_lora.cli.main import app
from intrinsic_lora.diffusers_pipeline.single_step import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics.exr import read_exr
from intrinsic_lora.intrinsics.lora import read_header, read_lora, write_lora
from intrinsic_lora.intrinsics.pictures import read_picture
from intrinsic_lora.intrinsics.vocabulary import Intrinsic
from intrinsic_lora.tests.support import tiny
from intrinsic_lora.tests.support.closeness import MAP_ERROR
from intrinsic_lora.train.scenes.render import render, sample_scene
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

NAMES = ("normals", "depth", "albedo", "shading")
MAPS = (*NAMES, "confidence")


def cli(*args, status=0):
    """Run the app; returns stdout and stderr in one line of single spaces, without the frame of usage errors."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == status, result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception  # a sentence, never a traceback
    return " ".join(result.output.replace("│", " ").replace("┃", " ").split())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Save a pipeline with its four LoRAs in `loras/`, resolution 16."""
    folder = tmp_path_factory.mktemp("base")
    pipe = IntrinsicLoRAPipeline(**tiny.components(), default_processing_resolution=16)
    tiny.write_loras(folder / "written", pipe.unet, NAMES, timestep=100)
    pipe.load_intrinsics(folder / "written")
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Save the same base as a stock Stable Diffusion folder, without LoRAs."""
    folder = tmp_path_factory.mktemp("bare")
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = DDPMScheduler(steps_offset=1, clip_sample=False)  # else it warns
    StableDiffusionPipeline(**tiny.components() | {"scheduler": scheduler}, **parts).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two pictures of one size, one of another, one with alpha."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (24, 32, 3)), ("b.jpg", (24, 32, 3)), ("c.png", (40, 20, 3)), ("d.png", (24, 32, 4))):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, size[2]), dtype=np.uint8))
        coarse.resize(size[1::-1]).save(folder / name)
    return folder


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def made(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# help


def test_help_is_instant_and_teaches():
    code = "import sys, intrinsic_lora.cli.main; print({'torch', 'diffusers', 'numpy', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    assert cli("--version").startswith("intrinsic-lora ")
    overview = cli("--help")
    for command in ("extract", "info", "convert", "render-scenes", "evaluate"):
        assert command in overview
        assert f"intrinsic-lora {command} " in cli(command, "--help")  # an example to copy


# extract


def test_extract_writes_what_the_pipeline_says(base, photos, tmp_path):
    out = tmp_path / "maps"
    text = cli("extract", photos, "--out", out, "--base", base, "--format", "png,npz,exr", "--batch-size", 2)
    assert "4 extracted, 0 skipped (already exist), 0 failed" in text
    endings = (*(f"_{name}.png" for name in MAPS), "_sheet.png", ".npz", ".exr")
    assert {path.name for path in out.iterdir()} == {f"{stem}{ending}" for stem in "abcd" for ending in endings}

    pipe = IntrinsicLoRAPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    for photo in sorted(photos.iterdir()):
        picture = read_picture(photo)
        maps = pipe(picture.rgb)
        arrays = np.load(out / f"{photo.stem}.npz")
        height, width = picture.rgb.shape[-2:]
        assert {k: v.shape for k, v in arrays.items() if k != "mask"} == {
            "normals": (height, width, 3),
            "depth": (height, width),
            "albedo": (height, width, 3),
            "shading": (height, width, 1),
            "confidence": (height, width),
        }
        layers = read_exr(out / f"{photo.stem}.exr")
        for name in MAPS:
            assert arrays[name].dtype == np.float32
            tensor = torch.from_numpy(arrays[name])
            tensor = tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor[None]
            torch.testing.assert_close(tensor, maps[name][0], atol=MAP_ERROR, rtol=0)  # batched here, alone there
            assert torch.equal(layers[name], tensor)
            assert Image.open(out / f"{photo.stem}_{name}.png").size == (width, height)
        for name, pictures in maps.visualize().items():
            drawn = np.asarray(pictures[0]).astype(int)
            drawn = drawn[..., None] if drawn.ndim == 2 else drawn
            ours = pixels(out / f"{photo.stem}_{name}.png")
            ours = ours[..., None] if ours.ndim == 2 else ours
            assert np.abs(drawn - ours).max() <= 1


def test_alpha_becomes_a_mask(base, photos, tmp_path):
    cli("extract", photos / "d.png", photos / "a.png", "--out", tmp_path / "maps", "--base", base, "--format", "npz")
    mask = np.load(tmp_path / "maps" / "d.npz")["mask"]
    np.testing.assert_allclose(mask, pixels(photos / "d.png")[..., 3] / 255, atol=1e-6)
    assert "mask" not in np.load(tmp_path / "maps" / "a.npz")


def test_npz_alone_writes_the_sheet_but_no_maps_as_png(base, photos, tmp_path):
    cli(
        "extract",
        photos / "a.png",
        "--out",
        tmp_path / "m",
        "--base",
        base,
        "--format",
        "npz",
        "--intrinsics",
        "depth",
    )
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"a.npz", "a_sheet.png"}
    assert set(np.load(tmp_path / "m" / "a.npz")) == {"depth", "confidence"}


def test_frames_and_polarity_apply_to_pictures_only(base, photos, tmp_path):
    def run(name, *options):
        options = ("--intrinsics", "depth,normals", "--format", "png,npz", *options)
        cli("extract", photos / "a.png", "--out", tmp_path / name, "--base", base, *options)
        return pixels(tmp_path / name / "a_normals.png"), pixels(tmp_path / name / "a_depth.png")

    normals, near_white = run("opengl")
    arrays = np.load(tmp_path / "opengl" / "a.npz")
    np.testing.assert_allclose(normals / 255, arrays["normals"] * 0.5 + 0.5, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(near_white / 255, 1 - arrays["depth"], atol=0.5 / 255 + 1e-6)
    for frame, flipped in (("directx", [1]), ("opencv", [1, 2]), ("controlnet", [0])):
        turned, near_black = run(frame, "--normals", frame, "--depth", "near-black")
        expected = normals.copy()
        expected[..., flipped] = 255 - expected[..., flipped]
        assert np.abs(turned - expected).max() <= 1
        assert np.abs(near_black + near_white - 255).max() <= 1
        assert np.array_equal(np.load(tmp_path / frame / "a.npz")["normals"], arrays["normals"])


def test_png16_has_sixteen_bits(base, photos, tmp_path):
    cli("extract", photos / "a.png", "--out", tmp_path / "m", "--base", base, "--format", "png16", "--format", "npz")
    picture = read_picture(tmp_path / "m" / "a_normals.png")
    assert picture.bit_depth == 16
    normals = np.load(tmp_path / "m" / "a.npz")["normals"]
    np.testing.assert_allclose(picture.rgb[0].permute(1, 2, 0) * 2 - 1, normals, atol=1 / 65535 + 2e-6)


def test_resolution_and_upsampling_reach_the_pipeline(base, photos, tmp_path):
    def albedo(name, *options):
        cli("extract", photos / "a.png", "--out", tmp_path / name, "--base", base, "--format", "npz", *options)
        return np.load(tmp_path / name / "a.npz")["albedo"].transpose(2, 0, 1)

    pipe = IntrinsicLoRAPipeline.from_pretrained(base)
    photo = read_picture(photos / "a.png").rgb
    plain = albedo("plain", "--upsample", "bilinear")
    np.testing.assert_allclose(plain, pipe(photo, upsample="bilinear").albedo[0], atol=MAP_ERROR)
    native = albedo("native", "--resolution", 0)
    np.testing.assert_allclose(native, pipe(photo, processing_resolution=0).albedo[0], atol=MAP_ERROR)
    default = albedo("default")
    assert abs(plain - default).max() > 5 * MAP_ERROR
    assert abs(native - default).max() > 5 * MAP_ERROR


def test_loras_given_apart_equal_those_saved_with_the_base(base, bare, photos, tmp_path):
    for name, options in (("whole", ["--base", base]), ("parts", ["--base", bare, "--loras", base / "loras"])):
        cli("extract", photos / "a.png", "--out", tmp_path / name, "--format", "npz", "--resolution", 16, *options)
    whole, parts = (np.load(tmp_path / name / "a.npz") for name in ("whole", "parts"))
    assert all(np.array_equal(whole[name], parts[name]) for name in NAMES)


def test_a_rerun_makes_only_what_is_missing(base, photos, tmp_path):
    out = tmp_path / "maps"
    command = ("extract", photos, "--out", out, "--base", base)
    cli(*command)
    first = made(out)
    (out / "b_depth.png").unlink()
    (out / "a_depth.png").write_bytes(b"mine")
    assert "1 extracted, 3 skipped (already exist), 0 failed" in cli(*command)
    assert made(out) == {**first, "a_depth.png": b"mine"}
    assert "4 extracted, 0 skipped (already exist), 0 failed" in cli(*command, "--overwrite")
    assert made(out) == first
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_an_unreadable_picture_is_reported_and_the_rest_goes_on(base, photos, tmp_path):
    (photos / "b.jpg").write_bytes((photos / "b.jpg").read_bytes()[:100])
    (photos / "notes.png").write_text("not a picture")
    Image.new("RGB", (400, 8)).save(photos / "wide.png")  # beyond 16:1: readable, but refused by the pipeline
    text = cli("extract", photos, "--out", tmp_path / "maps", "--base", base, status=1)
    assert "3 extracted, 0 skipped (already exist), 3 failed" in text
    for name in ("b.jpg", "notes.png", "wide.png"):
        assert f"Failed: {photos / name}" in text
    assert (tmp_path / "maps" / "d_sheet.png").exists()
    assert not (tmp_path / "maps" / "wide_sheet.png").exists()


def test_pictures_refused_as_a_batch_are_each_reported(base, photos, tmp_path):
    for i in range(3):
        Image.new("RGB", (400, 8)).save(photos / f"wide{i}.png")
    text = cli("extract", photos, "--out", tmp_path / "maps", "--base", base, "--batch-size", 8, status=1)
    assert "4 extracted, 0 skipped (already exist), 3 failed" in text
    assert all(f"Failed: {photos / f'wide{i}.png'}:" in text for i in range(3))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--intrinsics", "normals,roughness"], "'roughness' is not one of normals, depth, albedo, shading"),
        (["--format", "jpg"], "'jpg' is not one of png, png16, exr, npz"),
        (["--format", "png,png16"], "same file names"),
        (["--resolution", "100"], "100 is not a multiple of 8"),
        (["--batch-size", "0"], "--batch-size"),
        (["--normals", "blender"], "'blender' is not one of"),
    ],
)
def test_bad_options_are_usage_errors(options, sentence, photos, tmp_path):
    assert sentence in cli("extract", photos, "--out", tmp_path / "maps", *options, status=2)


def test_results_never_overwrite_pictures_or_each_other(photos, tmp_path):
    assert "does not exist" in cli("extract", photos / "zzz.png", "--out", tmp_path / "m", status=2)
    assert "choose another folder" in cli("extract", photos, "--out", photos, status=2)
    (tmp_path / "empty").mkdir()
    assert "contains no pictures" in cli("extract", tmp_path / "empty", "--out", tmp_path / "m", status=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "A.png").write_bytes((photos / "b.jpg").read_bytes())
    text = cli("extract", photos, tmp_path / "other", "--out", tmp_path / "m", status=2)
    assert "A.png" in text and "would have the same names" in text
    (photos / "a_depth.png").write_bytes((photos / "a.png").read_bytes())
    text = cli("extract", photos / "a.png", photos / "a_depth.png", "--out", photos, status=2)
    assert "would overwrite the picture" in text
    assert not (tmp_path / "m").exists()


def test_failures_before_the_first_picture(base, bare, photos, tmp_path):
    command = ("extract", photos, "--out", tmp_path / "m")
    assert "--loras" in cli(*command, "--base", bare, status=1)
    one = base / "loras" / "intrinsic_lora_depth.safetensors"
    text = cli(*command, "--base", bare, "--loras", one, "--intrinsics", "depth,normals", status=1)
    assert "No LoRA was found for normals; loaded: depth" in text
    assert "'cuda:99' cannot be used here" in cli(*command, "--base", base, "--device", "cuda:99", status=1)
    assert "No file or folder" in cli(*command, "--base", tmp_path / "nowhere", status=2)
    (tmp_path / "base.safetensors").write_bytes(b"damaged")
    assert "Error:" in cli(
        *command, "--base", tmp_path / "base.safetensors", "--base-config", bare, "--loras", one, status=1
    )


# info and convert


def test_info_says_what_a_file_is(base):
    text = cli("info", base / "loras" / "intrinsic_lora_albedo.safetensors")
    lora = read_lora(base / "loras" / "intrinsic_lora_albedo.safetensors")
    for words in (
        "format kohya",
        "intrinsic albedo",
        "base model tiny",
        f"modules {len(lora.weights)} (to_k x",
        "rank 4",
    ):
        assert words in text
    assert "alpha 4.5" in text
    assert f"parameters {sum(a.numel() + b.numel() for a, b, _ in lora.weights.values()):,}" in text
    assert "intrinsic_lora.timestep 100" in text


def test_info_refuses_in_one_sentence(tmp_path):
    assert "does not exist" in cli("info", tmp_path / "none.safetensors", status=2)
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 20)
    assert "damaged" in cli("info", tmp_path / "bad.safetensors", status=1)


def test_convert_keeps_every_number(tmp_path):
    """The released files' keys in a `.bin`: half precision, no alpha, the name says normals."""
    unet = tiny.components()["unet"]
    weights = tiny.random_lora(unet, rank=3)
    state = {}
    for module, (a, b, _) in weights.items():
        attention, layer = module.removesuffix(".0").rsplit(".", 1)
        state[f"unet.{attention}.processor.{layer}_lora.down.weight"] = a.half()
        state[f"unet.{attention}.processor.{layer}_lora.up.weight"] = b.half()
    torch.save(state, tmp_path / "normal.bin")
    target = tmp_path / "out.safetensors"
    assert "normals" in cli("convert", tmp_path / "normal.bin", target)
    lora = read_lora(target, unet)
    assert lora.format == "kohya" and lora.intrinsic == "normals"
    assert lora.weights.keys() == weights.keys()
    for module, (a, b, _) in weights.items():
        assert torch.equal(lora.weights[module][0], a.half().float())
        assert torch.equal(lora.weights[module][1], b.half().float())
        assert lora.weights[module][2] == 3
    assert lora.header.entries["intrinsic_lora.prompt"] == "surface normal"

    before = target.read_bytes()
    assert "already exists" in cli("convert", tmp_path / "normal.bin", target, status=2)
    assert target.read_bytes() == before
    cli("convert", tmp_path / "normal.bin", target, "--overwrite", "--intrinsic", "depth")
    assert read_lora(target).intrinsic == "depth"


def test_convert_keeps_what_the_file_says_of_itself(tmp_path):
    weights = tiny.random_lora(tiny.components()["unet"], rank=2, alpha=5.0)
    fields = {"timestep": 50, "base_model": "tiny", "training": {"steps": 7}, "extra": {"modelspec.author": "me"}}
    write_lora(tmp_path / "in.safetensors", weights, intrinsic=Intrinsic("normals", "odd", 3, "opengl"), **fields)
    cli("convert", tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    first, second = (read_lora(tmp_path / f"{name}.safetensors") for name in ("in", "out"))
    assert second.header.entries == first.header.entries
    # Declaring another intrinsic also drops the metadata of the old one.
    cli("convert", tmp_path / "in.safetensors", tmp_path / "depth.safetensors", "--intrinsic", "depth")
    metadata = read_lora(tmp_path / "depth.safetensors").header.entries
    assert metadata["intrinsic_lora.prompt"] == "depth map"
    assert metadata["intrinsic_lora.timestep"] == "50"


def test_convert_keeps_the_image_channels_a_lora_was_trained_with(tmp_path):
    weights = tiny.random_lora(tiny.components()["unet"])
    channels = {"intrinsic_lora.image_channels": "ab" * 8, "intrinsic_lora.image_channels_origin": "copy"}
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_lora(source, weights, intrinsic="depth", method="multi-step", extra=channels)
    cli("convert", source, target)
    header = read_header(target)
    assert (header.method, header.image_channels, header.image_channels_origin) == ("multi-step", "ab" * 8, "copy")


FLUX = "transformer.single_transformer_blocks.0.attn.to_q"
UNRESOLVED = "lora_unet.down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("module", "words"),
    [(FLUX, "; this LoRA was made for Flux or another transformer model."), (UNRESOLVED, "Stable Diffusion's UNet.")],
)
def test_convert_refuses_what_neither_diffusers_nor_comfyui_could_load(tmp_path, module, words):
    source, target = tmp_path / "normals.safetensors", tmp_path / "out.safetensors"
    save_file({f"{module}.lora_down.weight": torch.ones(4, 32), f"{module}.lora_up.weight": torch.ones(32, 4)}, source)
    text = cli("convert", source, target, status=1)
    assert f"{source} cannot be converted: {module!r} is not the name of a module of" in text and words in text
    assert not target.exists()


def test_convert_refusals(tmp_path):
    weights = tiny.random_lora(tiny.components()["unet"])
    state = {f"unet.{name}.lora_A.weight": a for name, (a, _, _) in weights.items()}
    state |= {f"unet.{name}.lora_B.weight": b for name, (_, b, _) in weights.items()}
    torch.save(state, tmp_path / "x.bin")
    assert "--intrinsic" in cli("convert", tmp_path / "x.bin", tmp_path / "y.safetensors", status=2)
    assert "is not one of" in cli(
        "convert", tmp_path / "x.bin", tmp_path / "y.safetensors", "--intrinsic", "roughness", status=2
    )
    assert "must end in .safetensors" in cli("convert", tmp_path / "x.bin", tmp_path / "y.bin", status=2)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.bin"]


# scenes and evaluation


def test_render_scenes(tmp_path):
    out = tmp_path / "scenes"
    assert "2 rendered, 0 skipped (already exist)" in cli(
        "render-scenes", "--out", out, "--count", 2, "--seed", 5, "--size", 32
    )
    assert {path.name for path in out.iterdir()} == {"0000_rgb.png", "0000.npz", "0001_rgb.png", "0001.npz"}
    truth = np.load(out / "0001.npz")
    expected = render(sample_scene(np.random.default_rng([5, 1])), 32)
    for name in ("normals", "depth", "depth_metric", "albedo", "shading", "rgb_linear"):
        assert np.array_equal(truth[name], expected[name])
        assert truth[name].dtype == np.float32
    assert "room" in str(truth["caption"])
    np.testing.assert_allclose(truth["albedo"] * truth["shading"], truth["rgb_linear"], atol=1e-6)
    linear = truth["rgb_linear"].astype(np.float64)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(pixels(out / "0001_rgb.png") / 255, srgb.clip(0, 1), atol=0.5 / 255 + 1e-5)

    before = made(out)
    assert "1 rendered, 2 skipped (already exist)" in cli(
        "render-scenes", "--out", out, "--count", 3, "--seed", 5, "--size", 32
    )
    after = made(out)
    assert {name: after[name] for name in before} == before and "0002.npz" in after
    assert "scenes of seed 5 with 32 pixels" in cli("render-scenes", "--out", out, "--count", 3, "--seed", 6, status=1)
    assert made(out) == after


def test_from_scenes_to_scores(base, tmp_path):
    scenes, maps, scores = tmp_path / "scenes", tmp_path / "maps", tmp_path / "scores.json"
    cli("render-scenes", "--out", scenes, "--count", 2, "--seed", 1, "--size", 32)
    cli("extract", scenes, "--out", maps, "--base", base, "--format", "npz")
    text = cli("evaluate", maps, scenes, "--json", scores, "--per-image")
    metrics = ("median_angle", "delta1", "si_rmse", "confidence_spearman")
    for words in ("0001", "Mean over images", "images 2 2 2 2", *metrics):
        assert words in text
    report = json.loads(scores.read_text())
    assert set(report["images"]) == {"0000", "0001"}
    pred, gt = np.load(maps / "0000_rgb.npz"), np.load(scenes / "0000.npz")
    angle = np.degrees(np.arccos((pred["normals"] * gt["normals"]).sum(-1).clip(-1, 1))).mean()
    assert report["images"]["0000"]["normals"]["mean_angle"] == pytest.approx(angle, abs=0.01)


def test_evaluating_the_truth_is_perfect_and_nan_becomes_null(tmp_path):
    cli("render-scenes", "--out", tmp_path / "scenes", "--count", 2, "--seed", 1, "--size", 32)
    scores = tmp_path / "scores.json"
    (tmp_path / "perfect").mkdir()
    truth = dict(np.load(tmp_path / "scenes" / "0000.npz"))
    np.savez(tmp_path / "perfect" / "0000_rgb.npz", **truth, confidence=np.ones((32, 32)))
    text = cli("evaluate", tmp_path / "perfect", tmp_path / "scenes", "--json", scores)
    assert "1 without a match in ground truth: 0001" in text
    summary = json.loads(scores.read_text())["summary"]
    assert summary["normals"]["mean_angle"] == pytest.approx(0, abs=1e-3)
    assert summary["depth"]["delta1"] == 1
    assert summary["albedo"]["ssim"] == summary["shading"]["ssim"] == 1
    assert summary["normals"]["confidence_spearman"] is None


def test_evaluate_refuses_in_one_sentence(tmp_path):
    (tmp_path / "a").mkdir()
    assert "Error:" in cli("evaluate", tmp_path / "a", tmp_path / "a", status=1)
    assert "does not exist" in cli("evaluate", tmp_path / "a", tmp_path / "b", status=2)


def test_evaluate_writes_a_report_and_reads_names_as_text(tmp_path):
    cli("render-scenes", "--out", tmp_path / "scenes", "--count", 2, "--seed", 1, "--size", 32)
    (tmp_path / "perfect").mkdir()
    for name in ("0000", "[bold]0001"):
        np.savez(tmp_path / "perfect" / f"{name}.npz", **np.load(tmp_path / "scenes" / "0000.npz"))
        np.savez(tmp_path / "scenes" / f"{name}.npz", **np.load(tmp_path / "scenes" / "0000.npz"))
    report = tmp_path / "report.html"
    assert "[bold]0001" in cli(
        "evaluate", tmp_path / "perfect", tmp_path / "scenes", "--report", report, "--per-image"
    )
    assert report.read_text().count("<tr><th>worst") == 4  # intrinsics
    text = cli("evaluate", tmp_path / "perfect", tmp_path / "scenes", "--report", tmp_path / "report.pdf", status=2)
    assert "must end in .html" in text
