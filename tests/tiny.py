"""A Stable Diffusion with every part real and everything small: built in a second, run in milliseconds."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from intrinsic_lora.intrinsics.lora_write import write_lora
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
    """Constructor arguments of the pipeline. VAE factor 4, UNet of two levels with cross attention at both."""
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
        "scheduler": DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    }


def random_lora(
    unet: nn.Module, rank: int = 4, alpha: float | None = None, targets: tuple[str, ...] = ATTENTION, seed: int = 0
) -> Weights:
    """A LoRA on every layer of `unet` whose name ends in one of `targets`, strong enough to change the output."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and "attentions" in name and name.endswith(targets):
            out_features, in_features = module.weight.shape[:2]
            a = torch.randn(rank, in_features, generator=generator) / in_features**0.5
            b = torch.randn(out_features, rank, generator=generator) / rank**0.5
            weights[name] = (a, b, float(rank if alpha is None else alpha))
    return weights


def fold(unet: nn.Module, weights: Weights) -> None:
    """Adds alpha / r * B A to the weights of `unet`, in place: the independent reference for every LoRA path."""
    with torch.no_grad():
        for name, (a, b, alpha) in weights.items():
            weight = unet.get_submodule(name).weight
            weight += (alpha / a.shape[0] * b @ a).reshape(weight.shape)


def write_loras(folder: Path, unet: nn.Module, names: tuple[str, ...], timestep: int = 999) -> dict[str, Weights]:
    """Writes one LoRA per name, each of another rank and alpha, as `intrinsic_lora_<name>.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for i, name in enumerate(names):
        written[name] = random_lora(unet, rank=2 + i, alpha=1.5 * (1 + i), seed=i)
        path = folder / f"intrinsic_lora_{name}.safetensors"
        write_lora(path, written[name], intrinsic=name, timestep=timestep, base_model="tiny")
    return written
