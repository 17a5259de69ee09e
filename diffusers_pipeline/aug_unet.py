"""AugUNet, the paper's multi-step network: a text-to-image UNet conditioned on the photo, and its sampling.

The first convolution is widened: channels 0..C-1 are the base's and read the noisy latent, channels C..2C-1 read the
photo's latent, *not* multiplied by the VAE's scaling factor. The paper copies the latter from InstructPix2Pix. These
"image channels" are frozen and not part of a LoRA file, so the convolution has to be widened again after loading one.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..intrinsics.files import atomic_path, refuse_lfs_pointer
from ..intrinsics.lora import PREFIX, payload_hash
from ..intrinsics.lora.write import save_sorted
from .sources import fetch

IMAGE_CHANNELS = "image_channels.safetensors"  # stored next to the LoRAs that were trained with it
HASH_ENTRY = f"{PREFIX}image_channels"  # in a LoRA's header
ORIGIN_ENTRY = f"{PREFIX}image_channels_origin"
_KEYS = ("image_channels", "conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight")  # ours, diffusers, LDM

# --- The widened convolution


def widen(conv_in: nn.Conv2d, image_channels: Tensor) -> nn.Conv2d:
    """Build a convolution of 2C input channels from one of C and the weight (out, C, kh, kw) of the others."""
    if hasattr(conv_in, "base_layer"):
        raise ValueError("A LoRA of diffusers adapts conv_in, which has to be widened; unload it first.")
    with align_module_device(conv_in):  # with sequential offload the weights are not in the module
        weight = torch.cat([conv_in.weight, image_channels.to(conv_in.weight)], dim=1).detach()  # (out, 2C, kh, kw)
        bias = None if conv_in.bias is None else conv_in.bias.detach().clone()
    wide = nn.Conv2d(
        weight.shape[1],
        weight.shape[0],
        conv_in.kernel_size,  # type: ignore[arg-type]
        conv_in.stride,  # type: ignore[arg-type]
        conv_in.padding,  # type: ignore[arg-type]
        bias=bias is not None,
        device="meta",
    )
    wide.weight = nn.Parameter(weight, requires_grad=False)
    wide.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return wide


@contextmanager
def widened(unet: nn.Module, image_channels: Tensor) -> Iterator[Any]:
    """Let `unet` accept 2C input channels within the block; the original convolution is restored even on error."""
    model: Any = getattr(unet, "_orig_mod", unet)  # torch.compile wraps the model
    conv_in = model.conv_in
    model.conv_in = widen(conv_in, image_channels)
    try:
        yield model
    finally:
        model.conv_in = conv_in


@dataclass(frozen=True)
class ImageChannels:
    """Weights of the widened convolution for the photo's latent, and their origin.

    Attributes:
        weight: (out, C, kh, kw), float32 on the CPU.
        origin: hub id, name of a file or folder, "zeros", "copy" or "memory".
    """

    weight: Tensor
    origin: str

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the weight in half precision.

        Hence equal for InstructPix2Pix in float32 and in float16.
        """
        return hashlib.sha256(self.weight.half().contiguous().numpy().tobytes()).hexdigest()[:16]

    @property
    def header(self) -> dict[str, str]:
        """Entries in the header of a LoRA that identify the image channels it was trained with."""
        return {HASH_ENTRY: self.hash, ORIGIN_ENTRY: self.origin}

    def write(self, folder: Path) -> None:
        """Write the file that `read_image_channels` reads, atomically."""
        tensors = {_KEYS[0]: self.weight.contiguous()}
        checksum = {"modelspec.hash_sha256": payload_hash(save(tensors))}
        with atomic_path(folder / IMAGE_CHANNELS) as temporary:
            temporary.write_bytes(save_sorted(tensors, self.header | checksum))


def read_image_channels(
    source: str | os.PathLike[str] | Tensor | nn.Module,
    conv_in: nn.Conv2d,
    scaling_factor: float = 1.0,
    **hub_kwargs: Any,
) -> ImageChannels:
    """Read the image channels for `conv_in`.

    Args:
        source: the weights (out, C, kh, kw); a UNet of 2C input channels; an `image_channels.safetensors`, or a
            .safetensors checkpoint of such a UNet (diffusers or CompVis names); a folder with either; a hub id, for
            example the paper's "timbrooks/instruct-pix2pix"; "zeros"; or "copy": conv_in's weight, scaled so that it
            treats the unscaled latents of the photo like the scaled noisy ones.
        conv_in: the base's convolution of C input channels.
        scaling_factor: of the base's latents, for "copy".
        hub_kwargs: passed to `huggingface_hub.snapshot_download` for a hub id.

    Raises:
        FileNotFoundError: no image channels at `source`.
        ValueError: the image channels have another shape.
    """
    out, channels, kernel = conv_in.out_channels, conv_in.in_channels, conv_in.kernel_size
    if isinstance(source, str) and source in ("zeros", "copy"):
        with align_module_device(conv_in):
            weight = conv_in.weight.detach().float().cpu()
        return ImageChannels(weight * (scaling_factor if source == "copy" else 0.0), source)
    if isinstance(source, Tensor):
        found, is_unet, origin = source, source.shape[1] == 2 * channels, "memory"
    elif isinstance(source, nn.Module):
        found, is_unet, origin = source.get_submodule("conv_in").weight, True, "memory"  # type: ignore[assignment]
    else:
        found, is_unet, origin = _read_weight(os.fspath(source), hub_kwargs)
    have, need = tuple(found.shape), (out, 2 * channels if is_unet else channels, *kernel)
    if have != need:
        raise ValueError(f"The image channels from {origin} do not fit this base: their weight is {have}, not {need}.")
    found = found[:, channels:] if is_unet else found
    return ImageChannels(found.detach().to("cpu", torch.float32, copy=True), origin)


def _read_weight(source: str, hub_kwargs: dict[str, Any]) -> tuple[Tensor, bool, str]:
    """Return a file's weight, whether it is the whole first convolution of a UNet, and its origin."""
    path, origin = Path(source).expanduser(), Path(source).name  # LoRA headers must not contain local paths
    if not path.exists():
        origin = source
        path = fetch(source, [IMAGE_CHANNELS, f"*/{IMAGE_CHANNELS}", "unet/*model.safetensors"], hub_kwargs)
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*/*.safetensors")])
    for file in files:
        refuse_lfs_pointer(file)
        try:
            with safe_open(file, framework="pt") as tensors:
                names = set(tensors.keys())
                for key in _KEYS:
                    if key in names:
                        origin = (tensors.metadata() or {}).get(ORIGIN_ENTRY, origin)
                        return tensors.get_tensor(key), key != _KEYS[0], origin
        except Exception as error:  # the parser raises errors of several kinds
            raise ValueError(f"{file} is damaged or not a safetensors file ({error}).") from error
    raise FileNotFoundError(
        f"No image channels were found in {source}: it contains neither {IMAGE_CHANNELS} nor a UNet's weights."
    )


# --- Zero terminal SNR (arXiv 2305.08891): the last timestep is pure noise, in training and sampling


def zero_snr_noise(scheduler: Any) -> DDIMScheduler:
    """Return the base's noise schedule with zero terminal SNR, whose `add_noise` and `get_velocity` training uses."""
    return DDIMScheduler.from_config(
        scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
    )


def zero_snr_solver(scheduler: Any) -> Any:
    """Return the paper's solver with the base's schedule, or the scheduler itself if it has zero terminal SNR.

    The authors pass the rescaled betas as `trained_betas`. In current diffusers that gives NaN, because its DPM-Solver
    avoids a signal-to-noise ratio of zero only if it does the rescaling.
    """
    config = scheduler.config
    if config.get("rescale_betas_zero_snr") and config.prediction_type == "v_prediction":
        return scheduler
    return DPMSolverMultistepScheduler.from_config(
        config, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
    )


def sample(
    scheduler: Any,
    noise: Tensor,
    velocities: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    steps: int,
    guidance_scale: float,
    guidance_rescale: float,
    tick: Callable[[], Any] = lambda: None,
) -> Tensor:
    """Sample clean latents (N, C, h, w) from noise (N, C, h, w), float32.

    Args:
        velocities: (latents (N, C, h, w), timestep) -> the velocities with the prompt and with the empty prompt,
            both conditioned on the photo. InstructPix2Pix' third prediction, without the photo, has the weight
            `1 - image_guidance_scale`, which is 0 at the paper's setting.
        guidance_rescale: share of the guided velocity's excess contrast that is removed (2305.08891, section 3.4).
        tick: called after every step.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    x: Tensor = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        text, plain = velocities(scheduler.scale_model_input(x, t), t)
        guided = plain + guidance_scale * (text - plain)
        contrast = text.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
        v = guided * (guidance_rescale * contrast + 1 - guidance_rescale)
        x = scheduler.step(v, t, x, return_dict=False)[0]
        tick()
    return x
