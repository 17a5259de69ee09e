"""Checkpoints in the formats of Stable Diffusion that a real ComfyUI recognises, and as small as it allows.

Every tensor is listed by its name in the CompVis (LDM) layout, independently of both libraries that read the files.
The UNet's first width (320) and the width of its text context are what ComfyUI knows a family by; its depth is free.
VAE and text encoder have full size.
"""

import json
import math
import shutil
import struct
from pathlib import Path

import torch
from intrinsic_lora.intrinsics.files import atomic_path
from safetensors.torch import save_file

WIDTH, EMBEDDING = 320, 1280
LEVELS = 2  # of the small UNet, with one resnet and one attention each; the real one has 4 of 2
Shapes = dict[str, tuple[int, ...]]


def _layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _resnet(name: str, inside: int, outside: int) -> Shapes:
    shapes = _layer(f"{name}.in_layers.0", inside) | _layer(f"{name}.in_layers.2", outside, inside, 3, 3)
    shapes |= _layer(f"{name}.emb_layers.1", outside, EMBEDDING)
    shapes |= _layer(f"{name}.out_layers.0", outside) | _layer(f"{name}.out_layers.3", outside, outside, 3, 3)
    return shapes | (_layer(f"{name}.skip_connection", outside, inside, 1, 1) if inside != outside else {})


def _transformer(name: str, width: int, depth: int, context: int, linear: bool) -> Shapes:
    projection = (width, width) if linear else (width, width, 1, 1)
    shapes = _layer(f"{name}.norm", width) | _layer(f"{name}.proj_in", *projection)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, source in (("attn1", width), ("attn2", context)):
            shapes[f"{block}.{attention}.to_q.weight"] = (width, width)
            shapes[f"{block}.{attention}.to_k.weight"] = (width, source)
            shapes[f"{block}.{attention}.to_v.weight"] = (width, source)
            shapes |= _layer(f"{block}.{attention}.to_out.0", width, width)
        shapes |= _layer(f"{block}.ff.net.0.proj", 8 * width, width) | _layer(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= _layer(f"{block}.{norm}", width)
    return shapes | _layer(f"{name}.proj_out", *projection)


def unet_shapes(
    depths_in: list[list[int]],
    depths_out: list[list[int]],
    depth_middle: int,
    context: int,
    linear: bool,
    vector: int | None = None,
) -> Shapes:
    """Names and shapes of a UNet that is 320 channels wide at every level.

    Args:
        depths_in: per level on the way down, per resnet, the number of transformer blocks after it.
        depths_out: per level on the way up (the deepest first) the same; one resnet more than `depths_in`.
        depth_middle: transformer blocks in the middle.
        context: width of the text embedding.
        linear: whether the projections around transformer blocks are linear layers (SD 2, SDXL) or 1x1 convolutions.
        vector: width of the pooled conditioning vector (SDXL).
    """
    shapes = _layer("time_embed.0", EMBEDDING, WIDTH) | _layer("time_embed.2", EMBEDDING, EMBEDDING)
    if vector is not None:
        shapes |= _layer("label_emb.0.0", EMBEDDING, vector) | _layer("label_emb.0.2", EMBEDDING, EMBEDDING)
    shapes |= _layer("input_blocks.0.0", WIDTH, 4, 3, 3)
    number = 0
    for level, depths in enumerate(depths_in):
        if level > 0:
            number += 1
            shapes |= _layer(f"input_blocks.{number}.0.op", WIDTH, WIDTH, 3, 3)
        for depth in depths:
            number += 1
            shapes |= _resnet(f"input_blocks.{number}.0", WIDTH, WIDTH)
            if depth:
                shapes |= _transformer(f"input_blocks.{number}.1", WIDTH, depth, context, linear)
    shapes |= _resnet("middle_block.0", WIDTH, WIDTH) | _resnet("middle_block.2", WIDTH, WIDTH)
    shapes |= _transformer("middle_block.1", WIDTH, depth_middle, context, linear)
    number = 0
    for level, depths in enumerate(depths_out):
        for i, depth in enumerate(depths):
            shapes |= _resnet(f"output_blocks.{number}.0", 2 * WIDTH, WIDTH)  # with the skip connection's channels
            if depth:
                shapes |= _transformer(f"output_blocks.{number}.1", WIDTH, depth, context, linear)
            if i == len(depths) - 1 and level < len(depths_out) - 1:
                shapes |= _layer(f"output_blocks.{number}.{2 if depth else 1}.conv", WIDTH, WIDTH, 3, 3)
            number += 1
    shapes |= _layer("out.0", WIDTH) | _layer("out.2", 4, WIDTH, 3, 3)
    return {f"model.diffusion_model.{name}": shape for name, shape in shapes.items()}


def vae_shapes() -> Shapes:
    """Names and shapes of Stable Diffusion's VAE."""

    def block(name: str, inside: int, outside: int) -> Shapes:
        shapes = _layer(f"{name}.norm1", inside) | _layer(f"{name}.conv1", outside, inside, 3, 3)
        shapes |= _layer(f"{name}.norm2", outside) | _layer(f"{name}.conv2", outside, outside, 3, 3)
        return shapes | (_layer(f"{name}.nin_shortcut", outside, inside, 1, 1) if inside != outside else {})

    widths = (128, 256, 512, 512)
    shapes = _layer("encoder.conv_in", 128, 3, 3, 3) | _layer("decoder.conv_in", 512, 4, 3, 3)
    for half in ("encoder", "decoder"):
        shapes |= block(f"{half}.mid.block_1", 512, 512) | block(f"{half}.mid.block_2", 512, 512)
        shapes |= _layer(f"{half}.mid.attn_1.norm", 512)
        for part in ("q", "k", "v", "proj_out"):
            shapes |= _layer(f"{half}.mid.attn_1.{part}", 512, 512, 1, 1)
    inside = 128
    for level, width in enumerate(widths):
        for i in range(2):
            shapes |= block(f"encoder.down.{level}.block.{i}", inside, width)
            inside = width
        if level < 3:
            shapes |= _layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    for level in reversed(range(4)):
        width = widths[level]
        for i in range(3):
            shapes |= block(f"decoder.up.{level}.block.{i}", inside, width)
            inside = width
        if level > 0:
            shapes |= _layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    shapes |= _layer("encoder.norm_out", 512) | _layer("encoder.conv_out", 8, 512, 3, 3)
    shapes |= _layer("decoder.norm_out", 128) | _layer("decoder.conv_out", 3, 128, 3, 3)
    shapes |= _layer("quant_conv", 8, 8, 1, 1) | _layer("post_quant_conv", 4, 4, 1, 1)
    return {f"first_stage_model.{name}": shape for name, shape in shapes.items()}


def clip_shapes() -> Shapes:
    """Names and shapes of SD 1.5's text encoder, CLIP-L."""
    width = 768
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
    }
    for i in range(12):
        layer = f"encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _layer(f"{layer}.self_attn.{part}", width, width)
        shapes |= _layer(f"{layer}.mlp.fc1", 4 * width, width) | _layer(f"{layer}.mlp.fc2", width, 4 * width)
        shapes |= _layer(f"{layer}.layer_norm1", width) | _layer(f"{layer}.layer_norm2", width)
    shapes |= _layer("final_layer_norm", width)
    return {f"cond_stage_model.transformer.text_model.{name}": shape for name, shape in shapes.items()}


# Against layers of unit gain: the encoder's latents get a real one's spread, the decoder's pictures are not saturated.
_GAINS = {"first_stage_model.encoder.conv_out": 5.0, "first_stage_model.decoder.conv_out": 0.5}


def _weights(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("embedding.weight"):
        return 0.02 * noise
    if name.endswith(".bias"):
        return 0.05 * noise
    if len(shape) == 1:  # of a normalisation
        return 1 + 0.1 * noise
    return _GAINS.get(name.removesuffix(".weight"), 1.0) * noise / math.sqrt(math.prod(shape[1:]))


def write_sd15(path: Path, seed: int = 0) -> None:
    """Write an SD 1.5 checkpoint in float16, 502 MB: a UNet of 44 M parameters, the full VAE and CLIP-L.

    Seeded weights of sane scales: pictures differ with photo, prompt and LoRA, and few pixels are clipped.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = [[1]] * LEVELS, [[1, 1]] * LEVELS
    shapes = unet_shapes(*levels, depth_middle=1, context=768, linear=False) | vae_shapes() | clip_shapes()
    state = {name: _weights(name, shape, generator).half() for name, shape in shapes.items()}
    with atomic_path(path) as temporary:
        save_file(state, str(temporary))


def write_controlnet(path: Path, seed: int = 0) -> None:
    """Write a ControlNet for the UNet of `write_sd15` in float16, 43 MB, in the layout of the published ones.

    Its last layers are not zero as before training: it bends what the sampler makes.
    """
    unet = unet_shapes([[1]] * LEVELS, [[1, 1]] * LEVELS, depth_middle=1, context=768, linear=False)
    shapes = {name.removeprefix("model.diffusion_model."): shape for name, shape in unet.items()}
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(("output_blocks.", "out."))}
    widths = (3, 16, 16, 32, 32, 96, 96, 256, WIDTH)  # of the layers that bring the picture to the latent's size
    for i in range(8):
        shapes |= _layer(f"input_hint_block.{2 * i}", widths[i + 1], widths[i], 3, 3)
    for i in range(2 * LEVELS):
        shapes |= _layer(f"zero_convs.{i}.0", WIDTH, WIDTH, 1, 1)
    shapes |= _layer("middle_block_out.0", WIDTH, WIDTH, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    state = {f"control_model.{name}": _weights(name, shape, generator).half() for name, shape in shapes.items()}
    with atomic_path(path) as temporary:
        save_file(state, str(temporary))


def write_sdxl(path: Path) -> None:
    """Write what ComfyUI detects as SDXL: a UNet of 320 channels, without attention in the output blocks.

    Without CLIP and VAE. The weights are zeros that are not stored: the file is sparse and takes no room.
    """
    depths = [[0, 0], [2, 2], [10, 10]], [[0, 0, 0]] * 3
    _write_blank(path, unet_shapes(*depths, depth_middle=1, context=2048, linear=True, vector=2816))


def write_sd2(path: Path) -> None:
    """Write what ComfyUI detects as SD 2, with one level; sparse, without CLIP and VAE."""
    _write_blank(path, unet_shapes([[1]], [[1, 1]], depth_middle=1, context=1024, linear=True))


def _write_blank(path: Path, shapes: Shapes) -> None:
    """Write a sparse safetensors file of float16 zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def write_sd15_config(folder: Path, comfyui_dir: Path) -> None:
    """Write the diffusers folder without weights for `from_single_file(..., config=folder)` of `write_sd15`.

    The tokenizer is the one in ComfyUI's own folder, so both sides read a prompt with the same vocabulary; its length
    is SD 1.5's, for ComfyUI cuts long prompts itself.
    """
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"] * LEVELS, "up_block_types": ["CrossAttnUpBlock2D"] * LEVELS}
    unet = {"_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "out_channels": 4, **blocks}
    unet |= {"block_out_channels": [WIDTH] * LEVELS, "layers_per_block": 1, "cross_attention_dim": 768}
    unet |= {"attention_head_dim": 8}
    vae = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    vae |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae |= {"latent_channels": 4, "sample_size": 512, "scaling_factor": 0.18215}
    clip = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "quick_gelu"}
    clip |= {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    clip |= {"vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": 768}
    clip |= {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    scheduler = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    scheduler |= {"beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "skip_prk_steps": True}
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
    }
    files = {"unet/config": unet, "vae/config": vae, "text_encoder/config": clip, "model_index": index}
    for name, content in (files | {"scheduler/scheduler_config": scheduler}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content))
    shutil.copytree(comfyui_dir / "comfy" / "sd1_tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    tokenizer = folder / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"model_max_length": 77}))
