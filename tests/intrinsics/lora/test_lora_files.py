"""I-LoRA files: every family of keys gives the same UNet, and stock diffusers loads what we write.

The references are independent of the reader: weights folded by hand, the attention processor of diffusers 0.20 with
which the released LoRAs were trained, peft's own layers, and diffusers' checkpoint converter for LDM names.
"""

import copy
import hashlib
import json
import logging
import re
import struct
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from intrinsic_lora.intrinsics.lora import LoRA, read_header, read_lora, write_lora
from intrinsic_lora.intrinsics.lora.names import ldm_to_diffusers
from intrinsic_lora.tests.support.closeness import assert_rounded
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYWHERE = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "time_emb_proj")


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


def sd15_unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def make_weights(unet, targets=ATTENTION, mixed_alpha=True, mixed_rank=True) -> dict:
    """Build a LoRA with different ranks and alphas on all layers whose names end in a target."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for i, (name, module) in enumerate(unet.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(targets):
            rank = 2 + i % 3 if mixed_rank else 4
            out, *inner = module.weight.shape
            A = torch.randn(rank, *inner, generator=generator) / 4
            B = torch.randn(out, rank, *[1] * (A.ndim - 2), generator=generator) / 4
            weights[name] = (A, B, float(1 + i % 4) if mixed_alpha else float(rank))
    return weights


def fold(unet, weights) -> nn.Module:
    """W + alpha / r * B A, written out."""
    unet = copy.deepcopy(unet)
    with torch.no_grad():
        for name, (A, B, alpha) in weights.items():
            weight = unet.get_submodule(name).weight
            weight += alpha / A.shape[0] * (B.flatten(1) @ A.flatten(1)).view_as(weight)
    return unet


@torch.no_grad()
def run(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    width = unet.config.cross_attention_dim
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, width, generator=generator)
    return unet(latents, 999, text).sample


def assert_close(actual, expected):
    assert torch.isfinite(expected).all()
    assert_rounded(actual, expected)


# -- The released LoRAs: diffusers 0.20's LoRAAttnProcessor -----------------------------------------------------------


class LoRALinear(nn.Module):
    def __init__(self, in_features, out_features, rank):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)

    def forward(self, x):
        return self.up(self.down(x))


class LoRAAttnProcessor(nn.Module):
    """What the authors trained: the LoRA sits in the processor and adds to each projection with scale 1."""

    def __init__(self, hidden_size, cross_attention_dim, rank):
        super().__init__()
        self.to_q_lora = LoRALinear(hidden_size, hidden_size, rank)
        self.to_k_lora = LoRALinear(cross_attention_dim, hidden_size, rank)
        self.to_v_lora = LoRALinear(cross_attention_dim, hidden_size, rank)
        self.to_out_lora = LoRALinear(hidden_size, hidden_size, rank)

    def forward(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = attn.to_q(hidden_states) + self.to_q_lora(hidden_states)
        k = attn.to_k(context) + self.to_k_lora(context)
        v = attn.to_v(context) + self.to_v_lora(context)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[0](x) + self.to_out_lora(x)


@pytest.fixture(scope="module")
def authors(unet) -> tuple[dict, torch.Tensor]:
    """(state dict, output) of a UNet with the authors' processors."""
    torch.manual_seed(3)
    unet = copy.deepcopy(unet)
    processors = {}
    for name in unet.attn_processors:
        attn = unet.get_submodule(name.removesuffix(".processor"))
        processors[name] = LoRAAttnProcessor(attn.to_q.in_features, attn.to_k.in_features, rank=4)
    unet.set_attn_processor(processors)
    return {key: value for key, value in unet.state_dict().items() if ".processor." in key}, run(unet)


@pytest.mark.parametrize("prefix", ["", "unet."])
@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt", "dict"])
def test_the_authors_files_give_the_authors_output(unet, authors, tmp_path, prefix, suffix):
    state, expected = authors
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight" in state
    source = {prefix + key: value for key, value in state.items()}
    if suffix != "dict":
        path = tmp_path / f"normal.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)(source, path)
        source = path

    lora = read_lora(source, unet)
    assert lora.format == "attn-processor" and len(lora.weights) == 4 * len(unet.attn_processors)
    assert all(alpha == A.shape[0] == 4 for A, _, alpha in lora.weights.values())
    assert (expected - run(unet)).abs().max() > 0.1
    assert_close(run(fold(unet, lora.weights)), expected)


# -- peft -------------------------------------------------------------------------------------------------------------


def save_peft(unet, weights, folder: Path, with_metadata=True, rslora=False) -> tuple[Path, torch.Tensor]:
    """Return what a diffusers training script saves, and peft's output before saving."""
    unet = copy.deepcopy(unet)
    ranks = {name: A.shape[0] for name, (A, _, _) in weights.items()}
    alphas = {name: alpha for name, (_, _, alpha) in weights.items()}
    config = LoraConfig(
        r=4, lora_alpha=3, target_modules=list(weights), rank_pattern=ranks, alpha_pattern=alphas, use_rslora=rslora
    )
    unet.add_adapter(config)
    with torch.no_grad():
        for name, (A, B, _) in weights.items():
            layer = unet.get_submodule(name)
            layer.lora_A["default"].weight.copy_(A)
            layer.lora_B["default"].weight.copy_(B)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=config.to_dict() if with_metadata else None,
    )
    return folder / "pytorch_lora_weights.safetensors", run(unet)


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_file_with_metadata(unet, tmp_path, rslora):
    path, expected = save_peft(unet, make_weights(unet, EVERYWHERE), tmp_path, rslora=rslora)
    lora = read_lora(path, unet)
    assert lora.format == "peft"
    assert_close(run(fold(unet, lora.weights)), expected)


def test_peft_file_with_one_alpha_for_all(unet, tmp_path):
    weights = {name: (A, B, 3.0) for name, (A, B, _) in make_weights(unet, mixed_rank=False).items()}
    path, expected = save_peft(unet, weights, tmp_path)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["lora_adapter_metadata"])["unet.lora_alpha"] == 3
    assert_close(run(fold(unet, read_lora(path, unet).weights)), expected)


def test_peft_file_without_metadata_means_alpha_is_the_rank(unet, tmp_path):
    path, expected = save_peft(unet, make_weights(unet, EVERYWHERE, mixed_alpha=False), tmp_path, with_metadata=False)
    assert_close(run(fold(unet, read_lora(path, unet).weights)), expected)


def test_peft_training_state_dict_and_a_unet_that_already_has_another_lora(unet):
    weights = make_weights(unet, mixed_alpha=False)
    state = {}
    for name, (A, B, _) in weights.items():
        state[f"base_model.model.{name}.lora_A.default.weight"] = A
        state[f"base_model.model.{name}.lora_B.default.weight"] = B
    busy = copy.deepcopy(unet)
    busy.add_adapter(LoraConfig(r=2, target_modules=list(ATTENTION)))
    lora = read_lora(state, busy)
    assert set(lora.weights) == set(weights)


# -- kohya and LDM ----------------------------------------------------------------------------------------------------


def kohya(weights) -> dict:
    state = {}
    for name, (A, B, alpha) in weights.items():
        key = "lora_unet_" + name.replace(".", "_")
        state |= {f"{key}.lora_down.weight": A, f"{key}.lora_up.weight": B, f"{key}.alpha": torch.tensor(alpha)}
    return state


def test_kohya_file(unet, tmp_path):
    weights = make_weights(unet, EVERYWHERE)
    save_file(kohya(weights), tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors", unet)
    assert lora.format == "kohya" and {m: w[2] for m, w in lora.weights.items()} == {
        m: w[2] for m, w in weights.items()
    }
    assert_close(run(fold(unet, lora.weights)), run(fold(unet, weights)))
    names = iter([name for name, _ in unet.named_modules()])
    assert set(read_lora(tmp_path / "a.safetensors", names).weights) == set(weights)


def ldm_to_diffusers_by_diffusers(unet) -> dict[str, str]:
    """{LDM module: diffusers module} of all layers, names in the order CompVis' UNetModel builds them."""
    levels, layers = len(unet.config.block_out_channels), unet.config.layers_per_block
    has_attention = ["CrossAttn" in kind for kind in unet.config.down_block_types]

    resnet = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
    block = unet.mid_block.attentions[0]
    attention = [n for n, m in block.named_modules() if getattr(m, "weight", None) is not None]

    names = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2"]
    index, skips = 1, [unet.config.block_out_channels[0]]
    channels = unet.config.block_out_channels[0]
    for level, width in enumerate(unet.config.block_out_channels):
        for _ in range(layers):
            names += [f"input_blocks.{index}.0.{part}" for part in resnet]
            names += [f"input_blocks.{index}.0.skip_connection"] if channels != width else []
            names += [f"input_blocks.{index}.1.{part}" for part in attention] if has_attention[level] else []
            channels = width
            skips.append(width)
            index += 1
        if level < levels - 1:
            names.append(f"input_blocks.{index}.0.op")
            skips.append(width)
            index += 1
    names += [f"middle_block.{i}.{part}" for i in (0, 2) for part in resnet]
    names += [f"middle_block.1.{part}" for part in attention]
    index = 0
    for level in reversed(range(levels)):
        for layer in range(layers + 1):
            names += [f"output_blocks.{index}.0.{part}" for part in resnet]
            names += [f"output_blocks.{index}.0.skip_connection"]  # always: the skip widens the input
            names += [f"output_blocks.{index}.1.{part}" for part in attention] if has_attention[level] else []
            if level and layer == layers:
                names.append(f"output_blocks.{index}.{1 + has_attention[level]}.conv")
            index += 1
    checkpoint = {f"model.diffusion_model.{name}.weight": torch.tensor(i) for i, name in enumerate(names)}
    checkpoint |= {f"model.diffusion_model.{name}.bias": torch.tensor(-1) for name in names}  # some are asked for
    converted = convert_ldm_unet_checkpoint(checkpoint, dict(unet.config))
    mapping = {names[int(i)]: key.removesuffix(".weight") for key, i in converted.items() if i >= 0}
    weighted = {n for n, m in unet.named_modules() if getattr(m, "weight", None) is not None}
    assert set(mapping.values()) == weighted, "the reference itself must be complete"
    return mapping


@pytest.mark.parametrize("which", ["tiny", "sd15"])
def test_ldm_names_agree_with_diffusers_converter(unet, which):
    model = unet if which == "tiny" else sd15_unet()
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    mapping = {ldm: name for ldm, name in ldm_to_diffusers_by_diffusers(model).items() if name in layers}
    assert len(mapping) == len(layers)
    assert {ldm: ldm_to_diffusers(ldm) for ldm in mapping} == mapping
    underscored = {ldm_to_diffusers(ldm.replace(".", "_")): name.replace(".", "_") for ldm, name in mapping.items()}
    assert all(ours == theirs for ours, theirs in underscored.items())


@pytest.mark.parametrize("layers_per_block", [1, 2, 3])
def test_ldm_numbers_follow_the_model(layers_per_block):
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64, 64),
            layers_per_block=layers_per_block,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
        )
    state, expected = {}, set()
    for ldm, name in ldm_to_diffusers_by_diffusers(unet).items():
        if name.endswith(ATTENTION):
            out, inner = unet.get_submodule(name).weight.shape
            state[f"diffusion_model.{ldm}.lora_up.weight"] = torch.ones(out, 1)
            state[f"diffusion_model.{ldm}.lora_down.weight"] = torch.ones(1, inner)
            expected.add(name)
    assert set(read_lora(state, unet).weights) == expected


@pytest.mark.parametrize("style", ["lora_down", "lora_A", "underscores"])
def test_ldm_file(unet, tmp_path, style):
    weights = make_weights(unet, EVERYWHERE)
    to_ldm = {name: ldm for ldm, name in ldm_to_diffusers_by_diffusers(unet).items()}
    state = {}
    for name, (A, B, alpha) in weights.items():
        key = f"diffusion_model.{to_ldm[name]}"
        if style == "underscores":
            key = "lora_unet_" + to_ldm[name].replace(".", "_")
        down, up = ("lora_A", "lora_B") if style == "lora_A" else ("lora_down", "lora_up")
        state |= {f"{key}.{down}.weight": A, f"{key}.{up}.weight": B, f"{key}.alpha": torch.tensor(alpha)}
    save_file(state, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors", unet)
    assert lora.format == ("kohya" if style == "underscores" else "ldm")
    assert_close(run(fold(unet, lora.weights)), run(fold(unet, weights)))


def test_linear_and_convolution_spellings_fit_the_model(unet):
    """SD 1.x has 1x1 convolutions where SD 2.x has linear layers, and trainers write either."""
    weights = make_weights(unet, ("proj_in", "to_q"))
    swapped = {}
    for name, (A, B, alpha) in weights.items():
        if name.endswith("proj_in"):
            swapped[name] = (A.flatten(1), B.flatten(1), alpha)
        else:
            swapped[name] = (A[:, :, None, None], B[:, :, None, None], alpha)
    lora = read_lora(kohya(swapped), unet)
    for name, (A, B, _) in weights.items():
        assert torch.equal(lora.weights[name][0], A) and torch.equal(lora.weights[name][1], B)


# -- Names without a model --------------------------------------------------------------------------------------------


def test_kohya_names_of_sd15_are_read_without_a_model():
    names = {n for n, m in sd15_unet().named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    state = kohya({name: (torch.ones(1, 3), torch.ones(5, 1), 1.0) for name in names})
    assert set(read_lora(state).weights) == names


def test_a_kohya_name_nobody_knows_keeps_its_spelling():
    state = kohya({"double_blocks.0.img_attn.proj": (torch.ones(1, 3), torch.ones(5, 1), 1.0)})
    lora = read_lora(state)
    assert set(lora.weights) == {"lora_unet_double_blocks_0_img_attn_proj"}
    assert lora.base_model == "Flux or another transformer model"


def test_the_released_size():
    """Rank 8 on all attention projections of SD 1.5, through the reader's eyes."""
    unet = sd15_unet()
    state = {}
    for name in unet.attn_processors:
        attn = unet.get_submodule(name.removesuffix(".processor"))
        for projection, layer in {"q": attn.to_q, "k": attn.to_k, "v": attn.to_v, "out": attn.to_out[0]}.items():
            state[f"{name}.to_{projection}_lora.down.weight"] = torch.ones(8, layer.in_features)
            state[f"{name}.to_{projection}_lora.up.weight"] = torch.ones(layer.out_features, 8)
    lora = read_lora(state, unet)
    assert 2 * len(lora.weights) == 256
    assert sum(A.numel() + B.numel() for A, B, _ in lora.weights.values()) == 1_594_368
    assert lora.base_model == "Stable Diffusion 1.x"


# -- Writing ----------------------------------------------------------------------------------------------------------


def stable_diffusion(unet) -> StableDiffusionPipeline:
    torch.manual_seed(4)
    text = CLIPTextConfig(
        vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        unet=copy.deepcopy(unet),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab={"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, merges=[]),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.parametrize("targets", [ATTENTION, (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")])
def test_stock_diffusers_loads_what_we_write(unet, tmp_path, caplog, targets):
    weights = make_weights(unet, targets)
    write_lora(tmp_path / "normals.safetensors", weights, intrinsic="normals", base_model="tiny")
    pipe = stable_diffusion(unet)
    with caplog.at_level(logging.WARNING):
        pipe.load_lora_weights(tmp_path / "normals.safetensors", adapter_name="normals")
    assert "not find" not in caplog.text and "prefix='unet'" not in caplog.text
    expected = run(fold(unet, weights))
    assert (expected - run(unet)).abs().max() > 0.1
    assert_close(run(pipe.unet), expected)
    assert_close(run(fold(unet, read_lora(tmp_path / "normals.safetensors", unet).weights)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_write_then_read_is_exact(unet, tmp_path, dtype):
    weights = {m: (A.to(dtype), B.to(dtype), 3.0) for m, (A, B, _) in make_weights(unet, EVERYWHERE).items()}
    write_lora(tmp_path / "a.safetensors", weights, intrinsic="depth")
    for lora in (read_lora(tmp_path / "a.safetensors", unet), read_lora(tmp_path / "a.safetensors")):
        assert isinstance(lora, LoRA) and set(lora.weights) == set(weights)
        for module, (A, B, _) in weights.items():
            a, b, alpha = lora.weights[module]
            assert torch.equal(a, A.float()) and torch.equal(b, B.float())
            assert a.dtype == torch.float32 and alpha == 3


def test_mixed_alphas_are_written_as_one(unet, tmp_path):
    """Stock diffusers ignores the differences between alphas, so B has to carry them."""
    weights = make_weights(unet, EVERYWHERE)
    write_lora(tmp_path / "a.safetensors", weights, intrinsic="depth")
    lora = read_lora(tmp_path / "a.safetensors", unet)
    assert len({alpha for _, _, alpha in weights.values()}) > 1
    assert len({alpha for _, _, alpha in lora.weights.values()}) == 1
    for module, (A, B, alpha) in weights.items():
        scale, read_scale = alpha / A.shape[0], lora.weights[module][2] / A.shape[0]
        torch.testing.assert_close(read_scale * lora.weights[module][1], scale * B, rtol=3e-7, atol=0)


def test_header(unet, tmp_path):
    path = tmp_path / "file.safetensors"
    training = {"config": {"steps": 20_000, "data": Path("labels")}, "metrics": {"mean_angular_error": 12.5}}
    weights = {m: (A, B, 8.0) for m, (A, B, _) in make_weights(unet, mixed_rank=False).items()}
    write_lora(
        path,
        weights,
        intrinsic="shading",
        base_model="stable-diffusion-v1-5/stable-diffusion-v1-5",
        training=training,
        extra={"modelspec.author": "somebody"},
    )
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert all(re.fullmatch(r"lora_unet_\w+\.(lora_down\.weight|lora_up\.weight|alpha)", key) for key in header)
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data[8 + length :]).hexdigest()
    assert metadata["modelspec.author"] == "somebody" and metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "8.0")
    ours = {key.removeprefix("intrinsic_lora."): value for key, value in metadata.items() if "intrinsic_lora." in key}
    assert json.loads(ours.pop("training"))["metrics"] == {"mean_angular_error": 12.5}
    assert ours == {
        "version": "1",
        "intrinsic": "shading",
        "prompt": "shading",
        "method": "single-step",
        "timestep": "999",
        "convention": "srgb",
        "channels": "1",
        "base_model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    }
    lora = read_lora(path)
    assert lora.header.entries == metadata and lora.path == path
    assert lora.base_model == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_the_file_says_which_intrinsic_it_is(unet, tmp_path):
    weights = make_weights(unet, ("attn1.to_q",))
    write_lora(tmp_path / "depth_of_field.safetensors", weights, intrinsic="albedo")
    path = tmp_path / "depth_of_field.safetensors"
    assert read_lora(path).intrinsic == read_header(path).intrinsic == "albedo"  # the header wins over the name
    for name, expected in {
        "intrinsic_lora_sd15_normal": "normals",
        "Surface-Normals_r8": "normals",
        "depth": "depth",
        "pytorch_model": None,
        "albedo_and_shading": None,
    }.items():
        save_file(kohya(weights), tmp_path / f"{name}.safetensors")
        assert read_lora(tmp_path / f"{name}.safetensors").intrinsic == expected
        assert read_header(tmp_path / f"{name}.safetensors").intrinsic is None


WEIGHTS = {"mid_block.attentions.0.proj_in": (torch.ones(2, 16), torch.ones(64, 2), 2.0)}


def test_the_same_lora_is_the_same_bytes(tmp_path):
    """safetensors by itself orders the metadata by chance."""
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for file in files:
        write_lora(file, WEIGHTS, intrinsic="normals", training={"steps": 3}, extra={"modelspec.author": "Zoë"})
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], "pt") as file:
        assert file.metadata()["modelspec.author"] == "Zoë"
        assert torch.equal(
            file.get_tensor("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"), torch.ones(64, 2)
        )
