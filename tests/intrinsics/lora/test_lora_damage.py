"""Damaged, foreign and hostile LoRA files: one clear sentence each, never a partial load, never code."""

import contextlib
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from intrinsic_lora.intrinsics.files import atomic_path
from intrinsic_lora.intrinsics.lora import MAX_BYTES, read_header, read_lora, write_lora
from safetensors.torch import save, save_file

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FIRST = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def make_unet(width: int = 16) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=8,
    )


UNET = make_unet()


def make_weights(unet=UNET, rank: int = 2) -> dict:
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, module in unet.named_modules():
        if name.endswith(ATTENTION):
            out, inner = module.weight.shape
            A, B = torch.randn(rank, inner, generator=generator), torch.randn(out, rank, generator=generator)
            weights[name] = (A, B, 1.5)
    return weights


def kohya(unet=UNET) -> dict[str, torch.Tensor]:
    state = {}
    for name, (A, B, alpha) in make_weights(unet).items():
        key = "lora_unet_" + name.replace(".", "_")
        state |= {f"{key}.lora_down.weight": A, f"{key}.lora_up.weight": B, f"{key}.alpha": torch.tensor(alpha)}
    return state


def attn_processor() -> dict[str, torch.Tensor]:
    state = {}
    for name, (A, B, _) in make_weights().items():
        attention, projection = name.removesuffix(".0").rsplit(".", 1)
        state[f"{attention}.processor.{projection}_lora.down.weight"] = A
        state[f"{attention}.processor.{projection}_lora.up.weight"] = B
    return state


def error_of(path, model=UNET) -> str:
    with pytest.raises(ValueError) as caught:
        read_lora(path, model)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.endswith(".")
    return message


def assert_same(lora, weights):
    assert set(lora.weights) == set(weights)
    for module, (A, B, alpha) in weights.items():
        assert torch.equal(lora.weights[module][0], A) and torch.equal(lora.weights[module][1], B)
        assert lora.weights[module][2] == alpha


# -- One thing wrong in the weights -----------------------------------------------------------------------------------

DOWN, UP, ALPHA = f"{FIRST}.lora_down.weight", f"{FIRST}.lora_up.weight", f"{FIRST}.alpha"
WRONG = {
    "no up": ({UP: None}, DOWN, "other half"),
    "no down": ({DOWN: None}, UP, "other half"),
    "alpha alone": ({DOWN: None, UP: None}, ALPHA, "other half"),
    "input width": ({DOWN: torch.ones(2, 17)}, DOWN, "64 x 17"),
    "output width": ({UP: torch.ones(63, 2)}, DOWN, "63 x 16"),
    "ranks differ": ({UP: torch.ones(64, 3)}, DOWN, "do not multiply"),
    "rank 0": ({DOWN: torch.ones(0, 16), UP: torch.ones(64, 0)}, DOWN, "do not multiply"),
    "halves swapped": ({DOWN: torch.ones(64, 2), UP: torch.ones(2, 16)}, DOWN, ""),
    "kernel for a linear layer": ({DOWN: torch.ones(2, 16, 3, 3)}, DOWN, "do not multiply"),
    "one axis": ({DOWN: torch.ones(16)}, DOWN, "not LoRA data"),
    "integers": ({DOWN: torch.ones(2, 16, dtype=torch.int32)}, DOWN, "not LoRA data"),
    "NaN": ({UP: torch.full((64, 2), torch.nan)}, UP, "NaN"),
    "one infinity": ({DOWN: torch.ones(2, 16).index_fill(1, torch.tensor(5), torch.inf)}, DOWN, "infinity"),
    "beyond float32": ({DOWN: torch.full((2, 16), 1e300, dtype=torch.float64)}, DOWN, "infinity"),
    "NaN alpha": ({ALPHA: torch.tensor(torch.nan)}, ALPHA, "nan"),
    "zero alpha": ({ALPHA: torch.tensor(0.0)}, ALPHA, "alpha"),
    "absurd alpha": ({ALPHA: torch.tensor(1e9)}, ALPHA, "alpha"),
    "vector alpha": ({ALPHA: torch.ones(2)}, ALPHA, "not LoRA data"),
    "unknown module": (
        {"lora_unet_mid_block_attn9_to_k.lora_down.weight": torch.ones(2, 16),
         "lora_unet_mid_block_attn9_to_k.lora_up.weight": torch.ones(64, 2)},
        "lora_unet_mid_block_attn9_to_k.lora_down.weight", "no module",
    ),
    "the same twice": (
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": torch.ones(2, 16),
         "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": torch.ones(64, 2)},
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", "second LoRA",
    ),
    "two adapters": (
        {"x.lora_A.one.weight": torch.ones(2, 16), "x.lora_A.two.weight": torch.ones(2, 16)},
        "x.lora_A.two.weight", "twice",
    ),
    "stray tensor": ({"learning_rate": torch.ones(1)}, "learning_rate", "not a LoRA weight"),
    "kohya text encoder": ({"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(1)},
                           "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", "text encoder"),
    "kohya SDXL text encoder": ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(1)},
                                "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "text encoder"),
    "peft text encoder": ({"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(1, 2)},
                          "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "text encoder"),
    "ComfyUI text encoder": ({"text_encoders.clip_l.transformer.text_model.lora_up.weight": torch.ones(1, 2)},
                             "text_encoders.clip_l.transformer.text_model.lora_up.weight", "text encoder"),
    "DoRA": ({f"{FIRST}.dora_scale": torch.ones(64)}, f"{FIRST}.dora_scale", "DoRA"),
    "LoHa": ({f"{FIRST}.hada_w1_a": torch.ones(64, 2)}, f"{FIRST}.hada_w1_a", "LyCORIS"),
    "LoCon with a core": ({f"{FIRST}.lora_mid.weight": torch.ones(2, 2)}, f"{FIRST}.lora_mid.weight", "LyCORIS"),
    "bias difference": ({f"{FIRST}.diff_b": torch.ones(64)}, f"{FIRST}.diff_b", "differences"),
    "LoRA bias": ({"unet.x.lora_B.bias": torch.ones(64)}, "unet.x.lora_B.bias", "biases"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_one_thing_wrong(tmp_path, case, suffix):
    change, key, words = WRONG[case]
    state = {key: value for key, value in (kohya() | change).items() if value is not None}
    path = tmp_path / f"lora.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    message = error_of(path)
    assert repr(key) in message and words in message


def test_names_alone_find_a_foreign_module():
    names = [name for name, _ in UNET.named_modules()]
    assert_same(read_lora(kohya(), names), make_weights())
    with pytest.raises(ValueError, match="no module"):
        read_lora(kohya(), [name for name in names if "attn2" not in name])


def test_a_kohya_name_that_fits_two_modules_is_not_guessed():
    state = {"lora_unet_a_b.lora_down.weight": torch.ones(1, 2), "lora_unet_a_b.lora_up.weight": torch.ones(2, 1)}
    with pytest.raises(ValueError, match="no module"):
        read_lora(state, ["a.b", "a_b"])


@pytest.mark.parametrize(
    "config",
    [
        "not json",
        "[]",
        '{"unet.lora_alpha": "many"}',
        '{"unet.lora_alpha": 4, "unet.alpha_pattern": {"(a+)+$": 8}}',
        '{"unet.lora_alpha": 4, "unet.alpha_pattern": 8}',
        "[" * 100_000,
    ],
)
def test_metadata_that_cannot_be_understood(tmp_path, config):
    state = {"unet.x.lora_A.weight": torch.ones(2, 16), "unet.x.lora_B.weight": torch.ones(64, 2)}
    save_file(state, tmp_path / "a.safetensors", {"lora_adapter_metadata": config})
    assert "lora_adapter_metadata" in error_of(tmp_path / "a.safetensors", None)


# -- Made for something else ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made_for", "base", "names"),
    [
        (2048, 768, ("SDXL", "Stable Diffusion 1.x")),
        (1024, 768, ("Stable Diffusion 2.x", "Stable Diffusion 1.x")),
        (768, 1024, ("Stable Diffusion 1.x", "Stable Diffusion 2.x")),
        (768, 16, ("Stable Diffusion 1.x", "a model with text embeddings of width 16")),
    ],
)
def test_foreign_text_width(tmp_path, made_for, base, names):
    save_file(kohya(make_unet(made_for)), tmp_path / "a.safetensors")
    message = error_of(tmp_path / "a.safetensors", make_unet(base))
    assert message.endswith(f"; this LoRA was made for {names[0]}, the base is {names[1]}.")


TRANSFORMER = "Flux or another transformer model"


@pytest.mark.parametrize(
    ("module", "base"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", "SDXL"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.9.attn1.to_q", "SDXL"),
        ("lora_unet_double_blocks_0_img_attn_proj", TRANSFORMER),
        ("transformer.single_transformer_blocks.0.attn.to_q", TRANSFORMER),
        ("diffusion_model.joint_blocks.0.x_block.attn.proj", TRANSFORMER),
    ],
)
def test_foreign_names(tmp_path, module, base):
    state = {f"{module}.lora_down.weight": torch.ones(2, 64), f"{module}.lora_up.weight": torch.ones(64, 2)}
    save_file(state, tmp_path / "a.safetensors")
    message = error_of(tmp_path / "a.safetensors")
    assert f"{module}.lora_down" in message and f"this LoRA was made for {base}, the base is a model with" in message


def test_a_whole_checkpoint_is_not_a_lora(tmp_path):
    save_file(UNET.state_dict(), tmp_path / "a.safetensors")
    assert "is not a LoRA weight" in error_of(tmp_path / "a.safetensors")


# -- Files that are no LoRA files -------------------------------------------------------------------------------------


def test_missing_file_and_folder(tmp_path):
    for read in (read_lora, read_header):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
            read(tmp_path / "nowhere.safetensors")
    assert "not a file" in error_of(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"PK",
        b"PK\x03\x04",
        b"<!DOCTYPE html><html>Quota exceeded</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 90 << 20) + b'{"a":',
        save({}),
        pickle.dumps({"a": 1}, protocol=0),
        pickle.dumps({"a": 1}),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_no_lora_at_all(tmp_path, content, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    error_of(path)


def test_an_empty_dict_is_an_error():
    with pytest.raises(ValueError, match="no weights"):
        read_lora({}, UNET)


def test_zip_that_is_no_torch_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "zip archive" in error_of(tmp_path / "a.bin")


def test_old_torch_format_is_not_opened(tmp_path):
    torch.save(attn_processor(), tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    assert "bare pickle" in error_of(tmp_path / "a.bin")


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": 1.0}, {"a": [torch.ones(2)]}, {3: torch.ones(2)}, {}])
def test_torch_file_with_something_else(tmp_path, content):
    torch.save(content, tmp_path / "a.bin")
    error_of(tmp_path / "a.bin")


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def test_code_in_a_file_never_runs(tmp_path):
    marker = tmp_path / "it ran"
    evil = attn_processor() | {"evil": Evil(marker)}
    torch.save(evil, tmp_path / "zip.bin")
    torch.save(evil, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(Evil(marker)))
    (tmp_path / "ascii.bin").write_bytes(pickle.dumps(Evil(marker), protocol=0))
    (tmp_path / "named.safetensors").write_bytes((tmp_path / "zip.bin").read_bytes())
    for path in sorted(tmp_path.iterdir()):
        error_of(path)
        with contextlib.suppress(ValueError):  # a torch file has no header, and is not opened for it
            assert read_header(path).entries == {}
    assert not marker.exists()
    assert "code in files is never executed" in error_of(tmp_path / "zip.bin")

    pickle.loads((tmp_path / "bare.bin").read_bytes())
    assert marker.exists(), "the trap itself must work"


# -- Sizes that are not believed --------------------------------------------------------------------------------------


def test_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no space
    assert "GB" in error_of(path)


def test_tensor_that_claims_more_than_it_stores(tmp_path):
    torch.save({"x.lora_A.weight": torch.ones(1, 1).expand(1 << 20, 1 << 20)}, tmp_path / "a.bin")
    assert "GiB" in error_of(tmp_path / "a.bin")


def test_storage_that_claims_more_than_the_file_has(tmp_path):
    """The pickle says how large a storage is, and older torch reads beyond the record if that is a lie."""
    path = tmp_path / "a.bin"
    torch.save({"x.lora_A.weight": torch.ones(20, 32)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    large = b"J" + struct.pack("<i", 1 << 24)
    lie = entries[name].replace(b"M\x80\x02", large).replace(b"K\x14K ", large + b"K ")  # 640 and (20, 32)
    assert lie.count(large) == 2
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in (entries | {name: lie}).items():
            archive.writestr(entry, content)
    error_of(path, None)


def test_compressed_torch_file_is_refused(tmp_path):
    torch.save(attn_processor(), tmp_path / "a.bin")
    with zipfile.ZipFile(tmp_path / "a.bin") as plain, zipfile.ZipFile(tmp_path / "b.bin", "w", 8) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    error_of(tmp_path / "b.bin")


# -- Random damage ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[bytes, dict]]:
    """{kind: (content of a file, what is in it)}"""
    folder = tmp_path_factory.mktemp("files")
    weights = make_weights()
    write_lora(folder / "ours.safetensors", weights, intrinsic="depth")
    save_file(attn_processor(), folder / "foreign.safetensors")
    torch.save(attn_processor(), folder / "released.bin")
    plain = {module: (A, B, float(A.shape[0])) for module, (A, B, _) in weights.items()}
    contents = {"ours.safetensors": weights, "foreign.safetensors": plain, "released.bin": plain}
    for name, expected in contents.items():
        assert_same(read_lora(folder / name, UNET), expected)
    return {name: ((folder / name).read_bytes(), expected) for name, expected in contents.items()}


@pytest.mark.parametrize("name", ["ours.safetensors", "foreign.safetensors", "released.bin"])
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_truncated_anywhere(files, tmp_path_factory, name, data):
    content, _ = files[name]
    length = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 64))
    path = tmp_path_factory.getbasetemp() / f"truncated-{name}"
    path.write_bytes(content[:length])
    error_of(path)


def flipped(content: bytes, data, where) -> bytes:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(where)] ^= data.draw(st.integers(1, 255))
    return bytes(damaged)


@pytest.mark.parametrize("name", ["ours.safetensors", "released.bin"])
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_flipped_bytes_give_an_error_or_the_whole_lora(files, tmp_path_factory, name, data):
    """Our files carry a checksum and torch's zip files one per entry, so damaged weights never pass."""
    content, expected = files[name]
    header = 8 + int.from_bytes(content[:8], "little") if name.endswith("safetensors") else 2000
    path = tmp_path_factory.getbasetemp() / f"flipped-{name}"
    path.write_bytes(flipped(content, data, st.integers(0, header - 1) | st.integers(0, len(content) - 1)))
    try:
        lora = read_lora(path, UNET)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert_same(lora, expected)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_flipped_header_bytes_of_a_foreign_file_never_load_a_part(files, tmp_path_factory, data):
    content, expected = files["foreign.safetensors"]
    path = tmp_path_factory.getbasetemp() / "flipped-foreign.safetensors"
    path.write_bytes(flipped(content, data, st.integers(0, 8 + int.from_bytes(content[:8], "little") - 1)))
    try:
        lora = read_lora(path, UNET)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert_same(lora, expected)


# -- Writing ----------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "depth.safetensors"
    write_lora(path, make_weights(), intrinsic="depth")
    before = path.read_bytes()
    module, (A, B, alpha) = next(iter(make_weights().items()))
    for bad in ({}, {module: (A, B * torch.nan, alpha)}, {module: (A, B[:, :1], alpha)}, {module: (A, B, 0.0)}):
        with pytest.raises(ValueError):
            write_lora(path, bad, intrinsic="depth")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written(tmp_path):
    weights = make_weights()
    with pytest.raises(ValueError, match="suffix"):
        write_lora(tmp_path / "a.bin", weights, intrinsic="depth")
    with pytest.raises(ValueError, match="Unknown intrinsic"):
        write_lora(tmp_path / "a.safetensors", weights, intrinsic="roughness")
    with pytest.raises(ValueError, match="Unknown method"):
        write_lora(tmp_path / "a.safetensors", weights, intrinsic="depth", method="double-step")
    with pytest.raises(FileNotFoundError, match="create it first"):
        write_lora(tmp_path / "no" / "a.safetensors", weights, intrinsic="depth")
    one = torch.ones(1, 2), torch.ones(2, 1), 1.0
    with pytest.raises(ValueError, match="share the key"):
        write_lora(tmp_path / "a.safetensors", {"mid_block.a.b": one, "mid_block.a_b": one}, intrinsic="depth")
    for module, words in {
        "lora_unet_mid_block_attn9_to_k": "'lora_unet_mid_block_attn9_to_k' is not the name of a module",
        "lora_unet.down_blocks_0_attn1_to_q": "UNet.",
        "blocks.0.cross_attn.k": "UNet.",
        "transformer.single_transformer_blocks.0.attn.to_q": "UNet; this LoRA was made for Flux or another transform",
    }.items():
        with pytest.raises(ValueError) as caught:
            write_lora(tmp_path / "a.safetensors", weights | {module: one}, intrinsic="depth")
        assert repr(module) in str(caught.value) and words in str(caught.value)
    with pytest.raises(ValueError, match=r"intrinsic_lora\.base_model has 5,001 characters"):
        write_lora(tmp_path / "a.safetensors", weights, intrinsic="depth", base_model="x" * 5001)
    assert not list(tmp_path.iterdir())


def test_atomic_path_replaces_and_keeps_the_suffix(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".png" and not temporary.exists()
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
