"""Custom LoRAs on the embedded model: `--loras` selects these and no others, whatever else they draw."""

import shutil

import numpy as np
import pytest
import torch
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.cli.main import app
from intrinsic_lora.diffusers_pipeline.base import EMBEDDED
from intrinsic_lora.diffusers_pipeline.sources import find_loras
from intrinsic_lora.intrinsics import INTRINSICS, Intrinsic, write_lora, write_png
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.intrinsics.pictures import read_picture
from intrinsic_lora.tests.support import tiny
from intrinsic_lora.train.scenes.render import render, sample_scene
from intrinsic_lora.train.teachers.load import load_teacher
from typer.testing import CliRunner

SHIPPED = EMBEDDED / "loras"


def cli(*arguments) -> str:
    result = CliRunner().invoke(app, [str(x) for x in arguments], env={"COLUMNS": "300", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """mine/ normals only, shadow/ a custom intrinsic, beside/ that one beside the shipped four; room.png."""
    folder = tmp_path_factory.mktemp("own")
    unet = IntrinsicLoRAPipeline.from_pretrained().unet
    for name in ("mine", "shadow"):
        (folder / name).mkdir()
    shutil.copytree(SHIPPED, folder / "beside")
    weights = tiny.random_lora(unet, rank=2, seed=3)
    write_lora(folder / "mine" / "intrinsic_lora_normals.safetensors", weights, intrinsic="normals")
    shadow = Intrinsic("shadow", "shadow mask", 1, "linear")
    for name in ("shadow", "beside"):
        write_lora(folder / name / "intrinsic_lora_shadow.safetensors", weights, intrinsic=shadow)
    linear = torch.from_numpy(render(sample_scene(np.random.default_rng(2)), 64)["rgb_linear"])
    write_png(folder / "room.png", linear_to_srgb(linear.permute(2, 0, 1)))
    return folder


@pytest.fixture(scope="module")
def photo(folder) -> torch.Tensor:
    return read_picture(folder / "room.png").rgb


def maps_of(photo, *sources) -> dict[str, torch.Tensor]:
    """Return the maps of a pipeline with only these LoRAs, loaded one after the other."""
    pipe = IntrinsicLoRAPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    pipe.unload_intrinsics()
    for source in sources:
        pipe.load_intrinsics(source)
    return pipe(photo).maps()


def test_these_and_no_others(folder, photo, tmp_path):
    cli("extract", folder / "room.png", "--out", tmp_path, "--loras", folder / "mine", "--format", "npz")
    arrays = np.load(tmp_path / "room.npz")
    assert set(arrays.files) == {"normals", "confidence"}
    expected = maps_of(photo, folder / "mine")["normals"][0].permute(1, 2, 0)
    np.testing.assert_allclose(arrays["normals"], expected, atol=1e-5)


@pytest.mark.parametrize("mine_wins", [True, False])
def test_of_several_the_later_wins(folder, photo, tmp_path, mine_wins):
    loras = ["embedded", str(folder / "mine")] if mine_wins else [str(folder / "mine"), "embedded"]
    cli("extract", folder / "room.png", "--out", tmp_path, "--loras", ",".join(loras), "--format", "npz")
    arrays = np.load(tmp_path / "room.npz")
    assert set(arrays.files) == {*INTRINSICS, "confidence"}
    mine, shipped = (maps_of(photo, source)["normals"][0].permute(1, 2, 0) for source in (folder / "mine", SHIPPED))
    assert (mine - shipped).abs().max() > 0.1
    np.testing.assert_allclose(arrays["normals"], mine if mine_wins else shipped, atol=1e-5)


def test_relight_beside_a_custom_intrinsic(folder, tmp_path):
    for name, loras in (("with", folder / "beside"), ("without", SHIPPED)):
        light = ("--light", "sun az=-50 el=30", "--device", "cpu")
        cli("relight", folder / "room.png", "--out", tmp_path / f"{name}.png", "--loras", loras, *light)
    assert (tmp_path / "with.png").read_bytes() == (tmp_path / "without.png").read_bytes()


def test_a_teacher_labels_with_these_alone(folder, photo):
    teacher = load_teacher("intrinsic-lora", None, loras=str(folder / "mine"))
    assert teacher.intrinsics == ("normals",)
    torch.testing.assert_close(teacher(photo)["normals"], maps_of(photo, folder / "mine")["normals"])
    both = load_teacher("intrinsic-lora", None, loras=f"embedded,{folder / 'shadow'}")
    assert both.intrinsics == tuple(INTRINSICS)
    assert both(photo).keys() == set(INTRINSICS)


def test_python_says_it_the_same_way(folder):
    pipe = IntrinsicLoRAPipeline.from_pretrained()
    assert pipe.intrinsics == tuple(INTRINSICS) and pipe.loras["depth"].path == SHIPPED / (
        "intrinsic_lora_depth.safetensors"
    )
    pipe.load_intrinsics(folder / "mine")
    assert pipe.loras["normals"].path.parent == folder / "mine" and len(pipe.loras) == 4
    pipe.unload_intrinsics()
    pipe.load_intrinsics(f"{folder / 'mine'}, {folder / 'shadow'}")
    assert pipe.intrinsics == ("normals", "shadow")


def test_sources_that_are_not_there(folder, tmp_path):
    for source, words in {
        f"embedded,{tmp_path / 'no'}": "File or folder",
        f"embedded,,{folder / 'mine'}": "The name of the LoRAs is empty",
        "": "The name of the LoRAs is empty",
    }.items():
        with pytest.raises(FileNotFoundError, match=words):
            find_loras(source, {})
    comma = tmp_path / "a,b"
    shutil.copytree(folder / "mine", comma)
    assert find_loras(str(comma), {}) == {"normals": comma / "intrinsic_lora_normals.safetensors"}


def test_a_base_of_git_lfs_pointers(tmp_path):
    shutil.copytree(EMBEDDED, tmp_path / "base")
    (tmp_path / "base/unet/diffusion_pytorch_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model\.safetensors is a Git LFS pointer"):
        IntrinsicLoRAPipeline.from_pretrained(tmp_path / "base")
    shutil.copy(tmp_path / "base/unet/diffusion_pytorch_model.safetensors", tmp_path / "sd.safetensors")
    with pytest.raises(ValueError, match=r"sd\.safetensors is a Git LFS pointer"):
        IntrinsicLoRAPipeline.from_pretrained(tmp_path / "sd.safetensors")
