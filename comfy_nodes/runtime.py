"""One UNet step inside ComfyUI: its own loaders, patches, samplers and memory management do the work.

Everything is done in chunks of `batch_size`, between which the user may interrupt.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.utils
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..intrinsics.lora import LoRA, read_lora
from ..intrinsics.lora.grouped import Stacks, grouped_lora, stack_loras
from .loras import LoRAFile
from .photo_maps import channels_first
from .sockets import warn

CONTEXT = 768  # width of SD 1.x's text embedding
BASE = "load a Stable Diffusion 1.5 checkpoint (such as v1-5-pruned-emaonly) and connect its model, clip and vae"


class OneStep(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.IMG_TO_IMG):
    """The photo's latent goes in unscaled and without noise, at one timestep, and what comes out is the result.

    The schedule ends at that timestep, so that a first step of any core sampler is taken there.
    """

    def __init__(self, model_config: Any, timestep: int):
        super().__init__(model_config, zsnr=False)
        self.set_sigmas(self.sigmas[: timestep + 1])

    def noise_scaling(self, sigma: Any, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        return latent_image.clone()  # whatever noise a sampler adds


class Progress:
    """ComfyUI's bar on the node; every step may be interrupted."""

    def __init__(self, steps: int):
        self.bar = comfy.utils.ProgressBar(steps)

    def map(self, run: Callable[[Tensor], Tensor], x: Tensor, batch_size: int) -> Tensor:
        """`run` on chunks of `x`, along the first axis."""
        done = []
        for chunk in x.split(batch_size):
            comfy.model_management.throw_exception_if_processing_interrupted()
            done.append(run(chunk))
            self.bar.update(1)
        return torch.cat(done)


def check_inputs(model: Any, clip: Any, vae: Any = None) -> None:
    """Refuse what is not of Stable Diffusion 1.x, by configurations alone: nothing is loaded to the device.

    Raises:
        ValueError: another family, an inpainting model, or no text encoder.
    """
    _check_model(model)
    if clip is None:
        raise ValueError(f"The clip is empty, since the checkpoint has no text encoder: {BASE}.")
    encoders = set(clip.tokenize(""))
    if encoders != {"l"}:
        found = " and ".join(sorted(encoders))
        raise ValueError(f"The clip belongs to another model (text encoders: {found}; SD 1.5 has l only): {BASE}.")
    if vae is not None:
        _check_vae(vae)


def _check_model(model: Any) -> None:
    base = model.model.model_config
    family, channels = type(base).__name__, base.unet_config.get("in_channels")
    if base.unet_config.get("context_dim") != CONTEXT or base.unet_config.get("model_channels") != 320:
        raise ValueError(f"The model is {family}, and intrinsic LoRAs are made for SD 1.5: {BASE}.")
    if channels != 4:
        raise ValueError(f"The model is an inpainting or editing one ({channels} input channels): {BASE}.")
    options = model.model_options
    patched = model.patches or model.object_patches or model.hook_patches or model.wrappers or model.injections
    if patched or options.keys() - {"transformer_options"} or any(options.get("transformer_options", {}).values()):
        warn("The model already has patches (LoRAs, IP-Adapter, ...), which change the maps.")


def _check_vae(vae: Any) -> None:
    vae.throw_exception_if_invalid()
    if vae.latent_channels != 4 or vae.latent_dim != 2 or vae.spacial_compression_encode() != 8:
        raise ValueError(f"The vae has latents of {vae.latent_channels} channels, and SD 1.5's have 4: {BASE}.")


def read_for(file: LoRAFile, name: str, model: Any) -> LoRA:
    """Read all of a file and check it against every weight of the model.

    Raises:
        FileNotFoundError, ValueError: see `read_lora`; or it is not for one step.
    """
    weights = model.model.state_dict()
    lora = read_lora(file.path, {module: tuple(weights[key].shape) for module, key in _keys(model, weights).items()})
    schedule = comfy.model_sampling.ModelSamplingDiscrete(model.model.model_config)  # the model's own may be patched
    lora.header.check_single_step(name, len(schedule.sigmas))
    return lora


def with_lora(model: Any, lora: LoRA, strength: float = 1.0) -> Any:
    """Clone the MODEL so that it draws what `lora` was trained for, in one step of any core sampler."""
    timestep, keys = lora.header.single_step_timestep, _keys(model, model.model.state_dict())
    state: dict[str, Tensor] = {}
    for module, (A, B, alpha) in lora.weights.items():
        state |= {
            f"{module}.lora_down.weight": A,
            f"{module}.lora_up.weight": B,
            f"{module}.alpha": torch.tensor(alpha),
        }
    patches = comfy.lora.load_lora(state, {module: keys[module] for module in lora.weights})
    model = _one_step(model, timestep)
    loaded = model.add_patches(patches, strength)
    if len(loaded) != len(lora.weights):
        raise ValueError(f"{lora.path}: ComfyUI took {len(loaded)} of its {len(lora.weights)} weights.")
    return model


def with_loras(model: Any, loras: Sequence[LoRA]) -> Any:
    """Clone the MODEL so that it draws with T LoRAs of one timestep in one forward, see `predict_each`.

    The weights stay as they are, however they are quantized and wherever they are kept, so that nothing is patched
    and restored map by map. The layers are exchanged for the length of one forward: what other nodes see of the model
    is never changed, also not after an interrupt or an error. (A `PatcherInjection` would stay until the next load.)
    """
    keys = _keys(model, model.model.state_dict())
    names = {name: key.removeprefix("diffusion_model.").removesuffix(".weight") for name, key in keys.items()}
    weights = [{names[name]: weight for name, weight in lora.weights.items()} for lora in loras]
    dtype = model.model.manual_cast_dtype or model.model_dtype()

    @cache
    def stacks(device: torch.device) -> Stacks:
        return stack_loras(weights, device, dtype)

    def grouped(executor: WrapperExecutor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with grouped_lora(executor.class_obj.diffusion_model, stacks(x.device)):
            return executor(x, *args, **kwargs)

    model = _one_step(model, loras[0].header.single_step_timestep)
    model.add_wrapper(WrappersMP.APPLY_MODEL, grouped)
    return model


def _one_step(model: Any, timestep: int) -> Any:
    """Clone the MODEL so that it is sampled at `timestep`, see `OneStep`."""
    sampling = OneStep(model.model.model_config, timestep)
    reached = int(sampling.timestep(sampling.sigma_max))
    if reached != timestep:
        raise ValueError(f"The model's schedule ends at timestep {reached}, and the LoRA wants {timestep}: {BASE}.")
    model = model.clone()
    model.add_object_patch("model_sampling", sampling)
    return model


def _keys(model: Any, weights: dict[str, Tensor]) -> dict[str, str]:
    """Return {module as diffusers names it: key of its weight in ComfyUI's model}."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    keys = {name.removesuffix(".weight"): f"diffusion_model.{key}" for name, key in names.items() if "weight" in name}
    return {module: key for module, key in keys.items() if key in weights and weights[key].ndim > 1}


def conditioning(clip: Any, prompt: str) -> list:
    """Encode exactly `prompt`, with the last layer and without weights in brackets, as CONDITIONING."""
    clip = clip.clone()
    clip.layer_idx = None  # a clip skip is for pictures, not for these
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(prompt, disable_weights=True))
    if encoded[0][0].shape[-1] != CONTEXT:
        raise ValueError(f"The clip gives {encoded[0][0].shape[-1]} channels, and SD 1.5's gives {CONTEXT}: {BASE}.")
    return encoded


def encode(vae: Any, photo: Tensor) -> Tensor:
    """Encode (b, 3, H, W) in [0,1], sides multiples of 8, as a LATENT (b, 4, h, w): the mode of the posterior."""
    return finite(vae.encode(photo.movedim(1, -1)))


def predict(model: Any, positive: list) -> Callable[[Tensor], Tensor]:
    """Return a function from a photo's latent (b, 4, h, w) to the latent that `model` draws, see `with_lora`.

    Both are scaled as in a LATENT.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    sigmas = torch.stack([model.get_model_object("model_sampling").sigma_max, torch.tensor(0.0)])
    sampler = comfy.samplers.KSAMPLER(_one_call)

    def run(latent: Tensor) -> Tensor:
        clean = guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=0)
        return finite(clean.to(comfy.model_management.intermediate_device()))

    return run


def predict_each(model: Any, positives: Sequence[list]) -> Callable[[Tensor], Tensor]:
    """Return a function from a photo's latent (b, 4, h, w) to the latents (b, T, 4, h, w) of a model of `with_loras`.

    Args:
        positives: CONDITIONING of each LoRA.
    """

    def run(latent: Tensor) -> Tensor:
        prompts = [positive[0][0].expand(len(latent), -1, -1) for positive in positives]
        rows = predict(model, [[torch.cat(prompts), {}]])(latent.repeat(len(prompts), 1, 1, 1))  # (T*b, 4, h, w)
        return rows.unflatten(0, (len(prompts), -1)).transpose(0, 1)

    return run


def _one_call(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any = None, disable: Any = None
) -> Tensor:
    return model(x, sigmas[0] * x.new_ones(len(x)), **extra_args)


def decode(vae: Any, latent: Tensor) -> Tensor:
    """Decode a LATENT (b, 4, h, w) to (b, 3, H, W) near [0,1], not clamped: depth's extremes are outside."""
    unclamped = copy.copy(vae)
    unclamped.process_output = lambda picture: picture
    return finite(channels_first(unclamped.decode(latent)) * 0.5 + 0.5)


def finite(x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        raise ValueError("The model gave NaN or infinity: start ComfyUI with --fp32-vae, or with --force-fp32.")
    return x
