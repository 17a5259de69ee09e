"""A Stable Diffusion XL with every part real and everything small."""

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from intrinsic_lora.tests.support import tiny
from transformers import CLIPTextConfig, CLIPTextModelWithProjection


def xl_pipeline() -> StableDiffusionXLPipeline:
    parts = tiny.components()
    words = parts["tokenizer"]
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=16,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    parts["unet"] = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=32 + 48,
        attention_head_dim=2,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    return StableDiffusionXLPipeline(
        **parts,
        text_encoder_2=CLIPTextModelWithProjection(config).eval(),
        tokenizer_2=tiny.tokenizer(),
        add_watermarker=False,
    )
