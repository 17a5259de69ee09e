"""Loading and saving: bases from folders, single files and by custom_pipeline=; LoRAs from wherever they are."""

import doctest
import json
import shutil
from dataclasses import replace
from pathlib import Path

import intrinsic_lora
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.diffusers_pipeline.base import EMBEDDED
from intrinsic_lora.intrinsics import INTRINSICS
from intrinsic_lora.intrinsics.lora import LoRAHeader, read_lora, write_lora
from intrinsic_lora.tests.support import tiny
from intrinsic_lora.tests.support.closeness import MAP_ERROR
from safetensors.torch import save_file

NAMES = tuple(INTRINSICS)
CLONE = Path(intrinsic_lora.__file__).parent / "diffusers_pipeline"
PHOTO = torch.rand(3, 32, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """sd/ a stock Stable Diffusion folder, loras/ one LoRA per intrinsic, sd.safetensors the base as one file."""
    folder = tmp_path_factory.mktemp("base")
    parts = tiny.components()
    stock = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    stock.save_pretrained(folder / "sd")
    save_file(tiny.ldm_checkpoint(parts), folder / "sd.safetensors")
    tiny.write_loras(folder / "loras", parts["unet"], NAMES, timestep=700)
    return folder


def load(base: Path, loras: Path | None = None) -> IntrinsicLoRAPipeline:
    pipe = IntrinsicLoRAPipeline.from_pretrained(base)
    if loras:
        pipe.load_intrinsics(loras)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def predict(pipe) -> torch.Tensor:
    """All four latents of one picture (4, 1, C, h, w)."""
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(PHOTO, processing_resolution=32, output_latent=True).latents
    return torch.stack([latents[name] for name in NAMES])


@pytest.fixture(scope="module")
def wanted(files) -> torch.Tensor:
    return predict(load(files / "sd", files / "loras"))


def test_custom_pipeline_by_path(files, wanted):
    pipe = DiffusionPipeline.from_pretrained(files / "sd", custom_pipeline=str(CLONE), trust_remote_code=True)
    assert type(pipe) is IntrinsicLoRAPipeline  # the installed class: isinstance holds, and no second copy runs
    assert pipe.intrinsics == ()
    pipe.load_intrinsics(files / "loras")
    assert torch.equal(predict(pipe), wanted)


def test_custom_pipeline_asks_for_trust(files):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(files / "sd", custom_pipeline=str(CLONE))


def test_from_pipe_shares_components(files, wanted):
    stock = StableDiffusionPipeline.from_pretrained(files / "sd", safety_checker=None)
    pipe = IntrinsicLoRAPipeline.from_pipe(stock)
    assert pipe.unet is stock.unet
    pipe.load_intrinsics(files / "loras")
    assert torch.equal(predict(pipe), wanted)


@pytest.mark.parametrize("door", ["diffusers", "ours"])
def test_save_and_reload(files, wanted, tmp_path, door):
    pipe = load(files / "sd", files / "loras")
    pipe.register_to_config(default_processing_resolution=64)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "IntrinsicLoRAPipeline"]
    assert (tmp_path / "pipeline.py").read_bytes() == (CLONE / "pipeline.py").read_bytes()

    if door == "diffusers":
        again = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    else:  # the installed class needs no permission to run itself, and runs no code of the folder's
        (tmp_path / "pipeline.py").write_text("raise RuntimeError('ran')")
        again = IntrinsicLoRAPipeline.from_pretrained(tmp_path)
    assert type(again) is IntrinsicLoRAPipeline
    assert again.intrinsics == NAMES and again.config.default_processing_resolution == 64
    assert torch.equal(predict(again), wanted)
    assert again.loras["depth"].header.entries["intrinsic_lora.timestep"] == "700"
    assert again.loras["depth"].header.entries["intrinsic_lora.base_model"] == "tiny"


def test_saving_again_forgets_what_was_unloaded(files, tmp_path):
    pipe = load(files / "sd", files / "loras")
    pipe.save_pretrained(tmp_path)
    pipe.unload_intrinsics()
    assert pipe.intrinsics == ()
    pipe.load_intrinsics(files / "loras" / "intrinsic_lora_depth.safetensors")
    pipe.save_pretrained(tmp_path)
    assert load(tmp_path).intrinsics == ("depth",)


def test_saving_over_its_own_folder_keeps_the_loras(files, wanted, tmp_path):
    load(files / "sd", files / "loras").save_pretrained(tmp_path)
    IntrinsicLoRAPipeline.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert torch.equal(predict(load(tmp_path)), wanted)


@pytest.mark.parametrize("method", ["from_pretrained", "from_single_file"])
def test_single_file_checkpoint(files, wanted, method):
    pipe = getattr(IntrinsicLoRAPipeline, method)(files / "sd.safetensors", config=str(files / "sd"))
    pipe.load_intrinsics(files / "loras")
    torch.testing.assert_close(predict(pipe), wanted, atol=1e-5, rtol=0)


def test_single_file_without_config_downloads_nothing(files, tmp_path):
    with pytest.raises(ValueError, match="config="):
        IntrinsicLoRAPipeline.from_pretrained(files / "sd.safetensors", cache_dir=tmp_path)


def test_torch_dtype_reaches_the_components_and_not_the_loras(files):
    pipe = IntrinsicLoRAPipeline.from_pretrained(files / "sd", torch_dtype=torch.bfloat16)
    pipe.load_intrinsics(files / "loras")
    assert pipe.unet.dtype == torch.bfloat16
    assert {a.dtype for a, _, _ in pipe.loras["depth"].weights.values()} == {torch.float32}


# ---------------------------------------------------------------------- load_intrinsics


def test_files_dicts_names_and_replacement(files):
    pipe = load(files / "sd")
    paths = {name: files / "loras" / f"intrinsic_lora_{name}.safetensors" for name in NAMES}
    pipe.load_intrinsics(str(paths["albedo"]))
    assert pipe.intrinsics == ("albedo",)
    pipe.load_intrinsics({"normal": paths["normals"], "depth": read_lora(paths["depth"], pipe.unet)})
    assert pipe.intrinsics == ("normals", "depth", "albedo")

    before = pipe(PHOTO, intrinsics="depth", processing_resolution=32).depth
    pipe.load_intrinsics({"depth": paths["shading"]})  # the given name wins
    after = pipe(PHOTO, intrinsics="depth", processing_resolution=32).depth
    assert (before - after).abs().max() > 0.01
    pipe.load_intrinsics({"depth": paths["depth"]})
    assert torch.equal(pipe(PHOTO, intrinsics="depth", processing_resolution=32).depth, before)


def test_a_state_dict_in_the_released_spelling(files):
    pipe = load(files / "sd", files / "loras")
    before = pipe(PHOTO, intrinsics="normals", processing_resolution=32).normals
    state = {}
    for name, (a, b, alpha) in pipe.loras["normals"].weights.items():
        attention, layer = name.split(".to_")
        key = f"{attention}.processor.to_{layer.removesuffix('.0')}_lora"
        state |= {f"{key}.down.weight": a, f"{key}.up.weight": b * (alpha / len(a))}
    pipe.load_intrinsics({"normals": state})
    assert pipe.loras["normals"].header == LoRAHeader()  # so the timestep is 999 now, not 700
    after = pipe(PHOTO, intrinsics="normals", processing_resolution=32).normals
    assert (before - after).abs().max() > 1e-3
    pipe.load_intrinsics({"normals": replace(pipe.loras["normals"], header=LoRAHeader(timestep=700))})
    torch.testing.assert_close(
        pipe(PHOTO, intrinsics="normals", processing_resolution=32).normals, before, atol=MAP_ERROR, rtol=0
    )


def test_a_folder_of_unlabelled_files_goes_by_name(files, tmp_path):
    for name in NAMES:
        lora = read_lora(files / "loras" / f"intrinsic_lora_{name}.safetensors")
        state = {
            f"unet.{m}.lora_{half}.weight": w
            for m, ab in lora.weights.items()
            for half, w in zip("AB", ab[:2], strict=True)
        }
        save_file(state, tmp_path / f"intrinsic_lora_sd15_{name.removesuffix('s')}.safetensors")
    (tmp_path / "README.md").write_text("not a LoRA")
    assert load(files / "sd", tmp_path).intrinsics == NAMES


def test_hub_id_from_the_cache(files, wanted, tmp_path):
    """A hub cache as huggingface_hub lays it out, and no network."""
    snapshot = tmp_path / "models--someone--loras" / "snapshots" / ("0" * 40)
    shutil.copytree(files / "loras", snapshot)
    refs = tmp_path / "models--someone--loras" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    pipe = load(files / "sd")
    pipe.load_intrinsics("someone/loras", cache_dir=tmp_path, local_files_only=True)
    assert torch.equal(predict(pipe), wanted)


@pytest.mark.bfloat16
def test_loras_survive_moves(files, wanted):
    pipe = load(files / "sd", files / "loras")
    pipe.to(torch.bfloat16)
    predict(pipe)
    pipe.to("cpu", torch.float32)
    fresh = load(files / "sd").unet.state_dict()
    pipe.unet.load_state_dict(fresh)  # bfloat16 cost the base digits; with those back, so is everything
    pipe.vae.load_state_dict(load(files / "sd").vae.state_dict())
    pipe._prompt_embeds.clear()
    pipe.text_encoder.load_state_dict(load(files / "sd").text_encoder.state_dict())
    assert torch.equal(predict(pipe), wanted)


def test_loras_of_another_method_or_timestep_are_refused(files, tmp_path):
    pipe = load(files / "sd", files / "loras")
    weights = tiny.random_lora(pipe.unet)
    write_lora(tmp_path / "m.safetensors", weights, intrinsic="depth", method="multi-step")
    write_lora(tmp_path / "t.safetensors", weights, intrinsic="depth", timestep=1000)
    before = predict(pipe)
    with pytest.raises(ValueError, match="multi-step"):
        pipe.load_intrinsics(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="timestep 1000"):
        pipe.load_intrinsics(tmp_path / "t.safetensors")
    assert torch.equal(predict(pipe), before)  # a failed load leaves what was there


def test_the_usual_lora_calls_of_diffusers_add_up(files):
    """A LoRA loaded with load_lora_weights is part of the base that the intrinsics are predicted with."""
    pipe = load(files / "sd", files / "loras")
    before = predict(pipe)
    pipe.load_lora_weights(files / "loras" / "intrinsic_lora_albedo.safetensors")
    with_lora = predict(pipe)
    assert (with_lora - before).abs().max() > 0.01
    pipe.load_intrinsics(files / "loras")  # onto layers that peft has wrapped
    assert torch.equal(predict(pipe), with_lora)
    pipe.unload_lora_weights()
    assert torch.equal(predict(pipe), before)


def test_the_example_in_the_docstring_runs():
    test = doctest.DocTestParser().get_doctest(IntrinsicLoRAPipeline.__call__.__doc__, {}, "example", None, 0)
    failures, attempted = doctest.DocTestRunner().run(test)
    assert (failures, attempted) == (0, 7)


def test_embedded_model():
    if not (EMBEDDED / "model_index.json").is_file():
        with pytest.raises(FileNotFoundError, match="embedded model"):
            IntrinsicLoRAPipeline.from_pretrained()
        return
    pipe = IntrinsicLoRAPipeline.from_pretrained()
    assert pipe.intrinsics == NAMES
    maps = pipe(PHOTO)
    assert maps.normals.shape == (1, 3, 32, 40)
