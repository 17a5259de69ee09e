"""What the ComfyUI nodes do without ComfyUI: pictures in and out, and which LoRA file is which."""

import sys
from pathlib import Path

import pytest
import torch
from intrinsic_lora.comfy_nodes.loras import LoRAFile, choose, choose_file, fingerprint, identify, lora_files, sets
from intrinsic_lora.comfy_nodes.photo_maps import channels_first, from_mask, photo_from_image, to_image, to_mask
from intrinsic_lora.intrinsics.lora import write_lora
from intrinsic_lora.intrinsics.vocabulary import INTRINSICS, Intrinsic

WEIGHTS = {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (torch.ones(2, 8), torch.ones(8, 2), 2.0)}


def file(name: str, intrinsic: str | None, other_base: str | None = None) -> LoRAFile:
    return LoRAFile(name, Path(name), intrinsic, other_base)


FOUR = [file(f"intrinsic_lora_{name}.safetensors", name) for name in INTRINSICS]


# --------------------------------------------------------------------- IMAGE and MASK


def test_a_photo_comes_in_channels_first():
    image = torch.rand(2, 5, 7, 3)
    photo, alpha = photo_from_image(image)
    assert alpha is None
    assert torch.equal(photo, image.permute(0, 3, 1, 2))
    assert torch.equal(to_image(photo), image) and torch.equal(channels_first(to_image(photo)), photo)


def test_grey_becomes_rgb():
    photo, _ = photo_from_image(torch.rand(1, 4, 4, 1))
    assert photo.shape == (1, 3, 4, 4) and torch.equal(photo[:, 0], photo[:, 2])


def test_transparency_becomes_mid_grey():
    image = torch.ones(1, 1, 3, 4)
    image[0, 0, :, 3] = torch.tensor([0.0, 0.5, 1.0])
    photo, alpha = photo_from_image(image)
    assert torch.allclose(photo[0, :, 0], torch.tensor([0.5, 0.75, 1.0]).expand(3, 3))
    assert alpha is not None and alpha.flatten().tolist() == [0.0, 0.5, 1.0]


def test_what_resampling_overshoots_is_cut():
    photo, _ = photo_from_image(torch.tensor([-0.1, 0.5, 1.1]).expand(1, 2, 2, 3))
    assert photo.min() == 0 and photo.max() == 1


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.rand(4, 4, 3), "not a tensor"),
        (torch.rand(1, 4, 4, 2), "1, 3 or 4 channels"),
        (torch.rand(0, 4, 4, 3), "empty"),
        (torch.rand(1, 0, 4, 3), "empty"),
        (torch.full((1, 2, 2, 3), torch.nan), "NaN"),
        (torch.full((1, 2, 2, 3), 7.5), "7.5; tone-map"),
        (torch.full((1, 2, 2, 3), -1.0), "-1"),
    ],
)
def test_a_bad_image_is_refused(image, words):
    with pytest.raises(ValueError, match=words):
        photo_from_image(image)


def test_masks():
    mask = torch.rand(2, 4, 5)
    assert from_mask(mask).shape == (2, 1, 4, 5) and torch.equal(to_mask(from_mask(mask)), mask)
    assert from_mask(mask[0]).shape == (1, 1, 4, 5)


# --------------------------------------------------------------------- which LoRA is which


@pytest.mark.parametrize(
    ("name", "intrinsic", "in_loras"),
    [
        ("intrinsic_lora_sd15_normal.safetensors", "normals", True),
        ("Intrinsic-Depth.safetensors", "depth", True),
        ("albedo.bin", "albedo", False),
        ("normal_girl_v3.safetensors", "normals", False),
        ("depth_of_field.safetensors", "depth", False),
        ("intrinsic_depth_and_albedo.safetensors", None, False),
        ("my style.safetensors", None, False),
    ],
)
def test_by_name(tmp_path, name, intrinsic, in_loras):
    """Where all kinds of LoRAs lie, a name must say "intrinsic" as well."""
    (tmp_path / name).write_bytes(b"no header to read")
    assert identify(tmp_path / name, ours=True) == (intrinsic, None)
    assert identify(tmp_path / name, ours=False) == (intrinsic if in_loras else None, None)


def test_metadata_wins_over_the_name(tmp_path):
    path = tmp_path / "intrinsic_depth.safetensors"
    write_lora(path, WEIGHTS, intrinsic="shading")
    assert identify(path, ours=False) == ("shading", None)
    write_lora(path, WEIGHTS, intrinsic="albedo")  # written anew: not remembered
    path.rename(tmp_path / "x.safetensors")
    assert identify(tmp_path / "x.safetensors", ours=False) == ("albedo", None)


def test_a_lora_for_another_base_is_known_by_its_header(tmp_path):
    wide = {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (torch.ones(2, 2048), torch.ones(8, 2), 2.0)}
    write_lora(tmp_path / "x.safetensors", wide, intrinsic="normals")
    assert identify(tmp_path / "x.safetensors", ours=False) == ("normals", "SDXL")


def test_only_the_header_is_read(tmp_path):
    """A models folder holds hundreds of large files: one whose data is a hole of 3 GB must not be read."""
    path = tmp_path / "intrinsic_albedo.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[805306368],"data_offsets":[0,3221225472]}}'
    with path.open("wb") as sparse:
        sparse.write(len(header).to_bytes(8, "little") + header)
        sparse.truncate(8 + len(header) + 3221225472)
    assert identify(path, ours=False) == ("albedo", None)


def test_a_lora_of_a_custom_intrinsic_is_not_taken_for_one_of_the_four(tmp_path):
    path = tmp_path / "intrinsic_lora_shadow.safetensors"
    write_lora(path, WEIGHTS, intrinsic=Intrinsic("shadow", "shadow mask", 1, "linear"))
    intrinsic, other_base = identify(path, ours=True)
    shadow = LoRAFile(path.name, path, intrinsic, other_base)
    assert intrinsic == "shadow" and sets([shadow]) == []
    assert choose([*FOUR, shadow], ["normals", "depth"]) == {"normals": FOUR[0], "depth": FOUR[1]}
    with pytest.raises(ValueError, match="is a LoRA for shadow, not for normals"):
        choose_file([*FOUR, shadow], "normals", path.name)


def test_sets():
    others = [file("mine/surface_NORMALS_v2.safetensors", "normals"), file("x.bin", "depth"), file("style.bin", None)]
    assert sets([*FOUR, *others]) == ["intrinsic_lora_*.safetensors", "mine/surface_*_v2.safetensors", "x.bin"]


def test_automatic_takes_the_only_one():
    assert choose(FOUR, INTRINSICS) == {found.intrinsic: found for found in FOUR}
    assert choose(FOUR, ["depth"])["depth"].name == "intrinsic_lora_depth.safetensors"
    foreign = file("xl/normals.safetensors", "normals", "SDXL")
    assert choose([foreign, *FOUR], ["normals"])["normals"].name == "intrinsic_lora_normals.safetensors"


def test_a_lora_for_another_base_is_refused_before_it_is_read():
    """The file is not there at all."""
    foreign = file("xl/normals.safetensors", "normals", "SDXL")
    sentence = "xl/normals.safetensors was made for SDXL, and these nodes take LoRAs for Stable Diffusion 1.x"
    for refused in (
        lambda: choose([foreign], ["normals"]),
        lambda: choose([foreign, *FOUR], ["normals"], foreign.set),
        lambda: choose_file([foreign, *FOUR], "normals", foreign.name),
    ):
        with pytest.raises(ValueError, match=sentence):
            refused()


def test_a_set_settles_which():
    mine = [file(f"mine/{name}.safetensors", name) for name in INTRINSICS]
    with pytest.raises(
        ValueError, match=r"intrinsic_lora_normals.safetensors and mine/normals.safetensors are all for"
    ):
        choose([*FOUR, *mine], ["normals"])
    assert list(choose([*FOUR, *mine], INTRINSICS, "mine/*.safetensors").values()) == mine


def test_a_missing_one_is_said():
    with pytest.raises(FileNotFoundError, match=r"No LoRA for shading in models/loras or models/intrinsic_loras"):
        choose(FOUR[:3], INTRINSICS)
    with pytest.raises(FileNotFoundError, match=r"belongs to gone_\*"):
        choose(FOUR, ["depth"], "gone_*")


def test_a_file_by_name():
    files = [*FOUR, file("style.safetensors", None)]
    assert choose_file(files, "depth") is FOUR[1]
    assert choose_file(files, "albedo", "intrinsic_lora_albedo.safetensors") is FOUR[2]
    assert choose_file(files, "albedo", "style.safetensors").intrinsic is None  # the user knows
    with pytest.raises(ValueError, match="for depth, not for albedo"):
        choose_file(files, "albedo", "intrinsic_lora_depth.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no LoRA gone.safetensors"):
        choose_file(files, "albedo", "gone.safetensors")


def test_files_of_both_folders(tmp_path, monkeypatch):
    """As ComfyUI's folder_paths gives them: names relative to the folders, ours before the common one."""
    folders = {"intrinsic_loras": tmp_path / "a", "loras": tmp_path / "b"}
    for place in ("a/sub/albedo.bin", "a/depth.safetensors", "b/depth.safetensors", "b/style.safetensors", "b/x.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(place.encode())

    class FolderPaths:
        @staticmethod
        def get_filename_list(folder):
            return [str(p.relative_to(folders[folder])) for p in sorted(folders[folder].rglob("*.*"))]

        @staticmethod
        def get_full_path(folder, name):
            return str(folders[folder] / name)

    monkeypatch.setitem(sys.modules, "folder_paths", FolderPaths)
    found = lora_files()
    assert [(f.name, f.intrinsic) for f in found] == [
        ("depth.safetensors", "depth"),
        ("sub/albedo.bin", "albedo"),
        ("style.safetensors", None),
    ]
    assert found[0].path == tmp_path / "a/depth.safetensors"
    before = fingerprint(found)
    (tmp_path / "b/style.safetensors").write_bytes(b"changed")
    assert fingerprint(lora_files()) == before
    (tmp_path / "a/sub/albedo.bin").write_bytes(b"changed")
    assert fingerprint(lora_files()) != before


def test_importing_the_package_imports_no_comfyui():
    import intrinsic_lora

    assert intrinsic_lora.WEB_DIRECTORY == "./comfy_nodes/web"
    assert not hasattr(intrinsic_lora, "NODE_CLASS_MAPPINGS")  # beside an entry point it would win
    with pytest.raises(ModuleNotFoundError, match=r"folder_paths|comfy"):
        _ = intrinsic_lora.comfy_entrypoint
