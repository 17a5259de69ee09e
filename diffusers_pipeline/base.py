"""Base class of the pipelines: loading, saving, encoding of photos and decoding of maps."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.loaders import FromSingleFileMixin, StableDiffusionLoraLoaderMixin
from diffusers.models import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers
from huggingface_hub import try_to_load_from_cache
from transformers import CLIPTextModel, CLIPTokenizer

from ..intrinsics.files import atomic_path, refuse_lfs_pointer
from ..intrinsics.lora import PREFIX, LoRA, canonical_name, read_lora, write_lora
from ..intrinsics.lora.grouped import Stacks, stack_loras
from ..intrinsics.pictures import write_json
from ..intrinsics.resizing import ProcessingSize, crop_to, pad_to, processing_size, resize
from ..intrinsics.vocabulary import CHECKPOINT_SUFFIXES, INTRINSICS, UPSAMPLE, Intrinsic
from .output import IntrinsicLoRAOutput
from .photos import ImageInput, read_photos
from .sources import EMBEDDED, LoRASource, find_loras

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
NO_SDXL = (
    "This base is an SDXL, and these pipelines take Stable Diffusion 1.x and 2.x; the README.md beside LoRAs "
    "that were trained on SDXL shows the code for them."
)

Tick = Callable[[], Any]  # advances the progress bar by one


class IntrinsicsPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin, FromSingleFileMixin):
    """A Stable Diffusion 1.x or 2.x model with one LoRA per intrinsic, applied during a call only.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: as in `StableDiffusionPipeline`.
        default_processing_resolution: short side, in pixels, to which images are resized for the model.
    """

    model_cpu_offload_seq: Any = "text_encoder->unet->vae"
    method: str  # prediction method of the LoRAs, as in their headers
    lora_folder: str  # in a saved pipeline; one per method, so that a base can have both
    loader: str  # module in this folder from which diffusers loads the class; copied into saved pipelines

    config: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        default_processing_resolution: int = 512,
    ):
        super().__init__()
        if unet.config.get("addition_embed_type") == "text_time":
            raise ValueError(NO_SDXL)
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_to_config(default_processing_resolution=default_processing_resolution)
        needed, given = self.unet.config.in_channels, self.vae.config.latent_channels
        if needed != given:
            raise ValueError(
                f"This UNet requires {needed} channels, but the VAE has {given}; use a plain text-to-image "
                "base (not an inpainting or editing one)."
            )
        self._loras: dict[str, LoRA] | None = None  # None: not loaded yet, see `loras`
        self._stacks: dict[Any, Stacks] = {}  # keyed by intrinsics, device and dtype
        self._prompt_embeds: dict[Any, torch.Tensor] = {}

    # --- loading and saving

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any) -> Self:
        """Load a base model; without an argument, the small model embedded in the package, with its LoRAs.

        Args:
            pretrained_model_name_or_path: hub id, diffusers folder, or a single-file checkpoint (see
                `from_single_file`). The LoRAs in a folder written by `save_pretrained` are loaded too.
            kwargs: as for `DiffusionPipeline.from_pretrained`.
        """
        base = EMBEDDED if pretrained_model_name_or_path is None else pretrained_model_name_or_path
        if base is EMBEDDED and not (EMBEDDED / "model_index.json").is_file():
            raise FileNotFoundError(
                f"The embedded model is missing at {EMBEDDED}; reinstall the package, or name a base model."
            )
        if Path(base).suffix in CHECKPOINT_SUFFIXES and not Path(base).is_dir():
            return cls.from_single_file(base, **kwargs)
        for file in sorted(Path(base).glob("*/*.safetensors")):
            refuse_lfs_pointer(file)
        if not {"dtype", "torch_dtype"} & kwargs.keys():
            kwargs["dtype"] = torch.float32  # otherwise transformers keeps the text encoder in its stored precision
        loaded: Self = super().from_pretrained(str(base), **kwargs)
        return loaded

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a single-file checkpoint (.safetensors or .ckpt), as used by ComfyUI.

        Such a file contains no tokenizer and no configuration. They are read from `config`: a diffusers folder of the
        same family, or a hub id (downloads a few MB). Without `config`, those of SD 1.5 are used if they are in the
        hub cache; nothing is downloaded by default.
        """
        path = str(pretrained_model_link_or_path)
        if "://" not in path and not Path(path).is_file():
            raise FileNotFoundError(f"There is no checkpoint at {path}; check the path.")
        if "://" not in path:
            refuse_lfs_pointer(path)
        if not {"config", "original_config"} & kwargs.keys():
            if not isinstance(try_to_load_from_cache(SD15, "model_index.json", kwargs.get("cache_dir")), str):
                raise ValueError(
                    "A single-file checkpoint has no tokenizer or configuration: pass config= a diffusers folder of "
                    f"the same model family, or config='{SD15}' to download SD 1.5's (a few MB)."
                )
            kwargs |= {"config": SD15, "local_files_only": True}
        loaded: Self = super().from_single_file(path, **kwargs)
        return loaded

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        # In a saved folder the class entry names the loader module next to it. from_pretrained of this class uses
        # the class itself instead of executing code from the folder or requiring trust_remote_code.
        config = super().load_config(*args, **kwargs)
        (config[0] if isinstance(config, tuple) else config)["_class_name"] = cls.__name__
        return config

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # These components of a stock Stable Diffusion folder are not used; diffusers would warn about each.
        if "text_encoder_2" in config_dict:
            raise ValueError(NO_SDXL)  # before gigabytes of weights are read
        stock = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker")
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k not in stock}, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a folder that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.

        In addition to the components it contains the LoRAs and a module that imports this class from the
        installed `intrinsic_lora` (diffusers caches modules by file name, so each class has its own module).
        kwargs as for `DiffusionPipeline.save_pretrained`; to publish, call `push_to_hub(repo_id)`.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("save_pretrained writes to disk only; call pipe.push_to_hub(repo_id) to publish.")
        folder, loras = Path(save_directory), self.loras  # loaded first: they may come from this folder
        super().save_pretrained(str(folder), **kwargs)
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        code = Path(__file__).with_name(self.loader)
        write_json(folder / "model_index.json", index | {"_class_name": [code.stem, type(self).__name__]})
        with atomic_path(folder / code.name) as temporary:
            shutil.copyfile(code, temporary)
        (folder / self.lora_folder).mkdir(exist_ok=True)
        paths = {name: folder / self.lora_folder / f"intrinsic_lora_{name}.safetensors" for name in self.intrinsics}
        for path in (folder / self.lora_folder).glob("intrinsic_lora_*.safetensors"):
            if path not in paths.values():
                path.unlink()  # from an earlier save; would be loaded again
        for name, path in paths.items():
            write_lora(
                path,
                loras[name].weights,
                intrinsic=self.definition(name),
                method=self.method,
                timestep=loras[name].header.single_step_timestep,
                extra=self._header(loras[name]),
            )

    def _header(self, lora: LoRA) -> dict[str, str]:
        """Return our entries of a LoRA's header, except those of its `definition`."""
        defined = [f"{PREFIX}{key}" for key in ("intrinsic", "prompt", "convention", "channels")]
        entries = lora.header.entries.items()
        return {key: value for key, value in entries if key.startswith(PREFIX) and key not in defined}

    def _check_lora(self, name: str, lora: LoRA) -> None:
        """Raise ValueError for a LoRA that this pipeline's method cannot use."""
        raise NotImplementedError

    @property
    def intrinsics(self) -> tuple[str, ...]:
        """Names of the loaded intrinsics: those in `INTRINSICS` in that order, then custom ones."""
        return (*(name for name in INTRINSICS if name in self.loras), *sorted(self.loras.keys() - INTRINSICS.keys()))

    def definition(self, name: str) -> Intrinsic:
        """Return what the loaded LoRA of that name predicts: prompt, channels and convention."""
        return self.loras[name].header.definition(name)

    def load_intrinsics(self, source: LoRASource, **hub_kwargs: Any) -> None:
        """Load the LoRAs of one or more intrinsics, replacing loaded ones of the same names; on error nothing changes.

        LoRAs that were loaded with the base remain; call `unload_intrinsics` first to remove them.

        Args:
            source: a folder or a file (its intrinsic is read from its metadata, else from its name),
                a hub id (files are chosen by name), "embedded" for those of the embedded model, several of these in
                one string, comma-separated (later ones take precedence), or `{"normals": file or state dict, ...}`.
            hub_kwargs: passed to `huggingface_hub.snapshot_download` (`revision`, `token`, ...) for a hub id.

        Raises:
            FileNotFoundError: the source does not exist or contains no LoRA.
            ValueError: a LoRA for another base model or method, an unknown intrinsic, a damaged file.
        """
        self._loras = {**self.loras, **self._read_loras(find_loras(source, hub_kwargs))}
        self._stacks = {}

    def _read_loras(self, found: Mapping[str, Any]) -> dict[str, LoRA]:
        model, loras = getattr(self.unet, "_orig_mod", self.unet), {}
        for name, item in found.items():
            loras[name] = item if isinstance(item, LoRA) else read_lora(item, model)
            loras[name].header.definition(name)  # raises ValueError if it is incomplete
            self._check_lora(name, loras[name])
        return loras

    def unload_intrinsics(self) -> None:
        """Unload all LoRAs, including those loaded with the base. The base model itself is never changed."""
        self._loras, self._stacks = {}, {}

    @property
    def loras(self) -> dict[str, LoRA]:
        """Loaded LoRAs by intrinsic; change them with `load_intrinsics` and `unload_intrinsics`."""
        # Loaded here, because with custom_pipeline= diffusers does not call this class's from_pretrained.
        if self._loras is None:
            self._loras = {}
            origin = self.config.get("_name_or_path")
            if origin and any(Path(origin).glob(f"{self.lora_folder}/intrinsic_lora_*")):
                self.load_intrinsics(Path(origin) / self.lora_folder)
        return self._loras

    # --- parts of a call

    @property
    def vae_scale_factor(self) -> int:
        factor: int = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return factor

    @property
    def _execution_device(self) -> torch.device:
        # Without offload hooks the UNet decides, so that the text encoder may stay on the CPU.
        device: torch.device = super()._execution_device if hasattr(self.unet, "_hf_hook") else self.unet.device
        return device

    def check_inputs(
        self, intrinsics: str | Sequence[str] | None, upsample: str, batch_size: int, output_type: str
    ) -> tuple[str, ...]:
        """Check the arguments of a call and return the names to predict; raise ValueError if one is invalid."""
        if not self.intrinsics:
            raise ValueError("No intrinsic is loaded; call load_intrinsics with a folder, a file or a hub id first.")
        wanted = self.intrinsics if intrinsics is None else intrinsics
        wanted = [wanted] if isinstance(wanted, str) else wanted
        names = tuple(dict.fromkeys(canonical_name(name) for name in wanted))
        if not names:
            raise ValueError(f"The list of intrinsics is empty; name at least one of {', '.join(self.intrinsics)}.")
        missing = [name for name in names if name not in self.intrinsics]
        if missing:
            raise ValueError(f"No LoRA is loaded for {', '.join(missing)}; loaded: {', '.join(self.intrinsics)}.")
        if upsample not in UPSAMPLE:
            raise ValueError(f"Unknown upsample {upsample!r}; choose from {', '.join(UPSAMPLE)}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if output_type not in ("pt", "np", "pil", "raw"):
            raise ValueError(f"Unknown output_type {output_type!r}; choose pt, np, pil or raw.")
        return names

    def encode_prompt(self, prompt: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Encode a prompt to (1, tokens, width). Cached: the text encoder runs once per prompt."""
        key = (prompt, device, dtype)
        if key not in self._prompt_embeds:
            ids = self.tokenizer(
                prompt,
                padding="max_length",
                max_length=self.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids  # (1, tokens)
            home = self.text_encoder.device
            ids = ids.to(device if home.type == "meta" else home)  # meta: sequential offload
            self._prompt_embeds[key] = self.text_encoder(ids)[0].to(device, dtype)
        return self._prompt_embeds[key]

    def encode_image(self, rgb: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, H, W) in [0, 1] to (B, C, h, w) latents: the mode of the posterior, scaled."""

        def encode(x: torch.Tensor) -> torch.Tensor:
            encoded = self.vae.encode(x)
            latents: torch.Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
            return latents

        scale: float = self.vae.config.scaling_factor
        return self._finite(encode, rgb * 2 - 1) * scale

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode (B, C, h, w) to (B, 3, H, W) float32, not clamped to [0, 1]: extreme depths lie outside."""
        picture = self._finite(lambda z: self.vae.decode(z).sample, latents / self.vae.config.scaling_factor)
        return picture * 0.5 + 0.5

    def _finite(self, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Run the VAE in its own precision, and again in float32 if that overflowed; return float32.

        `force_upcast` in a VAE's config requests float32. It defaults to true even for SD 1.5, whose VAE works in half
        precision, so it is ignored unless an overflow shows that float32 is needed.
        """
        dtype = self.vae.dtype
        y = run(x.to(dtype)).float()
        if torch.isfinite(y).all():
            return y
        if dtype != torch.float32 and self.vae.device.type != "meta" and torch.isfinite(x).all():
            self.vae.to(torch.float32)
            try:
                y = run(x.float())
            finally:
                self.vae.to(dtype)
        if not torch.isfinite(y).all():
            raise ValueError(f"The model produced NaN or infinity in {dtype}; load it in bfloat16 or float32.")
        return y

    def _stacked(self, names: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> Stacks:
        """Stack the LoRAs of `names` for `grouped_lora`. Cached until LoRAs are loaded or unloaded."""
        key = (names, device, dtype)
        if key not in self._stacks:
            self._stacks[key] = stack_loras([self.loras[n].weights for n in names], device, dtype)
        return self._stacks[key]

    # --- stages of a call

    def prepare(
        self, image: ImageInput, processing_resolution: int | None, depth_scope: str
    ) -> list[tuple[torch.Tensor, ProcessingSize]]:
        """Read the photos (N, 3, H, W) in [0, 1], one entry per size, with their processing size."""
        default = self.config.default_processing_resolution
        resolution = default if processing_resolution is None else processing_resolution
        multiple = max(8, self.vae_scale_factor)
        photos = read_photos(image)
        if depth_scope != "image" and len(photos) > 1:
            raise ValueError(f"depth_scope={depth_scope!r} needs images of one size; resize them first.")
        sizes = [processing_size(photo.shape[-2], photo.shape[-1], resolution, multiple) for photo in photos]
        return list(zip(photos, sizes, strict=True))

    def encode_photo(
        self, photo: torch.Tensor, size: ProcessingSize, resample: str, batch_size: int, tick: Tick
    ) -> torch.Tensor:
        """Resize and pad (N, 3, H, W) to the processing size and encode it to latents (N, C, h, w)."""
        padded = pad_to(resize(photo, size.resized, resample), *size.padded)  # (N, 3, PH, PW)
        return torch.cat([ticked(self.encode_image(x), tick) for x in padded.split(batch_size)])

    def decode_pictures(self, clean: torch.Tensor, size: ProcessingSize, batch_size: int, tick: Tick) -> torch.Tensor:
        """Decode latents (T, N, C, h, w) to pictures (T, N, 3, h', w') of the processing size, without padding."""
        chunks = clean.flatten(0, 1).split(batch_size)
        padded = torch.cat([ticked(self.decode_latents(z), tick) for z in chunks])  # (T*N, 3, PH, PW)
        pictures: torch.Tensor = crop_to(padded, *size.resized).unflatten(0, clean.shape[:2])
        return pictures

    def as_output(
        self,
        maps: Sequence[Mapping[str, torch.Tensor]],
        latents: Sequence[Mapping[str, torch.Tensor]],
        output_type: str,
        return_dict: bool,
    ) -> IntrinsicLoRAOutput | tuple[Any, ...]:
        """Build the output of a call from {name: (N, C, H, W)} per photo size; `latents` may be empty."""
        gathered: dict[str, Any] = {name: _gather([part[name] for part in maps]) for name in maps[0]}
        custom = [name for name in self.intrinsics if name in gathered and name not in INTRINSICS]
        definitions = {name: self.definition(name) for name in custom}
        output = IntrinsicLoRAOutput.of(gathered, definitions, _gather(list(latents)) if latents else None)
        if output_type == "pil":
            output = IntrinsicLoRAOutput.of(output.visualize(), definitions, output.latents)
        elif output_type == "np":
            arrays = {name: _to_numpy(values) for name, values in gathered.items()}
            output = IntrinsicLoRAOutput.of(arrays, definitions, output.latents)
        return output if return_dict else tuple(getattr(output, field.name) for field in fields(output))


def ticked(result: torch.Tensor, tick: Tick) -> torch.Tensor:
    """Advance the progress bar and return `result`."""
    tick()
    return result


def _gather(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _to_numpy(value: torch.Tensor | list[torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_to_numpy(x) for x in value]
    return value.permute(0, 2, 3, 1).cpu().numpy()
