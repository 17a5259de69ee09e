"""A Stable Diffusion with every part real and everything small: built in a second, run in milliseconds."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from intrinsic_lora.intrinsics.lora import write_lora
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # what the released LoRAs touch
MORE = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
Weights = dict[str, tuple[torch.Tensor, torch.Tensor, float]]


def tokenizer() -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=24)


def components(seed: int = 0, linear_projection: bool = False) -> dict:
    """Return constructor arguments of the pipeline: VAE factor 4, UNet of two levels with cross attention at both."""
    torch.manual_seed(seed)
    words = tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=24,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
        use_linear_projection=linear_projection,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 32),
        norm_num_groups=8,
        latent_channels=4,
    )
    return {
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": words,
        "unet": unet.eval(),
        "scheduler": DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
    }


def random_lora(
    unet: nn.Module, rank: int = 4, alpha: float | None = None, targets: tuple[str, ...] = ATTENTION, seed: int = 0
) -> Weights:
    """Build a LoRA on all layers of `unet` whose names end in one of `targets`, strong enough to change the output."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and "attentions" in name and name.endswith(targets):
            out_features, in_features = module.weight.shape[:2]
            a = torch.randn(rank, in_features, generator=generator) / in_features**0.5
            b = 0.3 * torch.randn(out_features, rank, generator=generator) / rank**0.5
            weights[name] = (a, b, float(rank if alpha is None else alpha))
    return weights


def peft_state(weights: Weights) -> dict[str, torch.Tensor]:
    """Return the keys written by diffusers and peft, without metadata (and therefore without alpha)."""
    halves = {f"unet.{name}.lora_A.weight": a for name, (a, _, _) in weights.items()}
    return halves | {f"unet.{name}.lora_B.weight": b for name, (_, b, _) in weights.items()}


def fold(unet: nn.Module, weights: Weights) -> None:
    """Add alpha / r * B A to the weights of `unet`, in place: the independent reference for every LoRA path."""
    with torch.no_grad():
        for name, (a, b, alpha) in weights.items():
            weight = unet.get_submodule(name).weight
            weight += (alpha / a.shape[0] * b @ a).reshape(weight.shape)


def write_loras(folder: Path, unet: nn.Module, names: tuple[str, ...], timestep: int = 999) -> dict[str, Weights]:
    """Write one LoRA per name, with different ranks and alphas, as `intrinsic_lora_<name>.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for i, name in enumerate(names):
        written[name] = random_lora(unet, rank=2 + i, alpha=1.5 * (1 + i), seed=i)
        path = folder / f"intrinsic_lora_{name}.safetensors"
        write_lora(path, written[name], intrinsic=name, timestep=timestep, base_model="tiny")
    return written


def ldm_checkpoint(parts: dict) -> dict[str, torch.Tensor]:
    """Rename the weights to the CompVis names of single-file checkpoints, listed for this architecture."""
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
    resnet |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    unet = {"time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2."}
    unet |= {"conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.", "conv_out.": "out.2."}
    unet |= {"mid_block.resnets.0.": "middle_block.0.", "mid_block.resnets.1.": "middle_block.2."}
    unet |= {
        "mid_block.attentions.0.": "middle_block.1.",
        "down_blocks.0.downsamplers.0.conv.": "input_blocks.2.0.op.",
    }
    unet |= {"up_blocks.0.upsamplers.0.conv.": "output_blocks.1.2.conv."}
    for level, block in enumerate((1, 3)):
        unet[f"down_blocks.{level}.resnets.0."] = f"input_blocks.{block}.0."
        unet[f"down_blocks.{level}.attentions.0."] = f"input_blocks.{block}.1."
    for block in range(4):
        unet[f"up_blocks.{block // 2}.resnets.{block % 2}."] = f"output_blocks.{block}.0."
        unet[f"up_blocks.{block // 2}.attentions.{block % 2}."] = f"output_blocks.{block}.1."
    vae = {"conv_norm_out.": "norm_out.", "mid_block.attentions.0.": "mid.attn_1.", "group_norm": "norm"}
    vae |= {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "conv_shortcut": "nin_shortcut"}
    vae |= {"mid_block.resnets.0.": "mid.block_1.", "mid_block.resnets.1.": "mid.block_2."}
    for level in range(3):
        vae[f"down_blocks.{level}.resnets."] = f"down.{level}.block."
        vae[f"down_blocks.{level}.downsamplers.0."] = f"down.{level}.downsample."
        vae[f"up_blocks.{level}.resnets."] = f"up.{2 - level}.block."
        vae[f"up_blocks.{level}.upsamplers.0."] = f"up.{2 - level}.upsample."

    def rename(name: str, names: dict[str, str]) -> str:
        for ours, theirs in names.items():
            name = name.replace(ours, theirs) if not ours.startswith("conv_") or "shortcut" in ours else name
        for ours in ("conv_in.", "conv_norm_out.", "conv_out."):  # also ends of other names
            top = name.removeprefix("encoder.").removeprefix("decoder.")
            if ours in names and top.startswith(ours):
                name = name.replace(ours, names[ours])
        return name

    state = {}
    for name, value in parts["unet"].state_dict().items():
        new = rename(name, unet)
        if ".resnets." in name:
            new = rename(new, {f".{ours}.": f".{theirs}." for ours, theirs in resnet.items()})
        state[f"model.diffusion_model.{new}"] = value
    for name, value in parts["vae"].state_dict().items():
        new = rename(name, vae)
        square = value.ndim == 2 and ".mid.attn_1." in new  # 1x1 convolutions there
        state[f"first_stage_model.{new}"] = value[..., None, None] if square else value
    for name, value in parts["text_encoder"].state_dict().items():
        name = name if name.startswith("text_model.") else f"text_model.{name}"
        state[f"cond_stage_model.transformer.{name}"] = value
    return {name: value.contiguous() for name, value in state.items()}
