"""Graphs in ComfyUI's API format."""

from comfy.client import Graph


def vanilla(image: str, lora: str, prompt: str, checkpoint: str = "tiny_sd15.safetensors") -> Graph:
    """One intrinsic with core nodes alone: the photo's latent goes through the UNet once, at the last timestep.

    "img_to_img" makes the sampler feed the latent unscaled and take the UNet's output for the clean latent; one Euler
    step from the schedule's first sigma to 0 then returns just that output.

    Args:
        image: name in the input folder.
        lora: name in models/loras.
        prompt: the intrinsic's own.

    Returns:
        The graph; node "picture" saves the decoded picture as PNG, "latent" the latent.
    """

    def node(class_type: str, **inputs: object) -> dict:
        return {"class_type": class_type, "inputs": inputs}

    return {
        "base": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "lora": node("LoraLoaderModelOnly", model=["base", 0], lora_name=lora, strength_model=1.0),
        "model": node("ModelSamplingDiscrete", model=["lora", 0], sampling="img_to_img", zsnr=False),
        "prompt": node("CLIPTextEncode", clip=["base", 1], text=prompt),
        "photo": node("LoadImage", image=image),
        "encode": node("VAEEncode", pixels=["photo", 0], vae=["base", 2]),
        "guider": node("BasicGuider", model=["model", 0], conditioning=["prompt", 0]),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["model", 0], scheduler="simple", steps=1, denoise=1.0),
        "noise": node("DisableNoise"),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["encode", 0],
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["base", 2]),
        "picture": node("SaveImage", images=["decode", 0], filename_prefix="vanilla"),
        "latent": node("SaveLatent", samples=["sample", 0], filename_prefix="vanilla"),
    }
