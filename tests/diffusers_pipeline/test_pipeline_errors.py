"""Each mistake gets one sentence that says what is wrong and what to do."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.tests.support import tiny
from PIL import Image
from safetensors.torch import save_file

PHOTO = torch.rand(3, 32, 32)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> IntrinsicLoRAPipeline:
    pipe = IntrinsicLoRAPipeline(**tiny.components(), default_processing_resolution=32)
    pipe.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("loras")
    tiny.write_loras(folder, pipe.unet, ("normals", "depth"))
    pipe.load_intrinsics(folder)
    return pipe


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (torch.zeros(0, 3, 8, 8), "empty"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        ([], "list of images is empty"),
        (torch.rand(3, 8, 200), "16:1"),
        (torch.full((3, 32, 32), float("nan")), "NaN"),
        (torch.rand(3, 32, 32) * 255, r"\[0, 1\]"),
        (PHOTO * 2 - 1, r"\[0, 1\]"),
        (torch.rand(4, 32, 32), r"\(3, H, W\)"),
        (np.zeros((3, 32, 32)), r"\(H, W, 3\)"),
        (np.zeros((32, 32), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((32, 32, 3), np.int32), "uint8 or floating"),
        ("photo.png", "PIL image"),
        ([PHOTO, None], "PIL image"),
    ],
)
def test_images(pipe, image, message):
    with pytest.raises(ValueError, match=message):
        pipe(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processing_resolution": 36}, "multiple of 8"),
        ({"processing_resolution": -8}, "multiple of 8"),
        ({"intrinsics": "roughness"}, "No LoRA is loaded for roughness"),
        ({"intrinsics": ["depth", "albedo"]}, "No LoRA is loaded for .*albedo.*normals, depth"),
        ({"intrinsics": []}, "at least one"),
        ({"upsample": "magic"}, "guided, bilinear"),
        ({"batch_size": 0}, "at least 1"),
        ({"output_type": "jpeg"}, "pt, np, pil or raw"),
        ({"depth_scope": "video"}, "image, batch, clip"),
        ({"resample_method_input": "lanczos", "processing_resolution": 40}, "bilinear"),
    ],
)
def test_options(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(PHOTO, **options)


def test_depth_scope_over_several_sizes(pipe):
    with pytest.raises(ValueError, match="one size"):
        pipe([PHOTO, torch.rand(3, 32, 40)], depth_scope="batch")


def test_nothing_loaded():
    with pytest.raises(ValueError, match="load_intrinsics"):
        IntrinsicLoRAPipeline(**tiny.components())(PHOTO)


def test_pictures_cannot_be_visualized_again(pipe):
    with pytest.raises(ValueError, match="already PIL images"):
        pipe(PHOTO, output_type="pil").visualize()


def test_an_inpainting_base_is_refused():
    parts = tiny.components()
    parts["unet"] = UNet2DConditionModel.from_config(dict(parts["unet"].config), in_channels=9)
    with pytest.raises(ValueError, match=r"9 channels.*text-to-image"):
        IntrinsicLoRAPipeline(**parts)


# ---------------------------------------------------------------------- load_intrinsics


def test_missing_things_are_not_found(pipe, tmp_path):
    for source in (
        tmp_path / "no.safetensors",
        str(tmp_path / "nowhere"),
        "loras/no.safetensors",
        {"depth": "no.bin"},
    ):
        with pytest.raises(FileNotFoundError, match="no"):
            pipe.load_intrinsics(source)
    with pytest.raises(FileNotFoundError, match="someone/nothing"):
        pipe.load_intrinsics("someone/nothing", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        IntrinsicLoRAPipeline.from_pretrained(tmp_path / "no.safetensors")


def test_a_folder_without_loras_lists_what_is_there(pipe, tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"holiday\.jpg"):
        pipe.load_intrinsics(tmp_path)


def test_unknown_or_ambiguous_files(pipe, tmp_path):
    weights = tiny.random_lora(pipe.unet)
    state = tiny.peft_state(weights)
    save_file(state, tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=r"pass \{'normals'"):
        pipe.load_intrinsics(tmp_path / "mine.safetensors")
    save_file(state, tmp_path / "depth_a.safetensors")
    save_file(state, tmp_path / "depth_b.safetensors")
    with pytest.raises(ValueError, match=r"depth_a\.safetensors and depth_b\.safetensors"):
        pipe.load_intrinsics(tmp_path)
    with pytest.raises(ValueError, match="roughness"):
        pipe.load_intrinsics({"roughness": state})
    with pytest.raises(ValueError, match="empty"):
        pipe.load_intrinsics({})


def test_a_lora_for_another_base_leaves_the_loaded_ones(pipe, tmp_path):
    parts = tiny.components()
    other = UNet2DConditionModel.from_config(dict(parts["unet"].config), cross_attention_dim=48)
    tiny.write_loras(tmp_path, other, ("normals", "depth"))
    before = pipe(PHOTO).depth
    with pytest.raises(ValueError, match="48"):
        pipe.load_intrinsics(tmp_path)
    assert torch.equal(pipe(PHOTO).depth, before)


def test_a_truncated_file(pipe, tmp_path):
    tiny.write_loras(tmp_path, pipe.unet, ("depth",))
    path = tmp_path / "intrinsic_lora_depth.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="intrinsic_lora_depth"):
        pipe.load_intrinsics(path)


def test_publishing_is_another_call(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"pipe\.push_to_hub"):
        pipe.save_pretrained(tmp_path, push_to_hub=True)
