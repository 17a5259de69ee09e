"""Stable Diffusion 1.x, 2.x and SDXL as one-step image-to-image networks.

The UNet is shown the latent of a photo and one fixed timestep, and its output *is* the clean latent of the map.
Nothing is converted by the base's prediction type, which is why epsilon and v bases are trained alike.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    SchedulerMixin,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor, nn

from ...diffusers_pipeline.single_step import IntrinsicLoRAPipeline
from ...intrinsics.files import refuse_lfs_pointer
from ...intrinsics.vocabulary import CHECKPOINT_SUFFIXES, Intrinsic
from .latent import LatentBackbone

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
GUIDANCE = 7.5  # Stable Diffusion's usual one
EMBEDDED_NAME = "intrinsic-lora embedded"


class StableDiffusion(LatentBackbone):
    """A frozen UNet with LoRAs, the VAE around it, and one text embedding per intrinsic.

    Attributes:
        unet: `model` under its usual name.
        scheduler: the base's own; a single step uses nothing but its number of `timesteps`.
        prompts: {intrinsic name or text: (1, tokens, width)}, "" for the empty prompt.
        pooled: for SDXL, {intrinsic name or text: (1, width)}.
    """

    family = "Stable Diffusion"
    targets = ("to_q", "to_k", "to_v", "to_out.0")  # the paper's
    sample_options = ("prompt",)
    load_options = ("base_config", "prompts")

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        prompts: dict[str, Tensor],
        pooled: dict[str, Tensor],
        intrinsics: Sequence[Intrinsic],
        name: str = "",
    ) -> None:
        super().__init__(unet, vae, intrinsics, name)
        self.unet = unet
        self.scheduler = scheduler
        self.prompts, self.pooled = prompts, pooled
        if pooled:
            self.family = "SDXL"
        self.timesteps: int = scheduler.config.num_train_timesteps
        self.resolution: int = unet.config.sample_size * self.downsample

    @classmethod
    def load(
        cls,
        base: str | Path | None,
        intrinsics: Sequence[Intrinsic],
        *,
        base_config: str | Path | None = None,
        prompts: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load a base model and embed the prompts; the text encoders are dropped afterwards.

        Args:
            base: None for the embedded model, a diffusers folder, a single-file checkpoint, or a hub id (downloaded).
            intrinsics: what LoRAs will be trained for.
            base_config: for a single file only: a diffusers folder or hub id of the same family.
            prompts: texts to `sample` with.
            dtype: of the UNet. The VAE stays in float32, so that targets are exact; text is embedded in float32.
            device: where the UNet and the VAE go.

        Raises:
            FileNotFoundError: the base was not found.
            ValueError: it is not a plain text-to-image Stable Diffusion 1.x, 2.x or SDXL.
        """
        is_xl = _check_base(base)
        options: dict[str, Any] = {} if base_config is None else {"config": str(base_config)}
        if is_xl:
            pipe: Any = _load_xl(str(base), options)
        else:
            pipe = IntrinsicLoRAPipeline.from_pretrained(base, **options)
        unet, device = pipe.unet, torch.device(device)
        if (
            unet.config.in_channels != pipe.vae.config.latent_channels
            or unet.config.class_embed_type is not None
            or unet.config.addition_embed_type not in (None, "text_time")
        ):
            raise ValueError(f"{base} is an inpainting, editing or upscaling model; use a plain text-to-image base.")
        embedded, pooled = {}, {}
        texts = {text: text for text in ("", *prompts)} | {one.name: one.prompt for one in intrinsics}
        with torch.no_grad():
            for key, prompt in texts.items():
                if is_xl:
                    text, _, whole, _ = pipe.encode_prompt(
                        prompt, device=torch.device("cpu"), do_classifier_free_guidance=False
                    )
                    pooled[key] = whole.to(device, dtype)  # (1, width)
                else:
                    text = pipe.encode_prompt(prompt, torch.device("cpu"), torch.float32)
                embedded[key] = text.to(device, dtype)  # (1, tokens, width)
        if device.type == "cpu" and unet.config.sample_size <= 32:
            # SDPA's backward is slow on CPU: small models train 2.4 times faster with plain attention. Large ones
            # would need gigabytes for its matrices.
            unet.set_attn_processor(AttnProcessor())
        name = EMBEDDED_NAME if base is None else str(base)
        if base is not None and Path(base).exists():
            name = Path(base).name.removesuffix(".safetensors")  # not where it lies on this machine
        nn.Module.to(unet, device, dtype)  # diffusers' own `to` warns of what does not concern these UNets
        return cls(unet, pipe.vae.to(device), pipe.scheduler, embedded, pooled, intrinsics, name)

    # ------------------------------------------------------------------ pictures of its own

    @torch.no_grad()
    def sample(self, seeds: Sequence[int], *, prompt: str = "", steps: int = 50) -> Tensor:
        """Return latents (B, C, h, w) of pictures that the plain base paints at its own size, by DDIM on its schedule.

        Args:
            seeds: of the noise, one per picture.
            prompt: one of the texts it was loaded for; with the empty one there is no guidance.
        """
        active = self.active
        self.activate(None)
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(steps)
        side = self.unet.config.sample_size
        shape = (self.latent_channels, side, side)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        x = torch.stack(noise).to(self.device) * scheduler.init_noise_sigma  # (B, C, h, w)
        for t in scheduler.timesteps:
            predicted = self.predict(x, prompt, t)
            if prompt:
                plain = self.predict(x, "", t)
                predicted = plain + GUIDANCE * (predicted - plain)
            x = scheduler.step(predicted, t, x).prev_sample
        self.activate(active)
        return x

    # ------------------------------------------------------------------ the network

    def predict(self, latents: Tensor, name: str, timestep: int | Tensor) -> Tensor:
        """Return the UNet's output: under an active LoRA, the clean latent.

        Args:
            latents: of photos, (B, C, h, w).
            name: the intrinsic whose prompt is shown, or "" for the empty prompt.
            timestep: the one the LoRA is always run at, or one for each row.

        Returns:
            (B, C, h, w) float32. Mixed precision is the caller's, by `torch.autocast`.
        """
        rows, text = len(latents), self.prompts[name]
        t = torch.as_tensor(timestep, device=self.device).expand(rows)  # (B,)
        added = None
        if name in self.pooled:  # SDXL is also told the picture's size, an uncropped one: (H, W, top, left, H, W)
            height, width = (side * self.downsample for side in latents.shape[-2:])
            size = torch.tensor([height, width, 0, 0, height, width], device=self.device, dtype=self.dtype)
            added = {"text_embeds": self.pooled[name].expand(rows, -1), "time_ids": size.expand(rows, -1)}
        return self.unet(
            latents.to(self.device, self.dtype),
            t,
            text.expand(rows, -1, -1),
            added_cond_kwargs=added,
            return_dict=False,
        )[0].float()


def _check_base(base: str | Path | None) -> bool:
    """Return whether `base` is SDXL; ValueError if it is neither that nor an SD 1.x or 2.x. Only headers are read."""
    if base is None:
        return False
    path = Path(base)
    if path.suffix in CHECKPOINT_SUFFIXES and not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"Checkpoint {base} not found; check the path.")
        if path.suffix != ".safetensors":
            return False  # .ckpt: files of the days of SD 1.x and 2.x
        refuse_lfs_pointer(path)
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
        unet = "model.diffusion_model.input_blocks.0.0.weight" in keys
        video = any("time_stack" in key or "temporal" in key for key in keys)
        xl = "conditioner.embedders.1.model.ln_final.weight" in keys
        fits = unet and not video and (xl or any(key.startswith("cond_stage_model.") for key in keys))
    else:
        try:
            index = DiffusionPipeline.load_config(str(base))
        except OSError as error:
            raise FileNotFoundError(
                f"{base} is not a diffusers folder, checkpoint file or reachable hub id; check the name."
            ) from error
        parts = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
        unet = parts.get("unet") == "UNet2DConditionModel"
        text = parts.get("text_encoder") == "CLIPTextModel"
        xl = parts.get("text_encoder_2") == "CLIPTextModelWithProjection"
        fits = unet and text and parts.get("vae") == "AutoencoderKL"
    if not fits:
        raise ValueError(
            f"{base} is not a Stable Diffusion 1.x, 2.x or SDXL base; SD 3, Flux, video and refiner models cannot be "
            "trained."
        )
    return xl


def _load_xl(base: str, options: dict[str, Any]) -> StableDiffusionXLPipeline:
    if Path(base).suffix not in CHECKPOINT_SUFFIXES or Path(base).is_dir():
        return StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float32)
    if not options:  # as in IntrinsicLoRAPipeline.from_single_file: nothing is downloaded unasked
        if not isinstance(try_to_load_from_cache(SDXL, "model_index.json"), str):
            raise ValueError(
                "A single-file checkpoint has no tokenizer or configuration: name a diffusers folder of the same "
                f"family as base_config, or '{SDXL}' to download SDXL's (a few MB)."
            )
        options = {"config": SDXL, "local_files_only": True}
    return StableDiffusionXLPipeline.from_single_file(base, dtype=torch.float32, **options)
