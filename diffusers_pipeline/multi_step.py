"""IntrinsicLoRAMultiStepPipeline: intrinsic maps by the paper's multi-step AugUNet."""

import os
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..intrinsics.lora import LoRA
from ..intrinsics.lora.grouped import grouped_lora
from ..intrinsics.maps import maps_from_pictures
from .aug_unet import (
    IMAGE_CHANNELS,
    ImageChannels,
    read_image_channels,
    sample,
    widened,
    zero_snr_solver,
)
from .base import IntrinsicsPipeline, Tick
from .output import IntrinsicLoRAOutput
from .photos import ImageInput
from .sources import LoRASource, find_loras


class IntrinsicLoRAMultiStepPipeline(IntrinsicsPipeline):
    """Decompose photos into intrinsic maps by sampling each map from noise, guided by its prompt.

    Same maps, call and loading as `IntrinsicLoRAPipeline`, with `2 * num_inference_steps` times its UNet cost.
    The base is a plain text-to-image model (the paper: SD 2.1, 768-v). Its first convolution is widened during a call
    by image channels, which are stored with the LoRAs or taken from InstructPix2Pix, and restored afterwards.

    Args:
        vae, text_encoder, tokenizer, unet: as in `StableDiffusionPipeline`.
        scheduler: of the base. Converted to a DPM-Solver with zero terminal SNR and v-prediction, unless it has both.
        default_processing_resolution: short side, in pixels, to which images are resized for the model.
    """

    method = "multi-step"
    lora_folder = "loras_multi_step"
    loader = "multi_step_pipeline.py"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        default_processing_resolution: int = 512,
    ):
        if isinstance(vae, AutoencoderTiny):
            raise ValueError("AutoencoderTiny gives scaled latents only; the multi-step model needs an AutoencoderKL.")
        solver = zero_snr_solver(scheduler)
        super().__init__(vae, text_encoder, tokenizer, unet, solver, default_processing_resolution)
        self._image_channels: ImageChannels | None = None  # loaded together with the LoRAs

    # --- loading and saving

    def load_intrinsics(
        self,
        source: LoRASource,
        image_channels: str | os.PathLike[str] | torch.Tensor | nn.Module | None = None,
        **hub_kwargs: Any,
    ) -> None:
        """Load the LoRAs of one or more intrinsics, replacing loaded ones of the same names; on error nothing changes.

        Args:
            source: as for `IntrinsicLoRAPipeline.load_intrinsics`.
            image_channels: see `read_image_channels`. None for the `image_channels.safetensors` next to the LoRAs,
                as written by the trainer, else those already loaded. All loaded LoRAs share them.
            hub_kwargs: passed to `huggingface_hub.snapshot_download` (`revision`, `token`, ...) for a hub id.

        Raises:
            FileNotFoundError: the source does not exist or contains no LoRA.
            ValueError: a LoRA for another base model, method or image channels, an unknown intrinsic, a damaged file;
                or no image channels.
        """
        found = find_loras(source, hub_kwargs)
        channels = self._image_channels
        if image_channels is None:
            folders = {Path(item).parent for item in found.values() if isinstance(item, str | os.PathLike)}
            files = [folder / IMAGE_CHANNELS for folder in folders if (folder / IMAGE_CHANNELS).is_file()]
            image_channels = files[0] if files else None
        if image_channels is not None:
            conv_in = getattr(self.unet, "_orig_mod", self.unet).conv_in
            factor = self.vae.config.scaling_factor
            channels = read_image_channels(image_channels, conv_in, factor, **hub_kwargs)
        if channels is None:
            raise ValueError(
                f"No {IMAGE_CHANNELS} was found next to these LoRAs; pass the source they were trained with as "
                "image_channels= (the paper: 'timbrooks/instruct-pix2pix')."
            )
        with widened(self.unet, channels.weight):  # a LoRA may also adapt the widened convolution
            loras = {**self.loras, **self._read_loras(found)}
        for name, lora in loras.items():
            if lora.header.image_channels not in (None, channels.hash):
                origin = lora.header.image_channels_origin or "an unknown source"
                raise ValueError(
                    f"The LoRA for {name} was trained with other image channels, from {origin}; these are from "
                    f"{channels.origin}."
                )
        self._loras, self._stacks, self._image_channels = loras, {}, channels

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save as `IntrinsicLoRAPipeline.save_pretrained` does, with the image channels next to the LoRAs."""
        super().save_pretrained(save_directory, **kwargs)
        if self._image_channels is not None:
            self._image_channels.write(Path(save_directory) / self.lora_folder)

    def _header(self, lora: LoRA) -> dict[str, str]:
        assert self._image_channels is not None  # loaded together with the LoRAs
        return super()._header(lora) | self._image_channels.header

    def _check_lora(self, name: str, lora: LoRA) -> None:
        lora.header.check_method(name, self.method)

    # --- parts of a call

    def predict_latents(
        self,
        latents: torch.Tensor,
        names: tuple[str, ...],
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        guidance_rescale: float = 0.7,
        generator: torch.Generator | None = None,
        tick: Tick = lambda: None,
    ) -> torch.Tensor:
        """Sample the latent of each named intrinsic: photo latents (B, C, h, w) -> (T, B, C, h, w)."""
        tasks, batch = len(names), len(latents)
        device, dtype = latents.device, self.unet.dtype
        channels = self._image_channels
        assert channels is not None  # loaded together with the LoRAs
        # One draw per photo, so that its noise depends neither on the requested maps nor on the batch size.
        shape = (1, *latents.shape[1:])
        noise = torch.cat([randn_tensor(shape, generator=generator, device=device) for _ in range(batch)])
        noise = noise.repeat(tasks, 1, 1, 1)  # (T*B, C, h, w), all images of the first intrinsic first
        # Rows: T intrinsics, each with its prompt and then with the empty prompt, each for B images.
        empty = self.encode_prompt("", device, dtype)
        pairs = [p for n in names for p in (self.encode_prompt(self.definition(n).prompt, device, dtype), empty)]
        prompts = torch.cat(pairs).repeat_interleave(batch, dim=0)  # (T*2*B, tokens, width)
        photo = latents / self.vae.config.scaling_factor  # not scaled, as in InstructPix2Pix
        photo = photo.expand(tasks, 2, -1, -1, -1, -1)  # (T, 2, B, C, h, w)

        def velocities(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = x.unflatten(0, (tasks, 1, batch)).expand_as(photo)  # (T, 2, B, C, h, w)
            rows = torch.cat([x, photo], dim=3).flatten(0, 2).to(dtype)  # (T*2*B, 2C, h, w)
            v = self.unet(rows, t, encoder_hidden_states=prompts, return_dict=False)[0]
            v = v.float().unflatten(0, (tasks, 2, batch))
            return v[:, 0].flatten(0, 1), v[:, 1].flatten(0, 1)  # (T*B, C, h, w) each

        with widened(self.unet, channels.weight), grouped_lora(self.unet, self._stacked(names, device, dtype)):
            clean = sample(
                self.scheduler, noise, velocities, num_inference_steps, guidance_scale, guidance_rescale, tick
            )
        of_each: torch.Tensor = clean.unflatten(0, (tasks, batch))  # (T, B, C, h, w)
        return of_each

    # --- the call

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        *,
        intrinsics: str | Sequence[str] | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        guidance_rescale: float = 0.7,
        generator: torch.Generator | None = None,
        processing_resolution: int | None = None,
        match_input_resolution: bool = True,
        resample_method_input: str = "bilinear",
        resample_method_output: str = "bilinear",
        batch_size: int = 1,
        upsample: str = "guided",
        depth_scope: str = "image",
        output_type: str = "pt",
        output_latent: bool = False,
        return_dict: bool = True,
    ) -> IntrinsicLoRAOutput | tuple[Any, ...]:
        """Sample the intrinsic maps of one or more photos.

        Args:
            image: PIL image; array (H, W, 3) or (B, H, W, 3); tensor (3, H, W) or (B, 3, H, W); or a list of these.
                sRGB, uint8 or float in [0, 1]. PIL images may have alpha (composited on mid grey), 16 bits, and an
                EXIF orientation.
            intrinsics: names of the maps; None for all that are loaded.
            num_inference_steps: number of solver steps.
            guidance_scale: scale of classifier-free guidance; 1 disables guidance.
            guidance_rescale: 0..1, share of the contrast added by guidance that is removed again.
            generator: random generator of the noise, one draw per photo; None for the global one.
            processing_resolution: short side in pixels to which the photo is resized for the model, a multiple of 8;
                0 for the photo's own size; None for the model's default.
            match_input_resolution: return maps of the photo's size instead of the processing size.
            resample_method_input, resample_method_output: "bilinear", "bicubic" or "nearest".
            batch_size: photos per UNet forward pass (each with all its maps), and pictures per VAE call.
            upsample: "guided" follows the edges of the photo (except for depth, see `intrinsics.maps`); "bilinear"
                uses `resample_method_output`, as do downscaling and depth in either case.
            depth_scope: "image", "batch" or "clip": the pixels that share one depth range, see `normalize_depth`.
            output_type: "pt", "np", "pil" (`visualize()` of the maps), or "raw": the network's pictures (N, 3, h, w)
                at the processing size, which `intrinsics.maps.each_map` decodes one by one for large photos.
            output_latent: also return the latents.
            return_dict: False for a plain tuple, in the order of the fields of `IntrinsicLoRAOutput`.

        `processing_resolution`, `match_input_resolution`, `resample_method_input`, `resample_method_output`,
        `batch_size`, `output_latent` and `return_dict` are those of diffusers' Marigold pipelines; `depth_scope` is
        the scope of the ComfyUI node Render Map.

        Raises:
            ValueError: as `IntrinsicLoRAPipeline.__call__`, or `num_inference_steps` is out of range.

        Example:
            >>> import torch
            >>> from PIL import Image
            >>> from intrinsic_lora import IntrinsicLoRAMultiStepPipeline
            >>> pipe = IntrinsicLoRAMultiStepPipeline.from_pretrained("sd21")  # a folder, or a hub id
            >>> pipe.load_intrinsics("multi_step_loras")
            >>> photo = Image.new("RGB", (96, 64), (200, 120, 60))  # or Image.open("photo.jpg")
            >>> noise = torch.Generator().manual_seed(0)
            >>> maps = pipe(photo, processing_resolution=768, num_inference_steps=10, generator=noise)
            >>> maps.normals.shape
            torch.Size([1, 3, 64, 96])
        """
        available = self.scheduler.config.num_train_timesteps
        if not 1 <= num_inference_steps <= available:
            raise ValueError(f"num_inference_steps must be 1 to {available}, got {num_inference_steps}.")

        # 1. Check the arguments and resolve the model's defaults.
        names = self.check_inputs(intrinsics, upsample, batch_size, output_type)
        photos = self.prepare(image, processing_resolution, depth_scope)

        maps, latents = [], []
        batches = sum(ceil(len(photo) / batch_size) for photo, _ in photos)
        decodes = sum(ceil(len(photo) * len(names) / batch_size) for photo, _ in photos)
        with self.progress_bar(total=(1 + num_inference_steps) * batches + decodes) as bar:
            for photo, size in photos:
                # 2. Encode the photo at the processing size. Each stage runs over the whole batch, so that model
                #    offload moves every component to the accelerator only once.
                photo = photo.to(self._execution_device)
                encoded = self.encode_photo(photo, size, resample_method_input, batch_size, bar.update)  # (N, C, h, w)

                # 3. Sample all intrinsics of a batch together.
                sampling = (num_inference_steps, guidance_scale, guidance_rescale, generator, bar.update)
                chunks = [self.predict_latents(z, names, *sampling) for z in encoded.split(batch_size)]
                clean = torch.cat(chunks, dim=1)  # (T, N, C, h, w)

                # 4. Decode the latents, and convert the pictures to maps of the photo's size.
                pictures = self.decode_pictures(clean, size, batch_size, bar.update)  # (T, N, 3, h', w')
                drawn = dict(zip(map(self.definition, names), pictures, strict=True))
                enlarge = upsample if match_input_resolution else None
                if output_type == "raw":
                    maps.append(dict(zip(names, pictures, strict=True)))
                else:
                    options = {"depth_scope": depth_scope}
                    maps.append(maps_from_pictures(drawn, photo, enlarge, resample_method_output, **options))
                if output_latent:
                    latents.append(dict(zip(names, clean, strict=True)))
        self.maybe_free_model_hooks()

        # 5. Convert to the output type.
        return self.as_output(maps, latents, output_type, return_dict)
