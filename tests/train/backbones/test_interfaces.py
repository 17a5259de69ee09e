"""The interface of backbones: no member that a model cannot honour, and a transformer fits without special cases."""

from collections.abc import Sequence

import pytest
import torch
from diffusers import SD3Transformer2DModel
from intrinsic_lora.intrinsics import INTRINSICS, encode
from intrinsic_lora.tests.support import tiny
from intrinsic_lora.train.backbones.interfaces import Checkpointing, PictureEncoder, require_encoder
from intrinsic_lora.train.backbones.latent import LatentBackbone
from intrinsic_lora.train.backbones.picture import PictureGenerator
from intrinsic_lora.train.backbones.stable_diffusion import StableDiffusion
from intrinsic_lora.train.backbones.stylegan2 import StyleGAN2Backbone
from intrinsic_lora.train.backbones.stylegan_xl import StyleGANXLBackbone
from intrinsic_lora.train.backbones.vqgan import VQGANBackbone
from intrinsic_lora.train.config import TrainConfig
from intrinsic_lora.train.generators.stylegan2 import StyleGAN2
from intrinsic_lora.train.methods import OnePass, SingleStep
from intrinsic_lora.train.prepare import add_loras, build_method
from torch import Tensor

DEPTH = INTRINSICS["depth"]
CONFIG = TrainConfig(out="", base="", intrinsics=["depth"])


class TinySD3(LatentBackbone):
    """What docs/architecture.md says a new model of latents adds; `load` is the constructor here."""

    family = "SD3"
    targets = (r"attn\.to_q", r"attn\.to_k", r"attn\.to_v", r"attn\.to_out\.0")
    timesteps = 1000
    resolution = 64

    def __init__(self) -> None:
        torch.manual_seed(0)
        sizes = {"joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 8}
        transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            **sizes,
        )
        super().__init__(transformer, tiny.components()["vae"], [DEPTH], "tiny")
        self.prompts = {"depth": torch.randn(1, 5, 16), "": torch.zeros(1, 5, 16)}

    def predict(self, latents: Tensor, name: str, timestep: int | Tensor) -> Tensor:
        rows = len(latents)
        sigma = (torch.as_tensor(timestep).expand(rows) + 1) / self.timesteps  # (B,)
        text = self.prompts[name].expand(rows, -1, -1)
        out = self.model(latents, text, text.mean(1)[:, :8], sigma * self.timesteps, return_dict=False)
        return out[0].float()

    def sample(self, seeds: Sequence[int]) -> Tensor:
        shape = (self.latent_channels, *2 * (self.resolution // self.downsample,))
        x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return x - self.predict(x, "", self.timesteps - 1)  # one Euler step of a flow from sigma 1 to 0


def test_a_transformer_trains_with_the_documented_members_alone():
    backbone = TinySD3()
    method = build_method(CONFIG, backbone)
    assert isinstance(method, SingleStep)
    add_loras(CONFIG, backbone, [DEPTH])
    assert len(backbone.lora_weights("depth")) == 2 * 4
    photos = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = method.encode_label(encode(photos[:, :1], DEPTH))
    batch = {"image": backbone.encode_picture(photos), "depth_mean": mean, "depth_std": std}
    assert batch["image"].shape == backbone.dummy_conditions(2, 64).shape
    optimizer = torch.optim.Adam(backbone.lora_parameters("depth"), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = method.loss(batch, "depth", [torch.Generator().manual_seed(row) for row in range(2)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert method.maps(batch["image"], "depth").shape == (2, 1, 64, 64)
    with torch.no_grad():
        assert backbone.render(backbone.sample([0, 1])).shape == (2, 3, 64, 64)
    with pytest.raises(ValueError, match="method=multi-step is for Stable Diffusion; tiny is a SD3"):
        build_method(TrainConfig(out="", base="", method="multi-step"), backbone)


def test_what_a_model_cannot_do_is_no_member_of_it():
    stylegans = (StyleGAN2Backbone, StyleGANXLBackbone)
    for cls in (StableDiffusion, VQGANBackbone, TinySD3):
        assert hasattr(cls, "encode_picture")
    for cls in stylegans:
        assert not hasattr(cls, "encode_picture") and not hasattr(cls, "downsample")
    for cls in (*stylegans, VQGANBackbone):
        assert issubclass(cls, PictureGenerator)
        latent = {"predict", "decode", "encode_target", "timesteps", "enable_gradient_checkpointing"}
        assert {name for name in latent if hasattr(cls, name)} == set()


def test_capabilities_are_asked_of_the_instance():
    stylegan = StyleGAN2Backbone(StyleGAN2(16, channel_base=64), [DEPTH], "faces")
    assert not isinstance(stylegan, PictureEncoder) and not isinstance(stylegan, Checkpointing)
    assert isinstance(build_method(CONFIG, stylegan), OnePass)
    with pytest.raises(ValueError, match="faces is a StyleGAN2, which generates pictures but cannot encode them"):
        require_encoder(stylegan)
    latent = TinySD3()
    assert require_encoder(latent) is latent and isinstance(latent, Checkpointing)
    latent.enable_gradient_checkpointing()
    assert latent.model.is_gradient_checkpointing
