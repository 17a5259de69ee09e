"""IntrinsicLoRAPipeline: surface normals, depth, albedo and shading of a photo, from one Stable Diffusion step."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch

from ..intrinsics.lora import LoRA
from ..intrinsics.lora.grouped import grouped_lora
from ..intrinsics.maps import maps_from_pictures
from .base import IntrinsicsPipeline, ticked
from .output import IntrinsicLoRAOutput
from .photos import ImageInput


class IntrinsicLoRAPipeline(IntrinsicsPipeline):
    """Decompose photos into intrinsic maps with one UNet forward pass for all maps.

    Uses the components of any Stable Diffusion 1.x or 2.x model. `load_intrinsics` adds one LoRA per map. These LoRAs
    are applied during a call only, so components can be shared with other pipelines. LoRAs loaded with diffusers'
    own methods (`load_lora_weights`, ...) are applied in addition.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: as in `StableDiffusionPipeline`. The VAE may be an
            `AutoencoderTiny`. Only the number of training timesteps of the scheduler is used.
        default_processing_resolution: short side, in pixels, to which images are resized for the model.
    """

    method = "single-step"
    lora_folder = "loras"
    loader = "pipeline.py"

    def _check_lora(self, name: str, lora: LoRA) -> None:
        lora.header.check_single_step(name, self.scheduler.config.num_train_timesteps)

    def predict_latents(self, latents: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
        """Predict the clean latent of each named intrinsic: photo latents (B, C, h, w) -> (T, B, C, h, w)."""
        tasks, batch = len(names), len(latents)
        device, dtype = latents.device, self.unet.dtype
        prompts = torch.cat([self.encode_prompt(self.definition(n).prompt, device, dtype) for n in names])
        prompts = prompts.repeat_interleave(batch, dim=0)  # (T*B, tokens, width)
        timesteps = torch.tensor([self.loras[n].header.single_step_timestep for n in names], device=device)
        timesteps = timesteps.repeat_interleave(batch)  # (T*B,)
        rows = latents.to(dtype).repeat(tasks, 1, 1, 1)  # (T*B, C, h, w), all images of the first intrinsic first
        with grouped_lora(self.unet, self._stacked(names, device, dtype)):
            # The LoRAs are trained to output the clean latent, whatever the base's prediction type.
            clean: torch.Tensor = self.unet(rows, timesteps, encoder_hidden_states=prompts, return_dict=False)[0]
        of_each: torch.Tensor = clean.float().unflatten(0, (tasks, batch))  # (T, B, C, h, w)
        return of_each

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        *,
        intrinsics: str | Sequence[str] | None = None,
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
        """Predict the intrinsic maps of one or more photos.

        Args:
            image: PIL image; array (H, W, 3) or (B, H, W, 3); tensor (3, H, W) or (B, 3, H, W); or a list of these.
                sRGB, uint8 or float in [0, 1]. PIL images may have alpha (composited on mid grey), 16 bits, and an
                EXIF orientation.
            intrinsics: names of the maps; None for all that are loaded.
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
            ValueError: no LoRA is loaded for a requested map; an image is empty, out of range, NaN, of an unknown
                type, or beyond an aspect ratio of 16:1; a resolution is not a multiple of 8; an unknown option.

        Example:
            >>> from PIL import Image
            >>> from intrinsic_lora import IntrinsicLoRAPipeline
            >>> pipe = IntrinsicLoRAPipeline.from_pretrained()  # the embedded model
            >>> photo = Image.new("RGB", (96, 64), (200, 120, 60))  # or Image.open("photo.jpg")
            >>> maps = pipe(photo, intrinsics=["normals", "depth"])
            >>> maps.normals.shape, maps.depth.shape
            (torch.Size([1, 3, 64, 96]), torch.Size([1, 1, 64, 96]))
            >>> maps.visualize()["normals"][0].size
            (96, 64)
        """
        # 1. Check the arguments and resolve the model's defaults.
        names = self.check_inputs(intrinsics, upsample, batch_size, output_type)
        photos = self.prepare(image, processing_resolution, depth_scope)

        maps, latents = [], []
        batches = sum(ceil(len(photo) / batch_size) for photo, _ in photos)
        decodes = sum(ceil(len(photo) * len(names) / batch_size) for photo, _ in photos)
        with self.progress_bar(total=2 * batches + decodes) as bar:
            for photo, size in photos:
                # 2. Encode the photo at the processing size. Each stage runs over the whole batch, so that model
                #    offload moves every component to the accelerator only once.
                photo = photo.to(self._execution_device)
                encoded = self.encode_photo(photo, size, resample_method_input, batch_size, bar.update)  # (N, C, h, w)

                # 3. One UNet forward pass per batch, for all intrinsics.
                chunks = [ticked(self.predict_latents(z, names), bar.update) for z in encoded.split(batch_size)]
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
