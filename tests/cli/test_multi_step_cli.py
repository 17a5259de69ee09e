"""Multi-step LoRAs on the command line: trained, extracted, relit, and refused where they do not fit."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from intrinsic_lora import IntrinsicLoRAMultiStepPipeline, IntrinsicLoRAPipeline
from intrinsic_lora.cli.main import app
from intrinsic_lora.intrinsics.pictures import read_picture
from intrinsic_lora.tests.support import tiny, tiny_training
from PIL import Image
from typer.testing import CliRunner

NAMES = ("normals", "depth")
STEPS = 3


def cli(*arguments, status=0) -> str:
    result = CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"}
    )
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Write base/: a small SD 2.1; loras/: two multi-step LoRAs written by `train`; photos/: two sizes."""
    folder = tmp_path_factory.mktemp("multi_step")
    parts = tiny.components(linear_projection=True)
    parts["scheduler"] = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = IntrinsicLoRAPipeline(**parts, default_processing_resolution=32)
    DiffusionPipeline.save_pretrained(pipe, folder / "base")
    tiny.write_loras(folder / "single", pipe.unet, NAMES, timestep=100)
    scenes = tiny_training.write_scenes(folder / "scenes", 4)
    settings = {
        "base": folder / "base",
        "data.path": scenes,
        "out": folder / "loras",
        "intrinsics": f"[{','.join(NAMES)}]",
        "method": "multi-step",
        "image_channels": "copy",
        "lora.targets": "[to_q,to_k,to_v,to_out.0,conv_in]",
        "data.resolution": 32,
        "data.val_count": 0,
        "optimizer.lr": 0.1,  # enough to tell a map with the LoRA from one without
        "max_steps": 2,
        "batch_size": 2,
        "log": "files",
    }
    cli("train", *(f"{key}={value}" for key, value in settings.items()))
    (folder / "photos").mkdir()
    for i, size in enumerate(((32, 40), (32, 40), (48, 32))):
        coarse = np.random.default_rng(i).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size[::-1]).save(folder / "photos" / f"{i}.png")
    return folder


def maps_of(pipe, photo, **options):
    pipe.set_progress_bar_config(disable=True)
    output = pipe(read_picture(photo).rgb, **options).maps()
    return {name: output[name][0].permute(1, 2, 0).numpy() for name in NAMES}  # (H, W, C)


def extracted(file):
    with np.load(file) as arrays:
        return {name: arrays[name].reshape(*arrays[name].shape[:2], -1) for name in NAMES}


def assert_close(ours, theirs):
    for name in NAMES:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)


def test_extract_samples_what_the_pipeline_samples(made, tmp_path):
    base, out = made / "base", tmp_path / "maps"
    given = ["--base", base, "--loras", made / "loras", "--format", "npz", "--out", out, "--seed", 7]
    given += ["--steps", STEPS, "--guidance", 1.5, "--resolution", 32]
    assert "3 extracted" in cli("extract", made / "photos", *given)
    pipe = IntrinsicLoRAMultiStepPipeline.from_pretrained(base)
    pipe.load_intrinsics(made / "loras")
    options = {"num_inference_steps": STEPS, "guidance_scale": 1.5, "processing_resolution": 32}
    for photo in sorted((made / "photos").iterdir()):
        noise = torch.Generator().manual_seed(7)  # for every picture, so that the order does not matter
        wanted = maps_of(pipe, photo, generator=noise, **options)
        assert_close(extracted(out / f"{photo.stem}.npz"), wanted)
    before = (out / "1.npz").read_bytes()
    (out / "1.npz").unlink()
    assert "1 extracted, 2 skipped (already exist)" in cli("extract", made / "photos", *given)
    assert (out / "1.npz").read_bytes() == before


def test_a_saved_pipeline_brings_its_loras_and_defaults(made, tmp_path):
    pipe = IntrinsicLoRAMultiStepPipeline.from_pretrained(made / "base")
    pipe.load_intrinsics(made / "loras")
    pipe.save_pretrained(tmp_path / "saved")
    photo = made / "photos" / "0.png"
    given = [photo, "--base", tmp_path / "saved", "--format", "npz"]
    cli("extract", *given, "--resolution", 32, "--out", tmp_path / "maps")
    wanted = maps_of(pipe, photo, generator=torch.Generator().manual_seed(0), processing_resolution=32)
    assert_close(extracted(tmp_path / "maps" / "0.npz"), wanted)
    # The same folder with single-step LoRAs beside them: the fast ones are used unless others are named.
    single = IntrinsicLoRAPipeline.from_pretrained(tmp_path / "saved")
    single.load_intrinsics(made / "single")
    single.save_pretrained(tmp_path / "saved")
    cli("extract", *given, "--resolution", 32, "--out", tmp_path / "fast")
    assert_close(extracted(tmp_path / "fast" / "0.npz"), maps_of(single, photo, processing_resolution=32))
    slow = ["--loras", tmp_path / "saved" / "loras_multi_step", "--resolution", 32]
    cli("extract", *given, *slow, "--out", tmp_path / "slow")
    assert_close(extracted(tmp_path / "slow" / "0.npz"), wanted)


def test_relight_samples_the_same_maps_each_time(made, tmp_path):
    given = ["--base", made / "base", "--loras", made / "loras", "--resolution", 32]
    outs = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for out in outs:
        cli("relight", made / "photos" / "2.png", *given, "--out", out)
    assert np.array_equal(*(np.load(out)["relit"] for out in outs))


def test_what_does_not_fit_is_one_sentence(made, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for kind, name in (("single", "depth"), ("loras", "normals")):
        file = f"intrinsic_lora_{name}.safetensors"
        (mixed / file).write_bytes((made / kind / file).read_bytes())

    def refused(*given) -> str:
        text = cli("extract", made / "photos", "--base", made / "base", "--out", tmp_path / "out", *given, status=1)
        assert text.startswith("Error: ") and text.count(". ") == 0 and not (tmp_path / "out").exists()
        return text

    output = refused("--loras", mixed)
    assert "for normals are multi-step and those for depth single-step" in output and "separate folder" in output
    for option in (["--steps", 4], ["--guidance", 2], ["--seed", 0]):
        assert "these are single-step" in refused("--loras", made / "single", *option)
    assert "one picture at a time" in refused("--loras", made / "loras", "--batch-size", 2)
    assert "--steps" in cli("extract", "--help") and "multi-step" in cli("extract", "--help")
