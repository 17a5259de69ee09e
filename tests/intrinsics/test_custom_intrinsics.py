"""Custom intrinsics from a LoRA file to maps, pictures and files: only the header says what they are."""

import numpy as np
import pytest
import torch
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.cli.main import app
from intrinsic_lora.intrinsics.color import srgb_to_linear
from intrinsic_lora.intrinsics.lora import LoRA, LoRAHeader, read_lora, write_lora
from intrinsic_lora.intrinsics.pictures import read_picture, write_png
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS, Intrinsic
from intrinsic_lora.tests.support import tiny
from intrinsic_lora.tests.support.closeness import MAP_ERROR
from typer.testing import CliRunner

SHADOW = Intrinsic("shadow", "cast shadow", 1, "linear")
DIRECT = Intrinsic("direct_light", "direct light", 3, "srgb")


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(1, 3, 32, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three LoRAs: shadow, direct light, and depth as a known neighbour."""
    path = tmp_path_factory.mktemp("loras")
    unet = tiny.components()["unet"]
    for i, intrinsic in enumerate((SHADOW, DIRECT, INTRINSICS["depth"])):
        write_lora(
            path / f"intrinsic_lora_{intrinsic.name}.safetensors",
            tiny.random_lora(unet, seed=i),
            intrinsic=intrinsic,
            timestep=700,
        )
    return path


@pytest.fixture(scope="module")
def pipe(folder) -> IntrinsicLoRAPipeline:
    pipe = IntrinsicLoRAPipeline(**tiny.components(), default_processing_resolution=32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_intrinsics(folder)
    return pipe


def plain(photo: torch.Tensor, seed: int, prompt: str) -> torch.Tensor:
    """Compute the picture (1, 3, H, W) with folded weights and the published inference."""
    parts = tiny.components()
    unet, vae, words = parts["unet"], parts["vae"], parts["tokenizer"]
    tiny.fold(unet, tiny.random_lora(unet, seed=seed))
    ids = words(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        text = parts["text_encoder"](ids)[0]
        z = vae.encode(photo * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
        x0 = unet(z, 700, encoder_hidden_states=text).sample
        return vae.decode(x0 / vae.config.scaling_factor).sample * 0.5 + 0.5


def test_maps_are_what_the_header_says(pipe, photo):
    assert pipe.intrinsics == ("depth", "direct_light", "shadow")
    assert pipe.definition("shadow") == SHADOW and pipe.definition("depth") == INTRINSICS["depth"]
    out = pipe(photo)
    shadow = plain(photo, 0, SHADOW.prompt).mean(1, True).clamp(0, 1)
    torch.testing.assert_close(out.custom["shadow"], shadow, atol=MAP_ERROR, rtol=0)
    direct = srgb_to_linear(plain(photo, 1, DIRECT.prompt))
    torch.testing.assert_close(out.custom["direct_light"], direct, atol=MAP_ERROR, rtol=1e-3)
    assert out.definitions == {"shadow": SHADOW, "direct_light": DIRECT}
    assert list(out.maps()) == ["depth", "direct_light", "shadow", "confidence"]
    assert pipe(photo, intrinsics="depth").custom is None


def test_pictures_and_arrays(pipe, photo):
    tensors, arrays = pipe(photo), pipe(photo, output_type="np")
    pictures = pipe(photo, output_type="pil")
    np.testing.assert_array_equal(arrays.custom["shadow"], tensors.custom["shadow"].permute(0, 2, 3, 1).numpy())
    assert pictures.custom["shadow"][0].mode == "L" and pictures.custom["direct_light"][0].size == (40, 32)
    shown = np.asarray(pictures.custom["direct_light"][0]) / 255
    drawn = plain(photo, 1, DIRECT.prompt)[0].clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(shown, drawn, atol=0.5 / 255 + 1e-3)  # shown as it was drawn: sRGB, not linear
    assert arrays.visualize()["shadow"][0].tobytes() == pictures.custom["shadow"][0].tobytes()
    sizes = pipe([photo[0], photo[0, :, :, :32]])
    assert [x.shape[-1] for x in sizes.custom["shadow"]] == [40, 32]
    latents = pipe(photo, intrinsics=["shadow", "depth"], output_latent=True).latents
    assert list(latents) == ["shadow", "depth"]


def test_saved_with_the_base_and_loaded_again(pipe, photo, tmp_path):
    before = pipe(photo)
    pipe.save_pretrained(tmp_path)
    again = IntrinsicLoRAPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.definition("direct_light") == DIRECT
    torch.testing.assert_close(again(photo).custom["shadow"], before.custom["shadow"])
    again.unload_intrinsics()
    again.save_pretrained(tmp_path)
    assert not list((tmp_path / "loras").iterdir())


def test_extract_and_convert(folder, photo, tmp_path):
    pipe = IntrinsicLoRAPipeline(**tiny.components(), default_processing_resolution=32)
    pipe.save_pretrained(tmp_path / "base")
    (tmp_path / "photos").mkdir()
    write_png(tmp_path / "photos" / "a.png", photo)

    def cli(*arguments, status: int = 0) -> str:
        result = CliRunner().invoke(app, [str(x) for x in arguments])
        assert result.exit_code == status, result.output
        return result.output

    def extract(*options, status: int = 0) -> str:
        return cli("extract", tmp_path / "photos", "--base", tmp_path / "base", *options, status=status)

    extract("--loras", folder, "--out", tmp_path / "maps", "--format", "npz,png16,exr")
    pipe.set_progress_bar_config(disable=True)
    pipe.load_intrinsics(folder)
    expected = pipe(read_picture(tmp_path / "photos" / "a.png").rgb)
    maps = np.load(tmp_path / "maps" / "a.npz")
    np.testing.assert_allclose(maps["shadow"], expected.custom["shadow"][0].permute(1, 2, 0), atol=1e-5)
    drawn = read_picture(tmp_path / "maps" / "a_direct_light.png").rgb
    torch.testing.assert_close(
        srgb_to_linear(drawn), expected.custom["direct_light"].clamp(0, 1), atol=1e-4, rtol=1e-3
    )
    assert "1 skipped (already exist)" in extract(
        "--loras", folder, "--out", tmp_path / "maps", "--format", "npz,png16,exr"
    )
    extract("--loras", folder, "--out", tmp_path / "one", "--intrinsics", "shadow")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"a_shadow.png", "a_confidence.png", "a_sheet.png"}
    text = extract("--loras", folder, "--out", tmp_path / "two", "--intrinsics", "shadows", status=1)
    assert "No LoRA was found for shadows; loaded: depth, direct_light, shadow." in text
    target = tmp_path / "again.safetensors"
    cli("convert", folder / "intrinsic_lora_shadow.safetensors", target)
    assert read_lora(target).header.definition("shadow") == SHADOW


def test_a_result_never_overwrites_a_photo_named_like_it(folder, photo, tmp_path):
    IntrinsicLoRAPipeline(**tiny.components(), default_processing_resolution=32).save_pretrained(tmp_path / "base")
    for name in ("a", "a_shadow"):
        write_png(tmp_path / f"{name}.png", photo)
    photos = [str(tmp_path / f"{name}.png") for name in ("a", "a_shadow")]
    command = ["extract", *photos, "--out", str(tmp_path), "--base", str(tmp_path / "base"), "--loras", str(folder)]
    before = (tmp_path / "a_shadow.png").read_bytes()
    result = CliRunner().invoke(app, command)
    text = " ".join(result.output.replace("│", "").split())  # without the box around it
    assert result.exit_code == 2 and "would overwrite the picture" in text
    assert (tmp_path / "a_shadow.png").read_bytes() == before


def header(**entries: str) -> dict[str, str]:
    return {f"intrinsic_lora.{key}": value for key, value in entries.items()}


@pytest.mark.parametrize(
    ("name", "metadata", "sentence"),
    [
        ("shadow", {}, "Unknown intrinsic 'shadow'; choose from normals, depth, albedo, shading, or use"),
        ("shadow", header(prompt="x", convention="linear"), "Unknown intrinsic 'shadow'"),
        ("shadow", header(prompt="x", convention="linear", channels="2"), "Unknown intrinsic 'shadow'"),
        ("shadow", header(prompt="x", convention="blue", channels="1"), "convention of shadow cannot be 'blue'"),
        ("../x", header(prompt="x", convention="linear", channels="1"), "cannot be called '../x'"),
        ("normals", header(convention="near-bright"), "convention of normals"),
    ],
)
def test_headers_that_do_not_say_it_are_refused(pipe, name, metadata, sentence):
    loaded = pipe.intrinsics
    with pytest.raises(ValueError, match=sentence):
        pipe.load_intrinsics({name: LoRA(tiny.random_lora(pipe.unet), LoRAHeader.parse(metadata))})
    assert pipe.intrinsics == loaded


def test_a_name_given_against_the_header_wins():
    lora = LoRAHeader.parse(header(intrinsic="depth", prompt="depth map", convention="near-bright", channels="1"))
    assert lora.definition("normals") == INTRINSICS["normals"]
    assert lora.definition("depth") == INTRINSICS["depth"]


def test_normals_of_another_frame_are_read_in_it(pipe, photo):
    weights = tiny.random_lora(pipe.unet, seed=5)
    one = IntrinsicLoRAPipeline(**pipe.components, default_processing_resolution=32)
    one.set_progress_bar_config(disable=True)
    one.load_intrinsics({"normals": LoRA(weights)})
    raw = one(photo).normals
    one.load_intrinsics({"normals": LoRA(weights, LoRAHeader(intrinsic="normals", convention="opengl"))})
    torch.testing.assert_close(one(photo).normals, raw * torch.tensor([1.0, -1, -1])[:, None, None])
