"""From a photo to its maps: in one node, or as a patch for core's own samplers."""

from typing import Any

import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from torch import Tensor

from ..intrinsics.codec import raw_distance
from ..intrinsics.display import display_map
from ..intrinsics.maps import maps_from_pictures
from ..intrinsics.resizing import crop_to, pad_to, processing_size, resize
from ..intrinsics.vocabulary import INTRINSICS, UPSAMPLE
from . import runtime
from .gbuffers import check_choice
from .loras import AUTOMATIC, LoRAFile, choose, choose_file, fingerprint, lora_files, sets
from .photo_maps import PhotoMaps, photo_from_image, to_image, to_mask
from .sockets import GBufferType, choice, number, preview, schema, verdict, whole

ALL = "all"
UPSAMPLING = (*UPSAMPLE, "off")
ALIASES = ["normal map", "depth map", "albedo", "shading", "delight", "intrinsic image decomposition"]


def decompose(
    photo: Tensor,
    files: dict[str, LoRAFile],
    model: Any,
    clip: Any,
    vae: Any,
    resolution: int,
    upsample: str,
    batch_size: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Predict maps with ComfyUI's models, as `IntrinsicLoRAPipeline` does with those of diffusers.

    Args:
        photo: (N, 3, H, W) sRGB in [0,1].
        files: the LoRA of each map wanted.
        resolution: short side in pixels at which the model sees the photo, a multiple of 8; 0 for its own size.
        upsample: "guided", "bilinear", or "off" for maps of the processing size.
        batch_size: pictures per call of the VAE or the UNet: with four maps, one photo for four.

    Returns:
        Canonical maps by intrinsic, and "confidence", "raw_depth" and "photo" of their size; and the latent
        (N, 4, h, w) of each intrinsic.
    """
    runtime.check_inputs(model, clip, vae)
    loras = {name: runtime.read_for(file, name, model) for name, file in files.items()}
    size = processing_size(photo.shape[-2], photo.shape[-1], resolution)
    # All maps of a photo in one forward, if that many rows are allowed and all are drawn at one timestep.
    together = batch_size // len(loras) if len({x.header.single_step_timestep for x in loras.values()}) == 1 else 0
    chunks = -(-len(photo) // batch_size)
    forwards = -(-len(photo) // together) if together else chunks * len(loras)
    progress = runtime.Progress(chunks * (1 + len(loras)) + forwards)

    # One stage after the other over the whole batch, so that the VAE and the UNet are moved to the accelerator once.
    def encode(x: Tensor) -> Tensor:
        return runtime.encode(vae, pad_to(resize(x, size.resized), *size.padded))

    seen = progress.map(encode, photo, batch_size)  # (N, 4, h, w)
    prompts = {name: runtime.conditioning(clip, lora.header.definition(name).prompt) for name, lora in loras.items()}
    if together:
        draw = runtime.predict_each(runtime.with_loras(model, list(loras.values())), list(prompts.values()))
        clean = dict(zip(loras, progress.map(draw, seen, together).unbind(1), strict=True))
    else:
        draws = {name: runtime.predict(runtime.with_lora(model, lora), prompts[name]) for name, lora in loras.items()}
        clean = {name: progress.map(draw, seen, batch_size) for name, draw in draws.items()}

    parts = []
    for i in range(0, len(photo), batch_size):
        guide = photo[i : i + batch_size]
        if upsample == "off":
            guide = resize(guide, size.resized)
        latents = torch.cat([latent[i : i + batch_size] for latent in clean.values()])  # (T*n, 4, h, w)
        drawn = progress.map(lambda z: runtime.decode(vae, z), latents, len(guide))  # (T*n, 3, PH, PW)
        pictures = dict(zip(clean, crop_to(drawn, *size.resized).split(len(guide)), strict=True))
        maps = maps_from_pictures(pictures, guide, upsample)
        if "depth" in pictures:
            maps["raw_depth"] = resize(raw_distance(pictures["depth"]), (guide.shape[-2], guide.shape[-1]))
        parts.append(maps | {"photo": guide})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, clean


class DecomposeNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        image = "A photo, a batch, or the frames of a clip. Each frame is processed on its own."
        maps = "Which maps to compute; the time grows with their number. Nodes connected to other maps do not run."
        loras = (
            "Which LoRAs of models/loras and models/intrinsic_loras to use. Automatic finds the LoRA of each map by "
            "its metadata or name. If several sets are installed, choose one; * stands for the map."
        )
        resolution = (
            "Short side in pixels at which the model sees the photo. The LoRAs are trained at 512; much larger values "
            "lose large shapes. 0 is the photo's own size."
        )
        upsample = (
            "How maps are enlarged to the photo's size. Guided: normals, albedo and shading follow its edges. "
            "Bilinear: smooth. Off: maps keep the size that the model saw."
        )
        batch_size = (
            "Images that the model processes at once. From 4 on, all maps of a photo are computed together. Higher is "
            "faster and needs more memory; the maps are the same."
        )
        return schema(
            node_id="IntrinsicLora_Decompose",
            display_name="Intrinsic Decompose",
            category="image/intrinsic",
            description="Splits photos into surface normals, depth, albedo and shading, in one step per map of a "
            "Stable Diffusion 1.5 model with small LoRAs. No seed: the same photo always gives the same maps.",
            search_aliases=ALIASES,
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("image", tooltip=image),
                io.Model.Input("model", tooltip="A Stable Diffusion 1.5 model, without other LoRAs or adapters."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint. The prompts are built in."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                choice("maps", [ALL, *INTRINSICS], ALL, maps),
                choice("loras", [AUTOMATIC, *sets(lora_files())], AUTOMATIC, loras),
                whole("resolution", 512, 0, 2048, resolution, step=8),
                choice("upsample", UPSAMPLING, "guided", upsample),
                whole("batch_size", 4, 1, 256, batch_size),
            ],
            outputs=[
                GBufferType.Output(
                    "gbuffer", tooltip="Photo and maps in full precision, for the other Intrinsic nodes."
                ),
                io.Image.Output("normals", tooltip="OpenGL normal map: red right, green up, blue towards the viewer."),
                io.Image.Output("depth", tooltip="Near is white; each image is stretched to the full range."),
                io.Image.Output("albedo", tooltip="Surface colours without light and shadow, sRGB."),
                io.Image.Output("shading", tooltip="The light that falls on the surfaces, grey, sRGB."),
                io.Mask.Output(
                    "confidence", tooltip="White where the prediction is consistent with itself. A hint only."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        return fingerprint(lora_files())

    @classmethod
    def validate_inputs(cls, maps: str = ALL, loras: str = AUTOMATIC, upsample: str = "guided") -> bool | str:
        def check() -> None:
            check_choice("maps", maps, (ALL, *INTRINSICS))
            check_choice("upsample", upsample, UPSAMPLING)
            choose(lora_files(), INTRINSICS if maps == ALL else [maps], loras)

        return verdict(check)

    @classmethod
    def execute(
        cls,
        image: io.Image.Type,
        model: io.Model.Type,
        clip: io.Clip.Type,
        vae: io.Vae.Type,
        maps: str = ALL,
        loras: str = AUTOMATIC,
        resolution: int = 512,
        upsample: str = "guided",
        batch_size: int = 4,
    ) -> io.NodeOutput:
        files = choose(lora_files(), INTRINSICS if maps == ALL else [maps], loras)
        photo, alpha = photo_from_image(image)
        found, _ = decompose(photo, files, model, clip, vae, resolution, upsample, batch_size)
        height, width = found["photo"].shape[-2:]
        values: dict[str, Any] = {**found, "mask": None if alpha is None else resize(alpha, (height, width))}
        # Not a black picture for a map that was not asked for: what would use it is not run.
        pictures = {name: to_image(display_map(found[name], name)) for name in INTRINSICS if name in found}
        outputs = [pictures.get(name, ExecutionBlocker(None)) for name in INTRINSICS]
        shown = preview(cls, *pictures.values())
        return io.NodeOutput(PhotoMaps(**values), *outputs, to_mask(found["confidence"]), ui=shown)


class ModelPatchNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        lora_name = "A file of models/loras or models/intrinsic_loras. Automatic finds it by metadata or name."
        return schema(
            node_id="IntrinsicLora_ModelPatch",
            display_name="Intrinsic Model Patch",
            category="image/intrinsic",
            description="For your own graphs: adds the LoRA, one-step sampling of a clean latent and the prompt. VAE "
            "Encode, any core sampler with 1 step and cfg 1, and VAE Decode give the map as the LoRA draws it "
            "(normals in the OpenCV frame).",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="A Stable Diffusion 1.5 model."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint."),
                choice("intrinsic", INTRINSICS, "normals", "The map to draw."),
                choice("lora_name", [AUTOMATIC, *(file.name for file in lora_files())], AUTOMATIC, lora_name),
                number("strength", 1.0, -2.0, 2.0, 0.01, "1 is as trained. Other values are for experiments."),
            ],
            outputs=[
                io.Model.Output(
                    "patched_model", display_name="model", tooltip="For a sampler with 1 step, cfg 1, denoise 1."
                ),
                io.Conditioning.Output(
                    "conditioning", tooltip="For the sampler's positive input, and its negative input if required."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        return fingerprint(lora_files())

    @classmethod
    def validate_inputs(cls, intrinsic: str = "normals", lora_name: str = AUTOMATIC) -> bool | str:
        def check() -> None:
            check_choice("intrinsic", intrinsic, INTRINSICS)
            choose_file(lora_files(), intrinsic, lora_name)

        return verdict(check)

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        clip: io.Clip.Type,
        intrinsic: str = "normals",
        lora_name: str = AUTOMATIC,
        strength: float = 1.0,
    ) -> io.NodeOutput:
        runtime.check_inputs(model, clip)
        lora = runtime.read_for(choose_file(lora_files(), intrinsic, lora_name), intrinsic, model)
        positive = runtime.conditioning(clip, lora.header.definition(intrinsic).prompt)
        return io.NodeOutput(runtime.with_lora(model, lora, strength), positive)
