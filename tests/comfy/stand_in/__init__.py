"""A pack for pictures of the workflows: exact maps of a rendered room stand in for those of a model.

Copied into custom_nodes beside maps.safetensors: the canonical maps (1, C, H, W) of the photo, and "drawn shading",
the picture of one. Latents are then the pixels themselves, eight by eight, and core's samplers pass them on. All else
of the page and the nodes is as it is.
"""

import sys
from pathlib import Path

import nodes
import torch
from comfy_api.latest import io
from safetensors.torch import load_file
from server import PromptServer
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle

MAPS = load_file(Path(__file__).parent / "maps.safetensors")


def decompose(photo, files, *_):
    """As comfy_nodes.decompose.decompose."""
    found = {name: interpolate(MAPS[name], photo.shape[-2:], mode="bilinear") for name in files}
    found["confidence"] = torch.ones_like(photo[:1, :1])
    found["raw_depth"] = found["depth"]
    maps = {name: x.expand(len(photo), -1, -1, -1) for name, x in found.items()}
    return maps | {"photo": photo}, {name: torch.zeros(len(photo), 4, 8, 8) for name in files}


def replace_decompose(prompt):
    """Before the first prompt, when all packs are loaded."""
    for name, module in list(sys.modules.items()):
        if name.endswith(".comfy_nodes.decompose"):
            module.decompose = decompose
    return prompt


def encode(_, vae, pixels):
    height, width = (side // 8 * 8 for side in pixels.shape[1:3])
    return ({"samples": pixel_unshuffle(pixels[:, :height, :width, :3].movedim(-1, 1), 8)},)


def decode(_, vae, samples):
    return (pixel_shuffle(samples["samples"], 8).movedim(1, -1),)


def sample(_, *, latent_image, **settings):
    return (latent_image,)


def sample_shading(_, *, latent_image, **settings):
    """Return the map that the workflow of core nodes samples."""
    height, width = (8 * side for side in latent_image["samples"].shape[-2:])
    picture = interpolate(MAPS["drawn shading"], (height, width), mode="bilinear").expand(-1, 3, -1, -1)
    latent = {"samples": pixel_unshuffle(picture, 8)}
    return io.NodeOutput(latent, latent)


PromptServer.instance.add_on_prompt_handler(replace_decompose)
nodes.VAEEncode.encode = encode
nodes.VAEDecode.decode = decode
nodes.KSampler.sample = sample
nodes.NODE_CLASS_MAPPINGS["SamplerCustomAdvanced"].execute = classmethod(sample_shading)
NODE_CLASS_MAPPINGS = {}  # that this is a pack
