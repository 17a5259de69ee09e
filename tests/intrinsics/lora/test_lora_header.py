"""The header of a LoRA file: typed, read without the tensors, and one sentence for whatever is wrong with it."""

import hashlib
import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intrinsic_lora.cli.main import app
from intrinsic_lora.intrinsics import INTRINSICS, Intrinsic, LoRAHeader, read_header, read_lora, write_lora
from intrinsic_lora.intrinsics.lora.header import MAX_HEADER
from safetensors.torch import save, save_file
from typer.testing import CliRunner

MODULE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
KEY = "lora_unet_" + MODULE.replace(".", "_")
A, B = torch.ones(2, 16), torch.ones(64, 2)
GOOD = {f"{KEY}.lora_down.weight": A, f"{KEY}.lora_up.weight": B}
DOWN = {"dtype": "F32", "shape": [2, 16], "data_offsets": [0, 128]}


def ours(**entries: str) -> bytes:
    """Write a file with these entries of ours and a valid checksum."""
    plain = save(GOOD)
    payload = plain[8 + int.from_bytes(plain[:8], "little") :]
    metadata = {f"intrinsic_lora.{key}": value for key, value in entries.items()}
    return save(GOOD, metadata | {"modelspec.hash_sha256": "0x" + hashlib.sha256(payload).hexdigest()})


def raw(header: bytes | dict, payload: bytes = b"") -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + payload


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1234\n"
HOSTILE = {
    "prompt of megabytes": (ours(prompt="word " * 1_200_000), "intrinsic_lora.prompt has 6,000,000 characters"),
    "name of megabytes": (ours(intrinsic="x" * 1_000_000), "intrinsic_lora.intrinsic has 1,000,000 characters"),
    "timestep": (ours(timestep="nan"), "intrinsic_lora.timestep is 'nan', not a whole number"),
    "negative timestep": (ours(timestep="-1"), "'-1', not a whole number"),
    "timestep of many digits": (ours(timestep="9" * 900), "not a whole number"),
    "channels": (ours(channels="three"), "intrinsic_lora.channels is 'three', not a whole number"),
    "superscript digits": (ours(timestep="\u00b2"), "not a whole number"),
    "header beyond the limit": (save(GOOD, {"x": "a" * MAX_HEADER}), "its header would have"),
    "header beyond the file": (struct.pack("<Q", 1000) + b"{}", "its header would have 1,000 bytes, and 10 are"),
    "nested header": (raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "damaged or not a LoRA file"),
    "header of numbers": (raw({"__metadata__": {"a": 1}, "a": DOWN}, b"\0" * 128), "damaged or not a LoRA file"),
    "header not UTF-8": (raw(b'{"\xff\xfe": 1}'), "damaged or not a LoRA file"),
    "unknown dtype": (raw({"a": DOWN | {"dtype": "X99"}}, b"\0" * 128), "damaged or not a LoRA file"),
    "negative offsets": (raw({"a": DOWN | {"data_offsets": [-128, 0]}}, b"\0" * 128), "damaged or not a LoRA file"),
    "overlapping tensors": (raw({"a": DOWN, "b": DOWN}, b"\0" * 128), "damaged or not a LoRA file"),
    "shape beyond memory": (raw({"a": DOWN | {"shape": [1 << 40, 1 << 40]}}, b"\0" * 128), "damaged or not"),
    "payload cut": (save(GOOD)[:-1], "damaged or not a LoRA file"),
    "payload too long": (save(GOOD) + b"\0", "damaged or not a LoRA file"),
    "Git LFS pointer": (LFS, "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    "empty": (b"", "is empty"),
    "web page": (b"<!DOCTYPE html><html>Quota exceeded</html>", "damaged or not a LoRA file"),
}
HOSTILE_TENSORS = {
    "name of megabytes": (save({"k" * 5_000_000 + ".lora_down.weight": A}), "has 5,000,017 characters"),
    "control characters": (save({"a\0b\n.lora_down.weight": A}), "is not a LoRA weight"),
    "100,000 halves": (save({f"a{i}.lora_down.weight": torch.ones(1, 1) for i in range(100_000)}), "the other half"),
    "boolean alpha": (save(GOOD | {f"{KEY}.alpha": torch.tensor(True)}), "is not LoRA data"),
    "complex alpha": (save(GOOD | {f"{KEY}.alpha": torch.tensor(1j)}), "is not LoRA data"),
    "negative alpha": (save(GOOD | {f"{KEY}.alpha": torch.tensor(-4)}), "is invalid for rank"),
    "nested adapter": (
        save(
            {f"unet.{MODULE}.lora_A.weight": A, f"unet.{MODULE}.lora_B.weight": B},
            {"lora_adapter_metadata": '{"a":' * 100_000},
        ),
        "lora_adapter_metadata cannot be read",
    ),
    "empty adapter name": (save({f"{MODULE}.lora_A..weight": A, f"{MODULE}.lora_B..weight": B}), "is not a LoRA"),
}


def sentence(error: BaseException, path) -> str:
    message = str(error)
    assert str(path) in message and "\n" not in message and message.endswith(".") and len(message) < 600
    return message


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("read", [read_header, read_lora])
def test_hostile_headers(tmp_path, case, read):
    content, words = HOSTILE[case]
    path = tmp_path / "normals.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert words in sentence(caught.value, path)


@pytest.mark.parametrize("case", HOSTILE_TENSORS)
def test_hostile_tensors(tmp_path, case):
    content, words = HOSTILE_TENSORS[case]
    path = tmp_path / "normals.safetensors"
    path.write_bytes(content)
    assert read_header(path).intrinsic is None
    with pytest.raises(ValueError) as caught:
        read_lora(path)
    assert words in sentence(caught.value, path)


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(x) for x in arguments], env={"COLUMNS": "300", "NO_COLOR": "1"})
    assert result.exception is None or isinstance(result.exception, SystemExit | ValueError), result.exception
    return result.exit_code, result.output


def test_info_shows_a_long_header_in_short(tmp_path):
    path = tmp_path / "normals.safetensors"
    captions = {"ss_tag_frequency": "word " * 1_200_000, "escape": "\x1b[2J"} | {f"x{i}": "y" for i in range(1000)}
    save_file(GOOD, path, captions)
    status, output = run("info", path)
    assert status == 0 and len(output) < 100_000 and "\x1b" not in output
    assert "(6,000,000 characters)" in output and "802 more entries" in output


def test_nested_training_notes(tmp_path):
    path = tmp_path / "normals.safetensors"
    path.write_bytes(ours(training="[" * 1_000_000))
    with pytest.raises(ValueError, match=r"intrinsic_lora\.training cannot be read") as caught:
        _ = read_header(path).training
    sentence(caught.value, path)
    assert run("info", path)[0] == 0
    assert run("convert", path, tmp_path / "out.safetensors")[0] == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_the_tensors_are_not_read_for_the_header(tmp_path):
    path = tmp_path / "x.safetensors"
    write_lora(path, {MODULE: (A, B, 2.0)}, intrinsic="depth", timestep=50, base_model="tiny")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    header = read_header(path)
    assert (header.intrinsic, header.method, header.timestep, header.base_model) == (
        "depth",
        "single-step",
        50,
        "tiny",
    )
    assert (header.prompt, header.convention, header.channels) == ("depth map", "near-bright", 1)
    with pytest.raises(ValueError, match="checksum"):
        read_lora(path)


def test_a_prompt_no_encoder_could_read():
    with pytest.raises(ValueError, match="The prompt of depth has 1,001 characters; use at most 1,000"):
        LoRAHeader.parse({"intrinsic_lora.prompt": "x" * 1001}).definition("depth")


def test_a_header_cannot_be_changed():
    with pytest.raises(AttributeError):
        LoRAHeader().timestep = 5  # type: ignore[misc]


TEXT = st.text(max_size=20)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["intrinsic", "prompt", "convention", "method", "family", "base_model"]), TEXT))
def test_entries_survive(entries):
    entries = {f"intrinsic_lora.{key}": value for key, value in entries.items() if value != "normal"}
    assert LoRAHeader.parse(entries).own_entries() == entries


@settings(deadline=None)
@given(st.sampled_from(["timestep", "channels"]), TEXT | st.integers(-10, 10**12).map(str))
def test_numbers_are_read_or_refused(name, text):
    plain = text.isascii() and text.isdigit() and len(text) < 10
    entries = {f"intrinsic_lora.{name}": text}
    if plain:
        assert getattr(LoRAHeader.parse(entries), name) == int(text)
    else:
        with pytest.raises(ValueError, match="not a whole number"):
            LoRAHeader.parse(entries)


@settings(deadline=None)
@given(st.text(max_size=8), TEXT, TEXT, st.integers(0, 5))
def test_any_header_defines_an_intrinsic_or_is_refused_with_a_sentence(name, prompt, convention, channels):
    header = LoRAHeader(intrinsic=name, prompt=prompt, convention=convention, channels=channels)
    try:
        assert header.definition(name) == Intrinsic(name, prompt, channels, convention)
    except ValueError as error:
        assert str(error).endswith(".")


def test_a_header_without_entries_leaves_the_known_four_as_they_are():
    assert {name: LoRAHeader().definition(name) for name in INTRINSICS} == dict(INTRINSICS)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16])
def test_alpha_of_any_integer_type(dtype):
    lora = read_lora(GOOD | {f"{KEY}.alpha": torch.tensor(4).to(dtype)})
    assert lora.weights[MODULE][2] == 4.0


@pytest.mark.parametrize("adapter", ["default", "my-adapter", "my adapter", "v1+2", "ä"])
def test_adapter_names_of_peft(adapter):
    lora = read_lora({f"unet.{MODULE}.lora_A.{adapter}.weight": A, f"unet.{MODULE}.lora_B.{adapter}.weight": B})
    assert list(lora.weights) == [MODULE] and lora.format == "peft"


def test_a_stray_key_is_not_blamed_on_the_base(tmp_path):
    """The width of the text embeddings has nothing to do with it."""
    save_file(GOOD | {"learning_rate": torch.ones(1)}, tmp_path / "a.safetensors")
    for model in (None, [MODULE], {MODULE: (64, 16)}):
        with pytest.raises(ValueError, match=r"'learning_rate' is not a LoRA weight\.$"):
            read_lora(tmp_path / "a.safetensors", model)
    with pytest.raises(ValueError, match=r"no module for '\S+'\.$"):
        read_lora(GOOD, ["mid_block.other"])
